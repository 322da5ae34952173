"""What a world is: latents of a source generator, and the true picture of each in every domain of the world.

A generator says in its metadata which world it belongs to (`world: NAME`); whatever is adapted from it
belongs there too. Runs of such a generator are measured against the truth, their pictures stand beside it,
and the world's own networks look at them.

A world of one's own is a subclass with a name, the width of its latents, the labels of its domains, and
`truth`. A program makes it known with `worlds.known.register`; an installed package offers it under the entry
point group `zeroshift.worlds`:

    class Negatives(World):
        name = "negatives"
        latent_dim = 512
        domains = ("photo", "negative")

        def truth(self, z, label, size):
            pictures = fitted(photos_of(z), size)  # BCHW in [-1, 1], on the CPU
            return pictures if self.domain_of(label) == "photo" else -pictures

    register(Negatives())
    save_generator("photos.safetensors", generator, {"world": "negatives"})

Everything else is optional, and adds to what can be measured: a judge (recognised as the target, distances
and diversity in its features), attributes and a reader of them, captions, a face network, an edge filter, and
how near to the truth its generators can come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.files.registry import load_clip
from zeroshift.models.seeds import z_from_seeds
from zeroshift.shapes import Latent, Picture
from zeroshift.worlds.roles import AttributeReader, EdgeNetwork


class World(ABC):
    """A world with known pairs: one latent is the same thing in every domain."""

    name: str
    """What a generator's metadata call it."""
    latent_dim: int
    """Width of the latents that the world's generators take."""
    domains: tuple[str, ...]
    """Labels of all domains, that of the source pictures first."""
    held_out: tuple[str, ...] = ()
    """Domains on which nothing may be tuned."""
    choices: Mapping[str, tuple[str, ...]] = {}
    """Attribute of a latent -> its possible values. Every domain keeps them, so `evaluate` counts, in a row
    `truth.ATTRIBUTE` each, how many pictures still show them."""
    judge: str | Path | ClipModel = ""
    """A CLIP that knows the domains and never guides, or what `load_clip` finds it by; empty: there is
    none."""
    clips: tuple[str, ...] = ()
    """Names of other CLIPs that know the world's pictures. One of them that is asked to judge takes the roles
    that the judge has in this world."""
    identity: Path | None = None
    """File of a face network that tells the people of this world apart."""

    @property
    def source(self) -> str:
        """Label of the source pictures."""
        return self.domains[0]

    @property
    def tuning(self) -> tuple[str, ...]:
        """Domains other than the source's on which settings may be chosen."""
        return tuple(each for each in self.domains[1:] if each not in self.held_out)

    def domain_of(self, label: str) -> str | None:
        """The domain that a label names, whatever its case and spaces; None where the world has no such
        domain. A world whose domains have several names overrides this."""
        wanted = " ".join(label.lower().split())
        return next((domain for domain in self.domains if domain.lower() == wanted), None)

    def is_held_out(self, label: str) -> bool:
        """Whether a label names a held-out domain."""
        return self.domain_of(label) in self.held_out

    @abstractmethod
    def truth(self, z: Latent, label: str, size: int) -> Picture:
        """True pictures of latents BZ in the domain that a label names: BCHW in [-1, 1] of `size` pixels, on
        the CPU. Asked only for labels of which `domain_of` gives a domain."""

    def truth_of_seeds(self, seeds: Sequence[int] | range, label: str, size: int) -> Picture | None:
        """True pictures, as `truth` gives them, of the latents that seeds draw; None where the world has no
        such domain."""
        domain = self.domain_of(label)
        return None if domain is None else self.truth(self.latents(seeds), domain, size)

    def oracle_ratio(self, generator: str, label: str) -> float | None:
        """Share of its source's distance to the truth that training on the truth itself leaves a generator
        in the domain that a label names, measured as `truth.distance` is; None where nobody measured it.
        `generator` is the SHA-256 of the source generator's file of weights. A world that knows it gets
        `truth.way`."""
        return None

    def latents(self, seeds: Sequence[int] | range) -> Latent:
        """Latents BZ that seeds draw, on the CPU: those from which a generator of this world draws."""
        return z_from_seeds(seeds, self.latent_dim)

    def attributes(self, z: Latent) -> dict[str, Tensor]:
        """Attribute -> number (B, long), in `choices`, of its value in every latent BZ. A world with
        `choices` has to override this."""
        if self.choices:
            raise NotImplementedError(f"the world {self.name} has choices but no attributes(z)")
        return {}

    def prompts(self, attribute: str, label: str) -> list[str]:
        """One sentence per choice of an attribute, about pictures that a label names; a CLIP that judges is
        asked which of them is true."""
        return [f"a {label} with {attribute} {choice}" for choice in self.choices[attribute]]

    def captions(self, z: Latent, label: str) -> list[str] | None:
        """One true sentence for each latent BZ, about its picture in the domain that a label names, with that
        label in it; the same whenever it is asked. None where the world has no words for it."""
        return None

    def describes(self, labels: Sequence[str]) -> bool:
        """Whether there are captions of pictures in the domains of all labels."""
        return all(self.captions(self.latents([0]), label) is not None for label in labels)

    def open_judge(self, device: str | torch.device = "cpu") -> ClipModel | None:
        """The CLIP that judges, on a device; None where the world has none. InputError where it cannot be
        loaded."""
        if isinstance(self.judge, ClipModel):
            return self.judge.to(device)
        return load_clip(self.judge, device=device) if self.judge else None

    def open_reader(self, label: str, device: str | torch.device = "cpu") -> AttributeReader | None:
        """What reads attributes from pictures of the domain that a label names; None where nothing does: then
        the judge is asked with `prompts`."""
        return None

    def open_edges(self, device: str | torch.device = "cpu") -> EdgeNetwork | None:
        """What finds edges where no edge network was asked for; None where nothing should."""
        return None
