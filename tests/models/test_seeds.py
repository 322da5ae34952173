"""Seeds -> noise: what a draw depends on, and truncation, mixing and the average style by their
definitions."""

from __future__ import annotations

import pytest
import torch

from zeroshift.errors import InputError
from zeroshift.models.seeds import average_style, draw_noise, draw_z, mix, rng, truncate, z_from_seeds
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

SHAPES = [(1, 1, 4, 4), (1, 1, 8, 8)]


def test_a_sample_depends_on_its_seed_alone() -> None:
    together = z_from_seeds([7, 3, 11], 16)
    for row, seed in zip(together, [7, 3, 11], strict=True):
        assert torch.equal(row, z_from_seeds([seed], 16)[0])
    assert not torch.equal(together[0], together[1])


def test_draws_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    z_from_seeds(range(3), 8)
    draw_z(8, 2, 0, "stage1", 4)
    draw_noise(SHAPES, 2, 0, "stage1", 4)
    StyleGAN2Generator(StyleGAN2Config(size=16, latent_dim=4, style_dim=4, mapping_depth=1, channel_max=2))
    assert torch.equal(before, torch.get_rng_state())


def test_training_draws_differ_between_seeds_stages_steps_and_samples() -> None:
    draws = [
        draw_z(8, 2, *key) for key in [(0, "stage1", 1), (1, "stage1", 1), (0, "stage2", 1), (0, "stage1", 2)]
    ]
    rows = [tuple(row.tolist()) for batch in draws for row in batch]
    assert len(set(rows)) == 8


def test_one_sample_gets_the_same_draws_in_every_batch() -> None:
    assert torch.equal(draw_z(8, 5, 0, "s", 1)[:2], draw_z(8, 2, 0, "s", 1))
    whole = draw_noise(SHAPES, 4, 0, "s", 1)
    part = draw_noise(SHAPES, 1, 0, "s", 1, first_sample=2)
    assert [tuple(maps.shape) for maps in whole] == [(4, 1, 4, 4), (4, 1, 8, 8)]
    assert all(torch.equal(maps[2:3], alone) for maps, alone in zip(whole, part, strict=True))


def test_keys_are_told_apart_by_place_and_type() -> None:
    keys: list[tuple[int | str, ...]] = [("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1, "a")]
    firsts = {torch.randn(1, generator=rng(*key)).item() for key in keys}
    assert len(firsts) == len(keys)


def test_noise_is_standard_normal() -> None:
    z = z_from_seeds(range(400), 64)
    assert abs(z.mean().item()) < 0.02 and abs(z.std().item() - 1) < 0.02


def test_no_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="seeds is empty"):
        z_from_seeds([], 8)


def test_truncation_moves_between_the_average_and_the_style() -> None:
    w = z_from_seeds([1, 2], 6)
    average = z_from_seeds([3], 6)[0]
    assert torch.equal(truncate(w, average, 1.0), w)
    assert torch.equal(truncate(w, average, 0.0), average.expand(2, -1))
    torch.testing.assert_close(truncate(w, average, 0.25), 0.75 * average + 0.25 * w)


def test_mixing_takes_rows_below_the_index_from_the_first() -> None:
    first, second = (
        z_from_seeds([1, 2], 6),
        z_from_seeds([3, 4], 6).unsqueeze(1).repeat(1, 5, 1),
    )
    mixed = mix(first, second, 2, 5)
    assert mixed.shape == (2, 5, 6)
    for k in range(5):
        assert torch.equal(mixed[:, k], first if k < 2 else second[:, k])


@pytest.mark.parametrize("index", [-1, 6])
def test_an_impossible_mixing_index_is_refused(index: int) -> None:
    w = z_from_seeds([1], 6)
    with pytest.raises(InputError, match=str(index)):
        mix(w, w, index, 5)


def test_the_average_style_is_the_mean_over_many_draws() -> None:
    generator = StyleGAN2Generator(
        StyleGAN2Config(size=16, latent_dim=8, style_dim=8, mapping_depth=2, channel_max=2)
    )
    with torch.no_grad():
        independent = generator.map(torch.randn(20000, 8, generator=rng("independent"))).mean(dim=0)
    torch.testing.assert_close(average_style(generator), independent, rtol=0, atol=0.06)
