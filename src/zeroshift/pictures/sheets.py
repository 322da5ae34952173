"""The same seeds before and after: pictures of source and target in pairs, and on one sheet with the
truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zeroshift.config.schema import FinetuneConfig
from zeroshift.files.images import labelled_rows
from zeroshift.models.protocol import PictureGenerator
from zeroshift.pictures.inversion import Route, translated
from zeroshift.worlds.world import World


@torch.no_grad()
def pair(
    source: Any,
    target: Any,
    tuning: FinetuneConfig | None,
    seeds: Sequence[int] | range,
    truncation: float = 1.0,
    world: World | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures BCHW in [-1, 1] on the CPU of the same seeds, by a source and by the target adapted from it.

    With a world the seeds name its latents. A diffusion model, which knows no latent by a seed, is then given
    the world's source pictures, and the target's pictures are made of these. `tuning` is how a diffusion
    model was adapted; `truncation` is for generators with styles.
    """
    generator: PictureGenerator = target
    if generator.kind == "styles" or tuning is None:
        return source.sample(seeds, truncation=truncation), generator.sample(seeds, truncation=truncation)
    given = None if world is None else world.truth_of_seeds(seeds, world.source, source.image_size)
    if given is None:
        before = source.sample(seeds, steps=tuning.sample_steps)
        return before, generator.sample_adapted(source, seeds, t0=tuning.t0, steps=tuning.sample_steps)
    device = next(source.parameters()).device
    return given, translated(source, given.to(device), Route.of(tuning), target.predict_noise).cpu()


def before_after(
    source: Any,
    target: Any,
    labels: tuple[str, str],
    seeds: Sequence[int] | range,
    truncation: float,
    world: World | None = None,
    tuning: FinetuneConfig | None = None,
) -> Tensor:
    """One picture CHW of the same seeds in rows: source, target and, where the world knows the domain that
    `labels[1]` names, the truth (all then untruncated)."""
    truth = None if world is None else world.truth_of_seeds(seeds, labels[1], source.image_size)
    if truth is None:
        return labelled_rows(list(zip(labels, pair(source, target, tuning, seeds, truncation), strict=True)))
    pictures = pair(source, target, tuning, seeds, world=world)
    return labelled_rows([*zip(labels, pictures, strict=True), ("truth", truth)])
