"""What a person looks at after a run: before_after.png, and report.html, one file that needs no other, with
pictures, curves, numbers, chosen layers and the whole record.

Everything comes from the run folder, so a report can be written again at any time, of an unfinished run too.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeroshift import __version__
from zeroshift.config.methods import METHODS
from zeroshift.config.schema import SECTIONS, to_dict
from zeroshift.files.images import write_png
from zeroshift.files.writing import write_bytes
from zeroshift.pictures.sheets import before_after
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_of
from zeroshift.worlds.world import World

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MAX_POINTS = 400
"""Points of a drawn curve; longer series are thinned, because a screen shows no more."""

CURVES = {
    "loss": "Loss",
    "contrastive": "Contrastive loss",
    "domain": "Domain regularisation",
    "domain_source": "Domain regularisation, source",
    "direction": "Directional loss",
    "global_clip": "Global loss",
    "manifold": "Manifold loss",
    "patch": "Patch loss",
    "log_direction": "Directional loss, logarithm",
    "pixel": "Pixel loss",
    "raster": "Raster",
    "identity": "Identity loss",
    "generator": "Loss of the generator",
    "discriminator": "Loss of the discriminator",
    "r1": "Gradient penalty R1",
    "path": "Path length regularisation",
    "overfitting": "How sure the discriminator is of the shots, r_t",
}
"""Series that are drawn, by their name in metrics.jsonl."""

WATCHED = {
    "agreement": "Agreement with the direction of the words",
    "alike": "How alike the changes of different pictures are",
    "diversity": "Diversity, as a share of the source's",
    "judge": "Probability that the judge gives the target",
    "approach": "Way to the shots",
    "nearest": "Distance to the nearest shot, as a share of that between shots",
    "overfitting": "How sure the discriminator is of the shots, r_t",
}
"""Series of monitor.jsonl, by their name there."""


def write_report_files(folder: RunFolder, source: Any, target: Any) -> tuple[Path, Path]:
    """Paths of before_after.png and report.html of a finished run; the one that is there already is kept, the
    other is made of the run's generators."""
    config = folder.config
    picture = folder.path / "before_after.png"
    if not picture.is_file():
        rows = before_after(
            source,
            target,
            (config.source, config.target_name),
            range(config.run.samples),
            config.run.truncation,
            truth_of_run(folder),
            config.train.diffusion,
        )
        told = {
            "seeds": f"0-{config.run.samples - 1}",
            "source": config.source,
            "target": config.target_name,
        }
        write_png(picture, rows, told)
    report = folder.path / "report.html"
    return picture, report if report.is_file() else write_report(folder)


def truth_of_run(folder: RunFolder) -> World | None:
    """The world that knows the true pictures of a run's target; None where the source generator belongs to no
    world, or to one without that domain."""
    world = world_of(folder.environment["source"])
    return world if world is not None and world.domain_of(folder.config.target) is not None else None


def write_report(folder: RunFolder) -> Path:
    """Path of the report, written from what the run folder holds."""
    path = folder.path / "report.html"
    write_bytes(path, template("report.html.j2").render(**_contents(folder)).encode())
    return path


@cache
def template(name: str) -> Template:
    """A page among the files of the package; page.css is the style that pages share."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(
        lambda name: files("zeroshift").joinpath("app", "assets", name).read_text("utf-8")
    )
    return Environment(autoescape=True, undefined=StrictUndefined, loader=loader).get_template(name)


def _contents(folder: RunFolder) -> dict[str, Any]:
    """Everything that the template shows, by its names there."""
    config = folder.config
    lines = folder.metrics()
    picture = folder.path / "before_after.png"
    layers = layer_shares(lines)
    return {
        "title": f"{config.source} to {config.target_name}",
        "subtitle": f"{METHODS[config.method].title} on {config.generator}, {_teachers(folder)}",
        "numbers": _key_figures(folder, lines),
        "before_after": data_uri(picture) if picture.is_file() else "",
        "before_after_text": _before_after_text(folder),
        "curves": _curves(lines, hidden={"domain_source"} if not config.mapper.lambda_source else set()),
        "watched": _watched(folder.monitor_records()),
        "watched_text": _monitor_text(folder),
        "grids": [{"uri": data_uri(path), "text": _step_of(path)} for path in _grids(folder)],
        "evaluation": evaluation_rows(folder.evaluation) if folder.evaluation else [],
        "evaluation_warnings": folder.evaluation.get("warnings", []) if folder.evaluation else [],
        "evaluation_text": evaluation_settings(folder.evaluation) if folder.evaluation else "",
        "agreement": _agreement(folder.agreement),
        "layers": layers,
        "layers_text": f"How many of the {layers[0]['of'] if layers else 0} steps of stage 2 each layer was "
        "free to move in.",
        "commands": _commands(folder),
        "tables": _tables(folder),
        "version": __version__,
    }


def _teachers(folder: RunFolder) -> str:
    """What guided a run, in words."""
    made = folder.environment
    shots = len(made.get("shots", []))
    pictures = f"{shots} picture{'s' * (shots != 1)}" if shots else ""
    if METHODS[folder.config.method].adversarial:
        return f"from {pictures}, against a discriminator"
    guided = f"guided by {' and '.join(folder.config.clip)}"
    return f"{guided} and {pictures}" if shots else guided


def _agreement(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row of headings and one per CLIP: its name, and mean cosines with the true directions of the labels'
    direction, the learned words', that to pictures of the target where there are some, the captions', and the
    best that one direction for all could be. Empty where nothing is known."""
    if not rows:
        return []
    names = {"label": "labels", "words": "learned words", "pictures": "pictures of the target"}
    names |= {"captions": "true captions", "best": "best for all"}
    if not any("pictures" in row["cosines"] for row in rows):
        del names["pictures"]
    cells = (
        [f"{row['cosines'][name][0]:.2f}" if name in row["cosines"] else "" for name in names] for row in rows
    )
    return [["CLIP", *names.values()], *([row["clip"], *each] for row, each in zip(rows, cells, strict=True))]


