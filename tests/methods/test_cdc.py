"""CDC: schedule, anchors, layers and the distance-consistency loss by slow formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zeroshift.methods import cdc


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
def test_steps_near_anchors_are_those_of_the_authors_loop(every: int) -> None:
    expected = []
    for iteration in range(32):
        which = iteration % every
        expected.append(which == 0)
    assert [cdc.near_anchors(step, every) for step in range(1, 33)] == expected


def test_latents_around_anchors_have_their_anchor_as_mean_and_the_spread_asked_for() -> None:
    centres, spread, count = cdc.anchors(12, 5, seed=3), 0.05, 2000
    found = cdc.around(centres, spread, count, seed=3, label="x", step=7)
    nearest = torch.cdist(found, centres).argmin(dim=1)
    share = nearest.bincount(minlength=5) / count
    assert float((share - 0.2).abs().max()) < 0.03
    for number, centre in enumerate(centres):
        offsets = found[nearest == number] - centre
        assert float(offsets.mean(dim=0).abs().max()) < 5 * spread / math.sqrt(len(offsets))
        assert float(offsets.std()) == pytest.approx(spread, rel=0.05)


def test_anchors_belong_to_the_seed_and_draws_to_seed_step_and_row() -> None:
    centres = cdc.anchors(12, 5, seed=3)
    assert torch.equal(centres, cdc.anchors(12, 5, seed=3))
    assert not torch.equal(centres, cdc.anchors(12, 5, seed=4))
    four, two = (cdc.around(centres, 0.1, count, seed=3, label="x", step=7) for count in (4, 2))
    assert torch.equal(four[:2], two)
    assert not torch.equal(four, cdc.around(centres, 0.1, 4, seed=3, label="x", step=8))


def test_every_layer_but_the_first_is_drawn_for_every_picture() -> None:
    drawn = torch.tensor([cdc.layers_of_anchors(5, 3, seed=0, step=step) for step in range(300)])
    assert drawn.shape == (300, 3)
    for column in drawn.T:
        assert sorted(set(column.tolist())) == [1, 2, 3, 4]
    assert not torch.equal(drawn[:, 0], drawn[:, 1])


def slow_consistency(source: list[Tensor], target: list[Tensor], layers: list[int]) -> float:
    """L_dist number by number."""
    count, total = len(layers), 0.0
    for i, layer in enumerate(layers):
        rows = []
        for maps in (source, target):
            flat = maps[layer].reshape(count, -1).double()
            cosines = [
                float(flat[i] @ flat[j]) / float(flat[i].norm() * flat[j].norm())
                for j in range(count)
                if j != i
            ]
            exponentials = [math.exp(each) for each in cosines]
            rows.append([each / sum(exponentials) for each in exponentials])
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(*rows, strict=True))
    return total / (count * (count - 1))


@pytest.mark.parametrize("layers", [[0, 1, 2, 1], [2, 2, 2, 2]])
def test_distance_consistency_is_that_of_numbers_one_by_one(layers: list[int]) -> None:
    shapes = [(4, 5, 2, 2), (4, 3, 4, 4), (4, 2, 8, 8)]
    source = [draws(*shape, seed=number) for number, shape in enumerate(shapes)]
    target = [draws(*shape, seed=9 + number) for number, shape in enumerate(shapes)]
    found = cdc.distance_consistency(source, target, layers)
    assert float(found) == pytest.approx(slow_consistency(source, target, layers), rel=1e-4)


def test_equal_pictures_cost_nothing_and_pull_nowhere() -> None:
    maps = [draws(4, 3, 4, 4)]
    moved = maps[0].clone().requires_grad_()
    loss = cdc.distance_consistency(maps, [moved], [0] * 4)
    (gradient,) = torch.autograd.grad(loss, moved)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-8) and float(gradient.abs().max()) < 1e-8


def test_scaling_a_picture_changes_no_distance_and_mixing_two_does() -> None:
    source = [draws(4, 3, 4, 4)]
    scaled = source[0] * torch.tensor([1.0, 2.0, 0.5, 3.0]).view(4, 1, 1, 1)
    mixed = torch.cat([source[0][:1] + source[0][1:2], source[0][1:]])
    loss = [float(cdc.distance_consistency(source, [each], [0] * 4)) for each in (scaled, mixed)]
    assert loss[0] == pytest.approx(0, abs=1e-7) and loss[1] > 1e-4
