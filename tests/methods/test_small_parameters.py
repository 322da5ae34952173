"""Runs in which a few parameters move: what they leave, that they resume without a trace, and what they
refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import zeroshift as zs
from zeroshift.app import cli
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file, save_generator
from zeroshift.files.deltas import load_delta
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.methods.backend import Given

KINDS = ("affine", "lowrank", "domain")
ENDS = {
    "affine": ("modulation.weight", "modulation.bias"),
    "lowrank": ("conv.weight",),
    "domain": ("modulation.weight", "modulation.bias"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a generator."""
    path = tmp_path_factory.mktemp("source") / "generator.safetensors"
    save_generator(path, tiny.generator())
    return path


def options(kind: str, source: Path, **train: Any) -> dict[str, Any]:
    """Options of a short run of a file."""
    train = {"lr": 0.05, "parameters": {"kind": kind, "rank": 2}} | train
    return {"method": "nada", "generator": str(source), "train": train}


def carry_out(out: Path, kind: str, source: Path, hook: Any = None, **train: Any) -> AdaptRun:
    return tiny.run(out, hook=hook, state=Given(clips=tiny.clips()), **options(kind, source, **train))


def differing(first: Any, second: Any) -> set[str]:
    """Names of the tensors in which two models differ."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_an_ordinary_generator_and_a_small_file_that_makes_the_same_one(
    source: Path, tmp_path: Path, kind: str
) -> None:
    run = carry_out(tmp_path / "run", kind, source, layers="convs.0,convs.1", free_rgb=True)
    names = differing(run.source, run.generator)
    assert names and {name.split(".conv.")[0] for name in names} == {
        *("convs.0", "convs.1", "to_rgb1", "to_rgbs.0", "to_rgbs.1")
    }
    assert all(name.endswith(ENDS[kind]) for name in names)
    assert differing(load_generator_file(run.folder.generator_file)[0], run.generator) == set()
    assert differing(zs.load(run.folder.delta_file()), run.generator) == set()
    assert torch.equal(zs.sample(run, [1], truncation=1.0), zs.sample(run.folder.delta_file(), [1]))
    facts = load_delta(run.folder.delta_file()).metadata
    assert (facts["target"], facts["source_sha256"]) == ("zombie", run.folder.environment["source"]["sha256"])
    assert json.loads(facts["run"])["train"]["parameters"]["kind"] == kind
    assert run.folder.delta_file().stat().st_size < run.folder.generator_file.stat().st_size
    assert differing(run.trained, run.generator), "the result is the average, not the last step"
    again = carry_out(tmp_path / "run", kind, source, layers="convs.0,convs.1", free_rgb=True)
    assert again.steps_done == 0 and differing(again.generator, run.generator) == set()


def test_weights_leave_no_such_file(source: Path, tmp_path: Path) -> None:
    carry_out(tmp_path / "run", "weights", source)
    assert not list(tmp_path.glob("run/*delta*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(source: Path, tmp_path: Path, kind: str) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            raise ZeroDivisionError

    whole = carry_out(tmp_path / "whole", kind, source)
    with pytest.raises(ZeroDivisionError):
        carry_out(tmp_path / "run", kind, source, hook=stop)
    resumed = carry_out(tmp_path / "run", kind, source)
    assert 0 < resumed.steps_done < 5
    assert differing(resumed.generator, whole.generator) == set()
    assert differing(resumed.trained, whole.trained) == set()
    first, second = (load_delta(each.folder.delta_file()).tensors for each in (resumed, whole))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_that_of_the_small_parameters(source: Path, tmp_path: Path, kind: str) -> None:
    run = carry_out(tmp_path / "run", kind, source, steps=1, ema=0.75, layers="convs.1")
    for name in differing(run.source, run.trained):
        before, now, mean = (each.state_dict()[name] for each in (run.source, run.trained, run.generator))
        # Of low rank: left moved from 0 and right, whose gradient was 0, did not.
        torch.testing.assert_close(mean - before, 0.25 * (now - before), rtol=1e-3, atol=1e-6)


def test_adaptive_selection_says_whose_parameters_move(source: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    run = carry_out(tmp_path / "run", "domain", source, events.append, steps=1, adaptive={"top_k": 2})
    names = {name.split(".conv.")[0] for name in differing(run.source, run.trained)}
    assert names and names == set(events[0]["layers"])
    driven = {each.name: each.latent for each in run.source.layers()}
    assert {driven[name] for name in names} == set(events[0]["chosen"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_record_is_the_result_where_the_run_goes_on_until_it_converged(
    source: Path, tmp_path: Path, kind: str
) -> None:
    watch = {"every": 1, "count": 2, "patience": 1, "least_gain": 1.9, "least_diversity": 0.0}
    run = carry_out(tmp_path / "run", kind, source, until="converged", monitor=watch)
    assert run.folder.monitor_records()[-1]["best"] == 1 and run.folder.status.step == 2
    assert differing(load_generator_file(run.folder.best_file)[0], run.generator) == set()
    assert differing(zs.load(run.folder.delta_file()), run.generator) == set()
    assert differing(run.source, run.generator)


def test_a_plan_counts_what_moves(source: Path, tmp_path: Path) -> None:
    for kind, per_layer in (
        ("affine", 16 * 16 + 16),
        ("lowrank", 2 * (16 + 16 * 9)),
        ("domain", 16),
        ("weights", 16 * 16 * 9 + 16 * 16 + 16 + 16 + 1),
    ):
        config = tiny.config(tmp_path / "run", **options(kind, source, layers="convs.0,convs.1"))
        planned = plan(config, state=Given(clips=tiny.clips()))
        assert planned.parameters["movable"] == 2 * per_layer
        assert planned.layers == ("convs.0", "convs.1")
        assert planned.parameters["generator"] == sum(each.numel() for each in tiny.generator().parameters())


def test_what_cannot_work_is_refused_before_the_folder_is_made(source: Path, tmp_path: Path) -> None:
    weights = tiny.generator(3).state()
    with pytest.raises(InputError, match="parameters.kind domain begins at the source"):
        tiny.run(tmp_path / "run", state=tiny.given(target=weights), train={"parameters": {"kind": "domain"}})
    with pytest.raises(InputError, match="kind affine moves the affine layers"):
        carry_out(tmp_path / "run", "affine", source, layers="input")
    with pytest.raises(InputError, match="train.parameters.kind must be 'weights', 'affine'"):
        tiny.config(tmp_path / "run", train={"parameters": {"kind": "all"}})
    tuned = tiny.tune(tmp_path / "run", train={"parameters": {"kind": "domain"}})
    with pytest.raises(InputError, match="this one is a diffusion model; use 'weights' or 'lowrank'"):
        adapt(tuned, state=tiny.given_diffusion())
    assert not (tmp_path / "run").exists()


def test_a_diffusion_model_moves_by_a_change_of_low_rank(tmp_path: Path) -> None:
    save_generator(tmp_path / "source.safetensors", tiny.diffusion())
    given = Given(clips=tiny.clips())
    train = {"parameters": {"kind": "lowrank", "rank": 1}, "steps": 2}
    place = str(tmp_path / "source.safetensors")
    run = adapt(tiny.tune(tmp_path / "run", generator=place, train=train), state=given)
    assert differing(run.source, run.generator)
    assert differing(zs.load(run.folder.delta_file()), run.generator) == set()


def test_the_command_line_draws_from_the_small_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = carry_out(tmp_path / "run", "domain", source)
    words = ["sample", str(run.folder.delta_file()), "--seeds", "0,1", "--out", str(tmp_path / "pictures")]
    assert cli.main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 2
    other = tmp_path / "other.safetensors"
    save_generator(other, tiny.generator(9))
    assert cli.main([*words, "--generator", str(other)]) == 2
    assert "is not the source generator of" in capsys.readouterr().err
    assert cli.main(["adapt", "--target", "x", "--parameters", "none", "--dry-run"]) == 2
