"""The runs of a comparison as tables: one row per run, one per method and target, and one per pair of
methods.

Tables are DataFrames, and pandas is loaded with the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from zeroshift.comparison.statistics import (
    Better,
    MeanSpread,
    PairwiseResult,
    leader,
    mean_spread,
    pairwise,
)
from zeroshift.measure.evaluate import METRICS, metric_named
from zeroshift.worlds.world import World

if TYPE_CHECKING:
    from pandas import DataFrame

Record = Mapping[str, Any]
"""What came of one run, as `jobs.RunJob.write_record` writes it: who it was (label, method, target, group,
seed), what came of it (state, error, evaluation, warnings), and what it cost (minutes, steps, memory)."""

GROUPS = {"tuning": "Tuning domains", "held-out": "Held-out domains", "other": "Targets"}
"""Kinds of targets, which are never averaged together."""

RUN_COLUMNS = (
    *("label", "method", "target", "group", "seed", "state", "error"),
    *("minutes", "memory", "threads", "steps_words", "steps_generator"),
)
"""Columns of the table of runs before those of the metrics. `minutes` are those of the training steps,
`memory` is in MiB."""

WHOLE = ("seed", "memory", "threads", "steps_words", "steps_generator")
"""Columns of whole numbers, of which some may be unknown."""


def group_of(target: str, world: World | None) -> str:
    """Whether a target is a tuning or a held-out domain of a world, or none of its domains."""
    domain = world.domain_of(target) if world is not None else None
    if world is None or domain is None:
        return "other"
    if world.is_held_out(domain):
        return "held-out"
    return "tuning" if domain in world.tuning else "other"


class Scores(NamedTuple):
    """One metric of every method, by the method's label, and the label of the method that leads, if one
    does."""

    values: dict[str, MeanSpread | None]
    best: str | None


class Cost(NamedTuple):
    """What the runs of a method took: minutes of training steps, the steps of both stages, and the largest
    peak of memory in MiB, None where unknown.

    `memory_is_upper_bound`: every run shared its process with an earlier one that needed as much.
    """

    minutes: MeanSpread | None
    steps: list[tuple[int, int]]
    memory: int | None
    memory_is_upper_bound: bool


class ComparisonTables:
    """Records of runs as tables, with methods and targets in the order in which they were asked for."""

    def __init__(self, records: Sequence[Record], labels: Sequence[str], targets: Sequence[str]) -> None:
        self.records = list(records)
        self.asked_labels = list(labels)
        self.asked_targets = list(targets)

    @cached_property
    def runs(self) -> DataFrame:
        """One row per run, failed ones too: RUN_COLUMNS, then one column per metric, NaN where a run has
        none."""
        from pandas import DataFrame

        rows = []
        for record in self.records:
            row = {name: record.get(name) for name in RUN_COLUMNS}
            row["steps_words"], row["steps_generator"] = record["steps"] or (None, None)
            rows.append(row | {metric: _value(record, metric) for metric in self.metrics})
        table = DataFrame(rows, columns=[*RUN_COLUMNS, *self.metrics])
        numbers = dict.fromkeys(("minutes", *self.metrics), "float64")
        return table.astype(numbers | dict.fromkeys(WHOLE, "Int64") | {"seed": "int64"})

    @cached_property
    def summary(self) -> DataFrame:
        """One row per method and target: the number of measured runs, their mean minutes, and of every metric
        the mean and spread over seeds, and whether the method leads (1) or not (0)."""
        from pandas import DataFrame

        by = self.measured.groupby(["group", "target", "label"], sort=False)
        columns = {"runs": by.size(), "minutes": by["minutes"].agg(_mean)}
        for metric in self.metrics:
            columns[f"{metric} mean"] = by[metric].agg(_mean)
            columns[f"{metric} spread"] = by[metric].agg(_spread)
        table = DataFrame(columns)
        order = [
            (group, target, label)
            for group in self.groups()
            for target in self.targets(group)
            for label in self.labels
        ]
        table = table.reindex([key for key in order if key in table.index]).reset_index()
        for metric in self.metrics:
            best = {
                (group, target): self.scores(metric, group, target).best
                for group in self.groups()
                for target in self.targets(group)
            }
            where = zip(table["group"], table["target"], table["label"], strict=True)
            table[f"{metric} best"] = [int(best[group, target] == label) for group, target, label in where]
        measured = [f"{metric} {what}" for metric in self.metrics for what in ("mean", "spread", "best")]
        return table.reindex(columns=["label", "target", "group", "runs", "minutes", *measured])

    @cached_property
    def wins(self) -> DataFrame:
        """One row per pair of methods, kind of targets and metric: pairs of runs, wins and ties of the first,
        its win rate and its gain, both with the limits of their intervals."""
        from pandas import DataFrame

        intervals = [f"{name}{limit}" for name in ("rate", "gain") for limit in ("", " low", " high")]
        names = ["method", "against", "group", "metric", "better", "pairs", "wins", "ties", *intervals]
        rows = []
        for second, first in combinations(self.labels, 2):
            for group in self.groups():
                for metric in self.metrics:
                    found = self.pairwise(metric, first, second, group)
                    if found is not None:
                        who = (first, second, group, metric, self.better(metric))
                        counts = (found.pairs, found.wins, found.ties)
                        rows.append((*who, *counts, *found.rate, *found.gain))
        return DataFrame(rows, columns=names)

    # What the tables are made of.

    @property
    def measured_records(self) -> list[Record]:
        """Records of the runs that were carried out and measured."""
        return [record for record in self.records if record["state"] == "done"]

    @property
    def measured(self) -> DataFrame:
        """The rows of `runs` that were carried out and measured."""
        return self.runs.loc[self.runs["state"] == "done"]

    @cached_property
    def labels(self) -> list[str]:
        """Methods with at least one measured run."""
        return _in_order(self.asked_labels, self.measured["label"])

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that some run has, in the order of `zeroshift evaluate`."""
        found = [name for record in self.measured_records for name in record["evaluation"]["metrics"]]
        # Behind the metrics that every world has come those of a world's own attributes.
        return _in_order(dict.fromkeys([*METRICS, *found]), found)

    def groups(self) -> list[str]:
        """Kinds of targets that there are measured runs of."""
        return _in_order(GROUPS, self.measured["group"])

    def targets(self, group: str) -> list[str]:
        """Targets of a kind with at least one measured run."""
        table = self.measured
        return _in_order(self.asked_targets, table["target"][table["group"] == group])

    def shared_targets(self, group: str) -> list[str]:
        """Targets of a kind that every method has measured runs of."""
        methods = self.measured.groupby("target")["label"].nunique().to_dict()
        return [target for target in self.targets(group) if methods[target] == len(self.labels)]

    def better(self, metric: str) -> Better:
        """Which way a metric is better."""
        return metric_named(metric).better

    def scores(self, metric: str, group: str, target: str | None = None) -> Scores:
        """Mean and spread of a metric for every method, and the method that leads.

        For one target: over its seeds. Without one: over the targets of the group that every method has runs
        of, the spread being that of the mean of all these targets over seeds.
        """
        targets = self.shared_targets(group) if target is None else [target]
        table = self.measured
        table = table[(table["group"] == group) & table["target"].isin(targets)]
        if target is None:
            seeds = table.groupby(["label", "seed"], sort=False, as_index=False)
            table = seeds.agg(**{metric: (metric, _mean), "runs": (metric, "size")})
            # A seed that lacks a target would change what is averaged, not only how it was drawn.
            table = table[table["runs"] == len(targets)]
        values = {label: mean_spread(table[metric][table["label"] == label]) for label in self.labels}
        return Scores(values, leader(values, self.better(metric)))

    def pairwise(
        self, metric: str, first: str, second: str, group: str | None = None
    ) -> PairwiseResult | None:
        """Two methods against each other over the pairs of runs that both have; None where there are none."""
        table = self.measured
        if group is not None:
            table = table[table["group"] == group]
        runs = table.set_index(["target", "seed"])
        one, other = (runs.loc[runs["label"] == label, metric].to_dict() for label in (first, second))
        return pairwise(one, other, self.better(metric))

    def cost(self, label: str) -> Cost:
        """What the measured runs of a method took."""
        records = [record for record in self.measured_records if record["label"] == label]
        known = [record for record in records if record["memory"]]
        own = [record["memory"] for record in known if not record.get("memory_is_upper_bound")]
        return Cost(
            minutes=mean_spread(record["minutes"] for record in records),
            steps=sorted({tuple(record["steps"]) for record in records}),
            # Peaks that were another run's say nothing where one of these runs has a peak of its own.
            memory=max(own or [record["memory"] for record in known], default=None),
            memory_is_upper_bound=bool(known) and not own,
        )


def csv_text(table: DataFrame) -> str:
    """A table as CSV, with an empty field where nothing is known."""
    return table.to_csv(index=False, lineterminator="\n")


def _value(record: Record, metric: str) -> float | None:
    """Value of a metric of a measured run; None where it has none."""
    return record["evaluation"]["metrics"].get(metric, {}).get("value") if record["state"] == "done" else None


def _in_order(asked: Iterable[str], found: Iterable[str]) -> list[str]:
    there = set(found)
    return [name for name in asked if name in there]


def _mean(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN where there are none."""
    found = mean_spread(values)
    return float("nan") if found is None else found.mean


def _spread(values: Iterable[float]) -> float:
    """Standard deviation of the finite values; NaN for fewer than two."""
    found = mean_spread(values)
    return float("nan") if found is None or found.spread is None else found.spread
