"""The way to pictures of the target: slow sums, and many draws whose truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.errors import InputError
from zeroshift.methods.picture_way import (
    LEAST_LENGTH,
    SetMean,
    picture_set_direction,
    picture_way,
    regressed_mean,
    set_mean,
    way_length,
    worth_regressing,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_picture_set_direction_goes_from_mean_to_mean() -> None:
    target, source = draw(3, 6), draw(7, 6, seed=1)
    difference = [
        sum(row[k] for row in target.tolist()) / 3 - sum(row[k] for row in source.tolist()) / 7
        for k in range(6)
    ]
    expected = torch.tensor([each / math.hypot(*difference) for each in difference], dtype=torch.float64)
    found = picture_set_direction(set_mean(source).mean, set_mean(target).mean)
    torch.testing.assert_close(found, expected[None])
    way = picture_way(set_mean(source), set_mean(target), "clip")
    torch.testing.assert_close(way.direction, expected[None])
    torch.testing.assert_close(way.target, normalize(target.mean(dim=0, keepdim=True)))


def test_the_error_of_a_mean_is_what_means_of_other_pictures_show() -> None:
    sets = 0.3 * draw(2000, 5, 8, seed=2)
    means = [set_mean(rows) for rows in sets]
    shown = sum(float(each.mean.square().sum()) for each in means) / len(means)
    told = sum(each.error for each in means) / len(means)
    assert told == pytest.approx(shown, rel=0.05)
    assert told == pytest.approx(0.09 * 8 / 5, rel=0.05)
    assert set_mean(sets[0, :1]).error == 0.0


def test_codes_that_tell_features_give_the_mean_of_all_of_few() -> None:
    B, offset, all_codes = draw(3, 6, seed=3), draw(6, seed=4), draw(50_000, 3, seed=5)
    for count in (12, 40):
        codes = all_codes[:count]
        found = regressed_mean(offset + codes @ B, codes, all_codes.mean(dim=0))
        torch.testing.assert_close(found.mean[0], (offset + all_codes @ B).mean(dim=0))
        assert found.error < 1e-20
    assert worth_regressing(all_codes[:12]) and not worth_regressing(all_codes[:11])


def test_what_codes_do_not_tell_is_the_error_that_is_left() -> None:
    B = draw(3, 6, seed=6)
    told, shown, plain = [], [], []
    for seed in range(400):
        codes = draw(60, 3, seed=1000 + seed)
        features = codes @ B + 0.2 * draw(60, 6, seed=5000 + seed)
        found = regressed_mean(features, codes, torch.zeros(3, dtype=torch.float64))
        told.append(found.error)
        shown.append(float(found.mean.square().sum()))
        plain.append(float(set_mean(features).mean.square().sum()))
    assert sum(told) == pytest.approx(sum(shown), rel=0.15)
    assert sum(shown) < 0.1 * sum(plain)


def test_the_length_of_few_pictures_is_the_true_step_along_their_direction() -> None:
    true = torch.zeros(20, dtype=torch.float64)
    true[0] = 0.35
    source = SetMean(torch.zeros(1, 20, dtype=torch.float64), 0.0)
    lengths, steps, apart = [], [], []
    for seed in range(2000):
        target = set_mean(true + 0.1 * draw(10, 20, seed=seed))
        lengths.append(way_length(source, target))
        steps.append(float(true @ normalize(target.mean)[0]))
        apart.append(float(target.mean.norm()))
    assert sum(lengths) == pytest.approx(sum(steps), rel=0.02)
    assert sum(apart) > 1.05 * sum(steps)


def test_a_length_is_never_nothing_and_counts_the_error_of_both_ends() -> None:
    start = torch.zeros(1, 4)
    end = torch.tensor([[0.0, 0.5, 0.0, 0.0]])
    assert way_length(SetMean(start, 0.0), SetMean(end, 0.0)) == pytest.approx(0.5)
    assert way_length(SetMean(start, 0.05), SetMean(end, 0.1)) == pytest.approx((0.25 - 0.15) / 0.5)
    assert way_length(SetMean(start, 0.0), SetMean(end, 9.0)) == pytest.approx(LEAST_LENGTH * 0.5)
    with pytest.raises(InputError, match="the same as the source's to the CLIP tiny"):
        picture_way(SetMean(start, 0.0), SetMean(start, 0.0), "tiny")
