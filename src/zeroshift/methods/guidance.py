"""What one CLIP says about words and about pairs of pictures: its constants over a run, and its losses in
both stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zeroshift.clip.features import normalize, template_features, text_direction
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import PARTS, sentence
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.methods import directions, losses
from zeroshift.shapes import Feature, Picture, Scalar, UnitFeature, Words

PATCH_PX = 510
"""Side of the patch loss's squares; pictures must be larger."""


@dataclass(frozen=True)
class Guide:
    """One CLIP with everything about it that stays the same over a run, encoded once."""

    clip: ClipModel
    weight: float
    config: AdaptConfig
    context: str
    text_direction: UnitFeature
    """NADA's direction, 1,E."""
    label_means: tuple[Tensor, Tensor]
    """Means of the unit template features of source and target label, E each."""
    residuals: tuple[tuple[Feature, Feature], tuple[Feature, Feature]]
    """Residual features (source, target) of stage 1 and of stage 2, 1,E each."""
    target_label: UnitFeature
    target_sentence: UnitFeature
    parts: Tensor | None
    """Directions of the parts of a picture, for the patch loss."""
    mean: Tensor | None = None
    """Mean direction of the words, 1,E, where the label's takes its place."""

    @classmethod
    @torch.no_grad()
    def of(cls, clip: ClipModel, weight: float, config: AdaptConfig) -> Guide:
        """The guide of a CLIP that is already on its device."""
        source, target = config.source, config.target
        context = config.mapper.context or clip.context

        def residual(kind: directions.Residual) -> tuple[Tensor, Tensor]:
            return directions.residual_feature(clip, context, source, kind), directions.residual_feature(
                clip, context, target, kind
            )

        features = [template_features(clip, label) for label in (source, target)]
        parts = None
        if config.losses.patch:
            pairs = zip(PARTS.sentences(source), PARTS.sentences(target), strict=True)
            parts = torch.cat([text_direction(clip, *pair) for pair in pairs])
        return cls(
            clip=clip,
            weight=weight,
            config=config,
            context=context,
            text_direction=normalize((features[1] - features[0]).mean(dim=0, keepdim=True)),
            label_means=(features[0].mean(dim=0), features[1].mean(dim=0)),
            residuals=(
                residual("none" if config.quirks.residual == "none" else "corrected"),
                residual(config.quirks.residual),
            ),
            target_label=normalize(clip.encode_text([target])),
            target_sentence=normalize(clip.encode_text([sentence("a {}", target)])),
            parts=parts,
        )

    def see(self, pictures: Picture) -> Feature:
        """Features of pictures."""
        with self.mixed(pictures.device):
            return self.clip.encode_image(pictures)

    def word_losses(self, words: Words, images: UnitFeature) -> dict[str, Scalar]:
        """Terms of stage 1 for the learned words of each picture and the picture's feature.

        Words that all pictures share cannot tell them apart, so CoOp's classification, as source and not as
        target, stands in for the contrast.
        """
        source_h, target_h = self._prompts(words, stage=1)
        domains = {
            "domain": losses.domain(target_h, self.label_means[1]),
            "domain_source": losses.domain(source_h, self.label_means[0]),
        }
        scale = self.clip.logit_scale
        if self.config.method == "coop":
            labels = torch.cat([source_h[:1], target_h[:1]])
            return {"classification": losses.classification(images, labels, scale), **domains}
        return {"contrastive": losses.contrastive(images, source_h, scale), **domains}

    @torch.no_grad()
    def direction_of(self, words: Words | None) -> UnitFeature:
        """Text directions: B,E of each picture's words, or NADA's 1,E without words."""
        if words is None:
            return self.text_direction
        found_BE = directions.prompt_direction(*self._prompts(words, stage=2))
        return (
            found_BE if self.mean is None else directions.recentred(found_BE, self.mean, self.text_direction)
        )

    @torch.no_grad()
    def about_label(self, words: Words) -> Guide:
        """This guide with directions that lie about the label's: `words` are those of many pictures, whose
        mean is taken off."""
        plain = replace(self, mean=None)
        return replace(self, mean=plain.direction_of(words).mean(dim=0, keepdim=True))

    def pair_losses(
        self, source: Feature, target: Feature, text_direction: UnitFeature
    ) -> tuple[dict[str, Scalar], Feature]:
        """Terms of stage 2 for features of source and target pictures, and the image directions B,E."""
        weights, image_direction = (
            self.config.losses,
            directions.image_direction(source, target, self.config.quirks.image_floor),
        )
        source, target = normalize(source), normalize(target)
        terms: dict[str, Scalar] = {}
        if weights.direction:
            terms["direction"] = losses.directional(image_direction, text_direction)
        if weights.global_clip:
            terms["global_clip"] = losses.global_clip(target, self.target_sentence, self.logit_factor)
        if weights.manifold:
            means = [normalize(mean) for mean in self.label_means]
            terms["manifold"] = losses.manifold(source, target, means[0] @ means[1])
        return terms, image_direction

    def patch_loss(self, source: Feature, target: Feature) -> Scalar:
        """Patch loss of stage 2, for features of the same square of source and target pictures."""
        assert self.parts is not None
        return losses.patch(
            directions.image_direction(source, target, self.config.quirks.image_floor), self.parts
        )

    def label_loss(self, pictures: Picture) -> Scalar:
        """Distance of pictures to the bare target label, by which layers are selected."""
        return losses.global_clip(normalize(self.see(pictures)), self.target_label, self.logit_factor)

    def total(self, terms: dict[str, Scalar]) -> Scalar:
        """Weighted sum of the terms of a stage, without the weight of the CLIP itself."""
        mapper, train = self.config.mapper, self.config.losses
        weights = {
            "contrastive": 1.0,
            "classification": 1.0,
            "domain": mapper.lambda_domain,
            "domain_source": mapper.lambda_domain * mapper.lambda_source,
            "direction": 0.0 if "log_direction" in terms else train.direction,
            "log_direction": train.direction,
            "global_clip": train.global_clip,
            "manifold": train.manifold,
            "patch": train.patch,
            "texture": train.texture,
            "pixel": train.pixel,
            "raster": train.raster,
            "identity": train.identity,
        }
        return torch.stack([weights[name] * value for name, value in terms.items() if weights[name]]).sum()

    @property
    def logit_factor(self) -> float:
        """Factor on the cosine of the global loss."""
        return self.clip.logit_scale / 100 if self.config.quirks.logit_scale_over_100 else 1.0

    def mixed(self, device: torch.device) -> torch.autocast:
        """Context in which heavy parts run in the precision that was asked for."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.run.precision == "bf16")

    def _prompts(self, words: Words, stage: Literal[1, 2]) -> tuple[UnitFeature, UnitFeature]:
        """Unit features of the learned prompts of the source and of the target label."""
        source, target = self.residuals[stage - 1]
        with self.mixed(words.device):
            return (
                directions.prompt_features(self.clip, words, self.context, self.config.source, source),
                directions.prompt_features(self.clip, words, self.context, self.config.target, target),
            )


@dataclass
class Texture:
    """The texture loss of stage 2. Its CLIP need not guide; its value, the same beside every guide, is
    computed once a step."""

    clip: ClipModel
    wanted: Feature | None
    """Features 1,E of the picture whose texture is wanted; None: those of every picture's own source."""
    known: tuple[int, Scalar] | None = field(default=None, repr=False)

    @classmethod
    @torch.no_grad()
    def of(
        cls, config: AdaptConfig, guides: Sequence[Guide], load: Callable[[str], ClipModel]
    ) -> Texture | None:
        """What the config asks for, `load` bringing a CLIP by name; None where the weight is 0."""
        if not config.losses.texture:
            return None
        convolutional = [guide.clip for guide in guides if guide.clip.convolutional]
        if not convolutional and not config.losses.texture_clip:
            raise InputError(
                "no guiding CLIP has a convolutional picture tower; give one as losses.texture_clip, such "
                "as RN50.pt."
            )
        clip = load(config.losses.texture_clip) if config.losses.texture_clip else convolutional[0]
        if config.losses.texture_image is None:
            return cls(clip, None)
        return cls(clip, clip.encode_image(_picture(config.losses.texture_image).to(next(clip.parameters()))))

    def loss(self, step: int, before: Picture, after: Picture) -> Scalar:
        """Loss of the target's pictures; `before` are those of the source."""
        if self.known is None or self.known[0] != step:
            with torch.no_grad():
                wanted = self.clip.encode_image(before) if self.wanted is None else self.wanted
            self.known = step, losses.texture(wanted, self.clip.encode_image(after))
        return self.known[1]


def _picture(path: Path) -> Picture:
    """A picture file as 1,3,H,W in [-1, 1]. InputError where it is none."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            red_green_blue = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read the picture {path} of losses.texture_image: {error}. Give a PNG or JPEG file."
        ) from error
    width, height = red_green_blue.size
    pixels = torch.frombuffer(bytearray(red_green_blue.tobytes()), dtype=torch.uint8)
    return pixels.view(1, height, width, 3).permute(0, 3, 1, 2) / 127.5 - 1


def unknown_words(clip: ClipModel, labels: tuple[str, ...], most: int = 150) -> str | None:
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
