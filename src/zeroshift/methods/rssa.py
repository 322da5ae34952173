"""RSSA: what belongs together within a picture, and between neighbouring pictures, stays together while the
generator moves; styles are drawn near to those of the few pictures.

Xiao et al., Few Shot Generative Model Adaption via Relaxed Spatial Structural Alignment (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zeroshift.shapes import Scalar

SELF_SIDES = (64, 128, 256)
"""Sides of the maps whose self-correlation is held, as published for pictures of 256 px."""

DISTURBANCE_SIDE = 128
"""Largest side of the maps whose correlation between pictures is held; of this side only the first map."""

TILES = {64: 16, 128: 32}
"""Side of a map -> side of the tiles that are compared with each other alone, as published."""

CHUNK = 1 << 22
"""Correlations that are held at a time, of source and target each: 16 MiB in float32."""

Part = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# 1. The equations.


def self_correlation(
    source: Sequence[Tensor], target: Sequence[Tensor], sides: Sequence[int] = SELF_SIDES
) -> Scalar:
    """L_scc: sum over maps, and over their four quadrants and their centre, of the mean smooth L1 between the
    correlations of all pairs of positions within the window, by source and target. Range from 0 up.

    Maps BCHW of other sides count nothing. Quadrants together are one term, the centre is another. Positions
    are unit vectors over channels, then averaged two by two.
    """
    terms = [torch.zeros((), device=target[0].device, dtype=target[0].dtype)]
    for before, after in zip(source, target, strict=True):
        if before.shape[-1] not in sides:
            continue
        (old_quadrants, old_centre), (new_quadrants, new_centre) = windows(before), windows(after)
        for old, new in ((old_quadrants, new_quadrants), (old_centre, new_centre)):
            terms.append(_in_chunks(_smooth_difference, old, old, new, new) / len(old))
    return torch.stack(terms).sum()


def windows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (4 B, P, C) of the quadrants and (B, P, C) of the centre of maps BCHW; P = (H / 4)^2
    positions each."""
    pooled = F.avg_pool2d(F.normalize(features, dim=1), 2)
    half = pooled.shape[-1] // 2
    inset = half // 2
    centre = pooled[..., inset : inset + half, inset : inset + half]
    return tiles(pooled, half), tiles(centre, half)


def tiles(features: Tensor, side: int) -> Tensor:
    """Positions (B * tiles, side^2, C) of maps BCHW cut into tiles of `side`, row by row."""
    batch, channels, height, width = features.shape
    cut = features.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, channels)


def disturbance_correlation(source: Sequence[Tensor], target: Sequence[Tensor]) -> Scalar:
    """L_dcc: sum over maps of the mean, over pairs of pictures j < k, tiles and positions of j, of the sum
    over positions of k of |C_target - C_source|, where C is the softmax, over positions of k, of the products
    of unit positions. Range [0, 2] per map.

    Of maps BCHW those up to 128 px count, and of 128 px the first. Equal to the published form, which divides
    by the 6 pairs of 4 pictures and is for these alone.
    """
    terms = [torch.zeros((), device=target[0].device, dtype=target[0].dtype)]
    for before, after in _disturbed(source, target):
        side = TILES.get(before.shape[-1], before.shape[-1])
        count = len(before)
        old, new = (
            tiles(F.normalize(each, dim=1), side).unflatten(0, (count, -1)) for each in (before, after)
        )
        pairs = list(combinations(range(count), 2))
        found = [_in_chunks(_shift_of_matches, old[j], old[k], new[j], new[k]) for j, k in pairs]
        terms.append(torch.stack(found).sum() / (len(pairs) * old.shape[1]))
    return torch.stack(terms).sum()


def _disturbed(source: Sequence[Tensor], target: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Maps of source and target that count for the disturbance correlation."""
    sides = [each.shape[-1] for each in source]
    first = sides.index(DISTURBANCE_SIDE) if DISTURBANCE_SIDE in sides else -1
    return [
        (before, after)
        for number, (before, after) in enumerate(zip(source, target, strict=True))
        if sides[number] < DISTURBANCE_SIDE or number == first
    ]


def _smooth_difference(old: Tensor, old_other: Tensor, new: Tensor, new_other: Tensor) -> Tensor:
    """Sum over windows of the mean smooth L1 between the correlations of positions (windows, P, C)."""
    difference = F.smooth_l1_loss(new @ new_other.mT, old @ old_other.mT, reduction="none")
    return difference.mean(dim=(1, 2)).sum()


def _shift_of_matches(old: Tensor, old_other: Tensor, new: Tensor, new_other: Tensor) -> Tensor:
    """Sum over tiles of the mean, over positions (tiles, P, C), of the L1 distance between where source and
    target find each position again."""
    difference = (new @ new_other.mT).softmax(dim=-1) - (old @ old_other.mT).softmax(dim=-1)
    return difference.abs().sum(dim=-1).mean(dim=-1).sum()


def _in_chunks(part: Part, *positions: Tensor) -> Tensor:
    """Sum of a part over windows. Where their correlations are many they are computed a few at a time, and
    again on the way back, so that no more than these few are ever held."""
    each_window = positions[0].shape[1] ** 2
    if len(positions[0]) * each_window <= CHUNK:
        return part(*positions)
    most = max(1, CHUNK // each_window)
    sums = [
        checkpoint(part, *rows, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(*(each.split(most) for each in positions), strict=True)
    ]
    return torch.stack(sums).sum()
