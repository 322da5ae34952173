"""DAG: its transforms, heads and means by slow formulas, and its steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.methods import adversarial, dag
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.methods.few_shot import made_pictures, random_latents, real_pictures

Form = Literal["shared", "own"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def opened(out: Path, **own: Any) -> dag.DagRun:
    return dag.open_run(tiny.learn(out, "dag", dag=own), tiny.given_few_shot())


# Transforms.


def test_every_set_begins_with_the_identity_and_has_the_published_count() -> None:
    pictures = drawn(2, 3, 8, 8)
    assert {name: len(each) for name, each in dag.SETS.items()} == {
        "rotation": 4,
        "fliprot": 4,
        "cropping": 5,
        "flipcrop": 6,
    }
    for changes in dag.SETS.values():
        made = [change(pictures) for change in changes]
        assert torch.equal(made[0], pictures) and all(each.shape == pictures.shape for each in made)
        assert len({str(each.tolist()) for each in made}) == len(made)


def test_a_quarter_of_a_turn_has_order_four_and_the_set_of_turns_its_powers() -> None:
    pictures = drawn(2, 3, 8, 8)
    quarter = dag.SETS["rotation"][1]
    seen = pictures
    for change in dag.SETS["rotation"]:
        assert torch.equal(change(pictures), seen)
        seen = quarter(seen)
    assert torch.equal(seen, pictures)


def test_flips_are_undone_by_themselves_and_what_is_transposed_is_turned_clockwise() -> None:
    pictures = drawn(2, 3, 8, 8)
    _, across, down, turn = dag.SETS["fliprot"]
    assert torch.equal(across(pictures)[..., 0], pictures[..., 7]) and torch.equal(
        down(pictures)[..., 0, :], pictures[..., 7, :]
    )
    assert torch.equal(across(across(pictures)), pictures)
    assert torch.equal(turn(pictures), torch.rot90(pictures, -1, (-2, -1)))


def test_a_crop_is_a_corner_of_three_quarters_brought_to_full_size() -> None:
    pictures = drawn(1, 3, 8, 8)
    made = dag.cropped(pictures, 1, 0)
    corner = pictures[0, 0, 2:, :6]
    for row in range(8):
        for column in range(8):
            y, x = ((each + 0.5) * 0.75 - 0.5 for each in (row, column))
            y, x = min(max(y, 0.0), 5.0), min(max(x, 0.0), 5.0)
            top, left = min(int(y), 4), min(int(x), 4)
            slow = sum(
                abs(1 - i - (y - top)) * abs(1 - j - (x - left)) * float(corner[top + i, left + j])
                for i in (0, 1)
                for j in (0, 1)
            )
            assert float(made[0, 0, row, column]) == pytest.approx(slow)


# Means and heads.


def test_the_mean_counts_the_plain_loss_where_it_is_shared() -> None:
    plain, changed = torch.tensor(2.0), [torch.tensor(each) for each in (1.0, 4.0, 5.0)]
    assert float(dag.mean_over_transforms(plain, changed, "shared")) == 3.0
    assert float(dag.mean_over_transforms(plain, changed, "own")) == pytest.approx(10 / 3)


@pytest.mark.parametrize("form", ["shared", "own"])
def test_with_the_identity_alone_and_tied_heads_it_is_the_plain_loss_1_plus_lambda_times(
    form: Form, tmp_path: Path
) -> None:
    run = opened(tmp_path / "run")
    head = run.discriminator.final_linear[-1]
    heads = [head] if form == "own" else []
    pictures = real_pictures(run, 1), made_pictures(run, run.target, random_latents(run, "made", step=1))
    logits = [
        dag.judged(run.discriminator.last_features, head, heads, (dag.unchanged,), each) for each in pictures
    ]
    (real, other_real), (fake, other_fake) = logits
    plain = adversarial.discriminator_loss(real, fake)
    changed = [adversarial.discriminator_loss(*each) for each in zip(other_real, other_fake, strict=True)]
    total = plain + 0.3 * dag.mean_over_transforms(plain, changed, form)
    expected = adversarial.discriminator_loss(*(run.discriminator(each) for each in pictures))
    torch.testing.assert_close(total, 1.3 * expected)


@pytest.mark.parametrize("form", ["shared", "own"])
def test_heads_begin_as_the_plain_one_and_judge_their_own_transform(form: Form, tmp_path: Path) -> None:
    run = opened(tmp_path / "run", transforms="rotation", form=form)
    pictures = real_pictures(run, 1)
    plain, others = run.all_logits(pictures, "real", 1)
    assert len(others) == {"shared": 3, "own": 4}[form]
    shown = run.augmented(pictures, "real", 1)
    turns = [torch.rot90(shown, count, (-2, -1)) for count in range(4)]
    expected = [run.discriminator(each) for each in turns]
    torch.testing.assert_close(plain, expected[0])
    torch.testing.assert_close(others, expected[-len(others) :])
    assert torch.equal(plain, run.judge(pictures, "real", 1))


def test_heads_get_gradients_of_their_own_loss_alone(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", transforms="cropping")
    run.free("discriminator")
    plain, others = run.all_logits(real_pictures(run, 1), "real", 1)
    last: Any = run.discriminator.final_linear[-1]
    heads: list[Any] = list(run.networks["dag"].children())
    for number, logits in enumerate([plain, *others]):
        loss = adversarial.generator_loss(logits)
        weights = [each.weight for each in (last, *heads)]
        found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
        assert [each is not None for each in found] == [place == number for place in range(5)]
    trained = run.loop.stage.trains["discriminator"].weights
    assert sum(name.startswith("dag.") for name in trained) == 8
    copied = copy.deepcopy(run.discriminator.state_dict())
    assert torch.equal(heads[0].weight, copied["final_linear.1.weight"])


# Runs.


def carried_out(out: Path, hook: Any = None, *, steps: int = 4, **overrides: Any) -> AdaptRun:
    method = overrides.pop("method", "dag")
    config = tiny.learn(out, method, train={"steps": steps}, monitor={"every": 0}, **overrides)
    return adapt(config, hook=hook, state=tiny.given_few_shot())


def test_the_terms_of_the_first_step_are_the_mean_over_transforms(tmp_path: Path) -> None:
    own = {"transforms": "rotation", "form": "own", "weight": 0.7}
    line = carried_out(tmp_path / "run", steps=1, dag=own).folder.metrics()[0]
    run = opened(tmp_path / "slow", **own)
    with torch.no_grad():
        made = made_pictures(run, run.target, random_latents(run, "discriminator", step=1))
        real = run.augmented(real_pictures(run, 1), "real", 1)
        made = run.augmented(made, "made", 1)
        losses = [
            adversarial.discriminator_loss(
                *(run.discriminator(torch.rot90(each, count, (-2, -1))) for each in (real, made))
            )
            for count in range(4)
        ]
    assert line["discriminator"] == pytest.approx(float(losses[0]), rel=1e-4)
    mean = float(sum(losses) / 4)
    assert line["discriminator_dag"] == pytest.approx(mean, rel=1e-4)
    assert line["discriminator_loss"] == pytest.approx(float(losses[0]) + 0.7 * mean, rel=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one_and_its_checkpoints_hold_the_heads(tmp_path: Path) -> None:
    whole = carried_out(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        carried_out(tmp_path / "run", tiny.Stop((2, 3), ZeroDivisionError()))
    again = carried_out(tmp_path / "run")
    first, second = (run.generator.state_dict() for run in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = [run.folder.load_checkpoint() for run in (whole, again)]
    heads = [
        {name: each for name, each in made[0].items() if name.startswith("dag/")} for made in found if made
    ]
    assert len(heads[0]) == 10 and all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    start = tiny.discriminator().state_dict()["final_linear.1.weight"]
    weights = [each for name, each in heads[0].items() if name.endswith("weight")]
    assert not any(torch.equal(each, start) for each in weights)
    assert len({str(each.tolist()) for each in weights}) == 5


def test_without_its_weight_it_is_the_plain_method(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"adversarial": {"augment": {"kind": "none"}}, "steps": 2}
    run = carried_out(tmp_path / "run", dag={"weight": 0.0}, **plain)
    control = carried_out(tmp_path / "tgan", method="tgan", steps=2).generator.state_dict()
    state = run.generator.state_dict()
    assert all(torch.equal(state[name], control[name]) for name in control)


def test_the_estimate_of_memory_counts_every_transform(tmp_path: Path) -> None:
    needed = [
        plan(tiny.learn(tmp_path / name, "dag", dag={"transforms": name}), state=tiny.given_few_shot())
        for name in ("rotation", "cropping", "flipcrop")
    ]
    first, second, third = (each.memory_bytes for each in needed)
    # One transform more each time, and its head.
    assert third - second == pytest.approx(second - first, rel=0.3) and second > first
