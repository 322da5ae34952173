"""compare.html: pictures of all methods beside each other, tables, win rates, cost, and the whole record, in
one file."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from zeroshift import __version__
from zeroshift.comparison.jobs import Task, read_record
from zeroshift.comparison.statistics import DRAWS, LEVEL, Cell, Duel, Interval, Share
from zeroshift.comparison.tables import GROUPS, Standings
from zeroshift.comparison.variants import CompareConfig, run_name, slug
from zeroshift.comparison.voting import preferences, read_votes, write_ballot
from zeroshift.config.schema import to_dict
from zeroshift.errors import InputError
from zeroshift.files.images import fitted, grid, write_png
from zeroshift.files.writing import write_bytes
from zeroshift.measure.evaluate import metric_named
from zeroshift.measure.report import data_uri, duration, settings_text, template
from zeroshift.pictures.runs import Run
from zeroshift.pictures.sample import draw
from zeroshift.pictures.sheets import pair
from zeroshift.worlds.known import world_of
from zeroshift.worlds.world import World

LARGEST = 256
"""Side in pixels of the pictures on a page; larger ones are reduced."""

MAIN = (
    "truth.recognised",
    "truth.distance",
    "truth.frechet",
    "truth.diversity",
    "truth.attributes",
    "identity",
    "clip_score",
    "direction",
    "diversity",
)
"""Metrics that come first, and whose tables by target are open."""

ENOUGH = 6
"""Pairs below which nothing is marked: a bootstrap of so few is too sure of itself, and five wins of five are
chance enough."""

OWN = ("target", "method", "out", "run.seed", "run.recipe")
"""Options that differ between runs without being a choice of the method."""


# Pictures.


def strips(tasks: Sequence[Task], count: int, folder: Path) -> list[dict[str, Any]]:
    """Per target, files with the same people in a row: the source, every method's first finished run, and the
    truth if known.

    What was drawn before from the same generators is kept.
    """
    found = []
    for target in dict.fromkeys(task.config.target for task in tasks):
        firsts: dict[str, Task] = {}
        for task in tasks:
            if task.config.target == target and task.folder.finished:
                firsts.setdefault(task.label, task)
        if not firsts:
            continue
        some = next(iter(firsts.values()))
        run, config = Run(some.folder), some.config
        world = world_of(some.folder.environment["source"])
        truth = None
        if world is not None:
            truth = _kept(
                folder / f"truth--{slug(target)}.png",
                {"seeds": f"0-{count - 1}", "target": target},
                lambda run=run, target=target, world=world: world.truth_of_seeds(
                    range(count), target, run.source.image_size
                ),
            )
        psi = 1.0 if truth is not None else config.run.truncation
        given = world if truth is not None else None
        source = _strip(run, "source", folder / f"source-{psi:g}.png", count, psi, given)
        drawn = {
            label: _strip(Run(task.folder), "target", folder / _name(task), count, psi, given)
            for label, task in firsts.items()
        }
        rows = [(label, path) for label, path in drawn.items() if path is not None]
        seeds = sorted({task.config.run.seed for task in firsts.values()})
        route = run.source.kind == "diffusion"
        how = (
            ("photos" if given else "pictures of the source") + ", inverted and generated"
            if route
            else f"truncation {psi:g}"
        )
        found.append(
            {"target": target, "source": source, "rows": rows, "truth": truth, "seeds": seeds, "how": how}
        )
    return found


def _name(task: Task) -> str:
    return run_name(task.label, task.config.target, task.config.run.seed) + ".png"


def _strip(
    run: Run, which: str, path: Path, count: int, truncation: float, world: World | None
) -> Path | None:
    """File with a row of pictures of the source or the adapted generator of a run; None where it cannot be
    found or read."""
    file = run.folder.generator_file
    mark = (
        run.folder.environment["source"]["sha256"]
        if which == "source"
        else f"{file.stat().st_size} {file.stat().st_mtime_ns}"
    )
    facts = {"seeds": f"0-{count - 1}", "generator": mark, "truncation": f"{truncation:g}"}

    def drawn() -> Tensor:
        if run.generator.kind == "diffusion":
            return pair(run.source, run.generator, run.config.train.diffusion, range(count), world=world)[
                which == "target"
            ]
        return draw(run.source if which == "source" else run.generator, range(count), truncation)

    try:
        return _kept(path, facts, drawn)
    except InputError:
        return None


def _kept(path: Path, facts: dict[str, str], make: Any) -> Path | None:
    """A file with pictures BCHW in a row, made where it is not there with these facts; None where there are
    no pictures."""
    from PIL import Image

    if path.is_file():
        with Image.open(path) as file:
            if {name: file.info.get(name) for name in facts} == facts:
                return path
    pictures: Tensor | None = make()
    if pictures is None:
        return None
    write_png(path, grid(fitted(pictures, min(LARGEST, pictures.shape[-1])), columns=len(pictures)), facts)
    return path


# The page.


def write_pages(
    config: CompareConfig, tasks: Sequence[Task], standings: Standings, shared: Mapping[str, Any]
) -> None:
    """Writes compare.html and, where two methods have pictures, vote.html, from the runs that there are."""
    wall = strips(tasks, config.pictures, config.out / "pictures")
    write_ballot(wall, config.pictures, config.out)
    votes = read_votes(config.votes, config.out)
    tables = _tables(config, tasks, standings) | {
        "wall": [_pictures(item) for item in wall],
        "votes": [_preferences(row) for row in preferences(votes, standings.asked_labels)],
        "votes_text": f"{_counted(len(votes), 'vote')} of {_counted(len(config.votes), 'file')}",
        "command": command(config, shared),
    }
    write_bytes(config.out / "compare.html", template("compare.html.j2").render(**tables).encode())


def _tables(config: CompareConfig, tasks: Sequence[Task], standings: Standings) -> dict[str, Any]:
    """What the template shows beside pictures and votes, by its names there."""
    first = tasks[0].config
    labels = list(standings.asked_labels)
    metrics = sorted(standings.metrics, key=lambda name: MAIN.index(name) if name in MAIN else len(MAIN))
    pairs = [(second, one) for one, second in combinations(standings.labels, 2)]
    named = _listed(labels) if len(labels) < 4 else f"{len(labels)} methods"
    return {
        "title": f"{named} on {_counted(len(config.targets), 'target')}",
        "subtitle": f"{', '.join(labels)}. {first.generator}, from {first.source}, guided by "
        f"{' and '.join(first.clip)}.",
        "numbers": _numbers(tasks, standings),
        "labels": standings.labels,
        "people": config.pictures,
        "groups": [_group(standings, group, metrics) for group in standings.groups()],
        "pairs": [_pair(standings, one, other, metrics) for one, other in pairs],
        "level": f"{100 * LEVEL:g} %",
        "draws": DRAWS,
        "enough": ENOUGH,
        "cost": _cost(standings),
        "options": _options(tasks, standings),
        "bad": _bad(tasks),
        "told": _told(standings),
        "record": _record(standings),
        "version": __version__,
    }


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _numbers(tasks: Sequence[Task], standings: Standings) -> list[tuple[str, str]]:
    seeds = dict.fromkeys(task.config.run.seed for task in tasks)
    steps = dict.fromkeys(task.config.train.steps for task in tasks)
    seconds = sum(60 * record["minutes"] for record in standings.done)
    rows = [
        ("runs measured", f"{len(standings.done)} of {len(tasks)}"),
        ("seeds", ", ".join(map(str, seeds))),
    ]
    rows += [("steps of stage 2", " or ".join(map(str, steps)))]
    return rows + ([("training time", duration(seconds))] if seconds else [])


def _pictures(item: dict[str, Any]) -> dict[str, Any]:
    """One target of the wall: rows of a label and a picture."""
    rows = [("source", item["source"]), *item["rows"], ("truth", item["truth"])]
    seeds = f"runs of seed {', '.join(map(str, item['seeds']))}"
    return {
        "target": item["target"],
        "rows": [{"label": label, "uri": data_uri(path)} for label, path in rows if path is not None],
        "text": f"{seeds}; {item['how']}",
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


def _cells(row: tuple[dict[str, Cell | None], str | None]) -> list[dict[str, Any]]:
    cells, best = row
    spreads = [each.spread for each in cells.values() if each is not None and each.spread]
    shown = digits_of(max(spreads)) if spreads else None
    return [
        {
            "mean": "" if each is None else number_text(each.mean, shown),
            "spread": "" if each is None or each.spread is None else number_text(each.spread, shown),
            "best": label == best,
        }
        for label, each in cells.items()
    ]


def _way(metric: str) -> str:
    better = metric_named(metric).better
    return "nearer to 1 is better" if better == "near 1" else f"{better} is better"


def _group(standings: Standings, group: str, metrics: Iterable[str]) -> dict[str, Any]:
    """Tables of one kind of targets: the mean over targets, then every metric by target."""
    shared, targets = standings.shared_targets(group), standings.targets(group)
    left_out = [target for target in targets if target not in shared]
    tables = []
    for metric in metrics:
        rows = [(target, _cells(standings.row(metric, group, target))) for target in targets]
        mean = _cells(standings.row(metric, group))
        tables.append(
            {
                "title": metric_named(metric).title,
                "way": _way(metric),
                "open": metric in MAIN[:4],
                "main": metric in MAIN,
                "rows": rows,
                "mean": mean,
            }
        )
    text = f"Mean over {_counted(len(shared), 'target')}, with the spread of that mean over seeds"
    text += f"; without {', '.join(left_out)}, which not every method has" if left_out else ""
    return {"title": GROUPS[group], "text": text + ".", "tables": tables, "several": len(shared) > 1}


def _pair(standings: Standings, first: str, second: str, metrics: Iterable[str]) -> dict[str, Any]:
    """Win rates of one method over another, by metric and kind of targets."""
    groups, rows = standings.groups(), []
    for metric in metrics:
        duels = [standings.duel(metric, first, second, group) for group in groups]
        if any(duels):
            rows.append(
                {
                    "title": metric_named(metric).title,
                    "way": _way(metric),
                    "duels": [each and _duel(each) for each in duels],
                }
            )
    return {"first": first, "second": second, "groups": [GROUPS[group] for group in groups], "rows": rows}


def _preferences(row: Mapping[str, Any]) -> dict[str, Any]:
    """Shares of votes for one target."""
    shares = [
        {"name": f"{one} over {other}", "duel": found and _duel(found)} for one, other, found in row["shares"]
    ]
    return {"target": row["target"], "shares": shares}


def _duel(found: Share) -> dict[str, Any]:
    rate = found.rate
    ties = f", {_counted(found.ties, 'tie')}" if found.ties else ""
    return {
        "text": f"{100 * rate.value:.0f} %",
        "interval": f"{100 * rate.low:.0f} to {100 * rate.high:.0f}",
        "count": f"{found.wins} of {found.pairs}{ties}",
        "low": round(100 * rate.low),
        "high": round(100 * rate.high),
        "at": round(100 * rate.value),
        "sure": found.pairs >= ENOUGH and (rate.low > 0.5 or rate.high < 0.5),
        "gain": _gain(found.gain) if isinstance(found, Duel) else "",
    }


def _gain(gain: Interval) -> str:
    digits = digits_of(gain.high - gain.low) if gain.high > gain.low else None
    value, low, high = (("+" if each > 0 else "") + number_text(each, digits) for each in gain)
    return f"{value} [{low}, {high}]"


def _cost(standings: Standings) -> list[dict[str, str]]:
    """Time, steps and memory per method, and relative to the first."""
    rows: list[dict[str, str]] = []
    costs = {label: standings.cost(label) for label in standings.labels}
    base = next(iter(costs.values()), {"minutes": None, "memory": None})
    for label, cost in costs.items():
        minutes, memory = cost["minutes"], cost["memory"]
        steps = " or ".join(f"{words} + {moves}" if words else str(moves) for words, moves in cost["steps"])
        row = {"label": label, "steps": steps, "minutes": "", "times": "", "memory": "", "share": ""}
        if minutes is not None:
            spread = "" if minutes.spread is None else f" ± {minutes.spread:.2f}"
            row |= {"minutes": f"{minutes.mean:.2f}{spread}"}
            if base["minutes"] is not None and base["minutes"].mean:
                row["times"] = f"{minutes.mean / base['minutes'].mean:.2f}"
        if memory:
            row |= {
                "memory": f"{memory:,}",
                "share": f"{memory / base['memory']:.2f}" if base["memory"] else "",
            }
        rows.append(row)
    return rows


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as plain values by their full names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _options(tasks: Sequence[Task], standings: Standings) -> list[tuple[str, list[str]]]:
    """Options in which the methods differ: name, and the value of each method that has results."""
    configs = {
        task.label: flat(to_dict(task.config)) for task in reversed(tasks) if task.label in standings.labels
    }
    trees = [configs[label] for label in standings.labels]
    names = [name for name in (trees[0] if trees else ()) if name not in OWN]
    differing = ["method", *(name for name in names if len({json.dumps(tree[name]) for tree in trees}) > 1)]
    return [(name, [_plain(tree[name]) for tree in trees]) for name in differing] if trees else []


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _bad(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """Runs without measurements, and why."""
    rows = []
    for task in tasks:
        record = read_record(task)
        if record is None or record["state"] != "done":
            name = f"{task.label}, {task.config.target}, seed {task.config.run.seed}"
            rows.append((name, record["error"] if record else "not begun, or stopped before its end"))
    return rows


def _told(standings: Standings) -> list[tuple[str, str]]:
    """Warnings of runs: the text, and which runs gave it."""
    told: dict[str, list[str]] = {}
    for record in standings.done:
        for text in record["warnings"]:
            told.setdefault(text, []).append(f"{record['label']}, {record['target']}, seed {record['seed']}")
    return [(text, "; ".join(names)) for text, names in told.items()]


def _record(standings: Standings) -> list[tuple[str, str]]:
    """How the pictures were measured, and where the runs were carried out."""
    rows: list[tuple[str, str]] = []
    if not standings.done:
        return rows
    evaluation = standings.done[0]["evaluation"]
    rows.append(("measured on", settings_text(evaluation)))
    rows += [
        (role, f"{each['name']} (sha256 {each['sha256'][:12]})")
        for role, each in evaluation["networks"].items()
    ]
    records = standings.done
    rows += [
        (what, ", ".join(sorted({str(record[what]) for record in records if record[what] is not None})))
        for what in ("device", "threads")
    ]
    names = dict.fromkeys(name for record in records for name in record["versions"])
    rows += [
        (name, ", ".join(sorted({str(record["versions"].get(name)) for record in records}))) for name in names
    ]
    missing: dict[str, list[str]] = {}
    for name, why in evaluation["missing"].items():
        missing.setdefault(why, []).append(metric_named(name).title)
    return rows + [(f"not measured: {', '.join(names)}", why) for why, names in missing.items()]


def command(config: CompareConfig, shared: Mapping[str, Any]) -> str:
    """The command that makes this comparison."""
    words = ["zeroshift", "compare", "--methods", *config.methods, "--targets", *config.targets]
    words += ["--seeds", *map(str, config.seeds), "--out", str(config.out)]
    default = flat(to_dict(CompareConfig(methods=config.methods)))
    for name, value in flat(to_dict(config)).items():
        if name not in ("methods", "targets", "seeds", "out", "jobs", "page_only") and value != default[name]:
            words += _words(name.removeprefix("networks."), value)
    for name, value in flat(shared).items():
        if value not in ("", "corrected", None) and (name, value) != ("generator", "portraits"):
            words += _words(name.removeprefix("run."), value)
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    """An option as the command line takes it."""
    if isinstance(value, bool):
        section, dot, last = name.replace("_", "-").rpartition(".")
        return [f"--{section}{dot}{'' if value else 'no-'}{last}"]
    values = list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]
    return ["--" + name.replace("_", "-"), *values]
