"""Training of the attribute reader: multinomial logistic regression per domain, on renders of that domain
alone.

Its features are those of the identity encoder, so that reader and judge share nothing. Half of the pictures
are worn as generators wear them (`train_identity.worn`): what is to be read are pictures of adapted
generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel
from zeroshift.files.faces import IrSe
from zeroshift.measure.features import read_attributes
from zeroshift.measure.metrics import share_right
from zeroshift.portraits.reader import Heads, Reader, encoder_features, split_choices
from zeroshift.portraits.scene import CHOICES, Scene, sample_scene
from zeroshift.portraits.shading import DOMAINS
from zeroshift.pretrain import dataset
from zeroshift.pretrain.identity import worn
from zeroshift.pretrain.resumable import run_resumably
from zeroshift.worlds.portraits import Portraits


@dataclass(frozen=True)
class ReaderRecipe:
    """What the heads are fitted with."""

    decay: float = 1e-3
    """Of the squared weights, per standard deviation of their features."""
    iterations: int = 120
    """Of L-BFGS, per domain."""
    seed: int = 31


RECIPE = ReaderRecipe()


class Parameters(nn.Module):
    """Weights (D, K, F) and biases (D, K) of all domains, as a training keeps them."""

    weights: Tensor
    biases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        choices = sum(len(each) for each, _ in CHOICES.values())
        self.register_buffer("weights", torch.zeros(len(DOMAINS), choices, width))
        self.register_buffer("biases", torch.zeros(len(DOMAINS), choices))


@torch.no_grad()
def features_of(network: IrSe, pictures: Tensor, draw: torch.Generator | None = None) -> Tensor:
    """Features (n, F) of uint8 pictures; with `draw`, those of every second picture worn."""
    rows = []
    for part in pictures.split(50):
        floats = dataset.to_float(part)
        if draw is not None:
            floats[::2] = worn(floats[::2], draw)
        rows.append(encoder_features(network, floats))
    return torch.cat(rows)


def fit(features: Tensor, scene: Scene, recipe: ReaderRecipe = RECIPE) -> tuple[Tensor, Tensor]:
    """Weights KF and biases K with the least cross-entropy, mean over attributes, plus `decay` on
    standardised weights."""
    mean = features.mean(0)
    scale = features.std(0) + 1e-4
    rows = (features - mean) / scale
    choices = sum(len(each) for each, _ in CHOICES.values())
    weights = torch.zeros(choices, rows.shape[1], requires_grad=True)
    biases = torch.zeros(choices, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights, biases], max_iter=recipe.iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        said = split_choices(rows @ weights.T + biases)
        total = torch.stack([F.cross_entropy(said[name], scene.choice[name]) for name in CHOICES]).mean()
        total = total + recipe.decay * weights.square().sum() / len(CHOICES)
        total.backward()
        return total

    solver.step(loss)
    folded = weights.detach() / scale
    return folded, biases.detach() - folded @ mean


def train(
    network: IrSe, data: Path, work: Path, shards: int = 8, recipe: ReaderRecipe = RECIPE
) -> tuple[Heads, float]:
    """Fits the heads of every domain, or continues; returns them with the seconds spent."""
    people = dataset.load(data, shards, shards)
    scene = sample_scene(people.z[: len(people.domains)])
    width = encoder_features(network, torch.zeros(1, 3, dataset.SIZE, dataset.SIZE)).shape[1]
    kept = Parameters(width)

    def step(number: int) -> dict:
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        pictures = people.domains[:, number - 1] if number else people.photo[: len(people.domains)]
        features = features_of(network, pictures, draw)
        kept.weights[number], kept.biases[number] = fit(features, scene, recipe)
        heads = {DOMAINS[number]: (kept.weights[number], kept.biases[number])}
        read = Reader(network, heads).read(features, DOMAINS[number])
        return {
            "accuracy": sum(share_right(read[name], scene.choice[name]) for name in CHOICES) / len(CHOICES)
        }

    seconds = run_resumably("reader", work, len(DOMAINS), {"heads": kept}, step)
    return {domain: (kept.weights[i], kept.biases[i]) for i, domain in enumerate(DOMAINS)}, seconds


@torch.no_grad()
def measure(reader: Reader, judge: ClipModel, pictures: Mapping[str, Tensor], z: Tensor) -> dict:
    """How often every attribute is read right on uint8 pictures of each domain of people z, beside chance and
    judge."""
    scene = sample_scene(z)
    right = {}
    words = {}
    for domain, shown in pictures.items():
        read = reader.read(features_of(reader.network, shown), domain)
        right[domain] = {name: share_right(read[name], scene.choice[name]) for name in CHOICES}
        seen = torch.cat([judge.encode_image(dataset.to_float(part)) for part in shown.split(64)])
        words[domain] = _mean(read_attributes(judge, seen, Portraits(), scene.choice, domain))
    common = {name: float(scene.choice[name].bincount().max()) / len(z) for name in CHOICES}
    return {
        "right_by_domain": right,
        "share_of_the_commonest_choice": common,
        "mean_by_domain": {domain: _mean(shares) for domain, shares in right.items()},
        "mean_by_words_of_the_judge": words,
        "people": len(z),
    }


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)
