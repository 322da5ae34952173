"""Models by name: a built-in name, a path, or a hub id. The one place that decides what a model's name
means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from zeroshift.errors import InputError, printable
from zeroshift.files.checkpoints import (
    AnyGenerator,
    is_diffusers_folder,
    load_discriminator_file,
    load_generator_file,
    weights_file,
)
from zeroshift.files.deltas import Delta, is_delta, load_delta, on_source
from zeroshift.files.hub import (
    Reference,
    fetch_folder,
    fetch_generator,
    is_hub_id,
    is_reference,
    parse_reference,
)
from zeroshift.files.unets import split_facts
from zeroshift.files.writing import file_sha256
from zeroshift.models.discriminator import StyleGAN2Discriminator

if TYPE_CHECKING:
    from zeroshift.clip.model import ClipModel

ASSETS = Path(__file__).parents[1] / "portraits" / "assets"
GENERATORS = {"portraits": "generator.safetensors", "portraits-ddpm": "ddpm.safetensors"}
CLIPS = {f"portraits-{name}": name for name in ("clip-a", "clip-b", "clip-plain", "judge")}
"""Built-in names -> their place in the package's assets. The judge only judges: it never guides."""

GENERATOR_FILES = ("generator.safetensors", "model.safetensors", "generator.pt", "model.pt")
"""Names tried, in this order, in a folder or a hub repository that is given as a generator."""


@dataclass(frozen=True)
class SourceInfo:
    """Where a generator came from. `sha256` is of the file of weights: they are found again under another
    name or path."""

    name: str
    path: Path
    sha256: str
    world: str = ""
    """Name of the world that it belongs to, where it says one."""


def world_name(metadata: Mapping[str, str]) -> str:
    """Name of the world that a generator's metadata, or a run's record of its source generator, tell; empty
    where they tell none. Files of version 0.1.0 name their built-in source instead."""
    source = metadata.get("source_name") or metadata.get("name")
    return metadata.get("world") or ("portraits" if source in GENERATORS else "")


def is_built_in(name: str) -> bool:
    """Whether a name is that of a generator that ships with the package, under the package's own licence."""
    return name in GENERATORS


def load_generator(
    spec: str | Path, device: str | torch.device = "cpu", source: str | Path | None = None
) -> tuple[AnyGenerator, SourceInfo]:
    """Generator in evaluation mode of a built-in name, a file, a folder (such as a run folder) or one on the
    hub, and its origin.

    A folder may be one of diffusers. Small parameters of a run (`delta.safetensors`) become a generator on
    top of their source, which is found by the name that they tell, or by `source`. Raises InputError that
    names the built-in generators if nothing is found, or says what is wrong with the file.
    """
    name = str(spec)
    path, facts = locate(spec)
    if is_delta(path):
        delta = load_delta(path)
        generator, metadata = on_source(path, delta, _source_of(path, delta, source)), delta.metadata
    else:
        generator, metadata = load_generator_file(path, facts)
    digest = file_sha256(weights_file(path))
    return generator.to(device).eval(), SourceInfo(name, path, digest, world_name(metadata))


def _source_of(path: Path, delta: Delta, spec: str | Path | None) -> AnyGenerator:
    """The generator that small parameters belong to, known by its hash before it is loaded."""
    name = spec or delta.source_name
    try:
        digest = file_sha256(weights_file(locate(name)[0]))
    except InputError as error:
        raise InputError(
            f"the source generator of {path} was not found: {error} Give it with --generator PATH."
        ) from error
    if digest != delta.source_sha256:
        raise InputError(
            f"{name} is not the source generator of {path}: its sha256 is {digest[:12]}..., the parameters "
            f"belong to {printable(delta.source_sha256[:12])}...; give the right file with --generator PATH."
        )
    return load_generator(name)[0]


def load_discriminator(spec: str | Path, device: str | torch.device = "cpu") -> StyleGAN2Discriminator:
    """Discriminator of the built-in generator "portraits", or of a file or hub reference in any layout that
    holds one: ours, a training checkpoint's ("d"), and the pickles of NVIDIA's two programs.

    Its weights may be trained on; none is frozen. InputError where nothing is found, or the file holds none.
    """
    is_built_in = str(spec) == "portraits"
    path = _asset("portraits", "discriminator.safetensors") if is_built_in else find_generator(spec)
    return load_discriminator_file(path)[0].to(device)


