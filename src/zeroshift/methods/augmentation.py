"""Augmentation of a run: which one it is, what it draws, and the chance that goes on from step to step.

The default and the reason: docs/adr/0038.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zeroshift.config.methods import METHODS
from zeroshift.config.schema import AdaptConfig
from zeroshift.models import augment
from zeroshift.models.seeds import rng
from zeroshift.shapes import Picture

FEW = 50
"""Pictures from which on the chance of kind auto is adaptive. Of fewer, the signs of logits say little."""


class Augmentation:
    """What a discriminator is shown in place of pictures."""

    adaptive: augment.AdaptiveChance | None = None
    """Who moves the chance, where it moves."""

    def __init__(self, config: AdaptConfig, shots: int) -> None:
        """`shots`: how many pictures of the target there are."""
        self.options = config.own.adversarial.augment
        self.seed = config.run.seed
        self.kind = self.options.kind
        adaptive = self.options.adaptive
        if self.kind == "auto":
            self.kind = "ada" if METHODS[config.method].augmented else "none"
            adaptive = adaptive or shots >= FEW
        if self.kind == "ada" and adaptive:
            self.adaptive = augment.AdaptiveChance(
                self.options.p, self.options.target, self.options.ramp, self.options.every
            )

    @property
    def p(self) -> float:
        """Chance of every transform of ADA."""
        return self.options.p if self.adaptive is None else self.adaptive.p

    def __call__(self, pictures: Picture, label: str, step: int) -> Picture:
        """Pictures BCHW as they are shown. What is done to row i depends on (seed, label, step, i) and the
        chance only."""
        if self.kind == "none":
            return pictures
        sources = [rng("augment", self.seed, label, step, i) for i in range(len(pictures))]
        if self.kind == "diffaugment":
            return augment.diffaugment(pictures, augment.diffaugment_numbers(sources), self.options.policy)
        return augment.ada(pictures, augment.ada_numbers(sources), self.p, self.options.parts)

    def see(self, sign: float, pictures: int) -> None:
        """Takes in r_t, the mean sign of the logits of the real pictures of a step."""
        if self.adaptive is not None:
            self.adaptive.see(sign, pictures)

    def state(self) -> dict[str, Tensor]:
        """What goes on from one step to the next."""
        return {} if self.adaptive is None else {"augment": self.adaptive.state()}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with what `state` gave."""
        if self.adaptive is not None:
            self.adaptive.resume(tensors["augment"])
