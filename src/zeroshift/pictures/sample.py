"""Pictures from seeds: of a run or a generator, between source and target, in grids, rows and files that know
their seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, overload

import torch
from torch import Tensor

from zeroshift import __version__
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import AnyGenerator, is_diffusers_folder
from zeroshift.files.hub import is_reference
from zeroshift.files.images import labelled_rows
from zeroshift.files.registry import GENERATORS, load_generator
from zeroshift.files.unets import split_facts
from zeroshift.models.diffusion import SAMPLE_STEPS, DiffusionGenerator
from zeroshift.models.protocol import Generator
from zeroshift.models.seeds import truncate, z_from_seeds
from zeroshift.pictures.inversion import Route, relay, translated
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_named

if TYPE_CHECKING:
    from zeroshift.config.schema import AdaptConfig, FinetuneConfig
    from zeroshift.worlds.world import World

MAX_SEEDS = 10_000
"""More pictures than this in one call are almost surely a slip of the pen."""

STRENGTHS = (0.0, 2.0)
"""0 is the source, 1 the target, 2 goes as far again beyond it."""


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list such as "0-15" or "1,4,7-9", in the order written."""
    seeds: list[int] = []
    for part in (piece.strip() for piece in text.split(",")):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if match is None:
            raise InputError(
                f"seeds must be numbers and ranges such as 0-15 or 1,4,7-9, got {part!r} in {text!r}."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"the range {part!r} in seeds runs backwards; write {last}-{first}.")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise InputError(f"seeds {text!r} are more than {MAX_SEEDS}; ask for fewer at a time.")
        seeds += range(first, last + 1)
    return seeds


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """How a diffusion model draws. `eta` 0 is deterministic (DDIM), 1 as random as DDPM; the same seed is the
    same picture."""

    steps: int = SAMPLE_STEPS
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise InputError(f"steps must be at least 2, got {self.steps}; 50 is usual.")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta must be between 0 and 1, got {self.eta:g}; 0 is deterministic.")


def denoising_of(steps: int | None, eta: float | None) -> Denoising | None:
    """How to draw, where anything of it was said; what was not is as usual."""
    if steps is None and eta is None:
        return None
    return Denoising(steps=SAMPLE_STEPS if steps is None else steps, eta=eta or 0.0)


