"""What a step's loss is made of: named terms with weights, in weighted groups, as on a page of a paper."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeroshift.shapes import Scalar


@dataclass
class Group:
    """Terms that share a weight, such as those of one CLIP."""

    weight: float
    values: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    """Name -> value and its weight within the group."""

    def add(self, name: str, value: Scalar, weight: float = 1.0) -> None:
        """Adds a term. With weight 0 it is told and not learned from."""
        assert name not in self.values, f"the term {name} was added twice"
        self.values[name] = value, weight

    def total(self) -> Scalar | None:
        """Weighted sum of the terms, without the weight of the group; None where none has a weight."""
        weighted = [weight * value for value, weight in self.values.values() if weight]
        return torch.stack(weighted).sum() if weighted else None


class Terms:
    """The terms of one step: L = sum over groups g of weight_g * (sum over terms t of g of weight_t *
    L_t)."""

    def __init__(self) -> None:
        self.groups: list[Group] = []

    def group(self, weight: float = 1.0) -> Group:
        """A new group, to which terms are added."""
        made = Group(weight)
        self.groups.append(made)
        return made

    def total(self) -> Scalar:
        """The loss that is minimised, 0-dimensional; at least one term must have a weight."""
        parts = [(group.weight, group.total()) for group in self.groups]
        weighted = [weight * total for weight, total in parts if total is not None]
        assert weighted, "a step without any weighted term would learn nothing"
        return torch.stack(weighted).sum()

    def named(self) -> dict[str, Scalar]:
        """Every term by name, over groups by their weights, without its own weight and without gradient."""
        names = dict.fromkeys(name for group in self.groups for name in group.values)
        return {
            name: torch.stack(
                [
                    group.weight * group.values[name][0].detach()
                    for group in self.groups
                    if name in group.values
                ]
            ).sum()
            for name in names
        }

    def per_group(self) -> list[Scalar]:
        """Total of every group without its weight and without gradient."""
        totals = (group.total() for group in self.groups)
        return [total.detach() for total in totals if total is not None]