def load_clip(
    spec: str | Path,
    resize: Literal["antialias", "noantialias"] = "antialias",
    device: str | torch.device = "cpu",
) -> ClipModel:
    """CLIP, frozen, of a built-in name, a file, a folder or one on the hub; ":gelu" or ":quick_gelu" behind a
    file says its activation where it does not. InputError as for generators.
    """
    from zeroshift.files.clips import load_clip_file, load_clip_folder, split_activation

    name, activation = split_activation(str(spec))
    if name in GENERATORS:
        raise InputError(f'"{name}" is a generator, not a CLIP. The built-in CLIPs are {", ".join(CLIPS)}.')
    if name in CLIPS:
        return load_clip_folder(_asset(name, CLIPS[name]), resize, name, activation).to(device)
    path = Path(name)
    known = None
    if not path.exists() and not is_reference(name) and not is_hub_id(name):
        raise InputError(_not_found("CLIP", name, CLIPS))
    if not path.exists():
        path = _from_hub("CLIP", name, CLIPS, _fetch_clip)
        known = parse_reference(name).repository.split("/")[1]
    load = load_clip_file if path.is_file() else load_clip_folder
    return load(path, resize, known, activation).to(device)


def locate(spec: str | Path) -> tuple[Path, dict[str, str]]:
    """File or folder of a generator, and the facts about it that are written behind its name
    (`unets.FACTS`)."""
    name, facts = split_facts(str(spec))
    return (find_generator(spec), {}) if not facts or Path(spec).exists() else (find_generator(name), facts)


def find_generator(spec: str | Path) -> Path:
    """File of a generator, or its folder of diffusers; downloaded if `spec` is a hub id."""
    name = str(spec)
    path = Path(spec)
    if is_reference(spec):
        return fetch_generator(parse_reference(name), GENERATOR_FILES)
    if name in GENERATORS:
        return _asset(name, GENERATORS[name])
    if name in CLIPS:
        raise InputError(
            f'"{name}" is a CLIP, not a generator. The built-in generators are {", ".join(GENERATORS)}.'
        )
    if path.is_file():
        return path
    if path.is_dir():
        for file_name in GENERATOR_FILES:
            if (path / file_name).is_file():
                return path / file_name
        if is_diffusers_folder(path):
            return path
        raise InputError(
            f"the folder {path} holds none of {', '.join(GENERATOR_FILES)}. Give the generator file itself."
        )
    if not is_hub_id(name):
        raise InputError(_not_found("generator", name, GENERATORS))
    return _from_hub(
        "generator", name, GENERATORS, lambda reference: fetch_generator(reference, GENERATOR_FILES)
    )


def _fetch_clip(reference: Reference) -> Path:
    return fetch_generator(reference) if reference.file else fetch_folder(reference, _clip_files)


def _clip_files(names: list[str]) -> list[str]:
    """Files of a repository that a CLIP needs: its settings and words, and its weights in one format."""
    top = [name for name in names if "/" not in name]
    formats = (r"model.*\.safetensors", r".*\.safetensors", r"pytorch_model.*\.bin", r".*\.(bin|pt)")
    weights = ([name for name in top if re.fullmatch(form, name)] for form in formats)
    return [name for name in top if name.endswith((".json", ".txt", ".model"))] + next(
        filter(None, weights), []
    )


def _asset(name: str, place: str) -> Path:
    path = ASSETS / place
    if not path.exists():
        raise InputError(
            f'the built-in model "{name}" is not in this installation ({place} is missing). Install the '
            "package again."
        )
    return path


def _from_hub(kind: str, name: str, built_in: dict[str, str], fetch: Callable[[Reference], Path]) -> Path:
    """What is fetched for a hub id; where that fails, the message says what else the name could have been."""
    try:
        return fetch(parse_reference(name))
    except InputError as error:
        if is_reference(name):
            raise
        raise InputError(f"{_not_found(kind, name, built_in)} {error}") from error


def _not_found(kind: str, name: str, built_in: dict[str, str]) -> str:
    return (
        f'no {kind} "{name}": it is no built-in name ({", ".join(built_in)}), '
        "no file or folder here, and no known hub id."
    )
