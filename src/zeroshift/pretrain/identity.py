"""Training of the identity encoder: who a picture shows, whatever the domain.

Two pictures of one person, each in a domain of its own and worn as generators wear them, are to find each
other among all pictures of the batch (NT-Xent, Chen et al., ICML 2020); heads that read the person's
attributes make the start shorter. The encoder judges and never guides, so that it sees every domain, the
held-out ones too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.files.faces import IrSe, IrSeConfig
from zeroshift.portraits.scene import CHOICES, SLIDERS, Scene, cast, sample_scene
from zeroshift.portraits.shading import DOMAINS, shade
from zeroshift.pretrain import dataset
from zeroshift.pretrain.resumable import run_resumably, warmup_cosine


@dataclass(frozen=True)
class IdentityRecipe:
    """What one training consists of. A step shows `people` people twice."""

    network: IrSeConfig = IrSeConfig(
        (24, 48, 96, 160), (1, 1, 2, 1), first=12, squeeze=8, embed_dim=128, size=dataset.SIZE
    )
    people: int = 80
    pairs: int = 4
    """Pairs of domains in a step: people who share one are each other's hardest negatives."""
    steps: int = 700
    peak_lr: float = 3e-3
    temperature: float = 0.08
    attribute_weight: float = 0.5
    dropout: float = 0.1
    seed: int = 21


RECIPE = IdentityRecipe()


