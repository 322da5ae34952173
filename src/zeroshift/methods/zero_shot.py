"""A zero-shot run with everything in its place: generators, CLIPs, mapper, backend, monitor, on the common
loop."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.config.methods import METHODS, Procedure, procedure
from zeroshift.config.schema import AdaptConfig, placeless
from zeroshift.config.targets import target_parts
from zeroshift.devices import Precision, device_name, resolve_device
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.deltas import load_delta, save_delta
from zeroshift.files.registry import load_clip, load_generator
from zeroshift.files.shots import Shots, read_shots
from zeroshift.files.writing import fingerprint
from zeroshift.measure.monitor import Monitor
from zeroshift.measure.networks import open_identity
from zeroshift.methods.backend import Backend, Given, Surroundings
from zeroshift.methods.diffusion_backend import DiffusionBackend
from zeroshift.methods.guidance import clip_objective, unknown_words
from zeroshift.methods.picture_losses import PictureLosses, texture_of
from zeroshift.methods.prompts import PromptMapper, prompt_mapper, save_mapper
from zeroshift.methods.shots import picture_ways
from zeroshift.methods.style_backend import StyleBackend
from zeroshift.models import parameters
from zeroshift.models.seeds import rng
from zeroshift.shapes import Picture, UnitFeature
from zeroshift.training.loop import Average, Hook, Loop, Progress, Stage, StepLog, Trained
from zeroshift.training.run_folder import environment
from zeroshift.training.terms import Terms
from zeroshift.worlds.known import world_of

BACKENDS: dict[str, type[Backend]] = {"styles": StyleBackend, "diffusion": DiffusionBackend}
"""Kind of generator -> what a zero-shot method needs of it."""

PATCH_PX = 510
"""Side of the patch loss's squares; pictures must be larger."""

MEAN_CODES = 256
"""Codes over which the mean direction of learned words is taken."""

MAPPER_FILE = "mapper.safetensors"
"""The learned mapper in a run folder, written when stage 1 ends."""


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


