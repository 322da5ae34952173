"""Golden folders that are not whole: our own fails, a foreign one skips and says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import goldenlib
import goldentrain
from zeroshift.models.diffusion import DiffusionGenerator

TESTS = Path(__file__).parent


def test_our_own_folder_is_whole() -> None:
    listed = json.loads((goldenlib.OWN / goldenlib.CONTENTS).read_text(encoding="utf-8"))
    assert goldenlib.contents(goldenlib.OWN) == listed


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of two groups of our folder, which counts as our own until ZEROSHIFT_GOLDEN names another."""
    for run in ("stylegan2_nvidia/res16_cond", "ddim/steps"):
        shutil.copytree(goldenlib.OWN / run, tmp_path / run)
    monkeypatch.delenv("ZEROSHIFT_GOLDEN", raising=False)
    monkeypatch.setattr(goldenlib, "OWN", tmp_path)
    return tmp_path


def remarks() -> list[str]:
    """What was remarked so far, which is kept out of the summary of this session."""
    said = list(goldenlib.REMARKS)
    goldenlib.REMARKS.clear()
    return said


def rewrite(run: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None) -> None:
    """Writes the arrays, and the description, of a run anew."""
    np.savez(run / "data.npz", **arrays)  # pyright: ignore[reportArgumentType]  # its own keyword is no array
    if meta is not None:
        (run / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def test_a_group_a_run_and_an_array_that_vanished_from_our_folder_fail(house: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="tests/golden lacks the group arcface"):
        goldenlib.require("ddim", "arcface")
    with pytest.raises(pytest.fail.Exception, match="tests/golden lacks such a run of ddim"):
        goldenlib.one("ddim", "guided_unet")
    _, arrays = goldenlib.load(goldenlib.one("ddim", "steps"))
    for ask in (arrays.__getitem__, arrays.optional, arrays.tensors().__getitem__):
        with pytest.raises(pytest.fail.Exception, match="lacks the array y of ddim/steps"):
            ask("y")
    with pytest.raises(AssertionError, match="no test compares"):
        goldenlib.check_known(arrays, set(arrays) - {"x"})


def test_the_same_are_skipped_or_remarked_in_a_foreign_folder(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goldenlib, "OWN", TESTS / "golden")
    monkeypatch.setenv("ZEROSHIFT_GOLDEN", str(house))
    with pytest.raises(pytest.skip.Exception, match="the golden folder lacks the group arcface"):
        goldenlib.require("ddim", "arcface")
    _, arrays = goldenlib.load(goldenlib.one("ddim", "steps"))
    with pytest.raises(pytest.skip.Exception, match="lacks the array y of ddim/steps"):
        arrays["y"]
    assert arrays.optional("y") is None
    goldenlib.check_known(arrays, set(arrays) - {"x"})
    assert remarks() == [
        "ddim/steps: no array y, so it was not compared",
        "ddim/steps: the array x is not covered yet",
    ]


def test_a_parameter_is_left_where_a_group_has_no_run_with_a_mark(house: Path) -> None:
    (alone,) = goldenlib.params("arcface")
    assert alone.values == (None,)
    assert [(mark.name, mark.args) for mark in alone.marks] == [("lacking", ("the group arcface",))]
    assert [each.id for each in goldenlib.params("ddim")] == ["steps"]


def large_ddpm(run: Path) -> None:
    """Rewrites the golden steps of DDPM as a network of another size and schedule would have given them.

    The numbers are our own: what is tested is that sizes and schedule are told by the description.
    """
    meta, arrays = goldenlib.load(run / "meta.json")
    config = meta["config"] | {"res": 32, "beta_end": 0.01}
    meta = meta | {"config": config}
    made = goldentrain.ddpm_of(meta, meta["keys"])
    draws = np.random.default_rng(0)
    x = torch.from_numpy(draws.standard_normal((3, 3, 32, 32), dtype=np.float32))
    kept = {name: arrays[name] for name in ("eps_t", "time_embedding")}
    found = {"x": x, "betas": made.betas, "alphas_cumprod": made.alphas_bar}
    found |= {"logvar_fixedsmall": made.log_variances[0], "logvar_fixedlarge": made.log_variances[1]}
    for row, times in enumerate(torch.from_numpy(kept["eps_t"])):
        found[f"eps_{row}"] = made.predict_noise(x, times)
    found["ddim_400_300"] = made.step(x, 400, 300, made.predict_noise(x, 400))
    rewrite(run, kept | {name: value.numpy() for name, value in found.items()}, meta)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says about a foreign folder of two groups: one array is missing, one model is larger."""
    folder = tmp_path_factory.mktemp("foreign")
    for run in ("stylegan2_nvidia/res16_cond", "ddim/steps"):
        shutil.copytree(goldenlib.OWN / run, folder / run)
    _, arrays = goldenlib.load(goldenlib.OWN / "stylegan2_nvidia/res16_cond/meta.json")
    rewrite(folder / "stylegan2_nvidia/res16_cond", {k: v for k, v in arrays.items() if k != "ws_random"})
    large_ddpm(folder / "ddim/steps")
    (folder / "unheard_of").mkdir()
    files = ("models/test_golden_nvidia.py", "models/test_golden_ddim.py", "files/test_golden_arcface.py")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(str(TESTS / file) for file in files)],
        env=os.environ | {"ZEROSHIFT_GOLDEN": str(folder)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_foreign_folder_passes_with_what_it_has_and_names_what_it_lacks(outcome: str) -> None:
    assert "golden stylegan2_nvidia/res16_cond: no array ws_random, so it was not compared" in outcome
    assert "the golden folder lacks the group arcface" in outcome
    assert "the golden folder lacks such a run of ddim" in outcome
    assert "the golden folder lacks the array step_noise of ddim/steps" in outcome
    assert "golden group not covered yet: unheard_of" in outcome
    assert "golden group not covered yet: ddim" not in outcome


def test_a_ddpm_of_other_sizes_is_built_as_its_description_says() -> None:
    meta = goldenlib.description(goldenlib.OWN / "ddim/steps/meta.json")
    meta["config"] |= {"res": 32, "beta_end": 0.01, "var_type": "fixedlarge"}
    made = goldentrain.ddpm_of(meta, meta["keys"])
    assert isinstance(made, DiffusionGenerator)
    assert (made.image_size, made.variance) == (32, "fixedlarge")
    assert float(made.betas[-1]) == pytest.approx(0.01)


def test_limits_widen_where_the_authors_own_roundings_are_larger(tmp_path: Path) -> None:
    arrays = {"loss": np.array([1.0, 2.0, 2.0])}
    shifted = arrays["loss"] + np.array([0.0, 0.0, 0.02])
    for name, loss in (("run_float64", arrays["loss"]), ("run", shifted.astype(np.float32))):
        np.savez(tmp_path / f"{name}.npz", loss=loss)
        (tmp_path / f"{name}.json").write_text(json.dumps({"grad_norms_per_step": [{"w": 1.0}] * 3}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSHIFT_GOLDEN", str(tmp_path.parent))
        limit, strict = (
            goldentrain.limits("nada", tmp_path / f"{name}.json") for name in ("run", "run_float64")
        )
    early, late = goldentrain.DRIFT["nada"]
    assert limit("loss", 0) == limit("loss", 1) == early
    assert limit("loss", 2) == pytest.approx(goldentrain.ROUNDINGS * 0.01, rel=1e-4)
    assert limit("loss_per_clip", 2) == late and strict("loss", 2) == goldentrain.STRICT


def test_a_comparison_remarks_what_came_nearest_to_its_limit() -> None:
    found = goldentrain.Comparison(lambda name, step: 0.1 if name == "loss" else 1.0, "group/run")
    found.steps("loss", torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]))
    found.array("picture", torch.ones(2), torch.tensor([1.0, 1.25]))
    found.array("absent", torch.ones(2), None)
    assert found.held()
    assert remarks() == ["group/run: worst 0.5 of the limit 1.0e-01 (loss[1])"]
    found.array("other", torch.ones(2), torch.tensor([float("nan"), 1.0]))
    assert not found.held() and len(remarks()) == 1
