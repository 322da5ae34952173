"""The equations of training against a discriminator equal slow formulas and finite differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tiny
from zeroshift.methods import adversarial
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

EPS = 1e-6
"""Step of finite differences: larger ones cross kinks of the leaky ReLUs."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def discriminator() -> StyleGAN2Discriminator:
    config = StyleGAN2Config(size=16, channel_base=64, channel_max=4)
    return StyleGAN2Discriminator(config, seed=3).double()


@pytest.fixture
def generator() -> StyleGAN2Generator:
    return tiny.generator(size=16).double()


def slope(function: Callable[[], Tensor], place: Tensor, index: int) -> float:
    """Central difference of a function with respect to one element of a tensor that it uses."""
    flat = place.data.view(-1)
    before = flat[index].item()
    values = []
    for step in (EPS, -EPS):
        flat[index] = before + step
        values.append(function().item())
    flat[index] = before
    return (values[0] - values[1]) / (2 * EPS)


def gradients_agree(network: nn.Module, penalty: Callable[[], Tensor]) -> bool:
    """Whether the gradient of a penalty is that of finite differences, in the strongest elements of every
    tensor that has one."""
    penalty().backward()
    checked = []
    for weight in network.parameters():
        if weight.grad is None or not weight.grad.abs().max() > 1e-9:
            continue
        index = int(weight.grad.abs().argmax())
        expected = slope(penalty, weight, index)
        checked.append(float(weight.grad.view(-1)[index]) == pytest.approx(expected, rel=1e-4))
    return len(checked) > 4 and all(checked)


def test_both_losses_are_log_likelihoods_of_the_labels() -> None:
    real, fake = drawn(5, 1), drawn(4, 1, 3, 3, seed=1)
    told = [1 / (1 + math.exp(-float(x))) for x in real.flatten()]
    missed = [1 / (1 + math.exp(-float(x))) for x in fake.flatten()]
    expected = -sum(map(math.log, told)) / 5 - sum(math.log(1 - each) for each in missed) / 36
    assert float(adversarial.discriminator_loss(real, fake)) == pytest.approx(expected)
    assert float(adversarial.generator_loss(fake)) == pytest.approx(-sum(map(math.log, missed)) / 36)


def test_the_loss_of_the_generator_does_not_saturate() -> None:
    logits = torch.tensor([[-40.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(adversarial.generator_loss(logits), logits)
    assert float(gradient) == pytest.approx(-1.0)


def test_r1_is_the_squared_slope_of_logits_along_pixels(discriminator: StyleGAN2Discriminator) -> None:
    pictures = drawn(2, 3, 16, 16).requires_grad_()

    def penalty() -> Tensor:
        return adversarial.r1_penalty(discriminator(pictures), pictures)

    with torch.no_grad():
        slopes = [slope(lambda: discriminator(pictures).sum(), pictures, i) for i in range(pictures.numel())]
    assert penalty().item() == pytest.approx(sum(each**2 for each in slopes) / 2, rel=1e-6)
    assert gradients_agree(discriminator, penalty)


def test_r1_of_patches_is_that_of_the_mean_logit_of_a_picture() -> None:
    pictures = drawn(3, 3, 4, 4).requires_grad_()
    weight = drawn(3, 4, 4, seed=1)
    patches = (pictures * weight).sum(dim=1, keepdim=True)
    assert float(adversarial.r1_penalty(patches, pictures)) == pytest.approx(
        float((weight / 16).square().sum())
    )


def test_path_lengths_are_slopes_of_pictures_along_styles(generator: StyleGAN2Generator) -> None:
    z, noise = drawn(2, 12), drawn(2, 3, 16, 16, seed=1)
    w = generator.map(z)[:, None].repeat(1, generator.num_latents, 1).detach()

    def shaken(row: int) -> Tensor:
        return (generator.synthesize(w)[row] * noise[row]).sum() / 16

    with torch.no_grad():
        expected = []
        for row in range(2):
            squares = torch.tensor(
                [slope(lambda r=row: shaken(r), w[row], i) ** 2 for i in range(w[row].numel())]
            )
            expected.append(math.sqrt(float(squares.view(w.shape[1:]).sum(dim=1).mean())))
    leaf = w.requires_grad_()
    lengths = adversarial.path_lengths(generator.synthesize(leaf), leaf, noise)
    assert lengths.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_path_penalty_follows_its_running_mean_and_can_be_learned_from(
    generator: StyleGAN2Generator,
) -> None:
    z, noise = drawn(2, 12), drawn(2, 3, 16, 16, seed=1)
    mean = torch.tensor(0.7, dtype=torch.float64)

    def regularised() -> adversarial.PathLengths:
        w = generator.map(z)[:, None].expand(-1, generator.num_latents, -1)
        lengths = adversarial.path_lengths(generator.synthesize(w), w, noise)
        return adversarial.path_regularisation(lengths, mean)

    w = generator.map(z)[:, None].expand(-1, generator.num_latents, -1)
    a, b = adversarial.path_lengths(generator.synthesize(w), w, noise).tolist()
    moved = 0.7 + 0.01 * ((a + b) / 2 - 0.7)
    found = regularised()
    assert float(found.mean) == pytest.approx(moved) and not found.mean.requires_grad
    assert found.penalty.item() == pytest.approx(((a - moved) ** 2 + (b - moved) ** 2) / 2)
    assert gradients_agree(generator, lambda: regularised().penalty)


@pytest.mark.parametrize("every", [1, 4, 16])
def test_penalties_are_due_in_every_so_many_steps_and_weigh_as_much_over_all(every: int) -> None:
    found, left = [], 0
    for _ in range(33):
        found.append(3.0 * every if left == 0 else 0.0)
        left = every - 1 if left == 0 else left - 1
    assert [adversarial.lazy(3.0, every, step) for step in range(1, 34)] == found


def test_rate_and_betas_make_up_for_the_steps_of_penalties() -> None:
    rate, betas = adversarial.lazy_adam(0.002, 4)
    assert (rate, betas) == (pytest.approx(0.002 * 4 / 5), (0.0, pytest.approx(0.99 ** (4 / 5))))
    assert adversarial.lazy_adam(0.002, 16)[0] == pytest.approx(0.002 * 16 / 17)
    assert adversarial.lazy_adam(0.002, 0) == (0.002, (0.0, 0.99))


def test_a_discriminator_is_as_sure_as_its_signs_are() -> None:
    logits = torch.tensor([[2.0], [0.1], [-3.0], [5.0]], requires_grad=True)
    found = adversarial.overfitting(logits)
    assert float(found) == 0.5 and not found.requires_grad
