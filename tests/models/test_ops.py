"""Filters and modulated convolution against slow, obvious formulas, and their second derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zeroshift.models import ops
from zeroshift.models.seeds import rng


def draw(*shape: int, key: str = "ops") -> Tensor:
    return torch.randn(shape, generator=rng(key, *shape), dtype=torch.float64)


def slow_filter(x: Tensor, kernel: Tensor, before: int, after: int, stride: int = 1) -> Tensor:
    """Sums over a zero-padded picture, pixel by pixel."""
    batch, channels, height, width = x.shape
    padded = torch.zeros(batch, channels, height + before + after, width + before + after, dtype=x.dtype)
    padded[:, :, before : before + height, before : before + width] = x
    rows, columns = ((padded.shape[axis] - 4) // stride + 1 for axis in (2, 3))
    out = torch.zeros(batch, channels, rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            out[:, :, i, j] = (
                padded[:, :, i * stride : i * stride + 4, j * stride : j * stride + 4] * kernel
            ).sum(dim=(2, 3))
    return out


def slow_modulated(x: Tensor, weight: Tensor, style: Tensor, up: bool) -> Tensor:
    """Per sample: modulated and demodulated weights, then an ordinary convolution (after zero insertion when
    enlarging)."""
    results = []
    for sample, own_style in zip(x, style, strict=True):
        own = weight * own_style[None, :, None, None]
        own = own / torch.sqrt(own.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
        picture = sample[None]
        if up:
            spread = torch.zeros(1, x.shape[1], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1, dtype=x.dtype)
            spread[:, :, ::2, ::2] = picture
            full = torch.nn.functional.conv2d(spread, own.flip(2, 3), padding=2)
            results.append(slow_filter(full, ops.fir_kernel(gain=4.0).double(), 1, 1))
        else:
            results.append(torch.nn.functional.conv2d(picture, own, padding=1))
    return torch.cat(results)


def modulated(x: Tensor, weight: Tensor, style: Tensor, path: ops.ModulationPath, up: bool) -> Tensor:
    y = ops.modulated_conv2d(x, weight, style, path, ops.fir_kernel(gain=4.0).double() if up else None)
    return y * ops.demodulation(weight, style)[:, :, None, None]


def test_the_kernel_is_symmetric_and_sums_to_its_gain() -> None:
    kernel = ops.fir_kernel(gain=4.0)
    assert kernel.sum().item() == 4.0
    assert torch.equal(kernel, kernel.t()) and torch.equal(kernel, kernel.flip(0))
    assert torch.equal(kernel[0] / kernel[0, 0], torch.tensor([1.0, 3.0, 3.0, 1.0]))


@pytest.mark.parametrize(("padding", "stride"), [(1, 1), (2, 1), (1, 2)])
def test_filtering_equals_sums_over_a_padded_picture(padding: int, stride: int) -> None:
    x = draw(2, 3, 8, 6)
    kernel = ops.fir_kernel().double()
    torch.testing.assert_close(
        ops.fir_filter(x, kernel, padding, stride), slow_filter(x, kernel, padding, padding, stride)
    )


def test_enlarging_equals_zero_insertion_and_filtering() -> None:
    x = draw(2, 3, 5, 4)
    kernel = ops.fir_kernel(gain=4.0).double()
    spread = torch.zeros(2, 3, 10, 8, dtype=torch.float64)
    spread[:, :, ::2, ::2] = x
    torch.testing.assert_close(ops.fir_upsample(x, kernel), slow_filter(spread, kernel, 2, 1))


def test_enlarging_keeps_a_constant_picture_constant_inside() -> None:
    y = ops.fir_upsample(torch.full((1, 1, 8, 8), 0.7), ops.fir_kernel(gain=4.0))
    torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.full((1, 1, 12, 12), 0.7))


@pytest.mark.parametrize("path", ["scale", "grouped"])
@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_equals_one_convolution_per_sample(path: ops.ModulationPath, up: bool) -> None:
    x = draw(3, 4, 5, 5)
    weight = draw(6, 4, 3, 3)
    style = draw(3, 4, key="style") + 1
    torch.testing.assert_close(modulated(x, weight, style, path, up), slow_modulated(x, weight, style, up))


@pytest.mark.parametrize("up", [False, True])
def test_both_modulation_paths_give_equal_numbers_and_gradients(up: bool) -> None:
    results = []
    for path in ("scale", "grouped"):
        inputs = [draw(3, 4, 5, 5), draw(6, 4, 3, 3), draw(3, 4, key="style") + 1]
        for tensor in inputs:
            tensor.requires_grad_()
        y = modulated(inputs[0], inputs[1], inputs[2], path, up)
        results.append([y, *torch.autograd.grad((y * draw(*y.shape, key="cotangent")).sum(), inputs)])
    for scaled, grouped in zip(*results, strict=True):
        torch.testing.assert_close(scaled, grouped)


@pytest.mark.parametrize("path", ["scale", "grouped"])
def test_modulated_convolution_is_differentiable_twice(path: ops.ModulationPath) -> None:
    x = draw(2, 2, 3, 3)
    weight = draw(2, 2, 3, 3)
    style = draw(2, 2, key="style") + 1
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, style))
    assert torch.autograd.gradgradcheck(lambda a, b, c: modulated(a, b, c, path, True), inputs)


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2)])
def test_filtering_is_differentiable_twice(padding: int, stride: int) -> None:
    x = draw(1, 2, 4, 4).requires_grad_()
    kernel = ops.fir_kernel().double()
    assert torch.autograd.gradgradcheck(
        lambda value: ops.fir_filter(value, kernel, padding, stride).square(), (x,)
    )


def test_styled_activation_equals_scale_offset_and_leaky_relu_in_steps() -> None:
    x, factor, bias, noise = draw(2, 3, 4, 4), draw(2, 3), draw(3), draw(1, 1, 4, 4)
    sum_ = x * factor[:, :, None, None] + bias[None, :, None, None] + noise
    expected = torch.where(sum_ > 0, sum_, 0.2 * sum_) * math.sqrt(2)
    torch.testing.assert_close(ops.styled_activation(x, factor, bias, noise), expected)


def test_styled_activation_is_differentiable_twice() -> None:
    inputs = tuple(t.requires_grad_() for t in (draw(2, 2, 3, 3), draw(2, 2), draw(2), draw(2, 1, 3, 3)))
    assert torch.autograd.gradgradcheck(lambda *args: ops.styled_activation(*args).square(), inputs)


def test_scaled_leaky_relu_is_differentiable_twice_and_leaves_its_input_alone() -> None:
    x, bias = draw(2, 3, 2, 2), draw(3)
    before = x.clone()
    expected = torch.nn.functional.leaky_relu(x + bias[None, :, None, None], 0.2) * math.sqrt(2)
    torch.testing.assert_close(ops.scaled_leaky_relu(x, bias), expected)
    assert torch.equal(x, before)
    assert torch.autograd.gradgradcheck(
        lambda a, b: ops.scaled_leaky_relu(a, b).square(), (x.requires_grad_(), bias.requires_grad_())
    )


def test_minibatch_deviation_follows_its_definition_over_interleaved_groups() -> None:
    x = draw(8, 3, 2, 2)
    out = ops.minibatch_std(x)
    assert torch.equal(out[:, :3], x)
    for b in range(8):
        group = torch.stack([x[other] for other in range(8) if other % 2 == b % 2])
        expected = torch.sqrt((group - group.mean(dim=0)).square().mean(dim=0) + 1e-8).mean()
        torch.testing.assert_close(out[b, 3], expected.expand(2, 2))


def test_minibatch_deviation_takes_the_largest_group_that_divides_the_batch() -> None:
    x = draw(6, 2, 2, 2)
    group = torch.stack([x[0], x[2], x[4]])
    expected = torch.sqrt(group.var(dim=0, unbiased=False) + 1e-8).mean()
    torch.testing.assert_close(ops.minibatch_std(x)[0, 2], expected.expand(2, 2))


def test_minibatch_deviation_of_one_picture_is_the_guard() -> None:
    torch.testing.assert_close(
        ops.minibatch_std(draw(1, 2, 2, 2))[0, 2], torch.full((2, 2), 1e-4, dtype=torch.float64)
    )


def test_pixel_norm_gives_mean_square_one() -> None:
    torch.testing.assert_close(
        ops.pixel_norm(draw(4, 50)).square().mean(dim=1), torch.ones(4, dtype=torch.float64)
    )
