"""Augmentation of what a discriminator sees: DiffAugment and ADA, with their published chances and spreads,
and the controller of ADA's chance.

Every number of a picture comes from a generator of the caller's, always as many, so that no transform depends
on another's being on, and a higher chance changes the same pictures and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zeroshift.models import transforms
from zeroshift.shapes import Picture

# 1. DiffAugment: always on.

DiffAugmentPart = Literal["color", "translation", "cutout"]

SHIFT_SHARE = 1 / 8
"""Largest shift by whole pixels, of the side: DiffAugment and ADA."""
CUTOUT_SHARE = 1 / 2
"""Side of the square that is cut out, of the picture's."""
DIFFAUGMENT_NUMBERS = 7


def diffaugment_numbers(sources: Sequence[torch.Generator]) -> Tensor:
    """Uniform numbers B,7 in [0, 1), one row per generator."""
    return torch.stack([torch.rand(DIFFAUGMENT_NUMBERS, generator=each) for each in sources])


def diffaugment(pictures: Picture, numbers: Tensor, parts: Collection[DiffAugmentPart]) -> Picture:
    """Eq. DiffAugment (Zhao et al. 2020): every picture by every part, in the published order.

    color: brightness + U(-.5, .5), then what colours have beside their mean over channels times U(0, 2), then
    what they have beside the picture's mean times U(.5, 1.5). translation: by U{-n .. n} whole pixels on
    either axis, n the nearest to 1/8 of the side, 0 beyond the edge. cutout: 0 in a square of half the side,
    whose middle may lie anywhere in the picture.
    """
    bright, saturated, contrasted, down, right, row, column = numbers.double().T
    height, width = pictures.shape[-2:]
    if "color" in parts:
        colour = transforms.saturation(2 * saturated) @ transforms.brightness(bright - 0.5)
        pictures = transforms.recoloured(pictures, colour)
        pictures = transforms.contrast_about_mean(pictures, contrasted + 0.5)
    if "translation" in parts:
        most_down, most_right = (_nearest(length * SHIFT_SHARE) for length in (height, width))
        down = (down * (2 * most_down + 1)).long() - most_down
        right = (right * (2 * most_right + 1)).long() - most_right
        pictures = transforms.shifted(pictures, down, right, "constant")
    if "cutout" in parts:
        side = _nearest(height * CUTOUT_SHARE)
        # One more place for even sides, whose middle lies between pixels.
        places = [length + 1 - side % 2 for length in (height, width)]
        pictures = transforms.cut_out(pictures, (row * places[0]).long(), (column * places[1]).long(), side)
    return pictures


def _nearest(number: float) -> int:
    return int(number + 0.5)


# 2. ADA: each transform with chance p.

AdaPart = Literal["blit", "geom", "color"]


@dataclass(frozen=True)
class AdaNumbers:
    """What ADA's transforms of B pictures are made of."""

    chance: Tensor
    """Uniform numbers B,13: a transform is on where its own lies below its chance."""
    uniform: Tensor
    """Uniform numbers B,8 in [0, 1)."""
    normal: Tensor
    """Normal numbers B,7."""


def ada_numbers(sources: Sequence[torch.Generator]) -> AdaNumbers:
    """Numbers of B pictures, one row per generator."""
    rows = [
        (torch.rand(13, generator=each), torch.rand(8, generator=each), torch.randn(7, generator=each))
        for each in sources
    ]
    chance, uniform, normal = (torch.stack(column).double() for column in zip(*rows, strict=True))
    return AdaNumbers(chance, uniform, normal)


def ada(pictures: Picture, numbers: AdaNumbers, p: float, parts: Collection[AdaPart]) -> Picture:
    """Eq. ADA (Karras et al. 2020, appendix B): every transform of the parts, in the published order, each
    with chance p; a picture that none of them takes stays as it is, bit for bit.

    blit: exchange of left and right (one of two outcomes), turn by U{0 .. 3} quarters, shift by the nearest
    whole pixels to U(-1/8, 1/8) of the side. geom: scale 2^N(0, .2), turn by U(-pi, pi), stretch
    2^N(0, .2) across and its inverse down, a second turn, shift by N(0, 1/8) of the side; each of the turns
    with chance 1 - sqrt(1 - p), so one of them with p. color: brightness + N(0, .2), contrast 2^N(0, .5),
    sign of the luma (one of two outcomes), hue U(-pi, pi), saturation 2^N(0, 1).
    """
    if "blit" in parts:
        pictures = _blit(pictures, numbers, p)
    if "geom" in parts:
        taken, matrix = ada_geometry(numbers, p, pictures.shape[-1])
        pictures = _where(taken, pictures, transforms.resampled, matrix)
    if "color" in parts:
        taken, matrix = ada_colour(numbers, p)
        pictures = _where(taken, pictures, transforms.recoloured, matrix)
    return pictures


