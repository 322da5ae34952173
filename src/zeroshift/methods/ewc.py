"""EWC: plain training on a few pictures, with weights that matter to the source held where they are.

Elastic Weight Consolidation (Kirkpatrick et al., 2017) for few shots (Li et al., NeurIPS 2020; there is no
published code). How much a weight matters is its Fisher information in source and discriminator as they
begin, sigmoid(D(G(w))) standing for the likelihood of a picture.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from zeroshift.methods import adversarial
from zeroshift.methods.backend import Given
from zeroshift.methods.few_shot import FewShotRun, made_pictures, random_latents
from zeroshift.methods.importance import elastic_loss, fisher, of_mean_one
from zeroshift.methods.tgan import plain_step
from zeroshift.shapes import Scalar
from zeroshift.training.loop import Hook, Progress
from zeroshift.training.terms import Terms


class EwcRun(FewShotRun):
    """A run that knows where its weights began, and how much each matters there."""

    def __init__(
        self, config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(config, given, hook, progress)
        named = dict(self.target.named_parameters())
        self.start = {name: named[name].detach().clone() for name in self.moving}
        """Weights before anything has moved."""

    def importance(self) -> dict[str, Tensor]:
        """F: for every weight that may move, the mean over pictures of the square of
        d log sigmoid(D(G(w))) / d theta, scaled as `importance.of_mean_one` does. The same for a resumed run:
        nothing in it has moved."""
        discriminator = self._open_discriminator().network.requires_grad_(False)
        generator = self.target.clone().requires_grad_(False)
        generator.load_state_dict(self.start, strict=False)
        named = dict(generator.named_parameters())
        weights = {name: named[name].requires_grad_(True) for name in self.start}
        # In batches, because the discriminator looks at how different the pictures of one are.
        batches = range(1, 1 + math.ceil(self.config.own.ewc.pictures / self.config.train.batch))

        def likelihoods(number: int) -> list[tuple[float, Scalar]]:
            made = made_pictures(self, generator, random_latents(self, "importance", step=number))
            logits = discriminator(made).flatten()
            return [(1 / len(logits), adversarial.generator_loss(logit)) for logit in logits]

        return of_mean_one(fisher(map(likelihoods, batches), weights))


def open_run(config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None) -> EwcRun:
    """A run of EWC, loaded and checked; nothing is written."""
    return EwcRun(config, given, hook, progress)


def train(run: EwcRun) -> None:
    """The stage, from where the run stands."""
    weight = run.config.own.ewc.weight
    held = run.importance() if weight else {}
    named = dict(run.target.named_parameters())

    def hold(terms: Terms) -> None:
        if held:
            terms.group().add("elastic", elastic_loss(named, run.start, held), weight)

    for step in run.loop.steps(2):
        plain_step(run, step, hold)
