"""Methods that learn from pictures of the target beside others: who gets them, and what tables call a target
that has no words."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from tinycompare import compared

from zeroshift.app import cli, commands
from zeroshift.comparison.compare import plan_jobs
from zeroshift.comparison.page import command
from zeroshift.config.measuring import CompareConfig
from zeroshift.errors import InputError
from zeroshift.files.images import write_png
from zeroshift.training.run_folder import RunFolder


def folder_of(place: Path, seed: int = 0) -> Path:
    """A folder with two pictures of noise."""
    draw = torch.Generator().manual_seed(seed)
    for number in range(2):
        write_png(place / f"{number}.png", (0.4 * torch.randn(3, 16, 16, generator=draw)).clamp(-1, 1))
    return place


def shots(folder: Path | str) -> dict[str, Any]:
    return {"own.shots.folder": str(folder), "own.shots.source_pictures": 8, "train.monitor.every": 0}


def jobs_of(targets: tuple[str, ...], folder: Path | str, *methods: str) -> list[Any]:
    config = CompareConfig(methods=methods or ("nada",), targets=targets, seeds=(0,))
    return plan_jobs(config, shots(folder))


def test_a_target_of_pictures_alone_is_called_as_their_folder_everywhere(home: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "Old Drawings")
    methods = ("nada", "short=nada:train.steps=2")
    done = compared(
        home,
        tmp_path / "out",
        methods=methods,
        targets=(),
        seeds=(0,),
        metrics=("diversity",),
        shared=shots(folder),
    )
    assert done.failed == {}
    assert set(done.table["target"]) == {"Old Drawings"} and set(done.summary["target"]) == {"Old Drawings"}
    assert list(done.table["group"]) == ["other", "other"] and not any(
        math.isnan(each) for each in done.table["diversity"]
    )
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert "nada and short on 1 target" in page and "Old Drawings" in page
    run = RunFolder.load(tmp_path / "out" / "runs" / "nada--old-drawings--seed0")
    assert len(run.environment["shots"]) == 2 and run.config.target == ""


def test_every_method_that_takes_pictures_gets_them_and_others_have_words_alone(
    home: Path, tmp_path: Path
) -> None:
    folder_of(tmp_path / "zombie")
    jobs = jobs_of(("zombie",), tmp_path / "{target}", "nada", "ipl", "air")
    assert [job.config.shots.folder for job in jobs] == [tmp_path / "zombie", tmp_path / "zombie", None]
    shared = shots(tmp_path / "{target}") | {"air.prompt_steps": 1, "air.offset_pictures": 2}
    options = {"methods": ("nada", "air"), "targets": ("zombie",), "seeds": (0,), "metrics": ("diversity",)}
    with pytest.warns(
        UserWarning, match="method air takes no pictures of the target, so it learns from words"
    ):
        done = compared(home, tmp_path / "out", shared=shared, **options)
    assert done.failed == {} and list(done.table["label"]) == ["nada", "air"]
    runs = [RunFolder.load(tmp_path / "out" / "runs" / f"{name}--zombie--seed0") for name in ("nada", "air")]
    assert [len(run.environment.get("shots", [])) for run in runs] == [2, 0]


def test_every_target_has_its_own_folder_of_pictures(tmp_path: Path) -> None:
    jobs = jobs_of(("pencil sketch", "zombie"), tmp_path / "shots" / "{target}")
    assert [job.config.shots.folder for job in jobs] == [
        tmp_path / "shots" / "pencil-sketch",
        tmp_path / "shots" / "zombie",
    ]
    for targets, folder, part in (
        (("a", "b"), "shots", 'give a folder for each, such as --pictures "shots/{target}" for shots/a'),
        ((), "shots/{target}", "stands for a folder per target; give --targets"),
    ):
        with pytest.raises(InputError, match=part):
            jobs_of(targets, folder)
    with pytest.raises(InputError, match="method ipl takes pictures beside words of the target"):
        jobs_of((), "shots", "ipl")


def test_the_command_line_gives_pictures_to_all_runs_and_the_page_says_how() -> None:
    words = ["compare", "--methods", "nada", "ipl", "--targets", "zombie", "--people", "4"]
    words += ["--pictures", "shots/{target}", "--shots.share", "0.25", "--shots.copy"]
    given = cli.parse(words)
    assert isinstance(given, commands.Compare) and given.config.people == 4
    assert given.shared["own.shots.folder"] == "shots/{target}" and given.shared["own.shots.share"] == 0.25
    again = cli.parse(shlex.split(command(given.config, given.shared))[1:])
    assert isinstance(again, commands.Compare)
    assert (again.config, again.shared) == (given.config, given.shared)
    alone = cli.parse(["compare", "--methods", "nada", "--pictures", "shots"])
    assert isinstance(alone, commands.Compare) and alone.config.targets == ()
    assert "--targets" not in command(alone.config, alone.shared)
