"""What looks at the watched pictures of a run, beside the judge: at directions, where CLIPs guide; at the way
to the shots, where a few pictures are the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.measure.metrics import diversity_ratio, pairwise_diversity
from zeroshift.shapes import Feature, Picture, UnitFeature


class Encoder(Protocol):
    """A guiding CLIP, as the monitor sees it."""

    @property
    def weight(self) -> float:
        """Its weight among the others."""
        ...

    def encode_image(self, pictures: Picture) -> Feature:
        """Features BE of pictures BCHW in [-1, 1]."""
        ...


class DirectionWatcher:
    """Looks through the guiding CLIPs at the way from the source's pictures."""

    remedy = "method ipl, fewer steps, a lower train.lr, or fewer layers"

    def __init__(
        self, clips: Sequence[Encoder], source: Picture, text_directions: Sequence[UnitFeature]
    ) -> None:
        """`source` are the source's pictures BCHW; text directions B,E or 1,E for every CLIP."""
        self.clips = clips
        self.features = [normalize(clip.encode_image(source)) for clip in clips]
        self.text_directions = text_directions

    def numbers(self, pictures: Picture) -> dict[str, float]:
        """agreement: mean cosine of the pictures' directions and the texts', over CLIPs by their weights, in
        [-1, 1], which is the score. alike: mean cosine of all pairs of picture directions, 1 where every
        picture changes in the same way. diversity: `diversity_ratio` to the source, the mean over CLIPs.
        """
        total = sum(clip.weight for clip in self.clips)
        agreement = alike = diversity = 0.0
        for clip, source, text in zip(self.clips, self.features, self.text_directions, strict=True):
            target = normalize(clip.encode_image(pictures))
            change = normalize(target.double() - source.double())
            share = clip.weight / total
            agreement += share * float((change * text.double()).sum(dim=1).mean())
            alike += share * (1 - pairwise_diversity(change))
            diversity += diversity_ratio(target, source) / len(self.clips)
        return {"agreement": agreement, "alike": alike, "diversity": diversity, "score": agreement}


class ShotWatcher:
    """Looks at the way from the source's pictures to the shots, in features that no step changes."""

    remedy = "fewer steps, a lower train.lr, more pictures, or method freezed"

    def __init__(
        self,
        encode: Callable[[Picture], Feature],
        source: Picture,
        shots: Picture,
        overfitting: Callable[[], float],
    ) -> None:
        """`encode` gives features of pictures BCHW; `overfitting` r_t of the discriminator as it is."""
        self.encode = encode
        self.overfitting = overfitting
        self.source = normalize(encode(source))
        self.shots = normalize(encode(shots))
        self.way = energy_distance(self.source, self.shots)
        self.neighbours = neighbour_distance(self.shots)

    def numbers(self, pictures: Picture) -> dict[str, float]:
        """approach: 1 - energy distance to the shots over the source's, 1 where pictures are spread as the
        shots are, which is the score. nearest: mean distance to the nearest shot over that from shot to shot;
        1 as of new pictures of the domain, 0 where shots are repeated, NaN of a single shot. diversity:
        `diversity_ratio` to the source. overfitting: r_t.
        """
        found = normalize(self.encode(pictures))
        approach = 1 - energy_distance(found, self.shots) / max(self.way, 1e-9)
        nearest = float(distances(found, self.shots).min(dim=1).values.mean())
        return {
            "approach": approach,
            "nearest": nearest / self.neighbours if self.neighbours else float("nan"),
            "diversity": diversity_ratio(found, self.source),
            "overfitting": self.overfitting(),
            "score": approach,
        }


def distances(first: UnitFeature, second: UnitFeature) -> Tensor:
    """Euclidean distances, in float64, of all rows of one set of features to all of another."""
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")


def energy_distance(first: UnitFeature, second: UnitFeature) -> float:
    """2 mean |a - b| - mean |a - a'| - mean |b - b'| over different pictures: 0 for sets of one distribution,
    also below.

    Szekely and Rizzo 2013, unbiased. Unlike a distance of means it sees a spread that is lost; a set of one
    picture has none.
    """

    def within(features: UnitFeature) -> Tensor:
        count = len(features)
        return distances(features, features).sum() / max(1, count * (count - 1))

    return float(2 * distances(first, second).mean() - within(first) - within(second))


def neighbour_distance(features: UnitFeature) -> float:
    """Mean distance of every row to the nearest other one; 0 where there is only one."""
    if len(features) < 2:
        return 0.0
    apart = distances(features, features)
    return float((apart + torch.diag(torch.full_like(apart[0], torch.inf))).min(dim=1).values.mean())


def map_features(maps: Sequence[Tensor]) -> Feature:
    """Features BE of pictures, of maps BCHW of a network: mean and deviation of every channel over positions,
    every map's of unit length."""
    parts = []
    for each in maps:
        flat_BCN = each.flatten(2).double()
        parts.append(normalize(torch.cat([flat_BCN.mean(dim=2), flat_BCN.std(dim=2, correction=0)], dim=1)))
    return torch.cat(parts, dim=1)
