"""What a run changed in its source, where only a few parameters moved: kilobytes instead of a generator.

A file of this kind says which generator it belongs to, by name and by hash, and becomes a generator on top of
it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from zeroshift import __version__
from zeroshift.errors import InputError, printable
from zeroshift.files.layouts import LayoutError
from zeroshift.files.pickles import Content, read_tensors
from zeroshift.files.writing import write_tensors
from zeroshift.models.parameters import MOVES, Kind, applied

DELTA_FORMAT = "zeroshift.delta"

LONGEST_HEADER = 1 << 22
"""Bytes of a header in which the format is looked for; those of deltas of large generators have 30 kB."""


@dataclass(frozen=True)
class Delta:
    """Small parameters of a kind, named by weight and part ("convs.0.conv.weight.change"), and the metadata
    of the run that learned them."""

    kind: Kind
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def source_name(self) -> str:
        """Name or path of the generator that they belong to, as the run knew it."""
        return self.metadata["source_name"]

    @property
    def source_sha256(self) -> str:
        """Hash of the weights file of that generator."""
        return self.metadata["source_sha256"]


def save_delta(
    path: str | Path, kind: Kind, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes small parameters, whole or not at all. `metadata` name the source: `source_name`,
    `source_sha256`."""
    facts = {**metadata, "format": DELTA_FORMAT, "version": __version__, "kind": kind}
    write_tensors(Path(path), tensors, facts)


def is_delta(path: str | Path) -> bool:
    """Whether a file says of itself that it holds small parameters; only its header is read."""
    path = Path(path)
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= LONGEST_HEADER else b""
    if DELTA_FORMAT.encode() not in header:
        return False
    try:
        return json.loads(header)["__metadata__"]["format"] == DELTA_FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def load_delta(path: str | Path) -> Delta:
    """Small parameters of a file. InputError where it holds something else."""
    path = Path(path)
    try:
        return delta_of(read_tensors(path))
    except LayoutError as error:
        raise InputError(f"{path} {error}.") from error


def delta_of(content: Content) -> Delta:
    """Small parameters of what was read from a file; LayoutError, the end of a sentence about the file, where
    it holds something else."""
    facts = content.metadata
    if facts.get("format") != DELTA_FORMAT:
        raise LayoutError("holds no small parameters of a run")
    if missing := [name for name in ("source_name", "source_sha256") if not facts.get(name)]:
        raise LayoutError(f"does not say what it belongs to ({missing[0]} is missing)")
    if facts.get("kind") not in MOVES:
        known = ", ".join(MOVES)
        raise LayoutError(
            f"holds parameters {printable(facts.get('kind', 'of no kind'))}, this version knows {known}"
        )
    return Delta(cast(Kind, facts["kind"]), dict(content.tree), facts)


def on_source(path: str | Path, delta: Delta, source: Any) -> Any:
    """The generator that small parameters, read from `path`, make of their source. InputError where they do
    not fit."""
    try:
        return applied(source, delta.kind, delta.tensors)
    except InputError as error:
        raise InputError(f"{path} does not fit its source: {str(error).rstrip('.')}.") from error
