"""Latent compression: slow formula, length, span, shares for other numbers of latents, and generators that
have one: files, blends, exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from zeroshift.config.own import FACES
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file, save_generator
from zeroshift.files.describe import inspect
from zeroshift.files.export import Target, convert
from zeroshift.files.registry import load_generator
from zeroshift.models.compression import LatentCompression, stretched
from zeroshift.models.stylegan2 import StyleGAN2Generator


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_compressed_style_is_the_projection_of_the_same_length_mixed_with_the_style() -> None:
    codes, alpha, w = draws(3, 4, 8), torch.tensor([0.0, 0.2, 0.7, 1.0]), draws(5, 4, 8, seed=1)
    found = LatentCompression.of(codes, alpha)(w)
    for picture in range(5):
        for latent in range(4):
            columns, style = codes[:, latent].T, w[picture, latent]
            solved = torch.linalg.solve(columns.T @ columns, columns.T @ style)
            projected = columns @ solved
            projected = projected * style.norm() / projected.norm()
            expected = alpha[latent] * projected + (1 - alpha[latent]) * style
            assert torch.allclose(found[picture, latent], expected, atol=1e-5)


def test_one_style_stands_for_all_latents() -> None:
    compression = LatentCompression.of(draws(3, 4, 8), torch.full((4,), 0.5))
    w = draws(2, 8, seed=1)
    assert torch.equal(compression(w), compression(w[:, None].expand(-1, 4, -1)))


def test_styles_of_the_codes_span_and_latents_of_share_0_stay() -> None:
    codes = draws(3, 4, 8)
    inside = torch.einsum("bn,nls->bls", draws(5, 3, seed=1), codes)
    full = LatentCompression.of(codes, torch.ones(4))
    assert torch.allclose(full(inside), inside, atol=1e-5)
    outside = draws(5, 4, 8, seed=2)
    assert torch.equal(LatentCompression.of(codes, torch.zeros(4))(outside), outside)


def test_codes_that_repeat_or_depend_on_each_other_span_what_they_span() -> None:
    codes, w = draws(2, 4, 8), draws(5, 4, 8, seed=1)
    more = torch.cat([codes, codes[:1], codes[:1] - 2 * codes[1:]])
    plain, again = (LatentCompression.of(each, torch.ones(4)) for each in (codes, more))
    assert torch.allclose(plain(w), again(w), atol=1e-4)
    assert again.basis.shape == (4, 8, 4)


def test_a_style_across_all_codes_has_no_gradient_that_is_no_number() -> None:
    codes = torch.zeros(1, 2, 4)
    codes[..., 0] = 1
    w = torch.tensor([[0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    found = LatentCompression.of(codes, torch.full((2,), 0.5))(w)
    (gradient,) = torch.autograd.grad(found.sum(), w)
    assert bool(torch.isfinite(found).all() and torch.isfinite(gradient).all())


@pytest.mark.parametrize("count", [10, 14, 18])
def test_published_shares_are_stretched_over_other_numbers_of_latents(count: int) -> None:
    found = stretched(FACES, count)
    assert found[0] == FACES[0] and found[-1] == FACES[-1] and len(found) == count
    assert bool((found.diff() >= 0).all())
    if count == len(FACES):
        assert torch.allclose(found, torch.tensor(FACES, dtype=torch.float64), atol=1e-15)
    else:
        place = 3 * (len(FACES) - 1) / (count - 1)
        below = int(place)
        between = FACES[below] + (place - below) * (FACES[below + 1] - FACES[below])
        assert float(found[3]) == pytest.approx(between)


def codes_of(made: StyleGAN2Generator, count: int = 3) -> torch.Tensor:
    z = draws(count * made.num_latents, made.latent_dim, seed=5)
    return made.map(z).detach().view(count, made.num_latents, made.style_dim)


def compressed(alpha: float = 0.6) -> StyleGAN2Generator:
    made = tiny.generator(seed=1)
    made.compress(codes_of(made), torch.full((made.num_latents,), alpha))
    return made


def test_a_generator_with_a_compression_draws_the_compressed_styles() -> None:
    plain, made = tiny.generator(seed=1), compressed()
    w = made.map(draws(2, made.latent_dim))
    given = LatentCompression.of(codes_of(plain), torch.full((made.num_latents,), 0.6))(w)
    assert torch.equal(made.synthesize(w), plain.synthesize(given))
    assert torch.equal(made.compressed(w), given)
    assert torch.equal(plain.compressed(w), w[:, None].expand_as(given))
    assert not torch.allclose(made.sample([0]), plain.sample([0]), atol=1e-3)
    made.compress(codes_of(plain), torch.zeros(made.num_latents))
    assert torch.equal(made.sample([0]), plain.sample([0]))


def test_a_file_keeps_the_compression_and_files_without_one_are_as_ever(tmp_path: Path) -> None:
    made, file = compressed(), tmp_path / "generator.safetensors"
    save_generator(file, made)
    again, _ = load_generator(file)
    assert torch.equal(again.sample([0, 1]), made.sample([0, 1]))
    assert "compression_codes" in info_of(file) and "compression_codes" not in tiny.generator().config_text()
    assert torch.equal(again.clone().sample([3]), made.sample([3]))
    assert inspect(file).usable


def info_of(file: Path) -> str:
    return load_generator_file(file)[1]["config"]


def test_between_source_and_target_lies_less_of_the_compression() -> None:
    plain, made = tiny.generator(seed=1), compressed()
    by_hand = tiny.generator(seed=1)
    by_hand.compress(codes_of(plain), torch.full((made.num_latents,), 0.3))
    found = [made.sample_adapted(plain, [4, 5], strength) for strength in (0.0, 0.5, 1.0)]
    for picture, expected in zip(found, (plain, by_hand, made), strict=True):
        assert torch.allclose(picture, expected.sample([4, 5]), atol=1e-5)
    assert plain.compression is None


@pytest.mark.parametrize("to", ["rosinality", "nvidia-state"])
def test_layouts_of_other_programs_refuse_it(tmp_path: Path, to: Target) -> None:
    save_generator(tmp_path / "generator.safetensors", compressed())
    with pytest.raises(InputError, match="draws through a latent compression"):
        convert(tmp_path / "generator.safetensors", tmp_path / "out.pt", to)
    assert not (tmp_path / "out.pt").exists()


def test_an_exported_network_has_it(tmp_path: Path) -> None:
    save_generator(tmp_path / "generator.safetensors", compressed())
    # Compared with ours before it is written.
    done = convert(tmp_path / "generator.safetensors", tmp_path / "network.pt", "torchscript")
    assert done.difference is not None and done.difference < 1e-4
