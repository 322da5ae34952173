"""Comparisons of diffusion models: they are measured, and the page says how their pictures were made."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from zeroshift.comparison.compare import compare
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.clips import save_clip


def test_runs_of_diffusion_models_are_compared_and_the_page_says_how_their_pictures_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROSHIFT_CACHE", str(tmp_path / "cache"))
    save_generator(tmp_path / "ddpm.safetensors", tiny.diffusion())
    for name, seed in (("guide", 1), ("judge", 5)):
        save_clip(tiny.clip(seed), tmp_path / name)
    tuning = {"t0": 300, "invert_steps": 3, "train_steps": 2, "sample_steps": 3, "num_pictures": 4}
    shared = {
        "recipe": "portraits-ddpm",
        "generator": str(tmp_path / "ddpm.safetensors"),
        "clip": (str(tmp_path / "guide"),),
    }
    shared |= {f"train.diffusion.{name}": value for name, value in tuning.items()} | {
        "train.monitor.every": 0
    }
    shared |= {"mapper.steps": 2, "mapper.batch": 3, "train.steps": 2, "run.device": "cpu", "run.samples": 2}
    done = compare(
        methods=("diffusionclip", "ipl"),
        targets=("zombie",),
        seeds=(0,),
        people=3,
        eval_seeds="0-7",
        metrics=("clip_score", "diversity"),
        judge=str(tmp_path / "judge"),
        out=tmp_path / "out",
        shared=shared,
    )
    assert not done.failed and list(done.table["method"]) == ["diffusionclip", "ipl"]
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert "pictures of the source, inverted and generated" in page and "truncation" not in page
    assert "inverted to time 300 on 3 points" in page
