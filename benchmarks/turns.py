"""Programs that take turns, step by step, on the same work: time and peak memory of each, in one run.

Every side lives in a process of its own, which says its own peak memory. Seconds are the least over the steps
after the first, which warms up: other work on the machine only adds.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

TOLERANCE = 1e-4
"""Largest relative difference between the losses of the published procedure and ours, both in float32."""

Row = tuple[float, float, int]
"""Of a step: loss, seconds, and the peak bytes so far."""

Work = Callable[..., None]
"""What a side does: called with its `Turn`, its name and what `take_turns` was given, in a process of its
own."""


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    return int(fields["VmHWM"].split()[0]) * 1024


class Turn:
    """A side's end of the line: it waits for its turn before every step, then sends what the step cost."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.began = pipe, 0.0

    def wait(self) -> None:
        """Waits for the next turn; after the last one the side ends here, before it does anything that is not
        measured."""
        try:
            self.pipe.recv()
        except EOFError:
            raise SystemExit from None
        self.began = time.perf_counter()

    def tell(self, loss: float) -> None:
        """Ends a step, and waits for the next one."""
        self.pipe.send((loss, time.perf_counter() - self.began, peak_bytes()))
        self.wait()


def take_turns(
    title: str, sides: Sequence[str], steps: int, threads: int, work: Work, *given: Any
) -> dict[str, list[Row]]:
    """Rows of every step of every side."""
    start = multiprocessing.get_context("spawn")
    pipes, processes, seen = {}, [], {side: list[Row]() for side in sides}
    for side in sides:
        pipes[side], theirs = start.Pipe()
        processes.append(
            start.Process(target=_serve, args=(work, theirs, threads, side, *given), daemon=True)
        )
        processes[-1].start()
        theirs.close()
    for step in range(1, steps + 1):
        for side in sides:
            pipes[side].send("go")
            seen[side].append(pipes[side].recv())
            loss, seconds, peak = seen[side][-1]
            print(
                f"{title} step {step} {side}: loss {loss:.6f}, {seconds:.2f} s, {peak / 1e9:.2f} GB",
                flush=True,
            )
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.close()
        process.join()
    return seen


def _serve(work: Work, pipe: Connection, threads: int, side: str, *given: Any) -> None:
    """A side's process."""
    torch.set_num_threads(threads)
    work(Turn(pipe), side, *given)


def result(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """What a side's steps cost: their typical seconds, and its peak memory."""
    return {"seconds": seconds, "peak_gb": round(rows[-1][2] / 1e9, 3)}


def least(rows: Sequence[Row]) -> float:
    """Least seconds of a step."""
    return min(row[1] for row in rows)


def against(
    mine: dict[str, Any], rows: Sequence[Row], literal: dict[str, Any], yardstick: Sequence[Row]
) -> None:
    """Adds to a side's result how far its losses are from those of the published procedure, and the ratios to
    its cost."""
    mine["deviation"] = max(
        abs(row[0] - other[0]) / abs(other[0]) for row, other in zip(rows, yardstick, strict=True)
    )
    mine["speedup"] = round(literal["seconds"] / mine["seconds"], 2)
    mine["memory"] = round(mine["peak_gb"] / literal["peak_gb"], 2)


def require_equal(found: dict[str, Any]) -> None:
    """That a side has the losses of the published procedure."""
    deviation = found["deviation"]
    assert deviation <= TOLERANCE, (
        f"losses differ by {deviation:.1e} of the published ones, {TOLERANCE:.0e} is allowed"
    )
