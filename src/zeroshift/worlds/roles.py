"""What a world may bring to look at pictures with, beside its judge: readers of attributes and edge filters.

Networks of metrics take the same shape (`measure.networks`), so that a world's own and a published one are
told apart by their records alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.shapes import Picture


@dataclass(frozen=True)
class NetworkRecord:
    """What the record of an evaluation says about a network."""

    name: str
    sha256: str
    """Hash of its weights; empty for a filter, which has none."""
    resize: str
    """How it brings pictures to the size that it takes, in words."""


class Network(Protocol):
    """What everything that looks at pictures has."""

    @property
    def record(self) -> NetworkRecord:
        """Its name, the hash of its weights, and its resize filter."""
        ...


class AttributeReader(Network, Protocol):
    """Role `reader`: reads what pictures of one domain show."""

    def read(self, pictures: Picture) -> dict[str, Tensor]:
        """Attribute -> number (B, long), in `World.choices`, of the choice that each picture in [-1, 1]
        shows."""
        ...


class EdgeNetwork(Network, Protocol):
    """Role `edges`: finds edges, of which structural consistency compares those of source and target."""

    def edges(self, pictures: Picture) -> Tensor:
        """Edge maps B1HW, none below 0, of pictures BCHW in [-1, 1]."""
        ...


class SobelEdges:
    """Length of the gradient of luminance by Sobel's filters, for pictures so small that a published edge
    network would see only blur."""

    record = NetworkRecord("Sobel gradient (a filter, no weights)", "", "none")

    def edges(self, pictures: Picture) -> Tensor:
        """Edge maps B1HW of the pictures' size: 0 on flat ground, at most about 11 for luminance in
        [-1, 1]."""
        weights = pictures.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
        grey = (pictures * weights).sum(dim=1, keepdim=True)
        across = pictures.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        kernels = torch.stack([across, across.T])[:, None]
        return F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
