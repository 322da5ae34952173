"""What one CLIP contributes to a zero-shot run: its constants, encoded once, its prompts, and its text
directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from zeroshift.clip.features import mixed, normalize, template_features, text_direction
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import PARTS, sentence
from zeroshift.config.schema import AdaptConfig
from zeroshift.config.targets import TargetPart, target_parts
from zeroshift.devices import Precision
from zeroshift.errors import InputError
from zeroshift.methods import directions, losses
from zeroshift.methods.picture_way import PictureWay
from zeroshift.shapes import Feature, Picture, Scalar, UnitFeature, Words


@dataclass(frozen=True)
class Label:
    """A label of the run as one CLIP knows it."""

    text: str
    template_mean: Tensor
    """tbar: mean E of its unit template features."""
    residuals: tuple[Feature, Feature]
    """Residual features 1,E of stage 1 and of stage 2."""
    share: float = 1.0
    """Its part of a hybrid target; 1 for a target of its own."""


@dataclass(frozen=True)
class Captions:
    """Sentences about pictures, one for each: what true words would be."""

    source: list[str]
    targets: list[list[str]]
    """For every label of the target."""


@dataclass(frozen=True)
class ClipObjective:
    """One guiding CLIP with everything about it that stays the same over a run."""

    clip: ClipModel
    weight: float
    config: AdaptConfig
    precision: Precision
    context: str
    """Words that the learned ones replace."""
    context_tokens: int
    """Their number of tokens."""
    source: Label
    targets: tuple[Label, ...]
    """The target label; of a hybrid target several, whose shares sum to 1. Empty where pictures alone say the
    target, as is all else that labels say."""
    label_direction: UnitFeature | None
    """NADA's text direction 1,E, from the source label to the target label; this and all below of a hybrid
    mixed by shares."""
    label_feature: UnitFeature | None
    """Of the bare target label, 1,E."""
    sentence_feature: UnitFeature | None
    """Of "a {target}", 1,E."""
    label_length: float
    """Distance of the two labels' mean template features, by the scale of the CLIP."""
    part_directions: Tensor | None
    """Directions of the parts of a picture, one per row, for the patch loss."""
    way: PictureWay | None = None
    """The way to pictures of the target, where there are any, once the run has begun."""
    words_mean: Feature | None = None
    """Mean direction 1,E of the learned words, where `direction` takes its place (`mapper.mean` "label")."""

    @property
    def name(self) -> str:
        """What records and messages call the CLIP."""
        return self.clip.name

    @property
    def logit_scale(self) -> float:
        """Factor on cosines in the contrastive loss."""
        return self.clip.logit_scale

    @property
    def floor(self) -> float:
        """Smallest divisor of an image direction: that of the options, or the length."""
        quirks = self.config.quirks
        return quirks.image_floor if quirks.length == "floor" else self.length

    @property
    def global_scale(self) -> float:
        """Factor on the cosine of the global loss."""
        return self.clip.logit_scale / 100 if self.config.quirks.logit_scale_over_100 else 1.0

    @property
    def width(self) -> int:
        """Width E of features."""
        return len(self.source.template_mean)

    def with_pictures(
        self, words: UnitFeature | None, pictures: Callable[[PictureWay], Tensor]
    ) -> UnitFeature:
        """What words say, B,E or 1,E, mixed with what the way to pictures says by `shots.share`; either alone
        where the other is not there."""
        if words is None:
            assert self.way is not None, "a run without words knows its way once it has begun"
            return pictures(self.way)
        if self.way is None:
            return words
        share = self.config.shots.share
        return mixed([words, pictures(self.way)], [1 - share, share])

    @property
    def direction(self) -> UnitFeature:
        """The one direction 1,E for all pictures: of the labels, of the pictures of the target, or both
        mixed."""
        return self.with_pictures(self.label_direction, lambda way: way.direction)

    @property
    def length(self) -> float:
        """How far pictures are to go: as far as the labels or the pictures of the target lie apart from the
        source, or between both by share."""
        if self.way is None:
            return self.label_length
        share = self.config.shots.share if self.targets else 1.0
        return (1 - share) * self.label_length + share * self.way.length

    @property
    def target_feature(self) -> UnitFeature:
        """Of the target, 1,E: what selects layers."""
        return self.with_pictures(self.label_feature, lambda way: way.target)

    @property
    def target_sentence_feature(self) -> UnitFeature:
        """Of the target, 1,E: what the global loss compares with."""
        return self.with_pictures(self.sentence_feature, lambda way: way.target)

    @property
    def target_mean(self) -> Tensor:
        """tbar of the target: E, of a hybrid the sum of its labels' by shares."""
        return torch.stack([each.share * each.template_mean for each in self.targets]).sum(dim=0)

    def mixed(self, found: Sequence[Feature]) -> UnitFeature:
        """One unit vector of those of each target label, mixed by shares."""
        return mixed(found, [each.share for each in self.targets])

    def encode_image(self, pictures: Picture) -> Feature:
        """Features BE of pictures BCHW in [-1, 1], un-normalised, in the precision of the run."""
        with self.precision.autocast():
            return self.clip.encode_image(pictures)

    def prompt_features(self, words: Words, label: Label, stage: Literal[1, 2]) -> UnitFeature:
        """h: unit features BE of learned words with a label."""
        with self.precision.autocast():
            return directions.prompt_features(
                self.clip,
                words,
                self.context,
                label.text,
                label.residuals[stage - 1],
                context_tokens=self.context_tokens,
            )

    def caption_features(self, captions: Sequence[str]) -> UnitFeature:
        """Unit features BE of sentences."""
        with self.precision.autocast():
            return normalize(self.clip.encode_text(captions))

    @torch.no_grad()
    def text_direction(self, words: Words | Captions | None) -> UnitFeature:
        """Text directions: B,E of each picture's words or captions, or 1,E of the labels where there are
        none; mixed with the direction of pictures of the target where there are any."""
        if words is None:
            return self.direction
        if isinstance(words, Captions):
            before_BE = self.caption_features(words.source)
            return self.mixed(
                [
                    directions.prompt_direction(before_BE, self.caption_features(each))
                    for each in words.targets
                ]
            )
        source_BE = self.prompt_features(words, self.source, 2)
        found_BE = self.mixed(
            [
                directions.prompt_direction(source_BE, self.prompt_features(words, each, 2))
                for each in self.targets
            ]
        )
        if self.words_mean is None:
            return self.with_pictures(found_BE, lambda way: way.direction)
        individual = self.config.mapper.individual
        return directions.recentred(found_BE, self.words_mean, self.direction, individual)

    def about_label(self, words: Words) -> ClipObjective:
        """The same objective with directions that lie about `direction`: `words` are those of many pictures,
        whose mean direction is taken off."""
        plain = replace(self, way=None, words_mean=None)
        return replace(self, words_mean=plain.text_direction(words).mean(dim=0, keepdim=True))

    def selection_loss(self, pictures: Picture) -> Scalar:
        """Distance of pictures to the bare target label, by which layers are selected."""
        features = normalize(self.encode_image(pictures))
        return losses.global_clip(features, self.target_feature, self.global_scale)