class Student(nn.Module):
    """The encoder with heads that read choices and sliders off its features."""

    def __init__(self, recipe: IdentityRecipe) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # layers draw their first weights from the global generator
            self.network = IrSe(recipe.network, crop=False)
            self.heads = nn.Linear(
                recipe.network.embed_dim, sum(len(c) for c, _ in CHOICES.values()) + len(SLIDERS)
            )
        dropout = self.network.output_layer[1]
        assert isinstance(dropout, nn.Dropout)
        dropout.p = recipe.dropout

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, E), not yet of unit length, and what the heads say of them."""
        net = self.network
        with torch.autocast("cpu", torch.bfloat16):
            sized = F.adaptive_avg_pool2d(pictures, net.config.size).contiguous(
                memory_format=torch.channels_last
            )
            features = net.output_layer(net.body(net.input_layer(sized)))
        return features.float(), self.heads(features.float())


def draw_batch(people: dataset.People, recipe: IdentityRecipe, step: int) -> tuple[Tensor, Scene]:
    """Pictures (2n, 3, 64, 64) of a step, row i and row n + i of one person in two domains, and the n
    people."""
    draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    n = recipe.people
    rows = torch.randperm(len(people.domains), generator=draw)[:n]
    couples = torch.stack([torch.randperm(len(DOMAINS), generator=draw)[:2] for _ in range(recipe.pairs)])
    couples[::2, 0] = torch.where(
        (couples[::2] == 0).any(1), couples[::2, 0], 0
    )  # photos are what is compared most
    domains = couples[torch.arange(n) % recipe.pairs]
    photo = dataset.to_float(people.photo[rows])
    views = []
    for which in domains.T:
        true = dataset.to_float(people.domains[rows, (which - 1).clamp_min(0)])
        true = torch.where((which == 0)[:, None, None, None], photo, true)
        # An unfinished adaptation lies between photo and domain, a pushed one beyond.
        share = torch.where(
            torch.rand(n, generator=draw) < 0.3, 0.6 + 0.7 * torch.rand(n, generator=draw), torch.ones(())
        )
        views.append(photo + share[:, None, None, None] * (true - photo))
    return worn(torch.cat(views), draw), sample_scene(people.z[rows])


def worn(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures as an adapted generator draws them: moved a little, softer, stained, off in colour, noisy."""
    n = len(pictures)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    def some(probability: float) -> Tensor:
        return (rand(n, 1, 1, 1) < probability).float()

    moves = torch.eye(2, 3).repeat(n, 1, 1)
    moves[:, :, 2] = (rand(n, 2) - 0.5) * 0.12  # up to 2 of 64 px
    moves[:, :, :2] *= 1 + (rand(n, 1, 1) - 0.5) * 0.1
    grid = F.affine_grid(moves, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    moved = torch.where(some(0.6) > 0, moved, pictures)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    worn = moved + some(0.5) * rand(n, 1, 1, 1) * (soft - moved)
    stains = F.interpolate(torch.randn(n, 3, 8, 8, generator=draw), size=pictures.shape[-2:], mode="bilinear")
    worn = worn + some(0.4) * 0.15 * rand(n, 1, 1, 1) * stains
    worn = worn * (1 + 0.2 * (rand(n, 3, 1, 1) - 0.5)) + 0.16 * (rand(n, 3, 1, 1) - 0.5)
    return (worn + some(0.7) * 0.08 * rand(n, 1, 1, 1) * torch.randn(worn.shape, generator=draw)).clamp(-1, 1)


def contrast(features: Tensor, temperature: float) -> Tensor:
    """NT-Xent of features (2n, E): row i and row n + i are one person, all others are others."""
    unit = F.normalize(features, dim=1)
    logits = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(unit)).roll(len(unit) // 2)
    return F.cross_entropy(logits, partner)


def _reading_loss(said: Tensor, scene: Scene) -> Tensor:
    """Mean cross-entropy over choices plus mean squared error of the sliders, in units of their variance."""
    start = 0
    total = torch.zeros(())
    for name, (choices, _) in CHOICES.items():
        total = total + F.cross_entropy(said[:, start : start + len(choices)], scene.choice[name].repeat(2))
        start += len(choices)
    sliders = torch.stack([scene.slider[name].repeat(2) for name in SLIDERS], 1)
    return total / len(CHOICES) + 12 * (said[:, start:] + 0.5 - sliders).square().mean()


def train(data: Path, work: Path, shards: int = 8, recipe: IdentityRecipe = RECIPE) -> tuple[IrSe, float]:
    """Trains the encoder, or continues; returns it frozen in evaluation mode with the seconds spent."""
    people = dataset.load(data, shards, shards)
    student = Student(recipe)
    student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # an overload that torch's types lack
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.peak_lr, weight_decay=0.02)

    def step(number: int) -> dict:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(number, recipe.steps, recipe.peak_lr, min(100, recipe.steps // 5))
        pictures, scene = draw_batch(people, recipe, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed * 9973 + number)  # dropout draws from the global generator
            features, said = student(pictures)
        contrastive = contrast(features, recipe.temperature)
        reading = _reading_loss(said, scene)
        optimizer.zero_grad(set_to_none=True)
        (contrastive + recipe.attribute_weight * reading).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        first, second = F.normalize(features, dim=1).chunk(2)
        found = (first @ second.T).argmax(1) == torch.arange(len(first))
        return {"contrast": contrastive, "reading": reading, "found": found.float().mean()}

    student.train()
    seconds = run_resumably(
        "identity", work, recipe.steps, {"student": student, "optimizer": optimizer}, step
    )
    return student.network.eval().requires_grad_(False), seconds


@torch.no_grad()
def measure(network: IrSe, photos: Tensor, others: Mapping[str, Tensor]) -> dict:
    """How people are found again by their photos, in sets of uint8 pictures (n, 3, 64, 64) of the same people
    in the same order.

    Per set: share of photos whose nearest picture is of the same person, mean cosine of one person, and of
    two people.
    """

    def seen(pictures: Tensor) -> Tensor:
        return torch.cat([network.embed(dataset.to_float(part)) for part in pictures.split(64)])

    known = seen(photos)
    rows = {}
    for name, pictures in others.items():
        cosines = known @ seen(pictures).T
        same = cosines.diagonal()
        people = len(cosines)
        rows[name] = {
            "rank_1": float((cosines.argmax(1) == torch.arange(people)).float().mean()),
            "cosine_same": float(same.mean()),
            "cosine_different": float((cosines.sum() - same.sum()) / (people * (people - 1))),
        }
    return rows


@torch.no_grad()
def measure_changes(network: IrSe, z: Tensor) -> dict[str, float]:
    """What the encoder goes by: mean cosine of photos of people with those of the same people after one
    change.

    Of an attribute to its next choice, of a slider by half its range. 1 is an attribute that the encoder does
    not see.
    """
    people = sample_scene(z)

    def seen(scene: Scene) -> Tensor:
        parts = [scene.subset(slice(at, at + 16)) for at in range(0, len(scene), 16)]
        return torch.cat(
            [network.embed(shade(cast(part, 2 * dataset.SIZE), "photo", dataset.SIZE)) for part in parts]
        )

    known = seen(people)
    found = {}
    for name, (choices, _) in CHOICES.items():
        other = people.choice | {name: (people.choice[name] + 1) % len(choices)}
        found[name] = float((known * seen(Scene(other, people.slider))).sum(1).mean())
    for name in SLIDERS:
        other = people.slider | {name: (people.slider[name] + 0.5) % 1}
        found[name] = float((known * seen(Scene(people.choice, other))).sum(1).mean())
    return found
