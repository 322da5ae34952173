"""What runs of several methods say together: means with spreads, who leads, win rates with bootstrap
intervals.

Pure functions on numbers. "Better" is higher, lower, or nearer to 1, as each metric states.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Better = Literal["higher", "lower", "near 1"]

DRAWS = 2000
"""Resamples of a bootstrap."""
LEVEL = 0.95
"""Share of the resamples that an interval holds."""
SEED = 0
"""Every bootstrap draws from this seed, so that a page written again shows the same numbers."""


class MeanSpread(NamedTuple):
    """Mean and standard deviation (with n - 1) of `count` runs; the deviation of a single run is None."""

    mean: float
    spread: float | None
    count: int


class Interval(NamedTuple):
    """A value and the interval that holds it with the probability `LEVEL`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class WinRate:
    """How often the first of two is the better one, over pairs: `rate` is in [0, 1], and a tie counts
    half."""

    pairs: int
    wins: int
    ties: int
    rate: Interval


@dataclass(frozen=True)
class PairwiseResult(WinRate):
    """Two methods over pairs of runs. `gain` is the mean difference, in units of the metric, in the direction
    of better: above 0 where the first is."""

    gain: Interval


def mean_spread(values: Iterable[float]) -> MeanSpread | None:
    """Mean and spread of the finite values; None where there are none."""
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return None
    mean = math.fsum(kept) / len(kept)
    spread = (
        math.sqrt(math.fsum((value - mean) ** 2 for value in kept) / (len(kept) - 1))
        if len(kept) > 1
        else None
    )
    return MeanSpread(mean, spread, len(kept))


def merit(value: float, better: Better) -> float:
    """The value so that more is better: itself, its opposite, or minus its distance to 1."""
    return {"higher": value, "lower": -value, "near 1": -abs(value - 1)}[better]


def leader(scores: Mapping[str, MeanSpread | None], better: Better) -> str | None:
    """The method whose mean is better than that of every other by more than both spreads; None where there is
    none.

    A single run has no spread, so it neither leads nor is led.
    """
    known = {name: score for name, score in scores.items() if score is not None}
    if len(known) < 2 or len(known) < len(scores):
        return None
    merits = {name: merit(score.mean, better) for name, score in known.items()}
    best = max(merits, key=merits.__getitem__)
    spread = known.pop(best).spread
    for name, other in known.items():
        if spread is None or other.spread is None or merits[best] - merits[name] <= max(spread, other.spread):
            return None
    return best


def pairwise(
    first: Mapping[tuple[Any, Any], float], second: Mapping[tuple[Any, Any], float], better: Better
) -> PairwiseResult | None:
    """The first method against the second over the (target, seed) that both have; a tie is half a win. None
    without pairs."""
    groups: dict[Hashable, list[float]] = {}
    for key, value in first.items():
        other = second.get(key, math.nan)
        if not (math.isfinite(value) and math.isfinite(other)):
            continue
        groups.setdefault(key[0], []).append(merit(value, better) - merit(other, better))
    if not groups:
        return None
    gains = list(groups.values())
    won = win_rate([[0.5 if gain == 0 else float(gain > 0) for gain in group] for group in gains])
    return PairwiseResult(won.pairs, won.wins, won.ties, won.rate, bootstrap(gains))


def win_rate(groups: Sequence[Sequence[float]]) -> WinRate:
    """Wins (1), ties (0.5) and losses (0) of the pairs of every target, counted, with the interval of
    `bootstrap`."""
    values = [value for group in groups for value in group]
    return WinRate(len(values), values.count(1.0), values.count(0.5), bootstrap(groups))


def bootstrap(
    groups: Sequence[Sequence[float]], draws: int = DRAWS, level: float = LEVEL, seed: int = SEED
) -> Interval:
    """Mean of all values, with the percentile interval of a hierarchical bootstrap.

    Every resample draws as many groups as there are, with replacement, and within each drawn group as many
    values as it has, with replacement; its number is the mean of all values drawn. Groups are targets, values
    are seeds: seeds of one target resemble each other, and an interval that took them for independent would
    be too narrow.
    """
    import numpy as np

    sizes = np.array([len(group) for group in groups])
    table = np.zeros((len(groups), sizes.max()))
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(groups), size=(draws, len(groups)))
    inner = (generator.random((draws, len(groups), sizes.max())) * sizes[chosen][..., None]).astype(int)
    drawn = np.arange(sizes.max()) < sizes[chosen][..., None]
    sums = (table[chosen[..., None], inner] * drawn).sum(axis=(1, 2))
    means = sums / drawn.sum(axis=(1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sum(map(sum, groups)) / sizes.sum()), float(low), float(high))