def _blit(pictures: Picture, numbers: AdaNumbers, p: float) -> Picture:
    side = pictures.shape[-1]
    on = numbers.chance[:, :3] < p
    mirrored, quarters, down, right = numbers.uniform[:, :4].T
    pictures = transforms.flipped(pictures, on[:, 0] & (mirrored < 0.5))
    pictures = transforms.turned(pictures, on[:, 1] * (4 * quarters).long())
    down, right = (((2 * each - 1) * SHIFT_SHARE * side).round().long() for each in (down, right))
    return transforms.shifted(pictures, on[:, 2] * down, on[:, 2] * right)


def ada_geometry(numbers: AdaNumbers, p: float, side: int) -> tuple[Tensor, Tensor]:
    """Which pictures geom takes (B, bool), and the maps B,3,3 of their places."""
    turn = 1 - math.sqrt(1 - p)
    on = numbers.chance[:, 3:8] < torch.tensor([p, turn, p, turn, p])
    first, second = (math.pi * (2 * numbers.uniform[:, 4:6] - 1)).T
    size, stretch, right, down = numbers.normal[:, :4].T
    size, stretch = (torch.exp2(0.2 * each) for each in (size, stretch))
    maps = (
        transforms.scaling(size, size),
        transforms.rotation(first),
        transforms.scaling(stretch, 1 / stretch),
        transforms.rotation(second),
        transforms.translation(right * SHIFT_SHARE * side, down * SHIFT_SHARE * side),
    )
    return on.any(dim=1), _one_after_another(maps, on)


def ada_colour(numbers: AdaNumbers, p: float) -> tuple[Tensor, Tensor]:
    """Which pictures color takes (B, bool), and the maps B,4,4 of their colours."""
    on = numbers.chance[:, 8:13] < p
    flip, angle = numbers.uniform[:, 6:8].T
    bright, contrasted, saturated = numbers.normal[:, 4:7].T
    maps = (
        transforms.brightness(0.2 * bright),
        transforms.contrast(torch.exp2(0.5 * contrasted)),
        transforms.luma_flip(flip < 0.5),
        transforms.hue(math.pi * (2 * angle - 1)),
        transforms.saturation(torch.exp2(saturated)),
    )
    return on.any(dim=1), _one_after_another(maps, on)


def _one_after_another(maps: Sequence[Tensor], on: Tensor) -> Tensor:
    """Product of those maps B,n,n that are on (B,maps), the first one first."""
    size = maps[0].shape[-1]
    total = same = torch.eye(size, dtype=torch.float64).expand(len(on), size, size)
    for number, each in enumerate(maps):
        total = torch.where(on[:, number, None, None], each, same) @ total
    return total


def _where(
    taken: Tensor, pictures: Picture, change: Callable[[Picture, Tensor], Picture], matrix: Tensor
) -> Picture:
    """Pictures of which those that are taken are changed."""
    if not taken.any():
        return pictures
    rows = taken.nonzero()[:, 0]
    place = rows.to(pictures.device)
    return pictures.index_copy(0, place, change(pictures[place], matrix[rows]))


# 3. The chance of ADA.


def next_chance(p: float, sign: float, target: float, pictures: int, ramp: int) -> float:
    """Eq. ADA (Karras et al. 2020, section 3.2): p + sgn(r_t - target) pictures / ramp, within [0, 1].

    `sign`: r_t = E[sgn(D(x))] over the real `pictures` since the last change; `ramp`: pictures in which p
    may go from 0 to 1.
    """
    step = pictures / ramp
    return min(1.0, max(0.0, p + step * ((sign > target) - (sign < target))))


class AdaptiveChance:
    """p of ADA, moved by how surely the discriminator knows the real pictures."""

    def __init__(self, start: float, target: float, ramp: int, every: int) -> None:
        """`every`: steps of the discriminator between two changes."""
        self.target, self.ramp, self.every = target, ramp, every
        self.p = start
        self.sign_sum = 0.0
        self.pictures = 0
        self.steps = 0

    def see(self, sign: float, pictures: int) -> None:
        """Takes in the mean sign of the logits of the real pictures of one step of the discriminator."""
        self.sign_sum += sign * pictures
        self.pictures += pictures
        self.steps += 1
        if self.steps == self.every:
            mean = self.sign_sum / self.pictures
            self.p = next_chance(self.p, mean, self.target, self.pictures, self.ramp)
            self.sign_sum, self.pictures, self.steps = 0.0, 0, 0

    def state(self) -> Tensor:
        """What goes on from one step to the next, 4 numbers."""
        return torch.tensor([self.p, self.sign_sum, self.pictures, self.steps], dtype=torch.float64)

    def resume(self, state: Tensor) -> None:
        """Goes on with a `state`."""
        self.p, self.sign_sum = state[:2].tolist()
        self.pictures, self.steps = (int(each) for each in state[2:])
