"""Numbers about adapted pictures, from CLIP features and from the pictures themselves.

Ranges. Pictures in [-1, 1] BCHW; features BE of any length, un-normalised where a function says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zeroshift.clip import ClipModel
from zeroshift.directions import normalize, template_features
from zeroshift.errors import InputError
from zeroshift.shapes import Feature, Picture
from zeroshift.text import TemplateBank


def frechet_distance(first: Feature, second: Feature) -> float:
    """Distance of two sets of features, in float64: 0 for equal sets, never negative.

    Eq. Heusel et al. 2017: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), C with divisor n - 1.

    Note. Written with centred features X, Y (rows / sqrt(n - 1)), tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T:
    no matrix root, so it holds for fewer samples than features. With few samples the distance is biased upwards: compare
    equal numbers only.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"need two sets of at least 2 features of one width, got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    means, centred = [], []
    for features in (first.double(), second.double()):
        means.append(features.mean(dim=0))
        centred.append((features - means[-1]) / (len(features) - 1) ** 0.5)
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    spread = centred[0].square().sum() + centred[1].square().sum() - 2 * cross
    return float(((means[0] - means[1]).square().sum() + spread).clamp_min(0))


def pairwise_diversity(features: Feature) -> float:
    """Mean of 1 - cosine over all pairs of different pictures: 0 when all look alike. Range [0, 2]."""
    count = len(features)
    if count < 2:
        raise InputError(f"diversity needs at least 2 pictures, got {count}.")
    unit = normalize(features.double())
    total = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(1 - total / (count * (count - 1)))


@torch.no_grad()
def style_accuracy(
    judge: ClipModel, pictures: Picture, label: str, labels: Sequence[str], templates: TemplateBank | None = None
) -> float:
    """Share of pictures that the judge finds closer to `label` than to any other of `labels`, by the mean over its templates."""
    if label not in labels or len(labels) < 2:
        raise InputError(f"labels must hold {label!r} and at least one other, got {list(labels)}.")
    words = torch.stack([template_features(judge, each, templates).mean(dim=0) for each in labels])
    images = torch.cat([judge.encode_image(part) for part in pictures.split(32)])
    best = (normalize(images) @ normalize(words).T).argmax(dim=1)
    return float((best == list(labels).index(label)).double().mean())


def distance_to_truth(pictures: Picture, truth: Picture) -> float:
    """Mean absolute difference to the true pictures of the same seeds. Range [0, 2]."""
    if pictures.shape != truth.shape:
        raise InputError(f"pictures {tuple(pictures.shape)} and truth {tuple(truth.shape)} differ in shape.")
    return float((pictures.double() - truth.double()).abs().mean())
