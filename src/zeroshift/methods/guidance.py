"""What one CLIP contributes to a zero-shot run: its constants, encoded once, its prompts, and its text
directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from zeroshift.clip.features import normalize, template_features, text_direction
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import PARTS, sentence
from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import Precision
from zeroshift.errors import InputError
from zeroshift.methods import directions, losses
from zeroshift.shapes import Feature, Picture, Scalar, UnitFeature, Words


@dataclass(frozen=True)
class Label:
    """A label of the run as one CLIP knows it."""

    text: str
    template_mean: Tensor
    """tbar: mean E of its unit template features."""
    residuals: tuple[Feature, Feature]
    """Residual features 1,E of stage 1 and of stage 2."""


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
    target: Label
    label_direction: UnitFeature
    """NADA's text direction 1,E, from the source label to the target label."""
    target_feature: UnitFeature
    """Of the bare target label, 1,E: what selects layers."""
    target_sentence_feature: UnitFeature
    """Of "a {target}", 1,E: what the global loss compares with."""
    length: float
    """How far pictures are to go: distance of the two labels' mean template features, by the scale of the
    CLIP."""
    part_directions: Tensor | None
    """Directions of the parts of a picture, one per row, for the patch loss."""
    words_mean: Feature | None = None
    """Mean direction 1,E of the learned words, where the labels' takes its place (`mapper.mean` "label")."""

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

    @torch.no_grad()
    def text_direction(self, words: Words | None) -> UnitFeature:
        """Text directions: B,E of each picture's words, or 1,E of the labels where there are no words."""
        if words is None:
            return self.label_direction
        found_BE = directions.prompt_direction(
            self.prompt_features(words, self.source, 2), self.prompt_features(words, self.target, 2)
        )
        if self.words_mean is None:
            return found_BE
        return directions.recentred(found_BE, self.words_mean, self.label_direction)

    def about_label(self, words: Words) -> ClipObjective:
        """The same objective with directions that lie about the labels': `words` are those of many pictures,
        whose mean direction is taken off."""
        plain = replace(self, words_mean=None)
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

    def label(text: str, features: Tensor) -> Label:
        residuals = [
            directions.residual_feature(clip, context, text, kind) for kind in (first, config.quirks.residual)
        ]
        return Label(text, features.mean(dim=0), (residuals[0], residuals[1]))

    source_PE, target_PE = (template_features(clip, text) for text in (config.source, config.target))
    apart = float(torch.linalg.vector_norm((target_PE - source_PE).mean(dim=0)))
    if not apart and config.quirks.length != "floor":
        raise InputError(
            f"{config.source!r} and {config.target!r} are the same to the CLIP {clip.name}, so there is no "
            'distance to go; give other labels, or quirks.length "floor".'
        )
    parts = zip(PARTS.sentences(config.source), PARTS.sentences(config.target), strict=True)
    return ClipObjective(
        clip=clip,
        weight=weight,
        config=config,
        precision=precision,
        context=context,
        context_tokens=len(clip.embed_tokens(context)),
        source=label(config.source, source_PE),
        target=label(config.target, target_PE),
        label_direction=normalize((target_PE - source_PE).mean(dim=0, keepdim=True)),
        target_feature=normalize(clip.encode_text([config.target])),
        target_sentence_feature=normalize(clip.encode_text([sentence("a {}", config.target)])),
        length=clip.length_scale * apart,
        part_directions=torch.cat([text_direction(clip, *pair) for pair in parts])
        if config.losses.patch
        else None,
    )


def unknown_words(clip: ClipModel, labels: Sequence[str], most: int = 150) -> str | None:
    """A warning that names the words of labels that a CLIP never learned and some that it knows; None where
    it knows all."""
    unknown = [word for label in labels for word in clip.tokenizer.unknown(label)]
    if not unknown:
        return None
    known = [word for word in getattr(clip.tokenizer, "vocab", ()) if word[0].isalnum()]
    named = ", ".join(repr(word) for word in dict.fromkeys(unknown))
    more = f" and {len(known) - most} more" if len(known) > most else ""
    hint = f"; it knows {', '.join(known[:most])}{more}" if known else ""
    return f"the CLIP {clip.name} never learned {named}, so that part of the label says nothing to it{hint}."
