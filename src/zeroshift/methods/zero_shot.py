"""A zero-shot run with everything in its place: what every run has, and CLIPs, mapper, losses of pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from zeroshift.clip.model import ClipModel
from zeroshift.config.methods import METHODS
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.files.registry import load_clip
from zeroshift.files.writing import fingerprint
from zeroshift.measure.networks import Judge, open_identity
from zeroshift.measure.watching import DirectionWatcher
from zeroshift.methods.adaptation import AdaptationRun
from zeroshift.methods.backend import Given
from zeroshift.methods.guidance import clip_objective, unknown_words
from zeroshift.methods.picture_losses import PictureLosses, texture_of
from zeroshift.methods.prompts import PromptMapper, prompt_mapper, save_mapper
from zeroshift.methods.shots import picture_ways
from zeroshift.models.seeds import rng
from zeroshift.shapes import Picture, UnitFeature
from zeroshift.training.loop import Average, Hook, Progress, Stage, Trained
from zeroshift.training.terms import Terms

PATCH_PX = 510
"""Side of the patch loss's squares; pictures must be larger."""

MEAN_CODES = 256
"""Codes over which the mean direction of learned words is taken."""

MAPPER_FILE = "mapper.safetensors"
"""The learned mapper in a run folder, written when stage 1 ends."""


class ZeroShotRun(AdaptationRun):
    """A run guided by CLIPs."""

    def __init__(
        self, config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
    ) -> None:
        """InputError where an option does not fit the generator, a file is missing, or a CLIP does not know
        what it needs."""
        super().__init__(config, given, progress)
        clips = self._load_clips()
        self.clips = [
            clip_objective(clip, weight, config, self.precision)
            for clip, weight in zip(clips, config.weights, strict=True)
        ]
        self.picture_losses = self._picture_losses(clips)
        texture = self.picture_losses.texture
        others = [texture.clip] if texture is not None and texture.clip not in clips else []
        prints = [{"name": clip.name, "sha256": fingerprint(clip.state_dict())} for clip in [*clips, *others]]
        self.all_clips = [*clips, *others]
        self.mapper = self._mapper() if config.learns_words else None
        self._begin(self.backend.record(), prints, hook)

    # 1. Loading.

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

    def _picture_losses(self, clips: list[ClipModel]) -> PictureLosses:
        weights = self.config.losses
        if weights.patch and self.source.image_size <= PATCH_PX:
            raise InputError(
                f"losses.patch needs pictures above {PATCH_PX} px, the generator's have "
                f"{self.source.image_size}; set it to 0."
            )
        face = None
        if weights.identity:
            face = open_identity(weights.identity_network, self.world, self.device)
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
                hidden=options.network.hidden or None,
                depth=options.network.depth,
                seed=rng("mapper", self.config.run.seed, number).initial_seed(),
            ).heads[0]
            for number, clip in enumerate(self.clips)
        ]
        mapper = PromptMapper(cast(Any, heads)).to(self.device, self.dtype)
        if self.given.mapper is not None:
            mapper.load_state_dict(self.given.mapper)
        return mapper

    def stages(self) -> tuple[Stage, ...]:
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

    # 2. What loop and monitor ask.

    def prepare(self) -> None:
        """Makes ready what the backend learns from, and the way to pictures of the target, and goes on with
        the monitor's record."""
        super().prepare()
        if self.found_shots is not None:
            ways = picture_ways(self.backend, self.clips, self.found_shots.pictures)
            self.clips = [replace(clip, way=way) for clip, way in zip(self.clips, ways, strict=True)]

    def end_stage(self, stage: int) -> None:
        """Writes the learned mapper."""
        if stage == 1 and self.mapper is not None:
            save_mapper(self.loop.folder.path / MAPPER_FILE, self.mapper)

    def watcher(self, codes: Any, pictures: Picture, judge: Callable[[], Judge | None]) -> DirectionWatcher:
        """The guiding CLIPs, and the directions of the words."""
        return DirectionWatcher(self.clips, pictures, self.text_directions(codes))

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
