"""The verb `adapt`: a source generator moved to a target domain by a method of the table, and what it would
cost."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from zeroshift.config.methods import METHODS
from zeroshift.config.recipes import resolve
from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import resolve_device
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.files.shots import changed_shot
from zeroshift.measure.report import write_report_files
from zeroshift.methods.adaptation import AdaptationRun
from zeroshift.methods.agreement import write_agreement
from zeroshift.methods.backend import Given
from zeroshift.methods.costs import cost_of
from zeroshift.methods.prompts import PromptMapper, load_mapper
from zeroshift.methods.zero_shot import MAPPER_FILE, ZeroShotRun
from zeroshift.models import layers
from zeroshift.training.loop import Hook, Progress
from zeroshift.training.run_folder import RunFolder


@dataclass
class AdaptRun:
    """A run, finished now or before."""

    folder: RunFolder
    config: AdaptConfig
    source: Any
    generator: Any
    """The adapted generator: the running average of the weights."""
    mapper: PromptMapper | None = None
    """What writes the words of a picture, where the method learns words."""
    trained: Any = None
    """The weights of the last step, if any was done by this call."""
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
    state: Given | None = None,
    **overrides: Any,
) -> AdaptRun:
    """The source generator moved to the target domain, and the run folder that tells how.

    Options come from `config` and from `overrides`, see `config.recipes.resolve`: adapt(target="pencil
    sketch", seed=1). The same call again resumes; a finished run is returned at once. InputError before
    anything is written, RunError if the run itself fails.
    """
    resolved = resolve(config, **overrides)
    given = state or Given()
    folder = RunFolder.check(resolved)
    if folder.finished:
        if changed := changed_shot(resolved.shots, folder.environment.get("shots", [])):
            raise folder.other_shots(changed)
        return _concluded(_reopened(resolved, given))
    run = open_run(resolved, given, hook, progress)
    with run.loop.recorded():
        _method(resolved).train(run)
        if isinstance(run, ZeroShotRun):
            write_agreement(run)
    return _concluded(
        AdaptRun(
            folder=run.loop.folder,
            config=resolved,
            source=run.source,
            generator=run.folded(run.average),
            mapper=run.mapper,
            trained=run.folded(run.target),
            steps_done=run.loop.place.steps_done,
        )
    )


def open_run(
    config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> AdaptationRun:
    """A run of the method that a config names: models loaded, everything checked, nothing written."""
    return _method(config).open_run(config, given, hook, progress)


def _method(config: AdaptConfig) -> Any:
    """The file of the method that a config names."""
    return import_module(f"zeroshift.methods.{METHODS[config.method].file}")


def _reopened(config: AdaptConfig, given: Given) -> AdaptRun:
    """A finished run, read from its folder."""
    folder = RunFolder.load(config.folder)
    device = resolve_device(config.run.device)
    source: Any = (
        folder.find_source(config.generator)[0] if given.generator is None else given.generator.clone()
    )
    generator = load_generator_file(folder.generator_file)[0]
    mapper = load_mapper(folder.path / MAPPER_FILE).to(device) if config.learns_words else None
    return AdaptRun(folder, config, source.to(device), generator.to(device).eval(), mapper)


def _concluded(run: AdaptRun) -> AdaptRun:
    """The run, with its picture and report in the folder."""
    write_report_files(run.folder, run.source, run.generator)
    return run


@dataclass(frozen=True)
class Plan:
    """What a run would do, known without doing it."""

    config: AdaptConfig
    parameters: dict[str, int]
    """Number of weights: generator, movable at most, and every network that a run has besides."""
    layers: tuple[str, ...]
    """Layers that may move at some step."""
    select: int | None
    """Latents that adaptive selection frees at a time; None where the layers are fixed."""
    memory_bytes: int
    """Estimate of the peak, see `costs.Cost`."""
    resumes_at: tuple[int, int] | None
    """Stage and step of the checkpoint that the run would go on from."""


def plan(config: AdaptConfig | None = None, *, state: Given | None = None, **overrides: Any) -> Plan:
    """What `adapt` would do with the same arguments; loads the models, checks everything, writes nothing."""
    run = open_run(resolve(config, **overrides), state or Given())
    saved = run.loop.folder.load_checkpoint()
    train = run.config.train
    cost = cost_of(run)
    select = (
        (train.adaptive.top_k or layers.default_top_k(run.target)) if train.layers == "adaptive" else None
    )
    moving = run.loop.stages[2].trains["target"].weights
    return Plan(
        config=run.config,
        parameters=cost.parameters,
        layers=layers.moving_layers(run.target, moving),
        select=select,
        memory_bytes=cost.memory_bytes,
        resumes_at=(saved[1]["stage"], saved[1]["step"]) if saved else None,
    )
