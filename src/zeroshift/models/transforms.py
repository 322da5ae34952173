"""Transforms of pictures, given their numbers: moved to exact places, resampled, in other colours, with parts
cut out.

All are differentiable in the picture, and twice where R1 goes through them. Numbers are one per picture (B).
What moves pictures beyond their edge meets them mirrored there, about the middle of the last pixel; what is
said in numbers of pixels is exact. Sources: Karras et al., Training Generative Adversarial Networks with
Limited Data (2020), appendix B (ADA); Zhao et al., Differentiable Augmentation for Data-Efficient GAN
Training (2020) (DiffAugment).
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.shapes import Picture

LOBES = 4
"""Lobes of the filter on either side of its middle. What it keeps of a wave of f cycles per pixel, up and
down again: 1 within 3 % to f 0.35, 0.81 at 0.4, 0.5 at 0.5."""

# 1. Moved to exact places.


def flipped(pictures: Picture, mirrored: Tensor) -> Picture:
    """Left and right exchanged where `mirrored` (bool) says so."""
    return torch.where(mirrored.to(pictures.device)[:, None, None, None], pictures.flip(-1), pictures)


def turned(pictures: Picture, quarters: Tensor) -> Picture:
    """Square pictures turned counter-clockwise by whole `quarters` of a turn, as `torch.rot90`."""
    return torch.stack(
        [each.rot90(count, (-2, -1)) for each, count in zip(pictures, quarters.tolist(), strict=True)]
    )


def shifted(
    pictures: Picture, down: Tensor, right: Tensor, edge: Literal["reflect", "constant"] = "reflect"
) -> Picture:
    """Moved by whole pixels, fewer than a side has; mirrored at the edge, or 0 (`constant`) beyond it."""
    height, width = pictures.shape[-2:]
    moves = list(zip(down.tolist(), right.tolist(), strict=True))
    most = max((abs(step) for move in moves for step in move), default=0)
    if not most:
        return pictures
    padded = F.pad(pictures, (most,) * 4, mode=edge)
    return torch.stack(
        [
            each[:, most - y : most - y + height, most - x : most - x + width]
            for each, (y, x) in zip(padded, moves, strict=True)
        ]
    )


def cut_out(pictures: Picture, row: Tensor, column: Tensor, side: int) -> Picture:
    """0 in the square of `side` px whose pixel `side // 2` of both axes lies at (row, column), as far as it
    is in the picture."""
    height, width = pictures.shape[-2:]
    rows, columns = (
        (torch.arange(length, device=pictures.device) - place.to(pictures.device)[:, None] + side // 2)
        for length, place in ((height, row), (width, column))
    )
    inside_rows, inside_columns = ((0 <= each) & (each < side) for each in (rows, columns))
    hole = inside_rows[:, :, None] & inside_columns[:, None, :]
    return pictures.masked_fill(hole[:, None], 0.0)


# 2. Resampled.


def scaling(across: Tensor, down: Tensor) -> Tensor:
    """Matrices B,3,3 that enlarge pictures about their middle by two factors."""
    return _rows([[across, 0, 0], [0, down, 0], [0, 0, 1]], across)


def rotation(angle: Tensor) -> Tensor:
    """Matrices B,3,3 that turn pictures about their middle, counter-clockwise, by radians."""
    # Rows count downwards.
    return _rows([[angle.cos(), angle.sin(), 0], [-angle.sin(), angle.cos(), 0], [0, 0, 1]], angle)


def translation(right: Tensor, down: Tensor) -> Tensor:
    """Matrices B,3,3 that move pictures by pixels, whole or not."""
    return _rows([[1, 0, right], [0, 1, down], [0, 0, 1]], right)


def resampled(pictures: Picture, matrix: Tensor) -> Picture:
    """Pictures under affine maps B,3,3 of their places (x, y, 1), in pixels from the middle; sides of at
    least 5 px.

    Enlarged twice by a Lanczos filter of 4 lobes, sampled there bilinearly, filtered and halved by the same
    filter: the published scheme, whose wavelet (sym6) would shift what is mirrored or turned by up to 0.4 px,
    for it is not symmetric. Here a turn by quarters, a flip and a shift by whole pixels are exactly those of
    the identity, which is the filter's low pass (`LOBES`). Error of a wave of amplitude 1 turned by 0.3 rad:
    0.012 at 0.1 cycles per pixel, 0.06 at 0.25, 0.12 at 0.35. Down to half the size nothing folds over.
    """
    height, width = pictures.shape[-2:]
    kernel = _half_band(pictures)
    padded = F.pad(pictures, (LOBES,) * 4, mode="reflect")
    fine = _along_both(padded, kernel, enlarge=True)
    # From places of the fine result, with what its filter needs beyond the edge, to places of the picture.
    margin = 2 * LOBES - 1
    x, y = (
        torch.arange(-margin, 2 * side - 1 + margin, dtype=matrix.dtype, device=matrix.device) / 2
        - (side - 1) / 2
        for side in (width, height)
    )
    inverse = torch.linalg.inv(matrix)[:, :2].to(pictures)
    grid_y, grid_x = torch.meshgrid(y.to(pictures), x.to(pictures), indexing="ij")
    places = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1)
    at = torch.einsum("bij,hwj->bhwi", inverse, places)
    half = torch.tensor([(width - 1) / 2, (height - 1) / 2]).to(pictures)
    sampled = _sample(fine, mirrored_place(at / half))
    return _along_both(sampled, kernel / 2, enlarge=False)


def mirrored_place(place: Tensor) -> Tensor:
    """Places on a line that is mirrored at -1 and 1 again and again, brought into [-1, 1]."""
    return 1 - ((place + 1).remainder(4) - 2).abs()


@functools.lru_cache
def _taps() -> tuple[float, ...]:
    """Lanczos' interpolation half-way between samples, 4 LOBES - 1 taps of which every second one is 0 but
    the middle's 1; those between samples sum to 1, so a constant stays itself."""
    places = [step / 2 for step in range(1 - 2 * LOBES, 2 * LOBES)]
    taps = [_sinc(place) * _sinc(place / LOBES) if place % 1 else float(place == 0) for place in places]
    between = sum(tap for tap, place in zip(taps, places, strict=True) if place % 1)
    return tuple(tap / between if place % 1 else tap for tap, place in zip(taps, places, strict=True))


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def _half_band(like: Tensor) -> Tensor:
    return torch.tensor(_taps(), dtype=like.dtype, device=like.device)


