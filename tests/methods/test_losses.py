"""Every loss against a slow loop over its formula."""

from __future__ import annotations

import math

import pytest
import torch

from zeroshift.clip.features import normalize
from zeroshift.errors import InputError
from zeroshift.methods import losses


def units(rows: int, seed: int, width: int = 5) -> torch.Tensor:
    return normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def close(ours: torch.Tensor, expected: float) -> bool:
    return ours.shape == () and float(ours) == pytest.approx(expected, rel=1e-10)


def test_directional_is_the_mean_of_one_minus_the_product() -> None:
    image, text = units(4, 1), units(4, 2)
    assert close(
        losses.directional(image, text), sum(1 - dot(i, t) for i, t in zip(image, text, strict=True)) / 4
    )
    assert close(losses.directional(image, text[:1]), sum(1 - dot(i, text[0]) for i in image) / 4)


def test_directional_is_zero_for_equal_and_two_for_opposite_directions() -> None:
    image = units(3, 3)
    assert float(losses.directional(image, image)) == pytest.approx(0, abs=1e-12)
    assert float(losses.directional(image, -image)) == pytest.approx(2)


def test_directional_keeps_the_length_of_a_bounded_direction() -> None:
    image = units(3, 4)
    assert float(losses.directional(0.1 * image, image)) == pytest.approx(0.9)


def test_to_point_is_the_mean_square_distance_to_the_point_over_its_own() -> None:
    source, target, text = units(4, 21), units(4, 22), units(4, 23)
    for directions in (text, text[:1]):
        total = 0.0
        for i in range(4):
            aim = directions[i if len(directions) > 1 else 0].tolist()
            moved = [t - s for s, t in zip(source[i].tolist(), target[i].tolist(), strict=True)]
            total += sum((m - 0.8 * d) ** 2 for m, d in zip(moved, aim, strict=True)) / 0.8**2
        assert close(losses.to_point(source, target, directions, 0.8), total / 4)


@pytest.mark.parametrize("across", [0.0, 0.25, 3.0])
def test_what_goes_astray_of_the_direction_has_a_weight_of_its_own(across: float) -> None:
    source, target, text = units(4, 21), units(4, 22), units(4, 23)
    total = 0.0
    for i in range(4):
        aim, moved = text[i].tolist(), (target[i] - source[i]).tolist()
        along = sum(m * d for m, d in zip(moved, aim, strict=True))
        astray = sum((m - along * d) ** 2 for m, d in zip(moved, aim, strict=True))
        total += ((0.8 - along) ** 2 + across * astray) / 0.8**2
    assert close(losses.to_point(source, target, text, 0.8, across), total / 4)


def test_to_point_is_one_at_the_start_zero_at_the_point_and_one_at_twice_the_way() -> None:
    source, text = units(3, 24), units(3, 25)
    at = [float(losses.to_point(source, source + way * text, text, 0.7)) for way in (0.0, 0.35, 0.7, 1.4)]
    assert at == pytest.approx([1, 0.25, 0, 1], abs=1e-12)


def test_relation_is_the_mean_square_change_of_cosines_of_all_pairs() -> None:
    source, target = units(4, 26), units(4, 27)
    total = sum(
        (dot(source[i], source[j]) - dot(target[i], target[j])) ** 2 for j in range(4) for i in range(j)
    )
    assert close(losses.relation(source, target), 2 * total / (4 * 3))


def test_relation_of_several_views_is_the_mean_of_that_within_each() -> None:
    views = [(units(3, 28 + k), units(3, 38 + k)) for k in range(2)]
    within = [float(losses.relation(*view)) for view in views]
    source, target = (torch.stack(each) for each in zip(*views, strict=True))
    assert close(losses.relation(source, target), sum(within) / 2)


def test_pictures_that_turn_together_keep_their_relation_and_one_picture_has_none() -> None:
    source = units(4, 29)
    turn = torch.linalg.qr(units(5, 30)).Q
    assert float(losses.relation(source, source @ turn)) == pytest.approx(0, abs=1e-12)
    assert float(losses.relation(source[:1], turn[:1])) == 0


def test_contrastive_is_the_mean_cross_entropy_of_rows_and_columns() -> None:
    image, text, scale = units(4, 5), units(4, 6), 14.0
    total = 0.0
    for i in range(4):
        row = sum(math.exp(scale * dot(image[i], text[j])) for j in range(4))
        column = sum(math.exp(scale * dot(image[j], text[i])) for j in range(4))
        total += math.log(row) + math.log(column) - 2 * scale * dot(image[i], text[i])
    assert close(losses.contrastive(image, text, scale), total / 8)


