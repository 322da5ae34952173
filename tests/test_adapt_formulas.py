"""The trainer against slow formulas in float64: whole trajectories of both stages, written out picture by picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from zeroshift.clip import ClipModel
from zeroshift.prompts import LatentMapper

STEPS, DOUBLE = 3, torch.float64


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
            count, mean, square = self.memory.get(name, (0, torch.zeros_like(gradient), torch.zeros_like(gradient)))
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
    return [LatentMapper(16, 4, each.text_width, seed=7 + i).double().state_dict() for i, each in enumerate(clips)]


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
        name: each + 0.1 * torch.randn(each.shape, generator=draw, dtype=DOUBLE) if name.endswith("conv.weight") else each
        for name, each in source.state().items()
    }


def prompt(clip: ClipModel, words_MD: Tensor, label: str, residual: str) -> Tensor:
    """Unit feature of one learned prompt."""
    return n(clip.encode_prompts(words_MD[None], f"a photo of a {label}")[0] + clip.encode_text([residual])[0])


def slow_words(config: Any, states: Sequence[dict[str, Tensor]], clips: Sequence[ClipModel], z: Tensor) -> tuple[list, list]:
    """Losses per step and final head states of stage 1."""
    source, heads, history = tiny.generator().double(), heads_of(states, clips), []
    adam = SlowAdam(config.mapper.lr, 0.9, 0.999)
    for step in range(STEPS):
        w_BS = source.map(z[step]).detach()
        pictures = source.synthesize(w_BS, "off").detach()
        total = torch.zeros((), dtype=DOUBLE)
        for clip, head, weight in zip(clips, heads, config.weights, strict=True):
            means = [
                plus(n(clip.encode_text([t.replace("{}", label)])[0]) for t in clip.templates.templates)
                for label in ("photo", "zombie")
            ]
            images = [n(clip.encode_image(picture[None])[0]) for picture in pictures]
            words = head(w_BS)
            h = [[prompt(clip, each, label, f"a photo of a {label}.") for each in words] for label in ("photo", "zombie")]
            count = len(images)
            scores = [[clip.logit_scale * (image @ text) for text in h[0]] for image in images]
            rows = plus(-scores[i][i] + torch.stack(scores[i]).exp().sum().log() for i in range(count)) / count
            columns = (
                plus(-scores[i][i] + torch.stack([row[i] for row in scores]).exp().sum().log() for i in range(count)) / count
            )
            domain = [plus(1 - each @ n(mean) for each in h[k]) / count for k, mean in enumerate(means)]
            regular = config.mapper.lambda_domain * (domain[1] + config.mapper.lambda_source * domain[0])
            total = total + weight * ((rows + columns) / 2 + regular)
        named = {f"{i}.{name}": each for i, head in enumerate(heads) for name, each in head.named_parameters()}
        adam.step(named, dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True)))
        history.append(float(total.detach()))
    return history, [head.state_dict() for head in heads]


def slow_pictures(config: Any, states: Any, clips: Sequence[ClipModel], z: Tensor) -> tuple[list, dict, dict]:
    """Losses per step, final weights and final averaged weights of stage 2, all convolutions free."""
    source, target = tiny.generator().double(), tiny.generator().double()
    target.load_state_dict(shifted())
    mean = source.state()
    rate = config.train.lr * 0.8
    adam, history = SlowAdam(rate, 0.0, 0.99**0.8), []
    movable = {
        name: each
        for name, each in target.named_parameters()
        if name.startswith(("input.", "conv1.", "convs.")) and not name.endswith("noise.weight")
    }
    for step in range(STEPS):
        w_BS = source.map(z[step]).detach()
        before, after = source.synthesize(w_BS, "off").detach(), target.synthesize(w_BS, "off")
        total = torch.zeros((), dtype=DOUBLE)
        for i, (clip, weight) in enumerate(zip(clips, config.weights, strict=True)):
            label_texts = [[t.replace("{}", label) for t in clip.templates.templates] for label in ("photo", "zombie")]
            fixed = n(plus(n(clip.encode_text([b])[0]) - n(clip.encode_text([a])[0]) for a, b in zip(*label_texts, strict=True)))
            words = heads_of(states, clips)[i](w_BS).detach() if config.method == "ipl" else [None] * len(w_BS)
            for k, word in enumerate(words):
                text = fixed
                if word is not None:
                    ends = [" photo.", " zombie."] if config.quirks.residual == "corrected" else ["", ""]
                    h = [
                        prompt(clip, word, label, f"a photo of a{end}")
                        for label, end in zip(("photo", "zombie"), ends, strict=True)
                    ]
                    text = n(h[1] - h[0])
                image = n(n(clip.encode_image(after[k : k + 1])[0]) - n(clip.encode_image(before[k : k + 1])[0]))
                total = total + weight * (1 - image @ text.detach()) / len(w_BS)
        adam.step(movable, dict(zip(movable, torch.autograd.grad(total, list(movable.values())), strict=True)))
        mean = {name: config.train.ema * each + (1 - config.train.ema) * target.state()[name] for name, each in mean.items()}
        history.append(float(total.detach()))
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
    seen: list[float] = []
    state = tiny.given(clips=clips, mapper=joined(states), stage1_z=z, dtype=DOUBLE)
    run = tiny.adapt(config, state=state, hook=lambda e: seen.append(float(e["losses"]["loss"])) if e["stage"] == 1 else None)
    assert run.mapper is not None
    assert all(math.isclose(a, b, rel_tol=1e-10) for a, b in zip(seen, history, strict=True))
    final = run.mapper.state_dict()
    assert all(close(final[name], each) for name, each in joined(expected).items())
    assert not any(torch.equal(final[name], each) for name, each in joined(states).items() if name.endswith("weight"))


@pytest.mark.parametrize(("method", "residual"), [("ipl", "corrected"), ("ipl", "published"), ("nada", "corrected")])
def test_stage_2_follows_the_formulas(tmp_path: Path, method: str, residual: str) -> None:
    clips = [each.double() for each in tiny.clips()]
    states, z = started(clips), latents(6, 2)
    config = tiny.config(
        tmp_path / "run",
        method=method,
        clip_weights=(1.0, 0.7),
        residual=residual,
        noise="off",
        image_floor=0.0,
        mapper={"steps": 1, "lr": 1e-30},
        train={"steps": STEPS, "layers": "convolutions"},
    )
    history, weights, mean = slow_pictures(config, states, clips, z)
    seen: list[float] = []
    given: dict[str, Any] = {"mapper": joined(states)} if method == "ipl" else {}
    state = tiny.given(clips=clips, target=shifted(), stage2_z=z, dtype=DOUBLE, **given)
    run = tiny.adapt(config, state=state, hook=lambda e: seen.append(float(e["losses"]["loss"])) if e["stage"] == 2 else None)
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(seen, history, strict=True))
    assert run.trained is not None
    assert all(close(each, weights[name]) for name, each in run.trained.state().items())
    assert all(close(each, mean[name]) for name, each in run.generator.state().items())


def test_global_and_manifold_terms_follow_the_formulas(tmp_path: Path) -> None:
    clip, z = tiny.clip(1).double(), latents(8, 2)
    config = tiny.config(
        tmp_path / "run",
        method="nada",
        clip=("tiny-1",),
        noise="off",
        image_floor=0.0,
        losses={"direction": 1.0, "global_clip": 0.3, "manifold": 0.5},
        logit_scale_over_100=True,
        train={"steps": 1, "layers": "convolutions"},
    )
    source, target = (tiny.generator().double().requires_grad_(False) for _ in range(2))
    target.load_state_dict(shifted())
    w_BS = source.map(z[0])
    pairs = [
        (n(clip.encode_image(a[None])[0]), n(clip.encode_image(b[None])[0]))
        for a, b in zip(source.synthesize(w_BS, "off"), target.synthesize(w_BS, "off"), strict=True)
    ]
    means = [n(plus(n(clip.encode_text([t.replace("{}", x)])[0]) for t in clip.templates.templates)) for x in ("photo", "zombie")]
    whole = n(clip.encode_text(["a zombie"])[0])
    expected = {
        "direction": plus(1 - n(b - a) @ n(means_direction(clip)) for a, b in pairs) / 2,
        "global_clip": plus(1 - clip.logit_scale / 100 * (b @ whole) for _, b in pairs) / 2,
        "manifold": plus((a @ b - means[0] @ means[1]).abs() for a, b in pairs) / 2,
    }
    events: list[dict[str, Any]] = []
    tiny.adapt(config, state=tiny.given(clips=[clip], target=shifted(), stage2_z=z, dtype=DOUBLE), hook=events.append)
    got = events[0]["losses"]
    for name, value in expected.items():
        assert math.isclose(got[name], value, rel_tol=1e-10), name
    whole_loss = expected["direction"] + 0.3 * expected["global_clip"] + 0.5 * expected["manifold"]
    assert math.isclose(got["loss"], whole_loss, rel_tol=1e-10)
    assert math.isclose(events[0]["per_clip"][0], whole_loss, rel_tol=1e-10)


def means_direction(clip: ClipModel) -> Tensor:
    texts = [[n(clip.encode_text([t.replace("{}", x)])[0]) for t in clip.templates.templates] for x in ("photo", "zombie")]
    return plus(b - a for a, b in zip(*texts, strict=True))
