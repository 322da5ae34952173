"""True pictures of the built-in world in files: whose they are, and who is kept out of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from zeroshift.app import cli
from zeroshift.config.measuring import SHOT_SEEDS, CompareConfig, EvaluateConfig
from zeroshift.errors import InputError
from zeroshift.files.images import eight_bit, picture_files, read_picture
from zeroshift.methods.agreement import SEEDS
from zeroshift.pictures.sample import parse_seeds
from zeroshift.pictures.truths import write_truths
from zeroshift.worlds.portraits import Portraits


def test_a_picture_of_a_seed_is_the_truth_of_that_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["portraits", "render", "--domain", "Pencil Sketch", "--seeds", "3,7", "--size", "32"]
    assert cli.main([*words, "--out", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    paths = picture_files(tmp_path / "a")
    assert [str(path) for path in paths] == told["pictures"]
    assert [path.name for path in paths] == ["seed00003.png", "seed00007.png"]
    true = Portraits().truth_of_seeds([3, 7], "pencil sketch", 32)
    assert true is not None
    torch.testing.assert_close(torch.stack([read_picture(path) for path in paths]), eight_bit(true))
    with Image.open(paths[1]) as file:
        facts = {name: file.info[name] for name in ("seed", "world", "domain")}
    assert facts == {"seed": "7", "world": "portraits", "domain": "pencil sketch"}


def test_people_to_learn_from_are_not_those_who_are_measured_or_shown() -> None:
    shots = set(parse_seeds(SHOT_SEEDS))
    measured = {*parse_seeds(EvaluateConfig().seeds), *parse_seeds(CompareConfig().eval_seeds), *SEEDS}
    assert len(shots) == 10 and shots.isdisjoint(measured) and min(shots) > 100


def test_people_who_are_measured_by_default_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["portraits", "render", "--domain", "zombie", "--size", "16", "--out", str(tmp_path)]
    assert cli.main([*words, "--seeds", "2255-2256"]) == 0
    said = capsys.readouterr()
    assert "1 of these people, first seed 2255, are measured" in said.err and "2 pictures in" in said.out
    assert cli.main([*words, "--seeds", "2255,2256", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"]
    assert cli.main([*words[:-1], str(tmp_path / "others"), "--seeds", "2256"]) == 0
    assert "measured" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "seeds", "size", "part"),
    [
        (
            "manga",
            "0-1",
            64,
            "the world portraits has no domain 'manga'; its domains are photo,",
        ),
        ("zombie", "3-1", 64, "runs backwards"),
        ("zombie", "0-1", 4, "size must be 16 to 1024 pixels, got 4"),
        ("zombie", "1-2", 16, "holds other pictures (seed00000.png), which would be taken for these"),
    ],
)
def test_what_cannot_be_rendered_has_its_sentence(
    tmp_path: Path, label: str, seeds: str, size: int, part: str
) -> None:
    write_truths(Portraits(), "zombie", "0", 16, tmp_path)
    with pytest.raises(InputError) as caught:
        write_truths(Portraits(), label, seeds, size, tmp_path)
    assert part in str(caught.value)
