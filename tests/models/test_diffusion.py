"""Diffusion generators: schedules, steps, the way there and back, and what the network sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from zeroshift.errors import InputError
from zeroshift.models.diffusion import (
    DiffusionGenerator,
    build_diffusion,
    build_unet,
    generation_times,
    inversion_times,
    linear_betas,
    time_grid,
)
from zeroshift.models.protocol import Generator, PictureGenerator
from zeroshift.models.seeds import rng

SPREAD = 0.5
"""Standard deviation of the pictures of the world in which everything can be written out."""


class Formula(nn.Module):
    """A network whose output is a formula of x and t."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor], outputs: int = 3) -> None:
        super().__init__()
        self.formula = formula
        self.anchor = nn.Parameter(torch.zeros(()))
        self.config: Any = {"in_channels": 3, "out_channels": outputs}

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.formula(x, t),)


def by_formula(
    formula: Callable[[Tensor, Tensor], Tensor], size: int = 4, **options: Any
) -> DiffusionGenerator:
    return DiffusionGenerator(Formula(formula), image_size=size, **options)


def ideal(size: int = 4) -> DiffusionGenerator:
    """The best possible network where pictures are normal draws of SPREAD: the mean of the noise, given x."""
    abar = torch.cumprod(1 - linear_betas(), 0)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        share = abar[t].view(-1, 1, 1, 1)
        return (1 - share).sqrt() * x / (share * SPREAD**2 + 1 - share)

    return by_formula(noise, size)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("t0", "steps"), [(400, 6), (400, 10), (500, 40), (999, 50), (601, 7), (5, 11)])
def test_the_grid_is_spaced_evenly_and_rounded_down(t0: int, steps: int) -> None:
    grid = time_grid(t0, steps)
    exact = [Fraction(t0 * i, steps - 1) for i in range(steps)]
    assert (grid[0], grid[-1], len(grid)) == (0, t0, steps)
    # Doubles may fall just below a whole number, never further.
    assert all(each - 1 <= got <= each for got, each in zip(grid, exact, strict=True))


def test_the_grid_is_that_of_the_published_doubles() -> None:
    assert time_grid(301, 8) == [0, 43, 86, 129, 172, 214, 258, 301]
    assert time_grid(400, 10) == [0, 44, 88, 133, 177, 222, 266, 311, 355, 400]


def test_generation_ends_at_the_clean_picture_and_inversion_at_t0() -> None:
    assert generation_times(400, 6) == [(400, 320), (320, 240), (240, 160), (160, 80), (80, 0), (0, -1)]
    assert inversion_times(400, 6) == [(0, 80), (80, 160), (160, 240), (240, 320), (320, 400)]


@pytest.mark.parametrize("call", [lambda: time_grid(400, 1), lambda: time_grid(0, 5)])
def test_a_grid_without_two_times_is_refused(call: Any) -> None:
    with pytest.raises(InputError, match="time grid"):
        call()


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_step_is_that_of_the_scheduler_of_diffusers_where_both_exist(eta: float) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    theirs = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, beta_start=1e-4, beta_end=0.02)
    theirs.set_timesteps(10)
    ours = ideal()
    x = draw(2, 3, 4, 4)
    eps = draw(2, 3, 4, 4, seed=1)
    noise = draw(2, 3, 4, 4, seed=2)
    for t, t_next in ((900, 800), (100, 0), (0, -1)):
        expected = theirs.step(eps, t, x, eta=eta, variance_noise=noise if eta else None, return_dict=False)[
            0
        ]
        assert torch.allclose(ours.step(x, t, t_next, eps, eta, noise), expected, rtol=1e-5, atol=1e-5)


