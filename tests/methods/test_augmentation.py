"""Augmentation of a run: which one it is, that all that is judged goes through it, and that its chance goes
on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.config.own import AugmentConfig
from zeroshift.errors import InputError
from zeroshift.methods import adversarial
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.augmentation import FEW, Augmentation
from zeroshift.methods.few_shot import FewShotRun, open_run, real_pictures
from zeroshift.models import augment
from zeroshift.models.seeds import rng

Event = dict[str, Any]


def options(**augmentation: Any) -> dict[str, Any]:
    return {"adversarial": {"augment": augmentation}}


def opened(out: Path, method: str = "freezed", **augmentation: Any) -> FewShotRun:
    return open_run(tiny.learn(out, method, **options(**augmentation)), tiny.given_few_shot())


def sources(label: str, step: int, count: int = 4) -> list[torch.Generator]:
    return [rng("augment", 0, label, step, i) for i in range(count)]


@pytest.mark.parametrize(
    ("method", "shots", "asked", "kind", "adaptive"),
    [
        ("freezed", FEW - 1, {}, "ada", False),
        ("freezed", FEW, {}, "ada", True),
        ("freezed", 10, {"adaptive": True}, "ada", True),
        ("tgan", 10, {}, "none", False),
        ("tgan", FEW, {}, "none", False),
        ("tgan", 10, {"kind": "ada"}, "ada", False),
        ("dag", FEW, {"kind": "ada"}, "ada", False),
        ("dag", 10, {"kind": "diffaugment", "adaptive": True}, "diffaugment", False),
        ("dag", 10, {"kind": "none"}, "none", False),
    ],
)
def test_few_pictures_have_a_fixed_chance_many_an_adaptive_one_and_the_control_none(
    method: str, shots: int, asked: dict[str, Any], kind: str, adaptive: bool, tmp_path: Path
) -> None:
    made = Augmentation(tiny.learn(tmp_path / "run", method, **options(**asked)), shots)
    assert (made.kind, made.adaptive is not None) == (kind, adaptive)
    assert made.p == AugmentConfig().p


def test_what_is_judged_is_the_augmented_picture(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", kind="ada", p=0.7)
    shown = real_pictures(run, 3)
    slow = augment.ada(shown, augment.ada_numbers(sources("real", 3)), 0.7, ("blit", "geom", "color"))
    assert torch.equal(run.judge(shown, "real", 3), run.discriminator(slow))
    assert torch.equal(run.judge(shown, "real", 3, precise=True), run.discriminator(slow))
    assert not torch.equal(run.judge(shown, "real", 3), run.judge(shown, "made", 3))
    plain = opened(tmp_path / "run", kind="none")
    assert torch.equal(plain.judge(shown, "real", 3), run.discriminator(shown))
    always = opened(tmp_path / "run", kind="diffaugment", policy=("cutout",))
    slow = augment.diffaugment(shown, augment.diffaugment_numbers(sources("real", 3)), ("cutout",))
    assert torch.equal(always.judge(shown, "real", 3), run.discriminator(slow))


def test_r1_is_the_slope_along_the_pixels_before_they_are_augmented(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", kind="ada", p=1.0, parts=("color",))
    run.free("discriminator")
    real = real_pictures(run, 1).requires_grad_()
    penalty = adversarial.r1_penalty(run.judge(real, "r1", 1, precise=True), real)
    # By hand: the slope along augmented pixels, brought back by the transposed colours.
    _, matrix = augment.ada_colour(augment.ada_numbers(sources("r1", 1)), 1.0)
    inner = run.augmented(real, "r1", 1).detach().requires_grad_()
    (slope,) = torch.autograd.grad(run.discriminator(inner).sum(), inner)
    back = torch.einsum("bij,bihw->bjhw", matrix[:, :3, :3].float(), slope)
    torch.testing.assert_close(penalty, back.square().sum((1, 2, 3)).mean())
    penalty.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in run.discriminator.parameters())


def carried_out(out: Path, hook: Any = None, **augmentation: Any) -> AdaptRun:
    short: dict[str, Any] = {"train": {"steps": 4}, "monitor": {"every": 0}}
    config = tiny.learn(out, "freezed", **short, **options(**augmentation))
    return adapt(config, hook=hook, state=tiny.given_few_shot())


def states(run: AdaptRun) -> dict[str, Tensor]:
    return run.generator.state_dict()


@pytest.mark.parametrize(
    "augmentation",
    [{"kind": "ada"}, {"adaptive": True, "every": 2, "ramp": 40, "p": 0.2}, {"kind": "diffaugment"}],
)
def test_a_resumed_run_with_augmentation_equals_an_uninterrupted_one(
    augmentation: Event, tmp_path: Path
) -> None:
    whole = carried_out(tmp_path / "whole", **augmentation)
    with pytest.raises(ZeroDivisionError):
        carried_out(tmp_path / "run", tiny.Stop((2, 3), ZeroDivisionError()), **augmentation)
    again = carried_out(tmp_path / "run", **augmentation)
    first, second = states(whole), states(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = states(carried_out(tmp_path / "plain", kind="none"))
    assert not all(torch.equal(first[name], plain[name]) for name in first)


def test_an_adaptive_chance_follows_r_t_of_the_steps_and_is_told(tmp_path: Path) -> None:
    run = carried_out(tmp_path / "run", adaptive=True, every=2, ramp=40, p=0.2)
    lines = run.folder.metrics()
    p, expected = 0.2, []
    for first, second in zip(lines[::2], lines[1::2], strict=False):
        expected += [p, p]
        p = augment.next_chance(p, (first["overfitting"] + second["overfitting"]) / 2, 0.6, 8, 40)
    assert [line["augment_p"] for line in lines] == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_a_wrong_augmentation_is_one_sentence(tmp_path: Path) -> None:
    wrongs: list[Event] = [{"p": 1.5}, {"parts": ()}, {"kind": "wavelets"}]
    for wrong in wrongs:
        with pytest.raises(InputError, match="adversarial.augment"):
            opened(tmp_path / "run", **wrong)
