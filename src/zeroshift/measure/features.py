"""What networks find in sets of pictures: features, maps and distances, collected in one pass, as tensors
that the equations of `metrics` take.

Metrics say which features they need by name; `REQUIREMENTS` says what each of these needs in turn. So no
network runs and no set is drawn for a metric that was not asked for, and none twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zeroshift.clip.features import target_direction, target_feature
from zeroshift.clip.model import ClipModel
from zeroshift.config.targets import spoken_target
from zeroshift.measure import metrics
from zeroshift.measure.networks import NetworkOutput, Networks, PerceptualNetwork, attribute_features
from zeroshift.measure.picture_sets import EvalInputs, PictureSet, TruePictures
from zeroshift.shapes import Feature
from zeroshift.worlds.world import World

BLOCK = 1 << 26
"""Numbers of perceptual vectors held at a time."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


class FeatureStore(dict[str, Any]):
    """What was found, by name: tensors on the CPU, one row per picture, and numbers that several metrics
    share. Names are those of `REQUIREMENTS`, or begin with one of them ("made mean", "truth read hat")."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under a name, made at the first call."""
        if name not in self:
            self[name] = make()
        return self[name]


class Requirement(NamedTuple):
    """What must be there to find something in the target's pictures."""

    role: str
    """Role of the network that finds it; empty where none has to."""
    inputs: tuple[str, ...] = ()
    """Sets of pictures (source, truth, reference, shots) and facts (labels, change, latents, oracle) beside
    the target's pictures, as `EvalInputs.known` names them."""


REQUIREMENTS: dict[str, Requirement] = {
    "target": Requirement("judge"),
    "source": Requirement("judge", ("source",)),
    "truth": Requirement("judge", ("truth",)),
    "label": Requirement("judge", ("labels",)),
    "change": Requirement("judge", ("change",)),
    "made": Requirement("features"),
    "real": Requirement("features", ("reference",)),
    "edges": Requirement("edges", ("source",)),
    "identity": Requirement("identity", ("source",)),
    "matrix": Requirement("perceptual"),
    "shots": Requirement("perceptual", ("shots",)),
    "reference shots": Requirement("perceptual", ("reference", "shots")),
    "perceptual": Requirement("perceptual", ("truth",)),
    "pixels": Requirement("", ("truth",)),
    "source pixels": Requirement("", ("source", "truth")),
    "oracle": Requirement("", ("oracle",)),
    "detail": Requirement("", ("truth",)),
    "attributes": Requirement("reader", ("latents",)),
    "true attributes": Requirement("reader", ("latents", "truth")),
}
"""What can be found -> what that requires.

target, source, truth: the judge's features. label: of the target label; change: direction from the source
label to it. made, real: features, classes and early maps of the target's pictures and of the reference's.
edges, identity: agreement of each pair of source and target. matrix, shots: perceptual distances among the
target's pictures, and to the few-shot ones; reference shots: of the reference's pictures to these.
perceptual, pixels: distances of each picture to its true one; source pixels: of the source's picture. oracle:
share of the source's distance that training on the truth leaves. detail: energies of 1-px detail. attributes:
shares that are read right, and where the truth is known, on the true pictures too.
"""


def role_of(need: str, networks: Networks) -> str:
    """Role of the network that finds something. Where no reader knows the target's domain, the judge is asked
    for attributes in words."""
    role = REQUIREMENTS[need].role
    return "judge" if role == "reader" and networks.reader is None else role


@torch.no_grad()
def extract_features(
    inputs: EvalInputs,
    networks: Networks,
    needs: set[str],
    batch: int,
    device: str | torch.device,
    progress: Progress,
) -> FeatureStore:
    """Everything that `needs` names (keys of `REQUIREMENTS`), in one pass over target, source and truth, and
    one over each other set. `batch` pictures are looked at together."""
    sets = inputs.sets
    if "true attributes" in needs or "attributes" in needs:
        needs = needs | {"attributes"} | ({"target", "truth"} if networks.reader is None else set())
    wanted = {name for need in needs for name in REQUIREMENTS[need].inputs}
    wanted |= {"truth"} if "attributes" in needs else set()
    paired = [name for name in ("source", "truth") if name in wanted and name in sets]
    real = sets["reference"] if "real" in needs else None
    count = len(inputs.target)
    total = max(count, len(real) if real else 0)
    rows_of: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, total, batch):
        rows = slice(start, start + batch)
        pairs: dict[str, Tensor] = {}
        if start < count:
            pairs = {name: sets[name].part(rows).to(device) for name in paired}
            target = inputs.target.part(rows).to(device)
            for name, value in _batch_features(networks, needs, target, pairs).items():
                rows_of[name].append(value.cpu())
        if real is not None and start < len(real):
            # The reference is often the truth itself, which need not be made twice.
            shared = pairs.get("truth") if real is sets.get("truth") else None
            pictures = real.part(rows).to(device) if shared is None else shared
            assert networks.features is not None
            for name, value in _output_rows("real", networks.features.encode(pictures)).items():
                rows_of[name].append(value.cpu())
        progress("looking at pictures", min(start + batch, total), total)
    store = FeatureStore({name: torch.cat(values) for name, values in rows_of.items()})
    if networks.perceptual is not None:
        compared = {
            "matrix": (inputs.target, None),
            "shots": (inputs.target, sets.get("shots")),
            "reference shots": (sets.get("reference", inputs.target), sets.get("shots")),
        }
        for name, (first, second) in compared.items():
            if name in needs:
                store[name] = perceptual_matrix(networks.perceptual, first, second, batch, device, progress)
    if "oracle" in needs:
        store["oracle"] = inputs.oracle
    _add_attributes(store, inputs, networks, needs)
    _add_words(store, inputs, networks, needs)
    return store