def _along_both(x: Tensor, kernel: Tensor, enlarge: bool) -> Tensor:
    """BCHW filtered along both axes, to twice the samples of what lies LOBES px from the edge, or back."""
    channels = x.shape[1]
    for shape, stride in (((-1, 1), (2, 1)), ((1, -1), (1, 2))):
        weight = kernel.view(1, 1, *shape).expand(channels, 1, -1, -1)
        if enlarge:
            x = F.conv_transpose2d(x, weight, stride=stride, groups=channels)
        else:
            x = F.conv2d(x, weight, stride=stride, groups=channels)
    if not enlarge:
        return x
    cut = 4 * LOBES - 1
    return x[..., cut : x.shape[-2] - cut, cut : x.shape[-1] - cut]


def _sample(x: Tensor, places: Tensor) -> Tensor:
    """BCHW at places (x, y) in [-1, 1], bilinearly; -1 and 1 are the middles of the first and last sample."""
    return _Sample.apply(x, places)  # pyright: ignore[reportReturnType]


class _Sample(torch.autograd.Function):
    """`F.grid_sample`, which PyTorch differentiates once. It is linear in x, so its derivative is the adjoint
    map, whose derivative is the map itself. Places have no derivative here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=True)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Any, None]:
        (places,) = ctx.saved_tensors
        return _SampleAdjoint.apply(gradient[0], places, ctx.shape), None


class _SampleAdjoint(torch.autograd.Function):
    """Adjoint of `_Sample`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(places)
        with torch.enable_grad():
            # Any picture will do, for the map is linear.
            x = gradient.new_zeros(shape, requires_grad=True)
            made = F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=True)
        return torch.autograd.grad(made, x, gradient)[0]

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Any, None, None]:
        (places,) = ctx.saved_tensors
        return _Sample.apply(gradient[0], places), None, None


# 3. In other colours.

# Of a colour (r, g, b, 1): its projection onto greys, the 1 behind it, and what is left.
_LUMA = torch.zeros(4, 4, dtype=torch.float64)
_LUMA[:3, :3] = 1 / 3
_ONE = torch.diag(torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))
_REST = torch.eye(4, dtype=torch.float64) - _LUMA - _ONE


def brightness(amount: Tensor) -> Tensor:
    """Matrices B,4,4 that add an amount to every colour."""
    return _rows([[1, 0, 0, amount], [0, 1, 0, amount], [0, 0, 1, amount], [0, 0, 0, 1]], amount)


def contrast(factor: Tensor) -> Tensor:
    """Matrices B,4,4 that enlarge colours about 0, the middle grey."""
    return _rows([[factor, 0, 0, 0], [0, factor, 0, 0], [0, 0, factor, 0], [0, 0, 0, 1]], factor)


def luma_flip(mirrored: Tensor) -> Tensor:
    """Matrices B,4,4 that change the sign of the mean of the three channels where `mirrored` (bool) says so,
    and keep what is left of colours without it."""
    return torch.eye(4).to(_LUMA) - 2 * mirrored.to(_LUMA)[:, None, None] * _LUMA


def hue(angle: Tensor) -> Tensor:
    """Matrices B,4,4 that turn colours about the axis of greys, by radians; a third of a turn exchanges
    channels in a circle."""
    cross = torch.tensor([[0.0, -1, 1, 0], [1, 0, -1, 0], [-1, 1, 0, 0], [0, 0, 0, 0]]).to(_LUMA)
    sine, cosine = (each.to(_LUMA)[:, None, None] for each in (angle.sin(), angle.cos()))
    return _ONE + _LUMA + cosine * _REST + sine * cross / math.sqrt(3)


def saturation(factor: Tensor) -> Tensor:
    """Matrices B,4,4 that enlarge what colours have beside the mean of their three channels."""
    return _ONE + _LUMA + factor.to(_LUMA)[:, None, None] * _REST


def recoloured(pictures: Picture, matrix: Tensor) -> Picture:
    """Every colour (r, g, b, 1) under matrices B,4,4."""
    matrix = matrix.to(pictures)
    return torch.einsum("bij,bjhw->bihw", matrix[:, :3, :3], pictures) + matrix[:, :3, 3, None, None]


def contrast_about_mean(pictures: Picture, factor: Tensor) -> Picture:
    """Colours enlarged about the mean of each picture."""
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    return (pictures - mean) * factor.to(pictures)[:, None, None, None] + mean


def _rows(rows: list[list[Any]], like: Tensor) -> Tensor:
    """Matrices B,n,n in float64, of numbers that are the same for all pictures or have one for each."""
    wide = [[torch.as_tensor(each, dtype=torch.float64).expand(len(like)) for each in row] for row in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in wide], dim=-2)
