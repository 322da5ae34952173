"""Progress of a run, as a person at a terminal or a log file sees it."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from zeroshift.config.schema import to_dict

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from zeroshift.methods.adapt import Plan

STAGES = {1: "learning words", 2: "moving the generator"}


def _bars(stream: TextIO, *fields: str, transient: bool = False) -> Bars:
    """Live bars of tasks: name, bar, count, the given fields of the task, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeRemainingColumn(compact=True),
        console=Console(file=stream, highlight=False, soft_wrap=True),
        transient=transient,
    )


class TaskProgress:
    """Progress of named tasks: live bars in a terminal, a line per finished task elsewhere. Called with the
    name of a task, steps done and steps in all."""

    def __init__(self, stream: TextIO) -> None:
        self.bars = _bars(stream, transient=True)
        self.console = self.bars.console
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


class AdaptProgress:
    """Progress of a run: live bars in a terminal, plain lines now and then elsewhere. Called with the events
    of the run."""

    LINES = 20
    """Plain lines per stage."""
    SECONDS = 20
    """Time after the last line at which the next step gets a line in any case."""

    def __init__(self, stream: TextIO) -> None:
        bars = _bars(stream, "loss", "rate")
        self.console = bars.console
        self.bars = bars if self.console.is_terminal else None
        self.began = 0.0
        self.first = 0
        self.heard = self.told = time.monotonic()
        self.grids: Path | None = None
        self.prepared: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        heard_before = self.heard
        self.heard = time.monotonic()
        if event["kind"] == "prepare":
            self.began += self.heard - heard_before  # once for the whole stage, so no part of its rate
        if event["kind"] == "start":
            self._start(event)
        elif event["kind"] == "step":
            self._step(event)
        elif event["kind"] == "prepare":
            self._prepare(event["what"], event["done"], event["total"])
        elif event["kind"] == "grid" and not self.grids:
            self.grids = Path(event["path"]).parent
            self.console.print(f"sample grids appear in {self.grids}")
        elif event["kind"] == "finish" and event.get("message"):
            self.console.print(event["message"])

    def _prepare(self, what: str, done: int, total: int) -> None:
        if self.bars is None:
            if done == total:
                self.console.print(f"{what}: {total}")
            return
        if what not in self.prepared:
            self.prepared[what] = self.bars.add_task(what, total=total, loss="", rate="")
        self.bars.update(self.prepared[what], completed=done)
        if done == total:
            self.bars.remove_task(self.prepared.pop(what))

    def _start(self, event: Mapping[str, Any]) -> None:
        self.began = self.heard
        self.first = event["step"]
        name = f"stage {event['stage']}: {STAGES[event['stage']]}"
        if self.first:
            self.console.print(f"resuming {name} after step {self.first} of {event['steps']}")
        if self.bars is not None:
            self.task = self.bars.add_task(name, total=event["steps"], completed=self.first, loss="", rate="")
        elif not self.first:
            self.console.print(name)

    def _step(self, event: Mapping[str, Any]) -> None:
        step = event["step"]
        steps = event["steps"]
        rate = (step - self.first) / max(1e-9, self.heard - self.began)
        if self.bars is not None:
            self.bars.update(
                self.task, completed=step, loss=f"loss {event['loss']:.4f}", rate=f"{rate:.1f} steps/s"
            )
        elif (
            step == steps or step % max(1, steps // self.LINES) == 0 or self.heard - self.told > self.SECONDS
        ):
            from zeroshift.measure.report import duration

            self.told = self.heard
            left = f", {duration((steps - step) / rate)} left" if step < steps else ""
            self.console.print(
                f"  step {step:>{len(str(steps))}}/{steps}  loss {event['loss']:.4f}  {rate:.1f} "
                f"steps/s{left}"
            )


def plan_tree(planned: Plan) -> dict[str, Any]:
    """What a run would do, as plain JSON values: the config, numbers of weights, movable layers, bytes."""
    return {
        "config": to_dict(planned.config),
        "parameters": planned.parameters,
        "layers": planned.layers,
        "layers_at_a_time": planned.select,
        "memory_bytes": planned.memory_bytes,
        "resumes_at": planned.resumes_at,
    }


def plan_text(planned: Plan) -> str:
    """What a run would do, in lines for a person."""
    config = planned.config
    tree = to_dict(config)
    lines = [
        f"Would move {config.generator} from {config.source!r} to {config.target_name!r} in {config.folder}. "
        "Nothing was written."
    ]
    lines += ["", "config"]
    for name, value in tree.items():
        pairs = (
            {f"{name}.{key}": item for key, item in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        lines += [f"  {key:24} {json.dumps(item)}" for key, item in pairs.items()]
    lines += ["", "parameters", *(f"  {name:24} {count:>12,}" for name, count in planned.parameters.items())]
    chosen = (
        "all of them at every step"
        if planned.select is None
        else f"those of the {planned.select} best latents at a time"
    )
    lines += [
        "",
        f"layers that may move ({chosen})",
        *textwrap.wrap(", ".join(planned.layers), 100, initial_indent="  ", subsequent_indent="  "),
    ]
    lines += [
        "",
        f"memory, estimated         {planned.memory_bytes / 2**20:,.0f} MiB, beside that of Python and "
        "PyTorch themselves",
    ]
    if planned.resumes_at:
        lines.append(
            f"resumes                   stage {planned.resumes_at[0]} after step {planned.resumes_at[1]}"
        )
    return "\n".join(lines)


class CompareProgress:
    """Progress of many runs: a line when one begins and ends, and in a terminal a bar for its steps. Called
    with the events of `compare`."""

    def __init__(self, stream: TextIO) -> None:
        self.meter = TaskProgress(stream)
        self.console = self.meter.console

    def __enter__(self) -> Self:
        self.meter.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.meter.__exit__(*error)

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind == "step" and self.console.is_terminal:
            self._step(f"stage {event['stage']}: {STAGES[event['stage']]}", event["step"], event["steps"])
        elif line := self._line(event):
            self.console.print(line)

    def _line(self, event: Mapping[str, Any]) -> str:
        """What is said about an event; "" where nothing is."""
        from zeroshift.measure.report import duration

        kind = event["kind"]
        if kind == "compare":
            return (
                f"{event['runs']} runs, {event['finished']} of them finished; everything is in {event['out']}"
            )
        if kind not in ("run", "done", "failed"):
            return ""
        name = f"{event['label']}, {event['target']}, seed {event['seed']}"
        left = f", about {duration(event['left'])} left" if event["left"] else ""
        if kind == "run":
            return f"run {event['number']} of {event['runs']}: {name}{left}"
        if kind == "done":
            return f"  {name}: done in {duration(event['seconds'])}{left}"
        return f"  {name}: failed. {event['error']}"

    def _step(self, what: str, step: int, steps: int) -> None:
        self.meter(what, step, steps)
        if step == steps:
            self.meter.bars.remove_task(self.meter.tasks.pop(what))
