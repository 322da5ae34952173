"""Pictures of the target as the CLIPs of a run see them, and the ways to them from the source's pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zeroshift import __version__
from zeroshift.clip.features import normalize
from zeroshift.config.schema import to_dict
from zeroshift.files.cache import cached
from zeroshift.files.writing import fingerprint
from zeroshift.methods.backend import Backend
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.picture_way import (
    PictureWay,
    SetMean,
    picture_way,
    regressed_mean,
    set_mean,
    worth_regressing,
)
from zeroshift.methods.views import drawn_views, seen
from zeroshift.shapes import Feature, Picture

LOOKS = 4096
"""How often the pictures of a set are looked at together at least, where views are random: few pictures in
many views each. With so many, another seed changes the direction by a degree at most (docs/log.md)."""

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
    return [
        picture_way(start, set_mean(target), clip.name)
        for start, target, clip in zip(source_means(backend, clips), targets, clips, strict=True)
    ]


def source_means(backend: Backend, clips: Sequence[ClipObjective]) -> list[SetMean]:
    """For every CLIP the mean of what it sees in the source's pictures; of a generator with styles kept on
    the disk, for other runs of this generator, seed, views and CLIPs."""
    count = backend.config.shots.source_pictures or backend.mean_count

    def make() -> Tensor:
        sources, codes = features_of(clips, backend.mean_pictures(count), "source mean", count)
        if codes is None or not worth_regressing(codes):
            found = [set_mean(source) for source in sources]
        else:
            mean_code = backend.mean_code()
            found = [regressed_mean(source, codes, mean_code) for source in sources]
        return torch.cat([torch.cat([each.mean[0], each.mean.new_tensor([each.error])]) for each in found])

    sizes = [clip.width + 1 for clip in clips]
    kept = backend.source.kind == "styles"
    rows = cached("means", _key(backend, clips, count), (sum(sizes),), make) if kept else make()
    like = next(backend.source.parameters())
    return [SetMean(row[None, :-1].to(like), float(row[-1])) for row in rows.split(sizes)]


def _key(backend: Backend, clips: Sequence[ClipObjective], count: int) -> str:
    """SHA-256 of all that means over the source's pictures depend on."""
    config = backend.config
    weights = [fingerprint(each.state_dict()) for each in (backend.source, *(clip.clip for clip in clips))]
    like = next(backend.source.parameters())
    machine = [torch.__version__, torch.get_num_threads(), like.device.type, str(like.dtype), __version__]
    options = [to_dict(config.train.views), to_dict(config.quirks), config.run.precision, config.run.seed]
    told = json.dumps([weights, machine, options, count, LOOKS])
    return hashlib.sha256(told.encode()).hexdigest()


def features_of(
    clips: Sequence[ClipObjective], parts: Parts, stage: str, count: int
) -> tuple[list[Feature], Tensor | None]:
    """For every CLIP the features N,E of `count` pictures, each the mean of its unit features in its views,
    and the codes N,S that came with them.

    Views come in pairs of opposite ones, keyed by the seed of the run, the name of the stage, and the
    picture.
    """
    options = clips[0].config
    views = options.train.views
    looks = 1 if views.count == 1 else 2 * -(-LOOKS // (2 * count))
    features: list[list[Feature]] = [[] for _ in clips]
    codes: list[Tensor] = []
    first = 0
    for pictures, part_codes in parts:
        sums: list[Feature] = [torch.zeros((), device=pictures.device) for _ in clips]
        for look in range(looks):
            shown = pictures
            if views.count > 1:
                one = replace(views, count=1)
                keys = (options.run.seed, stage, look // 2, first)
                shown = seen(pictures, drawn_views(one, pictures, *keys, opposite=look % 2 == 1))
            sums = [
                total + normalize(clip.encode_image(shown)) for total, clip in zip(sums, clips, strict=True)
            ]
        for found, total in zip(features, sums, strict=True):
            found.append(total / looks)
        codes += [] if part_codes is None else [part_codes]
        first += len(pictures)
    return [torch.cat(found) for found in features], torch.cat(codes) if codes else None
