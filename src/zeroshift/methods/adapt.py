"""START HERE. The two-stage zero-shot trainer: stage 1 learns the words of every picture, stage 2 moves the
generator.

IPL: Guo et al., Zero-shot Generative Model Adaptation via Image-specific Prompt Learning (CVPR 2023). NADA
(Gal et al., SIGGRAPH 2022) is stage 2 alone, with one fixed direction. The loops of `adapt` are the method;
the rest serves them.

Steps count from 1. Every draw is keyed by (seed, stage, step, sample), so a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from zeroshift.config.recipes import resolve
from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import resolve_device
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.measure.report import conclude
from zeroshift.methods.diffusion_backend import DiffusionTrainer
from zeroshift.methods.prompts import PromptMapper, load_mapper
from zeroshift.methods.style_backend import StyleTrainer
from zeroshift.models import layers as trainable
from zeroshift.models.protocol import Generator
from zeroshift.training.loop import Hook, Injected, Progress, Trainer, open_source
from zeroshift.training.run_folder import RunFolder

MEAN_CODES = 256
"""Codes over which the mean direction of learned words is taken."""

__all__ = ["AdaptRun", "Injected", "Plan", "adapt", "plan", "resolve", "trainer_of"]


@dataclass
class AdaptRun:
    """A finished run. `generator` is the result (EMA weights); `trained` the weights of the last step, if any
    was done here."""

    folder: RunFolder
    config: AdaptConfig
    source: Any
    generator: Any
    mapper: PromptMapper | None = None
    trained: Any = None
    steps_done: int = 0
    """Steps that this call did; 0 where the folder already held the finished run."""

    @property
    def finished(self) -> bool:
        """Whether the folder holds the final weights."""
        return self.folder.finished


def adapt(
    config: AdaptConfig | None = None,
    *,
    hook: Hook | None = None,
    progress: Progress | None = None,
    state: Injected | None = None,
    **overrides: Any,
) -> AdaptRun:
    """The source generator moved to the target domain, and the run folder that tells how.

    Options come from `config` and from `overrides`, see `resolve`: adapt(target="pencil sketch", seed=1). The
    same call again resumes; a finished run is returned at once. InputError before anything is written,
    RunError if the run itself fails.
    """
    cfg, given = resolve(config, **overrides), state or Injected()
    if RunFolder.check(cfg).finished:
        return concluded(reopened(cfg, given))
    run = trainer_of(cfg, given, hook, progress)
    run.load()
    source, guides = run.source, run.guides
    with run.recorded():
        for step in run.steps(1):  # learn the words of every picture
            # 1. codes of some pictures (their styles, where the generator has any), and what every CLIP sees
            # in them
            codes, images = run.seen(step)
            # 2. prompts
            words = run.mapper(codes)
            # 3. losses
            terms = [guide.word_losses(*each) for guide, *each in zip(guides, words, images, strict=True)]
            # 4. mapper
            run.update(step, terms)
        settle(run)
        for step in run.steps(2):  # move the generator
            # 1. codes
            codes = run.codes(step)
            # 2. prompts
            with torch.no_grad():
                words = run.mapper(codes) if cfg.learns_words else [None] * len(guides)
            texts = [guide.direction_of(each) for guide, each in zip(guides, words, strict=True)]
            # 3. pictures of source and target, once it is known which layers may move
            run.free_layers(step)
            with torch.no_grad():
                before = run.pictures(source, codes, step)
            after = run.pictures(run.target, codes, step)
            # 4. losses
            terms = [
                run.compare(guide, before, after, text, step)
                for guide, text in zip(guides, texts, strict=True)
            ]
            # 5. generator, and its running average
            run.update(step, terms)
            run.average()
    mapper = run.mapper if cfg.learns_words else None
    return concluded(AdaptRun(run.folder, cfg, source, run.ema, mapper, run.target, run.steps_done))


def trainer_of(
    config: AdaptConfig, given: Injected, hook: Hook | None = None, progress: Progress | None = None
) -> Trainer:
    """The machinery that suits the source generator, which is loaded for that. Nothing is written."""
    opened = open_source(config, given)
    made = StyleTrainer if isinstance(opened[0], Generator) else DiffusionTrainer
    return made(config, given, hook, progress, opened)


@torch.no_grad()
def settle(run: Trainer) -> None:
    """Takes the mean of the words' directions off each guide's, where `mapper.mean` wants the label's in its
    place."""
    if run.config.method == "ipl" and run.config.mapper.mean == "label":
        words = run.mapper(run.many_codes(MEAN_CODES))
        run.guides[:] = [guide.about_label(each) for guide, each in zip(run.guides, words, strict=True)]


def reopened(config: AdaptConfig, given: Injected) -> AdaptRun:
    """A finished run, read from its folder."""
    folder, device = RunFolder.load(config.folder), resolve_device(config.run.device)
    source: Any = (
        given.generator.clone() if given.generator is not None else folder.find_source(config.generator)[0]
    )
    generator = load_generator_file(folder.generator_file)[0]
    mapper = load_mapper(folder.mapper_file).to(device) if config.learns_words else None
    return AdaptRun(folder, config, source.to(device), generator.to(device).eval(), mapper)


def concluded(run: AdaptRun) -> AdaptRun:
    """The run, with its picture and report in the folder."""
    conclude(run.folder, run.source, run.generator)
    return run


@dataclass(frozen=True)
class Plan:
    """What a run would do, known without doing it."""

    config: AdaptConfig
    parameters: dict[str, int]
    """Number of weights: generator, movable at most, mapper, and each CLIP."""
    layers: tuple[str, ...]
    """Layers that may move at some step."""
    select: int | None
    """Latents that adaptive selection frees at a time; None where the layers are fixed."""
    memory_bytes: int
    """Estimate of the peak: weights, optimiser, and the activations of the larger stage, measured on one
    picture."""
    resumes_at: tuple[int, int] | None
    """Stage and step of the checkpoint that the run would go on from."""


def plan(config: AdaptConfig | None = None, *, state: Injected | None = None, **overrides: Any) -> Plan:
    """What `adapt` would do with the same arguments; loads the models, checks everything, writes nothing."""
    run = trainer_of(resolve(config, **overrides), state or Injected())
    run.load()
    saved = run.folder.load_checkpoint()
    movable, layers = set(run.weights), run.target.layers()
    train, clips = run.config.train, run.clips
    counts = {
        "generator": _count(run.source),
        "movable": sum(weight.numel() for weight in run.weights.values()),
    }
    counts |= {"mapper": _count(run.mapper)} | {clip.name: _count(clip) for clip in clips}
    adaptive = train.layers == "adaptive"
    # Source, target and average; gradients and two moments of what moves, or of the mapper.
    numbers = (
        3 * counts["generator"]
        + 3 * max(counts["movable"], counts["mapper"])
        + counts["mapper"]
        + sum(map(_count, clips))
    )
    return Plan(
        config=run.config,
        parameters=counts,
        layers=tuple(layer.name for layer in layers if movable.issuperset(layer.parameters)),
        select=(train.top_k or trainable.default_top_k(run.target)) if adaptive else None,
        memory_bytes=numbers * run.dtype.itemsize + _activations(run),
        resumes_at=(saved[1]["stage"], saved[1]["step"]) if saved else None,
    )


def _count(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _activations(run: Trainer) -> int:
    """Bytes that autograd keeps for the larger stage: measured on one picture, times the batch."""
    config, sizes = run.config, [0]
    owned = {
        each.untyped_storage().data_ptr() for part in (run.target, run.mapper) for each in part.parameters()
    }
    owned |= {each.untyped_storage().data_ptr() for guide in run.guides for each in guide.clip.parameters()}
    for stage in (1, 2) if config.learns_words else (2,):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        run.stage = stage
        code = run.trial()
        trainable.free(run.target, run.weights)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if stage == 1:
                # Held until the sizes are read: freed storage would be reused and counted once.
                held = [
                    guide.word_losses(words, guide.text_direction)
                    for guide, words in zip(run.guides, run.mapper(code), strict=True)
                ]
                batch = config.mapper.batch
            else:
                picture = run.pictures(run.target, code, 1)
                held = [guide.see(picture) for guide in run.guides]
                batch = run.most_at_once()
        sizes.append(batch * sum(size for place, size in kept.items() if place not in owned))
        del held
    return max(sizes)
