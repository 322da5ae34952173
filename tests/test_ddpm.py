"""The built-in diffusion model of photos: its loss is the published one, its training goes on where it was, it meets its card."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zeroshift import latent, portraits
from zeroshift.diffusion import build_unet, linear_betas
from zeroshift.portraits import dataset, train_ddpm
from zeroshift.portraits.scene import LATENT_DIM

SMALL = train_ddpm.OPTIONS | {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "attention_head_dim": 8}
SHORT = train_ddpm.DdpmRecipe(steps=4, batch=3, warmup=2, fall=0.0)


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four people, and a network of a few thousand weights."""
    monkeypatch.setattr(dataset, "SHARD", 4)
    monkeypatch.setattr(train_ddpm, "OPTIONS", SMALL)


@pytest.mark.usefixtures("small_world")
def test_a_training_that_was_stopped_ends_bit_equal_to_one_that_was_not(tmp_path) -> None:
    data = tmp_path / "data"
    whole, _ = train_ddpm.train(data, tmp_path / "whole", 1, SHORT)
    train_ddpm.train(data, tmp_path / "parts", 1, dataclasses.replace(SHORT, steps=2))
    parts, _ = train_ddpm.train(data, tmp_path / "parts", 1, SHORT)
    start = build_unet(SMALL, SHORT.seed).state_dict()
    assert all(torch.equal(value, parts.state()[name]) for name, value in whole.state().items())
    assert not all(torch.equal(value, whole.unet.state_dict()[name]) for name, value in start.items())
    rows = [json.loads(line)["step"] for line in (tmp_path / "parts" / "ddpm.jsonl").read_text().splitlines()]
    assert rows == [0, 1, 3]


@pytest.mark.usefixtures("small_world")
def test_the_averaged_weights_are_those_of_the_slow_formula(tmp_path) -> None:
    averages: dict[int, dict[str, Tensor]] = {}
    latest: dict[int, dict[str, Tensor]] = {}
    for steps in (1, 2):
        train_ddpm.train(tmp_path, tmp_path / "work", 1, dataclasses.replace(SHORT, steps=steps))
        saved = torch.load(tmp_path / "work" / "ddpm.pt", weights_only=True)
        averages[steps], latest[steps] = saved["average"], saved["unet"]
    decay = 2 / 11
    for name, value in averages[2].items():
        assert torch.allclose(value, decay * averages[1][name] + (1 - decay) * latest[2][name], atol=1e-7), name


def test_the_loss_is_the_error_of_the_clean_picture_under_a_bounded_signal_to_noise_ratio() -> None:
    class Guess(nn.Module):
        config = copy.copy(build_unet(SMALL).config)

        def __init__(self) -> None:
            super().__init__()
            self.number_format = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> tuple[Tensor]:
            return (0.3 * x + 0.1,)

    draw = torch.Generator().manual_seed(0)
    pictures, noise = (torch.randn(3, 3, 64, 64, generator=draw) for _ in range(2))
    times = torch.tensor([20, 300, 900])
    model = train_ddpm.wrap(Guess())
    found = float(train_ddpm.loss_of(model.unet, model, pictures, times, noise, (0.03, 5.0)))
    wanted = 0.0
    for k, t in enumerate(times.tolist()):
        abar = float(torch.cumprod(1 - model.betas.double(), 0)[t])
        x = abar**0.5 * pictures[k] + (1 - abar) ** 0.5 * noise[k]
        clean = abar**0.5 * x - (1 - abar) ** 0.5 * (0.3 * x + 0.1)
        wanted += min(max(abar / (1 - abar), 0.03), 5.0) * float((clean - pictures[k]).square().mean()) / 3
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = train_ddpm.DdpmRecipe(steps=1000, peak_lr=0.5, warmup=10, fall=0.2)
    rates = [train_ddpm.learning_rate(step, recipe) for step in (0, 4, 9, 500, 800, 900, 999)]
    assert rates == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.5, 0.25, 0.0025])


def test_a_network_that_believes_in_grey_loses_the_whole_picture_on_the_way_back() -> None:
    class Grey(nn.Module):
        config = copy.copy(build_unet(SMALL).config)

        def __init__(self) -> None:
            super().__init__()
            self.number_format = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> tuple[Tensor]:
            abar = torch.cumprod(1 - linear_betas(), 0)[t].view(-1, 1, 1, 1)
            return ((abar / (1 - abar)).sqrt() * x,)

    pictures = portraits.render(latent.z_from_seeds(range(2), LATENT_DIM))
    found = train_ddpm.round_trip(train_ddpm.wrap(Grey()), pictures, 300, 4)
    assert found == pytest.approx(float(pictures.abs().mean()), rel=1e-4)


@pytest.mark.usefixtures("small_world")
def test_a_preview_shows_the_first_seeds_row_by_row(tmp_path) -> None:
    from PIL import Image

    model = train_ddpm.wrap(build_unet(SMALL).eval())
    train_ddpm.preview(model, tmp_path / "grid.png", steps=2, across=2, down=2)
    made = model.generate(model.latents([2]), steps=2)[0].detach().clamp(-1, 1)
    shown = torch.from_numpy(np.array(Image.open(tmp_path / "grid.png")))[64:, :64].permute(2, 0, 1) / 127.5 - 1
    assert float((shown - made).abs().mean()) < 0.02
