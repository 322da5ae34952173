"""What is allowed to move: fixed phases, layers by name, and the adaptive choice of the layers that matter
most.

Adaptive selection and the phases: Gal et al., StyleGAN-NADA (SIGGRAPH 2022), section 4.2, and its published
code. In the exact map a latent stands for the layers that it really drives; the published list is off by one
from latent 1 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from zeroshift.errors import InputError
from zeroshift.models.protocol import Generator, Layer, Noise, noise_of

LayerMap = Literal["exact", "published"]

PHASES: dict[str, tuple[int, int] | None] = {
    "all": None,
    "convolutions": (0, 1000),
    "no_fine": (0, 10),
    "shape": (0, 2),
    "shape_expanded": (0, 3),
    "texture": (2, 10),
}
"""Phase -> range of the convolutions behind conv1. Every phase frees the constant input and conv1 too; "all"
frees everything, the mapping network and to-RGB layers included. "convolutions" is what the published code
does without layer selection."""

SELECTION_RATE = 0.01
"""Rate of the one gradient step on W+ whose size scores the layers."""


def layer_list(generator: Generator, layer_map: LayerMap = "exact") -> list[tuple[Layer, ...]]:
    """Entry i: the layers that latent i stands for in adaptive selection; one entry per latent.

    "exact": all layers driven by the latent. "published": the list conv1, to_rgb1, convs.0, convs.1, ... of
    the authors' code, in which latent i > 1 names a layer that latent i - 1 drives.
    """
    count = _num_latents(generator)
    layers = generator.layers()
    if layer_map == "exact":
        return [tuple(layer for layer in layers if layer.latent == index) for index in range(count)]
    if layer_map == "published":
        rgb = [layer for layer in layers if layer.kind == "rgb"]
        convs = [layer for layer in layers if layer.kind == "conv"]
        return [(layer,) for layer in [convs[0], rgb[0], *convs[1:]]][:count]
    raise InputError(f'layer_map must be "exact" or "published", got "{layer_map}".')


def default_top_k(generator: Generator) -> int:
    """Published number of layers to select: two thirds of the latents, rounded down (12 at 1024 px, 6 at 64
    px)."""
    return 2 * _num_latents(generator) // 3


def select(generator: Generator, layers: str | Sequence[str], *, free_rgb: bool = False) -> list[str]:
    """Full names of the parameters of a phase (see PHASES) or of layers by name, in the order of computation.

    `layers` is a phase, layer names separated by commas, or a sequence of names. `free_rgb` adds every to-RGB
    layer.
    """
    named = [part.strip() for part in layers.split(",")] if isinstance(layers, str) else list(layers)
    every = generator.layers()
    if len(named) == 1 and named[0] in PHASES:
        chosen = _phase(every, named[0])
    else:
        known = {layer.name: layer for layer in every}
        if unknown := [name for name in named if name not in known]:
            raise InputError(
                f'unknown layer "{unknown[0]}". Use "adaptive", a phase ({", ".join(PHASES)}) or layers '
                f"among {', '.join(known)}."
            )
        chosen = [known[name] for name in named]
    return _parameters(every, chosen, free_rgb)


def select_latents(
    generator: Generator, latents: Iterable[int], *, layer_map: LayerMap = "exact", free_rgb: bool = False
) -> list[str]:
    """Full names of the parameters of all layers that the latents stand for, in the order of computation."""
    entries = layer_list(generator, layer_map)
    indices = list(latents)
    if wrong := [index for index in indices if not 0 <= index < len(entries)]:
        raise InputError(
            f"latent {wrong[0]} does not exist; this generator has latents 0 to {len(entries) - 1}."
        )
    chosen = [layer for index in indices for layer in entries[index]]
    return _parameters(generator.layers(), chosen, free_rgb)


def free(generator: Generator, parameters: Iterable[str]) -> None:
    """Lets exactly the named parameters receive gradients; clears the gradients of all others."""
    wanted = set(parameters)
    named = dict(_module(generator).named_parameters())
    if unknown := sorted(wanted - set(named)):
        raise InputError(f'unknown parameter "{unknown[0]}". See layers() for the names.')
    for name, parameter in named.items():
        parameter.requires_grad_(name in wanted)
        if name not in wanted:
            parameter.grad = None


def moving_layers(generator: Generator, parameters: Iterable[str]) -> tuple[str, ...]:
    """Names of the layers of which any of the named parameters is one, in the order of computation."""
    moving = set(parameters)
    return tuple(layer.name for layer in generator.layers() if moving.intersection(layer.parameters))


def score_layers(
    generator: Generator,
    w: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    noise: Noise = "buffers",
    rate: float = SELECTION_RATE,
    part: int | None = None,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scores (K,), how far one gradient step of the loss on W+ moves each latent, and the loss itself.

    score_k = mean over batch and style of |w_k' - w_k|, w' = w - rate * d loss / d w. `loss` takes pictures
    BCHW and gives their mean loss; `w` is BS or BKS. `part` pictures are differentiated at a time, which
    bounds the memory and changes nothing else. The weights of the generator receive no gradient. Note.
    `rounded` subtracts w from w' in their own precision, as the published code does, instead of taking rate *
    |gradient|.
    """
    count = _num_latents(generator)
    before = (w.unsqueeze(1).expand(-1, count, -1) if w.dim() == 2 else w).detach()
    gradients = []
    values = []
    for first in range(0, len(before), part or len(before)):
        rows = slice(first, first + (part or len(before)))
        leaf = before[rows].clone().requires_grad_()
        with torch.enable_grad():
            value = loss(generator.synthesize(leaf, noise_of(noise, rows))) * (len(leaf) / len(before))
            gradients += torch.autograd.grad(value, leaf)
        values.append(value.detach())
    step = rate * torch.cat(gradients)
    change = (before - step) - before if rounded else step
    return change.abs().mean(dim=(0, 2)), torch.stack(values).sum()


def top_latents(scores: Tensor, count: int) -> tuple[int, ...]:
    """The `count` latents with the largest scores, largest first."""
    if not 1 <= count <= len(scores):
        raise InputError(f"the number of layers to select must lie in 1 to {len(scores)}, got {count}.")
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            "the layer scores are not finite, so no layer can be chosen. Lower the learning rate."
        )
    return tuple(int(index) for index in torch.sort(scores, descending=True, stable=True).indices[:count])


def _phase(layers: Sequence[Layer], phase: str) -> list[Layer]:
    span = PHASES[phase]
    if span is None:
        return list(layers)
    convs = [layer for layer in layers if layer.kind == "conv"]
    start = [layer for layer in layers if layer.kind == "const"]
    return [*start, *convs[:1], *convs[1:][slice(*span)]]


def _parameters(layers: Sequence[Layer], chosen: Iterable[Layer], free_rgb: bool) -> list[str]:
    names = {layer.name for layer in chosen}
    kept = [layer for layer in layers if layer.name in names or (free_rgb and layer.kind == "rgb")]
    return [name for layer in kept for name in layer.parameters]


def _num_latents(generator: Generator) -> int:
    count = getattr(generator, "num_latents", 0)
    if not count:
        raise InputError(
            "this generator has no latent per layer, so layers cannot be selected adaptively. Name them or "
            "a phase."
        )
    return count


def _module(generator: Generator) -> nn.Module:
    if not isinstance(generator, nn.Module):
        raise InputError(
            f"{type(generator).__name__} is not a torch module, so its parameters cannot be freed by name."
        )
    return generator
