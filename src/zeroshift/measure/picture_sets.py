"""What is measured: sets of pictures that a generator draws, that a world knows, or that lie in a folder, and
what they are compared with.

A set is made part by part, never all at once, as 8-bit pictures: a generator and the PNG files of its
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

from zeroshift.config.measuring import EvaluateConfig
from zeroshift.config.targets import is_hybrid
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file, weights_file
from zeroshift.files.images import eight_bit, fitted, folder_of_pictures, picture_files, read_picture
from zeroshift.files.registry import is_built_in, load_generator, locate, world_name
from zeroshift.files.writing import file_sha256, fingerprint
from zeroshift.models.diffusion import DiffusionGenerator
from zeroshift.models.protocol import PictureGenerator
from zeroshift.pictures.inversion import Route, translated
from zeroshift.pictures.runs import Adapted, is_run, load
from zeroshift.pictures.sample import draw, parse_seeds
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_named, world_of
from zeroshift.worlds.world import World

RESIZE = "bicubic, antialiased, centre square"
"""How a set whose pictures have another size is brought to the size of the evaluation."""
COPIES = "shots"
"""Folder within that of a run with the pictures of the target that it learned from (`shots.copy`)."""


class PictureSet(Protocol):
    """Pictures of one size in an order; two sets of equal length pair row by row."""

    @property
    def name(self) -> str:
        """What records call them."""
        ...

    @property
    def size(self) -> int:
        """Their side in pixels."""
        ...

    def __len__(self) -> int:
        """How many they are."""
        ...

    def part(self, rows: slice) -> Tensor:
        """Pictures BCHW in [-1, 1] of some rows, in steps of 1/127.5, on the CPU."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Pictures that a generator draws, one per seed, at the size of the evaluation."""

    generator: Any
    seeds: Sequence[int]
    truncation: float
    size: int
    name: str

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> Tensor:
        """Pictures that the generator draws of the seeds of some rows."""
        return eight_bit(fitted(draw(self.generator, self.seeds[rows], self.truncation), self.size))


@dataclass(frozen=True)
class Translated:
    """Pictures that a run of a diffusion model makes of others: inverted with the source, generated with the
    target. Each is made once and kept."""

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
        """What is made of the given pictures of some rows, at the size of the evaluation."""
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
class TruePictures:
    """True pictures of a world in one of its domains, one per seed."""

    world: World
    seeds: Sequence[int]
    domain: str
    size: int

    @property
    def name(self) -> str:
        """What records call them."""
        return f"the true pictures, {self.domain}"

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> Tensor:
        """True pictures of the latents that the seeds of some rows draw."""
        latents = self.world.latents(self.seeds[rows])
        return eight_bit(self.world.truth(latents, self.domain, self.size))


@dataclass(frozen=True)
class Files:
    """Picture files of a folder, in the order of their names."""

    paths: tuple[Path, ...]
    size: int
    name: str
    crop: Literal["centre", "top", "pad"] = "centre"

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, rows: slice) -> Tensor:
        """Pictures of the files of some rows, by default their middle squares, brought to the size of the
        evaluation."""
        return eight_bit(
            torch.cat([fitted(read_picture(path)[None], self.size, self.crop) for path in self.paths[rows]])
        )

    @property
    def seeds(self) -> list[int] | None:
        """Seeds that the files are named after (seed00012.png), where all are."""
        found = [re.fullmatch(r"seed(\d+)", path.stem) for path in self.paths]
        return [int(match[1]) for match in found if match] if all(found) else None


def read_folder(folder: str | Path, size: int | None = None) -> Files:
    """The pictures of a folder; `size` None takes that of the first. InputError where there are none, or they
    cannot be read."""
    paths = folder_of_pictures(folder)
    if size is None:
        size = min(read_picture(paths[0]).shape[-2:])
    return Files(paths, size, Path(folder).name)


def paired(target: Files, source: Files) -> Files:
    """The source's files of the same names as the target's (the ending may differ), in the target's order."""
    by_name = {path.stem: path for path in source.paths}
    if missing := [path.name for path in target.paths if path.stem not in by_name]:
        raise InputError(
            f"the source {source.name} has no picture for {len(missing)} of {len(target)}, first "
            f"{missing[0]}; pairs have the same file name in both folders."
        )
    return Files(tuple(by_name[path.stem] for path in target.paths), target.size, source.name)