def test_classification_is_the_cross_entropy_of_the_first_label() -> None:
    image, labels = units(5, 1), units(2, 2)
    slow = 0.0
    for row in image:
        odds = [math.exp(9.0 * float(row @ label)) for label in labels]
        slow -= math.log(odds[0] / sum(odds)) / 5
    assert float(losses.classification(image, labels, 9.0)) == pytest.approx(slow, rel=1e-9)


def test_domain_is_one_minus_the_cosine_to_a_mean_of_any_length() -> None:
    prompt, mean = units(4, 7), 0.3 * units(1, 8)[0]
    expected = sum(1 - dot(row, mean) / math.sqrt(dot(mean, mean)) for row in prompt) / 4
    assert close(losses.domain(prompt, mean), expected)
    assert close(losses.domain(prompt, mean[None]), expected)


def test_global_is_one_minus_the_scaled_cosine() -> None:
    image, text = units(4, 9), units(1, 10)
    assert close(
        losses.global_clip(image, text, 0.14), sum(1 - 0.14 * dot(row, text[0]) for row in image) / 4
    )
    assert close(losses.global_clip(image, text), sum(1 - dot(row, text[0]) for row in image) / 4)


def test_manifold_is_the_distance_of_cosines() -> None:
    source, target = units(4, 11), units(4, 12)
    expected = sum(abs(dot(s, t) - 0.3) for s, t in zip(source, target, strict=True)) / 4
    assert close(losses.manifold(source, target, 0.3), expected)


def test_patch_weighs_every_part_by_how_near_it_is() -> None:
    patches, parts = units(3, 13), units(4, 14)
    total = 0.0
    for e in patches:
        weights = [math.exp(dot(e, d)) for d in parts]
        total += sum(
            (1 - dot(e, d)) * weight / sum(weights) for d, weight in zip(parts, weights, strict=True)
        )
    assert close(losses.patch(patches, parts), total / 12)


def test_texture_is_the_mean_square_difference_of_whole_features() -> None:
    wanted, image = 3 * units(4, 17), 2 * units(4, 18)
    expected = sum(
        (a - b) ** 2
        for row, other in zip(wanted.tolist(), image.tolist(), strict=True)
        for a, b in zip(row, other, strict=True)
    )
    assert close(losses.texture(wanted, image), expected / 20)
    alone = [losses.texture(wanted[:1], each[None]) for each in image]
    assert close(losses.texture(wanted[:1], image), float(sum(alone)) / 4)


def test_raster_is_the_mean_square_of_what_repeats_from_block_to_block() -> None:
    draw = torch.Generator().manual_seed(8)
    before, after = (torch.rand(2, 3, 8, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    change, squares = (after - before).tolist(), []
    # Blocks of 2 x 2 px in windows of 4 x 4 blocks: one row of windows, and columns of 8 and of 4 px.
    for picture in change:
        for channel in picture:
            for left, right in ((0, 8), (8, 12)):
                means = [
                    math.fsum(row[x] for row in channel[down::2] for x in range(left + across, right, 2))
                    / (2 * (right - left))
                    for down in range(2)
                    for across in range(2)
                ]
                squares += [(mean - sum(means) / 4) ** 2 for mean in means]
    assert close(losses.raster(before, after, block=2), math.fsum(squares) / len(squares))


def test_a_change_that_is_the_same_everywhere_is_no_raster_and_a_chequered_one_is_nothing_else() -> None:
    before = torch.zeros(1, 3, 16, 16)
    chequered = torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).repeat(8, 8).expand_as(before)
    assert float(losses.raster(before, before + 0.7)) == pytest.approx(0, abs=1e-12)
    assert float(losses.raster(before, chequered)) == pytest.approx(0.25)
    assert float(losses.raster(before[..., :15, :14], chequered[..., :15, :14])) == pytest.approx(0.25)


def test_a_patch_is_cut_around_its_centre() -> None:
    images = torch.arange(2 * 1 * 6 * 7).view(2, 1, 6, 7)
    patches = losses.crop_patches(images, torch.tensor([[2, 3], [5, 2]]), size=4)
    assert torch.equal(patches[0], images[0, :, 1:5, 0:4]) and torch.equal(patches[1], images[1, :, 0:4, 3:7])


@pytest.mark.parametrize("center", [(1, 3), (2, 5), (6, 3)])
def test_a_patch_that_leaves_its_picture_is_refused(center: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="4 px patch"):
        losses.crop_patches(torch.zeros(1, 3, 6, 7), torch.tensor([center]), size=4)


def test_no_loss_changes_what_it_is_given() -> None:
    a, b = units(3, 15), units(3, 16)
    kept = a.clone(), b.clone()
    for loss in (losses.directional, losses.global_clip, losses.patch):
        loss(a, b)
    losses.contrastive(a, b, 10.0)
    losses.manifold(a, b, 0.1)
    losses.texture(a, b)
    losses.relation(a, b)
    losses.to_point(a, b, b, 0.5)
    losses.domain(a, b[0])
    assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])
