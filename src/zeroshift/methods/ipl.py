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

from zeroshift.methods import losses
from zeroshift.methods.steps import clip_terms, move_target, source_and_target
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.methods.zero_shot import open_run as open_run
from zeroshift.training.terms import Terms


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
            target_prompts = [clip.prompt_features(clip_words, each, stage=1) for each in clip.targets]
            added = terms.group(clip.weight)
            if run.shares_words:
                # Words that all images share cannot tell them apart; CoOp classifies images as source, not
                # target.
                labels = torch.cat([prompt[:1] for prompt in (source_prompt, *target_prompts)])
                classification = losses.classification(image, labels, clip.logit_scale)
                added.add("classification", classification)
            else:
                contrastive = losses.contrastive(image, source_prompt, clip.logit_scale)
                added.add("contrastive", contrastive)
            domain = torch.stack(
                [
                    label.share * losses.domain(prompt, label.template_mean)
                    for label, prompt in zip(clip.targets, target_prompts, strict=True)
                ]
            ).sum()
            domain_source = losses.domain(source_prompt, clip.source.template_mean)
            added.add("domain", domain, options.lambda_domain)
            added.add("domain_source", domain_source, options.lambda_domain * options.lambda_source)
        # 4. mapper
        run.tell(terms)
        run.loop.update("mapper", terms)


def move_generator(run: ZeroShotRun) -> None:
    """Stage 2: the target generator moves until every image, seen from its source image, lies in its own
    direction."""
    for step in run.loop.steps(2):
        # 1. codes, and the directions of the learned words
        codes = run.backend.codes(step)
        text_directions = run.text_directions(codes)
        # 2. images of source and target
        pair = source_and_target(run, codes, step)
        # 3. losses of every CLIP
        terms = Terms()
        clip_terms(run, terms, pair, text_directions)
        # 4. generator, and its running average
        move_target(run, terms, pair)
