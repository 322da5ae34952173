"""Pictures of the target as the CLIPs of a run see them, and the ways to them from the source's pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.methods.backend import Backend
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.picture_way import (
    PictureWay,
    picture_way,
    regressed_mean,
    set_mean,
    worth_regressing,
)
from zeroshift.methods.views import drawn_views, seen
from zeroshift.shapes import Feature, Picture

LOOKS = 256
"""How often the pictures of a set are looked at together, where views are random: few pictures in several
views each."""

AT_ONCE = 16
"""Pictures of the target seen at a time."""

Parts = Iterable[tuple[Picture, Tensor | None]]
"""Pictures BCHW in parts, and their codes BS where they have some."""


@torch.no_grad()
def picture_ways(backend: Backend, clips: Sequence[ClipObjective], pictures: Picture) -> list[PictureWay]:
    """For every CLIP the way from the source's pictures to those of the target, BCHW in [-1, 1].

    Both are seen in views as in training, drawn by the seed of the run.
    """
    like = next(backend.source.parameters())
    parts = [(part.to(like), None) for part in pictures.split(AT_ONCE)]
    targets = features_of(clips, parts, "shots", len(pictures))[0]
    count = backend.config.shots.source_pictures or backend.mean_count
    sources, codes = features_of(clips, backend.mean_pictures(count), "source mean", count)
    if codes is not None and worth_regressing(codes):
        mean_code = backend.mean_code()
        starts = [regressed_mean(source, codes, mean_code) for source in sources]
    else:
        starts = [set_mean(source) for source in sources]
    return [
        picture_way(start, set_mean(target), clip.name)
        for start, target, clip in zip(starts, targets, clips, strict=True)
    ]


def features_of(
    clips: Sequence[ClipObjective], parts: Parts, stage: str, count: int
) -> tuple[list[Feature], Tensor | None]:
    """For every CLIP the features N,E of `count` pictures, each the mean of its unit features in its views,
    and the codes N,S that came with them. Views are keyed by the seed of the run, the name of the stage, and
    the picture."""
    options = clips[0].config
    views = options.train.views
    looks = 1 if views.count == 1 else -(-LOOKS // count)
    features: list[list[Feature]] = [[] for _ in clips]
    codes: list[Tensor] = []
    first = 0
    for pictures, part_codes in parts:
        sums: list[Feature] = [torch.zeros((), device=pictures.device) for _ in clips]
        for look in range(looks):
            shown = pictures
            if views.count > 1:
                drawn = drawn_views(replace(views, count=1), pictures, options.run.seed, stage, look, first)
                shown = seen(pictures, drawn)
            sums = [
                total + normalize(clip.encode_image(shown)) for total, clip in zip(sums, clips, strict=True)
            ]
        for found, total in zip(features, sums, strict=True):
            found.append(total / looks)
        codes += [] if part_codes is None else [part_codes]
        first += len(pictures)
    return [torch.cat(found) for found in features], torch.cat(codes) if codes else None
