"""NADA through our own `adapt` against trajectories of the authors' code: one and two CLIPs, mixed losses, a
fixed phase."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import goldenlib
from goldentrain import (
    Comparison,
    Done,
    Json,
    check_start,
    clip,
    compare_stage_2,
    group,
    limits,
    options,
    templates,
    train_options,
)
from zeroshift.config.schema import configure
from zeroshift.methods.backend import Given

NAME = "nada_trajectory"


def is_run(meta: Json) -> bool:
    return "lambdas" in meta


RUNS = goldenlib.cases(NAME, is_run, {"two_clip_mixed_losses_*_float64": 2, "two_clip_auto1_*_float64": 1})


def test_runs_of_nada_are_there_and_begin_as_officially() -> None:
    goldenlib.require(NAME, "clip_text_image")
    words = group(NAME).words
    tokens = {
        f"tokens_templates_{side}": templates().sentences(words[f"{side}_class"])
        for side in ("source", "target")
    }
    check_start(group(NAME), tokens | {"tokens_target": [words["target_class"]]}, {})


@pytest.mark.parametrize(("run", "steps"), RUNS)
def test_the_generator_moves_as_in_the_golden_run(
    run: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (meta, arrays), shared = goldenlib.load(run), group(NAME)
    facts, weights = {**shared.words, **meta}, meta["lambdas"]
    if weights["lambda_texture"]:
        pytest.skip("the texture loss is compared as a single number, in nada_losses")
    dtype = torch.from_numpy(arrays["loss"]).dtype
    config = configure(
        **options(meta["clip_models"], meta["clip_model_weights"], shared.words),
        method="nada",
        noise=meta["noise"],
        losses={
            "direction": weights["lambda_direction"],
            "global_clip": weights["lambda_global"],
            "manifold": weights["lambda_manifold"],
            "patch": weights["lambda_patch"],
        },
        train=train_options(facts, steps or facts["steps"]),
    )
    given = Given(
        generator=shared.source,
        clips=[clip(name) for name in meta["clip_models"]],
        stage2_z=shared.arrays["z"],
        select_z=torch.from_numpy(arrays["auto_z"]) if "auto_z" in arrays else None,
        target=shared.target,
        dtype=dtype,
    )
    done = Done(config, given, stage=2, patch=monkeypatch)
    kind = "nada, one phase" if facts.get("phase") else "nada"
    found = Comparison(limits(kind, run), arrays.run)
    goldenlib.check_known(arrays, compare_stage_2(done, shared, meta, arrays, found))
    assert found.held()
