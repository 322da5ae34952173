"""The command line, end to end on a tiny generator file and tiny CLIP folders."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from zeroshift.app import cli, commands
from zeroshift.app.display import AdaptProgress
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.clips import save_clip
from zeroshift.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generator file, two CLIP folders and one finished run."""
    folder = tmp_path_factory.mktemp("world")
    save_generator(folder / "generator.safetensors", tiny.generator(), {})
    for name, clip in zip(("clip-a", "clip-b"), tiny.clips(), strict=True):
        save_clip(clip, folder / name)
    assert cli.main(arguments(folder, folder / "run")) == 0
    return folder


def arguments(
    world: Path, out: Path, *more: str, clips: tuple[str, ...] = ("clip-a", "clip-b"), target: str = "zombie"
) -> list[str]:
    """A short run as one would type it."""
    models = [
        "--generator",
        str(world / "generator.safetensors"),
        "--clip",
        *(str(world / clip) for clip in clips),
    ]
    short = [
        "--steps",
        "4",
        "--batch",
        "2",
        "--lr",
        "0.01",
        "--mapper.steps",
        "3",
        "--mapper.batch",
        "3",
        "--samples",
        "3",
    ]
    rest = [
        "--target",
        target,
        "--out",
        str(out),
        "--device",
        "cpu",
        "--grid-every",
        "2",
        "--checkpoint-every",
        "1",
    ]
    return ["adapt", *models, *short, *rest, *more]


def test_a_run_leaves_pictures_weights_and_report_and_names_them(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, tmp_path / "run")) == 0
    said = capsys.readouterr().out
    for name in ("before_after.png", "generator.safetensors", "report.html"):
        assert str(tmp_path / "run" / name) in said
        assert (tmp_path / "run" / name).stat().st_size > 500
    assert [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "step_000002.png",
        "step_000004.png",
    ]
    assert "step 4/4" in said and "steps/s" in said


def test_the_same_command_on_a_finished_run_says_so_and_changes_nothing(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (world / "run").rglob("*") if path.name != "lock"}
    assert cli.main(arguments(world, world / "run")) == 0
    assert "is finished" in capsys.readouterr().out
    assert {
        path: path.stat().st_mtime_ns for path in (world / "run").rglob("*") if path.name != "lock"
    } == before


def test_other_options_in_the_same_folder_are_refused_with_the_difference(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, world / "run", "--seed", "5")) == 2
    assert "seed: 0 -> 5" in capsys.readouterr().err


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: int, step: int) -> None:
    """Presses Ctrl-C once, when the given step has been shown."""
    shown = AdaptProgress.__call__

    def call(self: AdaptProgress, event: Any) -> None:
        shown(self, event)
        if (event["kind"], event["stage"], event["step"]) == ("checkpoint", stage, step):
            raise KeyboardInterrupt

    monkeypatch.setattr(AdaptProgress, "__call__", call)


@pytest.mark.parametrize("stage", [1, 2])
def test_ctrl_c_says_how_to_go_on_and_the_same_command_ends_with_the_same_weights(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: int,
) -> None:
    words = arguments(world, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, 2)
        assert cli.main(words) == 130
    said = capsys.readouterr().err
    assert "zeroshift adapt" in said and str(tmp_path / "run") in said
    assert RunFolder.load(tmp_path / "run").status.state == "stopped"
    assert cli.main(words) == 0
    assert "resuming" in capsys.readouterr().out
    resumed, whole = (
        load_file(folder / "generator.safetensors") for folder in (tmp_path / "run", world / "run")
    )
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_json_prints_one_object_and_nothing_else(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, tmp_path / "run", "--method", "nada", "--json")) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["finished"] is True and told["steps_done"] == 4
    assert all(Path(told[name]).is_file() for name in ("picture", "weights", "report"))
    assert "step 4/4" in said.err


def test_dry_run_tells_what_would_move_and_writes_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, tmp_path / "run", "--dry-run")) == 0
    said = capsys.readouterr().out
    for words in (
        "train.lr",
        "0.01",
        "parameters",
        "generator",
        "layers that may move",
        "convs.3",
        "memory, estimated",
    ):
        assert words in said
    assert not (tmp_path / "run").exists()


def test_dry_run_as_json_counts_the_parameters_of_the_generator(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(arguments(world, tmp_path / "run", "--dry-run", "--json", "--layers", "conv1,to_rgb1")) == 0
    )
    told = json.loads(capsys.readouterr().out)
    named = dict(tiny.generator().named_parameters())
    assert told["parameters"]["generator"] == sum(weight.numel() for weight in named.values())
    assert told["parameters"]["movable"] == sum(
        w.numel() for name, w in named.items() if name.startswith(("conv1.", "to_rgb1."))
    )
    assert told["layers"] == ["conv1", "to_rgb1"] and told["memory_bytes"] > 0


def test_a_label_with_unknown_words_is_warned_about_and_carried_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, tmp_path / "run", "--method", "nada", target="zebra sketch")) == 0
    said = capsys.readouterr().err
    assert "zebra" in said and "warning" in said and "zombie" in said
    assert ".py:" not in said


def damaged(world: Path, tmp_path: Path) -> str:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes((world / "generator.safetensors").read_bytes()[:3000])
    return str(path)


