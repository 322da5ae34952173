"""What networks see in sets of pictures: features, maps and distances, in one pass, as tensors that the
equations take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zeroshift.clip.features import normalize, template_features, text_direction
from zeroshift.clip.model import ClipModel
from zeroshift.measure import metrics
from zeroshift.measure.networks import Networks, SeesDetail, Sight, attribute_features
from zeroshift.measure.picture_sets import PictureSet, Rendered, Subject
from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits import DOMAINS, LATENT_DIM, domain_of, sample_scene
from zeroshift.portraits.scene import CHOICES, Scene

BLOCK = 1 << 26
"""Numbers of perceptual vectors held at a time."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""

Seen = dict[str, Any]
"""What was seen, by name; numbers that several metrics share are kept here too."""

SIGHTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "target": ("judge", ()),
    "source": ("judge", ("source",)),
    "truth": ("judge", ("truth",)),
    "label": ("judge", ("labels",)),
    "change": ("judge", ("change",)),
    "made": ("features", ()),
    "real": ("features", ("reference",)),
    "edges": ("edges", ("source",)),
    "identity": ("identity", ("source",)),
    "matrix": ("perceptual", ()),
    "shots": ("perceptual", ("shots",)),
    "perceptual": ("perceptual", ("truth",)),
    "pixels": ("", ("truth",)),
    "people": ("reader", ("people",)),
    "true people": ("reader", ("people", "truth")),
}
"""What can be seen -> the role of the network that sees it ("" for none), and what it needs beside the
target's pictures."""


def role_of(need: str, networks: Networks) -> str:
    """Role of the network that sees something. Attributes that no reader knows in this domain are read by the
    judge's words."""
    role = SIGHTS[need][0]
    return "judge" if role == "reader" and networks.reader is None else role


@torch.no_grad()
def look(
    subject: Subject,
    networks: Networks,
    needs: set[str],
    batch: int,
    device: str | torch.device,
    progress: Progress,
) -> Seen:
    """What `needs` asks to see, as tensors on the CPU, in one pass over target, source and truth, and one
    over each other set."""
    tally: dict[str, list[Tensor]] = defaultdict(list)
    sets = subject.sets
    if "true people" in needs or "people" in needs:
        needs = needs | {"people"} | ({"target", "truth"} if networks.reader is None else set())
    count, real = len(subject.target), sets["reference"] if "real" in needs else None
    wanted = {name for need in needs for name in SIGHTS[need][1]} | (
        {"truth"} if "people" in needs else set()
    )
    paired = [name for name in ("source", "truth") if name in wanted and name in sets]
    total = max(count, len(real) if real else 0)
    for start in range(0, total, batch):
        rows, parts = slice(start, start + batch), {}
        if start < count:
            parts = {name: sets[name].part(rows).to(device) for name in paired}
            for name, value in _glance(networks, needs, subject.target.part(rows).to(device), parts).items():
                tally[name].append(value.cpu())
        if real is not None and start < len(real):
            pictures = (
                parts["truth"]
                if real is sets.get("truth") and "truth" in parts
                else real.part(rows).to(device)
            )
            assert networks.features is not None
            for name, value in _described("real", networks.features.see(pictures)).items():
                tally[name].append(value.cpu())
        progress("looking at pictures", min(start + batch, total), total)
    seen: Seen = {name: torch.cat(values) for name, values in tally.items()}
    if networks.perceptual is not None and "matrix" in needs:
        seen["matrix"] = perceptual_matrix(networks.perceptual, subject.target, None, batch, device, progress)
    if networks.perceptual is not None and "shots" in needs:
        seen["shots"] = perceptual_matrix(
            networks.perceptual, subject.target, sets["shots"], batch, device, progress
        )
    return seen | _read(subject, networks, needs, seen)


