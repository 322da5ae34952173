"""SVL: variations of the target text, whose directions tell how differently pictures are to change.

SVL, Semantic Variation Learning (ICCV 2023), by its paper; there is no published code. Stage 1 finds
variations of the target text around it, stage 2 makes the directions of the pictures of a batch have the mean
and the spread of theirs, while weights that matter to the source, and the similarities between pictures, are
held. Where the paper leaves a choice: docs/adr/0033.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift.clip.features import normalize
from zeroshift.methods import directions
from zeroshift.methods.backend import Given
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.importance import elastic_loss, fisher
from zeroshift.methods.steps import Look, looks, move_target, other_clip_terms, source_and_target
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.models.seeds import rng
from zeroshift.shapes import Feature, Picture, Scalar, UnitFeature
from zeroshift.training.loop import Hook, Progress, Stage, Trained
from zeroshift.training.terms import Group, Terms

# 1. The equations.


def variations(target: Feature, z: Tensor) -> Feature:
    """v_i = t + |t| n(z_i), shape K,E: points about the target's text feature t 1,E."""
    return target + torch.linalg.vector_norm(target, dim=-1, keepdim=True) * normalize(z)


def variation_losses(target: Feature, z: Tensor) -> tuple[Scalar, Scalar]:
    """mean_i (1 - cos(t, v_i)), and mean_{i<j} |cos(z_i, z_j)|: near the target, and apart from each
    other."""
    near = (1 - F.cosine_similarity(target, variations(target, z), dim=-1)).mean()
    unit = normalize(z)
    first, second = torch.triu_indices(len(z), len(z), offset=1)
    return near, (unit[first] * unit[second]).sum(dim=-1).abs().mean()


def variation_directions(source: Feature, target: Feature, z: Tensor) -> UnitFeature:
    """{DeltaT} and {n(v_i - s)}: K + 1 directions from the source's text feature s 1,E, the target's own
    first."""
    return normalize(torch.cat([target, variations(target, z)]) - source)


def mean_loss(image: Tensor, text: UnitFeature, floor: float) -> Scalar:
    """1 - cos(mean_i DeltaI_i, mean_j DeltaT_j), of directions ...,N,E and M,E, over what leads the mean.

    The divisor is bounded as in `directions.image_direction`: the mean of the pictures need not be longer
    than that of the texts, and where `floor` asks for the whole way, not shorter either.
    """
    image_mean = image.mean(dim=-2)
    text_mean = text.mean(dim=0)
    norm = torch.linalg.vector_norm(image_mean, dim=-1)
    least = min(floor, float(torch.linalg.vector_norm(text_mean)))
    return (1 - (image_mean @ normalize(text_mean)) / norm.clamp_min(least)).mean()


def second_moment(found: Tensor, centred: bool) -> Tensor:
    """mean_i x_i x_i^T, shape ...,E,E, of rows ...,N,E, with `centred` after their mean is taken off."""
    rows = found - found.mean(dim=-2, keepdim=True) if centred else found
    return rows.mT @ rows / rows.shape[-2]


def covariance_loss(image: Tensor, text: UnitFeature, centred: bool) -> Scalar:
    """|Cov(DeltaI) - Cov(DeltaT)|, the root of the sum of squares (Frobenius), of directions ...,N,E and M,E,
    over what leads the mean."""
    difference = second_moment(image, centred) - second_moment(text, centred)
    return torch.linalg.matrix_norm(difference).mean()


def consistency_loss(source: UnitFeature, target: UnitFeature) -> Scalar:
    """KL( softmax(S S^T) || softmax(T T^T) ), the mean over rows, of unit features ...,B,E of the pictures of
    a batch."""
    before, after = ((each @ each.mT).log_softmax(dim=-1) for each in (source, target))
    return (before.exp() * (before - after)).sum(dim=-1).mean()


# 2. What a run has besides.


class Variations(nn.Module):
    """Directions z_i of the variations of each CLIP, K,E."""

    def __init__(self, widths: Sequence[int], count: int, seed: int) -> None:
        super().__init__()
        self.z = nn.ParameterList(
            torch.randn(count, width, generator=rng("variations", seed, number))
            for number, width in enumerate(widths)
        )


