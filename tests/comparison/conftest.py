"""A finished comparison, made once for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tinycompare import compared

import tiny
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.clips import save_clip


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generator, two guiding CLIPs, a judge, and a finished comparison of two methods,
    targets and seeds."""
    folder = tmp_path_factory.mktemp("home")
    save_generator(folder / "generator.safetensors", tiny.generator())
    for name, seed in (("guide", 1), ("judge", 5)):
        save_clip(tiny.clip(seed), folder / name)
    compared(folder, folder / "compare")
    return folder


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison, to be changed."""
    return Path(shutil.copytree(home / "compare", tmp_path / "compare"))
