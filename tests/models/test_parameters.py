"""Small parameters: they start at the source, move nothing else, and fold into an ordinary generator bit for
bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.errors import InputError
from zeroshift.models import layers
from zeroshift.models.parameters import (
    MOVES,
    Kind,
    applied,
    folded,
    put,
    reparametrise,
    small_parameters,
)
from zeroshift.models.stylegan2 import StyleGAN2Generator

KINDS: tuple[Kind, ...] = ("affine", "lowrank", "domain")


def codes(count: int = 3) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(5))


def moved(source: Any, kind: Kind, chosen: str = "all", **options: Any) -> tuple[Any, list[str]]:
    """A copy of the source with small parameters away from where they start, and their names."""
    target = source.clone()
    names = reparametrise(target, kind, layers.select(target, chosen), **options)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for each in small_parameters(target).values():
            each += 0.3 * torch.randn(each.shape, generator=draw).to(each)
    return target, names


def changed(source: Any, other: Any) -> set[str]:
    """Names of the tensors in which two ordinary generators differ."""
    before, after = source.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_kinds_are_those_that_have_a_description() -> None:
    assert set(MOVES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", ["all", "convs.1,to_rgbs.0"])
def test_before_the_first_step_pictures_are_the_sources_in_every_bit(kind: Kind, chosen: str) -> None:
    source = tiny.generator(1)
    target = source.clone()
    names = reparametrise(target, kind, layers.select(target, chosen), rank=2)
    assert set(names) <= set(dict(target.named_parameters()))
    assert torch.equal(target(codes()), source(codes()))
    assert changed(source, folded(target, source)) == set()


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("affine", ("modulation.weight", "modulation.bias")),
        ("lowrank", ("weight",)),
        ("domain", ("modulation.weight", "modulation.bias")),
    ],
)
def test_exactly_the_tensors_of_the_kind_move_in_exactly_the_chosen_layers(
    kind: Kind, ends: tuple[str, ...]
) -> None:
    source = tiny.generator(1)
    target, names = moved(source, kind, "convs.1,to_rgbs.0")
    expected = {f"{layer}.conv.{end}" for layer in ("convs.1", "to_rgbs.0") for end in ends}
    assert changed(source, folded(target, source)) == expected
    layers.free(target, names)
    target(codes()).square().sum().backward()
    gradients = {name for name, each in target.named_parameters() if each.grad is not None}
    assert gradients == set(names)
    assert layers.moving_layers(target, names) == ("convs.1", "to_rgbs.0")


@pytest.mark.parametrize("kind", KINDS)
def test_folded_the_generator_is_an_ordinary_one_with_the_same_pictures(kind: Kind) -> None:
    source = tiny.generator(1)
    target, _ = moved(source, kind)
    made = folded(target, source)
    assert torch.equal(made(codes()), target(codes()))
    assert (made(codes()) - source(codes())).abs().max() > 0.1
    assert folded(made, source) is made
    twin = target.clone()
    assert torch.equal(twin(codes()), target(codes()))
    with torch.no_grad():
        next(iter(small_parameters(twin).values())).add_(1.0)
    assert not torch.equal(twin(codes()), target(codes())), "a copy has parameters of its own"
    assert torch.equal(made(codes()), target(codes()))


def test_domain_modulation_scales_every_style_before_demodulation() -> None:
    source = tiny.generator(1).double()
    target, names = moved(source, "domain")
    change = {
        name.removesuffix(".modulation.weight.change"): each
        for name, each in small_parameters(target).items()
    }
    assert (
        len(names) == len(change) == len([each for each in source.layers() if each.kind in ("conv", "rgb")])
    )

    def scale(d: Tensor) -> Any:
        return lambda module, given, style: style * (1 + d)

    slow = source.clone()
    for name, d in change.items():
        convolution: Any = slow.get_submodule(name)
        convolution.modulation.register_forward_hook(scale(d.detach()))
    z = codes().double()
    torch.testing.assert_close(target(z), slow(z), rtol=1e-12, atol=1e-12)
    made = folded(target, source)
    for name, d in change.items():
        old, new = source.state_dict(), made.state_dict()
        weight, bias = f"{name}.modulation.weight", f"{name}.modulation.bias"
        assert torch.equal(new[weight], old[weight] * (1 + d)[:, None])
        assert torch.equal(new[bias], old[bias] * (1 + d))
        assert len(d) == old[f"{name}.weight"].shape[2]


def test_affine_offsets_of_the_bias_are_offsets_of_the_styles() -> None:
    source = tiny.generator(1)
    target = source.clone()
    reparametrise(target, "affine", layers.select(target, "convs.1"))
    offset = torch.linspace(-1, 1, 16)
    put(
        target,
        {
            name: offset.expand_as(each) * name.endswith("bias.offset")
            for name, each in small_parameters(target).items()
        },
    )
    w = source.map(codes())
    before, after = (each.get_submodule("convs.1.conv.modulation")(w) for each in (source, target))
    torch.testing.assert_close(after, before + offset)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_change_of_low_rank_has_that_rank_and_at_most_that_of_the_weight(rank: int) -> None:
    source = tiny.generator(1).double()
    made = folded(moved(source, "lowrank", rank=rank)[0], source)
    for name in ("convs.1.conv.weight", "to_rgbs.0.conv.weight"):
        difference = (made.state_dict()[name] - source.state_dict()[name])[0].flatten(1)
        assert torch.linalg.matrix_rank(difference, rtol=1e-9) == rank
    wide = {name: each.shape for name, each in small_parameters(moved(source, "lowrank", rank=99)[0]).items()}
    assert wide["to_rgbs.0.conv.weight.left"] == (3, 3) and wide["convs.1.conv.weight.left"] == (16, 16)


def test_factors_are_drawn_by_seed_and_name_and_make_steps_of_the_usual_size() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        made = tiny.generator(1)
        reparametrise(made, "lowrank", layers.select(made, "all"), rank=4, seed=seed)
        return {name: each.detach() for name, each in small_parameters(made).items()}

    first, again, other = drawn(0), drawn(0), drawn(1)
    rights = [name for name in first if name.endswith(".right")]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in rights)
    assert not torch.equal(first["convs.0.conv.weight.right"], first["convs.1.conv.weight.right"])
    for name in rights:
        step = torch.ones(1, len(first[name])) @ first[name]
        if len(first[name]) == 4:
            assert 0.7 < step.square().mean().sqrt() < 1.3, "an Adam step of 1 in `left` moves W by about 1"


@pytest.mark.parametrize("kind", KINDS)
def test_small_parameters_taken_out_and_applied_to_the_source_give_the_same_generator(kind: Kind) -> None:
    source = tiny.generator(1)
    target, _ = moved(source, kind, "convs.0,convs.1", rank=3)
    tensors = {name: each.detach() for name, each in small_parameters(target).items()}
    made = applied(source, kind, tensors)
    assert isinstance(made, StyleGAN2Generator)
    assert changed(made, folded(target, source)) == set() and changed(source, made)


def test_parameters_that_do_not_belong_to_the_generator_are_refused() -> None:
    source = tiny.generator(1)
    name = "convs.1.conv.modulation.weight.change"
    for tensors, said in (
        ({"convs.99.conv.modulation.weight.change": torch.zeros(16)}, "has no weight 'convs.99"),
        ({name: torch.zeros(17)}, r"should have the shape \(16,\), it has \(17,\)"),
        ({name: torch.zeros(16), name.replace("change", "other"): torch.zeros(1)}, "shape none, it has"),
        ({}, "no parameters"),
    ):
        with pytest.raises(InputError, match=said):
            applied(source, "domain", tensors)
    with pytest.raises(
        InputError, match="no weight 'convs.1.conv.modulation.weight' that parameters 'lowrank'"
    ):
        applied(source, "lowrank", {name: torch.zeros(16)})


def test_layers_without_such_parameters_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(InputError, match=f"kind {kind} moves {MOVES[kind]}"):
            reparametrise(tiny.generator(), kind, layers.select(tiny.generator(), "input,style.1"))


def test_a_diffusion_model_takes_changes_of_low_rank_and_nothing_of_styles() -> None:
    source: Any = tiny.diffusion(1)
    x = torch.randn(2, *source.picture_shape, generator=torch.Generator().manual_seed(3))
    target, names = moved(source, "lowrank", "all", rank=2)
    made = folded(target, source)
    assert torch.equal(made.predict_noise(x, 100), target.predict_noise(x, 100))
    assert not torch.equal(made.predict_noise(x, 100), source.predict_noise(x, 100))
    weights = {name for name, each in source.named_parameters() if each.dim() > 1}
    assert changed(source, made) == weights and len(names) == 2 * len(weights)
    assert set(layers.moving_layers(target, names)) < {each.name for each in source.layers()}
    for kind in ("affine", "domain"):
        with pytest.raises(InputError, match=f"parameters '{kind}' are for generators with styles"):
            reparametrise(source, kind, layers.select(source, "all"))
