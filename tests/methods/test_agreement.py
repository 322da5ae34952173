"""How well directions agree with the true ones: by the slow formula, for whatever a run knows, and only where
the truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.agreement import AGREEMENT_FILE, SEEDS, agreement, direction_agreement
from zeroshift.methods.directions import prompt_direction, prompt_features, residual_feature
from zeroshift.methods.ipl import open_run
from zeroshift.methods.zero_shot import MAPPER_FILE
from zeroshift.models.seeds import z_from_seeds
from zeroshift.worlds.known import register


class Silent(tiny.Described):
    """The same world without words for its pictures."""

    name = "tiny-silent"

    def captions(self, z: Tensor, label: str) -> list[str] | None:
        return None


def cosine(a: Tensor, b: Tensor) -> float:
    first, second = a.double().tolist(), b.double().tolist()
    return sum(x * y for x, y in zip(first, second, strict=True)) / (math.hypot(*first) * math.hypot(*second))


def slow(true: Tensor, found: Tensor) -> tuple[float, float]:
    """Mean cosines of rows, whole and after the mean over rows is taken off."""
    pairs = list(zip(true, found.expand_as(true), strict=True))
    whole = sum(cosine(a, b) for a, b in pairs) / len(pairs)
    if len(found) == 1:
        return whole, 0.0
    own = [cosine(a - true.mean(dim=0), b - found.mean(dim=0)) for a, b in pairs]
    return whole, sum(own) / len(own)


def unit(rows: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)))


def test_agreement_is_that_of_the_slow_formula() -> None:
    true = unit(7, 0)
    for found in (unit(7, 1), unit(1, 2), normalize(true + 0.3 * unit(7, 3))):
        assert agreement(true, found) == pytest.approx(slow(true, found), abs=1e-5)
    assert agreement(true, true) == pytest.approx((1, 1), abs=1e-6)
    assert agreement(true, -true) == pytest.approx((-1, -1), abs=1e-6)


def test_one_direction_for_all_has_nothing_individual_however_often_it_is_written() -> None:
    true, one = unit(64, 0), unit(1, 1)
    rounded = one.expand(64, 5) + 1e-8 * unit(64, 2)
    for found in (one, one.expand(64, 5), rounded):
        assert agreement(true, found) == (pytest.approx(slow(true, one)[0], abs=1e-5), 0.0)


def carried_out(out: Path, world: str, **options: Any) -> AdaptRun:
    return tiny.run(out, state=tiny.given(world=world), **options)


def rows_of(run: AdaptRun) -> list[dict[str, Any]]:
    return json.loads((run.folder.path / AGREEMENT_FILE).read_text("utf-8"))


@torch.no_grad()
def expected(run: AdaptRun, clip: ClipModel, place: int) -> dict[str, tuple[float, float]]:
    """What a run should say of one CLIP, by slow formulas."""
    source, z = tiny.generator(), z_from_seeds(SEEDS, 12)
    w = source.map(z)
    before = normalize(clip.encode_image(source.synthesize(w, "buffers")))
    after = normalize(clip.encode_image(torch.zeros(len(z), 3, 16, 16)))
    true = normalize(after - before)
    labels = [
        normalize(clip.encode_text(clip.templates.sentences(each))).mean(dim=0)
        for each in ("photo", "zombie")
    ]
    texts = [
        normalize(
            clip.encode_text([f"a {label} of a person {'in style' if row[0] > 0 else 'face'}" for row in z])
        )
        for label in ("photo", "zombie")
    ]
    found = {
        "label": normalize(labels[1] - labels[0])[None],
        "captions": normalize(texts[1] - texts[0]),
        "best": normalize(true.mean(dim=0))[None],
    }
    if run.mapper is not None:
        words = run.mapper(w)[place]
        told = [
            prompt_features(clip, words, clip.context, label, residual_feature(clip, clip.context, label))
            for label in ("photo", "zombie")
        ]
        found["words"] = prompt_direction(*told)
    return {name: slow(true, each) for name, each in found.items()}


@pytest.mark.parametrize("method", ["ipl", "coop", "nada"])
def test_a_run_tells_the_agreement_of_all_its_directions(tmp_path: Path, method: str) -> None:
    run = carried_out(tmp_path / "run", tiny.described(), method=method)
    rows = rows_of(run)
    assert [row["clip"] for row in rows] == ["tiny-1", "tiny-2"] and all(row["people"] == 64 for row in rows)
    assert run.folder.agreement == rows
    for place, (row, clip) in enumerate(zip(rows, tiny.clips(), strict=True)):
        wanted = expected(run, clip, place)
        assert row["cosines"].keys() == wanted.keys()
        for name, values in row["cosines"].items():
            own = 0.0 if method == "coop" and name == "words" else wanted[name][1]
            assert values == pytest.approx([wanted[name][0], own], abs=1e-3), name
        # No one direction can be nearer on average than the mean.
        assert row["cosines"]["best"][0] >= row["cosines"]["label"][0]


@pytest.mark.parametrize("mean", ["words", "label"])
def test_the_directions_are_those_along_which_the_run_moved(tmp_path: Path, mean: str) -> None:
    world = tiny.described()
    run = carried_out(tmp_path / "run", world, mapper={"mean": mean, "lr": 0.3})
    mapper = load_file(run.folder.path / MAPPER_FILE)
    again = open_run(
        tiny.config(tmp_path / "again", mapper={"mean": mean, "lr": 0.3}),
        tiny.given(world=world, mapper=mapper),
    )
    again.recentre_directions()
    assert json.loads(json.dumps(direction_agreement(again))) == rows_of(run)
    assert not (tmp_path / "again").exists()


def test_a_world_without_captions_has_no_row_of_them(tmp_path: Path) -> None:
    run = carried_out(tmp_path / "run", register(Silent()).name, method="nada")
    assert [set(row["cosines"]) for row in rows_of(run)] == [{"label", "best"}] * 2


@pytest.mark.parametrize("target", ["statue face", "zombie:0.6 + sketch:0.4"])
def test_where_the_truth_is_not_known_nothing_is_written(tmp_path: Path, target: str) -> None:
    run = carried_out(tmp_path / "run", tiny.described(), method="nada", target=target)
    assert not (run.folder.path / AGREEMENT_FILE).exists() and run.folder.agreement == []


def test_outside_a_world_and_for_diffusion_models_nothing_is_written(tmp_path: Path) -> None:
    styled = tiny.run(tmp_path / "styled", method="nada")
    diffused = adapt(tiny.tune(tmp_path / "diffused"), state=tiny.given_diffusion(world=tiny.described()))
    for run in (styled, diffused):
        assert run.finished and not (run.folder.path / AGREEMENT_FILE).exists()


def test_measuring_directions_changes_no_weight_and_a_finished_run_is_not_measured_again(
    tmp_path: Path,
) -> None:
    known = carried_out(tmp_path / "known", tiny.described())
    unknown = tiny.run(tmp_path / "unknown")
    weights = unknown.generator.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in known.generator.state_dict().items())
    (tmp_path / "known" / AGREEMENT_FILE).write_text("[]\n")
    assert rows_of(carried_out(tmp_path / "known", tiny.described())) == []