@torch.no_grad()
def draw(
    generator: Generator | DiffusionGenerator,
    seeds: Sequence[int] | range,
    truncation: float = 1.0,
    batch: int = 16,
    denoising: Denoising | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Pictures BCHW in [-1, 1] on the CPU, one per seed. A seed's picture does not depend on the others or on
    the batch.

    `denoising` and `progress` (told what, done and total) are for diffusion models, which take many steps.
    """
    if not 0 <= truncation <= 1:
        raise InputError(
            f"truncation must be between 0 and 1, got {truncation}; 1 is the full variety, 0 the average "
            "picture."
        )
    if isinstance(generator, DiffusionGenerator):
        if truncation != 1.0:
            raise InputError(
                f"truncation {truncation:g} needs styles, which a diffusion model has not; leave it out."
            )
        how, tell = denoising or Denoising(), None
        if progress is not None:
            told = progress
            tell = lambda done, total: told("drawing", done, total)  # noqa: E731
        return generator.sample(seeds, how.steps, how.eta, batch=batch, progress=tell)
    if denoising is not None:
        raise InputError("steps and eta are for diffusion models; this generator draws in one step.")
    average = generator.latent_avg
    z = z_from_seeds(seeds, generator.latent_dim).to(average)
    parts = [
        generator.synthesize(truncate(generator.map(part), average, truncation)) for part in z.split(batch)
    ]
    return torch.cat([part.float().clamp(-1, 1).cpu() for part in parts])


def _in_range(strength: float) -> None:
    if not STRENGTHS[0] <= strength <= STRENGTHS[1]:
        raise InputError(
            f"strength must be between {STRENGTHS[0]:g} (source) and {STRENGTHS[1]:g}, got {strength}; 1 is "
            "the target."
        )


@torch.no_grad()
def blend(source: Generator, target: Generator, strength: float) -> Generator:
    """A generator whose weights lie between source (0) and target (1), or beyond it (up to 2)."""
    _in_range(strength)
    if strength == 1.0:
        return target
    between = target.clone()
    assert isinstance(between, torch.nn.Module)
    start, end = source.state(), target.state()
    shapes = [{name: value.shape for name, value in state.items()} for state in (start, end)]
    if unlike := [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]:
        raise InputError(
            f"source and target differ in {len(unlike)} tensors such as {unlike[0]}; give the source of "
            "this target."
        )
    moving = {name: value.is_floating_point() for name, value in end.items()}
    mixed = {
        name: torch.lerp(start[name].to(value), value, strength) if moving[name] else value
        for name, value in end.items()
    }
    between.load_state_dict(mixed)
    return between


def photos_of(seeds: Sequence[int] | range, size: int) -> Tensor:
    """Photos of the people of the built-in world whom seeds name."""
    from zeroshift.portraits import LATENT_DIM, render

    return render(z_from_seeds(seeds, LATENT_DIM), "photo", size)


def true_pictures(seeds: Sequence[int] | range, latent_dim: int, label: str, size: int) -> Tensor | None:
    """The true pictures of the built-in portraits in a domain, for the same seeds; None for a domain that it
    does not have."""
    from zeroshift.portraits import domain_of, render

    domain = domain_of(label)
    return None if domain is None else render(z_from_seeds(seeds, latent_dim), domain, size)


def draw_relayed(
    source: DiffusionGenerator,
    target: DiffusionGenerator,
    tuning: FinetuneConfig,
    seeds: Sequence[int] | range,
    strength: float = 1.0,
    denoising: Denoising | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Pictures of seeds by an adapted diffusion model: by the source down to time t0, by both mixed by
    strength from there on.

    Where `denoising` is not said they take the steps of the run.
    """
    _in_range(strength)
    how = denoising or Denoising(steps=tuning.sample_steps)
    tell = None if progress is None else lambda done, total: progress("drawing", done, total)
    predict = relay(source, target, tuning.t0, strength)
    return source.sample(seeds, how.steps, how.eta, predict=predict, progress=tell)


def pair(
    source: Any,
    target: Any,
    tuning: FinetuneConfig | None,
    seeds: Sequence[int] | range,
    truncation: float = 1.0,
    world: World | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures of the same seeds by source and target. With a world, seeds name its latents: a diffusion
    model, which knows no latent by a seed, is then given the world's source pictures, and the target's
    pictures are made of these.
    """
    if not isinstance(target, DiffusionGenerator) or tuning is None:
        return draw(source, seeds, truncation), draw(target, seeds, truncation)
    if world is None:
        return source.sample(seeds, tuning.sample_steps), draw_relayed(source, target, tuning, seeds)
    photos = world.truth_of_seeds(seeds, world.source, source.image_size)
    assert photos is not None
    place = next(source.parameters()).device
    return photos, translated(source, photos.to(place), Route.of(tuning), target.predict_noise).cpu()


def before_after(
    source: Any,
    target: Any,
    labels: tuple[str, str],
    seeds: Sequence[int] | range,
    truncation: float,
    truth: Tensor | None = None,
    tuning: FinetuneConfig | None = None,
) -> Tensor:
    """One picture CHW of the same seeds in rows: source, target and, where it is known, the truth (all then
    untruncated)."""
    psi = truncation if truth is None else 1.0
    pictures = pair(source, target, tuning, seeds, psi, None if truth is None else world_named("portraits"))
    rows = list(zip(labels, pictures, strict=True))
    return labelled_rows(rows if truth is None else [*rows, ("truth", truth)])


class Adapted(Protocol):
    """What a run offers, finished just now or loaded from its folder."""

    @property
    def config(self) -> AdaptConfig: ...
    @property
    def generator(self) -> Any: ...
    @property
    def source(self) -> Any: ...


@dataclass
class Run:
    """A run and its generators, loaded when first used."""

    folder: RunFolder
    device: str = "cpu"
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
        return sample(self, seeds, truncation, strength)

    def facts(self, truncation: float | None, strength: float) -> dict[str, str]:
        """What the metadata of a picture say beside its seed."""
        config = self.config
        psi = config.run.truncation if truncation is None else truncation
        diffusion = isinstance(self.generator, DiffusionGenerator)
        return {
            "software": f"zeroshift {__version__}",
            "method": config.method,
            "source": config.source,
            "target": config.target,
            **({} if diffusion else {"truncation": f"{psi:g}"}),
            "strength": f"{strength:g}",
            "source_sha256": str(self.folder.environment["source"]["sha256"]),
        }


@overload
def load(run: Path, *, generator: str | None = None, device: str = "cpu") -> Run: ...
@overload
def load(run: str, *, generator: str | None = None, device: str = "cpu") -> Any: ...
def load(run: str | Path, *, generator: str | None = None, device: str = "cpu") -> Run | AnyGenerator:
    """A finished run, from its folder; or the generator of a file, a built-in name or a hub reference such as
    "hf:owner/name".

    `generator` says where the source generator of a run is now, if not where the run found it.
    """
    if not is_run(run):
        return load_generator(run, device)[0]
    folder = RunFolder.load(run)
    if not folder.generator_file.is_file():
        raise InputError(
            f"{run} has no adapted generator yet ({folder.status.state}); run the command that began it "
            "again."
        )
    return Run(folder, device, generator)


def is_run(spec: str | Path) -> bool:
    """Whether a name can only mean a run folder: it is no file, no built-in name, no reference and no model
    of diffusers."""
    if is_reference(spec) or str(spec) in GENERATORS or Path(split_facts(str(spec))[0]).is_file():
        return False
    return not is_diffusers_folder(Path(spec))


def facts_of(
    spec: str | Path,
    run: Run | AnyGenerator,
    truncation: float | None,
    strength: float,
    denoising: Denoising | None = None,
) -> dict[str, str]:
    """What the metadata of a picture say beside its seed."""
    usual = run.config.train.diffusion.sample_steps if isinstance(run, Run) else SAMPLE_STEPS
    how = denoising or Denoising(steps=usual)
    told = {"steps": str(how.steps), "eta": f"{how.eta:g}"}
    if isinstance(run, Run):
        return run.facts(truncation, strength) | (
            told if isinstance(run.generator, DiffusionGenerator) else {}
        )
    if isinstance(run, DiffusionGenerator):
        return {"software": f"zeroshift {__version__}", "generator": Path(spec).name, **told}
    psi = 1.0 if truncation is None else truncation
    return {"software": f"zeroshift {__version__}", "generator": Path(spec).name, "truncation": f"{psi:g}"}


def sample(
    run_or_generator: Adapted | Generator | DiffusionGenerator | str | Path,
    seeds: Sequence[int] | range,
    truncation: float | None = None,
    strength: float = 1.0,
    denoising: Denoising | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Pictures BCHW in [-1, 1], one per seed, of a run (or its folder) or a generator (or its file, name or
    reference).

    `truncation` None takes the run's own, 1 for a bare generator. `strength` moves the weights between source
    (0), target (1) and beyond (up to 2); it needs a run, because only that knows its source. `denoising` says
    how a diffusion model draws.
    """
    run = load(run_or_generator) if isinstance(run_or_generator, (str, Path)) else run_or_generator
    if isinstance(run, Generator | DiffusionGenerator):
        if strength != 1.0:
            raise InputError(
                f"strength {strength} needs a run, which knows its source; load one with zeroshift.load(RUN)."
            )
        return draw(
            run, seeds, 1.0 if truncation is None else truncation, denoising=denoising, progress=progress
        )
    if isinstance(run.generator, DiffusionGenerator):
        if truncation not in (None, 1.0):
            raise InputError(
                f"truncation {truncation:g} needs styles, which a diffusion model has not; leave it out."
            )
        tuning, source = run.config.train.diffusion, cast(DiffusionGenerator, run.source)
        return draw_relayed(source, run.generator, tuning, seeds, strength, denoising, progress)
    if denoising is not None:
        raise InputError(
            "steps and eta are for diffusion models; the generator of this run draws in one step."
        )
    generator = (
        run.generator if strength == 1.0 else blend(cast(Generator, run.source), run.generator, strength)
    )
    return draw(generator, seeds, run.config.run.truncation if truncation is None else truncation)
