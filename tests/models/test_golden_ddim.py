"""The official numbers of diffusion models: networks of DDPM and guided-diffusion, steps of DDIM and DDPM,
blends of models."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import goldenlib
from goldenlib import DOWN, Arrays, Json, timed
from goldentrain import ddpm_of
from zeroshift.files.unets import guided_generator, to_ddpm, to_guided
from zeroshift.models.diffusion import DiffusionGenerator

# Relative to the largest element.
CLOSE = 1e-5

# Sines of up to 999 radians: a frequency rounded otherwise in its last bit shifts them by as much as 6e-5.
SINES_CLOSE = 6e-5

Steps = tuple[Json, Arrays[Tensor], list[DiffusionGenerator]]
Guided = tuple[Json, Arrays[Tensor], DiffusionGenerator]


def deviation(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module", params=goldenlib.params("ddim", "steps"))
def steps(request: pytest.FixtureRequest) -> Steps:
    """Description, arrays, and the three models."""
    meta, arrays = goldenlib.load(request.param)
    seeds = ("seed", "seed_second_model", "seed_third_model")
    return meta, arrays.tensors(), [ddpm_of(meta, meta["keys"], seed) for seed in seeds]


@pytest.fixture(scope="module", params=goldenlib.params("ddim", "guided_unet"))
def guided(request: pytest.FixtureRequest) -> Guided:
    """Description, arrays, and the model."""
    meta, arrays = goldenlib.load(request.param)
    config = meta["config"]
    facts = {"head_channels": str(config["num_head_channels"]), "size": str(config["image_size"])}
    made = guided_generator(goldenlib.fill(meta["keys"], meta["seed"]), facts)
    return meta, arrays.tensors(), made.eval().requires_grad_(False)


def embedding(model: DiffusionGenerator, times: Tensor) -> Tensor:
    """The sinusoids that the network sees of some times."""
    unet: Any = model.unet
    return unet.time_proj(times.flatten())


def parts(model: DiffusionGenerator, x: Tensor, times: Tensor) -> list[Tensor]:
    """Both halves of what a network of learned variance puts out."""
    eps, place = model.predict(x, times)
    assert place is not None
    return [eps, place]


def test_the_architecture_of_a_ddpm_network_is_read_off_its_weights(steps: Steps) -> None:
    config, made = steps[0]["config"], steps[2][0]
    found = (made.image_size, made.channels, made.variance)
    assert found == (config["res"], config["out_ch"], config["var_type"])
    assert made.config.unet["block_out_channels"] == tuple(config["ch"] * each for each in config["ch_mult"])
    assert made.config.unet["layers_per_block"] == config["num_res_blocks"]


def test_the_architecture_of_a_guided_network_is_read_off_its_weights(guided: Guided) -> None:
    config, made = guided[0]["config"], guided[2]
    assert (made.image_size, made.channels) == (config["image_size"], 3)
    assert made.variance == ("learned" if config["learn_sigma"] else "fixedsmall")
    shifted, resized = config["use_scale_shift_norm"], config["resblock_updown"]
    assert made.config.unet["resnet_time_scale_shift"] == ("scale_shift" if shifted else "default")
    assert made.config.unet["downsample_type"] == ("resnet" if resized else "conv")


def check_the_way_back(written: dict[str, Tensor], meta: Json) -> None:
    """Checks that weights have the names and, bit for bit, the values of the golden ones."""
    expected = goldenlib.fill(meta["keys"], meta["seed"])
    assert set(written) == set(expected) == set(meta["keys"])
    assert all(torch.equal(written[name], value) for name, value in expected.items())


def test_weights_go_back_to_ddpms_layout_bit_for_bit(steps: Steps) -> None:
    check_the_way_back(to_ddpm(steps[2][0]), steps[0])


def test_weights_go_back_to_the_layout_of_guided_diffusion_bit_for_bit(guided: Guided) -> None:
    check_the_way_back(to_guided(guided[2]), guided[0])


def test_the_noise_schedule_and_its_variances(steps: Steps) -> None:
    _, arrays, (made, *_) = steps
    assert torch.equal(made.betas, arrays["betas"]) and torch.equal(made.alphas_bar, arrays["alphas_cumprod"])
    assert deviation(made.log_variances[0], arrays["logvar_fixedsmall"]) < CLOSE
    assert deviation(made.log_variances[1], arrays["logvar_fixedlarge"]) < CLOSE


def test_noise_predicted_by_a_ddpm_network(steps: Steps) -> None:
    _, arrays, (made, *_) = steps
    assert deviation(embedding(made, arrays["eps_t"]), arrays["time_embedding"]) < SINES_CLOSE
    for row, times in enumerate(arrays["eps_t"]):
        assert deviation(made.predict_noise(arrays["x"], times), arrays[f"eps_{row}"]) < CLOSE


def test_noise_and_variance_predicted_by_a_guided_network(guided: Guided) -> None:
    _, arrays, made = guided
    assert deviation(embedding(made, arrays["t"]), arrays["time_embedding"]) < SINES_CLOSE
    for row, times in enumerate(arrays["t"]):
        assert deviation(torch.cat(parts(made, arrays["x"], times), dim=1), arrays[f"output_{row}"]) < CLOSE


def test_deterministic_steps_down_and_up(steps: Steps) -> None:
    _, arrays, (made, *_) = steps
    x = arrays["x"]
    for name, (t, t_next) in timed(arrays, rf"ddim_(?:inv_)?{DOWN}"):
        assert deviation(made.step(x, t, t_next, made.predict_noise(x, t)), arrays[name]) < CLOSE, name
    for name, (t, _) in timed(arrays, rf"ddim_{DOWN}_x0"):
        assert deviation(made.clean(x, t, made.predict_noise(x, t)), arrays[name]) < CLOSE, name


def test_deterministic_steps_of_a_network_of_learned_variance(guided: Guided) -> None:
    _, arrays, made = guided
    x = arrays["x"]
    for name, (t, t_next) in timed(arrays, rf"ddim_{DOWN}"):
        assert deviation(made.step(x, t, t_next, made.predict_noise(x, t)), arrays[name]) < CLOSE, name


@pytest.mark.parametrize(("name", "eta"), [("05", 0.5), ("1", 1.0)])
def test_steps_with_fresh_noise(steps: Steps, name: str, eta: float) -> None:
    _, arrays, (made, *_) = steps
    x, noise = arrays["x"][:1], arrays["step_noise"][:1]
    for key, (t, t_next) in timed(arrays, rf"ddim_eta{name}_{DOWN}"):
        made_step = made.step(x, t, t_next, made.predict_noise(x, t), eta, noise)
        assert deviation(made_step, arrays[key]) < CLOSE, key


def test_ancestral_steps_of_one_time_and_of_one_per_picture(steps: Steps) -> None:
    _, arrays, (made, *_) = steps
    x, noise = arrays["x"], arrays["step_noise"]
    times: list[tuple[str, Any]] = [(name, t) for name, (t,) in timed(arrays, r"ddpm_(\d+)")]
    for name, t in [*times, ("ddpm_mixed_t", torch.tensor([0, 10, 500]))]:
        if (golden := arrays.optional(name)) is not None:
            assert deviation(made.ancestral_step(x, t, made.predict_noise(x, t), noise), golden) < CLOSE, name


def test_a_blend_of_two_models_by_a_ratio(steps: Steps) -> None:
    _, arrays, (first, second, _) = steps
    x, noise = arrays["x"], arrays["step_noise"]

    def blended(t: int) -> Tensor:
        return 0.6 * second.predict_noise(x, t) + 0.4 * first.predict_noise(x, t)

    for name, (t, t_next) in timed(arrays, rf"ratio06_{DOWN}"):
        assert deviation(first.step(x, t, t_next, blended(t)), arrays[name]) < CLOSE, name
    for name, (t,) in timed(arrays, r"ratio06_ddpm_(\d+)"):
        assert deviation(first.ancestral_step(x, t, blended(t), noise), arrays[name]) < CLOSE, name


def test_a_blend_of_two_models_that_changes_with_time(steps: Steps) -> None:
    meta, arrays, models = steps
    x = arrays["x"][:1]
    for name, (t, t_next) in timed(arrays, rf"hybrid_{DOWN}"):
        ratios = next(value for key, value in meta["hybrid_config"].items() if t >= int(key))
        shares = [ratio / sum(ratios) for ratio in ratios]
        eps = shares[0] * models[1].predict_noise(x, t) + shares[1] * models[2].predict_noise(x, t)
        assert deviation(models[0].step(x, t, t_next, eps), arrays[name]) < CLOSE, name


def test_noise_added_to_clean_pictures(steps: Steps) -> None:
    meta, arrays, (made, *_) = steps
    # The published code stops one time short of its t_0.
    noisy = made.add_noise(arrays["x0"], meta["hyper"]["t_0"] - 1, arrays["step_noise"][:2])
    assert deviation(noisy, arrays["q_sample_t0"]) < CLOSE


def test_every_array_of_the_steps_is_compared(steps: Steps) -> None:
    known = {"x", "x0", "eps_t", "time_embedding", "betas", "alphas_cumprod", "step_noise", "q_sample_t0"}
    known |= {"logvar_fixedsmall", "logvar_fixedlarge", "ddpm_mixed_t"}
    patterns = rf"eps_\d|ddim_(inv_|eta05_|eta1_)?{DOWN}(_x0)?|(ratio06_)?ddpm_\d+|(ratio06|hybrid)_{DOWN}"
    goldenlib.check_known(steps[1], known | {name for name in steps[1] if re.fullmatch(patterns, name)})


def test_every_array_of_the_guided_network_is_compared(guided: Guided) -> None:
    outputs = {name for name in guided[1] if re.fullmatch(rf"output_\d|ddim_{DOWN}", name)}
    goldenlib.check_known(guided[1], {"x", "t", "time_embedding"} | outputs)
