"""Comparisons, end to end on tiny models in files: what is run, kept, told, and shown."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tinycompare import METHODS, TARGETS, compared

import zeroshift as zs
from zeroshift.app import cli, commands
from zeroshift.comparison.page import command
from zeroshift.comparison.variants import Variant, changes, parse_variant, parse_variants, variant_config
from zeroshift.comparison.voting import EmbeddedPictures, preferences, read_votes
from zeroshift.config.schema import to_dict
from zeroshift.errors import InputError
from zeroshift.training.run_folder import RunFolder


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}


# Methods.


@pytest.mark.parametrize(
    "text, variant",
    [
        ("ipl", Variant("ipl", "ipl")),
        ("ipl:lambda_domain=10", Variant("ipl:lambda_domain=10", "ipl", (("lambda_domain", "10"),))),
        (
            "far = ipl: mapper.lr=0.1 , train.ema=0.9",
            Variant("far", "ipl", (("mapper.lr", "0.1"), ("train.ema", "0.9"))),
        ),
        (
            "x=ipl:train.layers=convs.2,convs.3,train.lr=1",
            Variant("x", "ipl", (("train.layers", "convs.2,convs.3"), ("train.lr", "1"))),
        ),
        ("plain=nada", Variant("plain", "nada")),
    ],
)
def test_a_method_is_read_with_its_name_and_options(text: str, variant: Variant) -> None:
    assert parse_variant(text) == variant


@pytest.mark.parametrize(
    "text, said",
    [
        ("gan", "unknown method 'gan'"),
        ("ipl:", "^$"),
        ("=ipl", "empty name"),
        ("ipl:mapper.lr", "gives no option its value"),
        ("ipl:seed=3", "cannot differ between methods"),
        ("ipl:target=cat", "cannot differ between methods"),
        ("ipl:mapper.stepz=3", "unknown option 'mapper.stepz'"),
        ("ipl:bogus=3", "unknown option 'bogus'"),
        ("ipl:lr=3", "write mapper.lr or train.lr"),
        ("ipl:mapper.steps=many", "mapper.steps must be a valid integer"),
        ("ipl:mapper=3", "mapper is a section"),
        ("a=ipl:train.ema=2", "method 'a': train.ema must be less than 1"),
    ],
)
def test_a_wrong_method_is_named_before_anything_runs(text: str, said: str, tmp_path: Path) -> None:
    if said == "^$":
        assert parse_variant(text) == Variant("ipl:", "ipl")
        return
    with pytest.raises(InputError, match=re.escape(said)):
        zs.compare(methods=[text], targets=["zombie"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_methods_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be told apart"):
        parse_variants(["Few words=ipl", "few-words=nada"])


def test_options_of_a_variant_come_after_the_shared_ones_and_keep_their_kind() -> None:
    text = "ipl:train.monitor.every=0,clip=a b,free_rgb=false,top_k=4,train.layers=adaptive,context=5"
    variant = parse_variant(text)
    shared = {"recipe": "portraits", "train": {"steps": 7}, "train.monitor.count": 5, "clip": ("c",)}
    made = variant_config(variant, shared, "neon", 3, Path("x"))
    assert (made.method, made.target, made.run.seed, made.run.out) == ("ipl", "neon", 3, Path("x"))
    assert (made.clip, made.mapper.context) == (("a", "b"), "5")
    assert (made.train.free_rgb, made.train.adaptive.top_k, made.train.steps) == (False, 4, 7)
    assert (made.train.monitor.every, made.train.monitor.count) == (0, 5)
    assert made.quirks == zs.recipe("portraits", "neon").quirks


def test_a_variant_may_start_from_another_recipe_and_still_has_the_shared_options() -> None:
    made = variant_config(parse_variant("p=ipl:recipe=ipl-paper"), {"train.steps": 7}, "neon", 0, Path("x"))
    expected = to_dict(zs.recipe("ipl-paper", "neon", train={"steps": 7}))
    assert changes(expected, to_dict(made)) == {"run.out": "x"}


# Runs.


def test_every_run_is_measured_as_evaluate_measures_it(home: Path) -> None:
    table = lines(home / "compare" / "runs.csv")
    assert [(line["label"], line["target"], line["seed"]) for line in table] == [
        (label, target, seed) for seed in "01" for target in TARGETS for label in ("nada", "few")
    ]
    assert all(
        line["state"] == "done" and float(line["minutes"]) > 0 and int(line["memory"]) > 100 for line in table
    )
    assert {(line["label"], line["steps_words"], line["steps_generator"]) for line in table} == {
        ("nada", "0", "3"),
        ("few", "1", "3"),
    }
    for line in (table[0], table[-1]):
        run = home / "compare" / "runs" / f"{line['label']}--{line['target']}--seed{line['seed']}"
        alone = zs.evaluate(run, seeds="0-7", judge=str(home / "judge"), metrics=("clip_score", "diversity"))
        assert float(line["clip_score"]) == pytest.approx(alone.value("clip_score"), abs=1e-6)
        assert float(line["diversity"]) == pytest.approx(alone.value("diversity"), abs=1e-6)
    assert len({line["clip_score"] for line in table}) == 8


def test_the_summary_holds_mean_and_spread_over_seeds(home: Path) -> None:
    runs, summary = (lines(home / "compare" / f"{name}.csv") for name in ("runs", "summary"))
    assert len(summary) == 4
    for line in summary:
        values = [
            float(run["diversity"])
            for run in runs
            if (run["label"], run["target"]) == (line["label"], line["target"])
        ]
        assert float(line["diversity mean"]) == pytest.approx(statistics.mean(values))
        assert float(line["diversity spread"]) == pytest.approx(statistics.stdev(values))


def test_the_mean_over_targets_has_the_spread_of_its_seeds(home: Path) -> None:
    done = compared(home, home / "compare")
    for label, found in done.tables.scores("clip_score", "other").values.items():
        runs = done.table[done.table["label"] == label]
        means = [statistics.mean(runs["clip_score"][runs["seed"] == seed]) for seed in (0, 1)]
        assert found == pytest.approx((statistics.mean(means), statistics.stdev(means), 2))


def test_a_comparison_is_handed_over_as_tables_that_equal_its_files(home: Path) -> None:
    done = compared(home, home / "compare", page_only=True)
    for name, table in (("runs", done.table), ("summary", done.summary), ("wins", done.wins)):
        read = pandas.read_csv(home / "compare" / f"{name}.csv", keep_default_na=name != "runs")
        assert list(read.columns) == list(table.columns) and len(read) == len(table)
        for column in read.columns:
            assert read[column].tolist() == pytest.approx(table[column].tolist())
    assert list(done.table.groupby("label")["clip_score"].count()) == [4, 4]


def test_wins_are_counted_over_pairs_of_runs(home: Path) -> None:
    runs = {
        (run["label"], run["target"], run["seed"]): float(run["clip_score"])
        for run in lines(home / "compare" / "runs.csv")
    }
    (line,) = [line for line in lines(home / "compare" / "wins.csv") if line["metric"] == "clip_score"]
    wins = sum(
        value > runs["nada", target, seed] for (label, target, seed), value in runs.items() if label == "few"
    )
    assert (line["method"], line["against"], int(line["pairs"]), int(line["wins"])) == (
        "few",
        "nada",
        4,
        wins,
    )
    assert float(line["rate low"]) <= float(line["rate"]) == wins / 4 <= float(line["rate high"])


def test_the_same_call_again_runs_nothing_and_another_target_runs_only_that(home: Path, copied: Path) -> None:
    before, events = stamps(copied), []
    compared(home, copied, progress=events.append)
    assert stamps(copied) == before and [event["kind"] for event in events] == ["compare"]
    done = compared(home, copied, targets=(*TARGETS, "statue"), seeds=(0,), progress=events.append)
    begun = [(event["label"], event["target"]) for event in events if event["kind"] == "run"]
    assert begun == [("nada", "statue"), ("few", "statue")]
    assert {name: stamp for name, stamp in stamps(copied).items() if "statue" not in name} == before
    assert len(done.table) == 6 and done.failed == {}


def test_other_seeds_of_pictures_are_measured_anew_without_running_anything(home: Path, copied: Path) -> None:
    weights = [path.stat().st_mtime_ns for path in sorted(copied.rglob("generator.safetensors"))]
    few: dict[str, Any] = {"targets": ("zombie",), "seeds": (0,)}
    shown = compared(home, copied, eval_seeds="8-15", page_only=True, **few)
    assert len(shown.failed) == 2 and "measured in another way" in next(iter(shown.failed.values()))
    again = compared(home, copied, eval_seeds="8-15", **few)
    assert (
        again.failed == {}
        and [path.stat().st_mtime_ns for path in sorted(copied.rglob("generator.safetensors"))] == weights
    )
    values = {line["diversity"] for line in lines(copied / "runs.csv")}
    assert len(values) == 2 and not values & {
        line["diversity"] for line in lines(home / "compare" / "runs.csv")
    }


def test_other_options_in_the_same_folder_are_refused_before_anything_runs(home: Path, copied: Path) -> None:
    before = stamps(copied)
    with pytest.raises(InputError, match="steps: 3 -> 4"):
        compared(home, copied, shared={"train.steps": 4}, targets=("statue", *TARGETS))
    assert stamps(copied) == before


def test_a_run_that_fails_is_told_and_does_not_stop_the_others(home: Path, copied: Path) -> None:
    broken = copied / "runs" / "nada--zombie--seed0"
    for name in ("generator.safetensors", "status.json"):
        (broken / name).unlink()
    (broken / "checkpoint.safetensors").write_bytes(b"no weights")
    shutil.rmtree(copied / "runs" / "few--sketch--seed1")
    done = compared(home, copied)
    assert list(done.failed) == ["nada--zombie--seed0"] and "damaged" in done.failed["nada--zombie--seed0"]
    assert RunFolder.load(copied / "runs" / "few--sketch--seed1").finished
    page = (copied / "compare.html").read_text("utf-8")
    assert "nada, zombie, seed 0" in page and "damaged" in page
    assert [line["state"] for line in lines(copied / "runs.csv")].count("failed") == 1


def test_ctrl_c_leaves_a_page_and_the_same_call_goes_on(home: Path, tmp_path: Path) -> None:
    def press(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["stage"] == 2 and (tmp_path / "out" / "records").exists():
            raise KeyboardInterrupt

    options: dict[str, Any] = {"targets": ("zombie",), "seeds": (0,)}
    with pytest.raises(KeyboardInterrupt, match="1 of 2 runs to do"):
        compared(home, tmp_path / "out", progress=press, **options)
    assert "1 of 2" in (tmp_path / "out" / "compare.html").read_text("utf-8")
    done = compared(home, tmp_path / "out", **options)
    for name in ("nada--zombie--seed0", "few--zombie--seed0"):
        one, other = (
            load_file(folder / "runs" / name / "generator.safetensors")
            for folder in (tmp_path / "out", home / "compare")
        )
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert done.missing == 0 and done.failed == {}


def test_runs_side_by_side_give_the_same_weights_and_one_that_is_broken_stops_no_other(
    home: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "out" / "runs" / "nada--zombie--seed0"
    shutil.copytree(home / "compare" / "runs" / broken.name, broken)
    (broken / "generator.safetensors").unlink()
    (broken / "checkpoint.safetensors").write_bytes(b"no weights")
    done = compared(home, tmp_path / "out", targets=("zombie",), seeds=(0,), jobs=2)
    assert list(done.failed) == [broken.name] and "damaged" in done.failed[broken.name]
    one, other = (
        load_file(folder / "runs" / "few--zombie--seed0" / "generator.safetensors")
        for folder in (tmp_path / "out", home / "compare")
    )
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert list(done.tables.measured["threads"]) == [1]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"targets": ()}, "needs --methods, --targets (or --pictures of one) and --seeds"),
        ({"metrics": ("fame",)}, "no metric 'fame'"),
        ({"eval_seeds": "nine"}, "seeds must be numbers"),
        ({"seeds": (0, 0)}, "cannot be told apart"),
        ({"jobs": 0}, "jobs must be greater"),
        ({"votes": (Path("no.json"),)}, "vote-key.json"),
        ({"shared": {"method": "ipl"}}, "method cannot be given"),
        ({"shared": {"clip": ("nowhere/clip",)}}, "nowhere/clip"),
    ],
)
def test_wrong_options_are_named_before_anything_runs(
    home: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        compared(home, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_words_that_a_guide_never_learned_only_warn(home: Path, copied: Path) -> None:
    with pytest.warns(UserWarning, match="never learned 'gargoyle'"):
        done = compared(home, copied, targets=("gargoyle",), methods=("nada",), seeds=(0,))
    assert done.failed == {} and len(done.table) == 1


# Pages.


def test_the_page_needs_no_other_file_and_shows_every_method_target_and_number(home: Path) -> None:
    page = (home / "compare" / "compare.html").read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page) == [] and "<script" not in page
    assert page.count("data:image/png") == 2 * (
        2 + 1
    )  # per target the methods and the source; there is no truth here
    for text in (*TARGETS, "nada", "few", "mapper.steps", "CLIP score", "nearer to 1 is better", "8 of 8"):
        assert text in page
    line = lines(home / "compare" / "summary.csv")[0]
    assert f"{float(line['clip_score mean']):.3f}"[:-1] in page


def test_the_strips_hold_the_pictures_that_the_runs_draw(home: Path) -> None:
    run = home / "compare" / "runs" / "few--zombie--seed0"
    pictures = EmbeddedPictures()
    for person in range(3):
        pictures.add(home / "compare" / "pictures" / "few--zombie--seed0.png", person)
    psi = RunFolder.load(run).config.run.truncation
    for person, drawn in enumerate(zs.sample(run, range(3), truncation=psi)):
        with Image.open(io.BytesIO(base64.b64decode(pictures.uris[person].split(",")[1]))) as file:
            shown = torch.from_numpy(np.array(file)).permute(2, 0, 1).float() / 127.5 - 1
        factor = shown.shape[-1] // drawn.shape[-1]
        assert (shown[:, ::factor, ::factor] - drawn.clamp(-1, 1)).abs().max() < 0.0045


def test_the_command_on_the_page_reads_back_as_the_same_comparison(home: Path) -> None:
    words = [
        "compare",
        "--methods",
        *METHODS,
        "--targets",
        *TARGETS,
        "--seeds",
        "0",
        "1",
        "--steps",
        "3",
        "--train.free-rgb",
    ]
    words += [
        "--judge",
        "j",
        "--eval-seeds",
        "0-7",
        "--clip",
        "a",
        "b",
        "--recipe",
        "ipl-paper",
        "--device",
        "cpu",
        "--until",
        "converged",
    ]
    asked = cli.parse(words)
    assert isinstance(asked, commands.Compare)
    assert (
        asked.shared["train.steps"] == 3
        and asked.shared["run.device"] == "cpu"
        and asked.shared["clip"] == ["a", "b"]
    )
    again = cli.parse(shlex.split(command(asked.config, asked.shared))[1:])
    assert isinstance(again, commands.Compare)
    assert (again.config, again.shared) == (asked.config, asked.shared)


def test_the_command_line_compares_and_tells_programs_where_everything_is(
    home: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        "--generator",
        str(home / "generator.safetensors"),
        "--clip",
        str(home / "guide"),
        "--judge",
        str(home / "judge"),
    ]
    shared = [
        "--steps",
        "3",
        "--lr",
        "0.02",
        "--train.adaptive.batch",
        "2",
        "--device",
        "cpu",
        "--samples",
        "2",
    ]
    measured = [
        "--metrics",
        "clip_score",
        "diversity",
        "--eval-seeds",
        "0-7",
        "--people",
        "3",
        "--out",
        str(copied),
        "--json",
    ]
    words = [
        "compare",
        "--methods",
        *METHODS,
        "--targets",
        *TARGETS,
        "--seeds",
        "0",
        "1",
        *models,
        *shared,
        *measured,
    ]
    before = stamps(copied)
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["failed"], told["missing"]) == (8, {}, 0)
    assert all(Path(told[name]).is_file() for name in ("page", "vote", "runs", "summary", "wins"))
    assert stamps(copied) == before
    assert cli.main([*words, "--steps", "4"]) == 2 and "steps: 3 -> 4" in capsys.readouterr().err


# Votes.


def test_the_page_of_votes_does_not_say_which_method_is_which(home: Path) -> None:
    page = (home / "compare" / "vote.html").read_text("utf-8")
    key = json.loads((home / "compare" / "vote-key.json").read_text("utf-8"))["pairs"]
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])  # pyright: ignore[reportOptionalSubscript]
    assert re.search(r"\b(nada|few|ipl)\b", re.sub(r"data:image[^\"]*", "", page)) is None
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert {pair["name"] for pair in data["pairs"]} == set(key) and len(key) == 2 * 3
    assert {pair["target"] for pair in data["pairs"]} == set(TARGETS)
    assert all({pair["first"], pair["second"]} == {"nada", "few"} for pair in key.values())


def voted(folder: Path, path: Path, choose: Any) -> Path:
    """A file of votes on every pair of a comparison, as the page gives it."""
    key = json.loads((folder / "vote-key.json").read_text("utf-8"))["pairs"]
    path.write_text(json.dumps({"schema": 1, "votes": {name: choose(pair) for name, pair in key.items()}}))
    return path


def test_votes_become_shares_of_the_later_method_over_the_earlier(
    home: Path, copied: Path, tmp_path: Path
) -> None:
    def choose(pair: dict[str, Any]) -> str:
        if pair["target"] == "sketch":
            return "neither"
        return "first" if (pair["first"] == "few") == (pair["seed"] > 0) else "second"

    files = [voted(copied, tmp_path / f"{number}.json", choose) for number in range(2)]
    rows = preferences(read_votes(files, copied), ["nada", "few"])
    found = {row["target"]: row["shares"][0] for row in rows}
    assert list(found)[-1] == "all" and all(share[:2] == ("few", "nada") for share in found.values())
    zombie, sketch, every = (found[name][2] for name in ("zombie", "sketch", "all"))
    assert (zombie.pairs, zombie.wins, zombie.rate.value) == (6, 4, pytest.approx(4 / 6))
    assert (sketch.pairs, sketch.ties, sketch.rate) == (6, 6, (0.5, 0.5, 0.5))
    assert every.rate.value == pytest.approx((4 + 3) / 12)
    compared(home, copied, page_only=True, votes=tuple(files))
    page = (copied / "compare.html").read_text("utf-8")
    assert "12 votes of 2 files" in page and "few over nada" in page


@pytest.mark.parametrize(
    "content, said",
    [
        ("nothing", "cannot read"),
        ("[]", "no file of votes"),
        ('{"schema": 1}', "no file of votes"),
        ('{"schema": 1, "votes": {"0123": "first"}}', "other pictures"),
    ],
)
def test_files_that_hold_no_votes_of_this_comparison_are_refused(
    home: Path, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "votes.json").write_text(content)
    with pytest.raises(InputError, match=said):
        compared(home, home / "compare", page_only=True, votes=(tmp_path / "votes.json",))


def test_old_votes_stay_valid_when_a_comparison_grows(home: Path, copied: Path, tmp_path: Path) -> None:
    path = voted(copied, tmp_path / "votes.json", lambda pair: "first")
    compared(home, copied, people=4, page_only=True)
    assert len(json.loads((copied / "vote-key.json").read_text("utf-8"))["pairs"]) > 6
    assert len(read_votes([path], copied)) == 6


def test_a_comparison_needs_no_option_of_adapt_and_has_no_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--methods", "nada", "nonsense", "--targets", "neon"]
    assert cli.main(words) == 2 and "nonsense" in capsys.readouterr().err
    assert cli.main([*words, "--dry-run"]) == 2 and "no --dry-run" in capsys.readouterr().err
    # Whether it is the default method or another one.
    for method in ("ipl", "nada"):
        assert cli.main([*words, "--method", method]) == 2
        assert "method cannot be given for a comparison" in capsys.readouterr().err
