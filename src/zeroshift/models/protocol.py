"""The protocol that every generator meets. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from zeroshift.shapes import Latent, Picture, Style

Kind = Literal["styles", "diffusion"]
"""styles: noise z -> style w -> picture in one step. diffusion: a noisy picture of the picture's own shape ->
picture in many steps, without styles, truncation or a latent per layer."""
Noise = Literal["buffers", "off"] | Sequence[Tensor]
LayerKind = Literal["mapping", "const", "conv", "rgb", "block"]
Progress = Callable[[int, int], None]
"""Told how much of the work is done, and how much there is."""


@dataclass(frozen=True)
class Layer:
    """One named group of parameters, in the order of computation.

    `latent` is the index of the W+ row that drives the layer, None where none does (mapping network, constant
    input, diffusion models). `parameters` are full parameter names: weights, modulation, bias and noise
    strength of the layer.
    """

    name: str
    latent: int | None
    kind: LayerKind
    parameters: tuple[str, ...]


@runtime_checkable
class PictureGenerator(Protocol):
    """What every generator has, whatever its kind. What a kind lacks, its methods refuse with an
    InputError."""

    image_size: int
    """Height and width of its pictures in pixels."""
    file_format: ClassVar[str]
    """Name of the format in the metadata of the files that we write of it."""

    @property
    def kind(self) -> Kind:
        """Which of the two kinds it is; a constant of the class."""
        ...

    def sample(
        self,
        seeds: Sequence[int] | range,
        *,
        truncation: float = 1.0,
        steps: int | None = None,
        eta: float | None = None,
        batch: int = 16,
        progress: Progress | None = None,
    ) -> Picture:
        """Pictures in [-1, 1] on the CPU, one per seed, which depends neither on the other seeds nor on
        `batch`.

        `truncation` (0 to 1) is for generators with styles; `steps` (at least 2) and `eta` (0 deterministic,
        1 as random as DDPM) are for diffusion models. InputError where they were asked of another kind.
        """
        ...

    def sample_adapted(
        self,
        source: Self,
        seeds: Sequence[int] | range,
        strength: float = 1.0,
        *,
        t0: int,
        truncation: float = 1.0,
        steps: int | None = None,
        eta: float | None = None,
        progress: Progress | None = None,
    ) -> Picture:
        """As `sample`, of this generator that was adapted from `source`: `strength` 0 is the source, 1 this
        one, more goes beyond it (up to 2). `t0` is the time up to which a diffusion model was adapted.
        """
        ...

    def layers(self) -> tuple[Layer, ...]:
        """Every parameter of the generator, once, in named groups."""
        ...

    def clone(self) -> Self:
        """An independent copy with equal weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights and buffers that make up the generator."""
        ...

    def file_tensors(self) -> dict[str, Tensor]:
        """The weights by their names in a file of `file_format`; not copied."""
        ...

    def config_text(self) -> str:
        """The architecture, as a file of `file_format` states it (JSON)."""
        ...


@runtime_checkable
class Generator(PictureGenerator, Protocol):
    """A picture generator with styles: noise z -> style w -> picture."""

    latent_dim: int
    style_dim: int
    num_latents: int
    latent_avg: Tensor

    def map(self, z: Latent) -> Style:
        """Styles BS of noise BZ."""
        ...

    def synthesize(self, w: Tensor, noise: Noise = "buffers") -> Picture:
        """Pictures BCHW, about [-1, 1], of styles BS or BKS."""
        ...

    def noise_shapes(self) -> list[tuple[int, int, int, int]]:
        """Shapes (1, 1, H, W) of the noise maps in the order that `synthesize` takes them."""
        ...


def noise_of(noise: Noise, rows: slice) -> Noise:
    """The noise that belongs to some pictures of a batch; maps of batch 1 serve all pictures."""
    return noise if isinstance(noise, str) else [each if len(each) == 1 else each[rows] for each in noise]
