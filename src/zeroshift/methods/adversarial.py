"""Training against a discriminator, as pure functions, one per equation: losses, penalties, and how sure a
discriminator is.

D is the discriminator, whose logits are B1, or B1HW of one that judges patches; x_i are real pictures, G(w_i)
made ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zeroshift.shapes import Picture, Scalar

PATH_DECAY = 0.01
"""Share of the new mean in the running mean of path lengths (Karras et al. 2020)."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Scalar:
    """mean softplus(-D(x)) + mean softplus(D(G(w))), of logits of any shape.

    The logistic loss of Goodfellow et al. 2014: -log sigmoid(D(x)) - log(1 - sigmoid(D(G(w)))).
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Scalar:
    """mean softplus(-D(G(w))), of logits of any shape: non-saturating, its gradient stays where D is sure."""
    return F.softplus(-fake).mean()


def r1_penalty(real: Tensor, pictures: Picture) -> Scalar:
    """mean_i | d D(x_i) / d x_i |^2 of the pictures BCHW that the logits were computed of; differentiable.

    Mescheder et al. 2018 (R1), without its factor gamma / 2. Of a discriminator of patches the mean of a
    picture's logits is meant. Note. Minibatch standard deviation couples pictures; as published the gradient
    is that of the sum over the batch.
    """
    (slope_BCHW,) = torch.autograd.grad(real.flatten(1).mean(dim=1).sum(), pictures, create_graph=True)
    return slope_BCHW.square().sum(dim=(1, 2, 3)).mean()


class PathLengths(NamedTuple):
    """Path length regularisation of a batch."""

    penalty: Scalar
    mean: Scalar
    """The running mean after this batch, without gradient."""


def path_lengths(pictures: Picture, w: Tensor, noise: Picture) -> Tensor:
    """Lengths B = sqrt( mean over layers of | d <G(w_i), y_i / sqrt(HW)> / d w_il |^2 ); differentiable.

    Karras et al. 2020, section 3.2. `w` are the styles BKS of the pictures BCHW, `noise` is y, standard
    normal, of the pictures' shape.
    """
    height, width = pictures.shape[-2:]
    shaken = (pictures * noise / (height * width) ** 0.5).sum()
    (slope_BKS,) = torch.autograd.grad(shaken, w, create_graph=True)
    return slope_BKS.square().sum(dim=2).mean(dim=1).sqrt()


def path_regularisation(lengths: Tensor, mean: Scalar) -> PathLengths:
    """mean_i (length_i - m')^2 with m' = m + 0.01 (mean length - m), which the gradient goes through too, as
    published."""
    moved = mean + PATH_DECAY * (lengths.mean() - mean)
    return PathLengths((lengths - moved).square().mean(), moved.detach())


def lazy(weight: float, every: int, step: int) -> float:
    """Weight of a penalty in a step that counts from 1: `every` times as much in every so many steps, the
    first among them, else 0 (Karras et al. 2020, lazy regularisation)."""
    return weight * every if (step - 1) % every == 0 else 0.0


def lazy_adam(lr: float, every: int) -> tuple[float, tuple[float, float]]:
    """Rate and betas of Adam for a network with a penalty of its own every n steps: lr c and (0, 0.99 ** c),
    c = n / (n + 1), for it takes n + 1 steps in the time of n. 0: without a penalty c is 1."""
    share = every / (every + 1) if every else 1.0
    return lr * share, (0.0, 0.99**share)


def overfitting(real: Tensor) -> Scalar:
    """r_t = mean sign(D(x)), in [-1, 1] and without gradient: 0 where D cannot tell, 1 where it knows every
    real picture (Karras et al. 2020, ADA)."""
    return real.detach().sign().mean()
