"""Trainings of the built-in CLIPs that guide: what they think of a picture is how near to the truth it is.

A guide is followed uphill, so it must not like anything better than the true picture. Every example is a
person at the start (photo), in truth, and in some picture on the way, beside it, or beyond it: blends, near
misses, distortions, pictures moved along the guide's own gradient, and, in `mistakes`, what adaptation under
the guides really made. Each is labelled by the truth: soft names of domains by how near it lies, and by its
progress, 1 - distance to the truth over the start's, which the step along the person's own captions has to
equal. Progress is told along the labels too, as a share of what the true picture reaches there; no loss asks
the direction of a picture to be that of the labels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel
from zeroshift.methods import views
from zeroshift.portraits import captions
from zeroshift.portraits.scene import CHOICES, Scene, sample_scene
from zeroshift.portraits.shading import DOMAINS
from zeroshift.pretrain import dataset
from zeroshift.pretrain.clips import ATTRIBUTES, CLASSES, EMPHASIS, ClipRecipe, Student, build
from zeroshift.pretrain.resumable import run_resumably, warmup_cosine

SIZE = dataset.SIZE
NAMED = len(CLASSES) + sum(len(choices) for choices, _ in CHOICES.values())
SHOWN = torch.tensor(
    [[float(each not in captions.HIDDEN.get(domain, ())) for each in ATTRIBUTES] for domain in DOMAINS]
)
"""(domains, attributes) 1 where pictures of a domain show an attribute."""
LUMA = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]


@dataclass
class Examples:
    """n people at the start, on the way, and in truth; pictures (n, 3, 64, 64)."""

    start: Tensor
    way: Tensor
    truth: Tensor
    domain: Tensor
    """(n,) number of the truth's domain among DOMAINS."""
    scene: Scene
    labels: Tensor
    """(n, classes) soft names of the pictures on the way."""
    readable: Tensor
    """(n,) 1 where the picture on the way is the person, so that attributes can be read."""
    pure: Tensor
    """(n,) 1 where the picture on the way is the true one."""
    mirrored: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.start)

    @staticmethod
    def joined(parts: list[Examples]) -> Examples:
        """All examples of several."""
        names = ("start", "way", "truth", "domain", "labels", "readable", "pure")
        tensors = {name: torch.cat([getattr(each, name) for each in parts]) for name in names}
        choice = {a: torch.cat([each.scene.choice[a] for each in parts]) for a in parts[0].scene.choice}
        slider = {a: torch.cat([each.scene.slider[a] for each in parts]) for a in parts[0].scene.slider}
        scene = replace(parts[0].scene, choice=choice, slider=slider)
        return Examples(scene=scene, mirrored=sum((each.mirrored for each in parts), []), **tensors)


def distance(a: Tensor, b: Tensor, block: int = 1) -> Tensor:
    """Mean absolute difference (n,) of pictures, after averaging over blocks."""
    difference = a - b
    return (F.avg_pool2d(difference, block) if block > 1 else difference).abs().flatten(1).mean(1)


def detail(pictures: Tensor) -> Tensor:
    """Lines and grain of pictures: what a blur over 3 x 3 px takes away."""
    return pictures - F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)


def progress(way: Tensor, truth: Tensor, start: Tensor) -> Tensor:
    """How much of the way is done (n,): 1 - distance to the truth over that of the start, the mean of pixels,
    blocks of 4, and detail; 1 the truth, 0 as far as the start, at least -1."""
    pairs = (
        (distance(way, truth), distance(start, truth)),
        (distance(way, truth, 4), distance(start, truth, 4)),
        (distance(detail(way), detail(truth)), distance(detail(start), detail(truth))),
    )
    parts = [1 - left / whole.clamp_min(1e-3) for left, whole in pairs]
    return torch.stack(parts).mean(0).clamp(-1, 1)


def soft_labels(way: Tensor, truth: Tensor, start: Tensor, domain: Tensor, base: Tensor) -> Tensor:
    """Names (n, classes) of pictures: the share of the truth, that of the start (class `base`), and the rest
    distorted, from distances of 2 px blocks."""
    whole = distance(start, truth, 2).clamp_min(1e-3)
    target = (1 - distance(way, truth, 2) / whole).clamp(0, 1)
    source = (1 - distance(way, start, 2) / whole).clamp(0, 1)
    over = (target + source).clamp_min(1)
    labels = torch.zeros(len(way), len(CLASSES))
    rows = torch.arange(len(way))
    labels[rows, domain] += target / over
    labels[rows, base] += source / over
    labels[:, -1] += 1 - labels.sum(1)
    return labels


