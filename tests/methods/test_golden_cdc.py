"""CDC against golden numbers: distance consistency, on given activations and on those of two generators, and
patch heads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import goldenlib
from goldenlib import Arrays, Json
from zeroshift.methods import adversarial, cdc
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.patch_heads import PatchHeads
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

GROUP = "cdc"
LOSSES = goldenlib.params(
    GROUP, wanted=lambda meta: {"kl_weight", "seed"} <= set(meta) and "keys" not in meta
)
GENERATORS = goldenlib.params(GROUP, wanted=lambda meta: "perturbed_keys" in meta)
DISCRIMINATORS = goldenlib.params(GROUP, wanted=lambda meta: "extra_keys" in meta)
PATCHES = goldenlib.params(GROUP, wanted=lambda meta: "r1_patch0" in meta["arrays"])

# Tolerances of the golden README, section B: relative to the largest element.
CLOSE = 1e-5
CANCELLING = 5e-3
"""A loss of two generators that hardly differ, in float32."""


def loaded(run: Path) -> tuple[Json, Arrays[Tensor]]:
    meta, arrays = goldenlib.load(run)
    return meta, arrays.tensors()


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def activations(arrays: Arrays[Tensor], which: str) -> list[Tensor]:
    count = sum(bool(re.fullmatch(rf"act_{which}_\d+", name)) for name in arrays)
    return [arrays[f"act_{which}_{number}"] for number in range(count)]


def rows(found: list[Tensor], layers: list[int]) -> Tensor:
    """Softmax rows of every picture in its layer."""
    return torch.stack([cdc.similarities(found[layer], i).exp() for i, layer in enumerate(layers)])


@pytest.mark.parametrize("run", LOSSES)
def test_distance_consistency_of_given_activations(run: Path) -> None:
    meta, arrays = loaded(run)
    source, target = activations(arrays, "source"), activations(arrays, "target")
    found: dict[str, float] = {}
    for name in (name for name in arrays if re.fullmatch(r"layer_choice_\d+", name)):
        number, layers = name.removeprefix("layer_choice_"), arrays[name].tolist()
        leaves = [each.clone().requires_grad_() for each in target]
        loss = meta["kl_weight"] * cdc.distance_consistency(source, leaves, layers)
        found[name] = deviation(loss.detach(), arrays[f"distance_loss_weighted_{number}"])
        for which, each in (("source", source), ("target", target)):
            name = f"similarity_{which}_{number}"
            found[name] = deviation(rows(each, layers), arrays[name])
        if (exact := arrays.get(f"distance_loss_weighted_{number}_float64")) is not None:
            double, moved = ([each.double() for each in maps] for maps in (source, target))
            loss64 = meta["kl_weight"] * cdc.distance_consistency(double, moved, layers)
            assert deviation(loss64, exact.double()) < CLOSE
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for layer, gradient in enumerate(gradients):
            name = f"grad_act_target_{layer}_choice_{number}"
            if name in arrays:
                # A layer that nobody chose has no gradient, and zeros are stored.
                made = torch.zeros_like(leaves[layer]) if gradient is None else gradient
                scale = arrays[name].abs().max().clamp_min(1e-30)
                found[name] = ((made - arrays[name]).abs().max() / scale).item()
    assert found and max(found.values()) < CLOSE, found


def generators_of(meta: Json) -> tuple[StyleGAN2Generator, StyleGAN2Generator]:
    """The source of a description, and the same with its convolutions perturbed."""
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
    filled = goldenlib.fill(meta["keys"], meta["seed"])
    made.load_state_dict({**filled, "latent_avg": made.latent_avg})
    moved = made.clone()
    scale, seed = meta["perturbation_scale"], meta["seed_perturbation"]
    changes = {key: goldenlib.rule(key, filled[key].shape, seed, scale) for key in meta["perturbed_keys"]}
    moved.load_state_dict({key: filled[key] + change for key, change in changes.items()}, strict=False)
    return made, moved


@pytest.mark.parametrize("run", GENERATORS)
def test_distance_consistency_of_two_generators(run: Path) -> None:
    meta, arrays = loaded(run)
    layers = arrays["layer_choice"].tolist()
    with torch.no_grad():
        source, target = (
            each.synthesize(each.map(arrays["z"]), features=True)[1] for each in generators_of(meta)
        )
        loss = meta["kl_weight"] * cdc.distance_consistency(source, target, layers)
        double, moved = ([each.double() for each in maps] for maps in (source, target))
        exact = meta["kl_weight"] * cdc.distance_consistency(double, moved, layers)
    for which, found in (("source", source), ("target", target)):
        assert deviation(rows(found, layers), arrays[f"similarity_{which}"]) < CLOSE
    assert deviation(loss, arrays["distance_loss_weighted"]) < CANCELLING
    name = "distance_loss_weighted_float64_of_float32_activations"
    if (expected := arrays.optional(name)) is not None:
        assert deviation(exact, expected) < CANCELLING


def discriminator_of(meta: Json) -> StyleGAN2Discriminator:
    made = StyleGAN2Discriminator(StyleGAN2Config(**meta["config"]))
    made.load_state_dict(goldenlib.fill(meta["keys"], meta["seed_discriminator"]))
    return made


def heads_of(meta: Json) -> PatchHeads:
    made = PatchHeads(StyleGAN2Config(**meta["config"]))
    filled = goldenlib.fill(meta["extra_keys"], meta["seed_extra_heads"])
    renamed = {name.replace("new_conv", "heads"): value for name, value in filled.items()}
    made.load_state_dict({name: renamed[name] for name in made.state_dict()})
    return made


@pytest.mark.parametrize("run", DISCRIMINATORS)
def test_logits_of_pictures_and_of_patches(run: Path) -> None:
    meta, arrays = loaded(run)
    discriminator, heads = discriminator_of(meta), heads_of(meta)
    found: dict[str, float] = {}
    with torch.no_grad():
        for which in ("real", "fake"):
            logits, maps = discriminator(arrays[f"{which}_images"], features=True)
            found[which] = deviation(logits, arrays[f"{which}_logits_image"])
            for name in (name for name in arrays if name.startswith(f"{which}_logits_patch")):
                head = int(name.removeprefix(f"{which}_logits_patch"))
                judged = heads.heads[head](maps[heads.numbers[head]])
                found[name] = deviation(judged, arrays[name])
    assert found and max(found.values()) < CLOSE, found


@pytest.mark.parametrize("run", LOSSES)
def test_logistic_losses_of_given_logits(run: Path) -> None:
    _, arrays = loaded(run)
    found: dict[str, float] = {}
    for name, ending in (("", ""), ("_patch", "_patch")):
        real, fake = arrays[f"real{name}_logits"], arrays[f"fake{name}_logits"]
        judged, taken = adversarial.discriminator_loss(real, fake), adversarial.generator_loss(fake)
        found[f"d_logistic{ending}"] = deviation(judged, arrays[f"d_logistic{ending}"])
        found[f"g_nonsaturating{ending}"] = deviation(taken, arrays[f"g_nonsaturating{ending}"])
    assert max(found.values()) < CLOSE, found


@pytest.mark.parametrize("run", LOSSES)
def test_every_array_of_given_losses_is_compared(run: Path) -> None:
    _, arrays = loaded(run)
    patterns = (
        r"(real|fake)(_patch)?_logits|(d_logistic|g_nonsaturating)(_patch)?",
        r"act_(source|target)_\d+|grad_act_target_\d+_choice_\d+",
        r"layer_choice_\d+|distance_loss_weighted_\d+(_float64)?|similarity_(source|target)_\d+",
    )
    goldenlib.check_known(arrays, {n for n in arrays if any(re.fullmatch(each, n) for each in patterns)})
    assert len(arrays) > 20


@pytest.mark.parametrize("run", PATCHES)
def test_losses_and_the_gradient_penalty_of_patches(run: Path) -> None:
    meta, arrays = loaded(run)
    discriminator, heads = discriminator_of(meta), heads_of(meta)
    patches = [name.removeprefix("r1_patch") for name in arrays if name.startswith("r1_patch")]
    for head in patches if goldenlib.thorough() else patches[:1]:
        real = arrays["real_images"].clone().requires_grad_()
        real_logits = heads(discriminator, real, int(head))
        fake_logits = arrays[f"fake_logits_patch{head}"]
        assert deviation(real_logits.detach(), arrays[f"real_logits_patch{head}"]) < CLOSE
        loss = adversarial.discriminator_loss(real_logits.detach(), fake_logits)
        assert deviation(loss, arrays[f"d_loss_patch{head}"]) < CLOSE
        taken = adversarial.generator_loss(fake_logits)
        assert deviation(taken, arrays[f"g_loss_patch{head}"]) < CLOSE
        penalty = adversarial.r1_penalty(real_logits, real)
        assert deviation(penalty.detach(), arrays[f"r1_patch{head}"]) < 2 * CLOSE
        expected = meta["grad_norms_r1"].get(f"patch{head}", {})
        if goldenlib.thorough():
            assert norms_agree(gradient_norms(penalty, discriminator, heads), expected)


def gradient_norms(
    penalty: Tensor, discriminator: StyleGAN2Discriminator, heads: PatchHeads
) -> dict[str, float]:
    """Norms of the gradients of a penalty by the names of the description; 0 where there is none."""
    named = dict(discriminator.named_parameters())
    named |= {name.replace("heads", "new_conv"): each for name, each in heads.named_parameters()}
    found = torch.autograd.grad(penalty, list(named.values()), allow_unused=True)
    return {
        name: 0.0 if each is None else each.norm().item() for name, each in zip(named, found, strict=True)
    }


def norms_agree(found: dict[str, float], expected: dict[str, float]) -> bool:
    """Whether norms agree; those of next to nothing by the scale of the others."""
    least = 1e-6 * max(expected.values(), default=0.0)
    return all(found[name] == pytest.approx(norm, rel=1e-3, abs=least) for name, norm in expected.items())