def test_a_step_up_is_that_of_the_inverse_scheduler_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    theirs = DDIMInverseScheduler(clip_sample=False, set_alpha_to_one=True, beta_start=1e-4, beta_end=0.02)
    theirs.set_timesteps(10)
    x, eps = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    expected = theirs.step(eps, 400, x, return_dict=False)[0]
    assert torch.allclose(ideal().step(x, 300, 400, eps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variance", "named"),
    [("fixedsmall", "fixed_small"), ("fixedlarge", "fixed_large"), ("learned", "learned_range")],
)
def test_an_ancestral_step_is_that_of_the_scheduler_of_diffusers(variance: Any, named: Any) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs = DDPMScheduler(clip_sample=False, variance_type=named, beta_start=1e-4, beta_end=0.02)
    outputs = 6 if variance == "learned" else 3
    ours = DiffusionGenerator(Formula(lambda x, t: x, outputs), image_size=4, variance=variance)
    x, eps, noise = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=7)
    place = draw(2, 3, 4, 4, seed=2).tanh() if variance == "learned" else None
    output = eps if place is None else torch.cat([eps, place], dim=1)
    for t in (999, 300, 1, 0):
        expected = theirs.step(output, t, x, generator=torch.Generator().manual_seed(7), return_dict=False)[0]
        assert torch.allclose(ours.ancestral_step(x, t, eps, noise, place), expected, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_lies_between_those_of_posterior_and_forward_process() -> None:
    made = tiny.diffusion(outputs=6, variance="learned")
    like = torch.zeros(1, 1, 1, 1)
    t = 500
    beta = made.betas[t].double()
    abar = made.alphas_bar[t].double()
    before = made.alphas_bar[t - 1].double()
    for place, expected in ((-1.0, beta * (1 - before) / (1 - abar)), (1.0, beta)):
        found = made.log_variance(t, like, torch.full_like(like, place))
        assert found.item() == pytest.approx(float(expected.log()), rel=1e-4)
    with pytest.raises(InputError, match="learned"):
        made.log_variance(t, like)


def test_every_picture_of_a_batch_may_be_at_its_own_time() -> None:
    made = ideal()
    x = draw(3, 3, 4, 4)
    eps = draw(3, 3, 4, 4, seed=1)
    noise = draw(3, 3, 4, 4, seed=2)
    times = torch.tensor([10, 400, 999])
    for step in (
        lambda rows, t: made.step(x[rows], t, 0, made.predict_noise(x[rows], t)),
        lambda rows, t: made.ancestral_step(x[rows], t, eps[rows], noise[rows]),
        lambda rows, t: made.add_noise(x[rows], t, noise[rows]),
    ):
        apart = torch.cat([step(slice(i, i + 1), int(t)) for i, t in enumerate(times)])
        assert torch.allclose(step(slice(None), times), apart, atol=1e-6)


def test_the_clean_picture_is_found_again_under_its_noise() -> None:
    made = ideal()
    pictures = draw(2, 3, 4, 4).tanh()
    noise = draw(2, 3, 4, 4, seed=1)
    assert torch.allclose(made.clean(made.add_noise(pictures, 500, noise), 500, noise), pictures, atol=1e-4)
    assert torch.equal(made.add_noise(pictures, -1, noise), pictures)


def test_where_everything_can_be_written_out_more_steps_come_closer_to_the_exact_picture() -> None:
    made = ideal()
    x = draw(4, 3, 4, 4)
    # The flow keeps every pixel at its quantile: x_0 / SPREAD = x_T / its own spread.
    share = made.alphas_bar[-1].item()
    exact = x * SPREAD / math.sqrt(share * SPREAD**2 + 1 - share)
    errors = [float((made.generate(x, steps=steps) - exact).abs().max()) for steps in (10, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.04


def test_generation_undoes_inversion_better_with_more_steps() -> None:
    made = ideal()
    pictures = SPREAD * draw(4, 3, 4, 4)
    errors = [
        float((made.generate(made.invert(pictures, 500, s), 500, s) - pictures).abs().mean())
        for s in (10, 40, 160)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.01


def test_the_ancestral_sampler_draws_pictures_of_the_right_spread() -> None:
    made = ideal(16)
    found = made.ancestral(made.latents(range(8)), made.step_noise(range(8)))
    assert found.std().item() == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_seed_is_the_same_picture_alone_in_a_batch_and_in_any_order(eta: float) -> None:
    made = tiny.diffusion()
    together = made.sample([3, 1, 2], steps=4, eta=eta, batch=2)
    assert together.shape == (3, 3, 8, 8) and together.abs().max() <= 1
    assert torch.allclose(made.sample([2], steps=4, eta=eta)[0], together[2], atol=1e-5)
    assert torch.allclose(made.sample([1, 3], steps=4, eta=eta), together[[1, 0]], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_fresh_noise_changes_the_picture_and_needs_a_source() -> None:
    made = tiny.diffusion()
    assert not torch.allclose(made.sample([1], steps=4, eta=1.0), made.sample([1], steps=4), atol=1e-3)
    with pytest.raises(InputError, match="noise"):
        made.generate(made.latents([1]), steps=4, eta=1.0)


def test_progress_is_told_over_all_batches() -> None:
    told: list[tuple[int, int]] = []
    ideal().sample(range(3), steps=2, batch=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_patched_network_sees_blocks_of_pixels_as_channels() -> None:
    made = tiny.diffusion(size=16, channels=12, patch=2)
    x = draw(2, 3, 16, 16)
    blocks = torch.zeros(2, 12, 8, 8)
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                blocks[:, channel * 4 + row * 2 + column] = x[:, channel, row::2, column::2]
    found = made.unet(blocks, torch.tensor([7, 7]), return_dict=False)[0]
    eps = made.predict_noise(x, 7)
    assert made.picture_shape == (3, 16, 16) and eps.shape == x.shape
    assert torch.allclose(eps[:, 1, 0::2, 1::2], found[:, 5], atol=1e-6)


def test_a_patched_network_with_learned_variance_keeps_its_halves_apart() -> None:
    made = tiny.diffusion(size=16, channels=12, outputs=24, patch=2, variance="learned")
    x = draw(1, 3, 16, 16)
    eps, place = made.predict(x, 7)
    found = made.unet(torch.nn.functional.pixel_unshuffle(x, 2), torch.tensor([7]), return_dict=False)[0]
    assert place is not None and place.shape == x.shape
    assert torch.allclose(eps[:, 0, 0::2, 0::2], found[:, 0], atol=1e-6)
    assert torch.allclose(place[:, 0, 0::2, 0::2], found[:, 12], atol=1e-6)


def test_a_network_that_predicts_velocity_tells_the_same_noise() -> None:
    pictures = draw(2, 3, 4, 4).tanh()
    noise = draw(2, 3, 4, 4, seed=1)
    t = 600
    abar = torch.cumprod(1 - linear_betas(), 0)[t]
    made = by_formula(
        lambda x, t: abar.sqrt() * noise - (1 - abar).sqrt() * pictures, prediction="v_prediction"
    )
    assert torch.allclose(made.predict_noise(made.add_noise(pictures, t, noise), t), noise, atol=1e-5)


def test_another_predictor_can_stand_in_for_the_network() -> None:
    first, second = tiny.diffusion(1), tiny.diffusion(2)
    x = first.latents([0])
    with torch.no_grad():
        mixed = first.generate(
            x, 300, 3, predict=lambda x, t: 0.5 * (first.predict_noise(x, t) + second.predict_noise(x, t))
        )
        alone = first.generate(x, 300, 3, predict=first.predict_noise)
        assert torch.equal(alone, first.generate(x, 300, 3))
    assert not torch.allclose(mixed, alone, atol=1e-4)


def test_gradients_are_the_same_with_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        made = tiny.diffusion()
        x = made.latents([0, 1]).requires_grad_()
        made.generate(x, 300, 3, checkpointing=checkpointing).square().mean().backward()
        assert x.grad is not None
        gradients.append([x.grad, *(value.grad for value in made.parameters())])
    assert all(
        torch.allclose(one, other, rtol=1e-5, atol=1e-8) for one, other in zip(*gradients, strict=True)
    )
    assert all(each.abs().max() > 0 for each in gradients[0][:1])


def test_the_schedule_stays_exact_where_the_network_is_rounded() -> None:
    made = tiny.diffusion()
    x = draw(1, 3, 8, 8)
    with torch.no_grad():
        exact = made.generate(x, 300, 3)
        rounded = made.to(torch.bfloat16).generate(x, 300, 3)
    assert made.alphas_bar.dtype == rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1


def test_it_has_what_every_generator_has_and_no_styles() -> None:
    made = tiny.diffusion()
    assert isinstance(made, PictureGenerator) and not isinstance(made, Generator)
    assert isinstance(tiny.generator(), PictureGenerator)
    named = [name for layer in made.layers() for name in layer.parameters]
    assert sorted(named) == sorted(name for name, _ in made.named_parameters())
    assert [layer.name for layer in made.layers()][:2] == ["time_embedding", "conv_in"]
    assert all(layer.latent is None for layer in made.layers())


def test_a_clone_is_equal_and_independent() -> None:
    made = tiny.diffusion()
    twin = made.clone()
    x = made.latents([0])
    before = made.state()
    with torch.no_grad():
        assert torch.equal(twin.predict_noise(x, 5), made.predict_noise(x, 5))
        for value in twin.parameters():
            value.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in made.state().items())
    made.load_state_dict(twin.state())
    assert torch.equal(made.predict_noise(x, 5), twin.predict_noise(x, 5))


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    options = tiny.diffusion().config.unet
    state = torch.get_rng_state()
    first, again, other = (build_unet(options, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_config_builds_the_same_architecture_again() -> None:
    made = tiny.diffusion(size=16, channels=12, patch=2, prediction="v_prediction", betas=linear_betas(100))
    again = build_diffusion(made.config).eval()
    assert again.config == made.config and again.num_steps == 100
    again.load_state_dict(made.state())
    x = made.latents([0])
    assert torch.equal(again.generate(x, 50, 3), made.generate(x, 50, 3))


def test_heads_of_one_number_are_as_wide_as_their_layer_allows() -> None:
    options = {**tiny.diffusion().config.unet, "attention_head_dim": None, "num_heads": 2}
    heads, whole = build_unet(options, 3).eval(), build_unet({**options, "num_heads": 1}, 3).eval()
    eight = build_unet({**options, "num_heads": None, "attention_head_dim": 8}, 3).eval()
    x = draw(1, 3, 8, 8)
    with torch.no_grad():
        outputs = [unet(x, 9, return_dict=False)[0] for unet in (heads, eight, whole)]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6) and not torch.allclose(
        outputs[0], outputs[2], atol=1e-5
    )


def test_latents_are_keyed_by_seed() -> None:
    made = ideal()
    assert torch.equal(made.latents([5])[0], torch.randn(3, 4, 4, generator=rng("x_T", 5)))
    assert torch.equal(made.step_noise([5])(2)[0], torch.randn(3, 4, 4, generator=rng("eta", 5, 2)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 9, "channels": 12, "patch": 2}, "blocks"),
        ({"outputs": 6}, "variance"),
        ({"variance": "learned"}, "variance"),
        ({"outputs": 5}, "predicts no noise"),
    ],
)
def test_networks_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny.diffusion(**options)


@pytest.mark.parametrize("t0", [0, 1000])
def test_a_time_outside_the_schedule_is_refused(t0: int) -> None:
    with pytest.raises(InputError, match="between 1 and 999"):
        ideal().generate(draw(1, 3, 4, 4), t0, 5)


def test_no_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="seeds is empty"):
        ideal().latents([])
