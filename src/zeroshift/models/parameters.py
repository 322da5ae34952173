"""What moves in a network: its weights, or a few numbers that fold into them exactly (ADR 0031, 0040).

A kind other than "weights" leaves every weight W of the source as it is and puts W' in its place, computed
from W and from small parameters that start where W' equals W in every bit. Folding writes W' down as an
ordinary weight, so that the result is a generator like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zeroshift.errors import InputError
from zeroshift.models.seeds import rng
from zeroshift.models.stylegan2 import ModulatedConv2d

Kind = Literal["weights", "affine", "lowrank", "domain"]

MOVES = {
    "affine": "the affine layers that make styles",
    "lowrank": "the weights of convolutions, in diffusion models also of linear layers",
    "domain": "the scale of every style",
}
"""What each kind with small parameters moves, in words."""

MODULATION_START = 1e-7
"""Deviation of v and u of a kernel modulation where it starts, as published: W' rounds to W in float32."""


class Offset(nn.Module):
    """W' = W + offset.

    On the bias of a layer that makes styles it is the offset of the styles of StyleDomain (Alanov et al.,
    ICCV 2023), on bias and weight its Affine+.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.offset


class LowRank(nn.Module):
    """W' = W + left right, over (out, in k k); left starts at 0 (Hu et al., LoRA, ICLR 2022).

    Entries of `right` have variance 1 / rank, so that a step of Adam moves an entry of W' about as far as it
    would move one of W.
    """

    def __init__(self, weight: Tensor, rank: int, draw: torch.Generator) -> None:
        super().__init__()
        rows, columns = _matrix(weight).shape
        rank = min(rank, rows, columns)
        self.left = nn.Parameter(weight.new_zeros(rows, rank))
        self.right = nn.Parameter((torch.randn(rank, columns, generator=draw) / rank**0.5).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        # bf16 products would differ from those that are folded.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.left @ self.right).view_as(weight)


class Scaled(nn.Module):
    """W' = (1 + change) W, one number per row: of a layer that makes styles, one per input channel of its
    convolution, so that s' = s (1 + change) where its bias is `ScaledToo`.

    Domain modulation of HyperDomainNet (Alanov et al., NeurIPS 2022), but before demodulation.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.change = nn.Parameter(weight.new_zeros(len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.change).view(-1, *[1] * (weight.dim() - 1))


class ScaledToo(nn.Module):
    """W' = (1 + change) W by the numbers of another weight's `Scaled`."""

    def __init__(self, scaled: Scaled) -> None:
        super().__init__()
        # Not as a part of its own: the change would have two names in states and files.
        self.__dict__["scaled"] = scaled

    def forward(self, weight: Tensor) -> Tensor:
        return self.__dict__["scaled"](weight)


class Modulated(nn.Module):
    """W' = W (1 + v u^T), entry by entry over (out, in k k), in the filters that are kept, W in all others.

    Kernel modulation (Zhao et al., AdAM, NeurIPS 2022): v has a number per filter, u one per entry of a
    filter. The weights of a kept filter stay what they are: no gradient reaches them. At first all are kept.
    Note. `scrambled` is the published code's factor: u v^T, of shape (in k k, out), read in the order of its
    numbers as if it were (out, in k k), so that v is no longer a number per filter.
    """

    kept: Tensor

    def __init__(self, weight: Tensor, draw: torch.Generator, *, scrambled: bool = False) -> None:
        super().__init__()
        rows, columns = _matrix(weight).shape
        self.scrambled = scrambled
        self.v = nn.Parameter((MODULATION_START * torch.randn(rows, generator=draw)).to(weight))
        self.u = nn.Parameter((MODULATION_START * torch.randn(columns, generator=draw)).to(weight))
        self.register_buffer("kept", torch.ones(rows, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        factor = self.u[:, None] * self.v if self.scrambled else self.v[:, None] * self.u
        modulated = weight.detach() * (1 + factor.reshape(weight.shape))
        per_filter = self.kept.view(-1, *[1] * (min(weight.dim(), 4) - 1))
        return torch.where(per_filter, modulated, weight)


def reparametrise(
    generator: Any, kind: Kind, names: Iterable[str], *, rank: int = 4, seed: int = 0
) -> list[str]:
    """Full names of the parameters that may move, in the order of `names`.

    Of the weights that are named, those that the kind moves are computed from now on, in place, from their
    old values and small parameters, which are what moves. `rank` and `seed` are for kind "lowrank". Kind
    "weights" changes nothing. InputError where the kind is not for such a generator, or moves none of the
    named weights.
    """
    wanted = list(names)
    if kind == "weights":
        return wanted
    known = _places(generator, kind)
    chosen = [name for name in wanted if name in known]
    if not chosen:
        raise InputError(
            f"train.parameters.kind {kind} moves {MOVES[kind]}, and the layers that may move have none; "
            "choose other train.layers, or train.parameters.kind weights."
        )
    moving: list[str] = []
    for name in chosen:
        module, attribute = known[name]
        weight = getattr(module, attribute).detach()
        if kind == "lowrank":
            computed = LowRank(weight, rank, rng("lowrank", seed, name))
        else:
            computed = Offset(weight) if kind == "affine" else Scaled(weight)
        parametrize.register_parametrization(module, attribute, computed)
        if isinstance(computed, Scaled):
            parametrize.register_parametrization(module, "bias", ScaledToo(computed))
        place = f"{name.removesuffix(attribute)}parametrizations.{attribute}.0"
        moving += [f"{place}.{small}" for small, _ in computed.named_parameters()]
    return moving


def modulate(network: nn.Module, names: Iterable[str], seed: int, *, scrambled: bool = False) -> None:
    """Computes the named weights, of a generator or a discriminator, as `Modulated` from now on, in place.
    `seed` and name draw where v and u start."""
    for name in names:
        place, _, attribute = name.rpartition(".")
        module = network.get_submodule(place)
        weight = getattr(module, attribute).detach()
        computed = Modulated(weight, rng("modulation", seed, name), scrambled=scrambled)
        parametrize.register_parametrization(module, attribute, computed)


def modulation_of(name: str) -> tuple[str, str]:
    """Full names of v and u of a modulated weight."""
    place, _, attribute = name.rpartition(".")
    return f"{place}.parametrizations.{attribute}.0.v", f"{place}.parametrizations.{attribute}.0.u"


def original_name(name: str) -> str:
    """Full name under which a reparametrised weight itself goes on: "convs.0.conv.weight" ->
    "convs.0.conv.parametrizations.weight.original"."""
    place, _, attribute = name.rpartition(".")
    return f"{place}.parametrizations.{attribute}.original"


def keep_filters(network: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Says for modulated weights, by full name, which of their filters (out,) are kept; the others are plain
    weights from then on."""
    for name, mask in kept.items():
        place, _, attribute = name.rpartition(".")
        network.get_buffer(f"{place}.parametrizations.{attribute}.0.kept").copy_(mask)


def small_parameters(generator: Any) -> dict[str, nn.Parameter]:
    """The small parameters of a generator by weight and part: "convs.0.conv.weight.left"; empty for one that
    was not reparametrised."""
    found = {}
    for name, parameter in generator.named_parameters():
        if match := re.fullmatch(r"(.+)\.parametrizations\.(\w+)\.0\.(\w+)", name):
            found[".".join(match.groups())] = parameter
    return found


def folded(generator: Any, plain: Any) -> Any:
    """A copy of `plain` (the same architecture, its weights as ever) that draws what a reparametrised
    generator draws, bit for bit; the generator itself where it is an ordinary one."""
    if not small_parameters(generator):
        return generator
    state = {name: each for name, each in generator.state_dict().items() if ".parametrizations." not in name}
    for place, module in generator.named_modules():
        if parametrize.is_parametrized(module):
            state |= {f"{place}.{name}": getattr(module, name).detach() for name in module.parametrizations}
    # Not by taking the parametrizations off a copy: torch takes them off the class that all copies share.
    made = plain.clone()
    made.load_state_dict(state)
    return made.train(generator.training)


@torch.no_grad()
def put(generator: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives a reparametrised generator other values of its small parameters. InputError where names or shapes
    are not its own."""
    small = small_parameters(generator)
    shapes = {name: tuple(each.shape) for name, each in small.items()}
    given = {name: tuple(each.shape) for name, each in tensors.items()}
    if wrong := sorted(set(shapes.items()) ^ set(given.items())):
        name = wrong[0][0]
        raise InputError(
            f"the parameter {name} should have the shape {shapes.get(name, 'none')}, it has "
            f"{given.get(name, 'none')}"
        )
    for name, parameter in small.items():
        parameter.copy_(tensors[name])


def applied(source: Any, kind: Kind, tensors: Mapping[str, Tensor]) -> Any:
    """A generator like `source` with small parameters, named as by `small_parameters`, folded into it.
    InputError where they do not belong to such a generator."""
    known = _places(source, kind)
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    if not names:
        raise InputError("there are no parameters")
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"the generator has no weight {unknown[0]!r} that parameters {kind!r} move")
    ranks = [each.shape[-1] for name, each in tensors.items() if name.endswith(".left") and each.dim() == 2]
    made = source.clone()
    reparametrise(made, kind, names, rank=max(ranks, default=1))
    put(made, tensors)
    return folded(made, source)


def _places(generator: Any, kind: Kind) -> dict[str, tuple[nn.Module, str]]:
    """Full name of every weight that a kind with small parameters moves -> its module, and its name there."""
    if generator.kind == "diffusion" and kind != "lowrank":
        raise InputError(
            f"parameters {kind!r} are for generators with styles, this one is a diffusion model; use "
            "'weights' or 'lowrank'."
        )
    if generator.kind == "diffusion":
        layers = (nn.Conv2d, nn.Linear)
        return {
            f"{name}.weight": (module, "weight")
            for name, module in generator.named_modules()
            if isinstance(module, layers)
        }
    convolutions = {
        name: module for name, module in generator.named_modules() if isinstance(module, ModulatedConv2d)
    }
    if kind == "lowrank":
        return {f"{name}.weight": (module, "weight") for name, module in convolutions.items()}
    parts = ("weight", "bias") if kind == "affine" else ("weight",)
    return {
        f"{name}.modulation.{part}": (module.modulation, part)
        for name, module in convolutions.items()
        for part in parts
    }


def _matrix(weight: Tensor) -> Tensor:
    """A weight as (out, in k k); those of modulated convolutions have a 1 in front."""
    return (weight[0] if weight.dim() == 5 else weight).flatten(1)
