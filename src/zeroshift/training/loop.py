"""The loop of a run: stages of steps with optimisers of their own, averages, checkpoints, the record, and
failures.

It knows no method. A method brings its models, and writes the body of a step itself:

    with loop.recorded():
        for step in loop.steps(2):
            terms = Terms()
            ...
            loop.update("target", terms)
            loop.average()

What a run needs beside that body (pictures of a sample grid, a monitor, what goes on from step to step) is
asked of its `Task`. Steps count from 1. Where all draws are keyed by step, a resumed run equals an
uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import Precision, out_of_memory
from zeroshift.errors import RunError
from zeroshift.files.images import grid, write_png
from zeroshift.training.run_folder import RunFolder
from zeroshift.training.terms import Terms

Hook = Callable[[dict[str, Any]], None]
"""Called after every step with everything the step computed. An attribute `wants_gradients = True` adds
gradient norms."""
Progress = Callable[[dict[str, Any]], None]
"""Called with small plain events: kind start, step, grid, checkpoint, monitor, warning or finish."""
StepLog = dict[str, Any]
"""What a step computed, for hooks: emptied before every step, filled by whoever has something to tell."""


@dataclass(frozen=True)
class Trained:
    """Weights that one optimiser moves. A weight without gradient in a step is skipped, or with `zero_frozen`
    gets zeros."""

    weights: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    zero_frozen: bool = False


class Average:
    """Running average of a module's weights and buffers: mean <- decay mean + (1 - decay) now, without bias
    correction."""

    def __init__(self, mean: nn.Module, now: nn.Module, moving: Collection[str], decay: float) -> None:
        """`moving`: names of the tensors that may change."""
        start, kept = now.state_dict(), mean.state_dict()
        self.decay = decay
        # A tensor that is equal at the start and never moves stays equal, so it needs no averaging.
        self.pairs = [
            (kept[name], start[name])
            for name in start
            if start[name].is_floating_point()
            and (name in moving or not torch.equal(kept[name], start[name]))
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average one step."""
        for mean, now in self.pairs:
            mean.lerp_(now, 1 - self.decay)


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Of what it trains, the first has the loss that progress shows."""

    number: int
    steps: int
    trains: Mapping[str, Trained]
    models: Mapping[str, nn.Module]
    """Models by name, whose states a checkpoint of this stage holds."""
    section: str
    """Section of the config with its options `batch` and `lr`, by which messages call them."""
    batch: int
    averages: tuple[Average, ...] = ()


class Task(Protocol):
    """What a method brings beside the body of a step."""

    def prepare(self) -> None:
        """Work before the first step, once the run folder is held and a checkpoint was read."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that go on from one step to the next, beside weights and optimisers."""
        ...

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with the `state` of a checkpoint."""
        ...

    def moving_layers(self, stage: int) -> tuple[str, ...]:
        """Names of the layers that the last step could move; empty where that is not worth telling."""
        ...

    def after_step(self, stage: int, step: int, last: bool) -> None:
        """Looks at the run from outside, where that is due."""
        ...

    def stop_reason(self, stage: int) -> str:
        """Why the stage ends before its last step, in words; empty where it goes on."""
        ...

    def end_stage(self, stage: int) -> None:
        """Writes what a finished stage leaves behind."""
        ...

    def sample_grid(self) -> Tensor | None:
        """Pictures BCHW in [-1, 1] of a sample grid; None where a run has none."""
        ...

    def save_result(self, path: Path) -> None:
        """Writes the generator that the run is for."""
        ...

    def memory_tip(self, stage: int) -> str:
        """What to try where memory ran out."""
        ...


@dataclass
class Place:
    """Where a run stands: `step` counts the finished steps of `stage`; `steps_done` all that this process
    did."""

    stage: int
    step: int = 0
    steps_done: int = 0


class Loop:
    """Carries a run through its stages, and keeps the record of it."""

    def __init__(
        self,
        config: AdaptConfig,
        environment: Mapping[str, Any],
        stages: tuple[Stage, ...],
        task: Task,
        precision: Precision,
        *,
        step_log: StepLog,
        hook: Hook | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`environment`: what the run depends on beside its config, see `run_folder.environment`."""
        self.config = config
        self.environment = environment
        self.stages = {stage.number: stage for stage in stages}
        self.task = task
        self.precision = precision
        self.step_log = step_log
        self.hook = hook
        self.progress: Progress = progress or (lambda event: None)
        self.folder = RunFolder.check(config)
        self.place = Place(min(self.stages))

    @property
    def stage(self) -> Stage:
        """The stage that is at work."""
        return self.stages[self.place.stage]

    # 1. The steps.

    def steps(self, number: int) -> Iterator[int]:
        """Steps of a stage that are still to do; after each, it is told, and saved where a checkpoint is
        due."""
        if self.place.stage > number or number not in self.stages:
            return
        done = self.place.step if self.place.stage == number else 0
        self.place.stage = number
        self.place.step = done
        total = self.stage.steps
        self.progress({"kind": "start", "stage": number, "step": done, "steps": total})
        for step in range(done + 1, total + 1):
            if self.task.stop_reason(number):
                break
            self.step_log.clear()
            began = time.perf_counter()
            yield step
            self.place.step = step
            self.place.steps_done += 1
            self._tell(step, time.perf_counter() - began)
            self.task.after_step(number, step, step == total)
            due = step == total or step % self.config.run.checkpoint_every == 0
            if due or self.task.stop_reason(number):
                self.checkpoint()
        self.task.end_stage(number)

    def update(self, part: str, terms: Terms | Iterable[Terms], lr: float | None = None) -> None:
        """One step of a part's optimiser on the weighted sum of terms, at the rate `lr` where one is given.

        Of several terms, computed one after the other as they are asked for, each goes its way back before
        the next: the sum is the same, and the memory is that of the largest. The first update of a part in a
        step is told as its loss; of further ones, on penalties, only the terms are.
        """
        trained = self.stage.trains[part]
        if lr is not None:
            for group in trained.optimiser.param_groups:
                group["lr"] = lr
        trained.optimiser.zero_grad(set_to_none=True)
        loss, named = self._way_back([terms] if isinstance(terms, Terms) else terms)
        first = part == next(iter(self.stage.trains))
        if getattr(self.hook, "wants_gradients", False):
            norms = {
                name if first else f"{part}/{name}": each.grad.norm()
                for name, each in trained.weights.items()
                if each.grad is not None
            }
            self.step_log.setdefault("gradients", {}).update(norms)
        if trained.zero_frozen:
            for each in trained.weights.values():
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        trained.optimiser.step()
        told = self.step_log.setdefault("losses", {})
        told.setdefault("loss" if first else f"{part}_loss", loss)
        told.update(named)

    def _way_back(self, several: Iterable[Terms]) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradients of terms; gives their sum and every one by name, or the sum of those of a name,
        without gradient."""
        losses: list[Tensor] = []
        named: dict[str, Tensor] = {}
        for terms in several:
            loss = terms.total()
            self.require_finite(loss)
            loss.backward()
            losses.append(loss.detach())
            for name, value in terms.named().items():
                named[name] = named[name] + value if name in named else value
        return torch.stack(losses).sum(), named

    def average(self) -> None:
        """Moves the running averages of the stage."""
        for each in self.stage.averages:
            each.update()

    def require_finite(self, loss: Tensor) -> None:
        """RunError where a loss of the current step is no number."""
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {loss.item()} in stage {self.place.stage} at step {self.place.step + 1}; "
                f"the last checkpoint is intact. Try a lower {self.stage.section}.lr, or precision fp32."
            )

    # 2. The record.

    def _tell(self, step: int, seconds: float) -> None:
        """Reports a step to the log, the progress and the hook, and draws the grid that is due."""
        run = self.config.run
        number = self.place.stage
        total = self.stage.steps
        layers = self.task.moving_layers(number)
        line: dict[str, Any] = {"stage": number, "step": step}
        line |= {name: float(value) for name, value in self.step_log["losses"].items()}
        line |= {"layers": list(layers)} if layers else {}
        line["seconds"] = round(seconds, 4)
        if step % run.log_every == 0 or step == total:
            self.folder.log(line)
        self.progress({"kind": "step", **line, "steps": total})
        if number == max(self.stages) and run.grid_every and step % run.grid_every == 0:
            self._draw_grid(step)
        if self.hook is not None:
            event = {"kind": "step", "stage": number, "step": step, "steps": total, "layers": layers}
            self.hook({**event, **self.step_log})

    def _draw_grid(self, step: int) -> None:
        pictures = self.task.sample_grid()
        if pictures is None:
            return
        path = self.folder.path / "samples" / f"step_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        write_png(path, grid(pictures), {"step": str(step), "seeds": f"0-{self.config.run.samples - 1}"})
        self.progress({"kind": "grid", "stage": self.place.stage, "step": step, "path": str(path)})

    def checkpoint(self) -> None:
        """Saves all that the next step needs; what is drawn by step needs nothing."""
        carried, facts = self.task.state()
        tensors = {
            f"{prefix}/{name}": each
            for prefix, model in self.stage.models.items()
            for name, each in model.state_dict().items()
        }
        for prefix, trained in self._optimised():
            for name, weight in trained.weights.items():
                for key, value in trained.optimiser.state.get(weight, {}).items():
                    tensors[f"{prefix}{name}/{key}"] = value
        tensors |= {f"carried/{name}": each for name, each in carried.items()}
        place: dict[str, Any] = {"stage": self.place.stage, "step": self.place.step}
        self.folder.save_checkpoint(tensors, {**place, **facts})
        self.folder.set_status("running", **place)
        self.progress({"kind": "checkpoint", **place})

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to the last complete checkpoint, where there is one."""
        found = self.folder.load_checkpoint()
        if found is None:
            return
        tensors, facts = found
        self.place.stage = facts["stage"]
        self.place.step = facts["step"]
        for prefix, model in self.stage.models.items():
            model.load_state_dict(_below(tensors, f"{prefix}/"))
        self.task.resume(_below(tensors, "carried/"), facts)
        for prefix, trained in self._optimised():
            for name, weight in trained.weights.items():
                saved = _below(tensors, f"{prefix}{name}/")
                if saved:
                    moments = {key: each.to(weight.device) for key, each in saved.items() if key != "step"}
                    trained.optimiser.state[weight] = {"step": saved["step"], **moments}

    def _optimised(self) -> list[tuple[str, Trained]]:
        """What the stage trains, each with its prefix in a checkpoint."""
        parts = self.stage.trains
        return [("adam/" if len(parts) == 1 else f"adam/{part}/", trained) for part, trained in parts.items()]

    # 3. Beginning and end.

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Holds the run folder, resumes from it, and records how the work ended."""
        self.folder.begin(self.config, self.environment)
        try:
            self.restore()
            self.folder.open_metrics(self.place.stage, self.place.step, self.config.run.tensorboard)
            self.folder.set_status("running", self.place.stage, self.place.step)
            self.task.prepare()
            yield
            self._finish()
        except KeyboardInterrupt:
            saved = self._ended("stopped", "stopped by the keyboard")
            raise KeyboardInterrupt(
                f"stopped in stage {self.place.stage} after step {self.place.step}; {saved}"
            ) from None
        except Exception as error:
            if not out_of_memory(error):
                self._ended("failed", str(error))
                raise
            self._ended("failed", "out of memory")
            raise RunError(self._memory_message()) from error
        finally:
            self.folder.close()

    def _finish(self) -> None:
        last = max(self.stages)
        self.task.save_result(self.folder.generator_file)
        early = self.place.step < self.stages[last].steps
        message = self.task.stop_reason(last) if early else ""
        self.folder.set_status("finished", last, self.place.step, message)
        self.progress({"kind": "finish", "path": str(self.folder.path), "message": message})

    def _ended(self, state: str, message: str) -> str:
        """Records a bad end, if the disk lets it, and says where the run will go on."""
        with contextlib.suppress(OSError, RunError):
            self.folder.set_status(state, self.place.stage, self.place.step, message)
        if not self.folder.checkpoint_file.is_file():
            return "nothing was saved yet."
        return f"the same command goes on from the last checkpoint in {self.folder.path}."

    def _memory_message(self) -> str:
        stage = self.place.stage
        return (
            f"out of memory in stage {stage} at step {self.place.step + 1} with {self.stage.section}.batch "
            f"{self.stage.batch}; {self.task.memory_tip(stage)}."
        )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: each for name, each in tensors.items() if name.startswith(prefix)}