@dataclass
class EvalInputs:
    """The pictures to be measured, what they can be compared with, and what is known about them."""

    name: str
    """What the record calls them."""
    kind: Literal["run", "generator", "pictures"]
    target: PictureSet
    sets: dict[str, PictureSet] = field(default_factory=dict)
    """source, truth, reference and shots, where there are any. Source and truth pair with the target, row by
    row."""
    labels: tuple[str, str] | None = None
    """Source and target label."""
    seeds: Sequence[int] | None = None
    """Seed of every row; None where they are not known."""
    world: World | None = None
    world_name: str = ""
    """Name of the world that the generator belongs to, also where that is not known here."""
    latents_known: bool = False
    """Whether every row shows the latent that its seed draws and the world knows attributes of latents, which
    every domain keeps."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the weights of generator and source."""
    guides: tuple[str, ...] = ()
    """SHA-256 of the CLIPs that guided the run."""
    folder: RunFolder | None = None
    oracle: float | None = None
    """Share of the source's distance to the truth that training on the truth leaves; None where it is not
    known."""
    route: str = ""
    """How a diffusion model made the pictures of others, in words."""
    missing_reasons: dict[str, str] = field(default_factory=dict)
    """Why something that metrics require is not there, and how to give it."""

    @property
    def known(self) -> set[str]:
        """What there is beside the target's pictures, by the names of `features.REQUIREMENTS`."""
        found = set(self.sets)
        if self.labels:
            found |= {"labels"} | ({"change"} if self.labels[0] != self.labels[1] else set())
        found |= {"oracle"} if self.oracle is not None else set()
        return found | ({"latents"} if self.latents_known else set())


def open_inputs(what: Any, config: EvaluateConfig, device: str | torch.device = "cpu") -> EvalInputs:
    """What there is to measure about a run (or its folder), a generator (or its file, name or reference), or
    a folder of pictures, and what a config compares it with. InputError where something that was named is
    not there, is empty, or cannot be compared."""
    if isinstance(what, str | Path):
        inputs = _of_name(what, config, device)
    elif isinstance(what, PictureGenerator):
        inputs = _of_generator(what, config, device)
    else:
        inputs = _of_run(what, config)
    if config.labels:
        inputs.labels = (config.labels[0], config.labels[1])
    _add_truth(inputs, config)
    _add_oracle(inputs)
    _add_references(inputs, config)
    return inputs


def _of_name(name: str | Path, config: EvaluateConfig, device: str | torch.device) -> EvalInputs:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file() and picture_files(path):
        return _of_pictures(path, config, device)
    if path.is_dir() and (path / "config.json").is_file() and is_run(path):
        generator = None if _is_folder_of_pictures(config.source) else config.source
        return _of_run(load(path, generator=generator, device=str(device)), config)
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"the folder {path} is empty: it has no pictures, no run and no generator.")
    return _of_file(str(name), config, device)


def _drawn(
    generator: PictureGenerator, config: EvaluateConfig, name: str, seeds: Sequence[int] | None = None
) -> Drawn:
    """Pictures that a generator draws of the seeds of a config, unless others are given."""
    chosen = parse_seeds(config.seeds) if seeds is None else seeds
    return Drawn(generator, chosen, config.truncation, config.size or generator.image_size, name)


def _of_run(run: Adapted, config: EvaluateConfig) -> EvalInputs:
    folder: RunFolder = getattr(run, "folder")  # noqa: B009  # every run has one; the protocol does not say so
    if run.generator.kind == "diffusion":
        return _of_diffusion_run(run, folder, config)
    if _is_folder_of_pictures(config.source):
        raise InputError(
            f"the source {config.source} is a folder of pictures, which a run with styles does not take; "
            "leave it out."
        )
    drawn = _drawn(run.generator, config, "the adapted generator")
    inputs = EvalInputs(drawn.name, "run", drawn, seeds=drawn.seeds)
    _add_facts(inputs, folder)
    try:
        inputs.sets["source"] = _drawn(run.source, config, "the source generator")
    except InputError as error:
        if config.source is not None:
            raise
        inputs.missing_reasons["source"] = (
            f"the source generator of the run was not found; give it with --source ({error})"
        )
    return inputs


