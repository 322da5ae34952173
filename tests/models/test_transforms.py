"""Transforms of pictures against closed forms: slices, turns by quarters, exact waves, means and lumas."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from zeroshift.models import transforms

Change = Callable[[Tensor], Tensor]


def pictures(batch: int = 2, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=draw, dtype=torch.float64) * 2 - 1


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def wave(side: int, frequency: float, matrix: Tensor) -> Tensor:
    """A plane wave seen under a map of its places, side x side, exactly."""
    middle = (side - 1) / 2
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) - middle,) * 2, indexing="ij")
    inverse = torch.linalg.inv(matrix)
    across, down = (inverse[row, 0] * x + inverse[row, 1] * y + inverse[row, 2] for row in (0, 1))
    phase = 2 * math.pi * frequency * (across * math.cos(0.5) + down * math.sin(0.5)) + 0.2
    return phase.cos()


# Exact places.


def test_flips_turns_and_shifts_are_those_of_their_pictures_alone() -> None:
    shown = pictures(3)
    assert torch.equal(
        transforms.flipped(shown, torch.tensor([True, False, True])),
        torch.stack([shown[0].flip(-1), shown[1], shown[2].flip(-1)]),
    )
    quarters = transforms.turned(shown, torch.tensor([1, 0, 3]))
    assert torch.equal(
        quarters, torch.stack([torch.rot90(shown[0], 1, (1, 2)), shown[1], torch.rot90(shown[2], 3, (1, 2))])
    )


def test_a_turn_by_quarters_has_order_four() -> None:
    shown = pictures()
    once = torch.tensor([1, 1])
    seen = [shown]
    for _ in range(4):
        seen.append(transforms.turned(seen[-1], once))
    assert torch.equal(seen[4], shown)
    assert not any(torch.equal(seen[count], shown) for count in (1, 2, 3))


@pytest.mark.parametrize("edge", ["reflect", "constant"])
def test_a_shift_by_whole_pixels_is_a_slice(edge: Literal["reflect", "constant"]) -> None:
    shown = pictures(2, 6, 7)
    moved = transforms.shifted(shown, torch.tensor([2, 0]), torch.tensor([-3, 1]), edge)
    assert torch.equal(moved[0, :, 2:, :-3], shown[0, :, :-2, 3:])
    assert torch.equal(moved[1, :, :, 1:], shown[1, :, :, :-1])
    expected = shown[1, :, :, 1] if edge == "reflect" else torch.zeros_like(shown[1, :, :, 1])
    assert torch.equal(moved[1, :, :, 0], expected)
    assert torch.equal(transforms.shifted(shown, torch.zeros(2).long(), torch.zeros(2).long()), shown)


def test_a_square_is_cut_out_where_it_lies_and_no_further_than_the_picture() -> None:
    shown = pictures(2, 6, 6)
    cut = transforms.cut_out(shown, torch.tensor([3, 0]), torch.tensor([2, 6]), 4)
    expected = shown.clone()
    expected[0, :, 1:5, 0:4] = 0
    expected[1, :, :2, 4:] = 0
    assert torch.equal(cut, expected)


# Resampling.


def slow_resampled(picture: Tensor, matrix: Tensor) -> Tensor:
    """One channel of a picture under a map of its places, sum by sum."""
    side, lobes = len(picture), 4

    def mirrored(place: float, last: float) -> float:
        place = abs(place) % (2 * last)
        return min(place, 2 * last - place)

    def tap(step: int) -> float:
        """Lanczos' interpolation at `step` half pixels."""
        if step % 2 == 0 or abs(step) >= 2 * lobes:
            return float(step == 0)
        every = [bare(each) for each in range(1 - 2 * lobes, 2 * lobes, 2)]
        return bare(step) / sum(every)

    def bare(step: int) -> float:
        x = math.pi * step / 2
        return math.sin(x) / x * math.sin(x / lobes) / (x / lobes)

    weights = {step: tap(step) for step in range(1 - 2 * lobes, 2 * lobes)}

    @functools.cache
    def fine(row: int, column: int) -> float:
        """The picture at half pixels."""
        total = 0.0
        for i, j in itertools.product(range(-lobes, side + lobes), repeat=2):
            weight = weights.get(row - 2 * i, 0.0) * weights.get(column - 2 * j, 0.0)
            if weight:
                total += weight * float(picture[int(mirrored(i, side - 1)), int(mirrored(j, side - 1))])
        return total

    inverse, middle = torch.linalg.inv(matrix).tolist(), (side - 1) / 2

    @functools.cache
    def sampled(row: int, column: int) -> float:
        """The result at half pixels."""
        at = (column / 2 - middle, row / 2 - middle, 1.0)
        across, down = (
            mirrored(2 * (sum(a * b for a, b in zip(line, at, strict=True)) + middle), 2 * side - 2)
            for line in inverse[:2]
        )
        left, top = min(int(across), 2 * side - 3), min(int(down), 2 * side - 3)
        return sum(
            abs(1 - i - (down - top)) * abs(1 - j - (across - left)) * fine(top + i, left + j)
            for i, j in itertools.product((0, 1), repeat=2)
        )

    made = torch.zeros_like(picture)
    for row, column in itertools.product(range(side), repeat=2):
        made[row, column] = sum(
            weights[a] * weights[b] / 4 * sampled(2 * row + a, 2 * column + b)
            for a, b in itertools.product(weights, repeat=2)
        )
    return made


