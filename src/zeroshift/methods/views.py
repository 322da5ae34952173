"""Views: what CLIPs see in place of a picture, the same random change of size, place, turn, side and noise
for source and target.

A CLIP that looks once may be pleased by what is nothing to an eye; what pleases it in several views must lie
in the picture (docs/adr/0029). K views of B pictures are one batch (K*B)CHW: the first view of every picture,
then the second of every picture, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.clip.features import normalize
from zeroshift.config.schema import ViewsConfig
from zeroshift.models.seeds import rng
from zeroshift.shapes import Feature, Picture, UnitFeature


@dataclass(frozen=True)
class Views:
    """K views of each of B pictures."""

    theta: Tensor
    """Where a view looks, K,B,2,3: matrices from places of the view to places of the picture, in half
    sides."""
    noise: Tensor | None
    """What is added, K,B,C,H,W; None where nothing is."""

    @property
    def count(self) -> int:
        """Views of each picture."""
        return len(self.theta)


def draw_views(
    options: ViewsConfig, pictures: Picture, seed: int, stage: str, step: int, first_sample: int = 0
) -> Views | None:
    """The views of the pictures BCHW of a step, on their device; None where a picture is looked at as it is.

    Those of row i depend on (seed, stage, step, first_sample + i) only. More views leave the first ones as
    they are, and no kind of change depends on the strength of another.
    """
    return None if options.count == 1 else drawn_views(options, pictures, seed, stage, step, first_sample)


def drawn_views(
    options: ViewsConfig,
    pictures: Picture,
    seed: int,
    stage: str,
    step: int,
    first_sample: int = 0,
    *,
    opposite: bool = False,
) -> Views:
    """As `draw_views`, one view too. With `opposite` the views that lie opposite to these: larger for
    smaller, left for right, turned in the other sense. A view and its opposite together are nearer to the
    mean of all views than two others are."""
    samples = range(first_sample, first_sample + len(pictures))
    theta = torch.stack(
        [_places(options, rng("views", seed, stage, step, i), opposite) for i in samples], dim=1
    )
    amount = options.grain * options.strength
    noise = None
    if amount:
        sources = [rng("view grain", seed, stage, step, i) for i in samples]
        shape = pictures.shape[1:]
        # View after view, so that the first ones are the same however many follow.
        drawn = [
            torch.stack([torch.randn(shape, generator=source) for source in sources])
            for _ in range(options.count)
        ]
        noise = amount * torch.stack(drawn).to(pictures)
    return Views(theta.to(pictures), noise)


def _places(options: ViewsConfig, draw: torch.Generator, opposite: bool) -> Tensor:
    """Matrices K,2,3 of the views of one picture, or of those opposite to them."""
    # Five numbers of each view, whatever they are used for.
    uniform_K5 = torch.stack([torch.rand(5, generator=draw) for _ in range(options.count)])
    uniform_K5 = 1 - uniform_K5 if opposite else uniform_K5
    size, across, down, angle = (2 * uniform_K5[:, :4] - 1).T
    zoom = 1 + options.strength * options.zoom * size
    x, y = options.strength * options.shift * across, options.strength * options.shift * down
    turn = options.strength * options.turn * angle
    mirrored = uniform_K5[:, 4] < options.flip * min(1.0, options.strength)
    return places(zoom, turn, x, y, mirrored)


def places(zoom: Tensor, turn: Tensor, x: Tensor, y: Tensor, mirrored: Tensor) -> Tensor:
    """Matrices N,2,3 from places of a view to places of its picture, in half sides, of N zooms, turns in
    radians, shifts x and y, and whether left and right are exchanged."""
    side = torch.where(mirrored, -1.0, 1.0)
    rows = [
        torch.stack([zoom * turn.cos() * side, -zoom * turn.sin(), x], dim=-1),
        torch.stack([zoom * turn.sin() * side, zoom * turn.cos(), y], dim=-1),
    ]
    return torch.stack(rows, dim=1)


def seen(pictures: Picture, views: Views | None) -> Picture:
    """Pictures (K*B)CHW as the views show them, differentiable; the pictures themselves where there are none.

    Bilinear; beyond its edge a picture is mirrored.
    """
    if views is None:
        return pictures
    repeated = pictures.repeat(views.count, 1, 1, 1)
    grid = F.affine_grid(views.theta.flatten(0, 1), list(repeated.shape), align_corners=False)
    shown = F.grid_sample(repeated, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return shown if views.noise is None else shown + views.noise.flatten(0, 1)


def for_every_view(rows: Tensor, count: int) -> Tensor:
    """What belongs to pictures, B,..., once for each of their views: K*B,...; a single row stays one, for it
    belongs to all."""
    return rows if len(rows) == 1 or count == 1 else torch.cat([rows] * count)


def mean_feature(encode: Callable[[Picture], Feature], pictures: Picture, views: Views | None) -> UnitFeature:
    """n( mean over views of n(E_I(view)) ), shape B,E: one unit feature of each picture, from one call of
    `encode`.

    For stage 1, whose contrastive loss tells pictures apart: views of one picture as rows of their own would
    have to be told from each other.
    """
    features = normalize(encode(seen(pictures, views)))
    return features if views is None else normalize(features.unflatten(0, (views.count, -1)).mean(dim=0))
