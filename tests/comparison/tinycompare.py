"""A comparison of tiny models in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zeroshift.comparison.compare import Comparison, compare, plan_jobs
from zeroshift.comparison.jobs import RunJob
from zeroshift.config.measuring import CompareConfig, NetworksConfig

METHODS = ("nada", "few=ipl:mapper.steps=1,mapper.batch=3")
TARGETS = ("zombie", "sketch")


def asked(home: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a comparison of tiny models, and those that all its runs share."""
    shared = {
        "generator": str(home / "generator.safetensors"),
        "clip": (str(home / "guide"),),
        "train.steps": 3,
        "train.lr": 0.02,
        "train.adaptive.batch": 2,
        "run.device": "cpu",
        "run.samples": 2,
        **options.pop("shared", {}),
    }
    chosen = {
        "methods": METHODS,
        "targets": TARGETS,
        "seeds": (0, 1),
        "people": 3,
        "eval_seeds": "0-7",
        "metrics": ("clip_score", "diversity"),
        "judge": str(home / "judge"),
    }
    return chosen | options, shared


def compared(home: Path, out: Path, **options: Any) -> Comparison:
    """A comparison carried out, or gone on with."""
    chosen, shared = asked(home, **options)
    return compare(out=out, shared=shared, **chosen)


def planned(home: Path, out: Path) -> list[RunJob]:
    """The runs of that comparison as jobs."""
    chosen, shared = asked(home)
    networks = NetworksConfig(judge=chosen.pop("judge"))
    return plan_jobs(CompareConfig(**chosen, out=out, networks=networks), shared)