def test_a_resampled_picture_is_the_one_of_the_slow_sums() -> None:
    shown = pictures(1, 6, 6)
    matrix = (
        transforms.translation(number(0.7), number(-1.6))
        @ transforms.scaling(number(1.3), number(0.8))
        @ transforms.rotation(number(0.4))
    )
    made = transforms.resampled(shown, matrix)
    torch.testing.assert_close(made[0, 1], slow_resampled(shown[0, 1], matrix[0]), rtol=0, atol=1e-9)


def test_maps_that_need_no_resampling_give_the_turned_flipped_and_shifted_low_pass() -> None:
    shown = pictures(2, 12, 12)
    plain = transforms.resampled(shown, transforms.translation(number(0, 0), number(0, 0)))
    turn = transforms.resampled(shown, transforms.rotation(number(math.pi / 2, math.pi)))
    expected = torch.stack([plain[0].rot90(1, (1, 2)), plain[1].rot90(2, (1, 2))])
    torch.testing.assert_close(turn, expected, rtol=0, atol=1e-12)
    flip = transforms.resampled(shown, transforms.scaling(number(-1, 1), number(1, -1)))
    torch.testing.assert_close(flip, torch.stack([plain[0].flip(-1), plain[1].flip(-2)]), rtol=0, atol=1e-12)
    moved = transforms.resampled(shown, transforms.translation(number(3, -1), number(-2, 2)))
    shift = transforms.shifted(plain, torch.tensor([-2, 2]), torch.tensor([3, -1]))
    torch.testing.assert_close(moved, shift, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("frequency", "error"), [(0.05, 0.004), (0.1, 0.015), (0.25, 0.07), (0.35, 0.13)])
def test_a_wave_comes_out_as_the_exact_one_within_the_stated_error(frequency: float, error: float) -> None:
    maps = [
        transforms.rotation(number(0.3)),
        transforms.translation(number(0.5), number(-0.25)),
        transforms.scaling(number(1.2), number(1.1)) @ transforms.rotation(number(-1.0)),
    ]
    shown = wave(48, frequency, torch.eye(3, dtype=torch.float64)).expand(1, 3, 48, 48)
    inner = slice(14, 34)
    worst = [
        float(
            (transforms.resampled(shown, each)[0, 0] - wave(48, frequency, each[0]))[inner, inner].abs().max()
        )
        for each in maps
    ]
    assert error / 2 < max(worst) < error


def test_shrinking_to_half_leaves_what_half_the_size_can_show_and_nothing_of_the_rest() -> None:
    half = transforms.scaling(number(0.5), number(0.5))
    inner = slice(16, 32)
    kept = [
        float(
            transforms.resampled(
                wave(48, frequency, torch.eye(3, dtype=torch.float64)).expand(1, 3, 48, 48), half
            )[0, 0, inner, inner]
            .abs()
            .max()
        )
        for frequency in (0.05, 0.4)
    ]
    # Sampled as they are, waves of 0.4 would come out as waves of 0.2, at full height.
    assert kept[0] > 0.95 and kept[1] < 0.05


