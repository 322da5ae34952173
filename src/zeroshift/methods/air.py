"""AIR: anchors on the way to the target, from each of which the direction is estimated anew.

AIR, Adaptation with Iterative Refinement (arXiv 2506.10895). The further two domains lie apart, the less do
the directions of pictures and of labels agree, so from half of the steps on the generator as it is becomes an
anchor: a prompt is learned for it, and the direction from there to the target joins NADA's. Where the
authors' code is not followed: docs/adr/0033.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.clip.features import normalize
from zeroshift.clip.text import context_sentence
from zeroshift.methods import directions, losses
from zeroshift.methods.backend import Given
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.steps import Look, clip_terms, move_target, source_and_target
from zeroshift.methods.views import seen
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.shapes import Feature, Picture, Scalar, UnitFeature
from zeroshift.training.loop import Hook, Progress
from zeroshift.training.terms import Group, Terms

FLOOR = 0.05
"""Smallest divisor of directions from an anchor, whatever `quirks.image_floor` is: the way that is left is
short, and a target that has just become an anchor lies at no distance from it."""


# 1. The equations.


def anchor_steps(total: int, start: float, interval: float) -> dict[int, float]:
    """Step before which an anchor is made -> alpha, the share of the steps done then: after `start` of
    `total` steps, and then after every further `interval` of them. None before the first step has been
    done."""
    # In whole millionths, so that 0.5 + 0.1 + 0.1 is 0.7.
    shares = range(round(1e6 * start), 10**6, max(1, round(1e6 * interval)))
    done = dict.fromkeys(total * share // 10**6 for share in shares)
    return {each + 1: each / total for each in done if 0 < each < total}


def offset(anchor: UnitFeature, previous: UnitFeature) -> UnitFeature:
    """DeltaI_A = n( mean_i [ n(E_I(G_A(z_i))) - n(E_I(G_prev(z_i))) ] ), shape 1,E, of the means 1,E over
    pictures."""
    return normalize(anchor - previous)


def start_words(source: Tensor, targets: Sequence[Tensor], shares: Sequence[float], alpha: float) -> Tensor:
    """(1 - alpha) source + alpha sum_i share_i target_i, token vectors T,D where an anchor's words start.

    Labels have different numbers of tokens; the last of a shorter one stands for those that it lacks.
    """
    length = max(len(each) for each in (source, *targets))

    def stretched(tokens_TD: Tensor) -> Tensor:
        return torch.cat([tokens_TD, tokens_TD[-1:].expand(length - len(tokens_TD), -1)])

    there = [share * stretched(each) for share, each in zip(shares, targets, strict=True)]
    return (1 - alpha) * stretched(source) + alpha * torch.stack(there).sum(dim=0)


def prompt_loss(image_offset: UnitFeature, anchor: UnitFeature, previous: Feature) -> Scalar:
    """1 - cos( DeltaI_A, n( mean_k (P_A - P_prev,k) ) ): the prompts 1,E of two anchors must differ as their
    pictures do. P_prev is P,E at first: the source label in every template."""
    return 1 - (image_offset * normalize((anchor - previous).mean(dim=0, keepdim=True))).sum()


def adaptive_direction(target: Feature, anchor: UnitFeature) -> UnitFeature:
    """d = n( mean_k (T_k - P_A) ), shape 1,E, of the target's unit features P,E in every template, or of
    their mean 1,E."""
    return normalize((target - anchor).mean(dim=0, keepdim=True))


# 2. Anchors.


@dataclass(frozen=True)
class Anchor:
    """A generator on the way, and what is known of it. Of the source, the start of all ways, too."""

    generator: Any
    means: list[UnitFeature]
    """For every CLIP the mean 1,E of the unit features of its pictures of fixed latents."""
    prompts: list[Feature]
    """For every CLIP P_A 1,E; of the source the mean over templates."""

    def directions(self, clips: Sequence[ClipObjective]) -> list[UnitFeature]:
        """For every CLIP the direction 1,E from here to the target."""
        return [
            adaptive_direction(clip.target_mean[None], prompt)
            for clip, prompt in zip(clips, self.prompts, strict=True)
        ]


class AirRun(ZeroShotRun):
    """A run that carries its last anchor along: a checkpoint holds its weights, means and prompts."""

    anchor: Anchor | None = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the backend carries, and the anchor."""
        tensors, facts = super().state()
        if self.anchor is None:
            return tensors, facts
        weights = self.anchor.generator.state_dict()
        tensors |= {f"anchor/weights/{name}": weights[name] for name in self.backend.movable}
        for number, (mean, prompt) in enumerate(zip(self.anchor.means, self.anchor.prompts, strict=True)):
            tensors |= {f"anchor/mean/{number}": mean, f"anchor/prompt/{number}": prompt}
        return tensors, facts

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with what `state` gave."""
        super().resume(tensors, facts)
        if "anchor/prompt/0" not in tensors:
            return
        generator = self.frozen_target()
        weights = {name: tensors[f"anchor/weights/{name}"] for name in self.backend.movable}
        generator.load_state_dict(weights, strict=False)
        means, prompts = (
            [tensors[f"anchor/{what}/{number}"].to(self.device) for number in range(len(self.clips))]
            for what in ("mean", "prompt")
        )
        self.anchor = Anchor(generator, means, prompts)

    def frozen_target(self) -> Any:
        """A frozen copy of the target, into which weights can be loaded."""
        return self.target.clone().requires_grad_(False)


def open_run(config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None) -> AirRun:
    """A run of AIR, loaded and checked; nothing is written."""
    return AirRun(config, given, hook, progress)


def made_anchor(run: AirRun, alpha: float) -> Anchor:
    """The target as it is, as an anchor; `alpha` is the share of the steps that are done."""
    last = run.anchor or Anchor(
        run.source,
        mean_features(run, run.source),
        [clip.source.template_mean[None] for clip in run.clips],
    )
    generator = run.frozen_target()
    means = mean_features(run, generator)
    prompts = [
        learned_prompt(run, clip, offset(mean, previous_mean), previous, alpha)
        for clip, mean, previous_mean, previous in zip(
            run.clips, means, last.means, last.prompts, strict=True
        )
    ]
    return Anchor(generator, means, prompts)


@torch.no_grad()
def mean_features(run: ZeroShotRun, generator: Any) -> list[UnitFeature]:
    """For every CLIP the mean 1,E of the unit features of a generator's pictures of fixed latents."""
    options = run.config.own.air
    count = 0
    sums: list[Tensor] = [torch.zeros((), device=run.device, dtype=run.dtype) for _ in run.clips]
    for pictures in run.backend.fixed_pictures(generator, options.offset_pictures, options.offset_truncation):
        count += len(pictures)
        for number, clip in enumerate(run.clips):
            found = normalize(clip.encode_image(pictures)).sum(dim=0, keepdim=True)
            sums[number] = sums[number] + found
    return [each / count for each in sums]


