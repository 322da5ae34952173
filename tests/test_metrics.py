"""Numbers about pictures against slow formulas and known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.errors import InputError
from zeroshift.metrics import distance_to_truth, frechet_distance, pairwise_diversity, style_accuracy
from zeroshift.text import TemplateBank


def draws(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return shift + scale * torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


def slow_frechet(a: Tensor, b: Tensor) -> float:
    """The formula with covariances written out: tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2)."""
    first, second = torch.cov(a.T), torch.cov(b.T)
    cross = root(root(first) @ second @ root(first))
    return float((a.mean(0) - b.mean(0)).square().sum() + (first + second - 2 * cross).trace())


@pytest.mark.parametrize(("count", "width"), [(200, 5), (6, 12)])
def test_the_frechet_distance_equals_the_slow_formula_with_many_and_with_few_samples(count: int, width: int) -> None:
    a, b = draws(count, width, 0), draws(count + 3, width, 1, scale=1.7, shift=0.3)
    assert math.isclose(frechet_distance(a, b), slow_frechet(a, b), rel_tol=1e-6)
    assert math.isclose(frechet_distance(a, b), frechet_distance(b, a), rel_tol=1e-9)


def test_the_frechet_distance_is_zero_for_equal_sets_and_known_for_a_shift() -> None:
    a = draws(50, 8, 2)
    assert frechet_distance(a, a) < 1e-9
    assert math.isclose(frechet_distance(a, a + 0.5), 8 * 0.25, rel_tol=1e-9)
    assert math.isclose(frechet_distance(a, 2 * a - a.mean(0)), float(torch.cov(a.T).trace()), rel_tol=1e-9)


def test_diversity_equals_the_mean_over_all_pairs() -> None:
    features = draws(7, 5, 3)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    slow = sum(1 - float(torch.nn.functional.cosine_similarity(features[i], features[j], dim=0)) for i, j in pairs) / len(pairs)
    assert math.isclose(pairwise_diversity(features), slow, rel_tol=1e-9)


def test_diversity_is_zero_for_one_look_and_two_for_opposites() -> None:
    one = draws(1, 4, 4)
    assert abs(pairwise_diversity(one.expand(5, -1))) < 1e-12
    assert math.isclose(pairwise_diversity(torch.cat([one, -one])), 2.0)


def test_style_accuracy_counts_the_pictures_nearest_to_their_label() -> None:
    judge, labels = tiny.clip(1), ["photo", "zombie", "sketch", "statue"]
    pictures = draws(40, 3 * 16 * 16, 5).reshape(40, 3, 16, 16).float().clamp(-1, 1)
    bank = TemplateBank("two", ("a {}", "the {} of a face"))
    shares = {}
    for label in labels:
        hits = 0
        for picture in pictures:
            image = judge.encode_image(picture[None])[0]
            scores = []
            for each in labels:
                texts = [judge.encode_text([t.replace("{}", each)])[0] for t in bank.templates]
                mean = torch.stack([text / text.norm() for text in texts]).mean(0)
                scores.append(float(image @ mean / image.norm() / mean.norm()))
            hits += scores.index(max(scores)) == labels.index(label)
        shares[label] = hits / 40
        assert style_accuracy(judge, pictures, label, labels, bank) == shares[label]
    assert math.isclose(sum(shares.values()), 1.0)


def test_distance_to_truth_is_the_mean_absolute_difference() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[0, 0, 0, 0] = 0.96
    assert math.isclose(distance_to_truth(a, b), 0.96 / 96, rel_tol=1e-6)
    assert distance_to_truth(b, b) == 0.0


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 features"):
        frechet_distance(draws(1, 4, 0), draws(5, 4, 0))
    with pytest.raises(InputError, match="of one width"):
        frechet_distance(draws(5, 3, 0), draws(5, 4, 0))
    with pytest.raises(InputError, match="at least 2 pictures, got 1"):
        pairwise_diversity(draws(1, 4, 0))
    with pytest.raises(InputError, match="labels must hold 'neon'"):
        style_accuracy(tiny.clip(1), torch.zeros(1, 3, 16, 16), "neon", ["photo", "zombie"])
    with pytest.raises(InputError, match="differ in shape"):
        distance_to_truth(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))
