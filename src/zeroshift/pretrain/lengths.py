"""How far a built-in CLIP's pictures of two domains lie apart, by how far its labels do (ADR 0030)."""

from __future__ import annotations

import torch
from torch import Tensor

from zeroshift.clip.features import normalize, template_features
from zeroshift.clip.model import ClipModel, Lengths
from zeroshift.portraits.shading import DOMAINS, TUNING
from zeroshift.pretrain import dataset

PEOPLE = 48
LEAST_POWER = 0.1
"""A CLIP that learned next to nothing may see near labels further apart than far ones."""


@torch.no_grad()
def label_step(clip: ClipModel, domain: str) -> Tensor:
    """The step (E,) from the mean template feature of the photo's label to that of a domain's."""
    source, target = (template_features(clip, each).mean(dim=0) for each in ("photo", domain))
    return target - source


@torch.no_grad()
def calibrate(clip: ClipModel, people: dataset.People) -> None:
    """Fits the lengths of a CLIP: how far its features of true pictures lie from those of the photos, by the
    distance of the labels. Least squares of the logarithms over the domains that are not held out."""

    def seen(pictures: Tensor) -> Tensor:
        return normalize(clip.encode_image(dataset.to_float(pictures[:PEOPLE])))

    photo = seen(people.photo)
    truths = [seen(people.domains[:PEOPLE, DOMAINS.index(each) - 1]) for each in TUNING]
    y = torch.stack([(truth - photo).norm(dim=1).mean().log() for truth in truths]).double()
    x = torch.stack([label_step(clip, each).norm().log() for each in TUNING]).double()
    across = x - x.mean()
    power = ((across * y).sum() / across.square().sum()).clamp_min(LEAST_POWER)
    clip.lengths = Lengths(float((y.mean() - power * x.mean()).exp()), float(power))
