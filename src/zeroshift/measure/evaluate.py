"""Whether it worked: every metric that the given pictures and networks allow, with the record of how it was
measured.

1. inputs: which pictures, before and after, and what they can be compared with
2. networks: what they are looked at through
3. features: what the networks find, in one pass over the pictures
4. numbers: the equations of `metrics`
5. record: values, networks and their hashes, settings, and what could not be measured and why

A new metric is one row of `METRICS`: its title, which way is better, the features it needs (names of
`features.REQUIREMENTS`), and its equation. Rows of the attributes of a world are made from the world.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from zeroshift import __version__
from zeroshift.config.measuring import EvaluateConfig
from zeroshift.config.overrides import override
from zeroshift.devices import resolve_device
from zeroshift.errors import InputError
from zeroshift.files.writing import write_json
from zeroshift.measure import metrics
from zeroshift.measure.features import REQUIREMENTS, FeatureStore, Progress, extract_features, role_of
from zeroshift.measure.networks import HOW_TO_GET, Networks, open_networks
from zeroshift.measure.picture_sets import RESIZE, EvalInputs, Files, TruePictures, open_inputs
from zeroshift.measure.report import evaluation_rows, evaluation_settings, write_report
from zeroshift.models.protocol import Generator
from zeroshift.pictures.runs import Adapted
from zeroshift.worlds.world import World

SCHEMA = 1
REFERENCES = 10
"""Reference pictures that SIFID is averaged over: the first ones."""
CLUSTERS = 10
"""Clusters of zero-shot Intra-LPIPS, as published."""


# The numbers.


Better = Literal["higher", "lower", "near 1"]


class Number(NamedTuple):
    """A measured value, with its spread and what was counted."""

    value: float
    spread: float | None = None
    """Standard deviation over pictures, splits, subsets or clusters; None where the value is of all at
    once."""
    note: str = ""
    """What the spread is over, or how many pictures of which kind the value is of."""


@dataclass(frozen=True)
class Metric:
    """A metric: its title, which way is better, what it needs, and its equation."""

    title: str
    """What tables call it."""
    better: Better
    needs: tuple[str, ...]
    """Features that it is computed of, by their names in `features.REQUIREMENTS`. The record says of the
    metric the role of the first."""
    of: Callable[[FeatureStore], Number]
    """Its equation. InputError where the features are there and yet have no such number."""


def _over_pictures(values: Tensor, note: str = "over pictures") -> Number:
    """Mean and spread of values B, one per picture."""
    return Number(float(values.double().mean()), float(values.double().std(correction=0)), note)


def _between_sets(found: FeatureStore, distance: Callable[[Tensor, Tensor], float]) -> Number:
    """Distance of the features of the target's pictures to those of the reference."""
    made, real = found["made features"], found["real features"]
    return Number(distance(made, real), None, f"{len(made)} pictures against {len(real)}")


def _kernel(found: FeatureStore) -> Number:
    made, real = found["made features"], found["real features"]
    mean, deviation = metrics.kernel_distance(real, made)
    size = min(len(made), len(real), 1000)
    whole = size == len(made) == len(real)
    return Number(mean, deviation, "all pictures at once" if whole else f"100 subsets of {size}")


def _inception(found: FeatureStore) -> Number:
    """Of several questions the geometric mean: the score of independent answers is the product of their
    scores."""
    names = sorted(name for name in found if name.startswith("made classes"))
    if not names:
        raise InputError("the world has no attributes, so its judge puts pictures into no classes")
    scores = [metrics.inception_score(found[name]) for name in names]
    mean = math.exp(sum(math.log(score.mean) for score in scores) / len(scores))
    deviation = sum(score.deviation for score in scores) / len(scores)
    several = f", geometric mean of {len(scores)} attributes" if len(scores) > 1 else ""
    return Number(mean, deviation, "10 splits" + several)


def _single_image(found: FeatureStore) -> Number:
    made, real = (
        metrics.Gaussians(found[f"{which} mean"], found[f"{which} covariance"]) for which in ("made", "real")
    )
    references = metrics.Gaussians(real.mean[:REFERENCES], real.covariance[:REFERENCES])
    distances = metrics.single_image_frechet(references, made)
    return _over_pictures(distances.mean(dim=0), f"over pictures; references: the first {len(distances)}")


def _overlap(found: FeatureStore) -> metrics.Overlap:
    """Precision and recall, computed once for both."""
    return found.once(
        "overlap", lambda: metrics.precision_recall(found["real features"], found["made features"])
    )


