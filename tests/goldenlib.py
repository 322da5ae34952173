"""Reader of the golden reference numbers: runs by group name, the fill rule, arrays and descriptions.

A golden folder holds groups (`stylegan2_rosinality`, `clip_text_image`, ...). A group holds runs, and a run
is one json (`keys`, seeds, sizes, words) with one npz (arrays): either `GROUP/NAME/meta.json` with
`data.npz`, or `GROUP/NAME.json` with `NAME.npz`. Only the group names are fixed; everything else is found by
glob and read from the json. The folder is `tests/golden`, or the one that the environment variable
ZEROSHIFT_GOLDEN names.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def golden_root() -> Path:
    """Folder of the golden groups."""
    named = os.environ.get("ZEROSHIFT_GOLDEN")
    return Path(named) if named else Path(__file__).parent / "golden"


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


def run_name(run: Path) -> str:
    """Name of a run: its folder for `NAME/meta.json`, else the file's stem. `data` + `meta` of a flat group
    is named `meta`."""
    return run.parent.name if run.stem == "meta" and len(list(run.parent.glob("*.json"))) == 1 else run.stem


def load(run: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of a run."""
    arrays = _arrays_of(run)
    if arrays is None:
        raise FileNotFoundError(f"no npz beside {run}")
    with np.load(arrays) as data:
        return json.loads(run.read_text(encoding="utf-8")), {name: data[name] for name in data.files}


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
    """Skips the test where a foreign folder lacks one of the groups; in the repository's own folder that is a
    failure."""
    lacking = [group for group in groups if not runs(group)]
    own = golden_root().resolve() == (Path(__file__).parent / "golden").resolve()
    if lacking and own:
        pytest.fail(f"tests/golden lacks the group {lacking[0]}")
    if lacking:
        pytest.skip(f"the golden folder lacks the group {lacking[0]}")


def cases(group: str, wanted: Callable[[dict[str, Any]], bool], quick: Mapping[str, int]) -> list[Any]:
    """Test parameters (run, steps) for the runs of a group whose description is wanted.

    `quick` says for how many steps runs are carried out where the environment names no folder, by patterns of
    their names; the others wait for `make golden`, where steps is 0: all.
    """
    found = []
    for run in runs(group):
        description = json.loads(run.read_text(encoding="utf-8"))
        steps = [count for pattern, count in quick.items() if fnmatch(run_name(run), pattern)]
        idle = () if thorough() or steps else pytest.mark.skip("takes minutes; `make golden` carries it out")
        if wanted(description):
            found.append(pytest.param(run, 0 if thorough() else sum(steps), id=run_name(run), marks=idle))
    return found or [
        pytest.param(
            None, 0, id="none", marks=pytest.mark.skip(f"the golden folder has no such run of {group}")
        )
    ]
