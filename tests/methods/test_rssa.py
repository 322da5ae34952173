"""RSSA: consistency of correlations by slow formulas, and in less memory with equal result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from zeroshift.methods import rssa

Loss = Callable[[list[Tensor], list[Tensor]], Tensor]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(*shape: int) -> tuple[list[Tensor], list[Tensor]]:
    source = draws(*shape, seed=1)
    return [source], [0.7 * source + 0.5 * draws(*shape, seed=2)]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def slow_self(source: Tensor, target: Tensor) -> float:
    """L_scc of one map each, position by position."""

    def pooled(picture: Tensor) -> list[list[Tensor]]:
        half = picture.shape[-1] // 2
        return [
            [
                torch.stack(
                    [unit(picture[:, 2 * y + dy, 2 * x + dx]) for dy in (0, 1) for dx in (0, 1)]
                ).mean(dim=0)
                for x in range(half)
            ]
            for y in range(half)
        ]

    def smooth(difference: float) -> float:
        return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5

    grids = [(pooled(before), pooled(after)) for before, after in zip(source, target, strict=True)]
    half, inset = source.shape[-1] // 4, source.shape[-1] // 8
    corners = [(0, 0), (0, half), (half, 0), (half, half), (inset, inset)]
    means = []
    for top, left in corners:
        found = []
        for both in grids:
            old, new = ([grid[top + y][left + x] for y in range(half) for x in range(half)] for grid in both)
            found += [
                smooth(float(new[i] @ new[j]) - float(old[i] @ old[j]))
                for i in range(half**2)
                for j in range(half**2)
            ]
        means.append(sum(found) / len(found))
    return sum(means[:4]) / 4 + means[4]


def slow_disturbance(source: Tensor, target: Tensor) -> float:
    """L_dcc of one map each that is no larger than its tile, as published: position by position, for 4
    pictures."""
    total = 0.0
    count, positions = len(source), source.shape[-1] ** 2
    for j in range(count):
        later = list(range(j + 1, count))
        differences = []
        for k in later:
            for place in range(positions):
                found = []
                for maps in (source, target):
                    anchor = unit(maps[j].flatten(1)[:, place])
                    other = maps[k].flatten(1)
                    products = [float(anchor @ unit(other[:, q])) for q in range(positions)]
                    exponentials = [math.exp(each) for each in products]
                    found.append([each / sum(exponentials) for each in exponentials])
                differences += [abs(a - b) for a, b in zip(*found, strict=True)]
        if later:
            total += sum(differences) / len(differences) * len(later) * positions
    return total / 6


def test_self_correlation_is_that_of_positions_one_by_one() -> None:
    source, target = pair(2, 3, 8, 8)
    found = float(rssa.self_correlation(source, target, sides=(8,)))
    assert found == pytest.approx(slow_self(source[0], target[0]), rel=1e-4)


def test_disturbance_correlation_is_that_of_positions_one_by_one() -> None:
    source, target = pair(4, 3, 4, 4)
    found = float(rssa.disturbance_correlation(source, target))
    assert found == pytest.approx(slow_disturbance(source[0], target[0]), rel=1e-4)


def test_large_maps_are_compared_tile_by_tile() -> None:
    source, target = pair(2, 2, 64, 64)
    tiles = [
        rssa.disturbance_correlation(*([each[0][..., y : y + 16, x : x + 16]] for each in (source, target)))
        for y in range(0, 64, 16)
        for x in range(0, 64, 16)
    ]  # fmt: skip
    found = rssa.disturbance_correlation(source, target)
    assert float(found) == pytest.approx(float(torch.stack(tiles).mean()), rel=1e-5)


def test_only_the_maps_of_the_paper_count(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = (
        [draws(2, 2, side, side, seed=seed + side) for side in (8, 32, 64, 64)] for seed in (0, 1)
    )
    held = rssa.self_correlation(source, target, sides=(64, 128))
    assert torch.equal(held, rssa.self_correlation(source[2:], target[2:], sides=(64,)))
    assert float(rssa.self_correlation(source[:2], target[:2], sides=(64,))) == 0
    # In place of 128 px, which takes long: of this side the first map, and none of larger ones.
    monkeypatch.setattr(rssa, "DISTURBANCE_SIDE", 8)
    once = rssa.disturbance_correlation(source[:1], target[:1])
    others = [[draws(2, 2, 8, 8, seed=seed), *each[1:]] for seed, each in enumerate((source, target))]
    assert torch.equal(
        once, rssa.disturbance_correlation([*source[:1], *others[0]], [*target[:1], *others[1]])
    )


LOSSES: list[tuple[Loss, tuple[int, ...]]] = [
    (lambda source, target: rssa.self_correlation(source, target, sides=(64,)), (2, 3, 64, 64)),
    (rssa.disturbance_correlation, (3, 3, 16, 16)),
]


@pytest.mark.parametrize(("loss", "shape"), LOSSES, ids=["self", "disturbance"])
def test_equal_maps_cost_nothing_and_pull_nowhere(loss: Loss, shape: tuple[int, ...]) -> None:
    source, _ = pair(*shape)
    moved = source[0].clone().requires_grad_()
    found = loss(source, [moved])
    (gradient,) = torch.autograd.grad(found, moved)
    assert float(found.detach()) == 0 and float(gradient.abs().max()) == 0


@contextmanager
def kept_bytes() -> Iterator[dict[int, int]]:
    """Bytes that autograd keeps, by storage."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize(("loss", "shape"), LOSSES, ids=["self", "disturbance"])
def test_a_few_windows_at_a_time_give_the_same_and_no_correlations_are_kept(
    loss: Loss, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair(*shape)
    found = []
    for chunk in (1 << 22, 1):
        monkeypatch.setattr(rssa, "CHUNK", chunk)
        moved = [target[0].clone().requires_grad_()]
        with kept_bytes() as kept:
            value = loss(source, moved)
        found.append((value.detach(), *torch.autograd.grad(value, moved)))
    # Maps and their unit vectors, but no matrix of 256 positions by 256.
    assert max(kept.values()) < 256**2 * 4
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-5, atol=1e-9)
