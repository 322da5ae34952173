"""RSSA against golden numbers: self-correlation, disturbance correlation, latent compression, and their
gradients."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import goldenlib
from goldenlib import Arrays, Json
from zeroshift.methods import rssa
from zeroshift.models.compression import LatentCompression

GROUP = "rssa"
RUNS = goldenlib.params(GROUP)

CLOSE = 1e-5
"""Largest deviation, relative to the largest element: README of the golden numbers, section B."""

LOSSES = {
    "self": lambda source, target: rssa.self_correlation(source, target, rssa.published_sides(256)),
    "dis": rssa.disturbance_correlation,
}
QUICK = {"self": 64, "dis": 32}
"""Largest side of maps that are compared where no folder is named: larger ones take minutes."""


def loaded(run: Path) -> tuple[Json, Arrays[Tensor]]:
    meta, arrays = goldenlib.load(run)
    return meta, arrays.tensors()


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def features(meta: Json, name: str) -> tuple[Tensor, Tensor]:
    """Source and target map of a name, rebuilt from the fill rule."""
    shape, seed, mix = meta["feature_shapes"][name], meta["seed"], meta["target_mix"]
    source = goldenlib.rule(f"input/{name}_source", shape, seed)
    own = goldenlib.rule(f"input/{name}_target", shape, seed)
    return source, mix["source"] * source + mix["own"] * own


def maps_of(meta: Json, name: str) -> list[str]:
    """Names of the maps that a loss of this name was computed on."""
    listed = meta["feature_shapes"].get(name)
    if listed and isinstance(listed[0], str):
        # Smaller maps of the list count nothing, and their shapes are not told.
        return [each for each in listed if each in meta["feature_shapes"]]
    if twice := re.fullmatch(r"(.+)_twice", name):
        return [twice[1]] * 2
    if several := re.fullmatch(r"(\w+?)_(\d+)_to_(\d+)", name):
        kind, first, last = several[1], int(several[2]), int(several[3])
        sides = [4 << level for level in range(9) if first <= 4 << level <= last]
        return [f"{kind}_{side}" for side in sides]
    return [name]


def takes_long(meta: Json, name: str) -> bool:
    sides = [meta["feature_shapes"][each][-1] for each in maps_of(meta, name)]
    return max(sides) > QUICK[name.split("_")[0]]


def values(meta: Json, name: str, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
    """A loss by name, and its gradient by the target's only map."""
    source, target = zip(*(features(meta, each) for each in maps_of(meta, name)), strict=True)
    if gradient:
        target[0].requires_grad_()
    loss = LOSSES[name.split("_")[0]](source, target)
    return loss.detach(), torch.autograd.grad(loss, target[0])[0] if gradient else None


@pytest.mark.parametrize("run", RUNS)
def test_consistency_losses_and_their_gradients_are_those_of_the_authors(run: Path) -> None:
    meta, arrays = loaded(run)
    names = [name.removeprefix("loss_") for name in arrays if name.startswith("loss_")]
    assert names
    found: dict[str, float] = {}
    for name in names:
        if takes_long(meta, name) and not goldenlib.thorough():
            continue
        wants = f"grad_{name}" in arrays
        loss, gradient = values(meta, name, wants)
        found[f"loss_{name}"] = deviation(loss, arrays[f"loss_{name}"])
        if gradient is not None:
            found[f"grad_{name}"] = deviation(gradient, arrays[f"grad_{name}"])
    assert found and max(found.values()) < CLOSE, found


@pytest.mark.parametrize("run", RUNS)
def test_stored_maps_are_those_of_the_fill_rule(run: Path) -> None:
    meta, arrays = loaded(run)
    stored = [name.removesuffix("_source") for name in arrays if name.endswith("_source")]
    assert stored
    for name in stored:
        source, target = features(meta, name)
        assert torch.equal(source, arrays[f"{name}_source"])
        assert deviation(target, arrays[f"{name}_target"]) < CLOSE


@pytest.mark.parametrize("run", RUNS)
def test_compressed_styles_are_those_of_the_authors(run: Path) -> None:
    _, arrays = loaded(run)
    found = {}
    for name in (name for name in arrays if name.startswith("projected_")):
        given, setting = name.removeprefix("projected_").rsplit("_", 1)
        compression = LatentCompression.of(arrays["anchor_codes"], arrays[f"alpha_{setting}"])
        found[name] = deviation(compression(arrays[given]), arrays[name])
    assert found and max(found.values()) < CLOSE, found


@pytest.mark.parametrize("run", RUNS)
def test_every_array_is_compared(run: Path) -> None:
    _, arrays = loaded(run)
    patterns = (
        r"(loss|grad)_(self|dis)_\w+", r"(self|dis)_\w+_(source|target)", r"projected_w(_plus)?_[a-z]+"
    )  # fmt: skip
    known = {name for name in arrays if any(re.fullmatch(each, name) for each in patterns)}
    known |= {name for name in arrays if re.fullmatch(r"alpha_[a-z]+|anchor_codes|w|w_plus", name)}
    goldenlib.check_known(arrays, known)
    assert known
