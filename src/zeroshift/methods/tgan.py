"""TGAN and FreezeD: a generator trained on a few pictures against its discriminator, with nothing that holds
it.

TGAN (Wang et al., ECCV 2018) is the control: it learns the pictures by heart, and that must be seen (the
monitor warns). FreezeD (Mo et al. 2020) is the same with the discriminator's blocks near the picture frozen
(`adversarial.freeze`). START HERE for methods that learn from pictures; `few_shot.py` says how they are
written.
"""

from __future__ import annotations

import torch

from zeroshift.methods import adversarial
from zeroshift.methods.few_shot import (
    FewShotRun,
    discriminator_terms,
    made_pictures,
    random_latents,
    real_pictures,
    regularise_discriminator,
    regularise_generator,
)
from zeroshift.methods.few_shot import open_run as open_run
from zeroshift.training.terms import Terms


def train(run: FewShotRun) -> None:
    """The stage, from where the run stands."""
    for step in run.loop.steps(2):
        # 1. the discriminator learns to tell shots from pictures of the target
        run.free("discriminator")
        with torch.no_grad():
            made = made_pictures(run, run.target, random_latents(run, "discriminator", step=step))
        terms = Terms()
        real = run.judge(real_pictures(run, step), "real", step)
        discriminator_terms(terms, real, run.judge(made, "made", step))
        run.loop.update("discriminator", terms)
        regularise_discriminator(run, step)
        # 2. the target learns to make pictures that it takes for shots
        run.free("target")
        made = made_pictures(run, run.target, random_latents(run, "generator", step=step))
        terms = Terms()
        terms.group().add("generator", adversarial.generator_loss(run.judge(made, "generator", step)))
        run.loop.update("target", terms)
        regularise_generator(run, step)
        # 3. the running average
        run.loop.average()
