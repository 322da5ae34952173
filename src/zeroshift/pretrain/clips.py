"""Trainings of the built-in CLIPs: two robust ones that guide, a plain one that can, and one that only
judges.

Every batch shows people twice, once as a photo and once in a domain, so three things are taught at once:
names of domains and attributes from text prompts, captions, and the direction from the photo to the domain
picture of the same person. A robust CLIP also sees pictures after a one-step L2 attack, blends of domains
with soft labels, and pictures pushed past a domain or distorted, which have a label of their own: otherwise
gradients find changes that nobody can see.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel, Vision, build_dual_encoder
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
    attack: float = 0.0  # largest L2 radius, pictures in [-1, 1]
    peak_lr: float = 2e-3
    attribute_weight: float = 1.5  # of the attributes against the domains
    direction: float = 0.5  # weight of the loss that makes every photo-to-domain direction that of the labels
    label_last: float = 0.0  # share of the captions that name the domain after the attributes


RECIPES = {
    "clip-a": ClipRecipe("resnet", (40, 80, 160), (2, 2, 2), "silu", 1, steps=1600, attack=3.0),
    "clip-b": ClipRecipe("resnet", (32, 64, 128, 192), (1, 2, 2, 1), "gelu", 2, steps=1600, attack=3.0),
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
    """Pictures (2n, 3, 64, 64): n photos, then the same people elsewhere; labels are soft over CLASSES."""

    pictures: Tensor
    labels: Tensor  # (2n, classes)
    attributes: dict[str, Tensor]  # (2n,)
    readable: Tensor  # (2n,) 1 where attributes can be read
    pure: Tensor  # (n,) 1 where the second picture is exactly one domain
    domain: Tensor  # (n,) index into CLASSES of the second picture
    scene: Scene

    def half(self) -> Batch:
        """Every second picture with its labels."""
        attributes = {name: values[::2] for name, values in self.attributes.items()}
        return Batch(
            self.pictures[::2],
            self.labels[::2],
            attributes,
            self.readable[::2],
            self.pure,
            self.domain,
            self.scene,
        )


def _distort(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Wild contrast, colour cast and noise, at random, one row at a time."""
    n = len(pictures)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    gain = torch.where(rand(n, 1, 1, 1) < 0.5, 1.8 + 2.2 * rand(n, 1, 1, 1), 0.08 + 0.3 * rand(n, 1, 1, 1))
    gain = torch.where(rand(n, 1, 1, 1) < 0.35, torch.ones(()), gain)
    cast = (rand(n, 3, 1, 1) - 0.5) * 2.2 * (rand(n, 1, 1, 1) < 0.5)
    grid = (
        F.interpolate(torch.randn(n, 3, 8, 8, generator=draw), size=64, mode="bilinear")
        * 0.7
        * (rand(n, 1, 1, 1) < 0.4)
    )
    fine = (
        torch.randn(n, 3, 64, 64, generator=draw)
        * (0.25 + 0.5 * rand(n, 1, 1, 1))
        * (rand(n, 1, 1, 1) < 0.55)
    )
    return pictures * gain + cast + grid + fine