def _of_diffusion_run(run: Adapted, folder: RunFolder, config: EvaluateConfig) -> EvalInputs:
    """The adapted model's versions of pictures: of a folder, of the world's true pictures of the source
    domain, or else of what the source makes of seeds.

    A seed names no latent of a world to a diffusion model, but the true picture of that latent can be given
    to it.
    """
    size = config.size or run.generator.image_size
    world = world_of(folder.environment["source"])
    seeds: Any = parse_seeds(config.seeds)
    before: PictureSet
    if _is_folder_of_pictures(config.source):
        before = read_folder(str(config.source), size)
        seeds = before.seeds
        given = before.name
    elif world is not None:
        before = TruePictures(world, seeds, world.source, size)
        given = f"true pictures ({world.source}) of the seeds"
    else:
        before = Drawn(run.source, seeds, 1.0, size, "the source generator")
        given = before.name
    route = Route.of(folder.config.train.diffusion)
    after = Translated(
        before, cast(DiffusionGenerator, run.source), run.generator, route, size, "the adapted generator"
    )
    inputs = EvalInputs(after.name, "run", after, sets={"source": before}, seeds=seeds)
    inputs.route = (
        f"{given}, inverted to time {route.t0} on {route.invert_steps} points, generated in {route.steps} "
        "steps"
    )
    _add_facts(inputs, folder)
    return inputs


def _add_facts(inputs: EvalInputs, folder: RunFolder) -> None:
    """Adds what the folder of a run tells about its pictures."""
    made = folder.environment
    config = folder.config
    inputs.name = folder.path.name
    inputs.folder = folder
    inputs.labels = (config.source, config.target) if config.target else None
    inputs.world = world_of(made["source"])
    inputs.world_name = world_name(made["source"])
    inputs.hashes = {"generator": file_sha256(folder.generator_file), "source": made["source"]["sha256"]}
    inputs.guides = tuple(clip["sha256"] for clip in made["clips"])


def _is_folder_of_pictures(spec: str | None) -> bool:
    return spec is not None and Path(spec).is_dir() and bool(picture_files(Path(spec)))


def _of_generator(
    generator: PictureGenerator, config: EvaluateConfig, device: str | torch.device
) -> EvalInputs:
    drawn = _drawn(generator, config, "generator")
    inputs = EvalInputs("generator", "generator", drawn, seeds=drawn.seeds)
    inputs.hashes["generator"] = fingerprint(generator.state())
    _add_source(inputs, config, device)
    return inputs


def _of_file(spec: str, config: EvaluateConfig, device: str | torch.device) -> EvalInputs:
    path, facts = locate(spec)
    generator, metadata = load_generator_file(path, facts)
    drawn = _drawn(generator.to(device).eval(), config, "the generator")
    inputs = EvalInputs(Path(spec).name, "generator", drawn, seeds=drawn.seeds)
    inputs.hashes["generator"] = file_sha256(weights_file(path))
    inputs.world = world_of(metadata)
    inputs.world_name = world_name(metadata)
    adapted = "source" in metadata and "target" in metadata
    if adapted:
        inputs.labels = (metadata["source"], metadata["target"]) if metadata["target"] else None
    elif inputs.world is not None:
        inputs.labels = (inputs.world.source, inputs.world.source)
    # A built-in source is found by its name; others have to be given.
    known = metadata.get("source_name")
    _add_source(inputs, config, device, known if known is not None and is_built_in(known) else None)
    return inputs


def _of_pictures(path: Path, config: EvaluateConfig, device: str | torch.device) -> EvalInputs:
    files = read_folder(path, config.size)
    inputs = EvalInputs(path.name, "pictures", files, seeds=files.seeds)
    _add_source(inputs, config, device)
    return inputs


def _add_source(
    inputs: EvalInputs, config: EvaluateConfig, device: str | torch.device, known: str | None = None
) -> None:
    """Adds the source's pictures: those of a folder pair by file names, those of a generator by seeds."""
    spec = config.source or known
    if spec is None:
        return
    if _is_folder_of_pictures(spec):
        if not isinstance(inputs.target, Files):
            raise InputError(
                f"the source {spec} is a folder of pictures, which pairs only with another one; give a "
                "generator."
            )
        inputs.sets["source"] = paired(inputs.target, read_folder(spec))
        return
    if inputs.seeds is None:
        raise InputError(
            f"files must be named after their seeds (seed00012.png) to pair with the generator {spec}."
        )
    source, info = load_generator(spec, device)
    inputs.sets["source"] = Drawn(
        source, inputs.seeds, config.truncation, inputs.target.size, "the source generator"
    )
    inputs.hashes["source"] = info.sha256
    inputs.world = inputs.world or world_named(info.world)
    inputs.world_name = inputs.world_name or info.world


