"""The official numbers of the face network IR-SE50: embeddings, identity loss and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import goldenlib
from goldenlib import Arrays, Json
from zeroshift.files.faces import IrSe, IrSeConfig, ir_se_of
from zeroshift.measure.metrics import identity_similarity

# Section B of the golden README, relative to the largest element.
CLOSE = 1e-5


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module", params=goldenlib.params("arcface"))
def run(request: pytest.FixtureRequest) -> tuple[Json, Arrays[Tensor], IrSe]:
    """Description, arrays, and our network with the weights of the fill rule."""
    meta, arrays = goldenlib.load(request.param)
    network = ir_se_of(goldenlib.fill(meta["keys"], meta["seed"]))
    return meta, arrays.tensors(), network


def enlarged(grid: Tensor, factor: int) -> Tensor:
    return grid.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def test_the_sizes_are_read_off_the_weights(run: Any) -> None:
    meta, _, network = run
    assert meta["config"]["num_layers"] == 50 and meta["config"]["mode"] == "ir_se"
    assert network.config == IrSeConfig(size=meta["config"]["input_size"])
    assert set(network.state_dict()) == set(meta["keys"])


def test_embeddings_of_faces(run: Any) -> None:
    _, arrays, network = run
    found = network(arrays["images_112"])
    assert deviation(found, arrays["embedding_112"]) < CLOSE
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-6)


def test_embeddings_of_pictures_are_those_of_the_published_crop(run: Any) -> None:
    meta, arrays, network = run
    for which in ("a", "b"):
        pictures = enlarged(arrays[f"grid_256_{which}"], meta["config"]["grid_upscale"])
        assert deviation(network.embed(pictures), arrays[f"embedding_256_{which}"]) < CLOSE


def test_the_identity_loss_and_its_gradient(run: Any) -> None:
    meta, arrays, network = run
    factor, grid = meta["config"]["grid_upscale"], arrays["grid_256_b"].clone().requires_grad_()
    source = network.embed(enlarged(arrays["grid_256_a"], factor))
    losses = 1 - identity_similarity(source, network.embed(enlarged(grid, factor)))
    assert deviation(losses.detach(), arrays["id_loss"]) < CLOSE
    (gradient,) = torch.autograd.grad(losses.sum(), grid)
    # PReLU kinks flip with the rounding: by the norm, as the golden README says.
    expected = arrays["grad_grid_256_b"]
    assert float((gradient - expected).norm() / expected.norm()) < 0.01


def test_every_array_is_compared(run: Any) -> None:
    _, arrays, _ = run
    known = {"images_112", "embedding_112", "id_loss", "grad_grid_256_b"}
    known |= {f"{what}_256_{which}" for what in ("grid", "embedding") for which in ("a", "b")}
    goldenlib.check_known(arrays, known)
