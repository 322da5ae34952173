"""The runs of a comparison: each carried out, measured and recorded, one after the other or side by side in
processes."""

from __future__ import annotations

import _thread
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from zeroshift.comparison.tables import group_of
from zeroshift.config.schema import AdaptConfig, EvaluateConfig, NetworksConfig, from_dict, to_dict
from zeroshift.errors import InputError, RunError
from zeroshift.files.writing import write_json
from zeroshift.measure.evaluate import METRICS, evaluate
from zeroshift.methods.adapt import adapt
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_of

SCHEMA = 1
Progress = Callable[[dict[str, Any]], None]
"""Called with small plain events: those of `adapt`, and kind compare, run, evaluate, done or failed."""


@dataclass(frozen=True)
class Task:
    """One run to be carried out and measured."""

    label: str
    config: AdaptConfig
    record_file: Path

    @property
    def folder(self) -> RunFolder:
        """The run."""
        return RunFolder(self.config.folder)


def key_of(evaluation: EvaluateConfig) -> dict[str, Any]:
    """What a measurement depends on, beside its run."""
    return {
        "evaluation": json.loads(json.dumps(to_dict(evaluation))),
        "known": list(evaluation.metrics or METRICS),
    }


def read_record(task: Task) -> dict[str, Any] | None:
    """What came of a run; None where nothing is known, or the file is damaged."""
    try:
        record = json.loads(task.record_file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if record.get("schema") == SCHEMA else None


def is_done(task: Task, evaluation: EvaluateConfig) -> bool:
    """Whether a run is finished and measured in the way that is asked for."""
    record = read_record(task)
    return (
        record is not None
        and record["state"] == "done"
        and record["asked"] == key_of(evaluation)
        and task.folder.finished
    )


def carry_out(task: Task, evaluation: EvaluateConfig, tell: Progress | None = None) -> str:
    """Carries out and measures one run, and records what came of it; the reason where it failed, "" where it
    did not."""
    tell = tell or (lambda event: None)
    before = read_record(task) or {}
    facts: dict[str, Any] = {"asked": key_of(evaluation), "memory": before.get("memory")}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            begin_peak()
            run = adapt(task.config, progress=tell)
            if run.steps_done:
                facts["memory"] = peak_mib()
                record_run(task, {**facts, "state": "adapted", "error": "it was not measured yet"})
            tell({"kind": "evaluate"})
            done = evaluate(run, replace(evaluation, device=task.config.run.device))
            facts |= {"state": "done", "error": "", "evaluation": done.record}
        except (InputError, RunError) as error:
            facts |= {"state": "failed", "error": str(error)}
        except Exception as error:  # one broken run must not stop the others
            facts |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
    facts["warnings"] = list(
        dict.fromkeys(str(each.message) for each in told if "zeroshift" in each.filename)
    )
    record_run(task, facts)
    return facts["error"]


def record_run(task: Task, facts: Mapping[str, Any]) -> None:
    """Writes the record of a run."""
    config, folder = task.config, task.folder
    lines, made = folder.metrics(), folder.environment if (folder.path / "environment.json").is_file() else {}
    base: dict[str, Any] = {
        "schema": SCHEMA,
        "label": task.label,
        "method": config.method,
        "target": config.target,
        "group": group_of(config.target, world_of({"name": config.generator, **made.get("source", {})})),
        "seed": config.run.seed,
        "state": "failed",
        "error": "",
        "minutes": sum(float(line.get("seconds", 0.0)) for line in lines) * config.run.log_every / 60,
        "steps": [
            max((int(line["step"]) for line in lines if line["stage"] == stage), default=0)
            for stage in (1, 2)
        ],
        "threads": made.get("threads"),
        "device": made.get("device"),
        "versions": {name: made.get(name) for name in ("zeroshift", "python", "torch", "transformers")},
        "memory": None,
        "evaluation": None,
        "warnings": [],
    }
    task.record_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(task.record_file, {**base, **facts})


class Clock:
    """Tells how far a comparison is and how long it will take, by the mean time of each method's runs."""

    def __init__(self, tasks: Sequence[Task], todo: Sequence[Task], jobs: int, tell: Progress) -> None:
        self.tasks, self.todo, self.jobs, self.tell = list(tasks), list(todo), jobs, tell
        self.waiting = list(todo)
        self.seconds: dict[str, list[float]] = {}
        for task in tasks:
            record = read_record(task)
            if record is not None and record["state"] == "done" and record["minutes"]:
                self.seconds.setdefault(task.label, []).append(60 * record["minutes"])

    def begins(self, task: Task) -> None:
        """Tells that a run begins."""
        place = {"number": self.tasks.index(task) + 1, "runs": len(self.tasks), "left": self.left()}
        self.tell(
            {"kind": "run", "label": task.label, "target": task.config.target, "seed": task.config.run.seed}
            | place
        )

    def ends(self, task: Task, seconds: float, error: str) -> None:
        """Tells that a run ended."""
        self.waiting.remove(task)
        if not error:
            self.seconds.setdefault(task.label, []).append(seconds)
        name = {
            "label": task.label,
            "target": task.config.target,
            "seed": task.config.run.seed,
            "error": error,
        }
        self.tell({"kind": "failed" if error else "done", "seconds": seconds, "left": self.left()} | name)

    def left(self) -> float | None:
        """Seconds that the waiting runs will take, where something is known."""
        every = [seconds for values in self.seconds.values() for seconds in values]
        if not every:
            return None
        mean = {label: sum(values) / len(values) for label, values in self.seconds.items()}
        return sum(mean.get(task.label, sum(every) / len(every)) for task in self.waiting) / min(
            self.jobs, len(self.waiting) or 1
        )


def one_by_one(todo: Sequence[Task], evaluation: EvaluateConfig, clock: Clock) -> None:
    """Carries out runs in this process."""
    for task in todo:
        clock.begins(task)
        began = time.monotonic()
        error = carry_out(task, evaluation, clock.tell)
        clock.ends(task, time.monotonic() - began, error)


CHILD = "import sys; from zeroshift.comparison.jobs import child; sys.exit(child(sys.stdin))"


def side_by_side(todo: Sequence[Task], evaluation: EvaluateConfig, clock: Clock) -> None:
    """Carries out runs in processes of their own with one thread each, so that one that dies leaves the
    others alone."""
    waiting = list(todo)
    running: dict[Task, tuple[subprocess.Popen[str], float, Any]] = {}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    try:
        while waiting or running:
            while waiting and len(running) < clock.jobs:
                task = waiting.pop(0)
                clock.begins(task)
                said = tempfile.TemporaryFile()
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": said, "stderr": said}
                process = subprocess.Popen(
                    [sys.executable, "-c", CHILD],
                    env=os.environ | threads,
                    start_new_session=True,
                    text=True,
                    **pipes,
                )
                # Left open: its end tells the process to stop, and comes too when this process is killed.
                assert process.stdin is not None
                process.stdin.write(packed(task, evaluation) + "\n")
                process.stdin.flush()
                running[task] = (process, time.monotonic(), said)
            time.sleep(0.1)
            for task, (process, began, said) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[task]
                assert process.stdin is not None
                process.stdin.close()
                clock.ends(task, time.monotonic() - began, _verdict(task, process.returncode, said))
    finally:
        for process, *_ in running.values():
            if process.stdin is not None:
                process.stdin.close()
        for process, *_ in running.values():
            process.wait()


RECORDED = 3
"""Exit code of a process whose run failed and whose record says why."""


def _verdict(task: Task, code: int, said: Any) -> str:
    """Why the process of a run failed; "" where it did not. A process that died without a record gets it
    here."""
    said.seek(0)
    last = (said.read().decode("utf-8", "replace").strip().splitlines() or [f"exit code {code}"])[-1]
    said.close()
    if code in (0, RECORDED):
        return (read_record(task) or {}).get("error", "its record is gone")
    error = (
        f"its process was killed (signal {-code}); memory may have run out"
        if code < 0
        else f"its process ended: {last}"
    )
    record_run(task, {"state": "failed", "error": error})
    return error


def packed(task: Task, evaluation: EvaluateConfig) -> str:
    """A task as a text for another process."""
    options = to_dict(task.config) | {"out": str(task.config.out)}
    names = {"label": task.label, "record": str(task.record_file)}
    return json.dumps(names | {"config": options, "evaluation": to_dict(evaluation)})


def child(orders: TextIO) -> int:
    """Carries out the task on the first line of `orders`, in a process of its own: 0 done, RECORDED where it
    failed.

    Stops as by Ctrl-C when `orders` ends.
    """
    tree = json.loads(orders.readline())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=lambda: (orders.read(), _thread.interrupt_main()), daemon=True).start()
    networks = NetworksConfig(**tree["evaluation"].pop("networks"))
    task = Task(tree["label"], from_dict(tree["config"]), Path(tree["record"]))
    try:
        return RECORDED if carry_out(task, EvaluateConfig(**tree["evaluation"], networks=networks)) else 0
    except KeyboardInterrupt:
        return 130


def begin_peak() -> None:
    """Begins to measure the peak of memory anew, where the system allows it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mib() -> int | None:
    """Peak of memory since `begin_peak`: of the GPU where it was used, else of this process; None where it is
    not known."""
    import torch

    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used >> 20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), None)
