"""Heads that judge patches: logit maps from inside a discriminator, whose trunk they share.

Ojha et al., Few-shot Image Generation via Cross-domain Correspondence (CVPR 2021), section 3.2, and its
published code for the places of the heads.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn

from zeroshift.errors import InputError
from zeroshift.models.discriminator import EqualConv2d, StyleGAN2Discriminator
from zeroshift.models.stylegan2 import Bias, StyleGAN2Config, initialise

SIDES = (32, 16)
"""Sides, in pixels, of the maps that heads look at."""

MOST_HEADS = 4


def places(config: StyleGAN2Config) -> list[tuple[int, int]]:
    """Maps that a discriminator of this architecture has for heads, in its order: the number of the
    convolution among those of all residual blocks, and its channels. A map has a side of `SIDES`."""
    found: list[tuple[int, int]] = []
    side = config.size
    while side > 4:
        found += [(side, config.channels(side)), (side // 2, config.channels(side // 2))]
        side //= 2
    there = [(number, channels) for number, (side, channels) in enumerate(found) if side in SIDES]
    return there[:MOST_HEADS]


class PatchHeads(nn.Module):
    """One head per map of `places`: a 3x3 convolution to one channel, behind the activation as published.

    Weights are drawn from `seed` alone. InputError where a discriminator has no such map.
    """

    def __init__(self, config: StyleGAN2Config, *, seed: int = 0) -> None:
        super().__init__()
        found = places(config)
        if not found:
            raise InputError(
                f"a discriminator of {config.size} px has no map of {' or '.join(map(str, SIDES))} px to "
                "judge patches by; use a method without patches, such as tgan."
            )
        self.numbers = [number for number, _ in found]
        self.heads = nn.ModuleList(
            nn.Sequential(EqualConv2d(channels, 1, 3, padding=1), Bias(1)) for _, channels in found
        )
        initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, discriminator: StyleGAN2Discriminator, image: Tensor, head: int = 0) -> Tensor:
        """Logits (B, 1, side, side) of pictures BCHW; the trunk is followed no further than to the block of
        the head's map."""
        maps = (each for _, *both in discriminator.block_outputs(image) for each in both)
        return self.heads[head](next(islice(maps, self.numbers[head], None)))
