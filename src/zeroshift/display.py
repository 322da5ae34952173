"""Progress of a run, as a person at a terminal or a log file sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

STAGES = {1: "learning words", 2: "moving the generator"}


class Meter:
    """Progress of named tasks: live bars in a terminal, a line per finished task elsewhere. Called with task, done and total."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()]
        self.bars = Progress(*columns, TimeRemainingColumn(compact=True), console=self.console, transient=True)
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.console.is_terminal:
            if what not in self.tasks:
                self.tasks[what] = self.bars.add_task(what, total=total)
            self.bars.update(self.tasks[what], completed=done)
        elif done == total:
            self.console.print(f"  {what}: {total}")


class Display:
    """Progress of a run: live bars in a terminal, plain lines now and then elsewhere. Called with the trainer's events."""

    LINES = 20
    """Plain lines per stage."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        texts = [TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[rate]}")]
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            *texts,
            TimeRemainingColumn(compact=True),
        ]
        self.bars = Progress(*columns, console=self.console) if self.console.is_terminal else None
        self.began, self.first = 0.0, 0
        self.grids: Path | None = None

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "start":
            self._start(event)
        elif event["kind"] == "step":
            self._step(event)
        elif event["kind"] == "grid" and not self.grids:
            self.grids = Path(event["path"]).parent
            self.console.print(f"sample grids appear in {self.grids}")
        elif event["kind"] == "finish" and event.get("message"):
            self.console.print(event["message"])

    def _start(self, event: Mapping[str, Any]) -> None:
        self.began, self.first = time.monotonic(), event["step"]
        name = f"stage {event['stage']}: {STAGES[event['stage']]}"
        if self.first:
            self.console.print(f"resuming {name} after step {self.first} of {event['steps']}")
        if self.bars is not None:
            self.task = self.bars.add_task(name, total=event["steps"], completed=self.first, loss="", rate="")
        elif not self.first:
            self.console.print(name)

    def _step(self, event: Mapping[str, Any]) -> None:
        step, steps = event["step"], event["steps"]
        rate = (step - self.first) / max(1e-9, time.monotonic() - self.began)
        if self.bars is not None:
            self.bars.update(self.task, completed=step, loss=f"loss {event['loss']:.4f}", rate=f"{rate:.1f} steps/s")
        elif step == steps or step % max(1, steps // self.LINES) == 0:
            from .report import duration

            left = f", {duration((steps - step) / rate)} left" if step < steps else ""
            self.console.print(f"  step {step:>{len(str(steps))}}/{steps}  loss {event['loss']:.4f}  {rate:.1f} steps/s{left}")


class Tour:
    """Progress of many runs: a line when one begins and ends, and in a terminal a bar for its steps. Called with events."""

    def __init__(self, stream: TextIO) -> None:
        self.meter = Meter(stream)
        self.console = self.meter.console
        self.name = ""

    def __enter__(self) -> Self:
        self.meter.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.meter.__exit__()

    def __call__(self, event: Mapping[str, Any]) -> None:
        from .report import duration

        kind = event["kind"]
        left = f", about {duration(event['left'])} left" if event.get("left") else ""
        name = ", ".join(str(event[part]) for part in ("label", "target") if part in event) + f", seed {event.get('seed')}"
        if kind == "compare":
            self.console.print(f"{event['runs']} runs, {event['finished']} of them finished; everything is in {event['out']}")
        elif kind == "run":
            self.console.print(f"run {event['number']} of {event['runs']}: {name}{left}")
        elif kind == "done":
            self.console.print(f"  {name}: done in {duration(event['seconds'])}{left}")
        elif kind == "failed":
            self.console.print(f"  {name}: failed. {event['error']}")
        elif kind == "step" and self.console.is_terminal:
            self._step(f"stage {event['stage']}: {STAGES[event['stage']]}", event["step"], event["steps"])

    def _step(self, what: str, step: int, steps: int) -> None:
        self.meter(what, step, steps)
        if step == steps:
            self.meter.bars.remove_task(self.meter.tasks.pop(what))
