"""A folder of pictures of the target, read as the run sees them, and known again by their hashes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zeroshift.config.few_shot import ShotsConfig
from zeroshift.errors import InputError
from zeroshift.files.images import (
    SUFFIXES,
    decode_picture,
    fitted,
    folder_of_pictures,
    picture_bytes,
    picture_files,
    read_picture,
    write_png,
)
from zeroshift.files.writing import file_sha256
from zeroshift.shapes import Picture

MOST_SHOTS = 1000
"""Pictures of the largest folder that is read: all of them are held in memory."""

OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".nef", ".raw")
"""Endings of pictures that are not read, which is told; what else lies in a folder is passed over."""

NAMED = 5
"""Files that a message names; more are counted."""


@dataclass(frozen=True)
class Shots:
    """Pictures of the target, in the order of their names."""

    pictures: Picture
    """NCHW in [-1, 1], square, on the CPU."""
    names: tuple[str, ...]
    """Names of their files."""
    sha256: tuple[str, ...]
    """Hashes of what their files hold."""
    skipped: tuple[str, ...] = ()
    """Why files were skipped, a sentence each."""

    def __len__(self) -> int:
        return len(self.names)

    def record(self) -> list[dict[str, str]]:
        """What environment.json holds of them, under `shots`."""
        pairs = zip(self.names, self.sha256, strict=True)
        return [{"name": name, "sha256": sha256} for name, sha256 in pairs]

    def write(self, folder: Path) -> None:
        """Writes the pictures into a folder, one PNG each, with name and hash of the file in its metadata."""
        for number, (picture, made) in enumerate(zip(self.pictures, self.record(), strict=True)):
            write_png(folder / f"{number:04d}-{Path(made['name']).stem}.png", picture, made)


def read_shots(options: ShotsConfig, size: int, least: int = 1) -> Shots:
    """The pictures of the folder that is asked for, cropped and brought to `size` pixels, antialiased.

    What cannot be read is skipped with one warning that names it. InputError where that is refused, there are
    fewer than `least` pictures or more than MOST_SHOTS, or the folder is none.
    """
    assert options.folder is not None, "whether there are pictures is asked before"
    paths = folder_of_pictures(options.folder)
    if len(paths) > MOST_SHOTS:
        raise InputError(
            f"{options.folder} holds {len(paths)} pictures, and at most {MOST_SHOTS} are learned from; give "
            "a folder with fewer."
        )
    found: list[tuple[str, str, Tensor]] = []
    skipped = [
        f"{path} is of a format that is not read; convert it to PNG."
        for path in sorted(options.folder.iterdir())
        if path.suffix.lower() in OTHER_SUFFIXES and not path.name.startswith(".")
    ]
    for path in paths:
        try:
            content = picture_bytes(path)
            picture = fitted(decode_picture(content, path)[None], size, options.crop)
            found.append((path.name, hashlib.sha256(content).hexdigest(), picture))
        except InputError as error:
            skipped.append(str(error))
    if skipped:
        _tell(skipped, options)
    if len(found) < least:
        raise InputError(
            f"{options.folder} holds {len(found)} picture{'s' * (len(found) != 1)} that can be read, and the "
            f"method needs {least}; add some ({', '.join(SUFFIXES)})."
        )
    names, hashes, pictures = zip(*found, strict=True)
    return Shots(torch.cat(pictures), names, hashes, tuple(skipped))


def changed_shot(options: ShotsConfig, recorded: Sequence[Mapping[str, str]]) -> str:
    """Name of a picture in the folder that is not as a run recorded it, is gone or is new; empty where all
    are, or the folder itself is gone or cannot be read."""
    if options.folder is None:
        return ""
    try:
        paths = {path.name: path for path in picture_files(options.folder)}
    except OSError:
        return ""
    for each in recorded:
        path = paths.pop(each["name"], None)
        if path is None or not path.is_file() or file_sha256(path) != each["sha256"]:
            return each["name"]
    return next((name for name, path in paths.items() if _is_readable(path)), "")


def _is_readable(path: Path) -> bool:
    """Whether a file can be read as a picture."""
    try:
        return bool(read_picture(path).numel())
    except InputError:
        return False


def _tell(skipped: list[str], options: ShotsConfig) -> None:
    """Warns of files that cannot be read, or refuses them."""
    more = f" And {len(skipped) - NAMED} more." if len(skipped) > NAMED else ""
    text = " ".join(skipped[:NAMED]) + more
    if options.unreadable == "refuse":
        raise InputError(f"{text} (shots.unreadable skip would pass them over.)")
    warnings.warn(f"passed over, of the pictures in {options.folder}: {text}", stacklevel=3)
