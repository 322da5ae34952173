"""The pictures that a run learned from are found again where it is measured, or it is said why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from zeroshift.config.measuring import EvaluateConfig
from zeroshift.errors import InputError
from zeroshift.files.images import eight_bit, write_png
from zeroshift.files.shots import read_shots
from zeroshift.measure.evaluate import evaluate
from zeroshift.measure.picture_sets import open_inputs
from zeroshift.methods.adapt import adapt
from zeroshift.training.run_folder import RunFolder


def picture(number: int) -> torch.Tensor:
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(number)) * 2 - 1


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run that learned from three pictures in the folder `pictures`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        write_png(folder / f"{number}.png", picture(number))
    config = tiny.learn(tmp_path / "run", pictures=folder, train={"steps": 1}, monitor={"every": 0})
    return adapt(config, state=tiny.given_few_shot()).folder


def measured(run: RunFolder, **options: Any) -> Any:
    return open_inputs(run.path, EvaluateConfig(seeds="0-3", device="cpu", **options))


def test_they_are_read_from_their_folder(run: RunFolder) -> None:
    shots = measured(run).sets["shots"]
    assert torch.equal(shots.part(slice(0, 3)), eight_bit(torch.stack([picture(i) for i in range(3)])))
    assert (len(shots), shots.size) == (3, 16)
    assert measured(run, size=8).sets["shots"].part(slice(0, 2)).shape == (2, 3, 8, 8)


def test_pictures_that_came_later_do_not_count(run: RunFolder) -> None:
    assert run.config.shots.folder is not None
    write_png(run.config.shots.folder / "9.png", picture(9))
    assert len(measured(run).sets["shots"]) == 3


def test_copies_in_the_run_do_without_the_folder(run: RunFolder) -> None:
    assert run.config.shots.folder is not None
    read_shots(run.config.shots, 16).write(run.path / "shots")
    shutil.rmtree(run.config.shots.folder)
    shots = measured(run).sets["shots"]
    assert torch.equal(shots.part(slice(0, 3)), eight_bit(torch.stack([picture(i) for i in range(3)])))


@pytest.mark.parametrize(("what", "why"), [("gone", "were not found"), ("changed", "are not those")])
def test_where_they_are_gone_or_others_the_record_says_so(run: RunFolder, what: str, why: str) -> None:
    folder = run.config.shots.folder
    assert folder is not None
    if what == "gone":
        shutil.rmtree(folder)
    else:
        write_png(folder / "1.png", picture(9))
    inputs = measured(run)
    assert "shots" not in inputs.sets
    assert why in inputs.missing_reasons["shots"] and "--shots FOLDER" in inputs.missing_reasons["shots"]
    done = evaluate(run.path, seeds="0-3", device="cpu", save=False)
    assert why in done.record["missing"]["intra_lpips_few_shot"]
    assert why in done.record["missing"]["memorised"]


def test_pictures_that_are_given_come_first(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    write_png(tmp_path / "others" / "a.png", picture(5))
    assert len(measured(run, shots=tmp_path / "others").sets["shots"]) == 1
    with pytest.raises(InputError, match="nowhere"):
        measured(run, shots=tmp_path / "nowhere")
