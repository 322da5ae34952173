"""Trainings of the built-in CLIPs that learn from captions and clean pictures alone: a plain one that can
guide, as CLIPs in the wild are, and one that only judges. What they share with the guides of `guides.py`.

Every batch shows people twice, once as a photo and once in a domain, so three things are taught at once:
names of domains and attributes from text prompts, captions, and (the judge) the direction from the photo to
the domain picture of the same person.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel, Vision, build_dual_encoder, own_randomness
from zeroshift.clip.text import PORTRAITS, WordTokenizer
from zeroshift.portraits import captions
from zeroshift.portraits.scene import CHOICES, Scene, sample_scene
from zeroshift.portraits.shading import DOMAINS
from zeroshift.pretrain import dataset
from zeroshift.pretrain.resumable import run_resumably, warmup_cosine

CLASSES = (*DOMAINS, captions.DISTORTED)
ATTRIBUTES = tuple(CHOICES)
EMPHASIS = {"hair": 3.0, "beard": 2.0}  # a bun or a mustache covers few pixels and is learnt last


@dataclass(frozen=True)
class ClipRecipe:
    """How one built-in CLIP is made; pictures seen = 2 * people * steps."""

    vision: Vision
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    activation: str
    seed: int
    steps: int
    people: int = 40
    attack: float = 0.0  # of guides: largest L2 radius, pictures in [-1, 1]
    peak_lr: float = 2e-3
    attribute_weight: float = 1.5  # of the attributes against the domains
    # Not of guides: weight of the loss that makes every photo-to-domain direction that of the labels, and
    # share of the captions that name the domain after the attributes.
    direction: float = 0.5
    label_last: float = 0.0


RECIPES = {
    "clip-plain": ClipRecipe(
        "resnet", (40, 80, 160), (2, 2, 2), "silu", 4, steps=1600, direction=0.0, label_last=0.5
    ),
    "judge": ClipRecipe("convnext", (48, 96, 192), (1, 2, 2), "gelu", 3, steps=2200, attribute_weight=4.0),
}


def build(recipe: ClipRecipe) -> ClipModel:
    """The untrained CLIP of a recipe, with the vocabulary of the captions."""
    tokenizer = WordTokenizer(captions.vocabulary())
    model = build_dual_encoder(
        tokenizer.vocab_size,
        vision=recipe.vision,
        widths=recipe.widths,
        depths=recipe.depths,
        activation=recipe.activation,
        text_width=96,
        text_layers=2,
        text_heads=4,
        context_length=56,
        embed_dim=128,
        resolution=dataset.SIZE,
        seed=recipe.seed,
    )
    return ClipModel(
        model,
        tokenizer,
        resolution=dataset.SIZE,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        templates=PORTRAITS,
        context=captions.CONTEXT,
        frozen=False,
    )


@dataclass
class Batch:
    """Pictures (2n, 3, 64, 64): n photos, then the same people in a domain."""

    pictures: Tensor
    labels: Tensor  # (2n,) index into CLASSES
    attributes: dict[str, Tensor]  # (2n,)
    scene: Scene


def draw_batch(people: dataset.People, n: int, seed: int, step: int) -> Batch:
    """The batch of a step."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(people.domains), (n,), generator=draw)
    domain = torch.randint(len(DOMAINS) - 1, (n,), generator=draw)
    photo = dataset.to_float(people.photo[rows])
    second = dataset.to_float(people.domains[rows, domain])
    second = _as_shipped(people, rows, photo, second, draw)
    shift = torch.randint(-2, 3, (2,), generator=draw).tolist()
    pictures = torch.cat([photo, second]).roll(shift, (2, 3)) + 0.03 * torch.randn(
        2 * n, 3, 64, 64, generator=draw
    )
    scene = sample_scene(people.z[rows])
    attributes = {a: scene.choice[a].repeat(2) for a in ATTRIBUTES}
    return Batch(pictures, torch.cat([torch.zeros_like(domain), domain + 1]), attributes, scene)


