"""The parts of a step of stage 2, from which every zero-shot method is written: a pair of pictures, what each
CLIP sees in it, and the losses that follow.

`ipl.move_generator` is the plainest use of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zeroshift.clip.features import normalize
from zeroshift.methods import directions, losses
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.views import Views, draw_views, for_every_view, seen
from zeroshift.methods.zero_shot import PATCH_PX, ZeroShotRun
from zeroshift.models.seeds import rng
from zeroshift.shapes import Feature, Picture, UnitFeature
from zeroshift.training.terms import Group, Terms


@dataclass(frozen=True)
class Pair:
    """Pictures of one step, of source and target for the same codes."""

    step: int
    source: Picture
    """BCHW in [-1, 1], without gradient."""
    target: Picture
    """BCHW in [-1, 1]."""
    views: Views | None
    """How CLIPs see the pictures; None where they see them as they are."""
    source_features: list[Feature]
    """For every CLIP its features (K*B)E, un-normalised, of the views of the source's pictures."""

    @property
    def count(self) -> int:
        """Views K of each picture."""
        return 1 if self.views is None else self.views.count


@dataclass(frozen=True)
class Look:
    """What one CLIP sees in a pair: features (K*B)E of K views, un-normalised, rows as `views.seen` has
    them."""

    source: Feature
    target: Feature
    count: int
    """Views K of each picture."""


def source_and_target(run: ZeroShotRun, codes: Any, step: int) -> Pair:
    """Pictures of the codes of a step of stage 2 by source and target, once it is known which layers may
    move."""
    backend = run.backend
    backend.free_layers(step, run.clips)
    with torch.no_grad():
        source = backend.pictures(run.source, codes, step)
        views = draw_views(run.config.train.views, source, run.config.run.seed, "stage2", step)
        if views is None:
            source_features = backend.encode_source(run.clips, source, step)
        else:
            shown = seen(source, views)
            source_features = [clip.encode_image(shown) for clip in run.clips]
    return Pair(step, source, backend.pictures(run.target, codes, step), views, source_features)


def looks(run: ZeroShotRun, pair: Pair) -> Iterator[Look]:
    """What every CLIP sees in a pair, one after the other; each is computed when it is asked for, in one call
    for all views."""
    shown = seen(pair.target, pair.views)
    for clip, source in zip(run.clips, pair.source_features, strict=True):
        yield Look(source, clip.encode_image(shown), pair.count)


def clip_terms(
    run: ZeroShotRun, terms: Terms, pair: Pair, text_directions: Sequence[UnitFeature]
) -> list[tuple[Group, Look]]:
    """Adds what every CLIP says of a pair, the text directions B,E or 1,E of each CLIP given; the group of
    each CLIP, to which a method may add more, and what the CLIP sees."""
    said: list[tuple[Group, Look]] = []
    for clip, look, text_direction in zip(run.clips, looks(run, pair), text_directions, strict=True):
        added = terms.group(clip.weight)
        directional_terms(run, added, clip, look, text_direction)
        other_clip_terms(run, added, clip, look)
        if run.config.losses.patch:
            added.add("patch", patch_loss(run, clip, pair), run.config.losses.patch)
        said.append((added, look))
    return said


def directional_terms(
    run: ZeroShotRun, added: Group, clip: ClipObjective, look: Look, text_direction: UnitFeature
) -> None:
    """Adds the directional loss of what a CLIP sees, by its logarithm where the method does so
    (DiffusionCLIP), or in its place the distance to the point that pictures are to reach.

    Text directions B,E hold for every view of their picture, 1,E for all pictures.
    """
    text_direction = for_every_view(text_direction, look.count)
    image_direction = directions.image_direction(look.source, look.target, clip.floor)
    run.tell_directions(image_direction, text_direction)
    weight = run.config.losses.direction
    if not weight:
        return
    if run.config.quirks.length == "point":
        # No cosine, so nothing to take the logarithm of.
        units = normalize(look.source), normalize(look.target)
        added.add(
            "direction",
            losses.to_point(*units, text_direction, clip.length, run.config.quirks.across),
            weight,
        )
        return
    directional = losses.directional(image_direction, text_direction)
    if run.procedure.log_direction:
        added.add("direction", directional, 0.0)
        added.add("log_direction", losses.log_direction(directional), weight)
    else:
        added.add("direction", directional, weight)


def other_clip_terms(run: ZeroShotRun, added: Group, clip: ClipObjective, look: Look) -> None:
    """Adds what NADA's code offers beside the directional loss, and what holds pictures apart; all of it is
    off by default."""
    weights = run.config.losses
    if not (weights.global_clip or weights.manifold or weights.relation):
        return
    source_unit = normalize(look.source)
    target_unit = normalize(look.target)
    if weights.global_clip:
        global_clip = losses.global_clip(target_unit, clip.target_sentence_feature, clip.global_scale)
        added.add("global_clip", global_clip, weights.global_clip)
    if weights.manifold:
        cosine = normalize(clip.source.template_mean) @ normalize(clip.target_mean)
        added.add("manifold", losses.manifold(source_unit, target_unit, cosine), weights.manifold)
    if weights.relation:
        # Pictures are compared within a view: others would differ by their views too.
        source_KBE, target_KBE = (each.unflatten(0, (look.count, -1)) for each in (source_unit, target_unit))
        added.add("relation", losses.relation(source_KBE, target_KBE), weights.relation)


def patch_loss(run: ZeroShotRun, clip: ClipObjective, pair: Pair) -> torch.Tensor:
    """NADA's patch loss, for the same random square of source and target images, as they are."""
    assert clip.part_directions is not None
    size = run.source.image_size
    count = len(pair.target)
    draw = rng("patch", run.config.run.seed, pair.step)
    centers = torch.randint(PATCH_PX // 2, size - PATCH_PX // 2, (count, 2), generator=draw)
    with torch.no_grad():
        source = clip.encode_image(losses.crop_patches(pair.source, centers, PATCH_PX))
    target = clip.encode_image(losses.crop_patches(pair.target, centers, PATCH_PX))
    patch_direction = directions.image_direction(source, target, clip.floor)
    return losses.patch(patch_direction, clip.part_directions)


def move_target(run: ZeroShotRun, terms: Terms, pair: Pair) -> None:
    """Ends a step: adds the losses that look at pictures, moves the target on all terms, and its running
    average."""
    backend = run.backend
    run.tell(terms, pair.source, pair.target)
    run.picture_losses.add_to(terms, pair.source, pair.target, backend.faces(pair.target))
    run.loop.update("target", terms, lr=backend.learning_rate(pair.step))
    run.loop.average()