def _clusters(found: FeatureStore) -> metrics.Clusters:
    """Clusters of the target's pictures, computed once for both metrics that take them."""
    return found.once("clusters", lambda: metrics.k_medoids(found["matrix"], CLUSTERS))


def _within(intra: metrics.Intra) -> Number:
    return Number(intra.mean, intra.deviation, f"over {intra.clusters} clusters")


def _memorised(found: FeatureStore) -> Number:
    made, true = found["shots"], found["reference shots"]
    distances = [float(each.amin(dim=1).mean()) for each in (made, true)]
    note = f"distance to the nearest of {made.shape[1]} shots {distances[0]:.3f}, of true pictures"
    return Number(float(metrics.memorised(made, true).mean()), None, f"{note} {distances[1]:.3f}")


def _all_pairs(found: FeatureStore) -> Number:
    matrix: Tensor = found["matrix"]
    return Number(float(matrix.sum() / (len(matrix) * (len(matrix) - 1))))


def _direction(found: FeatureStore) -> Number:
    return _over_pictures(metrics.directional_similarity(found["source"], found["target"], found["change"]))


def _way(found: FeatureStore) -> Number:
    values = metrics.way_to_truth(found["pixels"], found["source pixels"], found["oracle"])
    left = float(found["pixels"].mean() / found["source pixels"].mean())
    return _over_pictures(
        values,
        f"over pictures; {left:.3f} of the source's distance is left, {found['oracle']:.3f} after training "
        "on the truth",
    )


def _detail(found: FeatureStore, kind: str) -> Number:
    """Energy of detail over the mean energy of the truth's."""
    whole = float(found["detail true grain"].mean())
    if not whole > 0:
        raise InputError("the true pictures have no detail of single pixels")
    true = float(found[f"detail true {kind}"].mean()) / whole
    note = "over pictures" if kind == "grain" else f"over pictures; {true:.3f} in the true pictures"
    return _over_pictures(found[f"detail made {kind}"] / whole, note)


def _further_than_source(found: FeatureStore) -> str:
    """A warning where the pictures are further from the truth than the source's; else empty."""
    if not {"pixels", "source pixels"} <= found.keys():
        return ""
    made, source = (float(found[name].mean()) for name in ("pixels", "source pixels"))
    if made <= source:
        return ""
    times = f", {made / source:.2f} times that" if source else ""
    return (
        f"the pictures are further from the truth than the source's own: distance {made:.4f} for "
        f"{source:.4f}{times}. Look at them beside the truth; fewer steps or a lower rate may leave more."
    )


def _read_by(found: FeatureStore, note: str) -> str:
    return f"no reader: by the judge's words; {note}" if found["by words"] else note


def _attributes(found: FeatureStore) -> Number:
    # Sums first: a domain hides some attributes, whose own ratio would be noise over noise.
    made, true = (sum(each) for each in zip(*found["attributes"].values(), strict=True))
    note = _read_by(found, "attributes read right, over those on the true pictures")
    return Number(made / max(true, 1e-9), None, note)


def _attribute(found: FeatureStore, name: str) -> Number:
    made, true = found["attributes"][name]
    note = "the true pictures are not known" if true is None else f"{true:.3f} on the true pictures"
    return Number(made, None, _read_by(found, note))


