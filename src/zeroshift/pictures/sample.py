"""Pictures from seeds: of a generator, or of a run between its source and what was adapted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from zeroshift import __version__
from zeroshift.errors import InputError
from zeroshift.models.diffusion import SAMPLE_STEPS
from zeroshift.models.protocol import PictureGenerator
from zeroshift.pictures.runs import Adapted, Progress, Run, drawing, load, sample_run

MAX_SEEDS = 10_000
"""More pictures than this in one call are almost surely a slip of the pen."""


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list such as "0-15" or "1,4,7-9", in the order written."""
    seeds: list[int] = []
    for part in (piece.strip() for piece in text.split(",")):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if match is None:
            raise InputError(
                f"seeds must be numbers and ranges such as 0-15 or 1,4,7-9, got {part!r} in {text!r}."
            )
        first = int(match[1])
        last = int(match[2] or match[1])
        if last < first:
            raise InputError(f"the range {part!r} in seeds runs backwards; write {last}-{first}.")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise InputError(f"seeds {text!r} are more than {MAX_SEEDS}; ask for fewer at a time.")
        seeds += range(first, last + 1)
    return seeds


def draw(
    generator: PictureGenerator,
    seeds: Sequence[int] | range,
    truncation: float = 1.0,
    batch: int = 16,
    *,
    steps: int | None = None,
    eta: float | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures BCHW in [-1, 1] on the CPU, one per seed. A seed's picture does not depend on the others or on
    the batch.

    `steps` and `eta` are for diffusion models, a `truncation` other than 1 for generators with styles:
    InputError where another kind is asked for them.
    """
    tell = drawing(progress)
    return generator.sample(seeds, truncation=truncation, steps=steps, eta=eta, batch=batch, progress=tell)


def sample(
    run_or_generator: Adapted | PictureGenerator | str | Path,
    seeds: Sequence[int] | range,
    truncation: float | None = None,
    strength: float = 1.0,
    *,
    steps: int | None = None,
    eta: float | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures BCHW in [-1, 1], one per seed, of a run (or its folder) or a generator (or its file, name or
    reference).

    `truncation` None takes the run's own, 1 for a bare generator. `strength` moves between source (0), target
    (1) and beyond (up to 2); it needs a run, because only that knows its source. `steps` (None: the run's
    own, 50 for a bare generator) and `eta` (None: 0, deterministic) say how a diffusion model draws. What is
    given by name is loaded on a GPU where there is one; `load` takes another device.
    """
    is_name = isinstance(run_or_generator, (str, Path))
    run = load(run_or_generator) if is_name else run_or_generator
    if not isinstance(run, PictureGenerator):
        return sample_run(run, seeds, truncation, strength, steps, eta, progress)
    if strength != 1.0:
        raise InputError(
            f"strength {strength} needs a run, which knows its source; load one with zeroshift.load(RUN)."
        )
    psi = 1.0 if truncation is None else truncation
    return draw(run, seeds, psi, steps=steps, eta=eta, progress=progress)


def metadata_of(
    spec: str | Path,
    run: Run | PictureGenerator,
    truncation: float | None = None,
    strength: float = 1.0,
    steps: int | None = None,
    eta: float | None = None,
) -> dict[str, str]:
    """What the metadata of a picture say beside its seed: program, run or file, and how it was drawn."""
    if isinstance(run, PictureGenerator):
        generator = run
        own_truncation = 1.0
        own_steps = SAMPLE_STEPS
        metadata = {"generator": Path(spec).name}
    else:
        generator = run.generator
        own_truncation = run.config.run.truncation
        own_steps = run.config.train.diffusion.sample_steps
        metadata = {
            "method": run.config.method,
            "source": run.config.source,
            "target": run.config.target_name,
            "strength": f"{strength:g}",
            "source_sha256": str(run.folder.environment["source"]["sha256"]),
        }
    if generator.kind == "styles":
        metadata["truncation"] = f"{own_truncation if truncation is None else truncation:g}"
    else:
        metadata["steps"] = str(own_steps if steps is None else steps)
        metadata["eta"] = f"{eta or 0.0:g}"
    return {"software": f"zeroshift {__version__}", **metadata}