def _as_shipped(
    people: dataset.People, rows: Tensor, photo: Tensor, second: Tensor, draw: torch.Generator
) -> Tensor:
    """The second pictures with the rounding, and after the draws, that the shipped weights were made with:
    then blends and distortions were drawn for every CLIP, and these CLIPs were shown none."""
    n = len(rows)
    torch.rand(n, generator=draw)
    between = torch.rand(n, generator=draw) < 0.25
    other = torch.randint(len(DOMAINS) - 1, (n,), generator=draw)
    base = torch.where(between[:, None, None, None], dataset.to_float(people.domains[rows, other]), photo)
    torch.rand(8 * n, generator=draw)
    torch.randn(n, 3, 8, 8, generator=draw)
    torch.rand(n, generator=draw)
    torch.randn(n, 3, 64, 64, generator=draw)
    torch.rand(2 * n, generator=draw)
    return base + (second - base)


class Student(nn.Module):
    """A ClipModel with auxiliary heads on its pooled features, which teach attributes faster than text
    alone."""

    def __init__(self, clip: ClipModel, width: int) -> None:
        super().__init__()
        self.clip = clip
        with own_randomness(0):
            self.heads = nn.Linear(width, len(CLASSES) + sum(len(c) for c, _ in CHOICES.values()))

    def pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) and head logits of pictures in [-1, 1] (the tower's own range here)."""
        model: Any = self.clip.model
        with torch.autocast("cpu", torch.bfloat16):
            pooled = model.vision_model(
                pixel_values=pictures.contiguous(memory_format=torch.channels_last)
            ).pooler_output.flatten(1)
        pooled = pooled.float()
        return F.normalize(model.visual_projection(pooled), dim=1), self.heads(pooled)

    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings (B, E) of texts."""
        with torch.autocast("cpu", torch.bfloat16):
            features = self.clip.encode_text(texts)
        return F.normalize(features.float(), dim=1)


def _sentences(rng: random.Random, batch: Batch, n: int, label_last: float) -> tuple[list[str], list[int]]:
    """All sentences of a step: one per class, one per attribute choice, n captions; and which pictures the
    captions describe."""
    texts = captions.label_prompts(CLASSES, rng)
    for attribute in ATTRIBUTES:
        prefix = rng.choice(
            (
                "a photo of a person",
                "a person",
                "a picture of a person",
                f"a {rng.choice(DOMAINS)} of a person",
            )
        )
        texts += [
            f"{prefix} {rng.choice(captions.PHRASES[attribute][choice])}" for choice in CHOICES[attribute][0]
        ]
    described = []
    for i in range(n):
        second = rng.random() < 0.5
        described.append(i + n * second)
        domain = DOMAINS[int(batch.labels[described[-1]])]
        last = label_last > 0 and rng.random() < label_last
        texts.append(captions.full_caption(batch.scene, i, domain, rng, form="last" if last else "first"))
    return texts, described


def _naming_loss(logits: Tensor, batch: Batch, attribute_weight: float) -> Tensor:
    """Cross-entropy over classes plus the mean cross-entropy of the attributes: logits (2n, classes +
    choices)."""
    loss = F.cross_entropy(logits[:, : len(CLASSES)], batch.labels)
    start = len(CLASSES)
    total = torch.zeros(())
    for attribute in ATTRIBUTES:
        width = len(CHOICES[attribute][0])
        each = F.cross_entropy(logits[:, start : start + width], batch.attributes[attribute])
        total = total + EMPHASIS.get(attribute, 1.0) * each
        start += width
    return loss + attribute_weight * total / len(ATTRIBUTES)


def _caption_loss(logits: Tensor) -> Tensor:
    """Cross-entropies of pictures BB with captions, both ways, pairs on the diagonal."""
    truth = torch.arange(len(logits))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def train(name: str, data: Path, work: Path, shards: int = 8) -> tuple[ClipModel, float]:
    """Trains one CLIP, or continues; returns it frozen in evaluation mode with the seconds spent."""
    recipe = RECIPES[name]
    people = dataset.load(data, shards, shards)
    clip = build(recipe)
    student = Student(clip, recipe.widths[-1])
    with torch.no_grad():
        clip.model.logit_scale.fill_(2.66)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=recipe.peak_lr, weight_decay=0.02, betas=(0.9, 0.98)
    )

    def step(number: int) -> dict:
        rng = random.Random(recipe.seed * 7919 + number)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(number, recipe.steps, recipe.peak_lr)
        batch = draw_batch(people, recipe.people, recipe.seed, number)
        sentences, described = _sentences(rng, batch, recipe.people, recipe.label_last)
        text = student.texts(sentences)
        named = len(CLASSES) + sum(len(c) for c, _ in CHOICES.values())
        image, heads = student.pictures(batch.pictures)
        scale = clip.model.logit_scale.clamp(max=4.6).exp()
        naming = _naming_loss(scale * image @ text[:named].T, batch, recipe.attribute_weight)
        caption = _caption_loss(scale * image[described] @ text[named:].T)
        moved = F.normalize(image[recipe.people :] - image[: recipe.people], dim=1, eps=0.05)
        wanted = F.normalize(text[batch.labels[recipe.people :]] - text[:1], dim=1, eps=0.05)
        direction = (1 - (moved * wanted).sum(1)).mean()
        loss = (
            naming
            + 0.5 * _naming_loss(heads, batch, recipe.attribute_weight)
            + caption
            + recipe.direction * direction
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        accuracy = (heads[:, : len(CLASSES)].argmax(1) == batch.labels).float().mean()
        terms = {"naming": naming, "caption": caption, "direction": direction}
        return {**terms, "scale": scale, "domain_accuracy": accuracy}

    student.train()
    seconds = run_resumably(name, work, recipe.steps, {"student": student, "optimizer": optimizer}, step)
    with torch.no_grad():
        clip.model.logit_scale.clamp_(max=4.6)
    clip.frozen = True
    clip.requires_grad_(False)
    return clip.eval(), seconds


@torch.no_grad()
def measure(clip: ClipModel, photos: Tensor, domains: Tensor, z: Tensor) -> dict:
    """Quality on people never trained on: photos (n, 3, 64, 64), domains (n, D, 3, 64, 64) uint8, latents z
    (n, Z)."""
    scene = sample_scene(z)
    rng = random.Random(5)

    def unit(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def seen(pictures: Tensor) -> Tensor:
        return torch.cat([unit(clip.encode_image(dataset.to_float(part))) for part in pictures.split(64)])

    image = seen(photos)
    names = unit(torch.stack([unit(clip.encode_text(clip.templates.sentences(d))).mean(0) for d in DOMAINS]))
    style = {"photo": float((image @ names.T).argmax(1).eq(0).float().mean())}
    for i, domain in enumerate(DOMAINS[1:]):
        style[domain] = float((seen(domains[:, i]) @ names.T).argmax(1).eq(i + 1).float().mean())
    attributes = {}
    for attribute in ATTRIBUTES:
        text = unit(clip.encode_text(captions.attribute_prompts(attribute)))
        attributes[attribute] = float((image @ text.T).argmax(1).eq(scene.choice[attribute]).float().mean())
    full = unit(clip.encode_text([captions.full_caption(scene, i, "photo", rng) for i in range(256)]))
    retrieval = float((image[:256] @ full.T).argmax(1).eq(torch.arange(256)).float().mean())
    asked = [attributes[a] for a in ("hair", "glasses", "beard", "hat", "clothes", "background")]
    return {
        "style_accuracy": sum(style.values()) / len(style),
        "attribute_accuracy": sum(asked) / len(asked),
        "retrieval_top1_of_256": retrieval,
        "style_by_domain": style,
        "attributes_from_text": attributes,
        "people": len(z),
        "logit_scale": clip.logit_scale,
    }