def _key_figures(folder: RunFolder, lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Way to the truth where it was measured, state, seed, steps, last loss and training time: what stands on
    top."""
    status = folder.status
    config = folder.config
    last = [line for line in lines if line["stage"] == 2][-1:]
    rows = [
        ("state", status.state),
        ("seed", str(config.run.seed)),
        ("steps", f"{status.step} of {config.train.steps}"),
    ]
    if last and isinstance(last[0].get("loss"), float):
        rows.append(("last loss", f"{last[0]['loss']:.4f}"))
    evaluation = folder.evaluation or {"metrics": {}}
    way = evaluation["metrics"].get("truth.way", {}).get("value")
    if way is not None:
        rows.insert(0, ("way to the truth", f"{way:.2f}"))
    if seconds := sum(float(line.get("seconds", 0.0)) for line in lines):
        rows.append(("training time", duration(seconds)))
    return rows


def evaluation_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Metric, value with its spread, which way is better, and network with the note, of the record of an
    evaluation."""
    rows = []
    for row in record["metrics"].values():
        value = "undefined" if row["value"] is None else f"{row['value']:.4f}"
        spread = "" if row["spread"] is None else f" \u00b1 {row['spread']:.4f}"
        network = record["networks"].get(row["role"], {}).get("name", "")
        better = row["better"] if row["better"].startswith("near") else f"{row['better']} is better"
        rows.append((row["title"], value + spread, better, "; ".join(filter(None, (network, row["note"])))))
    return rows


def settings_text(record: Mapping[str, Any]) -> str:
    """Which pictures an evaluation looked at, whatever they were compared with."""
    made = record["settings"]
    parts = [f"{made['pictures']} pictures of {made['size']} px"]
    parts += [f"seeds {made['seeds']}"] if made["seeds"] else []
    parts += [f"truncation {made['truncation']:g}"] if made["truncation"] is not None else []
    parts += [f"noise: {made['noise']}"] if made["noise"] else []
    parts += [f"made of {made['route']}"] if made.get("route") else []
    return "; ".join(parts)


def evaluation_settings(record: Mapping[str, Any]) -> str:
    """How the pictures of an evaluation were made, in one line."""
    parts = [settings_text(record)]
    parts += [f"compared with {record['reference']}"] if record["reference"] else []
    parts += ["a held-out domain"] if record["held_out"] else []
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in words a person reads at a glance: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def data_uri(path: Path) -> str:
    """A PNG file as an address that holds the file itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _grids(folder: RunFolder, most: int = 4) -> list[Path]:
    """Sample grids of the run, evenly chosen, the last one among them."""
    paths = sorted((folder.path / "samples").glob("step_*.png"))
    if len(paths) <= most:
        return paths
    return [paths[round(index * (len(paths) - 1) / (most - 1))] for index in range(most)]


def _step_of(path: Path) -> str:
    return f"after {int(path.stem.removeprefix('step_'))} steps"


def layer_shares(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per layer, how many logged steps of stage 2 it could move in, in the order in which layers first
    appear."""
    chosen = [line["layers"] for line in lines if line["stage"] == 2 and line.get("layers")]
    counts = Counter(name for names in chosen for name in names)
    return [
        {"name": name, "count": count, "of": len(chosen), "percent": round(100 * count / len(chosen))}
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def _curves(lines: Sequence[Mapping[str, Any]], hidden: set[str]) -> list[dict[str, Any]]:
    """One curve per stage and series; terms that are hidden, or are the whole loss, are left out."""
    curves: list[dict[str, Any]] = []
    for stage, what in ((1, "Stage 1, the words"), (2, "Stage 2, the generator")):
        total: list[tuple[int, float]] = []
        for name, title in CURVES.items():
            if name in hidden:
                continue
            points = [
                (int(line["step"]), float(line[name]))
                for line in lines
                if line["stage"] == stage
                and isinstance(line.get(name), (int, float))
                and math.isfinite(line[name])
            ]
            total = total or points
            if len(points) > 1 and (name == "loss" or points != total):
                curves.append(
                    {"svg": curve(points, f"{what}: {title}"), "text": f"{what}: {title.lower()} by step"}
                )
    return curves


def _watched(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One curve per number of the collapse monitor that was recorded more than once."""
    curves: list[dict[str, Any]] = []
    for name, title in WATCHED.items():
        points = [(int(each["step"]), float(each[name])) for each in records if each.get(name) is not None]
        if len(points) > 1:
            curves.append({"svg": curve(points, title), "text": f"{title}, by step"})
    return curves


def _monitor_text(folder: RunFolder) -> str:
    """Which record of the monitor was best, by which rule, and what became of it."""
    records = folder.monitor_records()
    watch = folder.config.train.monitor
    if not records:
        return ""
    names = ("judge", "approach", "agreement")
    scores = ("probability that the judge gives the target", "way to the shots", "agreement of directions")
    score = next(words for name, words in zip(names, scores, strict=True) if name in records[-1])
    rule = f"by the {score}, with at least {watch.least_diversity:g} of the source's diversity"
    if "nearest" in records[-1]:
        rule += f" and {watch.least_nearest:g} of the distance from shot to shot"
    rule += ", gains up to "
    rule += f"{watch.least_gain:g} not counted"
    found = [each for each in records if each["step"] == records[-1]["best"]]
    best = (
        f"Best at step {found[0]['step']} with {found[0]['score']:.4f} ({rule}); kept as best.safetensors."
        if found
        else ""
    )
    ended = f" The run {folder.status.message}." if folder.finished and folder.status.message else ""
    return (
        f"{watch.count} pictures, looked at every {watch.every} steps. "
        + (best or f"No record was diverse enough ({rule}).")
        + ended
    )


def curve(points: Sequence[tuple[int, float]], title: str) -> Markup:
    """SVG of a series of (step, value): the values faint, their running mean strong, with its own colours by
    style sheet."""
    from markupsafe import Markup, escape

    thin = points[:: max(1, len(points) // MAX_POINTS)]
    first, last = thin[0][0], thin[-1][0]
    low, high = min(value for _, value in thin), max(value for _, value in thin)
    low, high = (low, high) if high - low > 1e-9 * max(1.0, abs(high)) else (low - 0.5, high + 0.5)

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(1, last - first)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        return f"{x:.1f},{y:.1f}"

    mean = thin[0][1]
    smooth: list[str] = []
    weight = 1 - 1 / max(2.0, len(thin) / 12)
    for step, value in thin:
        mean = weight * mean + (1 - weight) * value
        smooth.append(place(step, mean))
    raw = " ".join(place(step, value) for step, value in thin)
    ticks = [low, (low + high) / 2, high]
    lines = "".join(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/><text x="{LEFT - 6}" '
        f'y="{float(y) + 4:.1f}" '
        f'text-anchor="end">{tick:{".3g" if abs(tick) >= 0.01 or not tick else ".0e"}}</text>'
        for tick, y in ((tick, place(first, tick).split(",")[1]) for tick in ticks)
    )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{lines}'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{last}</text>'
        f'<polyline class="raw" points="{raw}"/><polyline class="smooth" points="{" ".join(smooth)}"/></svg>'
    )


def _before_after_text(folder: RunFolder) -> str:
    """What the rows of before_after.png are. In a world a diffusion model translates true pictures of the
    source domain."""
    config = folder.config
    world = truth_of_run(folder)
    seeds = f"0 to {config.run.samples - 1}"
    if world is not None and folder.diffuses:
        first = f"True pictures ({world.source}) of seeds {seeds}"
        how = "translated by the adapted model"
    else:
        first = f"Seeds {seeds} as {config.source}"
        how = "by the adapted generator"
    return f"{first}, and as {config.target_name} {how}" + ("; the third row is the truth." if world else ".")


def _commands(folder: RunFolder) -> str:
    name = f'"{folder.path}"' if " " in str(folder.path) else str(folder.path)
    lines = [f"zeroshift sample {name} --seeds 0-15", f"zeroshift sample {name} --seeds 0-15 --strength 0.5"]
    return "\n".join([*lines, f"zeroshift translate {name} me.png"] if folder.diffuses else lines)


def _tables(folder: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings with names and values: the config by section, then the environment."""
    tree = to_dict(folder.config)
    plain = {name: value for name, value in tree.items() if name not in SECTIONS}
    tables = [("What was asked", plain), *((f"Section {name}", tree[name]) for name in SECTIONS)]
    made = folder.environment
    if shots := made.get("shots"):
        made["shots"] = f"{len(shots)} pictures of the target; environment.json has names and hashes"
    tables.append(("Where it ran", made))
    return [(heading, [(name, _text(value)) for name, value in values.items()]) for heading, values in tables]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_text, value)) or "none"
    return "none" if value in (None, "") else str(value)
