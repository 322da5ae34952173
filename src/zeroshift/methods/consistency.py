"""CR, bCR and zCR: a discriminator whose judgement stays where little has changed.

CR (Zhang et al., ICLR 2020) ties its logits of a real picture and of the same picture flipped and shifted,
bCR (Zhao et al., AAAI 2021) those of made ones too; zCR (the same) its logits of pictures of neighbouring
latents, which the generator in turn holds apart. One file, for a method is a choice among three terms.
Otherwise as `tgan.py`. Where pictures are augmented, both of a pair are in the same way: what is compared is
what the discriminator is shown.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zeroshift.methods import adversarial
from zeroshift.methods.few_shot import (
    FewShotRun,
    Latents,
    discriminator_terms,
    made_pictures,
    random_latents,
    real_pictures,
    regularise_discriminator,
    regularise_generator,
)
from zeroshift.methods.few_shot import open_run as open_run
from zeroshift.models import transforms
from zeroshift.models.seeds import rng
from zeroshift.shapes import Latent, Picture, Scalar
from zeroshift.training.terms import Terms

TIES = {"cr": ("real",), "bcr": ("real", "made"), "zcr": ("latent",)}
"""Method -> what the discriminator's logits are tied of."""

# 1. The equations.


def logit_distance(first: Tensor, second: Tensor) -> Scalar:
    """mean_i (D(x_i) - D(x'_i))^2 of logits of any shape, of pictures and their neighbours (CR, bCR, zCR)."""
    return (first - second).square().mean()


def picture_distance(first: Picture, second: Picture) -> Scalar:
    """mean (G(z) - G(z'))^2 over all numbers of the pictures: what zCR's generator makes large."""
    return (first - second).square().mean()


def neighbour(z: Latent, noise: Latent, radius: float) -> Latent:
    """z' = z + radius noise (zCR)."""
    return z + radius * noise


def moved(pictures: Picture, uniform: Tensor, share: float) -> Picture:
    """T(x): left and right exchanged for half of all pictures, then a shift by U{-n .. n} whole pixels on
    either axis, n = `share` of the side rounded down; mirrored beyond the edge.

    `uniform`: numbers B,3 in [0, 1) for flip, down and right.
    """
    flip, down, right = uniform.T
    most_down, most_right = (int(share * side) for side in pictures.shape[-2:])
    pictures = transforms.flipped(pictures, flip < 0.5)
    down = (down * (2 * most_down + 1)).long() - most_down
    return transforms.shifted(pictures, down, (right * (2 * most_right + 1)).long() - most_right)


# 2. The training.


def train(run: FewShotRun) -> None:
    """The stage, from where the run stands."""
    ties = TIES[run.config.method]
    options = run.config.own.cr
    for step in run.loop.steps(2):
        # 1. the discriminator, tied to its own judgement of neighbours
        run.free("discriminator")
        latents = random_latents(run, "discriminator", step=step)
        with torch.no_grad():
            made = made_pictures(run, run.target, latents)
            near = made_pictures(run, run.target, _neighbours(run, latents)) if "latent" in ties else None
        real = real_pictures(run, step)
        real_logits, made_logits = run.judge(real, "real", step), run.judge(made, "made", step)
        terms = Terms()
        discriminator_terms(terms, real_logits, made_logits)
        tied = terms.group()
        if "real" in ties:
            again = run.judge(_moved(run, real, "real", step), "real", step)
            tied.add("consistency_real", logit_distance(real_logits, again), options.real)
        if "made" in ties:
            again = run.judge(_moved(run, made, "made", step), "made", step)
            tied.add("consistency_made", logit_distance(made_logits, again), options.made)
        if near is not None:
            again = run.judge(near, "made", step)
            tied.add("consistency_latent", logit_distance(made_logits, again), options.latent)
        run.loop.update("discriminator", terms)
        regularise_discriminator(run, step)
        # 2. the target, which holds pictures of neighbours apart
        run.free("target")
        latents = random_latents(run, "generator", step=step)
        made = made_pictures(run, run.target, latents)
        terms = Terms()
        terms.group().add("generator", adversarial.generator_loss(run.judge(made, "generator", step)))
        if "latent" in ties:
            near = made_pictures(run, run.target, _neighbours(run, latents))
            terms.group().add("apart", picture_distance(made, near), -options.apart)
        run.loop.update("target", terms)
        regularise_generator(run, step)
        # 3. the running average
        run.loop.average()


def _moved(run: FewShotRun, pictures: Picture, label: str, step: int) -> Picture:
    seed = run.config.run.seed
    rows = [torch.rand(3, generator=rng("consistency", seed, label, step, i)) for i in range(len(pictures))]
    return moved(pictures, torch.stack(rows), run.config.own.cr.shift)


def _neighbours(run: FewShotRun, latents: Latents) -> Latents:
    """Latents near those of a step, with the same noise maps, and mixed with the same others."""
    seed = run.config.run.seed
    rows = [
        torch.randn(each.shape, generator=rng("neighbour", seed, latents.label, latents.step, i))
        for i, each in enumerate(latents.z)
    ]
    return replace(latents, z=neighbour(latents.z, torch.stack(rows), run.config.own.cr.radius))