def near_misses(base: Tensor, truth: Tensor, share: Tensor, kind: Tensor, draw: torch.Generator) -> Tensor:
    """True pictures with something of the base left, the less the larger `share` (n,): by kind (n,) its
    colours, light, coarse shapes, fine structure, whole patches, a fine or coarse grain over all, or a
    blur."""

    def tone(x: Tensor) -> Tensor:
        return (x * LUMA).sum(1, keepdim=True)

    def coarse(x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 8), size=SIZE, mode="bilinear")

    n = len(base)
    left = (1 - share)[:, None, None, None]
    chosen = (torch.rand(n, 1, 8, 8, generator=draw) < left).float()
    patches = F.interpolate(chosen, size=SIZE, mode="nearest")
    grain = torch.randn(n, 3, SIZE, SIZE, generator=draw)
    blots = F.interpolate(torch.randn(n, 3, 16, 16, generator=draw), size=SIZE, mode="bilinear")
    between = base - truth
    changes = (
        between - tone(between),
        tone(between).expand_as(base),
        coarse(between),
        between - coarse(between),
        patches * between / left.clamp_min(1e-3),
        0.5 * grain,
        0.8 * blots,
        -detail(truth),
    )
    assert len(changes) == MISSES
    picked = torch.stack(changes)[kind, torch.arange(n)]
    return truth + left * picked


MISSES = 8
"""Kinds of near misses."""


