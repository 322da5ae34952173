"""Heads that judge patches: where they look, how far they follow the trunk, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zeroshift.errors import InputError
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.patch_heads import PatchHeads, places
from zeroshift.models.stylegan2 import StyleGAN2Config


def config(size: int) -> StyleGAN2Config:
    return StyleGAN2Config(size=size, channel_base=8 * size, channel_max=8)


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (16, [16]),
        (32, [32, 16, 16]),
        (64, [32, 32, 16, 16]),
        (256, [32, 32, 16, 16]),
        (1024, [32, 32, 16, 16]),
    ],
)
def test_heads_look_at_the_first_maps_of_32_and_16_px(size: int, sides: list[int]) -> None:
    discriminator = StyleGAN2Discriminator(config(size))
    with torch.no_grad():
        _, maps = discriminator(torch.zeros(1, 3, size, size), features=True)
    every = [(number, each.shape[1]) for number, each in enumerate(maps) if each.shape[-1] in (32, 16)]
    assert places(discriminator.config) == every[:4]
    assert [maps[number].shape[-1] for number, _ in places(discriminator.config)] == sides


def test_logits_of_patches_are_those_of_a_trunk_that_is_followed_to_its_end() -> None:
    discriminator, heads = StyleGAN2Discriminator(config(64), seed=1), PatchHeads(config(64), seed=2)
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, maps = discriminator(pictures, features=True)
        for head, number in enumerate(heads.numbers):
            weight, bias = (heads.get_parameter(f"heads.{head}.{name}") for name in ("0.weight", "1.bias"))
            scale = (9 * maps[number].shape[1]) ** -0.5
            plain = F.conv2d(maps[number], weight * scale, padding=1) + bias.view(1, 1, 1, 1)
            expected = 2**0.5 * F.leaky_relu(plain, 0.2)
            found = heads(discriminator, pictures, head)
            assert found.shape == (2, 1, *maps[number].shape[2:])
            assert torch.allclose(found, expected, atol=1e-6)


def test_a_patch_loss_reaches_no_layer_behind_its_map() -> None:
    discriminator, heads = StyleGAN2Discriminator(config(64)), PatchHeads(config(64))
    heads(discriminator, torch.randn(2, 3, 64, 64), 0).mean().backward()
    moved = {name for name, each in discriminator.named_parameters() if each.grad is not None}
    # The map of head 0 is the branch of the first block, before the skip is added.
    wanted = {
        "convs.0.0.weight", "convs.0.1.bias", "convs.1.conv1.0.weight", "convs.1.conv1.1.bias",
        "convs.1.conv2.1.weight", "convs.1.conv2.2.bias",
    }  # fmt: skip
    assert moved == wanted
    assert {name for name, each in heads.named_parameters() if each.grad is not None} == {
        "heads.0.0.weight",
        "heads.0.1.bias",
    }


def test_weights_of_heads_belong_to_their_seed() -> None:
    first, again, other = (PatchHeads(config(32), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.0.0.weight"], other["heads.0.0.weight"])


def test_a_discriminator_without_such_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeroshift.models.patch_heads.SIDES", (64,))
    with pytest.raises(InputError, match="a discriminator of 16 px has no map of 64 px"):
        PatchHeads(config(16))
