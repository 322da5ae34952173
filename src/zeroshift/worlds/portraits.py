"""The built-in world: people in fourteen domains, with their judge, face network and attribute reader."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import torch
from torch import Tensor

from zeroshift import portraits
from zeroshift.files.registry import ASSETS, CLIPS, GENERATORS
from zeroshift.portraits.captions import HIDDEN, attribute_prompts, full_caption
from zeroshift.portraits.reader import Reader, load_reader
from zeroshift.portraits.scene import CHOICES
from zeroshift.shapes import Latent, Picture
from zeroshift.worlds.roles import NetworkRecord, SobelEdges
from zeroshift.worlds.world import World

IDENTITY = ASSETS / "identity.safetensors"
READER = ASSETS / "reader.safetensors"


@dataclass(frozen=True)
class PortraitsReader:
    """Which choice of every attribute the pictures of one domain show, by linear heads that were fitted to
    renders of that domain alone."""

    reader: Reader
    domain: str

    @property
    def record(self) -> NetworkRecord:
        """Names the domain, and carries the hashes of the heads and of their encoder."""
        return NetworkRecord(
            f"portraits-reader ({self.domain})", self.reader.sha256, self.reader.network.resize
        )

    def read(self, pictures: Picture) -> dict[str, Tensor]:
        """Attribute -> number (B, long) of the choice, attributes in the order of `CHOICES`."""
        return self.reader.read(self.reader.features(pictures), self.domain)


@cache
def _oracle_ratios() -> dict[str, Mapping[str, float]]:
    """SHA-256 of a built-in generator -> domain -> ratio, from the generators' cards."""
    places = [(ASSETS / name).with_suffix(".card.json") for name in GENERATORS.values()]
    cards = [json.loads(place.read_text("utf-8")) for place in places if place.is_file()]
    entries = [card["oracle"] for card in cards if "oracle" in card]
    return {entry["sha256"]: entry["ratio"] for entry in entries}


class Portraits(World):
    """People in fourteen domains, three of them held out. What a seed draws is a person, whose hair, glasses,
    hat, ... are the same in every domain."""

    name = "portraits"
    latent_dim = portraits.LATENT_DIM
    domains = portraits.DOMAINS
    held_out = portraits.HELD_OUT
    choices = {name: values for name, (values, _) in CHOICES.items()}
    judge = "portraits-judge"
    clips = tuple(CLIPS)
    identity = IDENTITY

    def domain_of(self, label: str) -> str | None:
        """The domain that a label names, in any of its spellings ("roman mosaic")."""
        return portraits.domain_of(label)

    def truth(self, z: Latent, label: str, size: int) -> Picture:
        """Renders of the people of latents. ValueError for a label that names no domain."""
        return portraits.render(z, self.domain_of(label) or label, size)

    def oracle_ratio(self, generator: str, label: str) -> float | None:
        """What the card of a built-in generator says, as `python -m zeroshift.pretrain oracle` measured
        it."""
        return _oracle_ratios().get(generator, {}).get(self.domain_of(label) or "")

    def attributes(self, z: Latent) -> dict[str, Tensor]:
        """Attribute -> number (B, long) of the choice of every person."""
        return portraits.sample_scene(z).choice

    def prompts(self, attribute: str, label: str) -> list[str]:
        """Sentences such as "a pencil sketch of a person with a hat"."""
        return attribute_prompts(attribute, f"a {label} of a person")

    def captions(self, z: Latent, label: str) -> list[str] | None:
        """Captions that name everything that the domain shows of a person, in words and an order that belong
        to the latent."""
        domain = self.domain_of(label)
        if domain is None:
            return None
        scene = portraits.sample_scene(z)
        wordings = [random.Random(sha256(one.numpy().tobytes()).digest()) for one in z.float().cpu()]
        hidden = HIDDEN.get(domain, frozenset())
        return [
            full_caption(scene, row, domain, wording, hidden=hidden, name=label)
            for row, wording in enumerate(wordings)
        ]

    def open_reader(self, label: str, device: str | torch.device = "cpu") -> PortraitsReader | None:
        """The attribute reader, where it has heads for the domain that a label names."""
        domain = self.domain_of(label)
        if domain is None or not (READER.is_file() and IDENTITY.is_file()):
            return None
        reader = load_reader(READER, IDENTITY, device)
        return PortraitsReader(reader, domain) if domain in reader.heads else None

    def open_edges(self, device: str | torch.device = "cpu") -> SobelEdges:
        """Sobel's filter: at 64 px a published edge network sees only blur."""
        return SobelEdges()