def distorted(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Wild contrast, colour cast, blots and noise, at random, one row at a time."""
    n = len(pictures)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    gain = torch.where(rand(n, 1, 1, 1) < 0.5, 1.8 + 2.2 * rand(n, 1, 1, 1), 0.08 + 0.3 * rand(n, 1, 1, 1))
    gain = torch.where(rand(n, 1, 1, 1) < 0.35, torch.ones(()), gain)
    cast = (rand(n, 3, 1, 1) - 0.5) * 2.2 * (rand(n, 1, 1, 1) < 0.5)
    blots = torch.randn(n, 3, 8, 8, generator=draw)
    blots = F.interpolate(blots, size=SIZE, mode="bilinear") * 0.7 * (rand(n, 1, 1, 1) < 0.4)
    noise = torch.randn(n, 3, SIZE, SIZE, generator=draw) * (0.25 + 0.5 * rand(n, 1, 1, 1))
    return pictures * gain + cast + blots + noise * (rand(n, 1, 1, 1) < 0.55)


def seen_askew(examples: Examples, draw: torch.Generator) -> Examples:
    """Half of the examples zoomed, shifted, turned and mirrored, all pictures of one alike, as `train.views`
    shows them."""
    n = len(examples)

    def rand() -> Tensor:
        return torch.rand(n, generator=draw)

    zoom, turn = 1 + (rand() - 0.5) * 0.6, (rand() - 0.5) * 0.6
    shift = torch.stack([rand() - 0.5, rand() - 0.5], 1) * 0.6
    mirror = rand() < 0.5
    straight = rand() < 0.5
    zoom, turn = zoom.where(~straight, torch.ones(())), turn.where(~straight, torch.zeros(()))
    shift, mirror = shift.where(~straight[:, None], torch.zeros(())), mirror & ~straight
    look = views.Views(views.places(zoom, turn, shift[:, 0], shift[:, 1], mirror)[None], None)

    def seen(pictures: Tensor) -> Tensor:
        return pictures.where(straight[:, None, None, None], views.seen(pictures, look))

    return replace(
        examples,
        start=seen(examples.start),
        way=seen(examples.way),
        truth=seen(examples.truth),
        mirrored=mirror.tolist(),
    )


def draw_examples(people: dataset.People, n: int, seed: int, step: int, hard: bool) -> Examples:
    """The examples of a step from renders; `hard` adds blends, near misses, extrapolations, distortions."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(people.domains), (n,), generator=draw)
    domain = torch.randint(len(DOMAINS) - 1, (n,), generator=draw)
    start = dataset.to_float(people.photo[rows])
    truth = dataset.to_float(people.domains[rows, domain])
    kind = torch.rand(n, generator=draw) if hard else torch.zeros(n)
    share = torch.rand(n, generator=draw)
    blend = (kind > 0.55) & (kind <= 0.65)
    miss = (kind > 0.65) & (kind <= 0.87)
    beyond = (kind > 0.87) & (kind <= 0.94)
    broken = kind > 0.94
    # Between two pictures of a person: photo and domain, or (a quarter of them) two domains.
    other = torch.randint(len(DOMAINS) - 1, (n,), generator=draw)
    other = other.where((torch.rand(n, generator=draw) < 0.25) & (blend | miss), torch.tensor(-1))
    base = start.where(
        (other < 0)[:, None, None, None], dataset.to_float(people.domains[rows, other.clamp_min(0)])
    )
    way = truth
    for chosen, picture in (
        (blend, base + share[:, None, None, None] * (truth - base)),
        (miss, near_misses(base, truth, share, torch.randint(MISSES, (n,), generator=draw), draw)),
        (beyond, start + (1.2 + 1.8 * share[:, None, None, None]) * (truth - start)),
        (broken, distorted(start.where((share < 0.5)[:, None, None, None], truth), draw)),
    ):
        way = picture.where(chosen[:, None, None, None], way)
    labels = soft_labels(way, truth, base, domain + 1, other + 1)
    labels[broken] = F.one_hot(torch.tensor(len(DOMAINS)), len(CLASSES)).float()
    return Examples(
        start, way, truth, domain + 1, sample_scene(people.z[rows]), labels,
        readable=(~broken & ~(beyond & (share > 0.2))).float(),
        pure=(~(blend | miss | beyond | broken)).float(),
        mirrored=[False] * n,
    )  # fmt: skip


def with_noise(examples: Examples, draw: torch.Generator) -> Examples:
    """The same with a little noise on every picture that the guide sees."""

    def noisy(pictures: Tensor) -> Tensor:
        return pictures + 0.03 * torch.randn(pictures.shape, generator=draw)

    return replace(examples, start=noisy(examples.start), way=noisy(examples.way))


@dataclass
class Texts:
    """Sentences of a step: names and attribute prompts, the two captions of every example, and captions that
    name too much."""

    named: list[str]
    source: list[str]
    target: list[str]
    talkative: list[str]
    talkative_rows: list[int]

    @property
    def all(self) -> list[str]:
        """Every sentence, in the order of the fields."""
        return [*self.named, *self.source, *self.target, *self.talkative]


def sentences(rng: random.Random, examples: Examples) -> Texts:
    """All sentences of a step. Captions name what a domain shows, and nothing else."""
    named = captions.label_prompts(CLASSES, rng)
    prefixes = (
        "a photo of a person",
        "a person",
        "a picture of a person",
        f"a {rng.choice(DOMAINS)} of a person",
    )
    for attribute in ATTRIBUTES:
        prefix = rng.choice(prefixes)
        named += [
            f"{prefix} {rng.choice(captions.PHRASES[attribute][each])}" for each in CHOICES[attribute][0]
        ]
    texts = Texts(named, [], [], [], [])
    for i in range(len(examples)):
        domain = DOMAINS[int(examples.domain[i])]
        key, form, mirrored = rng.random(), rng.choice(("first", "last", "bare")), examples.mirrored[i]

        def caption(
            label: str,
            hidden: frozenset[str],
            row: int = i,
            key: float = key,
            form: captions.Form = form,
            mirrored: bool = mirrored,
        ) -> str:
            return captions.full_caption(
                examples.scene,
                row,
                label,
                random.Random(key),
                form=form,
                hidden=hidden,
                mirrored=mirrored,
            )

        # Half of the captions name only some of what is there, down to nothing but the label.
        kept = rng.random() if rng.random() < 0.5 else 1.0
        left_out = frozenset(each for each in captions.NAMED if rng.random() >= kept)
        hidden = captions.HIDDEN.get(domain, frozenset())
        texts.source.append(caption("photo", left_out))
        texts.target.append(caption(domain, hidden | left_out))
        if hidden:
            texts.talkative.append(caption(domain, left_out))
            texts.talkative_rows.append(i)
    return texts


@dataclass
class Seen:
    """Features of a step's pictures and texts."""

    start: Tensor
    way: Tensor
    heads: Tensor
    texts: TextFeatures
    scale: Tensor


@dataclass
class TextFeatures:
    """Unit features of a step's sentences, but for the talkative ones."""

    named: Tensor
    source: Tensor
    target: Tensor
    steps: Tensor
    """(n, E) from text to text, along which the progress of a picture is told: for half of the examples from
    caption to caption, for the others from label to label."""
    reach: Tensor
    """(n,) how far along its step the true picture lies: 1 for captions; for labels, whose direction is
    another one, what it was lately."""

    def detached(self) -> TextFeatures:
        """The same without gradient."""
        return TextFeatures(*(getattr(self, each.name).detach() for each in fields(self)))

    def half(self) -> TextFeatures:
        """Those of every second example."""
        return TextFeatures(self.named, self.source[::2], self.target[::2], self.steps[::2], self.reach[::2])


def naming_loss(logits: Tensor, examples: Examples, attribute_weight: float) -> Tensor:
    """Soft cross-entropy of names, and the mean one of the attributes that can be seen: logits (2n, NAMED) of
    starts, then of pictures on the way."""
    n = len(examples)
    photo = F.one_hot(torch.zeros(n, dtype=torch.long), len(CLASSES)).float()
    each = -(torch.cat([photo, examples.labels]) * logits[:, : len(CLASSES)].log_softmax(1)).sum(1)
    # Every second picture is a photo, and most near ones are not quite true: counted alike, a near domain
    # would never be named.
    counts = torch.cat([torch.full((n,), 0.15), 1 + 4 * examples.pure])
    loss = (counts * each).sum() / counts.sum()
    first = len(CLASSES)
    total = torch.zeros(())
    shown = torch.cat([torch.ones(n, len(ATTRIBUTES)), SHOWN[examples.domain] * examples.readable[:, None]])
    for column, attribute in enumerate(ATTRIBUTES):
        width = len(CHOICES[attribute][0])
        wanted = examples.scene.choice[attribute].repeat(2)
        each = F.cross_entropy(logits[:, first : first + width], wanted, reduction="none")
        total = (
            total + EMPHASIS.get(attribute, 1.0) * (each * shown[:, column]).sum() / shown[:, column].sum()
        )
        first += width
    return loss + attribute_weight * total / len(ATTRIBUTES)


def score(seen: Seen) -> Tensor:
    """How far the pictures on the way lie along the steps of their texts (n,): 0 at the start, 1 where the
    picture has moved as far as the texts have."""
    steps = seen.texts.steps
    return ((seen.way - seen.start) * steps).sum(1) / (steps.square().sum(1) + 0.02) / seen.texts.reach


def miss(seen: Seen) -> Tensor:
    """How far pictures on the way are from where their person's captions lead, by the length of the step of
    the captions (n,): 1 at the start, 0 where the picture has moved as the captions have."""
    told = seen.texts.target - seen.texts.source
    return (seen.way - seen.start - told).norm(dim=1) / (told.norm(dim=1) + 0.1)


def progress_loss(seen: Seen, examples: Examples) -> Tensor:
    """How far the scores are from the progress that the truth says, and the misses from what is left of the
    way; infinitely far ones count linearly."""
    wanted = progress(examples.way, examples.truth, examples.start)
    moved = F.smooth_l1_loss(score(seen), wanted, beta=0.2)
    return moved + F.smooth_l1_loss(miss(seen), 1 - wanted, beta=0.2)


def step_loss(seen: Seen, examples: Examples) -> Tensor:
    """Mean square distance of the step from start to truth from that of the person's captions, in squares of
    their lengths: what a domain hides is lost in both, and near domains are near in both. Labels have no part
    in it."""
    moved = seen.way - seen.start
    told = seen.texts.target - seen.texts.source
    lengths = moved.norm(dim=1) * told.norm(dim=1)
    off = (moved - told).square().sum(1) / lengths.detach().clamp_min(0.05)
    return (off * examples.pure).sum() / examples.pure.sum().clamp_min(1)


def label_loss(seen: Seen, examples: Examples) -> Tensor:
    """The same for the step from the photo's label to the domain's, with the pictures given: labels learn
    where a domain lies on average and how far it is, and no picture learns from this."""
    moved = (seen.way - seen.start).detach()
    told = seen.texts.named[examples.domain] - seen.texts.named[:1]
    lengths = moved.norm(dim=1) * told.norm(dim=1)
    off = (moved - told).square().sum(1) / lengths.detach().clamp_min(0.05)
    return (off * examples.pure).sum() / examples.pure.sum().clamp_min(1)


def caption_loss(seen: Seen, examples: Examples, rng: random.Random) -> Tensor:
    """Cross-entropies of pictures with captions, both ways: each example's start or, where it is the true
    one, the picture on the way."""
    second = torch.tensor([bool(pure) and rng.random() < 0.6 for pure in examples.pure])[:, None]
    texts = seen.texts
    logits = seen.scale * seen.way.where(second, seen.start) @ texts.target.where(second, texts.source).T
    truth = torch.arange(len(logits))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


class Guide:
    """A guide in training: the CLIP, its heads, and the optimiser."""

    def __init__(self, recipe: ClipRecipe) -> None:
        self.recipe = recipe
        self.clip = build(recipe)
        self.student = Student(self.clip, recipe.widths[-1])
        with torch.no_grad():
            self.clip.model.logit_scale.fill_(2.66)
        self.reach = torch.full((len(DOMAINS),), 0.6)
        """How far the step to the truth reaches along that of the labels, by domain; a running mean."""
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=recipe.peak_lr, weight_decay=0.02, betas=(0.9, 0.98)
        )

    def see(self, examples: Examples, texts: TextFeatures) -> Seen:
        """Features of the pictures beside those of the texts."""
        image, heads = self.student.pictures(torch.cat([examples.start, examples.way]))
        scale = self.clip.model.logit_scale.clamp(max=4.6).exp()
        start, way = image.chunk(2)
        return Seen(start, way, heads, texts, scale)

    def losses(self, seen: Seen, examples: Examples) -> tuple[Tensor, Tensor]:
        """The losses that an attack raises too: names, by text and by heads, and progress."""
        weight = self.recipe.attribute_weight
        logits = seen.scale * torch.cat([seen.start, seen.way]) @ seen.texts.named.T
        naming = naming_loss(logits, examples, weight)
        return naming + 0.5 * naming_loss(seen.heads, examples, weight), progress_loss(seen, examples)

    def attacked(
        self, examples: Examples, texts: TextFeatures, radius: float, draw: torch.Generator
    ) -> Examples:
        """The examples, every second one with its pictures moved by a random L2 distance up to `radius` along
        the gradient of the losses."""
        half = part(examples, slice(None, None, 2))
        half.start.requires_grad_()
        half.way.requires_grad_()
        names, steps = self.losses(self.see(half, texts.detached().half()), half)
        gradients = torch.autograd.grad(names + PROGRESS * steps, [half.start, half.way])
        moved = replace(examples, start=examples.start.clone(), way=examples.way.clone())
        for pictures, gradient in zip((moved.start, moved.way), gradients, strict=True):
            length = radius * torch.rand(len(gradient), 1, 1, 1, generator=draw)
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
            pictures[::2] += length * gradient / norm
        return moved

    def encoded(self, texts: Texts, examples: Examples, draw: torch.Generator) -> tuple[TextFeatures, Tensor]:
        """Features of the texts; and of those that name what a domain hides, the mean distance 1 - cosine to
        the captions that do not, which should be 0."""
        n = len(examples)
        named, source, target, talkative = self.student.texts(texts.all).split(
            [NAMED, n, n, len(texts.talkative)]
        )
        by_label = torch.rand(n, generator=draw) < 0.5
        steps = (named[examples.domain] - named[:1]).where(by_label[:, None], target - source)
        reach = self.reach[examples.domain].where(by_label, torch.ones(()))
        told = torch.zeros(())
        if texts.talkative:
            told = (1 - (talkative * target[texts.talkative_rows].detach()).sum(1)).mean()
        return TextFeatures(named, source, target, steps, reach), told

    def step(self, examples: Examples, number: int, rate: float, radius: float) -> dict[str, Tensor]:
        """One step of the optimiser; numbers for the log."""
        seed = self.recipe.seed
        draw, rng = torch.Generator().manual_seed(seed * 9973 + number), random.Random(seed * 7919 + number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        examples = with_noise(seen_askew(examples, draw), draw)
        texts, told = self.encoded(sentences(rng, examples), examples, draw)
        if radius > 0:
            examples = self.attacked(examples, texts, radius, draw)
        seen = self.see(examples, texts)
        naming, moved = self.losses(seen, examples)
        caption = caption_loss(seen, examples, rng)
        step = step_loss(seen, examples)
        label = label_loss(seen, examples)
        loss = 2 * naming + caption + PROGRESS * moved + step + label + told
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimizer.step()
        self._follow(seen, examples)
        wanted = progress(examples.way, examples.truth, examples.start)
        off = (score(seen).detach() - wanted).abs().mean()
        told_now = {
            "naming": naming,
            "caption": caption,
            "progress": moved,
            "step": step,
            "label": label,
            "told": told,
        }
        return told_now | {"off": off, "scale": seen.scale}

    @torch.no_grad()
    def _follow(self, seen: Seen, examples: Examples) -> None:
        """Moves the running means of `reach` by the true pictures of a step."""
        named = seen.texts.named
        labels = named[examples.domain] - named[:1]
        reached = ((seen.way - seen.start) * labels).sum(1) / (labels.square().sum(1) + 0.02)
        for row in examples.pure.nonzero()[:, 0].tolist():
            domain = int(examples.domain[row])
            self.reach[domain] = (0.9 * self.reach[domain] + 0.1 * reached[row]).clamp(0.2, 1.5)

    def finished(self) -> ClipModel:
        """The CLIP, frozen, in evaluation mode."""
        with torch.no_grad():
            self.clip.model.logit_scale.clamp_(max=4.6)
        self.clip.frozen = True
        self.clip.requires_grad_(False)
        return self.clip.eval()

    def restore(self, path: Path) -> float:
        """Goes on from a saved state; the seconds spent until then."""
        saved = torch.load(path, weights_only=True)
        self.student.load_state_dict(saved["student"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.reach.copy_(saved.get("reach", self.reach))
        return saved["seconds"]


def part(examples: Examples, rows: slice) -> Examples:
    """Some of the examples, their pictures copied."""
    names = ("truth", "domain", "labels", "readable", "pure")
    tensors = {name: getattr(examples, name)[rows] for name in names}
    choice = {a: values[rows] for a, values in examples.scene.choice.items()}
    scene = replace(examples.scene, choice=choice)
    return replace(
        examples, scene=scene, mirrored=examples.mirrored[rows], start=examples.start[rows].clone(),
        way=examples.way[rows].clone(), **tensors,
    )  # fmt: skip


RECIPES = {
    "clip-a": ClipRecipe("resnet", (40, 80, 160), (2, 2, 2), "silu", 1, steps=1200, attack=3.0),
    "clip-b": ClipRecipe("resnet", (32, 64, 128, 192), (1, 2, 2, 1), "gelu", 2, steps=1200, attack=3.0),
}
PROGRESS = 3.0
"""Weight of the loss on how far pictures are."""


def train(name: str, data: Path, work: Path, shards: int = 8) -> tuple[Guide, float]:
    """Trains one guide on renders, or continues; with the seconds spent."""
    recipe = RECIPES[name]
    people = dataset.load(data, shards, shards)
    guide = Guide(recipe)

    def step(number: int) -> dict:
        done = number / recipe.steps
        # Clean pictures first, which is two times cheaper; then attacks of growing length.
        examples = draw_examples(people, recipe.people, recipe.seed, number, hard=done > 0.1)
        radius = recipe.attack * min(1.0, max(0.0, (done - 0.25) / 0.35))
        rate = warmup_cosine(number, recipe.steps, recipe.peak_lr)
        return {**guide.step(examples, number, rate, radius), "radius": torch.tensor(radius)}

    guide.student.train()
    followed = nn.Module()
    followed.register_buffer("reach", guide.reach)
    parts = {"student": guide.student, "optimizer": guide.optimizer, "followed": followed}
    seconds = run_resumably(name, work, recipe.steps, parts, step)
    return guide, seconds
