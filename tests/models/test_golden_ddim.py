"""The official numbers of diffusion models: networks of DDPM and guided-diffusion, steps of DDIM and DDPM,
blends of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import goldenlib
from zeroshift.files.unets import ddpm_generator, guided_generator, to_ddpm, to_guided
from zeroshift.models.diffusion import DiffusionGenerator

STEPS, GUIDED = goldenlib.runs("ddim", "steps"), goldenlib.runs("ddim", "guided_unet")
pytestmark = pytest.mark.skipif(not STEPS or not GUIDED, reason="this golden folder has no ddim")

# Relative to the largest element.
CLOSE = 1e-5

# Sines of up to 999 radians: a frequency rounded otherwise in its last bit shifts them by as much as 6e-5.
SINES_CLOSE = 6e-5

Arrays = dict[str, Tensor]


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def loaded(run: Any) -> tuple[dict[str, Any], Arrays]:
    meta, arrays = goldenlib.load(run)
    return meta, {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def steps() -> tuple[dict[str, Any], Arrays, list[DiffusionGenerator]]:
    """Description, arrays, and the three models."""
    meta, arrays = loaded(STEPS[0])
    seeds = [meta[name] for name in ("seed", "seed_second_model", "seed_third_model")]
    return (
        meta,
        arrays,
        [ddpm_generator(goldenlib.fill(meta["keys"], seed)).eval().requires_grad_(False) for seed in seeds],
    )


@pytest.fixture(scope="module")
def guided() -> tuple[dict[str, Any], Arrays, DiffusionGenerator]:
    meta, arrays = loaded(GUIDED[0])
    facts = {"head_channels": str(meta["config"]["num_head_channels"])}
    return (
        meta,
        arrays,
        guided_generator(goldenlib.fill(meta["keys"], meta["seed"]), facts).eval().requires_grad_(False),
    )


def embedding(model: DiffusionGenerator, times: Tensor) -> Tensor:
    """The sinusoids that the network sees of some times."""
    unet: Any = model.unet
    return unet.time_proj(times.flatten())


def parts(model: DiffusionGenerator, x: Tensor, times: Tensor) -> list[Tensor]:
    """Both halves of what a network of learned variance puts out."""
    eps, place = model.predict(x, times)
    assert place is not None
    return [eps, place]


def test_the_architectures_are_read_off_the_weights(steps: Any, guided: Any) -> None:
    config, made = steps[0]["config"], steps[2][0]
    assert (made.image_size, made.channels, made.variance) == (
        config["res"],
        config["out_ch"],
        config["var_type"],
    )
    assert made.config.unet["block_out_channels"] == tuple(config["ch"] * each for each in config["ch_mult"])
    config, made = guided[0]["config"], guided[2]
    assert (made.image_size, made.channels, made.variance) == (config["image_size"], 3, "learned")
    assert (
        made.config.unet["resnet_time_scale_shift"] == "scale_shift"
        and made.config.unet["downsample_type"] == "resnet"
    )


@pytest.mark.parametrize("which", ["ddpm", "guided-diffusion"])
def test_weights_go_back_to_the_layout_they_came_from_bit_for_bit(
    which: str, steps: Any, guided: Any
) -> None:
    meta, _, made = steps if which == "ddpm" else guided
    written = to_ddpm(made[0]) if which == "ddpm" else to_guided(made)
    expected = goldenlib.fill(meta["keys"], meta["seed"])
    assert set(written) == set(expected) == set(meta["keys"])
    assert all(
        torch.equal(written[name], value) and written[name].shape == value.shape
        for name, value in expected.items()
    )


def test_the_noise_schedule_and_its_variances(steps: Any) -> None:
    _, arrays, (made, *_) = steps
    assert torch.equal(made.betas, arrays["betas"]) and torch.equal(made.alphas_bar, arrays["alphas_cumprod"])
    assert deviation(made.log_variances[0], arrays["logvar_fixedsmall"]) < CLOSE
    assert deviation(made.log_variances[1], arrays["logvar_fixedlarge"]) < CLOSE


def test_noise_predicted_by_a_ddpm_network(steps: Any) -> None:
    _, arrays, (made, *_) = steps
    assert deviation(embedding(made, arrays["eps_t"]), arrays["time_embedding"]) < SINES_CLOSE
    for row, times in enumerate(arrays["eps_t"]):
        assert deviation(made.predict_noise(arrays["x"], times), arrays[f"eps_{row}"]) < CLOSE


def test_noise_and_variance_predicted_by_a_guided_network(guided: Any) -> None:
    _, arrays, made = guided
    assert deviation(embedding(made, arrays["t"]), arrays["time_embedding"]) < SINES_CLOSE
    for row, times in enumerate(arrays["t"]):
        assert deviation(torch.cat(parts(made, arrays["x"], times), dim=1), arrays[f"output_{row}"]) < CLOSE


def test_deterministic_steps_down_and_up(steps: Any, guided: Any) -> None:
    _, arrays, (made, *_) = steps
    x = arrays["x"]
    for name, t, t_next in (("ddim_400_320", 400, 320), ("ddim_0_m1", 0, -1), ("ddim_inv_80_160", 80, 160)):
        assert deviation(made.step(x, t, t_next, made.predict_noise(x, t)), arrays[name]) < CLOSE
    assert deviation(made.clean(x, 400, made.predict_noise(x, 400)), arrays["ddim_400_320_x0"]) < CLOSE
    _, arrays, made = guided
    eps = made.predict_noise(arrays["x"], 400)
    assert deviation(made.step(arrays["x"], 400, 320, eps), arrays["ddim_400_320"]) < CLOSE


def test_steps_with_fresh_noise(steps: Any) -> None:
    _, arrays, (made, *_) = steps
    x, noise = arrays["x"][:1], arrays["step_noise"][:1]
    half = made.step(x, 400, 320, made.predict_noise(x, 400), 0.5, noise)
    full = made.step(x, 80, -1, made.predict_noise(x, 80), 1.0, noise)
    assert deviation(half, arrays["ddim_eta05_400_320"]) < CLOSE
    assert deviation(full, arrays["ddim_eta1_80_m1"]) < CLOSE


def test_ancestral_steps_of_one_time_and_of_one_per_picture(steps: Any) -> None:
    _, arrays, (made, *_) = steps
    x, noise = arrays["x"], arrays["step_noise"]
    for name, t in (("ddpm_250", 250), ("ddpm_0", 0), ("ddpm_mixed_t", torch.tensor([0, 10, 500]))):
        assert deviation(made.ancestral_step(x, t, made.predict_noise(x, t), noise), arrays[name]) < CLOSE


def test_a_blend_of_two_models_by_a_ratio(steps: Any) -> None:
    _, arrays, (first, second, _) = steps
    x = arrays["x"]

    def blended(t: int) -> Tensor:
        return 0.6 * second.predict_noise(x, t) + 0.4 * first.predict_noise(x, t)

    assert deviation(first.step(x, 400, 320, blended(400)), arrays["ratio06_400_320"]) < CLOSE
    assert (
        deviation(
            first.ancestral_step(x, 250, blended(250), arrays["step_noise"]), arrays["ratio06_ddpm_250"]
        )
        < CLOSE
    )


def test_a_blend_of_two_models_that_changes_with_time(steps: Any) -> None:
    meta, arrays, models = steps
    x = arrays["x"][:1]
    for name, t, t_next in (("hybrid_400_320", 400, 320), ("hybrid_80_0", 80, 0)):
        ratios = next(value for key, value in meta["hybrid_config"].items() if t >= int(key))
        eps = sum(
            share / sum(ratios) * made.predict_noise(x, t)
            for share, made in zip(ratios, models[1:], strict=True)
        )
        assert deviation(models[0].step(x, t, t_next, eps), arrays[name]) < CLOSE


def test_noise_added_to_clean_pictures(steps: Any) -> None:
    meta, arrays, (made, *_) = steps
    # The published code stops one time short of its t_0.
    noisy = made.add_noise(arrays["x0"], meta["hyper"]["t_0"] - 1, arrays["step_noise"][:2])
    assert deviation(noisy, arrays["q_sample_t0"]) < CLOSE


def test_every_array_is_compared(steps: Any, guided: Any) -> None:
    known = {
        "x",
        "x0",
        "eps_t",
        "eps_0",
        "eps_1",
        "eps_2",
        "time_embedding",
        "betas",
        "alphas_cumprod",
        "step_noise",
    }
    known |= {
        "logvar_fixedsmall",
        "logvar_fixedlarge",
        "ddim_400_320",
        "ddim_400_320_x0",
        "ddim_0_m1",
        "ddim_inv_80_160",
    }
    known |= {
        "ddim_eta05_400_320",
        "ddim_eta1_80_m1",
        "ddpm_250",
        "ddpm_0",
        "ddpm_mixed_t",
        "ratio06_400_320",
    }
    known |= {"ratio06_ddpm_250", "hybrid_400_320", "hybrid_80_0", "q_sample_t0"}
    assert set(steps[1]) == known
    assert set(guided[1]) == {"x", "t", "output_0", "output_1", "output_2", "time_embedding", "ddim_400_320"}
