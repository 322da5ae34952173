"""Killed with signal 9 at random moments of either stage, a run that is continued equals one that never
stopped."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from zeroshift.methods.adapt import AdaptRun
from zeroshift.training.run_folder import RunFolder

Place = tuple[int, int]
TRAIN = {"adaptive": {"every": 3}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """The uninterrupted run: 4 steps of stage 1 and 5 of stage 2, a checkpoint every second one."""
    return tiny.run(tmp_path_factory.mktemp("whole") / "run", train=TRAIN)


def child(out: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Process that carries the run on."""
    number = os.fork()
    if number == 0:
        prepare()
        tiny.run(out, train=TRAIN)
        os._exit(0)
    return number


def was_killed(number: int) -> bool:
    """Whether a process that has ended, or is about to, was ended by signal 9."""
    _, status = os.waitpid(number, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def reached(out: Path) -> Place:
    """Stage and step of the last line in the log."""
    lines = RunFolder(out).metrics()
    return (lines[-1]["stage"], lines[-1]["step"]) if lines else (0, 0)


def kill_after(out: Path, place: Place, pause: float) -> Place:
    """Carries the run on until a step is logged, kills it a moment later, and gives the last step logged
    then."""
    number, deadline = child(out), time.monotonic() + 60
    while reached(out) < place and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(number, signal.SIGKILL)
    assert was_killed(number) or RunFolder.load(out).finished
    return reached(out)


def equal(out: Path, whole: AdaptRun) -> bool:
    """Whether a run, carried on to its end, equals the uninterrupted one in every bit that does not tell the
    time."""
    run = tiny.run(out, train=TRAIN)
    pairs: list[tuple[Any, Any]] = [(run.generator, whole.generator), (run.mapper, whole.mapper)]
    states = [(a.state_dict(), b.state_dict()) for a, b in pairs]
    logs = [[{**line, "seconds": 0} for line in each.folder.metrics()] for each in (run, whole)]
    return logs[0] == logs[1] and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in states
    )


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_of_both_stages(whole: AdaptRun, tmp_path: Path, seed: int) -> None:
    draw, out = random.Random(seed), tmp_path / "run"
    places = [(1, draw.randint(0, 3)), (2, draw.randint(0, 2)), (2, draw.randint(2, 4))]
    killed = [kill_after(out, place, draw.uniform(0, 0.05)) for place in places]
    assert all(at >= place for at, place in zip(killed, places, strict=True))
    assert equal(out, whole)


class Dying:
    """Stands for `os.replace`, by which our files take their place: leaves one of them half-written and ends
    the process."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.left, self.plain = name, count, os.replace

    def __call__(self, part: Path, path: Path) -> None:
        self.left -= path.name == self.name
        if path.name == self.name and self.left == 0:
            os.truncate(part, part.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.plain(part, path)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("checkpoint.safetensors", [1, 1, 2]),
        ("checkpoint.safetensors", [3, 1, 2]),
        ("mapper.safetensors", [1, 1]),
        ("generator.safetensors", [1, 1]),
        ("status.json", [2, 4]),
        ("metrics.jsonl", [1, 1]),
    ],
)
def test_killed_while_it_writes_a_file(whole: AdaptRun, tmp_path: Path, name: str, counts: list[int]) -> None:
    out = tmp_path / "run"
    for count in counts:
        number = child(out, lambda count=count: setattr(os, "replace", Dying(name, count)))
        assert was_killed(number)
        assert [path.name.split(".")[1] for path in out.glob(".*.part")] == [name.split(".")[0]]
    assert equal(out, whole)
    assert not list(out.glob(".*.part"))
