"""Reader of the golden reference numbers: runs by group name, the fill rule, arrays and descriptions.

A golden folder holds groups (`stylegan2_rosinality`, `clip_text_image`, ...). A group holds runs, and a run
is one json (`keys`, seeds, sizes, words) with one npz (arrays): either `GROUP/NAME/meta.json` with
`data.npz`, or `GROUP/NAME.json` with `NAME.npz`. Only the group names are fixed; everything else is found by
glob and read from the json. The folder is `tests/golden`, or the one that the environment variable
ZEROSHIFT_GOLDEN names.

What our own folder lacks is a failure; what a foreign folder lacks is skipped, and the reason is printed.
`contents.json` lists every array of our own folder; `python tests/goldenlib.py` writes it anew.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

Json = dict[str, Any]
T = TypeVar("T")

OWN = Path(__file__).parent / "golden"
"""The golden folder of this repository."""

CONTENTS = "contents.json"
"""Name of the file that lists the arrays of our own folder."""

REMARKS: list[str] = []
"""What the test that is running has to say about golden numbers; shown at the end of the session."""


def golden_root() -> Path:
    """Folder of the golden groups."""
    named = os.environ.get("ZEROSHIFT_GOLDEN")
    return Path(named) if named else OWN


def own() -> bool:
    """Whether the golden folder is that of this repository, which has to be complete."""
    return golden_root().resolve() == OWN.resolve()


def lacking(what: str) -> NoReturn:
    """Fails the test where our own folder lacks something, and skips it where a foreign folder does."""
    if own():
        pytest.fail(f"tests/golden lacks {what}")
    pytest.skip(f"the golden folder lacks {what}")


class Arrays(dict[str, T]):
    """Arrays of a run by name. Asking for one that is not there ends the test, see `lacking`."""

    def __init__(self, run: str, arrays: Mapping[str, T]) -> None:
        super().__init__(arrays)
        self.run = run

    def __missing__(self, name: str) -> NoReturn:
        lacking(f"the array {name} of {self.run}")

    def optional(self, name: str) -> T | None:
        """An array, or None where a foreign folder lacks it, which is remarked; our own folder has to have
        it."""
        if name in self:
            return self[name]
        if own():
            lacking(f"the array {name} of {self.run}")
        REMARKS.append(f"{self.run}: no array {name}, so it was not compared")
        return None

    def tensors(self) -> Arrays[Tensor]:
        """The same arrays as tensors."""
        return Arrays(self.run, {name: torch.as_tensor(array) for name, array in self.items()})


def check_known(arrays: Arrays[Any], known: Iterable[str]) -> None:
    """Checks that a test knows every array of a run. In a foreign folder an unknown one is remarked."""
    unknown = sorted(set(arrays) - set(known))
    assert not (unknown and own()), f"no test compares {unknown} of {arrays.run}"
    REMARKS.extend(f"{arrays.run}: the array {each} is not covered yet" for each in unknown)


DOWN = r"(\d+)_(m1|\d+)"
"""Ending of an array's name that says a step of a diffusion model: from which time to which."""


def timed(arrays: Arrays[Any], pattern: str) -> list[tuple[str, list[int]]]:
    """Names of arrays of a pattern with the times in them, where `m1` is -1, the clean picture."""
    found = [(name, match) for name in sorted(arrays) if (match := re.fullmatch(pattern, name))]
    if not found:
        lacking(f"an array {pattern} of {arrays.run}")
    return [(name, [-1 if each == "m1" else int(each) for each in match.groups()]) for name, match in found]


