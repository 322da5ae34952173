"""CR, bCR and zCR: each equation by slow formulas, and each method's terms in its own steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.methods import consistency
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.few_shot import made_pictures, open_run, random_latents, real_pictures
from zeroshift.models.seeds import rng

METHODS = {
    "cr": {"consistency_real"},
    "bcr": {"consistency_real", "consistency_made"},
    "zcr": {"consistency_latent", "apart"},
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(count: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(5))


def test_t_is_a_flip_and_then_a_shift_by_up_to_an_eighth_mirrored_at_the_edge() -> None:
    pictures = drawn(6, 3, 16, 16)
    uniform = numbers(6)
    made = consistency.moved(pictures, uniform, 0.125)
    flips = set[bool]()
    for picture, result, (flip, down, right) in zip(pictures, made, uniform.tolist(), strict=True):
        flips.add(flip < 0.5)
        seen = picture.flip(-1) if flip < 0.5 else picture
        y, x = int(5 * down) - 2, int(5 * right) - 2
        rows, columns = ([min(abs(i - step), 30 - abs(i - step)) for i in range(16)] for step in (y, x))
        assert torch.equal(result, seen[:, rows][:, :, columns])
    assert flips == {True, False}
    flat = torch.full((6, 3, 16, 16), 0.4)
    assert torch.equal(consistency.moved(flat, uniform, 0.125), flat)


def test_the_distance_of_logits_is_a_mean_square_and_0_for_what_does_not_mind_the_move() -> None:
    first, second = drawn(4, 1), drawn(4, 1, seed=1)
    slow = sum((float(a) - float(b)) ** 2 for a, b in zip(first, second, strict=True)) / 4
    assert float(consistency.logit_distance(first, second)) == pytest.approx(slow)
    # Repeats every two columns and rows, and has no sides: no flip and no even shift changes its mean.
    pictures = drawn(4, 3, 1, 1).expand(4, 3, 16, 16)
    moved = consistency.moved(pictures, numbers(4), 0.125)
    logits = [each.mean((1, 2, 3))[:, None] for each in (pictures, moved)]
    assert float(consistency.logit_distance(*logits)) == pytest.approx(0.0, abs=1e-24)


def test_the_distance_has_its_exact_value_on_a_linear_discriminator() -> None:
    pictures, weight = drawn(4, 3, 16, 16), drawn(3, 16, 16, seed=1)
    moved = consistency.moved(pictures, numbers(4), 0.125)

    def linear(x: Tensor) -> Tensor:
        return torch.einsum("bchw,chw->b", x, weight)[:, None]

    exact = ((moved - pictures).flatten(1) @ weight.flatten()).square().mean()
    torch.testing.assert_close(consistency.logit_distance(linear(pictures), linear(moved)), exact)


def test_the_generator_holds_pictures_of_neighbours_apart() -> None:
    z, noise, matrix = drawn(3, 5), drawn(3, 5, seed=1), drawn(5, 12, seed=2).requires_grad_()
    near = consistency.neighbour(z, noise, 0.05)
    torch.testing.assert_close(near - z, 0.05 * noise)
    made = [(each @ matrix).view(3, 3, 2, 2) for each in (z, near)]
    distance = consistency.picture_distance(*made)
    torch.testing.assert_close(distance, (0.05 * noise @ matrix).square().mean())
    # A small step down the term, which is the distance with a negative weight, makes the distance larger.
    (-0.5 * distance).backward()
    assert matrix.grad is not None
    with torch.no_grad():
        moved = matrix - 0.01 * matrix.grad
        made = [(each @ moved).view(3, 3, 2, 2) for each in (z, near)]
        assert consistency.picture_distance(*made) > distance


def carried_out(out: Path, method: str, hook: Any = None, *, steps: int = 4, **overrides: Any) -> AdaptRun:
    config = tiny.learn(out, method, train={"steps": steps}, monitor={"every": 0}, **overrides)
    return adapt(config, hook=hook, state=tiny.given_few_shot())


def terms(run: AdaptRun) -> dict[str, float]:
    return {
        name: value
        for name, value in run.folder.metrics()[0].items()
        if "consistency" in name or name == "apart"
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_own_terms_and_a_resumed_run_equals_an_uninterrupted_one(
    method: str, tmp_path: Path
) -> None:
    whole = carried_out(tmp_path / "whole", method)
    assert set(terms(whole)) == METHODS[method] and all(terms(whole).values())
    with pytest.raises(ZeroDivisionError):
        carried_out(tmp_path / "run", method, tiny.Stop((2, 3), ZeroDivisionError()))
    first, second = (run.generator.state_dict() for run in (whole, carried_out(tmp_path / "run", method)))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_terms_of_the_first_step_are_those_of_its_pictures(tmp_path: Path) -> None:
    found: dict[str, float] = {}
    for method in METHODS:
        found |= terms(carried_out(tmp_path / method, method, steps=1))
    run = open_run(tiny.learn(tmp_path / "slow", "bcr"), tiny.given_few_shot())
    latents = random_latents(run, "discriminator", step=1)
    with torch.no_grad():
        made = made_pictures(run, run.target, latents)
        for label, pictures in (("real", real_pictures(run, 1)), ("made", made)):
            uniform = torch.stack(
                [torch.rand(3, generator=rng("consistency", 0, label, 1, i)) for i in range(4)]
            )
            # Both of a pair are augmented in the same way.
            logits = [
                run.discriminator(run.augmented(each, label, 1))
                for each in (pictures, consistency.moved(pictures, uniform, 0.125))
            ]
            assert found[f"consistency_{label}"] == pytest.approx(
                float((logits[0] - logits[1]).square().mean()), rel=1e-4
            )
        noise = torch.stack(
            [torch.randn(12, generator=rng("neighbour", 0, "discriminator", 1, i)) for i in range(4)]
        )
        near = made_pictures(
            run,
            run.target,
            type(latents)(latents.z + 0.05 * noise, latents.label, 1, latents.second, latents.cut),
        )
        logits = [run.judge(each, "made", 1) for each in (made, near)]
        assert found["consistency_latent"] == pytest.approx(
            float((logits[0] - logits[1]).square().mean()), rel=1e-4
        )


def test_without_its_weights_a_method_is_the_plain_one(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"adversarial": {"augment": {"kind": "none"}}, "steps": 2}
    control = carried_out(tmp_path / "tgan", "tgan", steps=2).generator.state_dict()
    for method in METHODS:
        nothing = {"real": 0.0, "made": 0.0, "latent": 0.0, "apart": 0.0}
        run = carried_out(tmp_path / method, method, cr=nothing, **plain)
        state = run.generator.state_dict()
        assert all(torch.equal(state[name], control[name]) for name in control)
    tied = carried_out(tmp_path / "tied", "cr", **plain).generator.state_dict()
    assert not all(torch.equal(tied[name], control[name]) for name in control)
