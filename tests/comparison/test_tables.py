"""Tables of a comparison, against numbers worked out by hand."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from zeroshift.comparison.page import MAIN
from zeroshift.comparison.tables import RUN_COLUMNS, ComparisonTables, csv_text, group_of
from zeroshift.measure.evaluate import METRICS
from zeroshift.worlds.known import world_named
from zeroshift.worlds.world import World


class Tints(World):
    """A second world: plain pictures in three tints."""

    name = "tints"
    latent_dim = 3
    domains = ("grey", "red", "night blue")
    held_out = ("night blue",)

    def truth(self, z: Tensor, label: str, size: int) -> Tensor:
        return torch.zeros(len(z), 3, size, size)


def record(label: str, target: str, seed: int, score: float | None = None, **more: Any) -> dict[str, Any]:
    """What is recorded of a run; one without a score failed."""
    measured = {"metrics": {"clip_score": {"value": score}}}
    failed = score is None
    base = {
        "label": label,
        "method": "ipl",
        "target": target,
        "group": "tuning",
        "seed": seed,
        "state": "failed" if failed else "done",
        "error": 'no "space", or\nnone left' if failed else "",
        "minutes": 0.1 * seed + 0.3,
        "memory": 700,
        "threads": None,
        "steps": [5, 7],
        "evaluation": None if failed else measured,
    }
    return base | more


SCORES = {
    ("a", "x"): (0.1, 0.2),
    ("a", "y"): (0.7, 0.4),
    ("b", "x"): (0.15, 0.12),
    ("b", "y"): (0.9, 0.6),
}
RECORDS = [
    record(label, target, seed, SCORES[label, target][seed])
    for seed in (0, 1)
    for target in "yx"
    for label in "ba"
]


def tables(records: list[dict[str, Any]]) -> ComparisonTables:
    return ComparisonTables(records, ["a", "b"], ["x", "y", "z"])


def test_every_run_is_a_row_and_what_is_unknown_is_empty() -> None:
    table = tables([RECORDS[0], record("a", "z", 1)]).runs
    assert list(table.columns) == [*RUN_COLUMNS, "clip_score"]
    assert table["clip_score"].isna().tolist() == [False, True]
    assert table["threads"].isna().tolist() == [True, True] and table["memory"].tolist() == [700, 700]
    head, first, *second = csv_text(table).splitlines()
    assert head == ",".join([*RUN_COLUMNS, "clip_score"])
    assert first == "b,ipl,y,tuning,0,done,,0.3,700,,5,7,0.9"
    assert second == ['a,ipl,z,tuning,1,failed,"no ""space"", or', 'none left",0.4,700,,5,7,']


def test_the_way_to_the_truth_leads_every_table() -> None:
    metrics = {"clip_score": 0.2, "truth.distance": 0.3, "truth.way": 0.6, "truth.hair": 0.9, "scs": 0.5}
    rows = {name: {"value": value} for name, value in metrics.items()}
    found = tables([record("a", "x", seed, 0.1, evaluation={"metrics": rows}) for seed in (0, 1)])
    assert found.metrics == ["truth.way", "truth.distance", "scs", "clip_score", "truth.hair"]
    assert MAIN[0] == "truth.way" and set(MAIN) <= set(METRICS)
    assert found.scores("truth.way", "tuning", "x").values["a"] == (0.6, 0.0, 2)


def test_the_summary_is_in_the_order_that_was_asked_for() -> None:
    table = tables(RECORDS).summary
    assert list(zip(table["target"], table["label"], strict=True)) == [(t, m) for t in "xy" for m in "ab"]
    for row in table.to_dict("records"):
        values = SCORES[row["label"], row["target"]]
        assert row["clip_score mean"] == pytest.approx(statistics.mean(values))
        assert row["clip_score spread"] == pytest.approx(statistics.stdev(values))
        assert (row["runs"], row["minutes"]) == (2, pytest.approx(0.35))


def test_the_leader_of_a_target_is_marked_in_the_summary() -> None:
    close = [record("a", "x", seed, 0.5 + 0.01 * seed) for seed in (0, 1)]
    far = [record("b", "x", seed, 0.8 + 0.01 * seed) for seed in (0, 1)]
    assert tables(close + far).summary["clip_score best"].tolist() == [0, 1]
    assert tables(RECORDS).summary["clip_score best"].tolist() == [0, 0, 0, 0]


def test_the_mean_over_targets_takes_only_targets_and_seeds_that_are_complete() -> None:
    lone = record("a", "z", 0, 100.0)
    half = record("a", "x", 2, 100.0)
    for label, wanted in (("a", (0.4, 0.3)), ("b", (0.525, 0.36))):
        found = tables([*RECORDS, lone, half]).scores("clip_score", "tuning").values[label]
        assert found == pytest.approx((statistics.mean(wanted), statistics.stdev(wanted), 2))


def test_kinds_of_targets_are_never_averaged_together() -> None:
    other = [record(label, "z", 0, 9.0, group="held-out") for label in "ab"]
    both = tables([*RECORDS, *other])
    assert both.groups() == ["tuning", "held-out"]
    assert both.targets("held-out") == ["z"] and both.targets("tuning") == ["x", "y"]
    assert both.scores("clip_score", "tuning") == tables(RECORDS).scores("clip_score", "tuning")
    assert both.wins["group"].tolist() == ["tuning", "held-out"]


def test_wins_are_those_of_the_later_method_over_the_earlier() -> None:
    (row,) = tables(RECORDS).wins.to_dict("records")
    assert (row["method"], row["against"], row["better"]) == ("b", "a", "higher")
    assert (row["pairs"], row["wins"], row["ties"], row["rate"]) == (4, 3, 0, 0.75)
    assert row["gain"] == pytest.approx((0.05 - 0.08 + 0.2 + 0.2) / 4)
    assert row["rate low"] <= row["rate"] <= row["rate high"]


def test_methods_without_a_pair_of_runs_in_a_group_have_no_win_there() -> None:
    lone = [record("a", "z", 0, 9.0, group="held-out")]
    assert tables([*RECORDS, *lone]).wins["group"].tolist() == ["tuning"]
    apart = [record("a", "x", 0, 0.1), record("b", "x", 1, 0.2)]
    assert len(tables(apart).wins) == 0


def test_without_measured_runs_the_tables_are_empty_and_have_their_columns() -> None:
    for records in ([], [record("a", "x", 0)]):
        none = tables(records)
        assert (len(none.runs), len(none.summary), len(none.wins)) == (len(records), 0, 0)
        assert csv_text(none.summary) == "label,target,group,runs,minutes\n"
        assert csv_text(none.wins).startswith("method,against,group,metric,better,pairs,wins,ties,rate,")
        assert none.cost("a") == (None, [], None, False)


def test_a_peak_that_an_earlier_run_had_is_only_a_bound() -> None:
    own = [record("a", "x", 0, 1.0, memory=500, memory_is_upper_bound=False)]
    bound = [record("a", "x", 1, 1.0, memory=900, memory_is_upper_bound=True)]
    assert tables(own + bound).cost("a")[2:] == (500, False)
    assert tables(bound).cost("a")[2:] == (900, True)
    assert tables([record("a", "x", 0, 1.0, memory=None)]).cost("a")[2:] == (None, False)


def test_a_target_is_grouped_by_the_world_it_belongs_to() -> None:
    people = world_named("portraits")
    assert group_of("Pencil sketch", people) == "tuning" and group_of("bronze statue", None) == "other"
    assert people is not None and {group_of(label, people) for label in people.held_out} == {"held-out"}
    assert group_of(people.source, people) == group_of("a city at night", people) == "other"
    assert [group_of(label, Tints()) for label in ("grey", "RED", "night  blue", "neon")] == [
        "other",
        "tuning",
        "held-out",
        "other",
    ]
