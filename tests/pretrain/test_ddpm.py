"""The built-in diffusion model of photos: its loss is the published one, its training goes on where it was,
it meets its card."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zeroshift import portraits
from zeroshift.clip.features import normalize
from zeroshift.models.diffusion import DiffusionGenerator, build_unet, linear_betas
from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits.scene import LATENT_DIM
from zeroshift.pretrain import dataset, ddpm
from zeroshift.pretrain.__main__ import ASSETS

SMALL = ddpm.OPTIONS | {"block_out_channels": [8] * 5, "norm_num_groups": 4, "attention_head_dim": 8}
SHORT = ddpm.DdpmRecipe(steps=4, batch=3, warmup=2, fall=0.0)


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four people, and a network of a few thousand weights."""
    monkeypatch.setattr(dataset, "SHARD", 4)
    monkeypatch.setattr(ddpm, "OPTIONS", SMALL)


@pytest.mark.usefixtures("small_world")
def test_a_training_that_was_stopped_ends_bit_equal_to_one_that_was_not(tmp_path) -> None:
    data = tmp_path / "data"
    whole, _ = ddpm.train(data, tmp_path / "whole", 1, SHORT)
    ddpm.train(data, tmp_path / "parts", 1, dataclasses.replace(SHORT, steps=2))
    parts, _ = ddpm.train(data, tmp_path / "parts", 1, SHORT)
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
        ddpm.train(tmp_path, tmp_path / "work", 1, dataclasses.replace(SHORT, steps=steps))
        saved = torch.load(tmp_path / "work" / "ddpm.pt", weights_only=True)
        averages[steps] = saved["average"]
        latest[steps] = saved["unet"]
    decay = 2 / 11
    for name, value in averages[2].items():
        assert torch.allclose(value, decay * averages[1][name] + (1 - decay) * latest[2][name], atol=1e-7), (
            name
        )


def test_the_loss_is_the_error_of_the_clean_picture_weighed_by_the_signal_to_noise_ratio_and_one() -> None:
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
    model = ddpm.wrap(Guess())
    found = float(ddpm.loss_of(model.unet, model, pictures, times, noise))
    wanted = 0.0
    for k, t in enumerate(times.tolist()):
        abar = float(torch.cumprod(1 - model.betas.double(), 0)[t])
        x = abar**0.5 * pictures[k] + (1 - abar) ** 0.5 * noise[k]
        clean = abar**0.5 * x - (1 - abar) ** 0.5 * (0.3 * x + 0.1)
        wanted += (abar / (1 - abar) + 1) * float((clean - pictures[k]).square().mean()) / 3
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = ddpm.DdpmRecipe(steps=1000, peak_lr=0.5, warmup=10, fall=0.2)
    rates = [ddpm.learning_rate(step, recipe) for step in (0, 4, 9, 500, 800, 900, 999)]
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

    pictures = portraits.render(z_from_seeds(range(2), LATENT_DIM))
    found = ddpm.round_trip(ddpm.wrap(Grey()), pictures, 300, 4)
    assert found == pytest.approx(float(pictures.abs().mean()), rel=1e-4)


@pytest.mark.usefixtures("small_world")
def test_a_preview_shows_the_first_seeds_row_by_row(tmp_path) -> None:
    from PIL import Image

    model = ddpm.wrap(build_unet(SMALL).eval())
    ddpm.preview(model, tmp_path / "grid.png", steps=2, across=2, down=2)
    made = model.generate(model.latents([2]), steps=2)[0].detach().clamp(-1, 1)
    shown = (
        torch.from_numpy(np.array(Image.open(tmp_path / "grid.png")))[64:, :64].permute(2, 0, 1) / 127.5 - 1
    )
    assert float((shown - made).abs().mean()) < 0.02


def test_the_card_states_the_promised_quality() -> None:
    card = json.loads((ASSETS / "ddpm.card.json").read_text())
    quality = card["quality"]
    assert quality["frechet"] <= 2 * quality["frechet_generator"]
    assert max(quality["round_trip_500"], quality["round_trip_400"]) <= 0.03
    assert (ASSETS / "ddpm.safetensors").stat().st_size < 20e6


def test_the_shipped_model_makes_portraits_and_finds_the_way_to_the_noise_and_back() -> None:
    from zeroshift.files.registry import load_clip, load_generator

    model, info = load_generator("portraits-ddpm")
    assert isinstance(model, DiffusionGenerator) and info.world == "portraits"
    card = json.loads((ASSETS / "ddpm.card.json").read_text())["quality"]
    with torch.no_grad():
        made = model.sample(range(4), 20)
    judge = load_clip("portraits-judge")
    photo, *domains = (
        normalize(judge.encode_text(judge.templates.sentences(d))).mean(0) for d in portraits.DOMAINS
    )
    seen = normalize(judge.encode_image(made.clamp(-1, 1)))
    assert bool(((seen @ photo)[:, None] > seen @ torch.stack(domains).T).all())
    people = portraits.render(z_from_seeds(range(900, 902), LATENT_DIM))
    assert ddpm.round_trip(model, people, 500, 20) < max(0.03, 2 * card["round_trip_500"])


def test_seeds_of_the_diffusion_model_name_nobody_of_the_built_in_world(tmp_path: Path) -> None:
    from zeroshift.config.measuring import EvaluateConfig
    from zeroshift.files.images import write_png
    from zeroshift.measure.picture_sets import open_inputs

    for seed in (3, 5):
        write_png(tmp_path / f"seed{seed:05d}.png", torch.zeros(3, 64, 64))
    options = EvaluateConfig(seeds="3,5", labels=("photo", "photo"))
    for inputs in (
        open_inputs("portraits-ddpm", options),
        open_inputs(tmp_path, dataclasses.replace(options, source="portraits-ddpm")),
    ):
        assert not inputs.latents_known and "truth" not in inputs.sets and "reference" in inputs.sets
        assert inputs.missing_reasons["truth"] == (
            "a seed names no latent of the world portraits to a diffusion model"
        )
    people = open_inputs(tmp_path, dataclasses.replace(options, source="portraits"))
    assert people.latents_known and "truth" in people.sets
