"""The official numbers of NVIDIA's StyleGAN2: its weights under its names, read into ours, give its pictures
and logits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import goldenlib
import tiny
from goldenlib import Arrays, Json
from zeroshift.files import checkpoints, formats, layouts
from zeroshift.files.pickles import Content
from zeroshift.models import ops
from zeroshift.models import seeds as latent
from zeroshift.models.stylegan2 import Modulation, StyleGAN2Generator

GENERATORS = goldenlib.params("stylegan2_nvidia", wanted=lambda meta: "mapping.w_avg" in meta["keys"])
DISCRIMINATORS = goldenlib.params("stylegan2_nvidia", wanted=lambda meta: "b4.fc.weight" in meta["keys"])
PATHS: list[Modulation] = ["scale", "grouped"]

# Section B of the golden README, relative to the largest element.
CLOSE = 1e-5


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def filled(meta: Json) -> dict[str, Tensor]:
    """State dict of NVIDIA's network: the fill rule, and the resampling filters as constructed."""
    filters = {key: ops.fir_kernel() for key, entry in meta["keys"].items() if "rule" in entry}
    assert all(key.endswith("resample_filter") and meta["keys"][key]["shape"] == [4, 4] for key in filters)
    return goldenlib.fill(meta["keys"], meta["seed"]) | filters


@pytest.fixture(scope="module", params=GENERATORS)
def run(request: pytest.FixtureRequest) -> tuple[Json, Arrays[Tensor], dict[str, Tensor], StyleGAN2Generator]:
    """Description, arrays, NVIDIA's weights, and our generator of them."""
    meta, arrays = goldenlib.load(request.param)
    state = filled(meta)
    generator = tiny.styled(checkpoints.generator_of(Content("torch", state))).eval().requires_grad_(False)
    return meta, arrays.tensors(), state, generator


def test_the_architecture_is_read_off_the_weights(run: Any) -> None:
    meta, _, _, generator = run
    config, found = meta["config"], generator.config
    assert (found.size, found.mapping_depth, found.num_classes) == (
        config["img_resolution"],
        config["num_layers"],
        config["c_dim"],
    )
    assert (found.latent_dim, found.style_dim, generator.num_latents) == (
        config["z_dim"],
        config["w_dim"],
        meta["num_ws"],
    )
    sides = [4 << level for level in range(found.size.bit_length() - 2)]
    assert [found.channels(side) for side in sides] == [
        min(config["channel_base"] // side, config["channel_max"]) for side in sides
    ]


def test_styles_and_truncation(run: Any) -> None:
    meta, arrays, _, generator = run
    w = generator.map(arrays["z"], arrays.get("c"))
    assert deviation(w, arrays["w"]) < CLOSE
    truncated = latent.truncate(w, generator.latent_avg, meta["truncation_psi"])
    if (golden := arrays.optional("ws_trunc")) is not None:
        assert deviation(truncated, golden) < CLOSE
    if (golden := arrays.optional("ws_trunc_cutoff")) is not None:
        cut = latent.mix(truncated, w, meta["truncation_cutoff"], generator.num_latents)
        assert deviation(cut, golden) < CLOSE


@pytest.mark.parametrize("modulation", PATHS)
def test_pictures_with_every_bound_of_the_layers(run: Any, modulation: Modulation) -> None:
    _, arrays, state, generator = run
    names = [name for name in arrays if name.startswith("image_clamp_")]
    for name in names if modulation == "scale" else names[:1]:
        clamp = re.sub("None", "0", name.removeprefix("image_clamp_"))
        content = Content("torch", state)
        weights = formats.generator_weights(content)
        config = layouts.infer_config(weights.state, conv_clamp=float(clamp) or None)
        made = generator
        if config.conv_clamp is not None:
            made = StyleGAN2Generator(config).requires_grad_(False)
            made.load_state_dict(generator.state_dict())
        made.modulation = modulation
        ending = name.removeprefix("image")
        deviations = {name: deviation(made.synthesize(arrays["w"]), arrays[name])}
        styles = {"image_trunc": "ws_trunc", "image_nonoise": "w", "image_ws_random": "ws_random"}
        for kind, given in styles.items():
            w, key = arrays.optional(given), kind + ending
            # Given styles are drawn with one bound alone.
            golden = arrays.get(key) if given == "ws_random" else arrays.optional(key)
            if golden is not None and w is not None:
                picture = made.synthesize(w, "off" if kind == "image_nonoise" else "buffers")
                deviations[key] = deviation(picture, golden)
        assert max(deviations.values()) < CLOSE, deviations


def test_every_array_is_compared(run: Any) -> None:
    _, arrays, _, _ = run
    pictures = {name for name in arrays if name.startswith("image_")}
    known = re.compile(r"image_(trunc_|nonoise_|ws_random_)?clamp_(None|[\d.]+)")
    styles = {"z", "c", "w", "ws_trunc", "ws_trunc_cutoff", "ws_random"}
    goldenlib.check_known(arrays, styles | {name for name in pictures if known.fullmatch(name)})


def test_a_chosen_class_gives_a_generator_without_classes_and_the_same_pictures(run: Any) -> None:
    _, arrays, _, generator = run
    if "c" not in arrays:
        assert generator.for_class(0) is generator
        return
    labels = arrays["c"].argmax(dim=1)
    assert deviation(generator.map(arrays["z"], labels), arrays["w"]) < CLOSE
    for row, label in enumerate(labels.tolist()):
        alone = generator.for_class(label)
        assert alone.config.num_classes == 0
        assert deviation(alone.map(arrays["z"])[row : row + 1], arrays["w"][row : row + 1]) < CLOSE


def test_weights_go_back_to_nvidias_names_unchanged(run: Any) -> None:
    _, _, state, generator = run
    back = layouts.to_nvidia(generator.state())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].shape == state[key].shape for key in state)


