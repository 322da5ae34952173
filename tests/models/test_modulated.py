"""Kernel modulation: a number per filter and one per entry of a filter, which fold into ordinary weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.parameters import folded, keep_filters, modulate, original_name, small_parameters

GENERATOR = ("convs.0.conv.weight", "convs.1.conv.modulation.weight", "convs.1.conv.weight")
DISCRIMINATOR = ("convs.1.conv1.0.weight", "convs.1.skip.1.weight", "final_linear.1.weight")


def codes() -> Tensor:
    return torch.randn(2, 12, generator=torch.Generator().manual_seed(5))


def discriminator() -> StyleGAN2Discriminator:
    return StyleGAN2Discriminator(tiny.generator().config, seed=3)


def away(network: nn.Module) -> dict[str, Tensor]:
    """Values of v and u away from their start, by weight and part, put in place."""
    draw = torch.Generator().manual_seed(7)
    small = small_parameters(network)
    with torch.no_grad():
        for each in small.values():
            each.copy_(0.5 * torch.randn(each.shape, generator=draw))
    return {name: each.detach().clone() for name, each in small.items()}


def plain_weight(network: Any, name: str) -> Tensor:
    return dict(network.named_parameters())[name].detach()


@pytest.mark.parametrize("start", ["published", "zero"])
def test_before_the_first_step_networks_are_what_they_were_in_every_bit(start: str) -> None:
    source, judge = tiny.generator(1), discriminator()
    pictures = source(codes())
    logits = judge(pictures)
    target = source.clone()
    modulate(target, GENERATOR, 0)
    modulate(judge, DISCRIMINATOR, 0)
    if start == "zero":
        with torch.no_grad():
            for each in [*small_parameters(target).values(), *small_parameters(judge).values()]:
                each.zero_()
    assert torch.equal(target(codes()), pictures)
    assert torch.equal(judge(pictures), logits)


@pytest.mark.parametrize("scrambled", [False, True])
def test_every_number_of_a_weight_is_scaled_by_that_of_its_filter_times_that_of_its_place(
    scrambled: bool,
) -> None:
    source, judge = tiny.generator(1).double(), discriminator().double()
    for network, names in ((source.clone(), GENERATOR), (judge, DISCRIMINATOR)):
        before = {name: plain_weight(network, name).clone() for name in names}
        modulate(network, names, 0, scrambled=scrambled)
        small = away(network)
        for name, old in before.items():
            v, u = small[f"{name}.v"], small[f"{name}.u"]
            rows = old.reshape(len(v), len(u))
            found = network.get_parameter(original_name(name))
            assert torch.equal(found, old), "the weight itself stays"
            place, _, attribute = name.rpartition(".")
            new = getattr(network.get_submodule(place), attribute).reshape(rows.shape)
            for row in range(len(v)):
                for column in range(len(u)):
                    number = row * len(u) + column
                    i, j = divmod(number, len(v)) if scrambled else (column, row)
                    wanted = rows[row, column] * (1 + u[i] * v[j])
                    assert abs(new[row, column] - wanted) < 1e-12


def test_folded_the_generator_is_an_ordinary_one_with_the_same_pictures() -> None:
    source = tiny.generator(1)
    target = source.clone()
    modulate(target, GENERATOR, 0)
    away(target)
    keep_filters(target, {GENERATOR[0]: torch.arange(16) % 2 == 0})
    made = folded(target, source)
    assert (made(codes()) - target(codes())).abs().max() <= 1e-6
    assert (made(codes()) - source(codes())).abs().max() > 0.01
    assert made.state_dict().keys() == source.state_dict().keys()
    changed = {
        name for name, each in made.state_dict().items() if not torch.equal(each, source.state()[name])
    }
    assert changed == set(GENERATOR)


@pytest.mark.parametrize("kept", ["none", "half", "all"])
def test_kept_filters_move_by_their_modulation_alone_and_the_others_by_their_weights_alone(kept: str) -> None:
    target = tiny.generator(1)
    name = GENERATOR[0]
    modulate(target, [name], 0)
    away(target)
    mask = {"none": torch.zeros(16), "half": torch.arange(16) % 2, "all": torch.ones(16)}[kept].bool()
    keep_filters(target, {name: mask})
    target(codes()).square().sum().backward()
    original = target.get_parameter(original_name(name))
    modulation = target.get_parameter("convs.0.conv.parametrizations.weight.0.v")
    assert original.grad is not None and modulation.grad is not None
    by_filter = original.grad[0].flatten(1).abs().sum(dim=1) > 0
    assert torch.equal(by_filter, ~mask)
    assert torch.equal(modulation.grad != 0, mask)
    if kept == "none":
        plain = tiny.generator(1)
        assert torch.equal(target(codes()), plain(codes()))


def test_a_copy_and_a_state_carry_which_filters_are_kept() -> None:
    target = tiny.generator(1)
    modulate(target, GENERATOR, 0)
    other = target.clone()
    away(target)
    keep_filters(target, {GENERATOR[2]: torch.arange(16) < 5})
    other.load_state_dict(target.state_dict())
    assert torch.equal(other(codes()), target(codes()))
    assert torch.equal(target.clone()(codes()), target(codes()))


def test_the_start_is_drawn_by_seed_and_name() -> None:
    def start(seed: int) -> list[Tensor]:
        target = tiny.generator(1)
        modulate(target, GENERATOR, seed)
        return list(small_parameters(target).values())

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert 1e-8 < float(torch.cat(first).detach().abs().mean()) < 1e-6
