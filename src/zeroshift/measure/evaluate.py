"""Whether it worked: every metric that the given pictures and networks allow, with the record of how it was
measured.

1. subject: which pictures, before and after, and what they can be compared with
2. networks: what they are looked at through
3. look: one pass over the pictures
4. numbers: the equations of `metrics`
5. record: values, networks and their hashes, settings, and what could not be measured and why
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable
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
from zeroshift.measure.features import SIGHTS, Progress, Seen, look, role_of
from zeroshift.measure.networks import WANTED, Networks, open_networks
from zeroshift.measure.picture_sets import RESIZE, Subject, open_subject
from zeroshift.measure.report import evaluation_rows, evaluation_settings, write_report
from zeroshift.models.protocol import Generator
from zeroshift.pictures.sample import Adapted
from zeroshift.portraits import is_held_out
from zeroshift.portraits.scene import CHOICES

SCHEMA = 1
REFERENCES = 10
"""Reference pictures that SIFID is averaged over: the first ones."""
CLUSTERS = 10
"""Clusters of zero-shot Intra-LPIPS, as published."""


# The numbers.


class Number(NamedTuple):
    """A value; `spread` is the standard deviation over pictures, splits, subsets or clusters; `note` tells
    which."""

    value: float
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """One row of the result: what it needs to have seen, and its equation."""

    title: str
    better: Literal["higher", "lower", "near 1"]
    needs: tuple[str, ...]
    of: Callable[[Seen], Number]


def _once(seen: Seen, name: str, make: Callable[[], Any]) -> Any:
    if name not in seen:
        seen[name] = make()
    return seen[name]


def _over_pictures(values: Tensor, note: str = "over pictures") -> Number:
    return Number(float(values.double().mean()), float(values.double().std(correction=0)), note)


def _sets(seen: Seen, measure: Callable[[Tensor, Tensor], float]) -> Number:
    made, real = seen["made features"], seen["real features"]
    return Number(measure(made, real), None, f"{len(made)} pictures against {len(real)}")


def _kernel(seen: Seen) -> Number:
    made, real = seen["made features"], seen["real features"]
    mean, deviation = metrics.kernel_distance(real, made)
    size = min(len(made), len(real), 1000)
    return Number(
        mean,
        deviation,
        "all pictures at once" if size == len(made) == len(real) else f"100 subsets of {size}",
    )


def _inception(seen: Seen) -> Number:
    """Of several questions the geometric mean: the score of independent answers is the product of their
    scores."""
    scores = [metrics.inception_score(seen[name]) for name in sorted(seen) if name.startswith("made classes")]
    mean = math.exp(sum(math.log(score.mean) for score in scores) / len(scores))
    deviation = sum(score.deviation for score in scores) / len(scores)
    return Number(
        mean,
        deviation,
        "10 splits" + (f", geometric mean of {len(scores)} attributes" if len(scores) > 1 else ""),
    )


def _single_image(seen: Seen) -> Number:
    made, real = (
        metrics.Gaussians(seen[f"{which} mean"], seen[f"{which} covariance"]) for which in ("made", "real")
    )
    references = metrics.Gaussians(real.mean[:REFERENCES], real.covariance[:REFERENCES])
    distances = metrics.single_image_frechet(references, made)
    return _over_pictures(distances.mean(dim=0), f"over pictures; references: the first {len(distances)}")


def _overlap(seen: Seen) -> metrics.Overlap:
    return _once(
        seen, "overlap", lambda: metrics.precision_recall(seen["real features"], seen["made features"])
    )


def _clusters(seen: Seen) -> metrics.Clusters:
    return _once(seen, "clusters", lambda: metrics.k_medoids(seen["matrix"], CLUSTERS))


def _within(found: metrics.Intra) -> Number:
    return Number(found.mean, found.deviation, f"over {found.clusters} clusters")


def _all_pairs(seen: Seen) -> Number:
    matrix: Tensor = seen["matrix"]
    return Number(float(matrix.sum() / (len(matrix) * (len(matrix) - 1))))


def _direction(seen: Seen) -> Number:
    return _over_pictures(metrics.directional_similarity(seen["source"], seen["target"], seen["change"]))


def _by_words(seen: Seen, note: str) -> str:
    return f"no reader: by the judge's words; {note}" if seen["by words"] else note


def _attributes(seen: Seen) -> Number:
    # Sums first: a domain hides some attributes, whose own ratio would be noise over noise.
    made, true = (sum(each) for each in zip(*seen["attributes"].values(), strict=True))
    return Number(
        made / max(true, 1e-9),
        None,
        _by_words(seen, "attributes read right, over those on the true pictures"),
    )


def _attribute(seen: Seen, name: str) -> Number:
    made, true = seen["attributes"][name]
    note = "the true pictures are not known" if true is None else f"{true:.3f} on the true pictures"
    return Number(made, None, _by_words(seen, note))


_TRUE = ("target", "truth")
_ROWS: dict[str, tuple[str, Any, tuple[str, ...], Callable[[Seen], Number]]] = {
    "fid": (
        "Frechet distance (FID)",
        "lower",
        ("made", "real"),
        lambda s: _sets(s, metrics.frechet_distance),
    ),
    "kid": ("kernel distance (KID)", "lower", ("made", "real"), _kernel),
    "precision": (
        "precision (improved)",
        "higher",
        ("made", "real"),
        lambda s: Number(_overlap(s).precision, None, "3 neighbours"),
    ),
    "recall": (
        "recall (improved)",
        "higher",
        ("made", "real"),
        lambda s: Number(_overlap(s).recall, None, "3 neighbours"),
    ),
    "is": ("inception score (IS)", "higher", ("made",), _inception),
    "sifid": ("single-image Frechet distance (SIFID)", "lower", ("made", "real"), _single_image),
    "scs": ("structural consistency (SCS)", "higher", ("edges",), lambda s: _over_pictures(s["edges"])),
    "identity": (
        "identity similarity (ID)",
        "higher",
        ("identity",),
        lambda s: _over_pictures(s["identity"]),
    ),
    "intra_lpips_few_shot": (
        "Intra-LPIPS, few-shot (pairs around each shot)",
        "higher",
        ("matrix", "shots"),
        lambda s: _within(metrics.intra_distance(s["matrix"], s["shots"].argmin(dim=1))),
    ),
    "intra_lpips_zero_shot": (
        "Intra-LPIPS, zero-shot (pairs within k-medoids)",
        "higher",
        ("matrix",),
        lambda s: _within(metrics.intra_distance(s["matrix"], _clusters(s).labels)),
    ),
    "intra_lpips_medoid": (
        "distance to the medoid (AIR's Intra-LPIPS)",
        "higher",
        ("matrix",),
        lambda s: _within(metrics.medoid_distance(s["matrix"], *_clusters(s))),
    ),
    "lpips_diversity": ("perceptual distance of all pairs", "higher", ("matrix",), _all_pairs),
    "diversity": (
        "diversity over the source's",
        "near 1",
        ("target", "source"),
        lambda s: Number(metrics.diversity_ratio(s["target"], s["source"])),
    ),
    "clip_score": (
        "CLIP score",
        "higher",
        ("target", "label"),
        lambda s: _over_pictures(metrics.clip_score(s["target"], s["label"])),
    ),
    "direction": ("directional similarity", "higher", ("target", "source", "change"), _direction),
    "truth.recognised": (
        "recognised as the target",
        "higher",
        _TRUE,
        lambda s: Number(float(s["recognised"].mean())),
    ),
    "truth.distance": (
        "distance to the true picture",
        "lower",
        ("pixels",),
        lambda s: _over_pictures(s["pixels"]),
    ),
    "truth.perceptual": (
        "perceptual distance to the true picture",
        "lower",
        ("perceptual",),
        lambda s: _over_pictures(s["perceptual"]),
    ),
    "truth.frechet": (
        "Frechet distance to the true domain",
        "lower",
        _TRUE,
        lambda s: Number(metrics.frechet_distance(s["target"], s["truth"])),
    ),
    "truth.diversity": (
        "diversity over the truth's",
        "near 1",
        _TRUE,
        lambda s: Number(metrics.diversity_ratio(s["target"], s["truth"])),
    ),
    "truth.attributes": ("attributes kept", "higher", ("true people",), _attributes),
}
_ROWS |= {
    f"truth.{name}": (
        f"{name.replace('_', ' ')} read right",
        "higher",
        ("people",),
        partial(_attribute, name=name),
    )
    for name in CHOICES
}
METRICS = {name: Metric(*row) for name, row in _ROWS.items()}
"""Name -> metric. Those of `truth.` need the built-in world."""


# The whole.


@dataclass(frozen=True)
class Evaluation:
    """The result. `record` is what evaluation.json holds; `path` where that is, None where nothing was
    written."""

    record: dict[str, Any]
    path: Path | None = None

    def value(self, name: str) -> float:
        """Value of a metric; InputError says why it was not measured."""
        if name in self.record["metrics"]:
            return self.record["metrics"][name]["value"]
        why = self.record["missing"].get(name, f"there is no such metric; there are {', '.join(METRICS)}")
        raise InputError(f"{name} was not measured: {why}.")

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
        return "\n".join([*lines, *(f"  {', '.join(names)}: {why}" for why, names in reasons.items())])

    def csv(self) -> str:
        """One line per metric, each with all that the value depends on."""
        record, made = self.record, io.StringIO()
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
    if unknown := [name for name in config.metrics if name not in METRICS]:
        raise InputError(f"there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}.")
    device = resolve_device(config.device)
    # 1. which pictures
    subject = open_subject(what, config, device)
    # 2. looked at through what
    target = subject.labels[1] if subject.labels else "photo"
    networks = open_networks(config.networks, subject.portraits, target, device)
    # 3. look
    chosen = {name: METRICS[name] for name in config.metrics or METRICS}
    missing = {name: why for name, metric in chosen.items() if (why := _lacking(metric, subject, networks))}
    if config.metrics and missing:
        name, why = next(iter(missing.items()))
        raise InputError(f"{name} cannot be measured: {why}.")
    possible = {name: metric for name, metric in chosen.items() if name not in missing}
    needs = {need for metric in possible.values() for need in metric.needs}
    seen = look(subject, networks, needs, config.batch, device, progress or (lambda what, done, total: None))
    # 4. numbers
    numbers: dict[str, Number] = {}
    for name, metric in possible.items():
        try:
            numbers[name] = metric.of(seen)
        except InputError as error:
            if config.metrics:
                raise
            missing[name] = str(error).rstrip(".")
    # 5. record
    record = _record(subject, networks, config, numbers, missing)
    for text in record["warnings"]:
        warnings.warn(text, stacklevel=2)
    # Other labels than the run's would stand in its report as if they were its own.
    if subject.folder is None or not save or config.metrics or config.labels:
        return Evaluation(record)
    path = subject.folder.path / "evaluation.json"
    write_json(path, record)
    if subject.folder.finished:
        write_report(subject.folder)
    return Evaluation(record, path)


def _lacking(metric: Metric, subject: Subject, networks: Networks) -> str:
    """All that a metric lacks and how to get it; empty where it can be measured."""
    labels = subject.labels
    lacks: list[str] = []
    known = (
        {*subject.sets}
        | ({"labels"} if labels else set())
        | ({"change"} if labels and labels[0] != labels[1] else set())
    )
    known |= {"people"} if subject.people else set()
    for role, sets in ((role_of(need, networks), SIGHTS[need][1]) for need in metric.needs):
        lacks += [subject.gaps[name] for name in sets if name not in known]
        lacks += [f"it needs {WANTED[role]}"] if role and getattr(networks, role) is None else []
    return "; ".join(dict.fromkeys(lacks))


def _record(
    subject: Subject,
    networks: Networks,
    config: EvaluateConfig,
    numbers: dict[str, Number],
    missing: dict[str, str],
) -> dict[str, Any]:
    """All that the values depend on, as plain values, without folders of this computer."""
    labels, truth, reference = (
        subject.labels or ("", ""),
        subject.sets.get("truth"),
        subject.sets.get("reference"),
    )
    rows = {
        name: {
            "title": METRICS[name].title,
            "value": value if math.isfinite(value) else None,
            "spread": spread,
            "better": METRICS[name].better,
            "role": role_of(METRICS[name].needs[0], networks),
            "note": note,
        }
        for name, (value, spread, note) in numbers.items()
    }
    told, judge = [], networks.judge
    if judge is not None and judge.label.sha256 in subject.guides:
        told.append(
            f"the judge {judge.label.name} guided this run, so its numbers flatter it; give another one "
            "with --judge."
        )
    drawn = subject.kind != "pictures"
    return {
        "schema": SCHEMA,
        "zeroshift": __version__,
        "evaluated": subject.name,
        "kind": subject.kind,
        "sha256": subject.hashes,
        "labels": {"source": labels[0], "target": labels[1]},
        "domain": getattr(truth, "domain", ""),
        "held_out": subject.portraits and is_held_out(labels[1]),
        "reference": f"{reference.name}, {len(reference)} pictures" if reference is not None else "",
        "settings": {
            "pictures": len(subject.target),
            "seeds": config.seeds if drawn else "",
            "truncation": config.truncation
            if (drawn or "source" in subject.hashes) and not subject.route
            else None,
            "noise": "the generators' own maps" if drawn and not subject.route else "",
            "size": subject.target.size,
            "resize": RESIZE,
            **({"route": subject.route} if subject.route else {}),
        },
        "networks": {role: asdict(label) for role, label in networks.labels().items()},
        "metrics": rows,
        "missing": missing,
        "warnings": told,
    }