def _batch_features(
    networks: Networks, needs: set[str], target: Tensor, pairs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is found in one batch of pictures, and in the source's and the true ones that pair with them."""
    found: dict[str, Tensor] = {}
    judge = networks.judge
    features = networks.features
    source, truth = pairs.get("source"), pairs.get("truth")
    if features is not None and "made" in needs:
        output = features.encode(target)
        found |= _output_rows("made", output)
        if features is judge:
            found["target"] = output.features
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
        ours, theirs = (_vectors(networks.perceptual, each) for each in (target, truth))
        found["perceptual"] = (ours - theirs).square().sum(dim=1)
    if networks.reader is not None and "attributes" in needs:
        for which, pictures in (("target", target), ("truth", truth)):
            if pictures is not None:
                read = networks.reader.read(pictures)
                found |= {f"{which} read {name}": choices for name, choices in read.items()}
    return found | _pixel_rows(needs, target.cpu(), {name: each.cpu() for name, each in pairs.items()})


def _pixel_rows(needs: set[str], target: Tensor, pairs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is found in the pixels of one batch, without a network: distances to the truth, and energies of
    detail."""
    found: dict[str, Tensor] = {}
    truth = pairs.get("truth")
    if truth is None:
        return found
    if "pixels" in needs:
        found["pixels"] = metrics.pixel_distances(target, truth)
    if "source pixels" in needs:
        found["source pixels"] = metrics.pixel_distances(pairs["source"], truth)
    if "detail" in needs:
        for which, pictures in (("made", target), ("true", truth)):
            found[f"detail {which} grain"] = metrics.grain(pictures)
            found[f"detail {which} raster"] = metrics.raster(pictures)
    return found


def _output_rows(name: str, output: NetworkOutput) -> dict[str, Tensor]:
    """Rows of one batch: features, probabilities of each question, and the Gaussian of the early map's
    positions."""
    gaussians = metrics.position_gaussians(output.early_map.cpu())
    rows = {
        f"{name} features": output.features,
        f"{name} mean": gaussians.mean,
        f"{name} covariance": gaussians.covariance,
    }
    return rows | {f"{name} classes {number}": each for number, each in enumerate(output.classes)}


def _vectors(network: PerceptualNetwork, pictures: Tensor) -> Tensor:
    return metrics.perceptual_vectors(network.maps(pictures), network.weights)


@torch.no_grad()
def perceptual_matrix(
    network: PerceptualNetwork,
    first: PictureSet,
    second: PictureSet | None,
    batch: int,
    device: str | torch.device,
    progress: Progress,
) -> Tensor:
    """Perceptual distances BN, in float64, of every picture of one set to every one of another, or of the
    same one where `second` is None.

    Pictures are looked at in blocks, again for every block they meet, so that memory stays bounded at any
    size.
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
    matrix = torch.zeros(len(first), len(other), dtype=torch.float64)
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
        progress("comparing pairs", rows.stop, len(first))
    return matrix.fill_diagonal_(0) if second is None else matrix


def _add_words(store: FeatureStore, inputs: EvalInputs, networks: Networks, needs: set[str]) -> None:
    """Adds what the judge makes of words: features of the labels, and which pictures it recognises."""
    if networks.judge is None:
        return
    clip = networks.judge.clip
    labels = inputs.labels
    truth = inputs.sets.get("truth")
    if "label" in needs and labels:
        store["label"] = target_feature(clip, labels[1]).cpu()
    if "change" in needs and labels:
        store["change"] = target_direction(clip, *labels).cpu()
    if {"target", "truth"} <= needs and isinstance(truth, TruePictures):
        store["recognised"] = metrics.recognised(clip, store["target"], truth.domain, truth.world.domains)


def _add_attributes(store: FeatureStore, inputs: EvalInputs, networks: Networks, needs: set[str]) -> None:
    """Adds, per attribute of the world, the share of pictures from which it is read as the latent has it, and
    the same share of the true pictures (None where they are not known)."""
    if "attributes" not in needs or not inputs.latents_known:
        return
    world = inputs.world
    seeds = inputs.seeds
    assert world is not None and seeds is not None
    wanted = world.attributes(world.latents(seeds))

    def shares(which: str) -> dict[str, float]:
        if networks.reader is not None:
            return {
                name: metrics.share_right(store[f"{which} read {name}"], wanted[name])
                for name in world.choices
            }
        assert networks.judge is not None
        label = inputs.labels[1] if inputs.labels else world.source
        return read_attributes(
            networks.judge.clip, store[which], world, wanted, world.domain_of(label) or spoken_target(label)
        )

    made = shares("target")
    true = shares("truth") if "truth" in inputs.sets else {}
    store["attributes"] = {name: (made[name], true.get(name)) for name in world.choices}
    store["by words"] = networks.reader is None


def read_attributes(
    clip: ClipModel, images: Feature, world: World, wanted: Mapping[str, Tensor], label: str | None = None
) -> dict[str, float]:
    """Attribute -> share of pictures from whose features BE a CLIP reads it right by the world's prompts.
    `wanted` is what the pictures should show, as `World.attributes` gives it, and `label` says what they are
    (None: the world's source)."""
    texts = attribute_features(clip, world, label or world.source)
    return {name: metrics.attribute_accuracy(images, texts[name], wanted[name]) for name in world.choices}
