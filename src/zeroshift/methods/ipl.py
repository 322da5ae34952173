"""START HERE. IPL: stage 1 learns the words of every picture, stage 2 moves the generator along their
directions.

Guo et al., Zero-shot Generative Model Adaptation via Image-specific Prompt Learning (CVPR 2023). Its
relatives are the same two loops with one thing changed: CoOp's words are the same for all pictures, NADA (Gal
et al., SIGGRAPH 2022) and DiffusionCLIP (Kim et al., CVPR 2022) have no stage 1 and one fixed direction
(`config/methods.py`). `docs/method.md` maps every equation.

Every draw is keyed by (seed, stage, step, sample), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import torch

from zeroshift.clip.features import normalize
from zeroshift.methods import directions, losses
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.zero_shot import PATCH_PX, ZeroShotRun
from zeroshift.methods.zero_shot import open_run as open_run
from zeroshift.models.seeds import rng
from zeroshift.shapes import Feature, Picture
from zeroshift.training.terms import Group, Terms


def train(run: ZeroShotRun) -> None:
    """Both stages, from where the run stands."""
    learn_words(run)
    run.recentre_directions()
    move_generator(run)


def learn_words(run: ZeroShotRun) -> None:
    """Stage 1: a mapper learns to write, for every source image, the words of a prompt of its own.

    The contrastive loss ties the words to the image, the domain loss ties them to the labels.
    """
    options = run.config.mapper
    for step in run.loop.steps(1):
        assert run.mapper is not None
        # 1. codes of some images, and what every CLIP sees in them
        codes, images = run.backend.source_features(step, run.clips)
        # 2. learned words
        words = run.mapper(codes)
        # 3. losses
        terms = Terms()
        for clip, clip_words, image in zip(run.clips, words, images, strict=True):
            source_prompt = clip.prompt_features(clip_words, clip.source, stage=1)
            target_prompt = clip.prompt_features(clip_words, clip.target, stage=1)
            added = terms.group(clip.weight)
            if run.shares_words:
                # Words that all images share cannot tell them apart; CoOp classifies images as source, not
                # target.
                labels = torch.cat([source_prompt[:1], target_prompt[:1]])
                classification = losses.classification(image, labels, clip.logit_scale)
                added.add("classification", classification)
            else:
                contrastive = losses.contrastive(image, source_prompt, clip.logit_scale)
                added.add("contrastive", contrastive)
            domain = losses.domain(target_prompt, clip.target.template_mean)
            domain_source = losses.domain(source_prompt, clip.source.template_mean)
            added.add("domain", domain, options.lambda_domain)
            added.add("domain_source", domain_source, options.lambda_domain * options.lambda_source)
        # 4. mapper
        run.tell(terms)
        run.loop.update("mapper", terms)


def move_generator(run: ZeroShotRun) -> None:
    """Stage 2: the target generator moves until every image, seen from its source image, lies in its own
    direction."""
    backend = run.backend
    floor = run.config.quirks.image_floor
    for step in run.loop.steps(2):
        # 1. codes, and the learned words
        codes = backend.codes(step)
        with torch.no_grad():
            words = run.words(codes)
        # 2. images of source and target, once it is known which layers may move
        backend.free_layers(step, run.clips)
        with torch.no_grad():
            source_images = backend.pictures(run.source, codes, step)
            source_features = backend.encode_source(run.clips, source_images, step)
        target_images = backend.pictures(run.target, codes, step)
        # 3. losses
        terms = Terms()
        for clip, clip_words, source in zip(run.clips, words, source_features, strict=True):
            target = clip.encode_image(target_images)
            text_direction = clip.text_direction(clip_words)
            image_direction = directions.image_direction(source, target, floor)
            directional = losses.directional(image_direction, text_direction)
            added = terms.group(clip.weight)
            add_directional(run, added, directional)
            add_other_clip_losses(run, added, clip, source, target)
            if run.config.losses.patch:
                patch = patch_loss(run, clip, source_images, target_images, step)
                added.add("patch", patch, run.config.losses.patch)
            run.tell_directions(image_direction, text_direction)
        run.tell(terms, source_images, target_images)
        run.picture_losses.add_to(terms, source_images, target_images, backend.faces(target_images))
        # 4. generator, and its running average
        run.loop.update("target", terms, lr=backend.learning_rate(step))
        run.loop.average()


def add_directional(run: ZeroShotRun, added: Group, directional: torch.Tensor) -> None:
    """Adds the directional loss, by its logarithm where the method does so (DiffusionCLIP)."""
    weight = run.config.losses.direction
    if not weight:
        return
    if run.procedure.log_direction:
        added.add("direction", directional, 0.0)
        added.add("log_direction", losses.log_direction(directional), weight)
    else:
        added.add("direction", directional, weight)


def add_other_clip_losses(
    run: ZeroShotRun, added: Group, clip: ClipObjective, source: Feature, target: Feature
) -> None:
    """Adds what NADA's code offers beside the directional loss; all of it is off by default."""
    weights = run.config.losses
    if not (weights.global_clip or weights.manifold):
        return
    source_unit = normalize(source)
    target_unit = normalize(target)
    if weights.global_clip:
        global_clip = losses.global_clip(target_unit, clip.target_sentence_feature, clip.global_scale)
        added.add("global_clip", global_clip, weights.global_clip)
    if weights.manifold:
        cosine = normalize(clip.source.template_mean) @ normalize(clip.target.template_mean)
        added.add("manifold", losses.manifold(source_unit, target_unit, cosine), weights.manifold)


def patch_loss(
    run: ZeroShotRun, clip: ClipObjective, source_images: Picture, target_images: Picture, step: int
) -> torch.Tensor:
    """NADA's patch loss, for the same random square of source and target images."""
    assert clip.part_directions is not None
    size = run.source.image_size
    count = len(target_images)
    draw = rng("patch", run.config.run.seed, step)
    centers = torch.randint(PATCH_PX // 2, size - PATCH_PX // 2, (count, 2), generator=draw)
    with torch.no_grad():
        source = clip.encode_image(losses.crop_patches(source_images, centers, PATCH_PX))
    target = clip.encode_image(losses.crop_patches(target_images, centers, PATCH_PX))
    patch_direction = directions.image_direction(source, target, run.config.quirks.image_floor)
    return losses.patch(patch_direction, clip.part_directions)
