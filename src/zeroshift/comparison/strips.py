"""Strips: files that show the same seeds in a row, by the source, by every method and, where a world knows
it, in truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from zeroshift.comparison.jobs import RunJob
from zeroshift.comparison.variants import run_name, slug
from zeroshift.errors import InputError
from zeroshift.files.images import fitted, grid, write_png
from zeroshift.pictures.runs import Run
from zeroshift.pictures.sample import draw
from zeroshift.pictures.sheets import pair
from zeroshift.worlds.world import World

LARGEST = 256
"""Side in pixels of the pictures in a strip; larger ones are reduced."""


@dataclass(frozen=True)
class TargetStrips:
    """The strips of one target. `source` is None where the source generator cannot be found, `truth` where no
    world knows it."""

    target: str
    source: Path | None
    methods: list[tuple[str, Path]]
    """Label and strip of every method with a finished run whose generator can be read."""
    truth: Path | None
    seeds: list[int]
    """Seeds of the runs that drew the strips of the methods."""
    how: str
    """How the pictures were drawn, in words."""


def target_strips(jobs: Sequence[RunJob], count: int, folder: Path) -> list[TargetStrips]:
    """The strips of every target with a finished run, of seeds 0 to count - 1, in files in `folder`. Every
    method shows its first finished run. What was drawn before from the same generators is kept.
    """
    found = []
    for target in dict.fromkeys(job.config.target_name for job in jobs):
        firsts: dict[str, RunJob] = {}
        for job in jobs:
            if job.config.target_name == target and job.folder.finished:
                firsts.setdefault(job.label, job)
        runs = {label: Run(job.folder) for label, job in firsts.items()}
        if any(map(_is_readable, runs.values())):
            world = next(iter(firsts.values())).world()
            found.append(_strips_of(target, runs, world, range(count), folder))
    return found


def _is_readable(run: Run) -> bool:
    """Whether the adapted generator of a run can be read."""
    try:
        return run.generator is not None
    except InputError:
        return False


def _strips_of(
    target: str, runs: dict[str, Run], world: World | None, seeds: range, folder: Path
) -> TargetStrips:
    """The strips of a target, of one run per method, by its label."""
    example = next(filter(_is_readable, runs.values()))
    truth = None
    if world is not None:
        truth = _truth_strip(world, example.config.target, seeds, example.generator.image_size, folder)
    if world is None or truth is None:
        world = None
        truncation = example.config.run.truncation
        source_name = f"source-{truncation:g}.png"
    else:
        truncation = 1.0  # the true picture is that of the untruncated latent
        source_name = f"source-{slug(world.name)}.png"
    source = _strip(example, "source", folder / source_name, seeds, truncation, world)
    methods = []
    for label, run in runs.items():
        name = run_name(label, target, run.config.run.seed)
        path = _strip(run, "target", folder / f"{name}.png", seeds, truncation, world)
        if path is not None:
            methods.append((label, path))
    if example.generator.kind == "styles":
        how = f"truncation {truncation:g}"
    else:
        how = f"pictures of the {'source' if world is None else 'world'}, inverted and generated"
    run_seeds = sorted({run.config.run.seed for run in runs.values()})
    return TargetStrips(target, source, methods, truth, run_seeds, how)


def _truth_strip(world: World, target: str, seeds: range, size: int, folder: Path) -> Path | None:
    """File with the true pictures of a target; None for a target that the world does not know."""
    facts = {"seeds": _range_text(seeds), "target": target, "world": world.name}
    path = folder / f"truth--{slug(target)}.png"
    return _drawn_once(path, facts, lambda: world.truth_of_seeds(seeds, target, size))


def _strip(
    run: Run, which: str, path: Path, seeds: range, truncation: float, world: World | None
) -> Path | None:
    """File with pictures of the source or the adapted generator of a run; None where it cannot be found or
    read."""
    file = run.folder.generator_file
    if which == "source":
        mark = run.folder.environment["source"]["sha256"]
    else:
        mark = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
    facts = {"seeds": _range_text(seeds), "generator": mark, "truncation": f"{truncation:g}"}

    def drawn() -> Tensor:
        if run.generator.kind == "styles":  # drawn without the other, which may be gone
            return draw(run.source if which == "source" else run.generator, seeds, truncation)
        tuning = run.config.train.diffusion
        before, after = pair(run.source, run.generator, tuning, seeds, world=world)
        return before if which == "source" else after

    try:
        return _drawn_once(path, facts, drawn)
    except InputError:
        return None


def _range_text(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


def _drawn_once(path: Path, facts: dict[str, str], draw_pictures: Callable[[], Tensor | None]) -> Path | None:
    """A file with pictures BCHW in a row, drawn where it is not there with these facts; None where there are
    no pictures."""
    from PIL import Image

    if path.is_file():
        with Image.open(path) as file:
            if {name: file.info.get(name) for name in facts} == facts:
                return path
    pictures = draw_pictures()
    if pictures is None:
        return None
    write_png(path, grid(fitted(pictures, min(LARGEST, pictures.shape[-1])), columns=len(pictures)), facts)
    return path
