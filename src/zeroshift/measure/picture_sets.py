"""What is measured: sets of pictures, drawn by a generator, rendered, or read from a folder, and what they
are compared with.

A set is seen part by part, never all at once, as 8-bit pictures: a generator and the PNG files of its
pictures measure alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from zeroshift.config.schema import EvaluateConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file, weights_file
from zeroshift.files.images import SUFFIXES, eight_bit, fitted, picture_files, read_picture
from zeroshift.files.registry import GENERATORS, load_generator, locate
from zeroshift.files.writing import file_sha256, fingerprint
from zeroshift.models.diffusion import DiffusionGenerator
from zeroshift.models.protocol import Generator
from zeroshift.models.seeds import z_from_seeds
from zeroshift.pictures.inversion import Route, translated
from zeroshift.pictures.runs import Adapted, is_run, load
from zeroshift.pictures.sample import draw, parse_seeds
from zeroshift.portraits import LATENT_DIM, domain_of, render
from zeroshift.training.run_folder import RunFolder

RESIZE = "bicubic, antialiased, centre square"
"""How a set whose pictures have another size is brought to the size of the evaluation."""


class PictureSet(Protocol):
    """Pictures in an order."""

    @property
    def name(self) -> str:
        """What they are."""
        ...

    @property
    def size(self) -> int:
        """Their side in pixels."""
        ...

    def __len__(self) -> int: ...

    def part(self, rows: slice) -> Tensor:
        """Pictures BCHW in [-1, 1] of some rows, in steps of 1/127.5, on the CPU."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Pictures of a generator, one per seed."""

    generator: Generator | DiffusionGenerator
    seeds: Sequence[int]
    truncation: float
    size: int
    name: str

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> Tensor:
        """Pictures of the seeds of some rows."""
        return eight_bit(fitted(draw(self.generator, self.seeds[rows], self.truncation), self.size))


@dataclass(frozen=True)
class Translated:
    """Pictures that a run of a diffusion model makes of others; each is made once."""

    pictures: PictureSet
    source: DiffusionGenerator
    target: DiffusionGenerator
    route: Route
    size: int
    name: str
    made: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def part(self, rows: slice) -> Tensor:
        """What is made of the pictures of some rows."""
        numbers = range(len(self))[rows]
        if missing := [number for number in numbers if number not in self.made]:
            # Rows come in whole batches, so either all of one are missing or none.
            first, last = missing[0], missing[-1] + 1
            given = fitted(self.pictures.part(slice(first, last)), self.source.image_size)
            found = translated(
                self.source,
                given.to(next(self.source.parameters()).device),
                self.route,
                self.target.predict_noise,
            )
            self.made.update(zip(range(first, last), eight_bit(fitted(found.cpu(), self.size)), strict=True))
        return torch.stack([self.made[number] for number in numbers])


@dataclass(frozen=True)
class Rendered:
    """True pictures of the built-in world in one of its domains, one per seed."""

    seeds: Sequence[int]
    domain: str
    size: int

    @property
    def name(self) -> str:
        """What they are."""
        return f"the rendered truth, {self.domain}"

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> Tensor:
        """Renders of the people of some seeds."""
        return eight_bit(render(z_from_seeds(self.seeds[rows], LATENT_DIM), self.domain, self.size))


@dataclass(frozen=True)
class Files:
    """PNG and JPEG files of a folder, in the order of their names."""

    paths: tuple[Path, ...]
    size: int
    name: str

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, rows: slice) -> Tensor:
        """Pictures of some files."""
        return eight_bit(
            torch.cat([fitted(read_picture(path)[None], self.size) for path in self.paths[rows]])
        )

    @property
    def seeds(self) -> list[int] | None:
        """Seeds that the files are named after (seed00012.png), where all are."""
        found = [re.fullmatch(r"seed(\d+)", path.stem) for path in self.paths]
        return [int(match[1]) for match in found if match] if all(found) else None


def read_folder(folder: str | Path, size: int | None = None) -> Files:
    """The pictures of a folder; `size` None takes that of the first. InputError where there are none, or they
    cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of pictures. Give a folder with PNG or JPEG files.")
    paths = picture_files(folder)
    if not paths:
        raise InputError(
            f"{folder} holds no pictures ({', '.join(SUFFIXES)}). Give a folder with PNG or JPEG files."
        )
    if size is None:
        size = min(read_picture(paths[0]).shape[-2:])
    return Files(paths, size, folder.name)


def paired(target: Files, source: Files) -> Files:
    """The source's files of the same names as the target's (the ending may differ), in the target's order."""
    by_name = {path.stem: path for path in source.paths}
    if missing := [path.name for path in target.paths if path.stem not in by_name]:
        raise InputError(
            f"the source {source.name} has no picture for {len(missing)} of {len(target)}, first "
            f"{missing[0]}; pairs have the "
            "same file name in both folders."
        )
    return Files(tuple(by_name[path.stem] for path in target.paths), target.size, source.name)


