"""How well the text directions of a run agree with the true ones, in worlds that know the truth.

The true direction of a latent is that from what a guiding CLIP sees in the source's picture to what it sees
in the true picture. IPL's claim is that learned words come nearer to it than the labels do.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from zeroshift.clip.features import normalize
from zeroshift.files.writing import write_bytes
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.shapes import Latent, Picture, UnitFeature
from zeroshift.worlds.world import World

AGREEMENT_FILE = "directions.json"
"""Record in a run folder."""

SEEDS = range(2000, 2064)
"""People that are asked; no run draws from them."""

PART = 16
"""Pictures drawn and seen at a time."""

SAME = 1e-5
"""Rows of directions that differ less are one direction for all, as shared words have, but for rounding."""


def agreement(true: UnitFeature, found: UnitFeature) -> tuple[float, float]:
    """Mean cosine of directions B,E (or 1,E for all) with the true ones B,E; and of what is individual in
    them, after the mean over rows is taken off each: 0 for one direction for all."""
    whole = (true * found).sum(dim=1).mean()
    own = found - found.mean(dim=0)
    if float(own.abs().max()) < SAME:
        return float(whole), 0.0
    individual = cosine_similarity(own, true - true.mean(dim=0), dim=1)
    return float(whole), float(individual.mean())


def seen(clip: ClipObjective, pictures: Picture) -> UnitFeature:
    """Unit features BE of pictures."""
    return normalize(torch.cat([clip.encode_image(part) for part in pictures.split(PART)]))


def true_directions(clip: ClipObjective, world: World, z: Latent, source: Picture, label: str) -> UnitFeature:
    """Directions B,E from source pictures BCHW of latents to the true pictures of a label."""
    truth = world.truth(z, label, source.shape[-1]).to(source)
    return normalize(seen(clip, truth) - seen(clip, source))


def caption_directions(
    clip: ClipObjective, world: World, z: Latent, labels: tuple[str, str]
) -> UnitFeature | None:
    """Directions B,E between the captions that the world has of latents; None where it has none."""
    texts = [world.captions(z, label) for label in labels]
    if texts[0] is None or texts[1] is None:
        return None
    before, after = (clip.caption_features(each) for each in texts if each is not None)
    return normalize(after - before)


@torch.no_grad()
def direction_agreement(run: ZeroShotRun) -> list[dict[str, Any]]:
    """For every CLIP of a run the agreement, whole and individual, of the labels' direction, the learned
    words', that to pictures of the target, the captions', and of the best that one direction for all could be
    (`best`).

    Empty where the world of the source generator does not know the target or has latents of another width,
    and for diffusion models, whose pictures have no latent in a world.
    """
    config = run.config
    world = run.world
    domain = None if world is None else world.domain_of(config.target)
    if run.source.kind != "styles" or world is None or domain is None:
        return []
    if world.latent_dim != run.source.latent_dim:
        return []
    z = world.latents(SEEDS)
    w = run.source.map(z.to(run.device, run.dtype))
    pictures = torch.cat([run.source.synthesize(part, "buffers") for part in w.split(PART)]).to(run.dtype)
    learned = run.mapper(w) if run.mapper is not None else [None] * len(run.clips)
    rows = []
    for clip, words in zip(run.clips, learned, strict=True):
        true = true_directions(clip, world, z, pictures, domain)
        found: dict[str, Tensor | None] = {
            "label": clip.label_direction,
            "words": None if words is None else clip.text_direction(words),
            "pictures": None if clip.way is None else clip.way.direction,
            "captions": caption_directions(clip, world, z, (config.source, config.target)),
            "best": normalize(true.mean(dim=0, keepdim=True)),
        }
        cosines = {name: agreement(true, each) for name, each in found.items() if each is not None}
        rows.append({"clip": clip.name, "people": len(z), "cosines": cosines})
    return rows


def write_agreement(run: ZeroShotRun) -> None:
    """Writes the agreement into the folder of a run, where the truth is known."""
    if rows := direction_agreement(run):
        content = json.dumps(rows, indent=2) + "\n"
        write_bytes(run.loop.folder.path / AGREEMENT_FILE, content.encode())