def _add_truth(inputs: EvalInputs, config: EvaluateConfig) -> None:
    """Adds the true pictures of the seeds, or the reason why they are not known. Of a diffusion model, which
    draws no latents of a world, they are only a reference."""
    world = inputs.world
    seeds = inputs.seeds
    drawing = [each for each in (inputs.target, inputs.sets.get("source")) if isinstance(each, Drawn)]
    draws_latents = all(each.generator.kind == "styles" for each in drawing)
    domain = world.domain_of(inputs.labels[1]) if inputs.labels and world is not None else None
    why = ""
    if world is None and inputs.world_name:
        why = (
            f"the world {inputs.world_name!r} of the generator is not known here; install its package, or "
            "register it (zeroshift.worlds.known.register)"
        )
    elif world is None:
        why = "the truth is known only in a world, such as that of the built-in portraits"
    elif config.truncation != 1.0:
        why = f"the truth belongs to truncation 1, not {config.truncation:g}"
    elif seeds is None:
        why = "files must be named after their seeds (seed00012.png) to know their truth"
    elif domain is None and inputs.labels and is_hybrid(inputs.labels[1]):
        why = f"a hybrid of domains ({inputs.labels[1]}) has no true pictures"
    elif domain is None:
        why = (
            f"the world {world.name} does not draw this target, so its truth is not known (--labels SOURCE "
            "TARGET)"
        )
    elif not draws_latents:
        why = f"a seed names no latent of the world {world.name} to a diffusion model"
        inputs.sets["reference"] = TruePictures(world, seeds, domain, inputs.target.size)
    else:
        inputs.sets["truth"] = TruePictures(world, seeds, domain, inputs.target.size)
    has_attributes = world is not None and bool(world.choices)
    latents_known = seeds is not None and config.truncation == 1.0 and draws_latents
    inputs.latents_known = has_attributes and latents_known
    inputs.missing_reasons["truth"] = why
    inputs.missing_reasons["latents"] = (
        f"the world {world.name} has no attributes" if world is not None and not has_attributes else why
    )


def _add_oracle(inputs: EvalInputs) -> None:
    """Adds how near to the truth training on it brings the source generator, or the reason why that is not
    known."""
    world, truth = inputs.world, inputs.sets.get("truth")
    if world is None or not isinstance(truth, TruePictures):
        inputs.missing_reasons["oracle"] = inputs.missing_reasons["truth"]
        return
    source = inputs.hashes.get("source", "")
    inputs.oracle = world.oracle_ratio(source, truth.domain) if source else None
    inputs.missing_reasons["oracle"] = (
        f"the world {world.name} does not say how near to the truth training on it brings this source "
        f"generator in {truth.domain} (World.oracle_ratio)"
    )


def _add_references(inputs: EvalInputs, config: EvaluateConfig) -> None:
    """Adds real pictures of the target domain and few-shot pictures, and the reasons why others are not
    there."""
    size = inputs.target.size
    if config.reference is not None:
        inputs.sets["reference"] = read_folder(config.reference, size)
    elif "truth" in inputs.sets:
        inputs.sets["reference"] = inputs.sets["truth"]
    no_labels = "the labels are not known: --labels SOURCE TARGET"
    inputs.missing_reasons |= {
        "reference": "there are no real pictures of the target domain: --reference FOLDER",
        "shots": "there are no few-shot pictures: --shots FOLDER",
        "labels": no_labels,
        "change": "source and target label are the same, so there is no direction"
        if inputs.labels
        else no_labels,
    }
    inputs.missing_reasons.setdefault(
        "source", "there are no pictures before the change: --source GENERATOR or FOLDER"
    )
    if config.shots is not None:
        inputs.sets["shots"] = read_folder(config.shots, size)
    elif inputs.folder is not None and inputs.folder.environment.get("shots"):
        try:
            inputs.sets["shots"] = _shots_of(inputs.folder, size)
        except InputError as error:
            inputs.missing_reasons["shots"] = f"{error}; give them with --shots FOLDER"


def _shots_of(folder: RunFolder, size: int) -> Files:
    """The pictures of the target that a run learned from: its own copies, or those of the folder that it
    names. InputError where these are gone, or others."""
    copies = folder.path / COPIES
    if copies.is_dir() and picture_files(copies):
        return read_folder(copies, size)
    options, recorded = folder.config.shots, folder.environment["shots"]
    assert options.folder is not None, "a run that learned from pictures names their folder"
    paths = tuple(options.folder / each["name"] for each in recorded)
    if not all(path.is_file() for path in paths):
        raise InputError(f"the pictures that the run learned from were not found in {options.folder}")
    if [file_sha256(path) for path in paths] != [each["sha256"] for each in recorded]:
        raise InputError(f"the pictures in {options.folder} are not those that the run learned from")
    return Files(paths, size, options.folder.name, options.crop)
