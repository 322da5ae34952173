"""What a run of any method is made of: source, target and its average, the backend of their kind, the common
loop, the monitor, and the generator that is left behind."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.config.methods import METHODS, Procedure, procedure
from zeroshift.config.schema import AdaptConfig, placeless
from zeroshift.config.targets import target_parts
from zeroshift.devices import Precision, device_name, resolve_device
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.deltas import load_delta, save_delta
from zeroshift.files.registry import load_generator
from zeroshift.files.shots import Shots, read_shots
from zeroshift.files.writing import fingerprint
from zeroshift.measure.monitor import Monitor, Watcher
from zeroshift.measure.networks import Judge
from zeroshift.methods.backend import Backend, Given, Surroundings
from zeroshift.methods.diffusion_backend import DiffusionBackend
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.prompts import PromptMapper
from zeroshift.methods.style_backend import StyleBackend
from zeroshift.models import parameters
from zeroshift.shapes import Picture
from zeroshift.training.loop import Hook, Loop, Progress, Stage, StepLog
from zeroshift.training.run_folder import environment
from zeroshift.worlds.known import world_of

BACKENDS: dict[str, type[Backend]] = {"styles": StyleBackend, "diffusion": DiffusionBackend}
"""Kind of generator -> what a method needs of it."""


@dataclass(frozen=True)
class Source:
    """A source generator and what records say of it: its name, its hash, and the world that it belongs to."""

    generator: Any
    record: dict[str, str]


def open_source(config: AdaptConfig, given: Given) -> Source:
    """The source generator of a run, on the device where it was given or on that of the run."""
    if given.generator is not None:
        record = {"name": "given", "sha256": fingerprint(given.generator.state())}
        return Source(given.generator.clone(), record | ({"world": given.world} if given.world else {}))
    generator, info = load_generator(config.generator, resolve_device(config.run.device))
    record = {"name": info.name, "sha256": info.sha256}
    return Source(generator, record | ({"world": info.world} if info.world else {}))


class AdaptationRun(ABC):
    """The parts of one run, loaded and checked; nothing is written before `loop.recorded()`.

    A kind of run makes what it needs besides, then calls `_begin`.
    """

    loop: Loop
    monitor: Monitor
    clips: Sequence[ClipObjective] = ()
    """The guiding CLIPs."""
    all_clips: Sequence[ClipModel] = ()
    """CLIPs that guide, and that of the texture loss."""
    mapper: PromptMapper | None = None
    """What writes the words of a picture, where the method learns words."""

    def __init__(self, config: AdaptConfig, given: Given, progress: Progress | None = None) -> None:
        """InputError where an option does not fit the generator, or a file is missing."""
        self.config = config
        self.given = given
        self.device = resolve_device(config.run.device)
        self.dtype = given.dtype
        self.precision = Precision(config.run.precision, self.device)
        self.progress: Progress = progress or (lambda event: None)
        self.step_log: StepLog = {}
        opened = open_source(config, given)
        self.record = opened.record
        """What records say of the source."""
        self.source = opened.generator.to(self.device, self.dtype).requires_grad_(False)
        self.world = world_of(opened.record)
        """The world of the source, where it belongs to one."""
        self.procedure: Procedure = procedure(
            config.method, self.source.kind, config.generator, captioned=self._captioned()
        )
        self.target = self._copy(given.target)
        self.average = self._copy(given.ema)
        surroundings = Surroundings(
            config, given, self.device, self.precision, self.step_log, self.progress, self._require_finite
        )
        self.backend = BACKENDS[self.source.kind](surroundings, self.source, self.target, self.average)
        self.found_shots = self._read_shots()
        """Pictures of the target, where there are any."""

    def _begin(
        self, record: Mapping[str, Any], clips: Sequence[Mapping[str, str]], hook: Hook | None
    ) -> None:
        """Makes loop and monitor, once all else is there. `record`: what environment.json holds besides;
        `clips`: names and hashes of the CLIPs that guide, among which no judge may be."""
        made = environment(device_name(self.device), self.record, clips) | dict(record)
        made |= {} if self.found_shots is None else {"shots": self.found_shots.record()}
        self.loop = Loop(
            self.config,
            made,
            self.stages(),
            self,
            self.precision,
            step_log=self.step_log,
            hook=hook,
            progress=self.progress,
        )
        guiding: Collection[str] = {each["sha256"] for each in clips}
        self.monitor = Monitor(
            self.config,
            self.loop.folder,
            self,
            world=self.world,
            guiding=guiding,
            save=self._save_average,
            progress=self.progress,
        )

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """What is trained in which stage."""

    def _captioned(self) -> bool:
        """Whether the world has captions of people in the domains of all labels."""
        labels = [self.config.source, *(part.label for part in target_parts(self.config.target))]
        return self.world is not None and self.world.describes(labels)

    def _read_shots(self) -> Shots | None:
        """The pictures of the target, as many as the method needs."""
        if self.config.shots.folder is None:
            return None
        return read_shots(self.config.shots, self.source.image_size, METHODS[self.config.method].least_shots)

    def _copy(self, state: Mapping[str, Tensor] | None) -> Any:
        """A copy of the source, with other weights where some are given."""
        made = self.source.clone()
        if state is not None:
            made.load_state_dict(state)
        return made

    def _require_finite(self, loss: Tensor) -> None:
        self.loop.require_finite(loss)

    # 1. What the loop asks.

    def prepare(self) -> None:
        """Makes ready what the backend learns from, goes on with the monitor's record, and writes the
        pictures of the target into the run folder, where that is asked for."""
        self.monitor.restore()
        self.backend.prepare(self.clips)
        if self.found_shots is not None and self.config.shots.copy:
            self.found_shots.write(self.loop.folder.path / "shots")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the backend carries from one step to the next."""
        return self.backend.state()

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with the backend's state."""
        self.backend.resume(tensors, facts)

    def moving_layers(self, stage: int) -> tuple[str, ...]:
        """Layers that the last step of stage 2 could move."""
        return self.backend.moving if stage == 2 else ()

    def after_step(self, stage: int, step: int, last: bool) -> None:
        """Shows the run to its monitor."""
        if stage == 2:
            self.monitor.after(step, last, self.average)

    def stop_reason(self, stage: int) -> str:
        """Why the monitor ends stage 2; empty where it goes on."""
        return self.monitor.stop_reason if stage == 2 else ""

    def end_stage(self, stage: int) -> None:
        """Leaves nothing behind."""
        return None

    def sample_grid(self) -> Picture:
        """Pictures BCHW of the first seeds by the averaged generator."""
        return self.backend.sample_grid()

    def save_result(self, path: Path) -> None:
        """Writes the averaged generator: that of the last step, or of the best record of the monitor where
        the run went on until it converged."""
        best = self.monitor.result()
        if best is not None and self.config.train.parameters.kind == "weights":
            self.average.load_state_dict(cast(Any, best).state_dict())
        elif best is not None:
            folder = self.loop.folder
            parameters.put(self.average, load_delta(folder.delta_file(folder.best_file)).tensors)
        self._save_average(path)

    def folded(self, generator: Any) -> Any:
        """The target or its average as an ordinary generator."""
        return parameters.folded(generator, self.source)

    def _save_average(self, path: Path, **facts: str) -> None:
        """Writes the averaged generator, and behind it its small parameters where it has some, with all that
        made them in the metadata."""
        config = self.config
        source = self.loop.environment["source"]
        made = {"method": config.method, "source": config.source, "target": config.target}
        made |= {"seed": str(config.run.seed), "run": json.dumps(placeless(config))}
        made |= {f"source_{key}": source[key] for key in ("name", "sha256")}
        made |= {"world": source["world"]} if source.get("world") else {}
        save_generator(path, self.folded(self.average), made | facts)
        kind = config.train.parameters.kind
        if kind != "weights":
            # Behind the generator: the monitor trusts in the step that stands in the generator's file.
            tensors = parameters.small_parameters(self.average)
            save_delta(self.loop.folder.delta_file(path), kind, tensors, made | facts)

    def memory_tip(self, stage: int) -> str:
        """What to try where memory ran out, by the kind of generator."""
        return self.backend.memory_tip(stage)

    # 2. What the monitor asks.

    def monitor_codes(self, count: int) -> Any:
        """Codes of the watched pictures."""
        return self.backend.monitor_codes(count, self.clips)

    def monitor_pictures(self, generator: Any, codes: Any) -> Picture:
        """Watched pictures BCHW."""
        return self.backend.monitor_pictures(generator, codes)

    @abstractmethod
    def watcher(self, codes: Any, pictures: Picture, judge: Callable[[], Judge | None]) -> Watcher:
        """What looks at watched pictures."""
