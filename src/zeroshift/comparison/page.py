"""compare.html: pictures of all methods beside each other, tables, win rates, cost, and the whole record, in
one file."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from zeroshift import __version__
from zeroshift.comparison.jobs import RunJob
from zeroshift.comparison.statistics import DRAWS, LEVEL, Interval, PairwiseResult, WinRate
from zeroshift.comparison.strips import TargetStrips, target_strips
from zeroshift.comparison.tables import GROUPS, ComparisonTables, Scores
from zeroshift.comparison.voting import preferences, read_votes, write_vote_page
from zeroshift.config.measuring import CompareConfig
from zeroshift.config.methods import METHODS
from zeroshift.config.schema import to_dict
from zeroshift.files.writing import write_bytes
from zeroshift.measure.evaluate import metric_named
from zeroshift.measure.report import data_uri, duration, settings_text, template

MAIN = (
    "truth.way",
    "truth.recognised",
    "truth.distance",
    "truth.frechet",
    "truth.diversity",
    "truth.attributes",
    "truth.grain",
    "identity",
    "clip_score",
    "direction",
    "diversity",
)
"""Metrics that come first, and whose tables by target are open."""

ENOUGH = 6
"""Pairs below which nothing is marked: a bootstrap of so few is too sure of itself, and five wins of five are
chance enough."""

OWN = ("target", "method", "run.out", "run.seed", "run.recipe")
"""Options that differ between runs without being a choice of the method."""


def write_pages(
    config: CompareConfig, jobs: Sequence[RunJob], tables: ComparisonTables, shared: Mapping[str, Any]
) -> None:
    """Writes compare.html and, where two methods have pictures, vote.html, from the runs that there are."""
    strips = target_strips(jobs, config.people, config.out / "pictures")
    write_vote_page(strips, config.people, config.out)
    votes = read_votes(config.votes, config.out)
    shown = _tables(config, jobs, tables) | {
        "pictures": [_pictures(each) for each in strips],
        "votes": [_preferences(row) for row in preferences(votes, tables.asked_labels)],
        "votes_text": f"{_count_text(len(votes), 'vote')} of {_count_text(len(config.votes), 'file')}",
        "command": command(config, shared),
    }
    write_bytes(config.out / "compare.html", template("compare.html.j2").render(**shown).encode())


def _tables(config: CompareConfig, jobs: Sequence[RunJob], tables: ComparisonTables) -> dict[str, Any]:
    """What the template shows beside pictures and votes, by its names there."""
    first = jobs[0].config
    asked = tables.asked_labels
    metrics = sorted(tables.metrics, key=lambda name: MAIN.index(name) if name in MAIN else len(MAIN))
    pairs = [(second, one) for one, second in combinations(tables.labels, 2)]
    methods = _listed(asked) if len(asked) < 4 else f"{len(asked)} methods"
    return {
        "title": f"{methods} on {_count_text(len(tables.asked_targets), 'target')}",
        "subtitle": f"{', '.join(asked)}. {first.generator}, from {first.source}{_guides(jobs)}.",
        "headline": _headline(jobs, tables),
        "labels": tables.labels,
        "count": config.people,
        "groups": [_group_tables(tables, group, metrics) for group in tables.groups()],
        "pairs": [_pairwise_table(tables, one, other, metrics) for one, other in pairs],
        "level": f"{100 * LEVEL:g} %",
        "draws": DRAWS,
        "enough": ENOUGH,
        "cost": _cost(tables),
        "shared_process": any(tables.cost(label).memory_is_upper_bound for label in tables.labels),
        "options": _options(jobs, tables),
        "unmeasured": _unmeasured(jobs),
        "warnings": _warnings(tables),
        "provenance": _provenance(tables),
        "version": __version__,
    }


def _guides(jobs: Sequence[RunJob]) -> str:
    """By which CLIPs methods are guided; those that need pictures of the target are guided by none."""
    rows = {job.config.method: METHODS[job.config.method] for job in jobs}
    guided = [name for name, row in rows.items() if row.shots != "needed"]
    if not guided:
        return ""
    whom = "" if len(guided) == len(rows) else f"{', '.join(guided)} "
    return f", {whom}guided by {' and '.join(jobs[0].config.clip)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count_text(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _headline(jobs: Sequence[RunJob], tables: ComparisonTables) -> list[tuple[str, str]]:
    """What stands in boxes at the top of the page: names and values."""
    seeds = dict.fromkeys(job.config.run.seed for job in jobs)
    steps = dict.fromkeys(job.config.train.steps for job in jobs)
    measured = tables.measured_records
    rows = [
        ("runs measured", f"{len(measured)} of {len(jobs)}"),
        ("seeds", ", ".join(map(str, seeds))),
        ("steps of stage 2", " or ".join(map(str, steps))),
    ]
    seconds = sum(60 * record["minutes"] for record in measured)
    return rows + ([("training time", duration(seconds))] if seconds else [])


def _pictures(strips: TargetStrips) -> dict[str, Any]:
    """The pictures of one target: rows of a label and a picture."""
    rows = [("source", strips.source), *strips.methods, ("truth", strips.truth)]
    seeds = f"runs of seed {', '.join(map(str, strips.seeds))}"
    return {
        "target": strips.target,
        "rows": [{"label": label, "uri": data_uri(path)} for label, path in rows if path is not None],
        "text": f"{seeds}; {strips.how}",
    }


def number_text(value: float, digits: int | None = None) -> str:
    """A number with the given digits behind the point, or with three that mean something."""
    if digits is None:
        digits = 3 if abs(value) < 10 else 2 if abs(value) < 1000 else 0
        if 0 < abs(value) < 0.0095:
            return f"{value:.1e}"
    return f"{value:.{digits}f}"


def digits_of(spread: float) -> int:
    """Digits behind the point with which a spread shows two figures, so that mean and spread are read
    alike."""
    return min(5, max(0, 1 - math.floor(math.log10(spread))))


def _score_cells(scores: Scores) -> list[dict[str, Any]]:
    """Mean and spread of every method as texts, with as many digits as the largest spread has."""
    spreads = [each.spread for each in scores.values.values() if each is not None and each.spread]
    digits = digits_of(max(spreads)) if spreads else None
    return [
        {
            "mean": "" if each is None else number_text(each.mean, digits),
            "spread": "" if each is None or each.spread is None else number_text(each.spread, digits),
            "best": label == scores.best,
        }
        for label, each in scores.values.items()
    ]


def _better_text(metric: str) -> str:
    better = metric_named(metric).better
    return "nearer to 1 is better" if better == "near 1" else f"{better} is better"


def _group_tables(tables: ComparisonTables, group: str, metrics: Iterable[str]) -> dict[str, Any]:
    """Tables of one kind of targets: the mean over targets, then every metric by target."""
    targets = tables.targets(group)
    shared = tables.shared_targets(group)
    left_out = [target for target in targets if target not in shared]
    shown = [
        {
            "title": metric_named(metric).title,
            "better": _better_text(metric),
            "open": metric in MAIN[:4],
            "main": metric in MAIN,
            "rows": [(target, _score_cells(tables.scores(metric, group, target))) for target in targets],
            "mean": _score_cells(tables.scores(metric, group)),
        }
        for metric in metrics
    ]
    text = f"Mean over {_count_text(len(shared), 'target')}, with the spread of that mean over seeds"
    text += f"; without {', '.join(left_out)}, which not every method has" if left_out else ""
    return {"title": GROUPS[group], "text": text + ".", "tables": shown, "several": len(shared) > 1}


def _pairwise_table(
    tables: ComparisonTables, first: str, second: str, metrics: Iterable[str]
) -> dict[str, Any]:
    """Win rates of one method over another, by metric and kind of targets."""
    groups = tables.groups()
    rows = []
    for metric in metrics:
        results = [tables.pairwise(metric, first, second, group) for group in groups]
        if any(results):
            row = {"title": metric_named(metric).title, "better": _better_text(metric)}
            rows.append(row | {"results": [each and _win_rate_cell(each) for each in results]})
    return {"first": first, "second": second, "groups": [GROUPS[group] for group in groups], "rows": rows}


def _preferences(row: Mapping[str, Any]) -> dict[str, Any]:
    """Shares of votes for one target."""
    shares = [
        {"name": f"{one} over {other}", "result": found and _win_rate_cell(found)}
        for one, other, found in row["shares"]
    ]
    return {"target": row["target"], "shares": shares}


def _win_rate_cell(found: WinRate) -> dict[str, Any]:
    """A win rate as texts, and in percent as places on a bar."""
    rate = found.rate
    ties = f", {_count_text(found.ties, 'tie')}" if found.ties else ""
    return {
        "text": f"{100 * rate.value:.0f} %",
        "interval": f"{100 * rate.low:.0f} to {100 * rate.high:.0f}",
        "counts": f"{found.wins} of {found.pairs}{ties}",
        "low": round(100 * rate.low),
        "high": round(100 * rate.high),
        "at": round(100 * rate.value),
        "sure": found.pairs >= ENOUGH and (rate.low > 0.5 or rate.high < 0.5),
        "gain": _gain_text(found.gain) if isinstance(found, PairwiseResult) else "",
    }


def _gain_text(gain: Interval) -> str:
    digits = digits_of(gain.high - gain.low) if gain.high > gain.low else None
    value, low, high = (("+" if each > 0 else "") + number_text(each, digits) for each in gain)
    return f"{value} [{low}, {high}]"


def _cost(tables: ComparisonTables) -> list[dict[str, str]]:
    """Time, steps and memory per method, and as shares of the first method's."""
    costs = {label: tables.cost(label) for label in tables.labels}
    rows: list[dict[str, str]] = []
    for label, cost in costs.items():
        first = costs[tables.labels[0]]
        steps = " or ".join(f"{words} + {moves}" if words else str(moves) for words, moves in cost.steps)
        row = {"label": label, "steps": steps, "minutes": "", "times": "", "memory": "", "share": ""}
        if cost.minutes is not None:
            spread = "" if cost.minutes.spread is None else f" ± {cost.minutes.spread:.2f}"
            row["minutes"] = f"{cost.minutes.mean:.2f}{spread}"
            if first.minutes is not None and first.minutes.mean:
                row["times"] = f"{cost.minutes.mean / first.minutes.mean:.2f}"
        if cost.memory is not None:
            row["memory"] = f"{'≤ ' if cost.memory_is_upper_bound else ''}{cost.memory:,}"
            if first.memory and not (cost.memory_is_upper_bound or first.memory_is_upper_bound):
                row["share"] = f"{cost.memory / first.memory:.2f}"
        rows.append(row)
    return rows


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as plain values by their full names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _options(jobs: Sequence[RunJob], tables: ComparisonTables) -> list[tuple[str, list[str]]]:
    """Options in which the methods differ: name, and the value of each method that has results."""
    configs = {job.label: flat(to_dict(job.config)) for job in reversed(jobs)}
    trees = [configs[label] for label in tables.labels]
    if not trees:
        return []
    differing = [name for name in trees[0] if len({json.dumps(tree[name]) for tree in trees}) > 1]
    names = ["method", *(name for name in differing if name not in OWN)]
    return [(name, [_option_text(tree[name]) for tree in trees]) for name in names]


