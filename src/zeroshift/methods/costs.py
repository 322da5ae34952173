"""What a run needs, known before its first step: numbers of weights, and an estimate of its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zeroshift.methods.adaptation import AdaptationRun
from zeroshift.methods.adversarial import r1_penalty
from zeroshift.methods.few_shot import PATH_SHRINK, FewShotRun, random_latents, styles, target_path_lengths
from zeroshift.methods.views import draw_views, seen
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.models import layers


@dataclass(frozen=True)
class Cost:
    """What a run needs."""

    parameters: dict[str, int]
    """Number of weights: generator, movable at most, and every network that a run has besides."""
    memory_bytes: int
    """Estimate of the peak: weights, optimisers, and the activations of the largest step, measured on as few
    pictures as it can be measured on."""


def cost_of(run: AdaptationRun) -> Cost:
    """What a run needs; nothing of it is changed."""
    if isinstance(run, FewShotRun):
        return _few_shot(run)
    assert isinstance(run, ZeroShotRun)
    return _zero_shot(run)


def _zero_shot(run: ZeroShotRun) -> Cost:
    movable = run.backend.movable
    named = dict(run.target.named_parameters())
    counts = {
        "generator": _parameters(run.source),
        "movable": sum(named[name].numel() for name in movable),
        "mapper": 0 if run.mapper is None else _parameters(run.mapper),
    }
    clips = {clip.name: _parameters(clip) for clip in run.all_clips}
    # Source, target and average; gradients and two moments of what moves, or of the mapper.
    numbers = 3 * counts["generator"] + 3 * max(counts["movable"], counts["mapper"]) + counts["mapper"]
    memory = (numbers + sum(clips.values())) * run.dtype.itemsize + _zero_shot_activations(run)
    return Cost(counts | clips, memory)


def _few_shot(run: FewShotRun) -> Cost:
    """Shots are counted too; a method's own terms are not."""
    trained = run.trains
    moving = {part: sum(each.numel() for each in trained[part].weights.values()) for part in trained}
    counts = {
        "generator": _parameters(run.source),
        "movable": moving["target"],
        "discriminator": _parameters(run.discriminator),
        **{name: _parameters(each) for name, each in run.networks.items()},
    }
    networks = 3 * counts["generator"] + counts["discriminator"] + _parameters(run.networks)
    # Gradients are of one part at a time; two moments are of both.
    numbers = networks + max(moving.values()) + 2 * sum(moving.values()) + run.shots.numel()
    memory = numbers * run.dtype.itemsize + _few_shot_activations(run)
    return Cost(counts, memory)


def _parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


class Kept:
    """What autograd keeps for the way back, beside weights."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.owned = {each.untyped_storage().data_ptr() for net in networks for each in net.parameters()}
        self.sizes: dict[int, int] = {}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what is kept meanwhile; the caller holds the results until `bytes` is read, for freed
        storage would be used again and counted once."""

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            self.sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return sum(size for place, size in self.sizes.items() if place not in self.owned)


def _zero_shot_activations(run: ZeroShotRun) -> int:
    """Bytes that autograd keeps for the larger stage: measured on one picture, times the batch."""
    networks = [run.target, *(clip.clip for clip in run.clips), *([run.mapper] if run.mapper else [])]
    code = run.backend.probe(run.clips)
    sizes = [0]
    for stage in run.loop.stages:
        if stage == 1 and run.mapper is None:
            continue  # a first stage without pictures and without words keeps next to nothing
        layers.free(run.target, run.backend.movable)
        kept = Kept(networks)
        held: list[Any] = []
        with kept.counting():
            if stage == 1:
                for clip, words in zip(run.clips, run.words(code), strict=True):
                    held += [clip.prompt_features(words, label, 1) for label in (clip.source, *clip.targets)]
                batch = run.config.mapper.batch
            else:
                picture = run.backend.pictures(run.target, code, 1)
                shown = seen(picture, draw_views(run.config.train.views, picture, 0, "probe", 0))
                held += [shown, *(clip.encode_image(shown) for clip in run.clips)]
                batch = run.backend.most_at_once()
        sizes.append(batch * kept.bytes)
        held.clear()
    return max(sizes)


def _few_shot_activations(run: FewShotRun) -> int:
    """Bytes that autograd keeps for the largest of a step's four updates: of the discriminator, its penalty,
    the target, its penalty."""
    batch = run.config.train.batch
    networks = [run.target, run.discriminator]
    options = run.config.own.adversarial

    def kept_by(part: str, made: Any) -> int:
        run.free(part)
        kept = Kept(networks)
        with kept.counting():
            held = made()
        size = kept.bytes
        del held
        return size

    one = random_latents(run, "generator", 1, step=1)

    def judged() -> Any:
        picture = run.backend.draw(run.target, styles(run, run.target, one), "generator", 1)
        return picture, run.all_logits(picture, "generator", 1)

    def penalised() -> Any:
        real = run.shots[:1].detach().clone().requires_grad_()
        logits = run.judge(real, "r1", 1, precise=True)
        return logits, r1_penalty(logits, real)

    sizes = [
        2 * batch * kept_by("discriminator", lambda: run.all_logits(run.shots[:1], "real", 1)),
        batch * kept_by("target", judged),
    ]
    if options.r1:
        sizes.append(batch * kept_by("discriminator", penalised))
    if options.path:
        shrunk = max(1, batch // PATH_SHRINK)
        sizes.append(shrunk * kept_by("target", lambda: target_path_lengths(run, 1, one)))
    return max(sizes)
