"""SVL: its equations by slow formulas, what its two stages do, and runs that resume."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.features import normalize
from zeroshift.config.schema import AdaptConfig
from zeroshift.methods import importance, svl
from zeroshift.methods.adapt import adapt, plan
from zeroshift.models.seeds import draw_z

OWN: dict[str, Any] = {"steps": 6, "variations": 3, "elastic_pictures": 3}
Event = dict[str, Any]


def n(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def cos(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()


def plus(terms: Any) -> Tensor:
    return torch.stack(list(terms)).sum(dim=0)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(out: Path, own: dict[str, Any] | None = None, **overrides: Any) -> AdaptConfig:
    train = {"batch": 3} | overrides.pop("train", {})
    return tiny.config(out, method="svl", train=train, own={"svl": OWN | (own or {})}, **overrides)


# The equations.


def test_variations_lie_about_the_target_as_far_as_it_is_long() -> None:
    target, z = 3 * n(rows(1, 5)), rows(4, 5, seed=1)
    found = svl.variations(target, z)
    for row, one in zip(found, z, strict=True):
        torch.testing.assert_close(row, target[0] + 3 * n(one))
    torch.testing.assert_close(svl.variations(target, 7 * z), found)


def test_variations_are_to_be_near_the_target_and_apart_from_each_other() -> None:
    target, z = rows(1, 5), rows(4, 5, seed=1)
    near, apart = svl.variation_losses(target, z)
    points = svl.variations(target, z)
    assert math.isclose(near, plus(1 - cos(target[0], point) for point in points) / 4)
    pairs = [abs(cos(a, b)) for a, b in combinations(z, 2)]
    assert math.isclose(apart, plus(pairs) / len(pairs))
    assert float(svl.variation_losses(target, torch.eye(5, dtype=torch.float64)[:4])[1]) == 0


def test_there_is_a_direction_to_the_target_and_one_to_every_variation() -> None:
    source, target, z = rows(1, 5, seed=2), rows(1, 5), rows(4, 5, seed=1)
    found = svl.variation_directions(source, target, z)
    wanted = [n(target[0] - source[0])]
    wanted += [n(point - source[0]) for point in svl.variations(target, z)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_means_of_directions_are_compared_by_their_cosine() -> None:
    image, text = normalize(rows(2, 4, 5)), normalize(rows(3, 5, seed=1))
    slow = [1 - cos(each.mean(dim=0), text.mean(dim=0)) for each in image]
    assert math.isclose(svl.mean_loss(image, text, 0.01), plus(slow) / 2)
    assert math.isclose(svl.mean_loss(text[None], text, 9.0), 0, abs_tol=1e-12)
    short = 0.1 * text[None]
    assert math.isclose(svl.mean_loss(short, text, 9.0), 0.9), "a floor above the way asks for the whole way"
    still = torch.zeros(1, 4, 5, dtype=torch.float64, requires_grad=True)
    loss = svl.mean_loss(still, text, 0.05)
    (gradient,) = torch.autograd.grad(loss, still)
    assert loss == 1 and torch.isfinite(gradient).all()


@pytest.mark.parametrize("centred", [False, True])
def test_second_moments_are_compared_over_all_pairs_of_numbers(centred: bool) -> None:
    image, text = rows(2, 4, 5), rows(3, 5, seed=1)

    def moment(found: Tensor, i: int, j: int) -> Tensor:
        shift = found.mean(dim=0) if centred else torch.zeros(5, dtype=torch.float64)
        return plus((row - shift)[i] * (row - shift)[j] for row in found) / len(found)

    slow = []
    for view in image:
        squares = [(moment(view, i, j) - moment(text, i, j)) ** 2 for i in range(5) for j in range(5)]
        slow.append(plus(squares).sqrt())
    assert math.isclose(svl.covariance_loss(image, text, centred), plus(slow) / 2)
    assert math.isclose(svl.covariance_loss(text[None], text, centred), 0, abs_tol=1e-12)


def test_elastic_weights_pull_back_by_their_importance() -> None:
    start = {"a": rows(2, 3), "b": rows(4, seed=1)}
    now = {name: each + rows(*each.shape, seed=5) for name, each in start.items()}
    held = {name: rows(*each.shape, seed=6).abs() for name, each in start.items()}
    slow = [
        f * (w - s) ** 2
        for name in start
        for f, w, s in zip(held[name].flatten(), now[name].flatten(), start[name].flatten(), strict=True)
    ]
    assert math.isclose(importance.elastic_loss(now, start, held), plus(slow))
    assert importance.elastic_loss(start, start, held) == 0


def test_similarities_between_pictures_are_kept_by_their_divergence() -> None:
    source, target = normalize(rows(2, 4, 5)), normalize(rows(2, 4, 5, seed=1))
    slow = []
    for before, after in zip(source, target, strict=True):
        for i in range(4):
            p = torch.stack([before[i] @ before[j] for j in range(4)]).softmax(dim=0)
            q = torch.stack([after[i] @ after[j] for j in range(4)]).softmax(dim=0)
            slow.append(plus(p[j] * (p[j] / q[j]).log() for j in range(4)))
    assert math.isclose(svl.consistency_loss(source, target), plus(slow) / len(slow))
    turned = source @ torch.linalg.qr(rows(5, 5, seed=3))[0]
    assert math.isclose(svl.consistency_loss(source, turned), 0, abs_tol=1e-12), "a turn keeps similarities"


# A run.


def opened(out: Path, own: dict[str, Any] | None = None, **overrides: Any) -> svl.SvlRun:
    return svl.open_run(config(out, own, **overrides), tiny.given(dtype=torch.float64))


def test_the_importance_of_a_weight_is_its_mean_squared_gradient_over_pictures(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", clip_weights=(1.0, 0.5))
    found = svl.importance(run)
    assert set(found) == set(run.backend.movable)
    source = tiny.generator().double()
    w = source.map(draw_z(12, 3, 0, "fixed", 0).double()).detach()
    name = "convs.1.conv.weight"
    weight = dict(source.named_parameters())[name].requires_grad_(True)
    slow = torch.zeros_like(weight)
    for style in w:
        for clip, share in zip(run.clips, (1.0, 0.5), strict=True):
            templates = [t.replace("{}", "photo") for t in tiny.TEMPLATES.templates]
            text = plus(n(clip.clip.encode_text([each])[0]) for each in templates)
            picture = source.synthesize(style[None], "buffers")
            (gradient,) = torch.autograd.grad(cos(clip.encode_image(picture)[0], text), weight)
            slow += share * gradient**2 / 3
    torch.testing.assert_close(found[name], slow)
    with torch.no_grad():
        for each in run.backend.movable:
            run.target.get_parameter(each).add_(0.1)
    torch.testing.assert_close(svl.importance(run), found, rtol=0, atol=0)


class Watch(list[Event]):
    """Keeps every step."""

    def __call__(self, event: Event) -> None:
        self.append(event)


@pytest.mark.parametrize("views", [1, 2])
def test_the_loss_of_a_step_is_made_of_moments_consistency_and_elasticity(tmp_path: Path, views: int) -> None:
    own = {"covariance": 10.0, "consistency": 3.0, "elastic": 100.0}
    watch = Watch()
    made = config(tmp_path / "run", own, train={"views": {"count": views}}, clip_weights=(1.0, 0.5))
    run = svl.open_run(made, tiny.given(), watch)
    with run.loop.recorded():
        svl.train(run)
    first = watch[0]["losses"]
    assert math.isclose(first["loss"], first["near"] + first["apart"], rel_tol=1e-5)
    last = watch[-1]
    told = last["losses"]
    weighted = told["direction"] + 10 * told["covariance"] + 3 * told["consistency"] + 100 * told["elastic"]
    assert math.isclose(told["loss"], weighted, rel_tol=1e-5)
    assert len(last["per_clip"]) == 2, "what holds weights belongs to no CLIP"
    direction, covariance = 0.0, 0.0
    each = zip(run.clips, run.variations.z, last["image_directions"], (1.0, 0.5), strict=True)
    for clip, z, image, share in each:
        source, target = (
            n(plus(n(clip.clip.encode_text([t.replace("{}", text)])[0]) for t in tiny.TEMPLATES.templates))
            for text in ("photo", "zombie")
        )
        points = [target, *(target + n(one) for one in z)]
        texts = torch.stack([n(point - source) for point in points]).detach()
        parts = image.chunk(views)
        assert all(len(part) == 3 for part in parts)
        direction += share * float(svl.mean_loss(torch.stack(parts), texts, 0.05))
        norms = [torch.linalg.norm(part.T @ part / 3 - texts.T @ texts / 4) for part in parts]
        covariance += share * float(plus(norms)) / views
    assert math.isclose(told["direction"], direction, rel_tol=1e-4)
    assert math.isclose(told["covariance"], covariance, rel_tol=1e-4)


def test_stage_1_brings_variations_near_the_target_and_keeps_them_apart(tmp_path: Path) -> None:
    run = adapt(config(tmp_path / "run", {"steps": 150, "lr": 0.02}, train={"steps": 1}), state=tiny.given())
    first, *_, last = [line for line in run.folder.metrics() if line["stage"] == 1]
    assert last["loss"] < first["loss"] - 0.3 and last["near"] < first["near"]


def test_held_weights_stay_nearer_to_the_source(tmp_path: Path) -> None:
    start = tiny.generator().state()

    def moved(elastic: float) -> float:
        own = {"covariance": 0.0, "consistency": 0.0, "elastic": elastic}
        run = adapt(config(tmp_path / str(elastic), own, train={"steps": 8}), state=tiny.given())
        return float(plus((run.trained.state()[name] - start[name]).square().sum() for name in start))

    assert moved(1e7) < moved(0.0)


@pytest.mark.parametrize("mode", ["through", "per-step"])
def test_it_moves_diffusion_models_and_resumes_in_both_modes(tmp_path: Path, mode: str) -> None:
    def make(name: str) -> AdaptConfig:
        return tiny.tune(tmp_path / name, method="svl", diffusion={"mode": mode}, own={"svl": OWN})

    whole = adapt(make("whole"), state=tiny.given_diffusion())
    with pytest.raises(KeyboardInterrupt):
        adapt(make("parted"), state=tiny.given_diffusion(), hook=tiny.Stop((2, 5), KeyboardInterrupt()))
    again = adapt(make("parted"), state=tiny.given_diffusion())
    torch.testing.assert_close(again.generator.state(), whole.generator.state(), rtol=0, atol=0)


@pytest.mark.parametrize(("place", "kind"), [((1, 5), "weights"), ((2, 3), "weights"), ((2, 3), "lowrank")])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, place: tuple[int, int], kind: str) -> None:
    train = {"parameters": {"kind": kind}, "layers": "all"}
    whole = adapt(config(tmp_path / "whole", train=train), state=tiny.given())
    parted = config(tmp_path / "parted", train=train)
    with pytest.raises(KeyboardInterrupt):
        adapt(parted, state=tiny.given(), hook=tiny.Stop(place, KeyboardInterrupt()))
    again = adapt(parted, state=tiny.given())
    assert again.steps_done < whole.steps_done == 11
    torch.testing.assert_close(again.generator.state(), whole.generator.state(), rtol=0, atol=0)
    lines = [[{**line, "seconds": 0} for line in run.folder.metrics()] for run in (again, whole)]
    assert lines[0] == lines[1]


def test_its_plan_is_known_before_a_run(tmp_path: Path) -> None:
    known = plan(config(tmp_path / "run"), state=tiny.given())
    assert known.memory_bytes > 0 and known.parameters["mapper"] == 0
    assert not (tmp_path / "run").exists()