METRICS: dict[str, Metric] = {
    "truth.way": Metric("way to the truth", "higher", ("pixels", "source pixels", "oracle"), _way),
    "truth.recognised": Metric(
        "recognised as the target",
        "higher",
        ("target", "truth"),
        lambda found: Number(float(found["recognised"].mean())),
    ),
    "truth.distance": Metric(
        "distance to the true picture",
        "lower",
        ("pixels",),
        lambda found: _over_pictures(found["pixels"]),
    ),
    "truth.perceptual": Metric(
        "perceptual distance to the true picture",
        "lower",
        ("perceptual",),
        lambda found: _over_pictures(found["perceptual"]),
    ),
    "truth.frechet": Metric(
        "Frechet distance to the true domain",
        "lower",
        ("target", "truth"),
        lambda found: Number(metrics.frechet_distance(found["target"], found["truth"])),
    ),
    "truth.diversity": Metric(
        "diversity over the truth's",
        "near 1",
        ("target", "truth"),
        lambda found: Number(metrics.diversity_ratio(found["target"], found["truth"])),
    ),
    "truth.attributes": Metric("attributes kept", "higher", ("true attributes",), _attributes),
    "truth.grain": Metric(
        "grain: 1-px detail over the truth's", "near 1", ("detail",), lambda found: _detail(found, "grain")
    ),
    "truth.raster": Metric(
        "raster: repeating detail over the truth's detail",
        "lower",
        ("detail",),
        lambda found: _detail(found, "raster"),
    ),
    "fid": Metric(
        "Frechet distance (FID)",
        "lower",
        ("made", "real"),
        lambda found: _between_sets(found, metrics.frechet_distance),
    ),
    "kid": Metric("kernel distance (KID)", "lower", ("made", "real"), _kernel),
    "precision": Metric(
        "precision (improved)",
        "higher",
        ("made", "real"),
        lambda found: Number(_overlap(found).precision, None, "3 neighbours"),
    ),
    "recall": Metric(
        "recall (improved)",
        "higher",
        ("made", "real"),
        lambda found: Number(_overlap(found).recall, None, "3 neighbours"),
    ),
    "is": Metric("inception score (IS)", "higher", ("made",), _inception),
    "sifid": Metric("single-image Frechet distance (SIFID)", "lower", ("made", "real"), _single_image),
    "scs": Metric(
        "structural consistency (SCS)", "higher", ("edges",), lambda found: _over_pictures(found["edges"])
    ),
    "identity": Metric(
        "identity similarity (ID)", "higher", ("identity",), lambda found: _over_pictures(found["identity"])
    ),
    "memorised": Metric(
        "memorised: nearer to a shot than 99 % of true pictures",
        "lower",
        ("shots", "reference shots"),
        _memorised,
    ),
    "intra_lpips_few_shot": Metric(
        "Intra-LPIPS, few-shot (pairs around each shot)",
        "higher",
        ("matrix", "shots"),
        lambda found: _within(metrics.intra_distance(found["matrix"], found["shots"].argmin(dim=1))),
    ),
    "intra_lpips_zero_shot": Metric(
        "Intra-LPIPS, zero-shot (pairs within k-medoids)",
        "higher",
        ("matrix",),
        lambda found: _within(metrics.intra_distance(found["matrix"], _clusters(found).labels)),
    ),
    "intra_lpips_medoid": Metric(
        "distance to the medoid (AIR's Intra-LPIPS)",
        "higher",
        ("matrix",),
        lambda found: _within(metrics.medoid_distance(found["matrix"], *_clusters(found))),
    ),
    "lpips_diversity": Metric("perceptual distance of all pairs", "higher", ("matrix",), _all_pairs),
    "diversity": Metric(
        "diversity over the source's",
        "near 1",
        ("target", "source"),
        lambda found: Number(metrics.diversity_ratio(found["target"], found["source"])),
    ),
    "clip_score": Metric(
        "CLIP score",
        "higher",
        ("target", "label"),
        lambda found: _over_pictures(metrics.clip_score(found["target"], found["label"])),
    ),
    "direction": Metric("directional similarity", "higher", ("target", "source", "change"), _direction),
}
"""Name -> metric, in the order of every table, what says most to a person first. Those of `truth.` need a
world; `metrics_of` adds one row per attribute of the world."""

TRUTH = "truth."
"""Prefix of the metrics that need a world."""


def _attribute_metric(attribute: str) -> Metric:
    """The share of pictures from which an attribute of a world is read right."""
    title = f"{attribute.replace('_', ' ')} read right"
    return Metric(title, "higher", ("attributes",), partial(_attribute, name=attribute))


def metrics_of(world: World | None) -> dict[str, Metric]:
    """Name -> metric, of all that can be measured in a world, attributes last; None: outside of any."""
    rows = {f"{TRUTH}{name}": _attribute_metric(name) for name in (world.choices if world else ())}
    if clash := sorted(METRICS.keys() & rows.keys()):
        raise InputError(
            f"an attribute of the world {world.name if world else ''} makes a second metric {clash[0]}; name "
            "the attribute otherwise."
        )
    return METRICS | rows


def metric_named(name: str) -> Metric:
    """The metric of a name that some record has, whatever its world: any `truth.ATTRIBUTE` is the row of an
    attribute. InputError where there is no such metric."""
    if name in METRICS:
        return METRICS[name]
    if not name.startswith(TRUTH) or name == TRUTH:
        raise _no_metric(name, METRICS)
    return _attribute_metric(name.removeprefix(TRUTH))


def _no_metric(name: str, known: Mapping[str, Metric]) -> InputError:
    return InputError(f"there is no metric {name!r}; there are {', '.join(known)}.")