def draw_batch(people: dataset.People, n: int, seed: int, step: int, hard: bool) -> Batch:
    """The batch of a step; `hard` adds blends, extrapolations and distortions."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(people.domains), (n,), generator=draw)
    domain = torch.randint(len(DOMAINS) - 1, (n,), generator=draw)
    photo = dataset.to_float(people.photo[rows])
    second = dataset.to_float(people.domains[rows, domain])
    kind = torch.rand(n, generator=draw) if hard else torch.zeros(n)
    labels = F.one_hot(domain + 1, len(CLASSES)).float()
    share = torch.rand(n, generator=draw)
    blend = (kind > 0.58) & (kind <= 0.78)
    beyond = (kind > 0.78) & (kind <= 0.9)
    broken = kind > 0.9
    # Between two pictures of a person: photo and domain, or (a quarter of them) two domains.
    other = torch.where(
        torch.rand(n, generator=draw) < 0.25, torch.randint(len(DOMAINS) - 1, (n,), generator=draw), -1
    )
    base = torch.where(
        (other < 0)[:, None, None, None], photo, dataset.to_float(people.domains[rows, other.clamp_min(0)])
    )
    factor = torch.where(beyond, 1.2 + 1.8 * share, torch.where(blend, share, torch.ones(())))
    base = torch.where(beyond[:, None, None, None], photo, base)
    second = base + factor[:, None, None, None] * (second - base)
    labels = torch.where(
        blend[:, None],
        share[:, None] * labels + (1 - share[:, None]) * F.one_hot(other + 1, len(CLASSES)),
        labels,
    )
    bad = F.one_hot(torch.full((n,), len(DOMAINS)), len(CLASSES)).float()
    amount = torch.where(beyond, ((factor - 1.1) / 0.9).clamp(0, 1), broken.float())[:, None]
    labels = amount * bad + (1 - amount) * labels
    second = torch.where(
        broken[:, None, None, None],
        _distort(torch.where((share < 0.5)[:, None, None, None], photo, second), draw),
        second,
    )
    shift = torch.randint(-2, 3, (2,), generator=draw).tolist()
    pictures = torch.cat([photo, second]).roll(shift, (2, 3)) + 0.03 * torch.randn(
        2 * n, 3, 64, 64, generator=draw
    )
    labels = torch.cat([F.one_hot(torch.zeros(n, dtype=torch.long), len(CLASSES)).float(), labels])
    scene = sample_scene(people.z[rows])
    attributes = {a: scene.choice[a].repeat(2) for a in ATTRIBUTES}
    readable = torch.cat([torch.ones(n), (~broken & (factor < 1.6)).float()])
    return Batch(
        pictures, labels, attributes, readable, (~(blend | beyond | broken)).float(), domain + 1, scene
    )


class Student(nn.Module):
    """A ClipModel with auxiliary heads on its pooled features, which teach attributes faster than text
    alone."""

    def __init__(self, clip: ClipModel, width: int) -> None:
        super().__init__()
        self.clip = clip
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
        second = bool(batch.pure[i]) and rng.random() < 0.5
        described.append(i + n * second)
        domain = DOMAINS[int(batch.domain[i])] if second else "photo"
        last = label_last > 0 and rng.random() < label_last
        texts.append(captions.full_caption(batch.scene, i, domain, rng, form="last" if last else "first"))
    return texts, described


def _naming_loss(logits: Tensor, batch: Batch, attribute_weight: float) -> Tensor:
    """Soft cross-entropy over classes plus the mean cross-entropy of the attributes: logits (2n, classes +
    choices)."""
    loss = -(batch.labels * logits[:, : len(CLASSES)].log_softmax(1)).sum(1).mean()
    start = len(CLASSES)
    total = torch.zeros(())
    for attribute in ATTRIBUTES:
        width = len(CHOICES[attribute][0])
        each = F.cross_entropy(
            logits[:, start : start + width], batch.attributes[attribute], reduction="none"
        )
        total = total + EMPHASIS.get(attribute, 1.0) * (each * batch.readable).sum() / batch.readable.sum()
        start += width
    return loss + attribute_weight * total / len(ATTRIBUTES)


def _attack(
    student: Student, batch: Batch, text: Tensor, weight: float, radius: float, draw: torch.Generator
) -> Tensor:
    """The batch's pictures, every second one moved along the naming loss by a random L2 distance up to
    `radius`."""
    half = batch.half()
    pictures = half.pictures.clone().requires_grad_()
    image, heads = student.pictures(pictures)
    loss = _naming_loss(student.clip.logit_scale * image @ text.T, half, weight) + 0.5 * _naming_loss(
        heads, half, weight
    )
    (gradient,) = torch.autograd.grad(loss, pictures)
    length = radius * torch.rand(len(pictures), 1, 1, 1, generator=draw)
    moved = (
        pictures + length * gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    )
    result = batch.pictures.clone()
    result[::2] = moved.detach()
    return result


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
        draw = torch.Generator().manual_seed(recipe.seed * 9973 + number)
        rng = random.Random(recipe.seed * 7919 + number)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(number, recipe.steps, recipe.peak_lr)
        # Clean pictures first, which is two times cheaper; then attacks of growing length.
        progress = number / recipe.steps
        batch = draw_batch(
            people, recipe.people, recipe.seed, number, hard=recipe.attack > 0 and progress > 0.1
        )
        radius = recipe.attack * min(1.0, max(0.0, (progress - 0.25) / 0.35))
        sentences, described = _sentences(rng, batch, recipe.people, recipe.label_last)
        text = student.texts(sentences)
        named = len(CLASSES) + sum(len(c) for c, _ in CHOICES.values())
        if radius > 0:
            batch.pictures = _attack(
                student, batch, text[:named].detach(), recipe.attribute_weight, radius, draw
            )
        image, heads = student.pictures(batch.pictures)
        scale = clip.model.logit_scale.clamp(max=4.6).exp()
        naming = _naming_loss(scale * image @ text[:named].T, batch, recipe.attribute_weight)
        caption = _caption_loss(scale * image[described] @ text[named:].T)
        moved = F.normalize(image[recipe.people :] - image[: recipe.people], dim=1, eps=0.05)
        wanted = F.normalize(text[batch.domain] - text[:1], dim=1, eps=0.05)
        direction = ((1 - (moved * wanted).sum(1)) * batch.pure).sum() / batch.pure.sum().clamp_min(1)
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
        accuracy = (heads[:, : len(CLASSES)].argmax(1) == batch.labels.argmax(1)).float().mean()
        terms = {"naming": naming, "caption": caption, "direction": direction}
        return {**terms, "radius": radius, "scale": scale, "domain_accuracy": accuracy}

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
