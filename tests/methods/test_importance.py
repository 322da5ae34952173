"""Importance of weights and filters, by slow formulas and by cases where it is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zeroshift.methods import importance


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_fisher_information_of_a_linear_model_is_the_mean_square_of_its_input() -> None:
    x = rows(6, 3)
    weight = rows(3, seed=1).requires_grad_()
    idle = rows(2, seed=2).requires_grad_()
    found = importance.fisher((((1.0, weight @ row),) for row in x), {"w": weight, "idle": idle})
    torch.testing.assert_close(found["w"], x.square().mean(dim=0))
    assert torch.equal(found["idle"], torch.zeros_like(idle))


def test_the_fisher_information_of_a_logistic_loss_follows_from_its_slope() -> None:
    x = rows(6, 3)
    weight = rows(3, seed=1).requires_grad_()
    samples = (((2.0, torch.nn.functional.softplus(-(weight @ row))),) for row in x)
    found = importance.fisher(samples, {"w": weight})
    slope = [1 / (1 + torch.exp(weight @ row)) for row in x]
    slow = torch.stack([2 * (s * row) ** 2 for s, row in zip(slow_detached(slope), x, strict=True)])
    torch.testing.assert_close(found["w"], slow.mean(dim=0))


def slow_detached(values: list[Tensor]) -> list[Tensor]:
    return [each.detach() for each in values]


def test_the_losses_of_a_sample_add_up_by_their_shares() -> None:
    weight = rows(3, seed=1).requires_grad_()
    x = rows(2, 3)
    shared = weight * 2
    found = importance.fisher([((1.0, shared @ x[0]), (0.5, shared @ x[1]))], {"w": weight})
    torch.testing.assert_close(found["w"], (2 * x[0]) ** 2 + 0.5 * (2 * x[1]) ** 2)


def test_elastic_weights_of_mean_one_pull_back_by_their_share() -> None:
    """For L = sum_i a_i theta_i^2 / 2 about 0 with unit noise, F = a^2 exactly."""
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    fisher = importance.fisher([[(1.0, (a * theta.square() / 2).sum())]], {"theta": theta})
    torch.testing.assert_close(fisher["theta"], a**2)
    share = importance.of_mean_one(fisher)
    torch.testing.assert_close(share["theta"] * 3, fisher["theta"] / fisher["theta"].mean())
    start = {"theta": theta.detach().clone()}
    moved = theta.detach().clone().add_(rows(3)).requires_grad_()
    loss = importance.elastic_loss({"theta": moved}, start, share)
    (gradient,) = torch.autograd.grad(loss, moved)
    torch.testing.assert_close(gradient, 2 * share["theta"] * (moved - start["theta"]).detach())
    same = importance.of_mean_one({"theta": 1e6 * fisher["theta"]})
    torch.testing.assert_close(same["theta"], share["theta"], msg="the unit of F does not count")


def test_where_nothing_matters_all_weights_are_held_alike() -> None:
    share = importance.of_mean_one({"a": torch.zeros(2), "b": torch.zeros(3)})
    assert torch.equal(torch.cat(list(share.values())), torch.full((5,), 0.2))


def test_the_importance_of_a_filter_is_its_own_and_the_mean_of_what_all_share() -> None:
    v, u, bias = rows(4), rows(6, seed=1), rows(4, seed=2)
    shared = sum(float(each) for each in u) / 6
    for i in range(4):
        assert abs(importance.filter_importance(v, u)[i] - (v[i] + shared)) < 1e-12
        assert abs(importance.filter_importance(v, u, bias)[i] - (v[i] + shared + bias[i]) / 2) < 1e-12


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_a_quantile_parts_the_filters_of_a_group_by_their_importance(quantile: float) -> None:
    group = {"a": rows(7), "b": rows(13, seed=1)}
    kept = importance.most_important(group, quantile)
    assert {name: each.shape for name, each in kept.items()} == {
        name: each.shape for name, each in group.items()
    }
    values, chosen = torch.cat(list(group.values())), torch.cat(list(kept.values()))
    assert int(chosen.sum()) == 20 - int(20 * quantile)
    if 0 < quantile < 1:
        assert values[chosen].min() > values[~chosen].max()
        assert torch.equal(chosen, values > values.sort().values[int(20 * quantile) - 1])


def test_equal_filters_are_parted_too() -> None:
    kept = importance.most_important({"a": torch.ones(4)}, 0.5)
    assert kept["a"].tolist() == [False, False, True, True]