BAD = {
    "empty target": (("--target", " "), "target is empty"),
    "same domain": (("--target", "photo"), "no direction"),
    "no such file": (("--generator", "missing.pt"), "missing.pt"),
    "no such layer": (("--layers", "conv9"), "conv9"),
    "no such recipe": (("--recipe", "quick"), "quick"),
    "no such device": (("--device", "tpu"), "tpu"),
    "no steps": (("--steps", "0"), "steps"),
    "wrong number": (("--lr", "fast"), "fast"),
    "unknown option": (("--learning-speed", "1"), "learning-speed"),
    "one weight too many": (("--clip-weights", "1", "1", "1"), "clip_weights"),
    "patches of small pictures": (("--losses.patch", "1"), "510"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_code_2_one_message_and_no_folder(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    words, expected = BAD[case]
    assert cli.main(arguments(world, tmp_path / "run", *words)) == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_refused_before_work_starts(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, tmp_path / "run", "--generator", damaged(world, tmp_path))) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_folder_is_refused_and_kept(world: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert cli.main(arguments(world, tmp_path / "run")) == 2
    assert (tmp_path / "run").read_text() == "mine"


def test_a_loss_that_is_not_finite_ends_with_code_1_and_the_checkpoint_intact(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(arguments(world, tmp_path / "run", "--method", "nada", "--lr", "1e30", "--layers", "all"))
        == 1
    )
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    assert RunFolder.load(tmp_path / "run").status.state == "failed"


def test_errors_are_told_to_programs_too(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(world, tmp_path / "run", "--generator", "missing.pt", "--json")) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2 and "missing.pt" in told["error"]


def test_options_that_cannot_be_read_are_told_to_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapt", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_sample_writes_a_grid_and_one_picture_per_seed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(world / "run"), "--seeds", "1,4-5", "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seeds"] == [1, 4, 5] and Path(told["grid"]).is_file()
    with Image.open(told["pictures"][1]) as picture:
        assert picture.size == (16, 16)
        texts: Any = picture
        assert (
            texts.text["seed"] == "4" and texts.text["target"] == "zombie" and texts.text["strength"] == "1"
        )


def test_sample_finds_a_moved_source_when_told_where_it_is(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "world"
    shutil.copytree(world, other)
    assert cli.main(arguments(other, other / "second", "--method", "nada")) == 0
    (other / "generator.safetensors").rename(other / "elsewhere.safetensors")
    words = ["sample", str(other / "second"), "--seeds", "1", "--strength", "0.5"]
    assert cli.main(words) == 2
    assert "--generator" in capsys.readouterr().err
    assert cli.main([*words, "--generator", str(other / "elsewhere.safetensors")]) == 0


def test_sample_refuses_seeds_it_cannot_read_and_folders_without_a_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(world / "run"), "--seeds", "one"]) == 2
    assert cli.main(["sample", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "'one'" in said and "not a run folder" in said


def test_doctor_names_versions_and_every_built_in_model(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    guides = {"portraits-clip-a", "portraits-clip-b", "portraits-clip-plain"}
    assert set(told["built-in models"]) >= {"portraits", "portraits-judge"} | guides
    assert code == ("missing" in told["built-in models"].values())
    assert told["versions"]["torch"].startswith("2.")


def test_help_lists_the_verbs_that_exist_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert cli.main(["adapt", "--help"]) == 0
    options = capsys.readouterr().out
    assert all(verb in listed for verb in ("adapt", "sample", "doctor")) and "serve" not in listed
    flags = (
        "generator clip source target method steps batch lr layers seed device precision out recipe "
        "dry-run json"
    )
    assert [flag for flag in flags.split() if f"--{flag} " not in options] == []


def test_an_unknown_verb_is_refused_and_the_known_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fly"]) == 2
    told = capsys.readouterr().err
    assert [verb for verb in cli.VERBS if verb.__name__.lower() not in told] == []


def test_a_recipe_gives_defaults_and_options_override_them() -> None:
    parsed = cli.parse(
        ["adapt", "--recipe", "ipl-paper", "--target", "disney", "--lr", "0.5", "--compat", "official"]
    )
    assert isinstance(parsed, commands.Adapt)
    config = parsed.config
    assert (config.train.lr, config.train.batch, config.mapper.steps) == (0.5, 2, 300)
    assert config.clip == ("openai/clip-vit-base-patch32",) and config.run.recipe == "ipl-paper"
    assert config.quirks.residual == "published"


def test_the_generator_decides_which_recipe_supplies_the_defaults() -> None:
    built_in, own = (
        cli.parse(["adapt", "--target", "x", f"--generator={name}"]) for name in ("portraits", "my.pt")
    )
    assert isinstance(built_in, commands.Adapt) and built_in.config.run.recipe == "portraits"
    assert isinstance(own, commands.Adapt) and own.config.run.recipe == "ipl-paper"


def test_every_verb_that_computes_takes_a_gpu_where_there_is_one() -> None:
    lines = ("adapt --target x", "sample run", "translate run a.png", "evaluate run")
    chosen: list[Any] = [cli.parse(line.split()) for line in lines]
    devices = [chosen[0].config.run.device, chosen[1].device, chosen[2].device, chosen[3].config.device]
    assert devices == ["auto"] * 4


def test_a_terminal_gets_live_bars_and_programs_get_lines(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zeroshift", *arguments(world, tmp_path / "run", "--method", "nada")]
    master, slave = pty.openpty()
    child = subprocess.Popen(
        command, stdout=slave, stderr=slave, env=os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    )
    os.close(slave)
    seen = b""
    try:
        while block := os.read(master, 4096):
            seen += block
    except OSError:  # Linux reports the end of a terminal as an error.
        pass
    assert child.wait() == 0
    os.close(master)
    assert b"\x1b[" in seen and b"4/4" in seen and b"report.html" in seen
