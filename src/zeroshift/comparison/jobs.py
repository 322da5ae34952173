"""The runs of a comparison as jobs: each carried out, measured, and recorded with what it cost."""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zeroshift.comparison.engines import Tell
from zeroshift.comparison.tables import group_of
from zeroshift.config.measuring import EvaluateConfig
from zeroshift.config.schema import AdaptConfig, to_dict
from zeroshift.errors import InputError, RunError
from zeroshift.files.registry import load_generator
from zeroshift.files.writing import write_json
from zeroshift.measure.evaluate import METRICS, evaluate
from zeroshift.methods.adapt import adapt
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_named, world_of
from zeroshift.worlds.world import World

SCHEMA = 1
"""Of records and of compare.json; what has another is passed over."""


def measurement_key(evaluation: EvaluateConfig) -> dict[str, Any]:
    """What a measurement depends on, beside its run: one with another key is out of date."""
    return {
        "evaluation": json.loads(json.dumps(to_dict(evaluation))),
        "known": list(evaluation.metrics or METRICS),
    }


@dataclass(frozen=True)
class RunJob:
    """One run to be carried out and measured: a value that can be pickled."""

    label: str
    """The method's, as the tables name it."""
    config: AdaptConfig
    evaluation: EvaluateConfig
    record_file: Path

    @property
    def folder(self) -> RunFolder:
        """The folder of the run, which may not be there yet."""
        return RunFolder(self.config.folder)

    @property
    def record(self) -> dict[str, Any] | None:
        """What came of the run; None where nothing is known, or the file is damaged or of another schema."""
        try:
            record = json.loads(self.record_file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return record if record.get("schema") == SCHEMA else None

    @property
    def is_done(self) -> bool:
        """Whether the run is finished, and measured in the way that is asked for."""
        record = self.record
        return (
            record is not None
            and record["state"] == "done"
            and record["asked"] == measurement_key(self.evaluation)
            and self.folder.finished
        )

    def run(self, tell: Tell) -> str:
        """Carries out and measures the run, and records what came of it; the reason where it failed, "" where
        it did not."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = self._outcome(tell)
        ours = [str(each.message) for each in caught if "zeroshift" in each.filename]
        self.write_record(outcome | {"warnings": list(dict.fromkeys(ours))})
        return outcome["error"]

    def died(self, reason: str) -> None:
        """Records that the process of the run ended before the run did."""
        self.write_record({"state": "failed", "error": reason})

    def _outcome(self, tell: Tell) -> dict[str, Any]:
        """What is recorded of the run beside what its folder says."""
        before = self.record or {}
        known: dict[str, Any] = {"asked": measurement_key(self.evaluation)}
        known |= {name: before.get(name) for name in ("memory", "memory_is_upper_bound")}
        try:
            peak = PeakMemory()
            run = adapt(self.config, progress=tell)
            if run.steps_done:
                known |= peak.read()
                self.write_record(known | {"state": "adapted", "error": "it was not measured yet"})
            tell({"kind": "evaluate"})
            measured = evaluate(run, replace(self.evaluation, device=self.config.run.device))
            return known | {"state": "done", "error": "", "evaluation": measured.record}
        except (InputError, RunError) as error:
            return known | {"state": "failed", "error": str(error)}
        except Exception as error:  # one broken run must not stop the others
            return known | {"state": "failed", "error": f"{type(error).__name__}: {error}"}

    def write_record(self, outcome: Mapping[str, Any]) -> None:
        """Writes the record of the run: what its folder says, and `outcome`."""
        config = self.config
        folder = self.folder
        environment = self._environment() or {}
        lines = folder.metrics()
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "label": self.label,
            "method": config.method,
            "target": config.target_name,
            "group": group_of(config.target, self.world()),
            "seed": config.run.seed,
            "state": "failed",
            "error": "",
            "minutes": sum(float(line.get("seconds", 0.0)) for line in lines) * config.run.log_every / 60,
            "steps": [
                max((int(line["step"]) for line in lines if line["stage"] == stage), default=0)
                for stage in (1, 2)
            ],
            "threads": environment.get("threads"),
            "device": environment.get("device"),
            "versions": {
                name: environment.get(name) for name in ("zeroshift", "python", "torch", "transformers")
            },
            "memory": None,
            "memory_is_upper_bound": None,
            "evaluation": None,
            "warnings": [],
        }
        self.record_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.record_file, {**record, **outcome})

    def world(self) -> World | None:
        """The world of the run's source generator; None where it belongs to none, or cannot be found."""
        environment = self._environment()
        if environment is not None:
            return world_of(environment["source"])
        try:
            _, info = load_generator(self.config.generator)
        except InputError:
            return None
        return world_named(info.world)

    def _environment(self) -> dict[str, Any] | None:
        """What the run depends on, by its folder; None before it began, or where that cannot be read."""
        try:
            return self.folder.environment
        except InputError:
            return None


class PeakMemory:
    """The peak of memory since this was made: of the GPU where it was used, else of this process.

    The system knows the peak of a process only over its whole life, and on Linux a new process inherits that
    of the one that started it. So where the peak did not rise since, it is only a bound.
    """

    def __init__(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.before = peak_of_process()

    def read(self) -> dict[str, Any]:
        """`memory` in MiB, None where unknown, and `memory_is_upper_bound`: whether it needed that much at
        most."""
        import torch

        if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
            return {"memory": used >> 20, "memory_is_upper_bound": False}
        peak = peak_of_process()
        if peak is None or self.before is None:
            return {"memory": None, "memory_is_upper_bound": None}
        return {"memory": peak >> 20, "memory_is_upper_bound": peak <= self.before}


def peak_of_process() -> int | None:
    """Bytes of memory that this process held at most in its life so far; None where the system does not
    say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


class Eta:
    """Tells how far a comparison is and how long it will take, by the mean time of each method's runs."""

    def __init__(self, jobs: Sequence[RunJob], due: Sequence[RunJob], side_by_side: int, tell: Tell) -> None:
        """`jobs` are all that belong to the comparison, `due` those that are to be carried out now."""
        self.jobs = list(jobs)
        self.unfinished = list(due)
        self.side_by_side = side_by_side
        self.tell = tell
        self.seconds: dict[str, list[float]] = {}
        for job in jobs:
            record = job.record
            if record is not None and record["state"] == "done" and record["minutes"]:
                self.seconds.setdefault(job.label, []).append(60 * record["minutes"])

    def begins(self, job: RunJob) -> None:
        """Tells that a run begins."""
        place = {"number": self.jobs.index(job) + 1, "runs": len(self.jobs), "left": self.left()}
        self.tell({"kind": "run", **_identity(job), **place})

    def ends(self, job: RunJob, seconds: float, error: str) -> None:
        """Tells that a run ended."""
        self.unfinished.remove(job)
        if not error:
            self.seconds.setdefault(job.label, []).append(seconds)
        event = {"kind": "failed" if error else "done", "seconds": seconds, "left": self.left()}
        self.tell({**event, **_identity(job), "error": error})

    def left(self) -> float | None:
        """Seconds that the unfinished runs will take; None where no run of any method has ended yet."""
        every = [seconds for values in self.seconds.values() for seconds in values]
        if not every:
            return None
        usual = sum(every) / len(every)
        means = {label: sum(values) / len(values) for label, values in self.seconds.items()}
        total = sum(means.get(job.label, usual) for job in self.unfinished)
        return total / min(self.side_by_side, len(self.unfinished) or 1)


def _identity(job: RunJob) -> dict[str, Any]:
    return {"label": job.label, "target": job.config.target_name, "seed": job.config.run.seed}
