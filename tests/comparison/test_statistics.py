"""Statistics of comparisons, against slow obvious formulas."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from zeroshift.comparison.statistics import (
    Better,
    MeanSpread,
    bootstrap,
    leader,
    mean_spread,
    pairwise,
    win_rate,
)

GROUPS = [[0.11, 0.92], [0.47, 0.233], [0.71, 0.618]]


def every_resample(groups: list[list[float]]) -> list[float]:
    """Means of all equally likely draws of the hierarchical bootstrap, for groups of one size."""
    means = []
    for chosen in itertools.product(groups, repeat=len(groups)):
        for values in itertools.product(*(itertools.product(group, repeat=len(group)) for group in chosen)):
            means.append(statistics.mean(itertools.chain(*values)))
    return sorted(means)


def share_below(means: list[float], value: float) -> float:
    return sum(mean <= value + 1e-12 for mean in means) / len(means)


def test_the_interval_cuts_the_tails_off_the_exact_distribution_of_all_resamples() -> None:
    exact = every_resample(GROUPS)
    assert len(exact) == 3**3 * 4**3
    for level in (0.5, 0.95):
        found = bootstrap(GROUPS, draws=40_000, level=level)
        assert found.value == pytest.approx(statistics.mean(itertools.chain(*GROUPS)))
        assert share_below(exact, found.low) == pytest.approx((1 - level) / 2, abs=0.01)
        assert share_below(exact, found.high) == pytest.approx((1 + level) / 2, abs=0.01)


def test_groups_of_unequal_size_are_drawn_as_a_slow_loop_draws_them() -> None:
    groups, dice = [[0.0, 1.0, 1.0, 0.5], [0.3], [0.9, 0.2]], random.Random(5)
    means = []
    for _ in range(20_000):
        drawn = [dice.choice(groups) for _ in groups]
        means.append(
            statistics.mean(value for group in drawn for value in (dice.choice(group) for _ in group))
        )
    found = bootstrap(groups, draws=20_000, level=0.8)
    assert found.value == pytest.approx(statistics.mean(itertools.chain(*groups)))
    assert found.low == pytest.approx(sorted(means)[2000], abs=0.02)
    assert found.high == pytest.approx(sorted(means)[18_000], abs=0.02)


def test_an_interval_is_the_same_every_time_and_wider_where_targets_disagree() -> None:
    assert bootstrap(GROUPS, 50) == bootstrap(GROUPS, 50) != bootstrap(GROUPS, 50, seed=1)
    mixed, split = bootstrap([[0.0, 1.0]] * 4), bootstrap([[0.0, 0.0], [1.0, 1.0]] * 2)
    assert mixed.value == split.value == 0.5
    assert split.high - split.low > mixed.high - mixed.low > 0


def test_mean_and_spread_are_those_of_the_standard_library_and_pass_over_what_is_no_number() -> None:
    values = [0.3, 0.9, 1.7]
    assert mean_spread([*values, math.nan]) == pytest.approx(
        (statistics.mean(values), statistics.stdev(values), 3)
    )
    assert mean_spread([2.0]) == MeanSpread(2.0, None, 1)
    assert mean_spread([]) is None and mean_spread([math.nan]) is None


@pytest.mark.parametrize(
    "better, means, best",
    [
        ("higher", (0.5, 0.7, 0.6), None),
        ("higher", (0.5, 0.9, 0.6), "b"),
        ("lower", (0.5, 0.9, 0.7), "a"),
        ("lower", (0.5, 0.9, 0.54), None),
        ("near 1", (0.5, 1.2, 1.6), "b"),
        ("near 1", (0.5, 1.2, 0.75), None),
    ],
)
def test_only_a_lead_beyond_the_spread_of_both_is_marked(
    better: Better, means: tuple[float, ...], best: str | None
) -> None:
    spreads = (0.05, 0.11, 0.02)
    scores = {
        name: MeanSpread(mean, spread, 3) for name, mean, spread in zip("abc", means, spreads, strict=True)
    }
    assert leader(scores, better) == best


def test_without_spreads_or_numbers_nothing_is_marked() -> None:
    assert leader({"a": MeanSpread(0.1, None, 1), "b": MeanSpread(0.9, 0.01, 3)}, "higher") is None
    assert leader({"a": None, "b": MeanSpread(0.9, 0.01, 3)}, "higher") is None
    assert leader({"a": MeanSpread(0.9, 0.01, 3)}, "higher") is None


def test_two_methods_are_compared_over_the_pairs_that_both_have_and_ties_are_halved() -> None:
    first = {("x", 0): 0.9, ("x", 1): 1.3, ("y", 0): 0.5, ("y", 1): 1.1, ("z", 0): math.nan}
    second = {("x", 0): 1.2, ("x", 1): 0.7, ("y", 0): 0.5, ("z", 0): 1.0, ("z", 1): 1.0}
    for better, wins, gain in (
        ("higher", 1, (-0.3 + 0.6 + 0) / 3),
        ("lower", 1, (0.3 - 0.6 + 0) / 3),
        ("near 1", 1, (0.1 + 0 + 0) / 3),
    ):
        found = pairwise(first, second, better)  # pyright: ignore[reportArgumentType]
        assert found is not None
        assert (found.pairs, found.wins) == (3, wins)
        assert found.gain.value == pytest.approx(gain)
        assert found.rate.value == pytest.approx((wins + found.ties / 2) / 3)
    assert pairwise({("x", 0): 1.0}, {("y", 0): 1.0}, "higher") is None


def test_swapping_two_methods_mirrors_their_result() -> None:
    first = {(target, seed): 0.1 * target + 0.3 * seed for target in range(3) for seed in range(2)}
    second = {key: 0.4 - value for key, value in first.items()}
    one, other = pairwise(first, second, "higher"), pairwise(second, first, "higher")
    assert one is not None and other is not None
    assert one.rate.value == pytest.approx(1 - other.rate.value)
    assert one.gain.low == pytest.approx(-other.gain.high)


def test_a_win_rate_counts_every_pair_of_every_target() -> None:
    found = win_rate([[1.0, 0.5], [0.0, 1.0, 1.0]])
    assert (found.pairs, found.wins, found.ties) == (5, 3, 1)
    assert found.rate.value == pytest.approx(3.5 / 5)
    assert found.rate.low <= found.rate.value <= found.rate.high
