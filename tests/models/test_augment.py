"""Augmentation of what a discriminator sees: chances, spreads and order as published, whole pictures by slow
steps, and the controller of the chance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zeroshift.models import augment, transforms
from zeroshift.models.augment import AdaNumbers, AdaptiveChance
from zeroshift.models.seeds import rng

PARTS = ("blit", "geom", "color")


def pictures(batch: int = 2, side: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(side)
    return torch.rand(batch, 3, side, side, generator=draw, dtype=torch.float64) * 2 - 1


def sources(batch: int, step: int = 1) -> list[torch.Generator]:
    return [rng("augment", 0, step, sample) for sample in range(batch)]


# DiffAugment.


def slow_diffaugment(picture: Tensor, numbers: list[float]) -> Tensor:
    """One picture 3,16,16 step by step."""
    bright, saturated, contrasted, down, right, row, column = numbers
    made = picture + bright - 0.5
    mean = made.mean(dim=0, keepdim=True)
    made = (made - mean) * (2 * saturated) + mean
    made = (made - made.mean()) * (contrasted + 0.5) + made.mean()
    moved = torch.zeros_like(made)
    y, x = math.floor(5 * down) - 2, math.floor(5 * right) - 2
    for i in range(16):
        for j in range(16):
            if 0 <= i - y < 16 and 0 <= j - x < 16:
                moved[:, i, j] = made[:, i - y, j - x]
            top, left = math.floor(17 * row) - 4, math.floor(17 * column) - 4
            if top <= i < top + 8 and left <= j < left + 8:
                moved[:, i, j] = 0
    return moved


def test_diffaugment_is_colour_then_a_shift_then_a_hole() -> None:
    shown = pictures(3, 16)
    numbers = augment.diffaugment_numbers(sources(3))
    made = augment.diffaugment(shown, numbers, ("color", "translation", "cutout"))
    slow = [slow_diffaugment(each, row) for each, row in zip(shown, numbers.tolist(), strict=True)]
    torch.testing.assert_close(made, torch.stack(slow))


def test_a_part_of_diffaugment_that_is_off_changes_nothing_and_leaves_the_others_as_they_are() -> None:
    shown = pictures()
    numbers = augment.diffaugment_numbers(sources(2))
    assert torch.equal(augment.diffaugment(shown, numbers, ()), shown)
    one_by_one = shown
    for part in ("color", "translation", "cutout"):
        one_by_one = augment.diffaugment(one_by_one, numbers, (part,))
    together = augment.diffaugment(shown, numbers, ("cutout", "color", "translation"))
    assert torch.equal(one_by_one, together) and not torch.equal(together, shown)


def test_holes_cover_a_quarter_where_they_lie_whole_and_the_middle_lies_anywhere() -> None:
    numbers = augment.diffaugment_numbers(sources(400))
    made = augment.diffaugment(torch.ones(400, 3, 8, 8), numbers, ("cutout",))
    area = 1 - made[:, 0].mean((1, 2))
    assert float(area.max()) == 0.25
    # The middle is one of nine places; a side of 4 then keeps 2, 3, 4, 4, 4, 4, 4, 3, 2 of 8 on either axis.
    assert float(area.mean()) == pytest.approx((30 / 9 / 8) ** 2, rel=0.03)


# ADA.


def numbers(batch: int, chance: float = 0.0) -> AdaNumbers:
    """Numbers of pictures that have the same chance in all, drawn else."""
    drawn = augment.ada_numbers(sources(batch))
    return AdaNumbers(torch.full_like(drawn.chance, chance), drawn.uniform, drawn.normal)


def only(drawn: AdaNumbers, *places: int) -> AdaNumbers:
    """Numbers by which the transforms at these places are on, and no others."""
    chance = torch.ones_like(drawn.chance)
    chance[:, list(places)] = 0.0
    return AdaNumbers(chance, drawn.uniform, drawn.normal)


def test_pictures_are_untouched_at_chance_0_and_all_changed_at_1() -> None:
    shown = pictures(6)
    drawn = augment.ada_numbers(sources(6))
    assert torch.equal(augment.ada(shown, drawn, 0.0, PARTS), shown)
    changed = augment.ada(shown, drawn, 1.0, PARTS)
    assert not any(torch.equal(a, b) for a, b in zip(changed, shown, strict=True))


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_the_share_of_pictures_that_a_transform_takes_is_its_chance(p: float) -> None:
    drawn = augment.ada_numbers(sources(4000))
    tolerance = 4 * math.sqrt(0.25 / 4000)
    for place in range(13):
        alone = only(drawn, place)
        chance = drawn.chance[:, place : place + 1]
        alone = AdaNumbers(torch.where(alone.chance == 0, chance, 1.0), drawn.uniform, drawn.normal)
        if place >= 8:
            taken, _ = augment.ada_colour(alone, p)
        elif place >= 3:
            taken, _ = augment.ada_geometry(alone, p, 12)
        else:
            taken = chance[:, 0] < p
        # Either of two turns, together with chance p.
        wanted = 1 - math.sqrt(1 - p) if place in (4, 6) else p
        assert float(taken.double().mean()) == pytest.approx(wanted, abs=tolerance)
    turns = only(drawn, 4, 6)
    turns = AdaNumbers(torch.where(turns.chance == 0, drawn.chance, 1.0), drawn.uniform, drawn.normal)
    share = float(augment.ada_geometry(turns, p, 12)[0].double().mean())
    assert share == pytest.approx(p, abs=tolerance)


def test_a_higher_chance_changes_the_same_pictures_and_more() -> None:
    shown = pictures(40)
    drawn = augment.ada_numbers(sources(40))
    changed = [
        {i for i in range(40) if not torch.equal(made[i], shown[i])}
        for made in (augment.ada(shown, drawn, p, PARTS) for p in (0.02, 0.1, 0.3))
    ]
    assert 0 < len(changed[0]) < len(changed[1]) < len(changed[2])
    assert changed[0] < changed[1] < changed[2]


def test_blits_are_flips_turns_and_shifts_one_after_another() -> None:
    shown = pictures(8)
    drawn = numbers(8)
    made = augment.ada(shown, drawn, 0.5, ("blit",))
    for i in range(8):
        flip, quarter, down, right = drawn.uniform[i, :4].tolist()
        slow = shown[i].flip(-1) if flip < 0.5 else shown[i]
        slow = torch.rot90(slow, math.floor(4 * quarter), (1, 2))
        y, x = (round((2 * each - 1) * 12 / 8) for each in (down, right))
        slow = transforms.shifted(slow[None], torch.tensor([y]), torch.tensor([x]))[0]
        assert torch.equal(made[i], slow)
    flips = augment.ada(shown, only(drawn, 0), 0.5, ("blit",))
    halves = drawn.uniform[:, 0] < 0.5
    assert 0 < int(halves.sum()) < 8
    assert torch.equal(flips[halves], shown[halves].flip(-1)) and torch.equal(flips[~halves], shown[~halves])


def test_geometry_is_size_turn_stretch_turn_and_shift_with_the_published_spreads() -> None:
    drawn = numbers(5)
    taken, maps = augment.ada_geometry(drawn, 0.5, 16)
    assert taken.all()
    for i in range(5):
        first, second = (math.pi * (2 * each - 1) for each in drawn.uniform[i, 4:6].tolist())
        size, stretch, right, down = drawn.normal[i, :4].tolist()
        point = torch.tensor([2.0, -1.0], dtype=torch.float64)
        for step in ("size", "first", "stretch", "second"):
            if step == "size":
                point = point * 2 ** (0.2 * size)
            elif step == "stretch":
                point = point * torch.tensor([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)])
            else:
                angle = first if step == "first" else second
                # Counter-clockwise where y counts downwards.
                turn = torch.tensor(
                    [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
                ).double()
                point = turn @ point
        point = point + torch.tensor([right, down]) * 2
        found = maps[i] @ torch.tensor([2.0, -1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(found[:2], point, rtol=0, atol=1e-6)


def test_colours_are_brightness_contrast_luma_hue_and_saturation_with_the_published_spreads() -> None:
    drawn = numbers(5)
    taken, maps = augment.ada_colour(drawn, 0.5)
    assert taken.all()
    axis = torch.full((3,), 1 / math.sqrt(3), dtype=torch.float64)
    for i in range(5):
        flip, angle = drawn.uniform[i, 6:8].tolist()
        bright, contrasted, saturated = drawn.normal[i, 4:7].tolist()
        colour = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)
        made = (colour + 0.2 * bright) * 2 ** (0.5 * contrasted)
        if flip < 0.5:
            made = made - 2 * (made @ axis) * axis
        theta = math.pi * (2 * angle - 1)
        # Rodrigues' formula.
        made = (
            made * math.cos(theta)
            + torch.linalg.cross(axis, made) * math.sin(theta)
            + axis * (axis @ made) * (1 - math.cos(theta))
        )
        grey = (made @ axis) * axis
        made = grey + (made - grey) * 2**saturated
        found = maps[i, :3, :3] @ colour + maps[i, :3, 3]
        torch.testing.assert_close(found, made)


def test_all_of_ada_is_blit_then_geometry_then_colour() -> None:
    shown = pictures(3)
    drawn = numbers(3)
    slow = augment.ada(shown, drawn, 0.5, ("blit",))
    slow = transforms.resampled(slow, augment.ada_geometry(drawn, 0.5, 12)[1])
    slow = transforms.recoloured(slow, augment.ada_colour(drawn, 0.5)[1])
    torch.testing.assert_close(augment.ada(shown, drawn, 0.5, PARTS[::-1]), slow)


def test_a_picture_is_changed_alike_beside_whatever_others() -> None:
    shown = pictures(5)
    drawn = augment.ada_numbers(sources(5))
    together = augment.ada(shown, drawn, 0.3, PARTS)
    for i in range(5):
        alone = AdaNumbers(drawn.chance[i : i + 1], drawn.uniform[i : i + 1], drawn.normal[i : i + 1])
        torch.testing.assert_close(augment.ada(shown[i : i + 1], alone, 0.3, PARTS)[0], together[i])
    assert torch.equal(augment.ada_numbers(sources(2)).normal, drawn.normal[:2])
    assert not torch.equal(augment.ada_numbers(sources(2, step=2)).normal, drawn.normal[:2])


def test_gradients_of_both_kinds_match_finite_differences() -> None:
    shown = pictures(2, 6).requires_grad_(True)
    drawn = augment.ada_numbers(sources(2))
    assert torch.autograd.gradcheck(
        lambda x: augment.ada(x, drawn, 0.7, PARTS).square().sum(), shown, fast_mode=True
    )
    uniform = augment.diffaugment_numbers(sources(2))
    assert torch.autograd.gradcheck(
        lambda x: augment.diffaugment(x, uniform, ("color", "translation", "cutout")).square().sum(),
        shown,
        fast_mode=True,
    )


# The chance.


@pytest.mark.parametrize(
    ("p", "sign", "after"),
    [
        (0.0, 0.9, 0.016),
        (0.3, 0.61, 0.316),
        (0.3, 0.6, 0.3),
        (0.3, -0.2, 0.284),
        (0.01, 0.5, 0.0),
        (0.99, 1.0, 1.0),
    ],
)
def test_the_chance_moves_towards_the_target_by_pictures_over_length(
    p: float, sign: float, after: float
) -> None:
    assert augment.next_chance(p, sign, 0.6, 16, 1000) == pytest.approx(after)


def test_the_chance_changes_every_few_steps_by_the_signs_of_all_logits_since() -> None:
    chance = AdaptiveChance(0.2, 0.6, 1000, every=2)
    table = [
        ([3.0, 0.1, 2.0, -0.5], 0.2),  # mean sign 0.5 so far
        ([1.0, 1.0, 1.0, 1.0], 0.208),  # 0.75 over both
        ([-1.0, -9.0, 0.5, 0.5], 0.208),
        ([0.0, 0.0, 0.0, 0.0], 0.2),  # a logit of 0 is neither
    ]
    for logits, after in table:
        chance.see(float(torch.tensor(logits).sign().mean()), len(logits))
        assert chance.p == pytest.approx(after)


def test_a_chance_goes_on_with_its_state() -> None:
    whole, first, second = (AdaptiveChance(0.1, 0.6, 100, every=3) for _ in range(3))
    for step in range(7):
        whole.see(1.0, 3)
        (first if step < 4 else second).see(1.0, 3)
        if step == 3:
            second.resume(first.state())
    assert second.p == whole.p != 0.1 and torch.equal(second.state(), whole.state())