# The whole.


@dataclass(frozen=True)
class Evaluation:
    """What came out, with all that it depends on."""

    record: dict[str, Any]
    """What evaluation.json holds: values, networks with their hashes, settings, and what is missing and
    why."""
    path: Path | None = None
    """Where evaluation.json is; None where nothing was written."""

    def value(self, name: str) -> float:
        """Value of a metric, None where it is not finite; InputError says why it was not measured."""
        if name in self.record["metrics"]:
            return self.record["metrics"][name]["value"]
        if name in self.record["missing"]:
            raise InputError(f"{name} was not measured: {self.record['missing'][name]}.")
        metric_named(name)
        raise InputError(f"{name} was not measured: it was not asked for, or its world is another one.")

    def text(self) -> str:
        """A table for a terminal: values, how they were measured, and what was not."""
        rows = evaluation_rows(self.record)
        widths = [max(len(row[column]) for row in rows) if rows else 0 for column in range(3)]
        lines = [f"{self.record['evaluated']}: {evaluation_settings(self.record)}", ""]
        lines += [
            f"  {a:{widths[0]}}  {b:>{widths[1]}}  {c:{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
        ]
        reasons: dict[str, list[str]] = {}
        for name, why in self.record["missing"].items():
            reasons.setdefault(why, []).append(name)
        lines += ["", "not measured"] if reasons else []
        lines += [f"  {', '.join(names)}: {why}" for why, names in reasons.items()]
        told = self.record["warnings"]
        return "\n".join([*lines, *(["", "warnings"] if told else []), *(f"  {text}" for text in told)])

    def csv(self) -> str:
        """One line per metric, each with all that the value depends on."""
        record = self.record
        settings = {name: value for name, value in record["settings"].items() if name != "resize"}
        shared = {
            "evaluated": record["evaluated"],
            "kind": record["kind"],
            **record["labels"],
            "reference": record["reference"],
        }
        table = []
        for name, row in record["metrics"].items():
            network = record["networks"].get(row["role"], {"name": "", "sha256": "", "resize": ""})
            table.append(
                {"metric": name, **row, **network, **shared, **settings, "resize": network["resize"]}
            )
        made = io.StringIO()
        writer = csv.DictWriter(made, table[0] if table else ["metric"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return made.getvalue()


def evaluate(
    what: Adapted | Generator | str | Path,
    config: EvaluateConfig | None = None,
    *,
    progress: Progress | None = None,
    save: bool = True,
    **overrides: Any,
) -> Evaluation:
    """Every metric that the pictures of a run (or its folder), a generator (or its name) or a picture folder
    allow.

    Options come from `config` and from `overrides`: evaluate("runs/sketch", seeds="0-999",
    judge="openai/clip-vit-base-patch16"). The record of a run is written to its folder, where report and
    model card show it, unless `save` is false or `metrics` chose some. InputError where something that was
    asked for is missing.
    """
    config = override(config or EvaluateConfig, overrides)
    device = resolve_device(config.device)
    # 1. which pictures
    inputs = open_inputs(what, config, device)
    known = metrics_of(inputs.world)
    if unknown := [name for name in config.metrics if name not in known]:
        raise _no_metric(unknown[0], known)
    # 2. looked at through what
    networks = open_networks(
        config.networks, inputs.world, inputs.labels[1] if inputs.labels else None, device
    )
    # 3. features
    chosen = {name: known[name] for name in config.metrics or known}
    missing = {
        name: why for name, metric in chosen.items() if (why := _why_missing(metric, inputs, networks))
    }
    if config.metrics and missing:
        name, why = next(iter(missing.items()))
        raise InputError(f"{name} cannot be measured: {why}.")
    possible = {name: metric for name, metric in chosen.items() if name not in missing}
    needs = {need for metric in possible.values() for need in metric.needs}
    # Whoever measures the distance is told where the source's own is smaller.
    needs |= {"source pixels"} if "pixels" in needs and "source" in inputs.sets else set()
    found = extract_features(
        inputs, networks, needs, config.batch, device, progress or (lambda what, done, total: None)
    )
    # 4. numbers
    numbers = _numbers(possible, found, missing, strict=bool(config.metrics))
    # 5. record
    told = filter(None, (_flattering(inputs, networks), _measured_shots(inputs), _further_than_source(found)))
    record = _record(inputs, networks, config, numbers, missing) | {"warnings": list(told)}
    for text in record["warnings"]:
        warnings.warn(text, stacklevel=2)
    # Other labels than the run's would stand in its report as if they were its own.
    if inputs.folder is None or not save or config.metrics or config.labels:
        return Evaluation(record)
    path = inputs.folder.path / "evaluation.json"
    write_json(path, record)
    if inputs.folder.finished:
        write_report(inputs.folder)
    return Evaluation(record, path)


def _numbers(
    possible: Mapping[str, Metric], found: FeatureStore, missing: dict[str, str], strict: bool
) -> dict[str, Number]:
    """What the equations give. A metric that too few pictures or the like leave without a number is added to
    `missing`; where `strict`, its InputError is raised."""
    numbers: dict[str, Number] = {}
    for name, metric in possible.items():
        try:
            numbers[name] = metric.of(found)
        except InputError as error:
            if strict:
                raise
            missing[name] = str(error).rstrip(".")
    return numbers


def _why_missing(metric: Metric, inputs: EvalInputs, networks: Networks) -> str:
    """All that a metric lacks and how to get it; empty where it can be measured."""
    reasons: list[str] = []
    for need in metric.needs:
        role = role_of(need, networks)
        absent = [name for name in REQUIREMENTS[need].inputs if name not in inputs.known]
        reasons += [inputs.missing_reasons[name] for name in absent]
        if role and getattr(networks, role) is None:
            reasons.append(f"it needs {HOW_TO_GET[role]}")
    return "; ".join(dict.fromkeys(reasons))


def _record(
    inputs: EvalInputs,
    networks: Networks,
    config: EvaluateConfig,
    numbers: Mapping[str, Number],
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """All that the values depend on, as plain values, without folders of this computer."""
    labels = inputs.labels or ("", "")
    truth, reference = inputs.sets.get("truth"), inputs.sets.get("reference")
    return {
        "schema": SCHEMA,
        "zeroshift": __version__,
        "evaluated": inputs.name,
        "kind": inputs.kind,
        "sha256": inputs.hashes,
        "labels": {"source": labels[0], "target": labels[1]},
        "domain": truth.domain if isinstance(truth, TruePictures) else "",
        "held_out": inputs.world is not None and inputs.world.is_held_out(labels[1]),
        "reference": f"{reference.name}, {len(reference)} pictures" if reference is not None else "",
        "settings": _settings(inputs, config),
        "networks": {role: asdict(record) for role, record in networks.records().items()},
        "metrics": {name: _row(name, number, networks) for name, number in numbers.items()},
        "missing": dict(missing),
    }


def _flattering(inputs: EvalInputs, networks: Networks) -> str:
    """A warning where the judge guided the run; else empty."""
    judge = networks.judge
    if judge is None or judge.record.sha256 not in inputs.guides:
        return ""
    return (
        f"the judge {judge.record.name} guided this run, so its numbers flatter it; give another one with "
        "--judge."
    )


def _measured_shots(inputs: EvalInputs) -> str:
    """A warning where people of the few-shot pictures, whose files are named after their seeds, are among
    those that are measured against the truth; else empty."""
    shots = inputs.sets.get("shots")
    if not isinstance(shots, Files) or "truth" not in inputs.sets or inputs.seeds is None:
        return ""
    both = sorted(set(shots.seeds or ()).intersection(inputs.seeds))
    if not both:
        return ""
    return (
        f"{len(both)} of the people measured, first seed {both[0]}, are those of the few-shot pictures, "
        "which flatters what learned from them; measure others with --seeds."
    )


def _settings(inputs: EvalInputs, config: EvaluateConfig) -> dict[str, Any]:
    """How the pictures were made: count, seeds, truncation, noise, size, resize filter and route."""
    drawn = inputs.kind != "pictures"
    truncated = (drawn or "source" in inputs.hashes) and not inputs.route
    return {
        "pictures": len(inputs.target),
        "seeds": config.seeds if drawn else "",
        "truncation": config.truncation if truncated else None,
        "noise": "the generators' own maps" if drawn and not inputs.route else "",
        "size": inputs.target.size,
        "resize": RESIZE,
        **({"route": inputs.route} if inputs.route else {}),
    }


def _row(name: str, number: Number, networks: Networks) -> dict[str, Any]:
    """The row of a metric; a value that is not finite is left out as None."""
    metric = metric_named(name)
    return {
        "title": metric.title,
        "value": number.value if math.isfinite(number.value) else None,
        "spread": number.spread,
        "better": metric.better,
        "role": role_of(metric.needs[0], networks),
        "note": number.note,
    }