def _glance(
    networks: Networks, needs: set[str], target: Tensor, paired: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What is seen in one batch of pictures, and of the source and true pictures that pair with them."""
    found: dict[str, Tensor] = {}
    judge, features, source, truth = (
        networks.judge,
        networks.features,
        paired.get("source"),
        paired.get("truth"),
    )
    if features is not None and "made" in needs:
        sight = features.see(target)
        found |= _described("made", sight)
        if features is judge:
            found["target"] = sight.features
    if judge is not None:
        for name, pictures in (("target", target), ("source", source), ("truth", truth)):
            if name in needs and name not in found and pictures is not None:
                found[name] = judge.features(pictures)
    if networks.identity is not None and "identity" in needs and source is not None:
        found["identity"] = metrics.identity_similarity(
            networks.identity.embed(source), networks.identity.embed(target)
        )
    if networks.edges is not None and "edges" in needs and source is not None:
        found["edges"] = metrics.structural_consistency(
            networks.edges.edges(source).cpu(), networks.edges.edges(target).cpu()
        )
    if networks.perceptual is not None and "perceptual" in needs and truth is not None:
        vectors = [_vectors(networks.perceptual, each) for each in (target, truth)]
        found["perceptual"] = (vectors[0] - vectors[1]).square().sum(dim=1)
    if networks.reader is not None and "people" in needs:
        shown = {"target read": target} | ({"truth read": truth} if truth is not None else {})
        found |= {name: networks.reader.read(pictures) for name, pictures in shown.items()}
    if "pixels" in needs and truth is not None:
        found["pixels"] = metrics.pixel_distances(target.cpu(), truth.cpu())
    return found


def _described(name: str, sight: Sight) -> dict[str, Tensor]:
    """A sight as rows: features, probabilities of each question, and the Gaussian of the early map's
    positions."""
    gaussians = metrics.position_gaussians(sight.early.cpu())
    rows = {
        f"{name} features": sight.features,
        f"{name} mean": gaussians.mean,
        f"{name} covariance": gaussians.covariance,
    }
    return rows | {f"{name} classes {number}": each for number, each in enumerate(sight.classes)}


def _vectors(network: SeesDetail, pictures: Tensor) -> Tensor:
    return metrics.perceptual_vectors(network.maps(pictures), network.weights)


@torch.no_grad()
def perceptual_matrix(
    network: SeesDetail,
    first: PictureSet,
    second: PictureSet | None,
    batch: int,
    device: str | torch.device,
    progress: Progress,
) -> Tensor:
    """Perceptual distances of every picture of one set to every one of another, or of the same one; float64.

    Pictures are seen in blocks, again for every block they meet, so that memory stays bounded at any size.
    """
    other = first if second is None else second

    def vectors(pictures: PictureSet, rows: range) -> Tensor:
        steps = range(rows.start, rows.stop, batch)
        parts = [pictures.part(slice(start, min(start + batch, rows.stop))).to(device) for start in steps]
        return torch.cat([_vectors(network, part).cpu() for part in parts])

    width = vectors(first, range(0, 1)).shape[1]
    block = max(batch, BLOCK // width)
    ranges = [
        [range(at, min(at + block, len(each))) for at in range(0, len(each), block)]
        for each in (first, other)
    ]
    matrix, done = torch.zeros(len(first), len(other), dtype=torch.float64), 0
    for rows in ranges[0]:
        ours = vectors(first, rows)
        for columns in ranges[1]:
            if second is None and columns.start < rows.start:
                continue
            theirs = ours if second is None and columns == rows else vectors(other, columns)
            found = metrics.squared_distances(ours, theirs)
            matrix[rows.start : rows.stop, columns.start : columns.stop] = found
            if second is None:
                matrix[columns.start : columns.stop, rows.start : rows.stop] = found.T
        done = rows.stop
        progress("comparing pairs", done, len(first))
    return matrix.fill_diagonal_(0) if second is None else matrix


def _read(subject: Subject, networks: Networks, needs: set[str], seen: Seen) -> Seen:
    """What is said in words: the labels, whether pictures are recognised, and the attributes of the built-in
    world."""
    found: Seen = {}
    if "people" in needs and subject.people:
        found["attributes"], found["by words"] = _kept(subject, networks, seen), networks.reader is None
    if networks.judge is None:
        return found
    clip, labels, truth = networks.judge.clip, subject.labels, subject.sets.get("truth")
    if "label" in needs and labels:
        found["label"] = normalize(template_features(clip, labels[1]).mean(dim=0, keepdim=True)).cpu()
    if "change" in needs and labels:
        found["change"] = text_direction(clip, *labels).cpu()
    if {"target", "truth"} <= needs and isinstance(truth, Rendered):
        found["recognised"] = metrics.recognised(clip, seen["target"], truth.domain, DOMAINS)
    return found


def _kept(subject: Subject, networks: Networks, seen: Seen) -> dict[str, tuple[float, float | None]]:
    """Attribute -> share of people whose attribute is read from their picture, and from their true picture
    where it is known."""
    assert subject.seeds is not None
    scene = sample_scene(z_from_seeds(subject.seeds, LATENT_DIM))

    def shares(which: str) -> dict[str, float]:
        if networks.reader is not None:
            read = dict(zip(CHOICES, seen[f"{which} read"].unbind(dim=1), strict=True))
            return {name: metrics.share_right(read[name], scene.choice[name]) for name in CHOICES}
        assert networks.judge is not None
        label = subject.labels[1] if subject.labels else "photo"
        return read_attributes(networks.judge.clip, seen[which], scene, domain_of(label) or label)

    made, true = shares("target"), shares("truth") if "truth" in subject.sets else {}
    return {name: (made[name], true.get(name)) for name in CHOICES}


def read_attributes(clip: ClipModel, images: Tensor, scene: Scene, label: str = "photo") -> dict[str, float]:
    """How often a CLIP of the built-in world reads each attribute of people right, from its features BE of
    their pictures."""
    texts = attribute_features(clip, label)
    return {name: metrics.attribute_accuracy(images, texts[name], scene.choice[name]) for name in CHOICES}
