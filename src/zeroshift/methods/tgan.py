"""TGAN and FreezeD: a generator trained on a few pictures against its discriminator, with nothing that holds
it.

TGAN (Wang et al., ECCV 2018) is the control: it learns the pictures by heart, and that must be seen (the
monitor warns). FreezeD (Mo et al. 2020) is the same with the discriminator's blocks near the picture frozen
(`adversarial.freeze`). START HERE for methods that learn from pictures; `few_shot.py` says how they are
written.
"""

from __future__ import annotations

from collections.abc import Callable

from zeroshift.methods import adversarial
from zeroshift.methods.few_shot import (
    FewShotRun,
    learn_to_judge,
    made_pictures,
    random_latents,
    regularise_generator,
)
from zeroshift.methods.few_shot import open_run as open_run
from zeroshift.training.terms import Terms


def train(run: FewShotRun) -> None:
    """The stage, from where the run stands."""
    for step in run.loop.steps(2):
        plain_step(run, step)


def plain_step(run: FewShotRun, step: int, held: Callable[[Terms], None] = lambda terms: None) -> None:
    """One step of discriminator, target and average. `held` adds to the terms of the target."""
    # 1. the discriminator learns to tell shots from pictures of the target
    learn_to_judge(run, step, random_latents(run, "discriminator", step=step))
    # 2. the target learns to make pictures that it takes for shots
    run.free("target")
    made = made_pictures(run, run.target, random_latents(run, "generator", step=step))
    terms = Terms()
    terms.group().add("generator", adversarial.generator_loss(run.judge(made, "generator", step)))
    held(terms)
    run.loop.update("target", terms)
    regularise_generator(run, step)
    # 3. the running average
    run.loop.average()
