"""EWC: how much weights matter, and what holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.config.schema import AdaptConfig
from zeroshift.methods import ewc
from zeroshift.methods.adapt import adapt
from zeroshift.methods.few_shot import made_pictures, random_latents


def config(out: Path, method: str = "ewc", own: Mapping[str, Any] | None = None) -> AdaptConfig:
    train = {"batch": 2, "steps": 6, "ema": 0.0}
    return tiny.learn(
        out,
        method,
        train=train,
        own={"ewc": {"pictures": 3} | dict(own or {})},
        monitor={"every": 0},
        adversarial={"augment": {"kind": "none"}},
    )


def state(out: Path, *arguments: Any) -> dict[str, Tensor]:
    return adapt(config(out, *arguments), state=tiny.given_few_shot()).generator.state_dict()


def test_the_importance_of_a_weight_is_its_mean_squared_gradient_over_pictures(tmp_path: Path) -> None:
    run = ewc.open_run(config(tmp_path / "run"), tiny.given_few_shot(dtype=torch.float64))
    found = run.importance()
    assert set(found) == set(run.moving)
    torch.testing.assert_close(sum(float(each.sum()) for each in found.values()), 1.0)
    named = dict(run.target.named_parameters())
    weights = [named[name].requires_grad_(True) for name in run.moving]
    squares = [torch.zeros_like(each) for each in weights]
    for number in (1, 2):
        for i in range(2):
            made = made_pictures(run, run.target, random_latents(run, "importance", step=number))
            loss = torch.sigmoid(run.discriminator(made)[i, 0]).log()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for square, gradient in zip(squares, gradients, strict=True):
                square += 0 if gradient is None else gradient**2
    total = sum(float(each.sum()) for each in squares)
    for name, square in zip(run.moving, squares, strict=True):
        torch.testing.assert_close(found[name], square / total, rtol=1e-6, atol=1e-15)
    with run.loop.recorded():
        ewc.train(run)
        torch.testing.assert_close(run.importance(), found, rtol=0, atol=0)


def test_without_weight_it_is_plain_training_and_with_much_the_weights_that_matter_stay(
    tmp_path: Path,
) -> None:
    plain = state(tmp_path / "tgan", "tgan")
    none, some, much = (
        state(tmp_path / str(weight), "ewc", {"weight": weight}) for weight in (0.0, 1e2, 1e6)
    )
    assert plain.keys() == none.keys()
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    held = ewc.open_run(config(tmp_path / "run"), tiny.given_few_shot()).importance()
    source = tiny.generator().state_dict()

    def way(made: Mapping[str, Tensor]) -> float:
        return float(sum((held[name] * (made[name] - source[name]).square()).sum() for name in held))

    assert way(none) > way(some) > 3 * way(much) > 0


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = state(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="pulled"):
        adapt(
            config(tmp_path / "parts"),
            state=tiny.given_few_shot(),
            hook=tiny.Stop((2, 5), RuntimeError("pulled")),
        )
    parts = state(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
