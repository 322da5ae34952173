"""Kills `zeroshift adapt` with signal 9 at random moments and lets the same command go on: is the result the
same?

    python benchmarks/resume.py [--kills 20] [--seed 0]

Every run is a small one on the built-in world, killed up to three times, in either stage, some of the times
while a checkpoint is being written. At its end weights, mapper and log must equal those of an uninterrupted
run in every bit. One line per kill; the last line is JSON. Exit code 1 where a run came out differently.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from zeroshift.files.writing import fingerprint
from zeroshift.training.run_folder import RunFolder

STEPS = {1: 12, 2: 16}
OPTIONS = {
    "--target": "pencil sketch",
    "--mapper.steps": STEPS[1],
    "--mapper.batch": 8,
    "--train.steps": STEPS[2],
    "--train.batch": 2,
    "--train.layers": "adaptive",
    "--train.adaptive.every": 5,
    "--train.adaptive.batch": 2,
    "--checkpoint-every": 3,
    "--grid-every": 0,
    "--device": "cpu",
}
PART = ".checkpoint.safetensors.*.part"


@dataclass(frozen=True, order=True)
class Moment:
    """When to kill: a while (in steps) after a step was logged, and then at once or inside the next write of
    a checkpoint."""

    stage: int
    step: int
    later: float
    writing: bool


def started(out: Path, threads: int) -> subprocess.Popen[bytes]:
    """The command at work."""
    words = [str(word) for pair in OPTIONS.items() for word in pair]
    command = [sys.executable, "-m", "zeroshift", "adapt", *words, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def carried_to_its_end(out: Path, threads: int) -> None:
    """Carries the command on until it is done."""
    process = started(out, threads)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"zeroshift adapt failed with {process.returncode}:\n{error.decode()}")


def log_of(out: Path) -> tuple[int, tuple[int, int]]:
    """Number of the log's file, which is another one in every process, and the last step in it."""
    lines = RunFolder(out).metrics()
    file = out / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else 0, (lines[-1]["stage"], lines[-1]["step"]) if lines else (
        0,
        0,
    )


def kill(
    out: Path, moment: Moment, seconds: dict[int, float], threads: int
) -> tuple[tuple[int, int], bool] | None:
    """The last step logged before the kill, and whether it left a half-written checkpoint; None where the run
    was faster."""
    before, process = log_of(out)[0], started(out, threads)
    while process.poll() is None:
        file, last = log_of(out)
        if file != before and last >= (moment.stage, moment.step):
            break
        time.sleep(0.002)
    time.sleep(moment.later * seconds[moment.stage])
    while moment.writing and process.poll() is None and not any(out.glob(PART)):
        time.sleep(0.0002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return (log_of(out)[1], any(out.glob(PART))) if process.returncode == -signal.SIGKILL else None


def content(out: Path) -> dict[str, Any]:
    """Hashes of all weights of a finished run, and its log without the times."""
    names = ("generator.safetensors", "mapper.safetensors", "checkpoint.safetensors")
    hashes = {name: fingerprint(load_file(out / name)) for name in names}
    return hashes | {"metrics.jsonl": [{**line, "seconds": 0} for line in RunFolder.load(out).metrics()]}


def moments(draw: random.Random) -> list[Moment]:
    """One to three moments of one run, early ones first."""
    stages = [draw.choice(list(STEPS)) for _ in range(draw.randint(1, 3))]
    return sorted(
        Moment(stage, draw.randrange(STEPS[stage]), draw.random(), draw.random() < 0.3) for stage in stages
    )


def main() -> int:
    """0 where every continued run equals the uninterrupted one, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    draw, killed, equal, writing, runs = random.Random(args.seed), 0, 0, 0, 0
    stages: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        carried_to_its_end(whole, args.threads)
        expected, log = content(whole), RunFolder.load(whole).metrics()
        seconds = {
            stage: sum(line["seconds"] for line in log if line["stage"] == stage) / STEPS[stage]
            for stage in STEPS
        }
        print(f"uninterrupted: {len(log)} steps, {seconds[1]:.2f} and {seconds[2]:.2f} s a step")
        while killed < args.kills:
            runs, here = runs + 1, 0
            out = Path(folder) / f"run{runs}"
            for moment in moments(draw)[: args.kills - killed]:
                found = kill(out, moment, seconds, args.threads)
                if found is None:
                    break
                (stage, step), half = found
                here, writing = here + 1, writing + half
                stages[moment.stage] += 1
                what = "a checkpoint half-written" if half else "no file half-written"
                print(
                    f"kill {killed + here}: run {runs}, stage {stage} after step {step}, {what}", flush=True
                )
            carried_to_its_end(out, args.threads)
            same = content(out) == expected
            killed, equal = killed + here, equal + here * same
            print(f"run {runs}: {here} kills, {'equal' if same else 'DIFFERENT'}", flush=True)
    result = {"benchmark": "resume", "kills": killed, "equal": equal, "runs": runs, "half_written": writing}
    result |= {
        "stages": {str(stage): stages[stage] for stage in STEPS},
        "seed": args.seed,
        "threads": args.threads,
    }
    print(json.dumps(result | {"python": platform.python_version(), "machine": platform.machine()}))
    return int(equal < killed)


if __name__ == "__main__":
    sys.exit(main())