@dataclass
class Subject:
    """The pictures, and what is known about them. `gaps` says why a kind of comparison is not possible."""

    name: str
    kind: Literal["run", "generator", "pictures"]
    target: PictureSet
    sets: dict[str, PictureSet] = field(default_factory=dict)
    """source, truth, reference and shots, where there are any. Source and truth pair with the target, row by
    row."""
    labels: tuple[str, str] | None = None
    seeds: Sequence[int] | None = None
    portraits: bool = False
    people: bool = False
    """Whether the seeds name people of the built-in world, whose attributes are known in any domain."""
    hashes: dict[str, str] = field(default_factory=dict)
    guides: tuple[str, ...] = ()
    folder: RunFolder | None = None
    route: str = ""
    """How a diffusion model made the pictures of others, in words."""
    gaps: dict[str, str] = field(default_factory=dict)


def open_subject(what: Any, config: EvaluateConfig, device: str | torch.device = "cpu") -> Subject:
    """What a run, generator or picture folder (or a name of one) gives to measure."""
    if isinstance(what, str | Path):
        path = Path(what)
        if path.is_dir() and not (path / "config.json").is_file() and picture_files(path):
            subject = _of_pictures(path, config, device)
        elif path.is_dir() and (path / "config.json").is_file() and is_run(path):
            generator = None if _is_folder_of_pictures(config.source) else config.source
            subject = _of_run(load(path, generator=generator, device=str(device)), config)
        elif path.is_dir() and not any(path.iterdir()):
            raise InputError(f"the folder {path} is empty: it has no pictures, no run and no generator.")
        else:
            subject = _of_file(str(what), config, device)
    elif isinstance(what, Generator | DiffusionGenerator):
        drawn = _drawn(what, config, "generator")
        subject = Subject(
            "generator",
            "generator",
            drawn,
            seeds=drawn.seeds,
            hashes={"generator": fingerprint(what.state())},
        )
        _add_source(subject, config, device)
    else:
        subject = _of_run(what, config)
    if config.labels:
        subject.labels = (config.labels[0], config.labels[1])
    _compare_with(subject, config)
    return subject


def _drawn(
    generator: Generator | DiffusionGenerator,
    config: EvaluateConfig,
    name: str,
    seeds: Sequence[int] | None = None,
) -> Drawn:
    size = config.size or generator.image_size
    return Drawn(
        generator, parse_seeds(config.seeds) if seeds is None else seeds, config.truncation, size, name
    )


def _of_run(run: Adapted, config: EvaluateConfig) -> Subject:
    folder: RunFolder = getattr(run, "folder")  # noqa: B009  # every run has one; the protocol does not say so
    made, options = folder.environment, folder.config
    if isinstance(run.generator, DiffusionGenerator):
        return _of_diffusion_run(run, folder, config)
    if _is_folder_of_pictures(config.source):
        raise InputError(
            f"the source {config.source} is a folder of pictures, which a run with styles does not take; "
            "leave it out."
        )
    drawn = _drawn(run.generator, config, "the adapted generator")
    subject = Subject(
        folder.path.name,
        "run",
        drawn,
        labels=(options.source, options.target),
        seeds=drawn.seeds,
        portraits=made["source"]["name"] in GENERATORS,
        hashes={"generator": file_sha256(folder.generator_file), "source": made["source"]["sha256"]},
        guides=tuple(clip["sha256"] for clip in made["clips"]),
        folder=folder,
    )
    try:
        subject.sets["source"] = _drawn(run.source, config, "the source generator")
    except InputError as error:
        if config.source is not None:
            raise
        subject.gaps["source"] = (
            f"the source generator of the run was not found; give it with --source ({error})"
        )
    return subject


def _of_diffusion_run(run: Adapted, folder: RunFolder, config: EvaluateConfig) -> Subject:
    """The adapted model's versions of pictures: of a folder, of the photos of people, or else of what the
    source makes of seeds.

    A seed names no person to a diffusion model, but the photo of a person can be given to it.
    """
    made, options, size = folder.environment, folder.config, config.size or run.generator.image_size
    portraits = made["source"]["name"] in GENERATORS
    seeds: Any = parse_seeds(config.seeds)
    before: PictureSet
    if _is_folder_of_pictures(config.source):
        files = read_folder(str(config.source), size)
        before, seeds = files, files.seeds
    elif portraits:
        before = Rendered(seeds, "photo", size)
    else:
        before = Drawn(run.source, seeds, 1.0, size, "the source generator")
    route = Route.of(options.train.diffusion)
    name, given = (
        "the adapted generator",
        "photos of the people" if isinstance(before, Rendered) else before.name,
    )
    return Subject(
        folder.path.name,
        "run",
        Translated(before, cast(DiffusionGenerator, run.source), run.generator, route, size, name),
        sets={"source": before},
        labels=(options.source, options.target),
        seeds=seeds,
        portraits=portraits,
        hashes={"generator": file_sha256(folder.generator_file), "source": made["source"]["sha256"]},
        guides=tuple(clip["sha256"] for clip in made["clips"]),
        folder=folder,
        route=f"{given}, inverted to time {route.t0} on {route.invert_steps} points, generated in "
        f"{route.steps} steps",
    )


