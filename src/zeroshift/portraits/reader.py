"""The attribute reader of the built-in world: linear heads per domain over the features of the identity
encoder.

What a head says depends on its domain's own renders alone, not on words, so that no CLIP decides what a
picture shows. Its weights are fitted by `pretrain/reader.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift import __version__
from zeroshift.errors import InputError
from zeroshift.files.faces import IrSe, load_ir_se
from zeroshift.files.pickles import flat_tensors, read_tensors
from zeroshift.files.writing import atomic_path, file_sha256
from zeroshift.portraits import DOMAINS
from zeroshift.portraits.scene import CHOICES
from zeroshift.shapes import Feature, Picture

FORMAT = "zeroshift.reader"
CELLS = 2
"""Cells per side that the encoder's last map is averaged in, beside its features."""

Heads = Mapping[str, tuple[Tensor, Tensor]]
"""Domain -> weights KF and biases K of all choices of all attributes, in the order of scene.CHOICES."""


def encoder_features(network: IrSe, pictures: Picture) -> Feature:
    """What heads read, BF: the encoder's features before they get unit length, and means over parts of its
    last map."""
    maps = network.body(network.input_layer(F.adaptive_avg_pool2d(pictures, network.config.size)))
    cells = F.adaptive_avg_pool2d(maps, CELLS).flatten(1)
    return torch.cat([network.output_layer(maps), cells], dim=1)


def split_choices(said: Tensor) -> dict[str, Tensor]:
    """Attribute -> its columns BK of scores BC, whose columns are the choices of all attributes in the order
    of scene.CHOICES."""
    widths = [len(choices) for choices, _ in CHOICES.values()]
    return dict(zip(CHOICES, said.split(widths, dim=1), strict=True))


@dataclass(frozen=True)
class Reader:
    """Encoder and heads. `sha256`: of the file of heads, and of the encoder's."""

    network: IrSe
    heads: Heads
    sha256: str = ""

    def features(self, pictures: Picture) -> Feature:
        """Features BF of pictures BCHW in [-1, 1]."""
        return encoder_features(self.network, pictures)

    def read(self, features: Feature, domain: str) -> dict[str, Tensor]:
        """The choice (B, long) of every attribute that pictures of a domain show. InputError where no head
        knows the domain."""
        if domain not in self.heads:
            raise InputError(
                f"the attribute reader does not know {domain!r}; it knows {', '.join(self.heads)}."
            )
        weights, biases = self.heads[domain]
        return {
            name: said.argmax(dim=1) for name, said in split_choices(features @ weights.T + biases).items()
        }


def save_reader(path: str | Path, heads: Heads, encoder_sha256: str) -> None:
    """Writes heads in half precision with the hash of the encoder whose features they read."""
    from safetensors.torch import save_file

    tensors = {}
    for domain, (weights, biases) in heads.items():
        tensors |= {
            f"{domain}.weight": weights.half().contiguous(),
            f"{domain}.bias": biases.half().contiguous(),
        }
    with atomic_path(Path(path)) as part:
        save_file(tensors, part, {"format": FORMAT, "version": __version__, "encoder": encoder_sha256})


def load_reader(path: str | Path, encoder: str | Path, device: str | torch.device = "cpu") -> Reader:
    """The reader of a file of heads and a file of the encoder. InputError where they do not belong
    together."""
    content = read_tensors(path)
    network, encoder_sha256 = load_ir_se(encoder)
    if content.metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} holds no attribute reader. Give a file of `python -m zeroshift.pretrain reader`."
        )
    if content.metadata.get("encoder") != encoder_sha256:
        raise InputError(
            f"{path} reads the features of another encoder than {encoder}. Train the reader again."
        )
    tensors = flat_tensors(content.tree)
    width = sum(len(choices) for choices, _ in CHOICES.values())
    heads = {}
    for domain in DOMAINS:
        if f"{domain}.weight" in tensors and f"{domain}.bias" in tensors:
            weights, biases = tensors[f"{domain}.weight"].float(), tensors[f"{domain}.bias"].float()
            if len(weights) != width or biases.shape != (width,):
                raise InputError(f"{path} has heads of {len(weights)} choices for {domain!r}, not {width}.")
            heads[domain] = (weights.to(device), biases.to(device))
    return Reader(network.to(device), heads, f"{file_sha256(path)}+{encoder_sha256}")
