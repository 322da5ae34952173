"""`adapt` against slow formulas in float64: whole trajectories of both stages, written out picture by
picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import PARTS
from zeroshift.methods.prompts import LatentMapper
from zeroshift.models.seeds import rng
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

STEPS, DOUBLE = 3, torch.float64
Event = dict[str, Any]


@dataclass
class Step:
    """What a step should tell: the loss, that of each CLIP before its weight, and the norm of each tensor's
    gradient."""

    loss: Tensor
    per_clip: list[Tensor]
    gradients: dict[str, Tensor]

    def told_by(self, event: Event) -> bool:
        same = {name: float(value.norm()) for name, value in self.gradients.items()}
        got = {name: float(value) for name, value in event["gradients"].items()}
        assert set(got) == set(same)
        return (
            math.isclose(event["losses"]["loss"], self.loss, rel_tol=1e-9)
            and all(
                math.isclose(a, b, rel_tol=1e-9)
                for a, b in zip(event["per_clip"], self.per_clip, strict=True)
            )
            and all(
                math.isclose(got[name], value, rel_tol=1e-8, abs_tol=1e-14) for name, value in same.items()
            )
        )


class Keep(list[Event]):
    """Hook that keeps the steps of a stage, with gradients."""

    wants_gradients = True

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.stage = stage

    def __call__(self, event: Event) -> None:
        if event["stage"] == self.stage:
            self.append(event)


def n(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def plus(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(dim=0)


class SlowAdam:
    """Kingma and Ba (2015), tensor by tensor; a tensor without gradient is skipped."""

    def __init__(self, lr: float, beta1: float, beta2: float) -> None:
        self.lr, self.beta1, self.beta2, self.memory = lr, beta1, beta2, {}

    @torch.no_grad()
    def step(self, weights: dict[str, nn.Parameter], gradients: dict[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            count, mean, square = self.memory.get(
                name, (0, torch.zeros_like(gradient), torch.zeros_like(gradient))
            )
            count += 1
            mean = self.beta1 * mean + (1 - self.beta1) * gradient
            square = self.beta2 * square + (1 - self.beta2) * gradient**2
            self.memory[name] = (count, mean, square)
            divisor = (square / (1 - self.beta2**count)).sqrt() + 1e-8
            weights[name] -= self.lr * mean / (1 - self.beta1**count) / divisor


def latents(seed: int, batch: int) -> Tensor:
    return torch.randn(STEPS, batch, 12, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def started(clips: Sequence[ClipModel]) -> list[dict[str, Tensor]]:
    """Weights of one mapper head per CLIP."""
    return [
        LatentMapper(16, 4, each.text_width, seed=7 + i).double().state_dict() for i, each in enumerate(clips)
    ]


def heads_of(states: Sequence[dict[str, Tensor]], clips: Sequence[ClipModel]) -> list[LatentMapper]:
    heads = [LatentMapper(16, 4, each.text_width).double() for each in clips]
    for head, state in zip(heads, states, strict=True):
        head.load_state_dict(state)
    return heads


def joined(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"heads.{i}.{name}": each for i, state in enumerate(states) for name, each in state.items()}


def shifted() -> dict[str, Tensor]:
    """Source weights with every convolution pushed a little, so that no image direction is zero."""
    source = tiny.generator().double()
    draw = torch.Generator().manual_seed(3)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=draw, dtype=DOUBLE)
        if name.endswith("conv.weight")
        else each
        for name, each in source.state().items()
    }


def prompt(clip: ClipModel, words_MD: Tensor, label: str, residual: str) -> Tensor:
    """Unit feature of one learned prompt."""
    return n(
        clip.encode_prompts(words_MD[None], f"a photo of a {label}")[0] + clip.encode_text([residual])[0]
    )


def slow_words(
    config: Any, states: Sequence[dict[str, Tensor]], clips: Sequence[ClipModel], z: Tensor
) -> tuple[list[Step], list]:
    """Steps and final head states of stage 1."""
    source, heads, history = tiny.generator().double(), heads_of(states, clips), []
    adam = SlowAdam(config.mapper.lr, 0.9, 0.999)
    for step in range(STEPS):
        w_BS = source.map(z[step]).detach()
        pictures = source.synthesize(w_BS, "off").detach()
        per_clip = []
        for clip, head in zip(clips, heads, strict=True):
            means = [
                plus(n(clip.encode_text([t.replace("{}", label)])[0]) for t in clip.templates.templates)
                for label in ("photo", "zombie")
            ]
            images = [n(clip.encode_image(picture[None])[0]) for picture in pictures]
            words = head(w_BS)
            h = [
                [prompt(clip, each, label, f"a photo of a {label}.") for each in words]
                for label in ("photo", "zombie")
            ]
            count = len(images)
            scores = [[clip.logit_scale * (image @ text) for text in h[0]] for image in images]
            rows = (
                plus(-scores[i][i] + torch.stack(scores[i]).exp().sum().log() for i in range(count)) / count
            )
            columns = (
                plus(
                    -scores[i][i] + torch.stack([row[i] for row in scores]).exp().sum().log()
                    for i in range(count)
                )
                / count
            )
            domain = [plus(1 - each @ n(mean) for each in h[k]) / count for k, mean in enumerate(means)]
            regular = config.mapper.lambda_domain * (domain[1] + config.mapper.lambda_source * domain[0])
            per_clip.append((rows + columns) / 2 + regular)
        total = plus(weight * each for weight, each in zip(config.weights, per_clip, strict=True))
        named = {
            f"heads.{i}.{name}": each
            for i, head in enumerate(heads)
            for name, each in head.named_parameters()
        }
        gradients = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
        adam.step(named, gradients)
        history.append(Step(total.detach(), [each.detach() for each in per_clip], gradients))
    return history, [head.state_dict() for head in heads]


def driven(latent: int) -> list[str]:
    """Layers of the 16 px generator that a latent drives: conv1 by 0; level j's up-sampling convolution by 2j
    + 1, its second one by 2j + 2, its to-RGB by 2j + 3, and the first to-RGB by 1.
    """
    names = ["conv1"] if latent == 0 else [f"convs.{latent - 1}"] if latent < 5 else []
    return [*names, *({1: ["to_rgb1"], 3: ["to_rgbs.0"], 5: ["to_rgbs.1"]}.get(latent, []))]


def slow_choice(config: Any, source: Any, target: Any, clips: Sequence[ClipModel], z: Tensor) -> list[str]:
    """Layers whose latents one gradient step on W+ moves most."""
    rows = source.map(z).detach().repeat_interleave(6, dim=0).view(len(z), 6, -1).requires_grad_()
    pictures = target.synthesize(rows, "off")
    loss = torch.zeros((), dtype=DOUBLE)
    for clip, weight in zip(clips, config.weights, strict=True):
        label = n(clip.encode_text(["zombie"])[0])
        loss = loss + weight * plus(
            1 - n(clip.encode_image(picture[None])[0]) @ label for picture in pictures
        ) / len(pictures)
    (gradient,) = torch.autograd.grad(loss, rows)
    ways = [float(gradient[:, k].abs().sum()) for k in range(6)]
    best = sorted(range(6), key=lambda k: -ways[k])[: config.train.adaptive.top_k]
    return [name for k in best for name in driven(k)]


def slow_direction(config: Any, clip: ClipModel, word: Tensor | None) -> Tensor:
    """Text direction of one picture: of its own words, or without words the one of the two labels."""
    if word is None:
        texts = [[t.replace("{}", label) for t in clip.templates.templates] for label in ("photo", "zombie")]
        return n(
            plus(
                n(clip.encode_text([b])[0]) - n(clip.encode_text([a])[0]) for a, b in zip(*texts, strict=True)
            )
        )
    ends = [" photo.", " zombie."] if config.quirks.residual == "corrected" else ["", ""]
    h = [
        prompt(clip, word, label, f"a photo of a{end}")
        for label, end in zip(("photo", "zombie"), ends, strict=True)
    ]
    return n(h[1] - h[0]).detach()


def slow_pictures(
    config: Any, states: Any, clips: Sequence[ClipModel], z: Tensor, select_z: Tensor
) -> tuple[list[Step], dict, dict]:
    """Steps, final weights and final averaged weights of stage 2."""
    source, target = tiny.generator().double(), tiny.generator().double()
    target.load_state_dict(shifted())
    mean = source.state()
    adam, history = SlowAdam(config.train.lr * 0.8, 0.0, 0.99**0.8), []
    for step in range(STEPS):
        layers = ["input", "conv1", *(f"convs.{i}" for i in range(4))]
        if config.train.layers == "adaptive":
            layers = slow_choice(config, source, target, clips, select_z[step])
        movable = {
            name: each
            for name, each in target.named_parameters()
            if name.startswith(tuple(f"{layer}." for layer in layers)) and not name.endswith("noise.weight")
        }
        w_BS = source.map(z[step]).detach()
        before, after = source.synthesize(w_BS, "off").detach(), target.synthesize(w_BS, "off")
        per_clip = []
        for i, clip in enumerate(clips):
            words = (
                heads_of(states, clips)[i](w_BS).detach() if config.method == "ipl" else [None] * len(w_BS)
            )
            ways = [
                n(n(clip.encode_image(b[None])[0]) - n(clip.encode_image(a[None])[0]))
                for a, b in zip(before, after, strict=True)
            ]
            pairs = zip(ways, words, strict=True)
            per_clip.append(
                plus(1 - way @ slow_direction(config, clip, word) for way, word in pairs) / len(ways)
            )
        total = plus(weight * each for weight, each in zip(config.weights, per_clip, strict=True))
        gradients = dict(zip(movable, torch.autograd.grad(total, list(movable.values())), strict=True))
        adam.step(movable, gradients)
        mean = {
            name: config.train.ema * each + (1 - config.train.ema) * target.state()[name]
            for name, each in mean.items()
        }
        history.append(Step(total.detach(), [each.detach() for each in per_clip], gradients))
    return history, target.state(), mean


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= 1e-9 * expected.abs().max().clamp_min(1e-3))


def test_stage_1_follows_the_formulas(tmp_path: Path) -> None:
    clips = [each.double() for each in tiny.clips()]
    states, z = started(clips), latents(5, 4)
    config = tiny.config(
        tmp_path / "run",
        clip_weights=(1.0, 0.7),
        noise="off",
        mapper={"steps": STEPS, "lambda_domain": 0.8, "lambda_source": 0.3},
        train={"steps": 1},
    )
    history, expected = slow_words(config, states, clips, z)
    seen = Keep(stage=1)
    run = tiny.adapt(
        config, state=tiny.given(clips=clips, mapper=joined(states), stage1_z=z, dtype=DOUBLE), hook=seen
    )
    assert run.mapper is not None
    assert all(step.told_by(event) for step, event in zip(history, seen, strict=True))
    final = run.mapper.state_dict()
    assert all(close(final[name], each) for name, each in joined(expected).items())
    assert not any(
        torch.equal(final[name], each) for name, each in joined(states).items() if name.endswith("weight")
    )


@pytest.mark.parametrize(
    ("method", "residual", "layers"),
    [
        ("ipl", "corrected", "convolutions"),
        ("ipl", "corrected", "adaptive"),
        ("ipl", "published", "convolutions"),
        ("nada", "corrected", "convolutions"),
        ("nada", "corrected", "adaptive"),
    ],
)
def test_stage_2_follows_the_formulas(tmp_path: Path, method: str, residual: str, layers: str) -> None:
    clips = [each.double() for each in tiny.clips()]
    states, z, select_z = started(clips), latents(6, 2), latents(9, 3)
    config = tiny.config(
        tmp_path / "run",
        method=method,
        clip_weights=(1.0, 0.7),
        residual=residual,
        noise="off",
        image_floor=0.0,
        mapper={"steps": 1, "lr": 1e-30},
        train={
            "steps": STEPS,
            "layers": layers,
            "adaptive": {"batch": 3} | ({"top_k": 2} if layers == "adaptive" else {}),
        },
    )
    history, weights, mean = slow_pictures(config, states, clips, z, select_z)
    given: dict[str, Any] = {"mapper": joined(states)} if method == "ipl" else {}
    state = tiny.given(clips=clips, target=shifted(), stage2_z=z, select_z=select_z, dtype=DOUBLE, **given)
    seen = Keep(stage=2)
    run = tiny.adapt(config, state=state, hook=seen)
    assert all(step.told_by(event) for step, event in zip(history, seen, strict=True))
    assert run.trained is not None
    assert all(close(each, weights[name]) for name, each in run.trained.state().items())
    assert all(close(each, mean[name]) for name, each in run.generator.state().items())


def large(seed: int) -> StyleGAN2Generator:
    """A generator of 1024 px, which the patch loss needs, with two channels a layer and one and the same
    mapping."""
    config = StyleGAN2Config(size=1024, latent_dim=12, style_dim=16, mapping_depth=2, channel_max=2)
    made, first = StyleGAN2Generator(config, seed=seed), StyleGAN2Generator(config)
    made.load_state_dict(
        made.state() | {name: each for name, each in first.state().items() if name.startswith("style.")}
    )
    return made.double()


def slow_terms(config: Any, clip: ClipModel, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """All weighted terms of stage 2 but the patch loss in one CLIP, pair by pair, with the global one as
    published."""
    means = [
        n(plus(n(clip.encode_text([t.replace("{}", x)])[0]) for t in clip.templates.templates))
        for x in ("photo", "zombie")
    ]
    whole = n(clip.encode_text(["a zombie"])[0])
    pairs = [
        (n(clip.encode_image(a[None])[0]), n(clip.encode_image(b[None])[0]))
        for a, b in zip(before, after, strict=True)
    ]
    return {
        "direction": plus(1 - n(b - a) @ slow_direction(config, clip, None) for a, b in pairs) / len(pairs),
        "global_clip": plus(1 - clip.logit_scale / 100 * (b @ whole) for _, b in pairs) / len(pairs),
        "manifold": plus((a @ b - means[0] @ means[1]).abs() for a, b in pairs) / len(pairs),
    }


def slow_patch(config: Any, clip: ClipModel, before: Tensor, after: Tensor) -> Tensor:
    """The patch loss in one CLIP: one square of 510 px per picture, all parts."""
    parts = []
    for part in PARTS.templates:
        texts = [
            [t.replace("{}", part.replace("{}", x)) for t in clip.templates.templates]
            for x in ("photo", "zombie")
        ]
        way = plus(
            n(clip.encode_text([b])[0]) - n(clip.encode_text([a])[0]) for a, b in zip(*texts, strict=True)
        )
        # To a CLIP that knows neither plural both texts are the same.
        parts.append(n(way) if way.any() else way)
    centers = torch.randint(255, 1024 - 255, (len(after), 2), generator=rng("patch", config.run.seed, 1))
    losses = []
    for a, b, (x, y) in zip(before, after, centers.tolist(), strict=True):
        squares = [picture[:, y - 255 : y + 255, x - 255 : x + 255] for picture in (a, b)]
        seen = [n(clip.encode_image(square[None])[0]) for square in squares]
        similar = [n(seen[1] - seen[0]) @ part for part in parts]
        share = plus(each.exp() for each in similar)
        losses.append(plus((1 - each) * each.exp() / share for each in similar) / len(parts))
    return plus(losses) / len(losses)


@pytest.mark.parametrize("patch", [False, True], ids=["16px", "1024px"])
def test_weighted_terms_follow_the_formulas(tmp_path: Path, patch: bool) -> None:
    clips, z = [each.double() for each in tiny.clips()], latents(8, 1 if patch else 2)
    weights = {"direction": 0.8, "global_clip": 0.3, "manifold": 0.5} | ({"patch": 0.4} if patch else {})
    config = tiny.config(
        tmp_path / "run",
        method="nada",
        clip_weights=(1.0, 0.7),
        noise="off",
        image_floor=0.0,
        losses=weights,
        logit_scale_over_100=True,
        train={"steps": 1, "batch": z.shape[1], "layers": "convolutions"},
    )
    source, target = (large(0), large(1)) if patch else (tiny.generator().double(), tiny.generator().double())
    target.load_state_dict(target.state() if patch else shifted())
    w_BS = source.map(z[0]).detach()
    before, after = source.synthesize(w_BS, "off").detach(), target.synthesize(w_BS, "off")
    terms = [slow_terms(config, clip, before, after) for clip in clips]
    if patch:
        terms = [
            each | {"patch": slow_patch(config, clip, before, after)}
            for each, clip in zip(terms, clips, strict=True)
        ]
    per_clip = [plus(weight * each[name] for name, weight in weights.items()) for each in terms]
    total = per_clip[0] + 0.7 * per_clip[1]
    free = {
        name: each
        for name, each in target.named_parameters()
        if name.startswith(("input.", "conv1.", "convs.")) and not name.endswith("noise.weight")
    }
    gradients = dict(zip(free, torch.autograd.grad(total, list(free.values())), strict=True))
    seen = Keep(stage=2)
    given = tiny.given(generator=source, clips=clips, target=target.state(), stage2_z=z, dtype=DOUBLE)
    tiny.adapt(config, state=given, hook=seen)
    assert Step(total.detach(), [each.detach() for each in per_clip], gradients).told_by(seen[0])
    for name in weights:
        assert math.isclose(
            seen[0]["losses"][name], float((terms[0][name] + 0.7 * terms[1][name]).detach()), rel_tol=1e-9
        ), name