def _option_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _unmeasured(jobs: Sequence[RunJob]) -> list[tuple[str, str]]:
    """Runs without measurements, and why."""
    rows = []
    for job in jobs:
        record = job.record
        if record is None or record["state"] != "done":
            name = f"{job.label}, {job.config.target_name}, seed {job.config.run.seed}"
            rows.append((name, record["error"] if record else "not begun, or stopped before its end"))
    return rows


def _warnings(tables: ComparisonTables) -> list[tuple[str, str]]:
    """Warnings of runs: the text, and which runs gave it."""
    runs_of: dict[str, list[str]] = {}
    for record in tables.measured_records:
        for text in record["warnings"]:
            runs_of.setdefault(text, []).append(
                f"{record['label']}, {record['target']}, seed {record['seed']}"
            )
    return [(text, "; ".join(names)) for text, names in runs_of.items()]


def _provenance(tables: ComparisonTables) -> list[tuple[str, str]]:
    """How the pictures were measured, and where the runs were carried out: names and values."""
    records = tables.measured_records
    if not records:
        return []
    evaluation = records[0]["evaluation"]
    rows = [("measured on", settings_text(evaluation))]
    for role, network in evaluation["networks"].items():
        weights = f" (sha256 {network['sha256'][:12]})" if network["sha256"] else ""
        rows.append((role, network["name"] + weights))
    for what in ("device", "threads"):
        values = {str(record[what]) for record in records if record[what] is not None}
        rows.append((what, ", ".join(sorted(values))))
    for name in dict.fromkeys(name for record in records for name in record["versions"]):
        values = {str(record["versions"].get(name)) for record in records}
        rows.append((name, ", ".join(sorted(values))))
    missing: dict[str, list[str]] = {}
    for name, why in evaluation["missing"].items():
        missing.setdefault(why, []).append(metric_named(name).title)
    return rows + [(f"not measured: {', '.join(names)}", why) for why, names in missing.items()]


def command(config: CompareConfig, shared: Mapping[str, Any]) -> str:
    """The command that makes this comparison."""
    words = ["zeroshift", "compare", "--methods", *config.methods]
    words += ["--targets", *config.targets] if config.targets else []
    words += ["--seeds", *map(str, config.seeds), "--out", str(config.out)]
    default = flat(to_dict(CompareConfig(methods=config.methods)))
    for name, value in flat(to_dict(config)).items():
        if name not in ("methods", "targets", "seeds", "out", "jobs", "page_only") and value != default[name]:
            words += _option_words(name.removeprefix("networks."), value)
    for name, value in flat(shared).items():
        if value not in ("", "corrected", None) and (name, value) != ("generator", "portraits"):
            words += _option_words(name.removeprefix("run.").removeprefix("own."), value)
    return shlex.join(words)


def _option_words(name: str, value: Any) -> list[str]:
    """An option as the command line takes it."""
    if isinstance(value, bool):
        section, dot, last = name.replace("_", "-").rpartition(".")
        return [f"--{section}{dot}{'' if value else 'no-'}{last}"]
    values = list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]
    return ["--" + name.replace("_", "-"), *values]
