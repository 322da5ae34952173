"""A run as those meet it who want its pictures: its config, its generators, and what it draws of seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import torch
from torch import Tensor

from zeroshift.devices import resolve_device
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import AnyGenerator, is_diffusers_folder
from zeroshift.files.hub import is_reference
from zeroshift.files.registry import GENERATORS, is_built_in, load_generator
from zeroshift.files.unets import split_facts
from zeroshift.models.protocol import PictureGenerator
from zeroshift.training.run_folder import RunFolder

if TYPE_CHECKING:
    from zeroshift.config.schema import AdaptConfig

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


class Adapted(Protocol):
    """What a run offers, finished just now or loaded from its folder."""

    @property
    def config(self) -> AdaptConfig:
        """The resolved config."""
        ...

    @property
    def generator(self) -> Any:
        """The adapted generator, a `PictureGenerator`."""
        ...

    @property
    def source(self) -> Any:
        """The source generator, of the same kind."""
        ...


@dataclass
class Run:
    """A run and its generators, loaded when first used."""

    folder: RunFolder
    device: torch.device = torch.device("cpu")
    source_spec: str | None = None
    _loaded: dict[str, AnyGenerator] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> AdaptConfig:
        """The resolved config of the run."""
        return self.folder.config

    @property
    def generator(self) -> AnyGenerator:
        """The adapted generator."""
        if "target" not in self._loaded:
            path = str(self.folder.generator_file)
            self._loaded["target"] = load_generator(path, self.device)[0]
        return self._loaded["target"]

    @property
    def source(self) -> AnyGenerator:
        """The source generator, found by its record and verified by its hash."""
        if "source" not in self._loaded:
            self._loaded["source"] = self.folder.find_source(self.source_spec, self.device)[0]
        return self._loaded["source"]

    def sample(
        self, seeds: Sequence[int] | range, truncation: float | None = None, strength: float = 1.0
    ) -> Tensor:
        """Pictures BCHW in [-1, 1]; see the function `sample`."""
        return sample_run(self, seeds, truncation, strength)


def sample_run(
    run: Adapted,
    seeds: Sequence[int] | range,
    truncation: float | None = None,
    strength: float = 1.0,
    steps: int | None = None,
    eta: float | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures BCHW in [-1, 1] on the CPU of seeds by the adapted generator of a run, or by what lies between
    its source (`strength` 0) and it (1), or beyond it (up to 2).

    What is None is as in the run: its truncation, or the number of steps of its diffusion model. InputError
    for what the kind of generator lacks.
    """
    generator: PictureGenerator = run.generator
    tuning = run.config.train.diffusion
    has_styles = generator.kind == "styles"
    own = run.config.run.truncation if has_styles else 1.0
    psi = own if truncation is None else truncation
    if steps is None and not has_styles:
        steps = tuning.sample_steps
    tell = drawing(progress)
    if has_styles and strength == 1.0:
        # Without the source generator, which may be gone.
        return generator.sample(seeds, truncation=psi, steps=steps, eta=eta, progress=tell)
    return generator.sample_adapted(
        run.source,
        seeds,
        strength,
        t0=tuning.t0,
        truncation=psi,
        steps=steps,
        eta=eta,
        progress=tell,
    )


def drawing(progress: Progress | None) -> Callable[[int, int], None] | None:
    """The progress of a generator that draws, told as that of pictures."""
    return None if progress is None else lambda done, total: progress("drawing", done, total)


@overload
def load(run: Path, *, generator: str | None = None, device: str = "auto") -> Run: ...
@overload
def load(run: str, *, generator: str | None = None, device: str = "auto") -> Any: ...
def load(run: str | Path, *, generator: str | None = None, device: str = "auto") -> Run | AnyGenerator:
    """A finished run, from its folder; or the generator of a file, a built-in name or a hub reference such as
    "hf:owner/name".

    `generator` says where the source generator of a run, or of its `delta.safetensors`, is now, if not where
    the run found it. InputError
    where the run has no adapted generator yet, nothing of this name is found, or there is no such device.
    """
    place = resolve_device(device)
    if not is_run(run):
        return load_generator(run, place, generator)[0]
    if not Path(run).exists():
        raise InputError(
            f"there is no run, generator or file {run}; the built-in generators are {', '.join(GENERATORS)}."
        )
    folder = RunFolder.load(run)
    if not folder.generator_file.is_file():
        raise InputError(
            f"{run} has no adapted generator yet ({folder.status.state}); run the command that began it "
            "again."
        )
    return Run(folder, place, generator)


def is_run(spec: str | Path) -> bool:
    """Whether a name can only mean a run folder: it is no file, no built-in name, no reference and no model
    of diffusers."""
    if is_reference(spec) or is_built_in(str(spec)) or Path(split_facts(str(spec))[0]).is_file():
        return False
    return not is_diffusers_folder(Path(spec))
