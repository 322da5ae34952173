"""Directions between texts and between pictures, and the zero row of every first step."""

from __future__ import annotations

import pytest
import torch

from zeroshift.clip.features import normalize, template_features, text_direction
from zeroshift.clip.model import ClipModel, build_dual_encoder
from zeroshift.clip.text import TemplateBank, WordTokenizer
from zeroshift.errors import InputError
from zeroshift.methods import directions, losses

BANK = TemplateBank("test", ("{}", "a {}", "a {} face"))


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    words = WordTokenizer(["a photo of a face", "pencil sketch ."])
    model = build_dual_encoder(
        words.vocab_size, widths=(8, 16), depths=(1, 1), embed_dim=12, text_width=16, text_heads=2
    )
    return ClipModel(model, words, resolution=64, templates=BANK, context="a photo of a").double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_normalised_rows_have_length_one_and_a_zero_row_stays_zero() -> None:
    x = torch.cat([draw(3, 5), torch.zeros(1, 5, dtype=torch.float64)])
    lengths = normalize(x).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))


def test_the_text_direction_is_the_unit_mean_of_differences_of_unit_features(clip: ClipModel) -> None:
    total = 0
    for template in BANK.templates:
        target, source = (
            clip.encode_text([template.replace("{}", label)])[0] for label in ("pencil sketch", "photo")
        )
        total = total + target / target.norm() - source / source.norm()
    assert isinstance(total, torch.Tensor)
    ours = text_direction(clip, "photo", "pencil sketch")
    torch.testing.assert_close(ours, (total / total.norm())[None])


def test_a_given_bank_takes_the_place_of_the_models_own(clip: ClipModel) -> None:
    one = template_features(clip, "photo", TemplateBank("one", ("a {}",)))
    torch.testing.assert_close(one, template_features(clip, "photo")[1:2])


def test_the_residual_is_added_to_the_prompt_and_stays_unchanged(clip: ClipModel) -> None:
    words, residual = draw(3, 4, 16), draw(1, 12)
    before = residual.clone()
    ours = directions.prompt_features(clip, words, "a photo of a", "sketch", residual)
    raw = clip.encode_prompts(words, "a photo of a sketch") + before
    torch.testing.assert_close(ours, raw / raw.norm(dim=1, keepdim=True))
    assert torch.equal(residual, before)


def test_recentred_directions_keep_what_is_individual_about_the_labels_direction() -> None:
    found, label = normalize(draw(6, 5)), normalize(draw(1, 5))
    ours = directions.recentred(found, found.mean(dim=0, keepdim=True), label)
    for row, each in zip(ours, found, strict=True):
        slow = label[0] + each - sum(found) / 6
        torch.testing.assert_close(row, slow / slow.norm())
    same = found[:1].expand(6, -1)
    torch.testing.assert_close(
        directions.recentred(same, same.mean(dim=0, keepdim=True), label), label.expand(6, -1)
    )


def test_the_corrected_residual_names_the_label_and_the_published_one_does_not(clip: ClipModel) -> None:
    context = "a photo of a"
    torch.testing.assert_close(
        directions.residual_feature(clip, context, "sketch"), clip.encode_text(["a photo of a sketch."])
    )
    assert not directions.residual_feature(clip, context, "sketch", "none").any()
    published = [
        directions.residual_feature(clip, context, label, "published") for label in ("sketch", "face")
    ]
    assert torch.equal(*published) and torch.equal(published[0], clip.encode_text([context]))
    with pytest.raises(InputError, match="corrected"):
        directions.residual_feature(clip, context, "sketch", "right")  # pyright: ignore[reportArgumentType]  # the wrong value


def test_the_direction_of_each_prompt_is_the_unit_difference() -> None:
    target, source = draw(4, 6), draw(6, 4).T
    ours = directions.prompt_direction(source, target)
    for row, t, s in zip(ours, target, source, strict=True):
        torch.testing.assert_close(row, (t - s) / (t - s).norm())


def test_far_pictures_get_the_published_direction_whatever_the_floor() -> None:
    target, source = draw(5, 6), draw(6, 5).T
    published = directions.image_direction(source, target, floor=0)
    torch.testing.assert_close(directions.image_direction(source, target), published)
    torch.testing.assert_close(published.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_near_pictures_get_a_direction_shorter_than_one() -> None:
    source = normalize(draw(2, 6))
    target = normalize(source + 0.001 * draw(6, 2).T)
    ours = directions.image_direction(source, target, floor=0.05)
    torch.testing.assert_close(ours, (target - source) / 0.05)


def test_a_pair_of_equal_pictures_is_zero_and_the_published_formula_has_no_value_there() -> None:
    same = draw(2, 6)
    assert torch.equal(directions.image_direction(same, same), torch.zeros(2, 6, dtype=torch.float64))
    assert directions.image_direction(same, same, floor=0).isnan().all()


@pytest.mark.parametrize("floor", [0.05, 0.2])
def test_the_gradient_at_a_zero_row_is_finite_and_bounded_by_the_floor(floor: float) -> None:
    source = normalize(draw(3, 6))
    target = source.clone().requires_grad_()
    text = normalize(draw(1, 6))
    losses.directional(directions.image_direction(source, target, floor), text).backward()
    assert target.grad is not None and target.grad.isfinite().all()
    lengths = target.grad.norm(dim=1)
    # Three rows share the mean; features have length one, so normalising them adds no factor.
    assert (lengths > 0).all() and (lengths <= 1 / floor / 3 * (1 + 1e-9)).all()


def move(floor: float, steps: int = 50) -> float:
    """Distance that toy features go in Adam steps that start where target equals source."""
    source = normalize(draw(2, 6))
    offset = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    text = normalize(draw(1, 6))
    adam = torch.optim.Adam([offset], lr=0.002, betas=(0.0, 0.99**0.8))
    for _ in range(steps):
        adam.zero_grad()
        losses.directional(directions.image_direction(source, source + offset, floor), text).backward()
        adam.step()
    return float(offset.detach().norm())


def test_fifty_steps_of_adam_from_equal_pictures_move_them() -> None:
    assert move(0.05) > 0.05


def test_a_divisor_that_is_hardly_bounded_poisons_adam() -> None:
    # The defect that the floor is for: one step is taken, then hardly any other.
    assert move(1e-8) < 0.25 * move(0.05)