@pytest.mark.parametrize("path", DISCRIMINATORS)
def test_discriminator_logits(path: Path) -> None:
    meta, arrays = goldenlib.load(path)
    discriminator = checkpoints.discriminator_of(Content("torch", filled(meta)))
    logits = {
        name: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("logits_batch")
    }
    assert logits
    with torch.no_grad():
        for name, expected in logits.items():
            image = torch.from_numpy(arrays["image"])[: int(name.removeprefix("logits_batch"))]
            assert deviation(discriminator(image), expected) < CLOSE, name


ROSINALITY = goldenlib.params("stylegan2_rosinality", wanted=lambda meta: "style.1.weight" in meta["keys"])


@pytest.mark.parametrize("path", ROSINALITY)
def test_rosinalitys_pictures_come_out_after_the_way_through_nvidias_layout(path: Path) -> None:
    meta, arrays = goldenlib.load(path)
    kernels = {key: ops.fir_kernel(gain=4.0) for key, entry in meta["keys"].items() if "rule" in entry}
    state = goldenlib.fill(meta["keys"], meta["seed"]) | kernels
    average = torch.from_numpy(arrays["truncation_latent"][0])
    first = tiny.styled(checkpoints.generator_of(Content("torch", {"g_ema": state, "latent_avg": average})))
    back = layouts.to_rosinality(first.state())
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    second = tiny.styled(
        checkpoints.generator_of(Content("torch", layouts.to_nvidia(first.state())))
    ).requires_grad_(False)
    w = second.map(torch.from_numpy(arrays["z"]))
    truncated = latent.truncate(w, second.latent_avg, meta["truncation"])
    for name, styles in {
        "image": w,
        "image_trunc": truncated,
        "image_w_plus": torch.from_numpy(arrays["w_plus"]),
    }.items():
        assert deviation(second.synthesize(styles), torch.from_numpy(arrays[name])) < CLOSE, name