class ZeroShotRun:
    """The parts of one run, loaded and checked; nothing is written before `loop.recorded()`."""

    def __init__(
        self, config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
    ) -> None:
        """InputError where an option does not fit the generator, a file is missing, or a CLIP does not know
        what it needs."""
        self.config = config
        self.given = given
        self.device = resolve_device(config.run.device)
        self.dtype = given.dtype
        self.precision = Precision(config.run.precision, self.device)
        self.progress: Progress = progress or (lambda event: None)
        self.step_log: StepLog = {}
        opened = open_source(config, given)
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
        self.shots = self._read_shots()
        """Pictures of the target, where there are any."""
        clips = self._load_clips()
        self.clips = [
            clip_objective(clip, weight, config, self.precision)
            for clip, weight in zip(clips, config.weights, strict=True)
        ]
        self.picture_losses = self._picture_losses(clips, opened.record)
        texture = self.picture_losses.texture
        others = [texture.clip] if texture is not None and texture.clip not in clips else []
        prints = [{"name": clip.name, "sha256": fingerprint(clip.state_dict())} for clip in [*clips, *others]]
        self.all_clips: list[ClipModel] = [*clips, *others]
        """CLIPs that guide, and that of the texture loss."""
        record = environment(device_name(self.device), opened.record, prints) | self.backend.record()
        record |= {} if self.shots is None else {"shots": self.shots.record()}
        self.mapper = self._mapper() if config.learns_words else None
        self.loop = Loop(
            config,
            record,
            self._stages(),
            self,
            self.precision,
            step_log=self.step_log,
            hook=hook,
            progress=progress,
        )
        self.monitor = Monitor(
            config,
            self.loop.folder,
            self,
            world=self.world,
            guiding={each["sha256"] for each in prints},
            save=self._save_average,
            progress=self.progress,
        )

    # 1. Loading.

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

    def _load_clip(self, name: str) -> ClipModel:
        return load_clip(name, resize=self.config.quirks.resize).to(self.device, self.dtype)

    def _load_clips(self) -> list[ClipModel]:
        """The guiding CLIPs; words of the labels that they never learned only warn."""
        given = self.given.clips
        names = self.config.clip
        clips = [each.to(self.device, self.dtype) for each in given or map(self._load_clip, names)]
        if len(clips) != len(self.config.weights):
            raise InputError(
                f"{len(clips)} CLIPs were given for {len(self.config.weights)} weights; give one weight each."
            )
        # CLIPs of one vocabulary need one warning.
        vocabularies = {
            tuple(getattr(clip.tokenizer, "vocab", [clip.name])): clip for clip in reversed(clips)
        }
        for clip in vocabularies.values():
            if text := unknown_words(clip, (self.config.source, self.config.target)):
                warnings.warn(text, stacklevel=4)
                self.progress({"kind": "warning", "message": text})
        return clips

    def _picture_losses(self, clips: list[ClipModel], source: Mapping[str, str]) -> PictureLosses:
        weights = self.config.losses
        if weights.patch and self.source.image_size <= PATCH_PX:
            raise InputError(
                f"losses.patch needs pictures above {PATCH_PX} px, the generator's have "
                f"{self.source.image_size}; set it to 0."
            )
        face = None
        if weights.identity:
            face = open_identity(weights.identity_network, world_of(source), self.device)
            if face is None:
                raise InputError(
                    "losses.identity needs a face network: give losses.identity_network, a file "
                    "model_ir_se50.pth."
                )
        texture = texture_of(weights, clips, self._load_clip)
        return PictureLosses(weights, self.precision, texture, None if face is None else face.embed)

    def _mapper(self) -> PromptMapper:
        """The mapper at its start: one head per CLIP."""
        options = self.config.mapper
        heads = [
            prompt_mapper(
                [clip.clip],
                clip.context,
                self.backend.code_width(clip),
                start=options.prompt_init,
                shared=self.shares_words,
                words=options.words,
                hidden=options.hidden or None,
                depth=options.depth,
                seed=rng("mapper", self.config.run.seed, number).initial_seed(),
            ).heads[0]
            for number, clip in enumerate(self.clips)
        ]
        mapper = PromptMapper(cast(Any, heads)).to(self.device, self.dtype)
        if self.given.mapper is not None:
            mapper.load_state_dict(self.given.mapper)
        return mapper

    def _stages(self) -> tuple[Stage, ...]:
        """What is trained in which stage."""
        mapper = self.config.mapper
        train = self.config.train
        named = dict(self.target.named_parameters())
        weights = {name: named[name] for name in self.backend.movable}
        optimiser = self.backend.optimiser(list(weights.values()))
        moved = Trained(weights, optimiser, zero_frozen=self.config.quirks.frozen_adam == "decay")
        models = {"target": self.target, "ema": self.average}
        averages = (Average(self.average, self.target, weights, train.ema),)
        if self.mapper is None:
            return (Stage(2, train.steps, {"target": moved}, models, "train", train.batch, averages),)
        words = Trained(
            dict(self.mapper.named_parameters()), torch.optim.Adam(self.mapper.parameters(), lr=mapper.lr)
        )
        return (
            Stage(1, mapper.steps, {"mapper": words}, {"mapper": self.mapper}, "mapper", mapper.batch),
            Stage(
                2,
                train.steps,
                {"target": moved},
                {"mapper": self.mapper, **models},
                "train",
                train.batch,
                averages,
            ),
        )

    def _require_finite(self, loss: Tensor) -> None:
        self.loop.require_finite(loss)

    @torch.no_grad()
    def recentre_directions(self) -> None:
        """Takes the mean of the words' directions off each CLIP's, where `mapper.mean` wants the labels' in
        its place."""
        if self.mapper is None or self.shares_words or self.config.mapper.mean != "label":
            return
        words = self.mapper(self.backend.many_codes(MEAN_CODES, self.clips))
        self.clips = [clip.about_label(each) for clip, each in zip(self.clips, words, strict=True)]

    def words(self, codes: Any) -> list[Any]:
        """For every CLIP the learned words of codes, or None where the method learns none."""
        return [None] * len(self.clips) if self.mapper is None else self.mapper(codes)

    @property
    def shares_words(self) -> bool:
        """Whether all pictures share the learned words."""
        return METHODS[self.config.method].words == "shared"

    def tell(self, terms: Terms, source: Picture | None = None, target: Picture | None = None) -> None:
        """Tells a hook, where there is one, the losses of the CLIPs of a step, without their weights, and its
        pictures."""
        if self.loop.hook is None:
            return
        # What a method adds once per step stands in groups behind those of the CLIPs.
        self.step_log["per_clip"] = terms.per_group()[: len(self.clips)]
        if source is not None and target is not None:
            self.step_log["pictures"] = (source, target.detach())

    def tell_directions(self, image: UnitFeature, text: UnitFeature) -> None:
        """Tells hooks the directions of a step in one CLIP."""
        self.step_log.setdefault("image_directions", []).append(image.detach())
        self.step_log.setdefault("text_directions", []).append(text)

    # 2. What the loop asks.

    def prepare(self) -> None:
        """Makes ready what the backend learns from, and the way to pictures of the target, and goes on with
        the monitor's record."""
        self.monitor.restore()
        self.backend.prepare(self.clips)
        if self.shots is None:
            return
        ways = picture_ways(self.backend, self.clips, self.shots.pictures)
        self.clips = [replace(clip, way=way) for clip, way in zip(self.clips, ways, strict=True)]
        if self.config.shots.copy:
            self.shots.write(self.loop.folder.path / "shots")

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
        """Writes the learned mapper."""
        if stage == 1 and self.mapper is not None:
            save_mapper(self.loop.folder.path / MAPPER_FILE, self.mapper)

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

    # 3. What the monitor asks.

    def monitor_codes(self, count: int) -> Any:
        """Codes of the watched pictures."""
        return self.backend.monitor_codes(count, self.clips)

    def monitor_pictures(self, generator: Any, codes: Any) -> Picture:
        """Watched pictures BCHW."""
        return self.backend.monitor_pictures(generator, codes)

    @torch.no_grad()
    def text_directions(self, codes: Any) -> list[UnitFeature]:
        """For every CLIP the text directions of codes: B,E of each picture's words, or 1,E of the labels."""
        words = self.words(codes)
        return [clip.text_direction(each) for clip, each in zip(self.clips, words, strict=True)]


def open_run(
    config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> ZeroShotRun:
    """A run of a zero-shot method, loaded and checked; nothing is written."""
    return ZeroShotRun(config, given, hook, progress)