def rule(key: str, shape: Sequence[int], seed: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    """Float32 tensor of the fill rule for one key: PCG64(CRC-32(key) + seed), standard normal, times scale,
    plus offset."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("utf-8")) + seed))
    draw = np.asarray(generator.standard_normal(tuple(shape)), dtype=np.float32)
    return torch.from_numpy(np.asarray(draw * np.float32(scale) + np.float32(offset), dtype=np.float32))


def fill(keys: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Tensor]:
    """Filled tensors of a json's `keys`. Keys with a `rule` (kept constants, integer buffers) are absent from
    the result."""
    drawn = {key: entry for key, entry in keys.items() if "rule" not in entry}
    return {
        key: rule(key, entry["shape"], seed, entry["scale"], entry["offset"]) for key, entry in drawn.items()
    }


def runs(group: str, pattern: str = "*") -> list[Path]:
    """Json files of all runs of a group whose name (see `run_name`) matches the pattern, sorted; empty if
    there is none."""
    folder = golden_root() / group
    found = [path for path in folder.rglob("*.json") if _arrays_of(path) is not None]
    return sorted(path for path in found if fnmatch(run_name(path), pattern))


def wanted_runs(group: str, pattern: str, wanted: Callable[[Json], bool]) -> list[Path]:
    """Runs of a group with this name whose description is wanted."""
    return [run for run in runs(group, pattern) if wanted(description(run))]


def params(group: str, pattern: str = "*", wanted: Callable[[Json], bool] = bool) -> list[Any]:
    """Test parameters: the runs of a group with this name whose description is wanted.

    Where there is none, the one parameter left makes the test fail in our own folder, and skips it in a
    foreign one (see `lacking`).
    """
    found = [pytest.param(run, id=run_name(run)) for run in wanted_runs(group, pattern, wanted)]
    return found or [pytest.param(None, id="none", marks=pytest.mark.lacking(_missing(group)))]


def one(group: str, pattern: str = "*", wanted: Callable[[Json], bool] = bool) -> Path:
    """The first run of a group with this name whose description is wanted; see `lacking` where there is
    none."""
    found = wanted_runs(group, pattern, wanted)
    return found[0] if found else lacking(_missing(group))


def _missing(group: str) -> str:
    return f"such a run of {group}" if runs(group) else f"the group {group}"


def run_name(run: Path) -> str:
    """Name of a run: its folder for `NAME/meta.json`, else the file's stem. `data` + `meta` of a flat group
    is named `meta`."""
    return run.parent.name if run.stem == "meta" and len(list(run.parent.glob("*.json"))) == 1 else run.stem


def full_name(run: Path) -> str:
    """Name of a run with its group before it."""
    inside = run.is_relative_to(golden_root())
    group = run.relative_to(golden_root()).parts[0] if inside else run.parent.name
    return group if run_name(run) == group else f"{group}/{run_name(run)}"


def description(run: Path) -> Json:
    """The json of a run."""
    return json.loads(run.read_text(encoding="utf-8"))


def load(run: Path) -> tuple[Json, Arrays[np.ndarray]]:
    """Description and arrays of a run."""
    arrays = _arrays_of(run)
    if arrays is None:
        raise FileNotFoundError(f"no npz beside {run}")
    with np.load(arrays) as data:
        return description(run), Arrays(full_name(run), {name: data[name] for name in data.files})


def sentences(name: str) -> tuple[str, ...]:
    """Template sentences of the golden folder: `imagenet_templates` or `part_templates`."""
    for path in sorted((golden_root() / "clip_text_image").glob("*.json")):
        if name in (found := description(path)):
            return tuple(found[name])
    lacking(f"the {name} of clip_text_image")


def _arrays_of(run: Path) -> Path | None:
    same_stem = run.with_suffix(".npz")
    if same_stem.exists():
        return same_stem
    beside = run.parent / "data.npz"
    if run.stem == "meta" and beside.exists():
        return beside
    every = list(run.parent.glob("*.npz"))
    alone = len(every) == 1 and len(list(run.parent.glob("*.json"))) == 1
    return every[0] if alone else None


def thorough() -> bool:
    """Whether long golden runs are carried out to their end, which takes minutes: where the environment names
    a folder."""
    return "ZEROSHIFT_GOLDEN" in os.environ


def require(*groups: str) -> None:
    """Goes on where the golden folder has these groups; see `lacking` where it has not."""
    for group in groups:
        one(group)


def cases(group: str, wanted: Callable[[Json], bool], quick: Mapping[str, int]) -> list[Any]:
    """Test parameters (run, steps) for the runs of a group whose description is wanted.

    `quick` says for how many steps runs are carried out where the environment names no folder, by patterns of
    their names; the others wait for `make golden`, where steps is 0: all.
    """
    found = []
    for run in wanted_runs(group, "*", wanted):
        steps = [count for pattern, count in quick.items() if fnmatch(run_name(run), pattern)]
        idle = () if thorough() or steps else pytest.mark.skip("takes minutes; `make golden` carries it out")
        found.append(pytest.param(run, 0 if thorough() else sum(steps), id=run_name(run), marks=idle))
    return found or [pytest.param(None, 0, id="none", marks=pytest.mark.lacking(_missing(group)))]


def contents(root: Path) -> dict[str, str]:
    """Files of a golden folder by path, each with the names of its arrays (npz) or entries (json), sorted."""
    found = dict[str, str]()
    for path in sorted(path for path in root.rglob("*.*") if path.name != CONTENTS):
        if path.suffix == ".npz":
            with np.load(path) as data:
                names = list(data.files)
        else:
            names = list(description(path))
        found[path.relative_to(root).as_posix()] = " ".join(sorted(names))
    return found


if __name__ == "__main__":
    (OWN / CONTENTS).write_text(json.dumps(contents(OWN), indent=1) + "\n", encoding="utf-8")