@torch.no_grad()
def clip_objective(
    clip: ClipModel, weight: float, config: AdaptConfig, precision: Precision
) -> ClipObjective:
    """The objective of a CLIP that is already on its device. InputError where the labels must have a distance
    and have none."""
    context = config.mapper.context or clip.context
    first: directions.Residual = "none" if config.quirks.residual == "none" else "corrected"

    def label(text: str, share: float = 1.0) -> Label:
        residuals = [
            directions.residual_feature(clip, context, text, kind) for kind in (first, config.quirks.residual)
        ]
        mean = template_features(clip, text).mean(dim=0)
        return Label(text, mean, (residuals[0], residuals[1]), share)

    parts = target_parts(config.target) if config.target.strip() else ()
    shares = [part.share for part in parts]

    def of_parts(feature: Callable[[str], Tensor]) -> UnitFeature | None:
        """A unit feature of the target: of each label of it, mixed by shares; None without words."""
        return mixed([feature(part.label) for part in parts], shares) if parts else None

    def sentence_feature(template: str) -> UnitFeature | None:
        return of_parts(lambda text: normalize(clip.encode_text([sentence(template, text)])))

    return ClipObjective(
        clip=clip,
        weight=weight,
        config=config,
        precision=precision,
        context=context,
        context_tokens=len(clip.embed_tokens(context)),
        source=label(config.source),
        targets=tuple(label(part.label, part.share) for part in parts),
        label_direction=of_parts(lambda text: text_direction(clip, config.source, text)),
        label_feature=sentence_feature("{}"),
        sentence_feature=sentence_feature("a {}"),
        label_length=_label_length(clip, config, parts),
        part_directions=of_parts(lambda text: _part_directions(clip, config.source, text))
        if config.losses.patch
        else None,
    )


def _label_length(clip: ClipModel, config: AdaptConfig, parts: Sequence[TargetPart]) -> float:
    """How far pictures are to go by the labels; 0 without words of the target. InputError where the labels
    must have a distance and have none."""
    if not parts:
        return 0.0

    def way(text: str) -> Tensor:
        """Difference E of a label's mean template feature to the source's."""
        return (template_features(clip, text) - template_features(clip, config.source)).mean(dim=0)

    way_E = torch.stack([part.share * way(part.label) for part in parts]).sum(dim=0)
    apart = float(torch.linalg.vector_norm(way_E))
    if not apart and config.quirks.length != "floor":
        raise InputError(
            f"{config.source!r} and {config.target!r} are the same to the CLIP {clip.name}, so there is no "
            'distance to go; give other labels, or quirks.length "floor".'
        )
    return clip.lengths.of(apart)


def _part_directions(clip: ClipModel, source: str, target: str) -> Tensor:
    """Directions of the parts of a picture between two labels, one per row."""
    pairs = zip(PARTS.sentences(source), PARTS.sentences(target), strict=True)
    return torch.cat([text_direction(clip, *pair) for pair in pairs])


def unknown_words(clip: ClipModel, labels: Sequence[str], most: int = 150) -> str | None:
    """A warning that names the words of labels and targets that a CLIP never learned and some that it knows;
    None where it knows all."""
    every = [part.label for label in labels for part in target_parts(label)]
    unknown = [word for label in every for word in clip.tokenizer.unknown(label)]
    if not unknown:
        return None
    known = [word for word in getattr(clip.tokenizer, "vocab", ()) if word[0].isalnum()]
    named = ", ".join(repr(word) for word in dict.fromkeys(unknown))
    more = f" and {len(known) - most} more" if len(known) > most else ""
    hint = f"; it knows {', '.join(known[:most])}{more}" if known else ""
    return f"the CLIP {clip.name} never learned {named}, so that part of the label says nothing to it{hint}."
