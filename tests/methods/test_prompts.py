"""The latent mapper: words for each image, one head per text encoder."""

from __future__ import annotations

import math

import pytest
import torch

from foreign import mapper_from_official
from zeroshift.clip.model import ClipModel, build_dual_encoder
from zeroshift.clip.text import WordTokenizer
from zeroshift.errors import InputError
from zeroshift.methods.prompts import LatentMapper, PromptMapper, prompt_mapper


def clip_of(text_width: int) -> ClipModel:
    words = WordTokenizer(["a photo of a face"])
    model = build_dual_encoder(
        words.vocab_size,
        widths=(8, 16),
        depths=(1, 1),
        embed_dim=12,
        text_width=text_width,
        text_heads=2,
        text_layers=1,
    )
    return ClipModel(model, words, resolution=64)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_the_mapper_is_normalisation_and_four_activated_scaled_layers() -> None:
    mapper = LatentMapper(6, 2, 3, hidden=5).double()
    w = draw(4, 6)
    for row, ours in zip(w, mapper(w), strict=True):
        x = row / math.sqrt(float((row * row).mean()) + 1e-8)
        for layer in mapper.layers:
            weight, bias = layer.get_parameter("weight").detach(), layer.get_parameter("bias").detach()
            x = weight @ x * 0.01 / math.sqrt(len(x)) + 0.01 * bias
            x = math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)
        torch.testing.assert_close(ours.detach(), x.view(2, 3))


def test_words_of_a_fresh_published_mapper_have_an_rms_near_one() -> None:
    words = LatentMapper(128, 4, 128)(draw(64, 128).float())
    assert 0.5 < float(words.detach().square().mean().sqrt()) < 2


def test_one_image_alone_gets_the_words_it_gets_in_a_batch() -> None:
    mapper = LatentMapper(16, 2, 8)
    w = draw(5, 16).float()
    torch.testing.assert_close(mapper(w[2:3]), mapper(w)[2:3])


def test_equal_seeds_give_equal_mappers_and_leave_the_global_randomness_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, third = (LatentMapper(16, 2, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    pairs = list(zip(first.parameters(), second.parameters(), third.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not torch.equal(pairs[0][0], pairs[0][2])


def test_words_that_start_at_tokens_are_the_context_plus_a_learned_share() -> None:
    clip, w = clip_of(16), draw(3, 10).float()
    with_tokens = prompt_mapper([clip], "a photo of a", 10, start="tokens", gamma=0.2, seed=3).heads[0]
    without = prompt_mapper([clip], "a photo of a", 10, start="random", seed=3).heads[0]
    expected = clip.embed_tokens("a photo of a") + 0.2 * without(w)
    torch.testing.assert_close(with_tokens(w), expected)
    names = {name for name, _ in with_tokens.named_parameters()} - {
        name for name, _ in without.named_parameters()
    }
    assert names == {"scaled_gamma"}


def test_the_share_learns_at_the_rate_of_the_other_layers() -> None:
    head = prompt_mapper([clip_of(16)], "a photo", 10, start="tokens", gamma=0.2).heads[0]
    assert isinstance(head, LatentMapper)
    before = float(head.gamma.detach())
    adam = torch.optim.Adam(head.parameters(), lr=0.05)
    head(draw(3, 10).float()).sum().backward()
    adam.step()
    assert abs(float(head.gamma.detach()) - before) == pytest.approx(0.05 * 0.01, rel=1e-3)


def test_every_clip_gets_a_head_of_its_own_width_and_number_of_words() -> None:
    clips = [clip_of(16), clip_of(24)]
    mapper = prompt_mapper(clips, "a photo of a", 10)
    words = mapper(draw(3, 10).float())
    assert isinstance(mapper, PromptMapper) and [tuple(each.shape) for each in words] == [
        (3, 4, 16),
        (3, 4, 24),
    ]
    features = [
        clip.encode_prompts(each, "a photo of a face") for clip, each in zip(clips, words, strict=True)
    ]
    torch.stack(features).sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.any())
        for name, p in mapper.named_parameters()
        if name.endswith("weight")
    )
    assert not any(p.requires_grad for clip in clips for p in clip.parameters())


def test_shared_words_are_the_same_for_every_style_and_start_at_tokens_or_near_zero() -> None:
    clip, w = clip_of(16), draw(5, 6).float()
    (words,) = prompt_mapper([clip], "a photo of a", 6, start="tokens", shared=True)(w)
    torch.testing.assert_close(words, clip.embed_tokens("a photo of a").expand(5, -1, -1))
    (drawn,) = prompt_mapper([clip], "a photo of a", 6, shared=True, words=30)(w)
    assert drawn.shape == (5, 30, 16) and torch.equal(drawn[0], drawn[4])
    assert float(drawn.detach().std()) == pytest.approx(0.02, rel=0.15)


def test_the_number_of_words_is_that_of_the_context_or_the_one_given() -> None:
    assert [
        prompt_mapper([clip_of(8)], "a photo", 6, words=n).heads[0](draw(1, 6).float()).shape[1]
        for n in (0, 7)
    ] == [2, 7]
    with pytest.raises(InputError, match="7 words cannot start at the 2 tokens"):
        prompt_mapper([clip_of(8)], "a photo", 6, words=7, start="tokens")


def test_an_official_state_keeps_its_sizes_and_type() -> None:
    keys = {"mapping.mapping.1": (12, 8), "mapping.mapping.2": (12, 12), "mapping.mapping.3": (30, 12)}
    state = {f"{key}.weight": draw(*shape) for key, shape in keys.items()} | {
        f"{key}.bias": draw(shape[0]) for key, shape in keys.items()
    }
    mapper = mapper_from_official(state, num_words=3)
    words = mapper(draw(2, 8))
    assert words.shape == (2, 3, 10) and words.dtype == torch.float64
    assert torch.equal(mapper.layers[2].get_parameter("weight"), state["mapping.mapping.3.weight"])


def test_a_state_that_is_no_mapper_or_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="entry m"):
        mapper_from_official({"style.1.weight": draw(2, 2)}, 4)
    with pytest.raises(InputError, match="do not divide"):
        mapper_from_official({"mapping.mapping.1.weight": draw(10, 8), "mapping.mapping.1.bias": draw(10)}, 4)


def test_an_empty_context_or_an_unknown_start_is_refused() -> None:
    with pytest.raises(InputError, match="context is empty"):
        prompt_mapper([clip_of(16)], "  ", 10)
    with pytest.raises(InputError, match="unknown start"):
        prompt_mapper([clip_of(16)], "a", 10, start="zeros")  # pyright: ignore[reportArgumentType]  # the wrong value
