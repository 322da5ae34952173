"""The official numbers of adversarial training: losses, R1 and path lengths of every run of `cdc` that has
them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import goldenlib
from goldenlib import Arrays, Json
from zeroshift.methods import adversarial
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

GROUP = "cdc"
GENERATORS = goldenlib.params(GROUP, wanted=lambda meta: "perturbed_keys" in meta)
DISCRIMINATORS = goldenlib.params(GROUP, wanted=lambda meta: "seed_discriminator" in meta)

# Tolerances of the golden README, section B.
CLOSE = 1e-5


def close(value: Tensor, expected: Tensor, tolerance: float = CLOSE) -> bool:
    return bool((value - expected).abs().max() <= tolerance * expected.abs().max())


def generator_of(meta: Json) -> StyleGAN2Generator:
    """The perturbed generator of a run."""
    config = meta["config"]
    made = StyleGAN2Generator(
        StyleGAN2Config(
            size=config["size"],
            latent_dim=config["style_dim"],
            style_dim=config["style_dim"],
            mapping_depth=config["n_mlp"],
            channel_multiplier=config["channel_multiplier"],
        )
    )
    state = goldenlib.fill(meta["keys"], meta["seed"])
    for key in meta["perturbed_keys"]:
        scale = meta["perturbation_scale"]
        state[key] = state[key] + goldenlib.rule(key, state[key].shape, meta["seed_perturbation"], scale)
    made.load_state_dict({**state, "latent_avg": made.latent_avg})
    return made


def discriminator_of(meta: Json) -> StyleGAN2Discriminator:
    size, multiplier = meta["config"]["size"], meta["config"]["channel_multiplier"]
    made = StyleGAN2Discriminator(StyleGAN2Config(size=size, channel_multiplier=multiplier))
    made.load_state_dict(goldenlib.fill(meta["keys"], meta["seed_discriminator"]))
    return made


def norms_agree(found: dict[str, float], expected: dict[str, float], tolerance: float) -> bool:
    """Whether gradient norms agree; gradients of next to nothing by the scale of the others."""
    largest = max(expected.values())
    return all(
        found.get(name, 0.0) == pytest.approx(value, rel=tolerance, abs=1e-6 * largest)
        for name, value in expected.items()
    )


def grads(module: torch.nn.Module) -> dict[str, float]:
    return {name: p.grad.norm().item() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("run", DISCRIMINATORS)
def test_losses_of_both_and_the_gradient_penalty(run: Path) -> None:
    meta, found = goldenlib.load(run)
    arrays: Arrays[Tensor] = found.tensors()
    discriminator = discriminator_of(meta)
    real = arrays["real_images"].requires_grad_()
    real_logits, fake_logits = discriminator(real), discriminator(arrays["fake_images"])
    assert close(real_logits, arrays["real_logits_image"])
    assert close(fake_logits, arrays["fake_logits_image"])
    loss = adversarial.discriminator_loss(real_logits, fake_logits)
    assert close(loss, arrays["d_loss_image"])
    assert close(adversarial.generator_loss(fake_logits), arrays["g_loss_image"])
    penalty = adversarial.r1_penalty(real_logits, real)
    assert close(penalty, arrays["r1_image"], 2 * CLOSE)
    penalty.backward()
    assert norms_agree(grads(discriminator), meta["grad_norms_r1"]["image"], 1e-3)


@pytest.mark.parametrize("start", [("mean0", 0.0), ("mean06", 0.6)])
@pytest.mark.parametrize("run", GENERATORS)
def test_path_lengths_their_penalty_and_the_running_mean(run: Path, start: tuple[str, float]) -> None:
    meta, found = goldenlib.load(run)
    arrays: Arrays[Tensor] = found.tensors()
    name, mean = start
    generator = generator_of(meta)
    w = generator.map(arrays["z"][:2])[:, None].expand(-1, generator.num_latents, -1)
    pictures = generator.synthesize(w)
    assert close(pictures, arrays["fake_image"])
    lengths = adversarial.path_lengths(pictures, w, arrays["path_noise_standard_normal"])
    assert close(lengths, arrays[f"path_lengths_{name}"], 2 * CLOSE)
    penalty, moved = adversarial.path_regularisation(lengths, torch.tensor(mean))
    assert close(penalty, arrays[f"path_penalty_{name}"], 2 * CLOSE)
    assert close(moved, arrays[f"path_new_mean_{name}"], 2 * CLOSE)
    assert adversarial.PATH_DECAY == meta["path_mean_decay"]


def test_every_array_is_known() -> None:
    patches = [f"{what}_patch{n}" for what in ("real_logits", "fake_logits") for n in range(4)]
    patches += [f"{what}_patch{n}" for what in ("d_loss", "g_loss", "r1") for n in range(4)]
    distance = {"layer_choice", "similarity_source", "similarity_target", "distance_loss_weighted"}
    distance |= {"distance_loss_weighted_float64_of_float32_activations"}
    paths = {
        f"path_{what}_{start}" for what in ("penalty", "new_mean", "lengths") for start in ("mean0", "mean06")
    }
    known = {"z", "path_noise_standard_normal", "fake_image", *paths, *distance, *patches}
    known |= {"real_images", "fake_images", "real_logits_image", "fake_logits_image"}
    known |= {"d_loss_image", "g_loss_image", "r1_image"}
    for each in (*GENERATORS, *DISCRIMINATORS):
        if each.values[0] is not None:
            goldenlib.check_known(goldenlib.load(each.values[0])[1], known)
