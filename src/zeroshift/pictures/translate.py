"""Pictures of one's own in the target domain: into noise with the source model of a run, back with the
adapted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshift.errors import InputError
from zeroshift.files.images import fitted, labelled_rows, picture_files, read_picture, write_png
from zeroshift.models.diffusion import DiffusionGenerator
from zeroshift.models.mixing import Predictor, between, check_strength, mixture
from zeroshift.pictures.inversion import Progress, Route, brought_into_domain, translated
from zeroshift.pictures.runs import Adapted, Run, load

Pictures = Tensor | str | Path | Sequence[str | Path]
"""Pictures BCHW in [-1, 1], or files and folders of them."""


def translate(
    run: Adapted | str | Path,
    pictures: Pictures,
    *,
    strength: float = 1.0,
    t0: int | None = None,
    steps: int | None = None,
    unseen: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures BCHW in [-1, 1] on the CPU in the target domain of a run of a diffusion model (or its folder).

    `strength` mixes the predictions of source (0) and adapted model (1), or goes beyond it (up to 2). `t0`
    and `steps` default to the run's. `unseen` pictures are first drawn into the source's domain that many
    times, with the noise of `seed`. A run given by its folder is loaded on a GPU where there is one.
    InputError where the run is of another kind of generator, or a picture cannot be read.
    """
    check_strength(strength)
    source, target, route = _models(run, t0, steps)
    return _translate(source, pictures, route, between(source, target, strength), unseen, seed, progress)


def translate_mixed(
    runs: Sequence[Adapted | str | Path],
    pictures: Pictures,
    schedule: Mapping[int, Sequence[float]] | None = None,
    *,
    t0: int | None = None,
    steps: int | None = None,
    unseen: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures with several changes at once: the predictions of several runs of one source, mixed by ratios.

    `schedule` maps times to one ratio per run, {0: [0.5, 0.5]} or {300: [1, 0], 0: [0.2, 0.8]}: from 300 up
    the first alone; None is equal parts. `t0` and `steps` default to those of the first run; `unseen` and
    `seed` as in `translate`.
    """
    if not runs:
        raise InputError("runs is empty; give at least one run of a diffusion model.")
    opened = [_models(run, t0, steps) for run in runs]
    first, _, route = opened[0]
    if any(not _same_model(first, source) for source, _, _ in opened[1:]):
        raise InputError(
            "the runs began from different source models, so their changes cannot be mixed; give runs of one."
        )
    parts = schedule or {0: [1.0] * len(runs)}
    predict = mixture([target for _, target, _ in opened], parts)
    return _translate(first, pictures, route, predict, unseen, seed, progress)


def parse_schedule(texts: Sequence[str], count: int) -> dict[int, list[float]]:
    """The schedule of `translate_mixed` for `count` runs, written TIME:RATIO,RATIO,...; of no texts, equal
    parts."""
    schedule: dict[int, list[float]] = {}
    for text in texts:
        time, colon, listed = text.partition(":")
        try:
            at = int(time)
            ratios = [float(part) for part in listed.split(",")]
        except ValueError:
            raise InputError(
                f"{text!r} is no part of a schedule; write TIME:RATIO,RATIO,... as in 300:1,0 0:0.2,0.8."
            ) from None
        if at in schedule:
            raise InputError(f"the schedule names time {at} twice.")
        schedule[at] = ratios
    return schedule or {0: [1.0] * count}


def read_pictures(pictures: Pictures, size: int) -> tuple[Tensor, list[str]]:
    """Pictures BCHW in [-1, 1] of a size, and a name for each, unique among them. InputError where there are
    none or one cannot be read."""
    if isinstance(pictures, Tensor):
        if pictures.dim() != 4 or not len(pictures) or float(pictures.abs().max()) > 1.01:
            raise InputError(f"pictures must be BCHW in [-1, 1], got the shape {tuple(pictures.shape)}.")
        return fitted(pictures.float(), size), [f"picture{number:05d}" for number in range(len(pictures))]
    given = [pictures] if isinstance(pictures, str | Path) else pictures
    paths = [path for each in map(Path, given) for path in (picture_files(each) if each.is_dir() else [each])]
    if not paths:
        raise InputError("there are no pictures to translate; give PNG or JPEG files, or folders with some.")
    names = [path.stem for path in paths]
    unique = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]
    return torch.cat([fitted(read_picture(path)[None], size) for path in paths]), unique


def save_translated(
    runs: Sequence[Run], pictures: Pictures, made: Tensor, folder: Path, options: Mapping[str, Any]
) -> list[Path]:
    """Paths of before_after.png and of one PNG per picture, named after it, with the options in their
    metadata."""
    given, names = read_pictures(pictures, made.shape[-1])
    config = runs[0].config
    targets = " + ".join(run.config.target_name for run in runs)
    metadata = {"method": config.method, "source": config.source, "target": targets}
    metadata |= {
        name: value if isinstance(value, str) else f"{value:g}"
        for name, value in options.items()
        if value is not None
    }
    paths = [folder / "before_after.png", *(folder / f"{name}.png" for name in names)]
    try:
        shown = [("before", given[:8]), (targets, made[:8])]
        for path, picture in zip(paths, [labelled_rows(shown), *made], strict=True):
            write_png(path, picture, metadata)
    except OSError as error:
        raise InputError(
            f"cannot write pictures to {folder}: {error.strerror}; choose another --out."
        ) from error
    return paths


def _models(
    run: Adapted | str | Path, t0: int | None, steps: int | None
) -> tuple[DiffusionGenerator, DiffusionGenerator, Route]:
    """Source and adapted model of a run, and the route of its pictures."""
    is_name = isinstance(run, str | Path)
    opened: Any = load(Path(run)) if is_name else run
    name = str(run) if is_name else "what was given"
    generator: Any = getattr(opened, "generator", opened)
    if generator.kind != "diffusion":
        raise InputError(
            f"translate needs runs of diffusion models, and {name} is of a generator with styles: there is "
            "no way back from a picture to a style here. Adapt a diffusion model with --generator "
            "portraits-ddpm."
        )
    if generator is opened:
        raise InputError(
            f"translate needs a run, and {name} is a model that was not adapted; give the folder of a run "
            "of it."
        )
    last = generator.num_steps - 1
    if t0 is not None and not 0 < t0 <= last:
        raise InputError(f"t0 must be a time between 1 and {last}, got {t0}.")
    if steps is not None and not 2 <= steps <= last + 1:
        raise InputError(f"steps must be between 2 and the {last + 1} times of the model, got {steps}.")
    return opened.source, generator, Route.of(opened.config.train.diffusion, t0, steps)


def _translate(
    source: DiffusionGenerator,
    pictures: Pictures,
    route: Route,
    predict: Predictor,
    unseen: int,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Pictures BCHW on the CPU that `predict` makes of the inverted pictures."""
    if unseen < 0:
        raise InputError(f"unseen must be 0 or more, got {unseen}.")
    given = read_pictures(pictures, source.image_size)[0].to(next(source.parameters()))
    if unseen:
        given = brought_into_domain(source, given, seed, t0=route.t0, repeats=unseen)
    return translated(source, given, route, predict, progress).float().cpu()


def _same_model(first: DiffusionGenerator, second: DiffusionGenerator) -> bool:
    """Whether two models compute the same."""
    theirs = second.state()
    return first.config == second.config and all(
        torch.equal(value, theirs[name]) for name, value in first.state().items()
    )
