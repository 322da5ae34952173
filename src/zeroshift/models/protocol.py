"""The protocol that every generator meets. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

from torch import Tensor

Noise = Literal["buffers", "off"] | Sequence[Tensor]
Kind = Literal["styles", "diffusion"]
"""What a generator starts from: a style for every picture, or a noisy picture."""
LayerKind = Literal["mapping", "const", "conv", "rgb", "block"]


@dataclass(frozen=True)
class Layer:
    """One named group of parameters, in the order of computation.

    `latent` is the index of the W+ row that drives the layer, None where none does (mapping network, constant
    input). `parameters` are full parameter names: weights, modulation, bias and noise strength of the layer.
    """

    name: str
    latent: int | None
    kind: LayerKind
    parameters: tuple[str, ...]


@runtime_checkable
class PictureGenerator(Protocol):
    """What every generator has; a diffusion model shares no more than this with a GAN: no `map`, no style, no
    truncation."""

    kind: ClassVar[Kind]
    image_size: int

    def layers(self) -> tuple[Layer, ...]:
        """Every parameter of the generator, once, in named groups."""
        ...

    def clone(self) -> Self:
        """An independent copy with equal weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights and buffers that make up the generator."""
        ...


@runtime_checkable
class Generator(PictureGenerator, Protocol):
    """A picture generator with styles: noise z -> style w -> picture."""

    latent_dim: int
    style_dim: int
    num_latents: int
    latent_avg: Tensor

    def map(self, z: Tensor) -> Tensor:
        """Styles BS of noise BZ."""
        ...

    def synthesize(self, w: Tensor, noise: Noise = "buffers") -> Tensor:
        """Pictures BCHW, about [-1, 1], of styles BS or BKS."""
        ...

    def noise_shapes(self) -> list[tuple[int, int, int, int]]:
        """Shapes (1, 1, H, W) of the noise maps in the order that `synthesize` takes them."""
        ...


def noise_of(noise: Noise, rows: slice) -> Noise:
    """The noise that belongs to some pictures of a batch; maps of batch 1 serve all pictures."""
    return noise if isinstance(noise, str) else [each if len(each) == 1 else each[rows] for each in noise]
