"""Losses of stage 2 that look at pictures, not at directions: computed once per step, outside the sum over
CLIPs.

Each weight is the weight of its term in the loss of a step, however many CLIPs guide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import LossConfig
from zeroshift.devices import Precision
from zeroshift.errors import InputError
from zeroshift.files.images import read_picture
from zeroshift.methods import losses
from zeroshift.shapes import Feature, Picture, UnitFeature
from zeroshift.training.terms import Terms

Embed = Callable[[Picture], UnitFeature]
"""Unit features BE of the person in each picture."""


@dataclass(frozen=True)
class Texture:
    """What the texture loss compares with. Its CLIP need not guide."""

    clip: ClipModel
    wanted: Feature | None
    """Features 1,E of the picture whose texture is wanted; None: those of every picture's own source."""


@dataclass(frozen=True)
class PictureLosses:
    """The losses, with the networks that they need."""

    weights: LossConfig
    precision: Precision
    texture: Texture | None
    identity: Embed | None

    def add_to(self, terms: Terms, source: Picture, target: Picture, faces: Picture) -> None:
        """Adds the terms of a step for pictures BCHW of source and target; `faces` are the target's pictures
        as the identity loss takes them."""
        added = terms.group()
        if self.texture is not None:
            with self.precision.autocast():
                wanted = self._wanted(self.texture, source)
                texture = losses.texture(wanted, self.texture.clip.encode_image(target))
            added.add("texture", texture, self.weights.texture)
        if self.weights.pixel:
            added.add("pixel", losses.pixel(source, target), self.weights.pixel)
        if self.weights.raster:
            added.add("raster", losses.raster(source, target), self.weights.raster)
        if self.identity is not None:
            with torch.no_grad():
                source_BE = self.identity(source.float())
            identity = losses.identity(source_BE, self.identity(faces.float()))
            added.add("identity", identity, self.weights.identity)

    @staticmethod
    @torch.no_grad()
    def _wanted(texture: Texture, source: Picture) -> Tensor:
        return texture.clip.encode_image(source) if texture.wanted is None else texture.wanted


@torch.no_grad()
def texture_of(
    weights: LossConfig, guides: Sequence[ClipModel], load: Callable[[str], ClipModel]
) -> Texture | None:
    """What the texture loss of a config needs, `load` bringing a CLIP by name; None where its weight is 0.

    InputError where no CLIP with a convolutional picture tower is at hand, or the picture cannot be read.
    """
    if not weights.texture:
        return None
    convolutional = [clip for clip in guides if clip.convolutional]
    if not convolutional and not weights.texture_clip:
        raise InputError(
            "no guiding CLIP has a convolutional picture tower; give one as losses.texture_clip, such as "
            "RN50.pt."
        )
    clip = load(weights.texture_clip) if weights.texture_clip else convolutional[0]
    if weights.texture_image is None:
        return Texture(clip, None)
    try:
        picture = read_picture(weights.texture_image)[None]
    except InputError as error:
        raise InputError(f"losses.texture_image: {error}") from error
    return Texture(clip, clip.encode_image(picture.to(next(clip.parameters()))))
