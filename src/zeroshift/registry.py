"""Models by name: a built-in name, a path, or a hub id. The one place that decides what a model's name means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from zeroshift.checkpoints import file_sha256, load_discriminator_file, load_generator_file
from zeroshift.errors import InputError
from zeroshift.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator

if TYPE_CHECKING:
    from zeroshift.clip import ClipModel

ASSETS = Path(__file__).parent / "portraits" / "assets"
GENERATORS = {"portraits": "generator.safetensors"}
CLIPS = {"portraits-clip-a": "clip-a", "portraits-clip-b": "clip-b", "portraits-judge": "judge"}
"""Built-in names -> their place in the package's assets. The judge only judges: it never guides."""

GENERATOR_FILES = ("generator.safetensors", "model.safetensors", "generator.pt", "model.pt")
"""Names tried, in this order, in a folder or a hub repository that is given as a generator."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin")


@dataclass(frozen=True)
class SourceInfo:
    """Where a generator came from. `sha256` is of the file, so the same weights are found again under another name or path."""

    name: str
    path: Path
    sha256: str
    is_portraits: bool = False


def load_generator(spec: str | Path, device: str | torch.device = "cpu") -> tuple[StyleGAN2Generator, SourceInfo]:
    """Generator in evaluation mode of a built-in name, a file, a folder (such as a run folder) or a hub id, and its origin.

    Raises InputError that names the built-in generators if nothing is found, or says what is wrong with the file.
    """
    name, path = str(spec), find_generator(spec)
    generator, metadata = load_generator_file(path)
    digest = file_sha256(path)
    portraits = name in GENERATORS or metadata.get("world") == "portraits"
    return generator.to(device).eval(), SourceInfo(name, path, digest, portraits)


def load_discriminator(spec: str | Path, device: str | torch.device = "cpu") -> StyleGAN2Discriminator:
    """Discriminator that ships with a built-in generator, or that of a file."""
    path = _asset("portraits", "discriminator.safetensors") if str(spec) == "portraits" else Path(spec)
    return load_discriminator_file(path)[0].to(device)


def load_clip(
    spec: str | Path, resize: Literal["antialias", "noantialias"] = "antialias", device: str | torch.device = "cpu"
) -> ClipModel:
    """CLIP, frozen, of a built-in name, a folder or a hub id. InputError as for generators."""
    from zeroshift.clip_files import load_clip_folder

    name = str(spec)
    if name in GENERATORS:
        raise InputError(f'"{name}" is a generator, not a CLIP. The built-in CLIPs are {", ".join(CLIPS)}.')
    if name in CLIPS:
        return load_clip_folder(_asset(name, CLIPS[name]), resize=resize, name=name).to(device)
    if not Path(spec).is_dir() and not _is_hub_id(name):
        raise InputError(_not_found("CLIP", name, CLIPS))
    return load_clip_folder(spec, resize=resize).to(device)


def find_generator(spec: str | Path) -> Path:
    """File of a generator, downloaded if `spec` is a hub id."""
    name, path = str(spec), Path(spec)
    if name in GENERATORS:
        return _asset(name, GENERATORS[name])
    if name in CLIPS:
        raise InputError(f'"{name}" is a CLIP, not a generator. The built-in generator is {", ".join(GENERATORS)}.')
    if path.is_file():
        return path
    if path.is_dir():
        for file_name in GENERATOR_FILES:
            if (path / file_name).is_file():
                return path / file_name
        raise InputError(f"the folder {path} holds none of {', '.join(GENERATOR_FILES)}. Give the generator file itself.")
    if _is_hub_id(name):
        return _download(name)
    raise InputError(_not_found("generator", name, GENERATORS))


def _download(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for file_name in GENERATOR_FILES:
        try:
            return Path(hf_hub_download(repository, file_name))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"{_not_found('generator', repository, GENERATORS)} The hub said: {reason}") from error
    raise InputError(
        f'the hub repository "{repository}" holds none of {", ".join(GENERATOR_FILES)}. Download its file and give the path.'
    )


def _asset(name: str, place: str) -> Path:
    path = ASSETS / place
    if not path.exists():
        raise InputError(
            f'the built-in model "{name}" is not in this installation ({place} is missing). Install the package again.'
        )
    return path


def _is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not name.endswith(SUFFIXES)


def _not_found(kind: str, name: str, built_in: dict[str, str]) -> str:
    return f'no {kind} "{name}": it is no built-in name ({", ".join(built_in)}), no file or folder here, and no known hub id.'
