"""CLIPs: preparing pictures, reading texts and learned words."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from clips import TEXTS, WORDS, draw, small, vit
from zeroshift.clip.model import ClipModel, build_dual_encoder
from zeroshift.clip.text import BytePairTokenizer
from zeroshift.errors import InputError


@pytest.mark.parametrize("vision", ["resnet", "convnext", "regnet"])
def test_a_built_in_clip_is_frozen_and_passes_gradients_to_pictures(vision: str) -> None:
    clip = small(vision)
    images = draw(2, 3, 64, 64, dtype=torch.float32).requires_grad_()
    clip.encode_image(images).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert not any(module.training for module in clip.train().modules())


def test_a_clip_in_training_learns_all_its_weights() -> None:
    clip = small(frozen=False)
    images = draw(2, 3, 64, 64, dtype=torch.float32)
    scale = clip.model.logit_scale.exp()
    (scale * clip.encode_image(images) @ clip.encode_text(TEXTS[:2]).T).square().mean().backward()
    silent = [name for name, parameter in clip.named_parameters() if parameter.grad is None]
    assert clip.training and not silent


@pytest.mark.parametrize("vision", ["resnet", "convnext", "regnet"])
def test_one_picture_alone_has_the_features_it_has_in_a_batch(vision: str) -> None:
    clip = small(vision).double()
    images = draw(3, 3, 64, 64)
    torch.testing.assert_close(clip.encode_image(images[1:2]), clip.encode_image(images)[1:2])


def test_the_default_tower_costs_at_most_sixty_megaflops_a_picture() -> None:
    clip = ClipModel(build_dual_encoder(WORDS.vocab_size), WORDS, resolution=64)
    with FlopCounterMode(display=False) as counter:
        clip.encode_image(torch.zeros(1, 3, 64, 64))
    # Counted as two per multiply-add; the projection and rounding come on top of 60.
    assert 20e6 < counter.get_total_flops() < 61e6


def test_building_is_seeded_and_leaves_the_global_randomness_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, third = (small("convnext", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_cutting_the_padding_off_changes_nothing() -> None:
    clip = ClipModel(vit(), BytePairTokenizer(), resolution=32).double()
    with torch.no_grad():
        hub = clip.model.get_text_features(input_ids=clip.tokenize(TEXTS)).pooler_output
        seen: list[int] = []
        clip.model.text_model.encoder.register_forward_pre_hook(
            lambda _, __, options: seen.append(options["inputs_embeds"].shape[1]), with_kwargs=True
        )
        torch.testing.assert_close(clip.encode_text(TEXTS), hub)
    longest = int((clip.tokenize(TEXTS) > 0).sum(dim=1).max())
    assert seen == [longest] and longest < clip.context_length


def test_text_is_read_at_its_own_end_and_not_at_the_largest_id() -> None:
    clip = small().double()
    alone = torch.cat([clip.encode_text([text]) for text in TEXTS])
    torch.testing.assert_close(clip.encode_text(TEXTS), alone)
    hub = clip.model.text_model(clip.tokenize(TEXTS)).pooler_output
    torch.testing.assert_close(clip.encode_text(TEXTS), clip.model.text_projection(hub))


def test_token_ids_and_texts_are_encoded_alike() -> None:
    clip = small()
    assert torch.equal(clip.encode_text(clip.tokenize(TEXTS)), clip.encode_text(TEXTS))
    with pytest.raises(InputError, match="end token 4"):
        clip.encode_text(torch.ones(1, 5, dtype=torch.long))


def test_learned_words_equal_to_the_tokens_give_the_features_of_the_text() -> None:
    clip = small().double()
    words = clip.embed_tokens("a photo of a")[None].expand(3, -1, -1)
    ours = clip.encode_prompts(words, "a photo of a sketch")
    torch.testing.assert_close(ours, clip.encode_text(["a photo of a sketch"]).expand(3, -1))


def test_every_image_is_read_with_its_own_words_in_one_batch() -> None:
    clip = small().double()
    words = draw(3, 4, 16)
    together = clip.encode_prompts(words, "a photo of a sketch")
    alone = torch.cat([clip.encode_prompts(row[None], "a photo of a sketch") for row in words])
    torch.testing.assert_close(together, alone)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_more_or_fewer_words_than_they_replace_read_as_the_longer_or_shorter_text() -> None:
    clip = small().double()
    for words, replaced, rest in (("a photo of a photo", 1, "a sketch"), ("photo", 3, "a photo of sketch")):
        ours = clip.encode_prompts(clip.embed_tokens(words)[None], rest, replaced=replaced)
        torch.testing.assert_close(ours, clip.encode_text([" ".join([words, *rest.split()[replaced:]])]))
    with pytest.raises(InputError, match="longer than the"):
        clip.encode_prompts(torch.zeros(1, 99, 16), "a photo", replaced=1)


def test_words_of_another_width_or_more_words_than_tokens_are_refused() -> None:
    clip = small()
    with pytest.raises(InputError, match="one head per CLIP"):
        clip.encode_prompts(torch.zeros(1, 2, 17), "a photo")
    with pytest.raises(InputError, match="longer context"):
        clip.encode_prompts(torch.zeros(1, 3, 16), "a photo")


def test_preparing_agrees_with_pillow_on_a_photo_sized_picture() -> None:
    side = 32
    y, x = torch.meshgrid(torch.linspace(0, 6, 150), torch.linspace(0, 9, 211), indexing="ij")
    pixels = torch.stack([torch.sin(x + y), torch.cos(x * y / 3), torch.sin(y)]).mul(127).add(128).byte()
    clip = small(resolution=side, mean=(0, 0, 0), std=(1, 1, 1))
    ours = clip.preprocess(pixels[None].float() / 127.5 - 1)[0]
    resized = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(
        (int(side * 211 / 150), side), Image.Resampling.BICUBIC
    )
    left = (resized.width - side) / 2
    assert left == int(left) + 0.5 or left == int(left)
    cropped = resized.crop((round(left), 0, round(left) + side, side))
    pillow = (
        torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)
        / 255
    )
    # Pillow rounds to 8 bit after each of its two passes.
    assert (ours - pillow).abs().max() <= 1.5 / 255


def test_a_picture_of_the_right_size_is_only_shifted_and_scaled() -> None:
    clip = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = draw(2, 3, 64, 64)
    expected = torch.stack(
        [((images[:, c] + 1) / 2 - 0.1 * (c + 1)) / (0.5 + 0.1 * c) for c in range(3)], dim=1
    )
    torch.testing.assert_close(clip.preprocess(images), expected)


def test_an_odd_surplus_is_cropped_at_the_half_rounded_to_even() -> None:
    clip = small(resolution=4, mean=(0, 0, 0), std=(1, 1, 1))
    columns = torch.arange(7.0).expand(1, 3, 4, 7)
    # (7 - 4) / 2 = 1.5 rounds to 2; (9 - 4) / 2 = 2.5 rounds to 2.
    assert ((clip.preprocess(columns)[0, 0, 0] * 2 - 1).tolist()) == [2, 3, 4, 5]
    assert ((clip.preprocess(torch.arange(9.0).expand(1, 3, 4, 9))[0, 0, 0] * 2 - 1).tolist()) == [2, 3, 4, 5]


def test_the_two_resize_filters_differ_and_another_is_refused() -> None:
    images = draw(1, 3, 90, 90)
    ours, old = (small(resize=resize).preprocess(images) for resize in ("antialias", "noantialias"))
    assert (ours - old).abs().max() > 0.01
    with pytest.raises(InputError, match="noantialias"):
        small(resize="bilinear")


def test_half_precision_models_give_full_precision_features() -> None:
    clip = small()
    images = draw(2, 3, 64, 64, dtype=torch.float32)
    full = clip.encode_image(images), clip.encode_text(TEXTS)
    clip.to(torch.bfloat16)
    half = clip.encode_image(images.bfloat16()), clip.encode_text(TEXTS)
    for ours, exact in zip(half, full, strict=True):
        assert ours.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(ours, exact).min()) > 0.99


def test_double_precision_goes_all_the_way_through() -> None:
    clip = small().double()
    assert clip.encode_image(draw(1, 3, 70, 80)).dtype == clip.encode_text(TEXTS).dtype == torch.float64
    # A constant rounded to float32 would show in the ninth digit.
    gray = (
        small(mean=(0.1, 0.1, 0.1), std=(0.3, 0.3, 0.3))
        .double()
        .preprocess(torch.zeros(1, 3, 64, 64, dtype=torch.float64))
    )
    assert float(gray[0, 0, 0, 0]) == pytest.approx((0.5 - 0.1) / 0.3, rel=1e-14)