def learned_prompt(
    run: ZeroShotRun, clip: ClipObjective, image_offset: UnitFeature, previous: Feature, alpha: float
) -> UnitFeature:
    """P_A 1,E: unit feature of words that are learned until prompts differ as pictures do."""
    options = run.config.own.air
    sentences = [
        context_sentence(clip.context, label.text, period=False) for label in (clip.source, *clip.targets)
    ]
    with torch.no_grad():
        source, *targets = (clip.clip.embed_tokens(each) for each in sentences)
        start = start_words(source, targets, [label.share for label in clip.targets], alpha)
    words = nn.Parameter(start)
    adam = torch.optim.Adam([words], lr=options.prompt_lr)

    def prompt() -> UnitFeature:
        with clip.precision.autocast():
            return normalize(clip.clip.encode_prompts(words[None], sentences[0], replaced=len(source)))

    for _ in range(options.prompt_steps):
        loss = prompt_loss(image_offset, prompt(), previous)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
    return prompt().detach()


# 3. The training.


def train(run: AirRun) -> None:
    """NADA's steps; once there is an anchor, its direction counts too."""
    options = run.config.own.air
    due = anchor_steps(run.config.train.steps, options.start, options.interval)
    for step in run.loop.steps(2):
        # 1. the anchor, where one is due, and its pictures
        if step in due:
            run.anchor = made_anchor(run, due[step])
        codes = run.backend.codes(step)
        text_directions = run.text_directions(codes)
        anchor_pictures = pictures_of_anchor(run, codes, step)
        # 2. NADA's pair and losses
        pair = source_and_target(run, codes, step)
        terms = Terms()
        said = clip_terms(run, terms, pair, text_directions)
        # 3. the direction from the anchor
        if run.anchor is not None and anchor_pictures is not None:
            with torch.no_grad():
                shown = seen(anchor_pictures, pair.views)
                features = [clip.encode_image(shown) for clip in run.clips]
            for (added, look), feature, wanted in zip(
                said, features, run.anchor.directions(run.clips), strict=True
            ):
                anchor_terms(run, added, look, feature, wanted)
        # 4. generator, and its running average
        move_target(run, terms, pair)


@torch.no_grad()
def pictures_of_anchor(run: AirRun, codes: Any, step: int) -> Picture | None:
    """The anchor's pictures BCHW of a step, before the target's: a diffusion model's own go on from there.
    None before the first anchor."""
    return None if run.anchor is None else run.backend.pictures(run.anchor.generator, codes, step)


def anchor_terms(run: ZeroShotRun, added: Group, look: Look, anchor: Feature, wanted: UnitFeature) -> None:
    """Adds 1 - cos( n(E(G_t w)) - n(E(G_A w)), d ), by its logarithm where the method does so."""
    weight = run.config.own.air.weight
    directional = losses.directional(directions.image_direction(anchor, look.target, FLOOR), wanted)
    if run.procedure.log_direction:
        added.add("anchor", directional, 0.0)
        added.add("log_anchor", losses.log_direction(directional), weight)
    else:
        added.add("anchor", directional, weight)
