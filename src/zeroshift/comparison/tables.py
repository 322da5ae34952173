"""Records of the runs of a comparison as tables: one line per run, per method and target, and per pair of
methods."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from zeroshift.comparison.statistics import Better, Cell, Duel, cell, duel, leader
from zeroshift.measure.evaluate import METRICS, metric_named
from zeroshift.worlds.world import World

Record = Mapping[str, Any]
"""One run: label, method, target, seed, group, state, error, minutes, steps, memory, threads, evaluation."""

GROUPS = {"tuning": "Tuning domains", "held-out": "Held-out domains", "other": "Targets"}
"""Kinds of targets, which are never averaged together."""


def group_of(target: str, world: World | None) -> str:
    """Whether a target is a tuning or a held-out domain of a world, or none of its domains."""
    domain = world.domain_of(target) if world else None
    if world is None or domain is None:
        return "other"
    return "held-out" if domain in world.held_out else "tuning" if domain in world.tuning else "other"


class Standings(NamedTuple):
    """Records, with the methods and targets in the order in which they were asked for."""

    records: Sequence[Record]
    asked_labels: Sequence[str]
    asked_targets: Sequence[str]

    @property
    def done(self) -> list[Record]:
        """Runs that were carried out and measured."""
        return [record for record in self.records if record["state"] == "done"]

    @property
    def labels(self) -> list[str]:
        """Methods with at least one measured run."""
        found = {record["label"] for record in self.done}
        return [label for label in self.asked_labels if label in found]

    @property
    def metrics(self) -> list[str]:
        """Metrics that some run has, in the order of `zeroshift evaluate`."""
        found = {name: None for record in self.done for name in record["evaluation"]["metrics"]}
        return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]

    def of(self, **wanted: Any) -> list[Record]:
        """Measured runs with the given label, target, seed or group."""
        return [
            record for record in self.done if all(record[name] == value for name, value in wanted.items())
        ]

    def groups(self) -> list[str]:
        """Kinds of targets that there are runs of."""
        return [group for group in GROUPS if self.of(group=group)]

    def targets(self, group: str) -> list[str]:
        """Targets of a kind with at least one measured run."""
        found = {record["target"] for record in self.of(group=group)}
        return [target for target in self.asked_targets if target in found]

    def better(self, metric: str) -> Better:
        """Which way a metric is better."""
        return metric_named(metric).better

    def row(
        self, metric: str, group: str, target: str | None = None
    ) -> tuple[dict[str, Cell | None], str | None]:
        """A cell per method, and the method that leads.

        For one target: mean and spread over seeds. Without one: over the targets of the group that every
        method has runs of, the spread being that of the mean of all these targets over seeds.
        """
        cells = {}
        shared = [target] if target is not None else self.shared_targets(group)
        for label in self.labels:
            runs = [record for record in self.of(label=label, group=group) if record["target"] in shared]
            if target is not None:
                cells[label] = cell([number(record, metric) for record in runs])
                continue
            seeds = dict.fromkeys(record["seed"] for record in runs)
            sets = {
                seed: [number(record, metric) for record in runs if record["seed"] == seed] for seed in seeds
            }
            # A seed that lacks a target would change what is averaged, not only how it was drawn.
            means = [cell(values) for values in sets.values() if len(values) == len(shared)]
            cells[label] = cell([each.mean for each in means if each is not None])
        return cells, leader(cells, self.better(metric))

    def shared_targets(self, group: str) -> list[str]:
        """Targets of a kind that every method has measured runs of."""
        have = {(record["label"], record["target"]) for record in self.done}
        return [each for each in self.targets(group) if all((label, each) in have for label in self.labels)]

    def duel(self, metric: str, first: str, second: str, group: str | None = None) -> Duel | None:
        """Two methods against each other over the pairs of runs that both have."""
        wanted = {} if group is None else {"group": group}
        one, two = (
            {
                (record["target"], record["seed"]): number(record, metric)
                for record in self.of(label=label, **wanted)
            }
            for label in (first, second)
        )
        return duel(one, two, self.better(metric))

    def cost(self, label: str) -> dict[str, Any]:
        """Minutes (a cell), steps of both stages and peak memory in MiB (the largest) of the runs of a
        method."""
        runs = self.of(label=label)
        peaks = [record["memory"] for record in runs if record["memory"]]
        steps = sorted({tuple(record["steps"]) for record in runs})
        return {
            "minutes": cell([record["minutes"] for record in runs]),
            "steps": steps,
            "memory": max(peaks, default=None),
        }


def number(record: Record, metric: str) -> float:
    """Value of a metric of a run; not a number where it has none."""
    value = record["evaluation"]["metrics"].get(metric, {}).get("value")
    return float("nan") if value is None else float(value)


def runs_csv(standings: Standings) -> str:
    """One line per run, failed ones too."""
    names = ("label", "method", "target", "group", "seed", "state", "error", "minutes", "memory", "threads")
    lines = []
    for record in standings.records:
        line = {name: record[name] for name in names}
        line |= dict(zip(("steps_words", "steps_generator"), record["steps"] or ("", ""), strict=True))
        if record["state"] == "done":
            line |= {
                name: record["evaluation"]["metrics"].get(name, {}).get("value") for name in standings.metrics
            }
        lines.append(line)
    return _csv(lines, [*names, "steps_words", "steps_generator", *standings.metrics])


def summary_csv(standings: Standings) -> str:
    """One line per method and target: number of runs, and mean and spread over seeds of every metric."""
    lines: list[dict[str, Any]] = []
    for group in standings.groups():
        for target in standings.targets(group):
            rows = {metric: standings.row(metric, group, target) for metric in standings.metrics}
            for label in standings.labels:
                runs = standings.of(label=label, target=target, group=group)
                if not runs:
                    continue
                minutes = cell([record["minutes"] for record in runs])
                line = {"label": label, "target": target, "group": group, "runs": len(runs)}
                line["minutes"] = minutes.mean if minutes else None
                for metric, (cells, best) in rows.items():
                    found = cells[label]
                    line |= {
                        f"{metric} mean": found.mean if found else None,
                        f"{metric} spread": found.spread if found else None,
                    }
                    line[f"{metric} best"] = int(best == label)
                lines.append(line)
    columns = [f"{metric} {what}" for metric in standings.metrics for what in ("mean", "spread", "best")]
    return _csv(lines, ["label", "target", "group", "runs", "minutes", *columns])


def wins_csv(standings: Standings) -> str:
    """One line per pair of methods, metric and kind of targets."""
    lines: list[dict[str, Any]] = []
    for second, first in combinations(standings.labels, 2):
        for group in standings.groups():
            for metric in standings.metrics:
                if (found := standings.duel(metric, first, second, group)) is not None:
                    line: dict[str, Any] = {
                        "method": first,
                        "against": second,
                        "group": group,
                        "metric": metric,
                    }
                    line |= {
                        "better": standings.better(metric),
                        "pairs": found.pairs,
                        "wins": found.wins,
                        "ties": found.ties,
                    }
                    for name in ("rate", "gain"):
                        interval = getattr(found, name)
                        line |= {
                            name: interval.value,
                            f"{name} low": interval.low,
                            f"{name} high": interval.high,
                        }
                    lines.append(line)
    names = ["method", "against", "group", "metric", "better", "pairs", "wins", "ties"]
    return _csv(lines, [*names, "rate", "rate low", "rate high", "gain", "gain low", "gain high"])


def _csv(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    made = io.StringIO()
    writer = csv.DictWriter(made, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return made.getvalue()
