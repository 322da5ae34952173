"""DAG: a discriminator that judges pictures under several transforms, with a head for each.

Tran et al., On Data Augmentation for GAN Training (TIP 2021), and its published code. Under a transform that
can be undone, pictures of the target and of the domain are as far apart as without it, so every head asks for
the same; which a crop is not. Heads are the last layer of the discriminator once more, on its own trunk, and
begin with its weights. Otherwise as `tgan.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift.config.schema import AdaptConfig
from zeroshift.methods import adversarial
from zeroshift.methods.backend import Given
from zeroshift.methods.few_shot import (
    FewShotRun,
    discriminator_terms,
    made_pictures,
    random_latents,
    real_pictures,
    regularise_discriminator,
    regularise_generator,
)
from zeroshift.shapes import Picture, Scalar
from zeroshift.training.loop import Hook, Progress
from zeroshift.training.terms import Terms

CROP_SHARE = 0.75
"""Side of a crop, of the picture's."""

# 1. The equations.

Change = Callable[[Picture], Picture]


def unchanged(pictures: Picture) -> Picture:
    """The pictures themselves."""
    return pictures


def turned(pictures: Picture, quarters: int) -> Picture:
    """All turned counter-clockwise by quarters of a turn."""
    return pictures.rot90(quarters, (-2, -1))


def mirrored(pictures: Picture, axis: Literal[-2, -1]) -> Picture:
    """All with left and right (-1), or above and below (-2), exchanged."""
    return pictures.flip(axis)


def transposed(pictures: Picture) -> Picture:
    """Rows and columns exchanged, then left and right: all turned clockwise by a quarter."""
    return pictures.mT.flip(-1)


def cropped(pictures: Picture, down: Literal[0, 1], right: Literal[0, 1]) -> Picture:
    """The corner of three quarters of the side, at the bottom or right where 1, brought to full size,
    bilinearly (published: by the nearest pixel)."""
    height, width = pictures.shape[-2:]
    rows, columns = round(CROP_SHARE * height), round(CROP_SHARE * width)
    top, left = down * (height - rows), right * (width - columns)
    corner = pictures[..., top : top + rows, left : left + columns]
    return F.interpolate(corner, (height, width), mode="bilinear", align_corners=False)


_CROPS = tuple(partial(cropped, down=down, right=right) for down in (0, 1) for right in (0, 1))
_MIRRORED = partial(mirrored, axis=-1)

SETS: dict[str, tuple[Change, ...]] = {
    "rotation": (unchanged, *(partial(turned, quarters=count) for count in (1, 2, 3))),
    "fliprot": (unchanged, _MIRRORED, partial(mirrored, axis=-2), transposed),
    "cropping": (unchanged, *_CROPS),
    "flipcrop": (unchanged, _MIRRORED, *_CROPS),
}
"""Name -> the K transforms T_k, the identity first; all but the last as published."""


def mean_over_transforms(plain: Scalar, changed: Sequence[Scalar], form: Literal["shared", "own"]) -> Scalar:
    """What is added to the plain loss L_0 with weight lambda, a mean over K transforms: (L_0 + L_1 + ... +
    L_(K-1)) / K where the plain head judges the identity too (`shared`), (L_1 + ... + L_K) / K where that has
    a head of its own (`own`)."""
    every = [plain, *changed] if form == "shared" else list(changed)
    return torch.stack(every).mean()


def judged(
    trunk: Callable[[Picture], Tensor],
    plain: Callable[[Tensor], Tensor],
    heads: Sequence[Callable[[Tensor], Tensor]],
    changes: Sequence[Change],
    pictures: Picture,
) -> tuple[Tensor, list[Tensor]]:
    """Logits of pictures by the plain head, and of each head those of its own transform. With one head fewer
    than transforms the identity has none. The trunk is run once per transform."""
    features = [trunk(change(pictures)) for change in changes]
    own = features[len(changes) - len(heads) :]
    return plain(features[0]), [head(each) for head, each in zip(heads, own, strict=True)]


# 2. The run.


class DagRun(FewShotRun):
    """A run whose discriminator has a head for each transform."""

    def heads(self) -> dict[str, nn.Module]:
        """Copies of the discriminator's last layer."""
        options = self.config.own.dag
        self.changes = SETS[options.transforms]
        """The transforms, the identity first."""
        count = len(self.changes) - (options.form == "shared")
        last = self.discriminator.final_linear[-1]
        return {"dag": nn.ModuleList(copy.deepcopy(last) for _ in range(count))}

    def all_logits(self, pictures: Picture, label: str, step: int) -> tuple[Tensor, list[Tensor]]:
        """Logits of the plain head, and of every other those of its transform of what is shown."""
        heads: Sequence[nn.Module] = list(self.networks["dag"].children())
        shown = self.augmented(pictures, label, step)
        with self.precision.autocast():
            plain, others = judged(
                self.discriminator.last_features,
                self.discriminator.final_linear[-1],
                heads,
                self.changes,
                shown,
            )
        return plain.to(self.dtype), [each.to(self.dtype) for each in others]


def open_run(
    config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> DagRun:
    """A run of DAG, loaded and checked; nothing is written."""
    return DagRun(config, given, hook, progress)


# 3. The training.


def train(run: DagRun) -> None:
    """The stage, from where the run stands."""
    options = run.config.own.dag
    for step in run.loop.steps(2):
        # 1. the discriminator, by every head
        run.free("discriminator")
        with torch.no_grad():
            made = made_pictures(run, run.target, random_latents(run, "discriminator", step=step))
        real, other_real = run.all_logits(real_pictures(run, step), "real", step)
        fake, other_fake = run.all_logits(made, "made", step)
        terms = Terms()
        discriminator_terms(terms, real, fake)
        plain = adversarial.discriminator_loss(real, fake)
        changed = [adversarial.discriminator_loss(*each) for each in zip(other_real, other_fake, strict=True)]
        terms.group().add(
            "discriminator_dag", mean_over_transforms(plain, changed, options.form), options.weight
        )
        run.loop.update("discriminator", terms)
        regularise_discriminator(run, step)
        # 2. the target, by every head
        run.free("target")
        made = made_pictures(run, run.target, random_latents(run, "generator", step=step))
        fake, other_fake = run.all_logits(made, "generator", step)
        plain = adversarial.generator_loss(fake)
        changed = [adversarial.generator_loss(each) for each in other_fake]
        terms = Terms()
        added = terms.group()
        added.add("generator", plain)
        added.add("generator_dag", mean_over_transforms(plain, changed, options.form), options.weight)
        run.loop.update("target", terms)
        regularise_generator(run, step)
        # 3. the running average
        run.loop.average()
