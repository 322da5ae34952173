"""The built-in world of people as a `World`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zeroshift import portraits
from zeroshift.files.registry import ASSETS
from zeroshift.portraits.captions import attribute_prompts
from zeroshift.portraits.reader import Reader, load_reader
from zeroshift.portraits.scene import CHOICES, sample_scene
from zeroshift.shapes import Latent, Picture
from zeroshift.worlds.world import World

IDENTITY = ASSETS / "identity.safetensors"
READER = ASSETS / "reader.safetensors"


@dataclass(frozen=True)
class PortraitsReader:
    """Which choice of every attribute the pictures of one domain show."""

    reader: Reader
    domain: str

    @property
    def name(self) -> str:
        """What records call it."""
        return f"portraits-reader ({self.domain})"

    @property
    def sha256(self) -> str:
        """Hashes of its heads and of its encoder."""
        return self.reader.sha256

    @property
    def resize(self) -> str:
        """How it brings pictures to its own size, in words."""
        return self.reader.network.resize

    def read(self, pictures: Picture) -> dict[str, Tensor]:
        """Attribute -> choice (B, long)."""
        return self.reader.read(self.reader.features(pictures), self.domain)


class Portraits(World):
    """People in fourteen domains, three of them held out."""

    name = "portraits"
    latent_dim = portraits.LATENT_DIM
    domains = portraits.DOMAINS
    held_out = portraits.HELD_OUT
    choices = {name: values for name, (values, _) in CHOICES.items()}
    judge = "portraits-judge"
    identity = IDENTITY
    coarse = True

    def domain_of(self, label: str) -> str | None:
        """The domain that a label names, in any of its spellings."""
        return portraits.domain_of(label)

    def truth(self, z: Latent, label: str, size: int) -> Picture:
        """Renders of people. ValueError for a label that names no domain."""
        return portraits.render(z, self.domain_of(label) or label, size)

    def attributes(self, z: Latent) -> dict[str, Tensor]:
        """Attribute -> choice of every person."""
        return sample_scene(z).choice

    def prompts(self, attribute: str, label: str) -> list[str]:
        """One sentence per choice of an attribute."""
        return attribute_prompts(attribute, f"a {label} of a person")

    def reader(self, label: str, device: str | torch.device = "cpu") -> PortraitsReader | None:
        """The attribute reader, where it knows the domain that a label names."""
        domain = self.domain_of(label)
        if domain is None or not (READER.is_file() and IDENTITY.is_file()):
            return None
        reader = load_reader(READER, IDENTITY, device)
        return PortraitsReader(reader, domain) if domain in reader.heads else None