class SvlRun(ZeroShotRun):
    """A run whose first stage finds the variations."""

    variations: Variations

    def __init__(
        self, config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(config, given, hook, progress)
        named = dict(self.target.named_parameters())
        self.start = {name: named[name].detach().clone() for name in self.backend.movable}
        """Weights before anything has moved."""

    def stages(self) -> tuple[Stage, ...]:
        """A stage of the variations before the generator's."""
        options = self.config.own.svl
        widths = [clip.width for clip in self.clips]
        made = Variations(widths, options.variations, self.config.run.seed)
        self.variations = made.to(self.device, self.dtype)
        learned = dict(self.variations.named_parameters())
        adam = torch.optim.Adam(list(learned.values()), lr=options.lr, betas=(0.0, 0.99))
        (moving,) = super().stages()
        models = {"variations": self.variations}
        first = Stage(1, options.steps, {"variations": Trained(learned, adam)}, models, "own.svl", 1)
        return first, replace(moving, models={**models, **moving.models})


def open_run(config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None) -> SvlRun:
    """A run of SVL, loaded and checked; nothing is written."""
    return SvlRun(config, given, hook, progress)


def texts_of(clip: ClipObjective) -> tuple[UnitFeature, UnitFeature]:
    """s and t, 1,E each: unit features of source and target, of the means over templates."""
    return normalize(clip.source.template_mean[None]), normalize(clip.target_mean[None])


def importance(run: SvlRun) -> dict[str, Tensor]:
    """F: for every weight that may move, the mean over pictures of the square of
    d cos(E_I(Gs(w)), s) / d theta, summed over CLIPs by weight. It stands in for the second derivative, as
    Fisher information does. The same for a resumed run: nothing in it has moved."""
    source = run.target.clone().requires_grad_(False)
    source.load_state_dict(run.start, strict=False)
    named = dict(source.named_parameters())
    weights = {name: named[name].requires_grad_(True) for name in run.start}

    def similarities(picture: Picture) -> list[tuple[float, Scalar]]:
        return [
            (clip.weight, (normalize(clip.encode_image(picture)) * texts_of(clip)[0]).sum())
            for clip in run.clips
        ]

    pictures = run.backend.fixed_pictures(source, run.config.own.svl.elastic_pictures)
    return fisher(map(similarities, pictures), weights)


# 3. The training.


def train(run: SvlRun) -> None:
    """Both stages, from where the run stands."""
    find_variations(run)
    move_generator(run)


def find_variations(run: SvlRun) -> None:
    """Stage 1: variations of the target text, near it and apart from each other."""
    for _ in run.loop.steps(1):
        terms = Terms()
        for clip, z in zip(run.clips, run.variations.z, strict=True):
            near, apart = variation_losses(texts_of(clip)[1], z)
            added = terms.group(clip.weight)
            added.add("near", near)
            added.add("apart", apart, run.config.own.svl.apart)
        run.loop.update("variations", terms)


def move_generator(run: SvlRun) -> None:
    """Stage 2: the directions of a batch get the moments of those of the variations."""
    options = run.config.own.svl
    held = importance(run) if options.elastic else {}
    named = dict(run.target.named_parameters())
    with torch.no_grad():
        texts = [
            variation_directions(*texts_of(clip), z)
            for clip, z in zip(run.clips, run.variations.z, strict=True)
        ]
    for step in run.loop.steps(2):
        pair = source_and_target(run, run.backend.codes(step), step)
        terms = Terms()
        for clip, look, text in zip(run.clips, looks(run, pair), texts, strict=True):
            added = terms.group(clip.weight)
            moment_terms(run, added, clip, look, text)
            other_clip_terms(run, added, clip, look)
        if held:
            terms.group().add("elastic", elastic_loss(named, run.start, held), options.elastic)
        move_target(run, terms, pair)


def moment_terms(run: SvlRun, added: Group, clip: ClipObjective, look: Look, text: UnitFeature) -> None:
    """Adds the moments of directions, and the consistency of similarities, both within a view."""
    options = run.config.own.svl
    image = directions.image_direction(look.source, look.target, clip.floor)
    run.tell_directions(image, text[:1])
    weight = run.config.losses.direction
    per_view = image.unflatten(0, (look.count, -1))
    if weight:
        added.add("direction", mean_loss(per_view, text, clip.floor), weight)
        covariance = covariance_loss(per_view, text, options.centred)
        added.add("covariance", covariance, weight * options.covariance)
    if options.consistency:
        units = (normalize(each).unflatten(0, (look.count, -1)) for each in (look.source, look.target))
        added.add("consistency", consistency_loss(*units), options.consistency)