def _is_folder_of_pictures(spec: str | None) -> bool:
    return spec is not None and Path(spec).is_dir() and bool(picture_files(Path(spec)))


def _of_file(spec: str, config: EvaluateConfig, device: str | torch.device) -> Subject:
    path, facts = locate(spec)
    generator, told = load_generator_file(path, facts)
    drawn = _drawn(generator.to(device).eval(), config, "the generator")
    subject = Subject(
        Path(spec).name,
        "generator",
        drawn,
        seeds=drawn.seeds,
        hashes={"generator": file_sha256(weights_file(path))},
    )
    if "source" in told and "target" in told:
        subject.labels = (told["source"], told["target"])
    elif told.get("world") == "portraits":
        subject.labels = ("photo", "photo")
    subject.portraits = told.get("world") == "portraits" or told.get("source_name") in GENERATORS
    known = told.get("source_name") if told.get("source_name") in GENERATORS else None
    _add_source(subject, config, device, known)
    return subject


def _of_pictures(path: Path, config: EvaluateConfig, device: str | torch.device) -> Subject:
    files = read_folder(path, config.size)
    subject = Subject(path.name, "pictures", files, seeds=files.seeds)
    _add_source(subject, config, device)
    return subject


def _add_source(
    subject: Subject, config: EvaluateConfig, device: str | torch.device, known: str | None = None
) -> None:
    """The source's pictures: of a folder by file names, of a generator by seeds."""
    spec = config.source or known
    if spec is None:
        return
    if Path(spec).is_dir() and picture_files(Path(spec)):
        if not isinstance(subject.target, Files):
            raise InputError(
                f"the source {spec} is a folder of pictures, which pairs only with another one; give a "
                "generator."
            )
        subject.sets["source"] = paired(subject.target, read_folder(spec))
        return
    if subject.seeds is None:
        raise InputError(
            f"files must be named after their seeds (seed00012.png) to pair with the generator {spec}."
        )
    source, info = load_generator(spec, device)
    drawn = _drawn(source, config, "the source generator", subject.seeds)
    subject.sets["source"] = Drawn(
        drawn.generator, drawn.seeds, drawn.truncation, subject.target.size, drawn.name
    )
    subject.hashes["source"] = info.sha256
    subject.portraits = subject.portraits or bool(info.world)


def _compare_with(subject: Subject, config: EvaluateConfig) -> None:
    """Adds truth, reference and shots, or the reason why there are none."""
    size, gaps = subject.target.size, subject.gaps
    domain = domain_of(subject.labels[1]) if subject.labels and subject.portraits else None
    drawing = (subject.target, subject.sets.get("source"))
    nobody = any(isinstance(getattr(each, "generator", None), DiffusionGenerator) for each in drawing)
    if not subject.portraits:
        gaps["truth"] = "the truth is known only on the built-in portraits"
    elif config.truncation != 1.0:
        gaps["truth"] = f"the truth belongs to truncation 1, not {config.truncation:g}"
    elif subject.seeds is None:
        gaps["truth"] = "files must be named after their seeds (seed00012.png) to know their truth"
    elif domain is None:
        gaps["truth"] = (
            "the built-in world does not draw this target, so its truth is not known (--labels SOURCE TARGET)"
        )
    elif nobody:
        gaps["truth"] = "a seed names no person to a diffusion model"
        subject.sets["reference"] = Rendered(subject.seeds, domain, size)
    else:
        subject.sets["truth"] = Rendered(subject.seeds, domain, size)
    if config.reference is not None:
        subject.sets["reference"] = read_folder(config.reference, size)
    elif "truth" in subject.sets:
        subject.sets["reference"] = subject.sets["truth"]
    if config.shots is not None:
        subject.sets["shots"] = read_folder(config.shots, size)
    subject.people = (
        subject.portraits and subject.seeds is not None and config.truncation == 1.0 and not nobody
    )
    gaps["people"] = gaps.get("truth", "")
    gaps.setdefault("source", "there are no pictures before the change: --source GENERATOR or FOLDER")
    gaps["reference"] = "there are no real pictures of the target domain: --reference FOLDER"
    gaps["shots"] = "there are no few-shot pictures: --shots FOLDER"
    gaps["labels"] = gaps["change"] = "the labels are not known: --labels SOURCE TARGET"
    if subject.labels:
        gaps["change"] = "source and target label are the same, so there is no direction"
