"""What a world is: a source generator's latents, and the true picture of each in every domain of the world.

A generator belongs to a world by its metadata (`world: NAME`); an adapted one inherits it. A world of one's
own is a subclass with `truth`, made known by `worlds.known.register`, or by an installed package through the
entry point group `zeroshift.worlds`:

    class Shapes(World):
        name, latent_dim, domains = "shapes", 8, ("photo", "negative")

        def truth(self, z, label, size): ...

    register(Shapes())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from zeroshift.models.seeds import z_from_seeds
from zeroshift.shapes import Latent, Picture


class AttributeReader(Protocol):
    """Reads what pictures of one domain show."""

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of its weights."""
        ...

    @property
    def resize(self) -> str:
        """How it brings pictures to its own size, in words."""
        ...

    def read(self, pictures: Picture) -> dict[str, Tensor]:
        """Attribute -> choice (B, long) that each picture in [-1, 1] shows, by its number in
        `World.choices`."""
        ...


class World(ABC):
    """A world with known pairs. Only `name`, `latent_dim`, `domains` and `truth` must be given; the rest is
    what more can be measured with it.
    """

    name: ClassVar[str]
    latent_dim: ClassVar[int]
    """Width of the latents that the world's generators take."""
    domains: ClassVar[tuple[str, ...]]
    """Labels of all domains, that of the source pictures first."""
    held_out: ClassVar[tuple[str, ...]] = ()
    """Domains on which nothing may be tuned."""
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Attribute of a latent -> its possible values, which every domain keeps."""
    judge: ClassVar[str] = ""
    """Name of a CLIP that knows the domains and never guides."""
    identity: ClassVar[Path | None] = None
    """File of the face network of this world."""
    coarse: ClassVar[bool] = False
    """Whether pictures are so small that published networks of edges see only blur."""

    @property
    def source(self) -> str:
        """Label of the source pictures."""
        return self.domains[0]

    @property
    def tuning(self) -> tuple[str, ...]:
        """Domains other than the source's on which settings may be chosen."""
        return tuple(each for each in self.domains[1:] if each not in self.held_out)

    def domain_of(self, label: str) -> str | None:
        """The domain that a label names, in any spelling; None where the world has no such domain."""
        wanted = " ".join(label.lower().split())
        return next((domain for domain in self.domains if domain.lower() == wanted), None)

    def is_held_out(self, label: str) -> bool:
        """Whether a label names a held-out domain."""
        return self.domain_of(label) in self.held_out

    @abstractmethod
    def truth(self, z: Latent, label: str, size: int) -> Picture:
        """True pictures BCHW in [-1, 1] of latents BZ in the domain that a label names, on the CPU."""

    def truth_of_seeds(self, seeds: Sequence[int] | range, label: str, size: int) -> Picture | None:
        """True pictures of the latents that seeds draw; None where the world has no such domain."""
        domain = self.domain_of(label)
        return None if domain is None else self.truth(z_from_seeds(seeds, self.latent_dim), domain, size)

    def attributes(self, z: Latent) -> dict[str, Tensor]:
        """Attribute -> choice (B, long) of every latent BZ."""
        return {}

    def prompts(self, attribute: str, label: str) -> list[str]:
        """One sentence per choice of an attribute, about pictures that a label names."""
        return [f"a {label} with {attribute} {choice}" for choice in self.choices[attribute]]

    def reader(self, label: str, device: str | torch.device = "cpu") -> AttributeReader | None:
        """What reads attributes from pictures of the domain that a label names; None where nothing does."""
        return None