def test_constant_pictures_stay_constant_under_every_map() -> None:
    flat = torch.full((1, 3, 9, 9), 0.3, dtype=torch.float64)
    matrix = transforms.scaling(number(0.4), number(2.0)) @ transforms.rotation(number(1.1))
    torch.testing.assert_close(transforms.resampled(flat, matrix), flat, rtol=0, atol=1e-12)


def test_places_are_mirrored_again_and_again() -> None:
    at = number(-3.5, -1.25, -1.0, 0.2, 1.0, 1.5, 3.0, 5.25)
    expected = number(0.5, -0.75, -1.0, 0.2, 1.0, 0.5, -1.0, 0.75)
    torch.testing.assert_close(transforms.mirrored_place(at), expected, rtol=0, atol=1e-12)


# Colours.


def luma(shown: Tensor) -> Tensor:
    return shown.mean(dim=1)


def test_brightness_adds_to_the_mean_and_contrast_enlarges_about_grey() -> None:
    shown = pictures()
    brighter = transforms.recoloured(shown, transforms.brightness(number(0.3, -0.2)))
    torch.testing.assert_close(brighter.mean((1, 2, 3)), shown.mean((1, 2, 3)) + number(0.3, -0.2))
    stronger = transforms.recoloured(shown, transforms.contrast(number(1.7, 0.5)))
    torch.testing.assert_close(stronger, torch.stack([1.7 * shown[0], 0.5 * shown[1]]))


def test_hue_and_saturation_keep_the_luma() -> None:
    shown = pictures()
    for matrix in (transforms.hue(number(0.9, -2.0)), transforms.saturation(number(0.0, 2.5))):
        torch.testing.assert_close(luma(transforms.recoloured(shown, matrix)), luma(shown))
    grey = transforms.recoloured(shown, transforms.saturation(number(0, 0)))
    torch.testing.assert_close(grey, luma(shown)[:, None].expand_as(shown))


def test_hue_keeps_the_length_of_colours_and_a_third_of_a_turn_moves_channels_in_a_circle() -> None:
    shown = pictures()
    turned = transforms.recoloured(shown, transforms.hue(number(0.9, -2.0)))
    torch.testing.assert_close(turned.square().sum(1), shown.square().sum(1))
    third = transforms.recoloured(shown, transforms.hue(number(2 * math.pi / 3, -2 * math.pi / 3)))
    torch.testing.assert_close(third, torch.stack([shown[0].roll(1, 0), shown[1].roll(-1, 0)]))


def test_the_luma_flip_changes_the_sign_of_the_luma_and_keeps_the_rest() -> None:
    shown = pictures()
    turned = transforms.recoloured(shown, transforms.luma_flip(torch.tensor([True, False])))
    torch.testing.assert_close(luma(turned), torch.stack([-luma(shown)[0], luma(shown)[1]]))
    rest = [each - each.mean(dim=1, keepdim=True) for each in (shown, turned)]
    torch.testing.assert_close(rest[1], rest[0])


def test_contrast_about_the_mean_keeps_it_and_enlarges_the_deviation() -> None:
    shown = pictures()
    made = transforms.contrast_about_mean(shown, number(1.4, 0.6))
    torch.testing.assert_close(made.mean((1, 2, 3)), shown.mean((1, 2, 3)))
    torch.testing.assert_close(made.std((1, 2, 3)), shown.std((1, 2, 3)) * number(1.4, 0.6))


# Gradients.

CHANGES: dict[str, Change] = {
    "flip": lambda x: transforms.flipped(x, torch.tensor([True])),
    "turn": lambda x: transforms.turned(x, torch.tensor([3])),
    "shift": lambda x: transforms.shifted(x, torch.tensor([1]), torch.tensor([-2])),
    "cutout": lambda x: transforms.cut_out(x, torch.tensor([2]), torch.tensor([2]), 3),
    "map": lambda x: transforms.resampled(x, transforms.rotation(number(0.4))),
    "colour": lambda x: transforms.recoloured(x, transforms.hue(number(0.4))),
    "contrast": lambda x: transforms.contrast_about_mean(x, number(1.5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_gradients_match_finite_differences_once_and_twice(name: str) -> None:
    shown = pictures(1, 5, 5)[:, :3].requires_grad_(True)
    change = CHANGES[name]
    assert torch.autograd.gradcheck(change, shown, fast_mode=True)
    # Squared, for the second derivative of what is linear is 0.
    assert torch.autograd.gradgradcheck(lambda x: change(x).square().sum(), shown, fast_mode=True)
