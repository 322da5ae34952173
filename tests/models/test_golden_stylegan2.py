"""The official StyleGAN2 numbers: pictures, activations, logits and gradients of every run found, in both
modulation paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import goldenlib
from zeroshift.models import seeds as latent
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import Modulation, StyleGAN2Config, StyleGAN2Generator

RUNS = goldenlib.runs("stylegan2_rosinality")
GENERATORS = [run for run in RUNS if "style.1.weight" in goldenlib.load(run)[0]["keys"]]
DISCRIMINATORS = [run for run in RUNS if "final_linear.1.weight" in goldenlib.load(run)[0]["keys"]]
PATHS: list[Modulation] = ["scale", "grouped"]

# Tolerances of the golden README, section B: relative to the largest element; norm-wise where leaky-ReLU
# kinks flip.
CLOSE = 1e-5
KINKS = 1e-2
NOISE_STRENGTH = 8e-2


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def norm_deviation(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


def tensors(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    meta, arrays = goldenlib.load(run)
    return meta, {name: torch.from_numpy(array) for name, array in arrays.items()}


def generator_of(meta: dict[str, Any], modulation: Modulation = "auto") -> StyleGAN2Generator:
    config = meta["config"]
    made = StyleGAN2Generator(
        StyleGAN2Config(
            size=config["size"],
            latent_dim=config["style_dim"],
            style_dim=config["style_dim"],
            mapping_depth=config["n_mlp"],
            channel_multiplier=config["channel_multiplier"],
            lr_mlp=config["lr_mlp"],
        ),
        modulation=modulation,
    )
    made.load_state_dict({**goldenlib.fill(meta["keys"], meta["seed"]), "latent_avg": made.latent_avg})
    return made


def discriminator_of(meta: dict[str, Any]) -> StyleGAN2Discriminator:
    size, multiplier = meta["config"]["size"], meta["config"]["channel_multiplier"]
    made = StyleGAN2Discriminator(StyleGAN2Config(size=size, channel_multiplier=multiplier))
    made.load_state_dict(goldenlib.fill(meta["keys"], meta["seed"]))
    return made


def test_runs_of_both_kinds_are_there() -> None:
    goldenlib.require("stylegan2_rosinality")
    assert GENERATORS and DISCRIMINATORS and len(RUNS) == len(GENERATORS) + len(DISCRIMINATORS)


@pytest.mark.parametrize("run", RUNS, ids=goldenlib.run_name)
def test_filled_weights_pass_the_checks_of_the_json(run: Path) -> None:
    meta, _ = goldenlib.load(run)
    filled = goldenlib.fill(meta["keys"], meta["seed"])
    kernels = {key: entry for key, entry in meta["keys"].items() if "rule" in entry}
    assert all(key.endswith("kernel") and entry["shape"] == [4, 4] for key, entry in kernels.items())
    for key, check in meta["key_checks"].items():
        if key in filled:
            flat = filled[key].double().flatten()
            assert (flat[0].item(), flat[-1].item()) == (check["first"], check["last"])
            assert flat.norm().item() == pytest.approx(check["l2"], rel=1e-12)


@pytest.mark.parametrize("modulation", PATHS)
@pytest.mark.parametrize("run", GENERATORS, ids=goldenlib.run_name)
def test_generator_pictures_and_activations(run: Path, modulation: Modulation) -> None:
    meta, arrays = tensors(run)
    generator = generator_of(meta, modulation)
    assert generator.num_latents == meta["n_latent"]
    with torch.no_grad():
        w, w2 = generator.map(arrays["z"]), generator.map(arrays["z2"])
        image, activations = generator.synthesize(w, features=True)
        truncated = latent.truncate(w, arrays["truncation_latent"], meta["truncation"])
        found = {
            "w": w,
            "w2": w2,
            "image": image,
            "image_from_z": generator(arrays["z"]),
            "image_trunc": generator.synthesize(truncated),
            "image_w_plus": generator.synthesize(arrays["w_plus"]),
            "image_mix": generator.synthesize(latent.mix(w, w2, meta["inject_index"], meta["n_latent"])),
            "image_zero_noise": generator.synthesize(w, "off"),
        }
    for index, activation in enumerate(activations):
        name = f"act_{index}_first8ch"
        if name in arrays:
            samples, channels = arrays[name].shape[:2]
            found[name] = activation[:samples, :channels]
    inputs = {"z", "z2", "w_plus", "truncation_latent", "grad_target", "grad_w"}
    assert set(arrays) - inputs <= set(found)
    deviations = {name: deviation(value, arrays[name]) for name, value in found.items() if name in arrays}
    assert max(deviations.values()) < CLOSE, deviations


@pytest.mark.parametrize("modulation", PATHS)
@pytest.mark.parametrize("run", GENERATORS, ids=goldenlib.run_name)
def test_generator_gradients(run: Path, modulation: Modulation) -> None:
    meta, arrays = tensors(run)
    generator = generator_of(meta, modulation)
    w = arrays["w"].clone().requires_grad_()
    (generator.synthesize(w) * arrays["grad_target"]).sum().backward()
    assert w.grad is not None and norm_deviation(w.grad, arrays["grad_w"]) < KINKS
    norms = {name: p.grad.norm().item() for name, p in generator.named_parameters() if p.grad is not None}
    expected = meta["grad_norms_of_sum_image_times_grad_target"]
    assert set(norms) == set(expected)
    strongest = max(norm for name, norm in expected.items() if name.endswith("noise.weight"))
    for name, norm in norms.items():
        # A noise strength's gradient is one sum with strong cancellation, so it is also judged by the scale
        # of its like.
        noise = name.endswith("noise.weight")
        assert norm == pytest.approx(
            expected[name], rel=NOISE_STRENGTH if noise else 1e-3, abs=2e-3 * strongest * noise
        ), name


@pytest.mark.parametrize("run", DISCRIMINATORS, ids=goldenlib.run_name)
def test_discriminator_logits_and_picture_gradient(run: Path) -> None:
    meta, arrays = tensors(run)
    discriminator = discriminator_of(meta)
    logits = {name: value for name, value in arrays.items() if name.startswith("logits_batch")}
    assert logits
    with torch.no_grad():
        for name, expected in logits.items():
            count = int(name.removeprefix("logits_batch"))
            assert deviation(discriminator(arrays["image"][:count]), expected) < CLOSE, name
    for name in (name for name in arrays if name.startswith("grad_image_batch")):
        image = arrays["image"][: int(name.removeprefix("grad_image_batch"))].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(image).sum(), image)
        assert norm_deviation(gradient, arrays[name]) < KINKS, name
