"""The recipes on the built-in world, each on the target it is meant for: `python benchmarks/bench_recipes.py`
(about 6 minutes).

For style, identity and far: pictures of 128 unseen people against the true pictures of the same people, as
`zeroshift evaluate` measures them. For in-domain: the share of those people whom the judge, which never
guides, sees with the attribute asked for, before and after, and how many of their other attributes stay.
Prints a table and one line of JSON; 1 where a score is worse than LIMITS, which are a little easier than the
scores in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import zeroshift as zs
from zeroshift.files.registry import load_clip
from zeroshift.measure.features import read_attributes
from zeroshift.methods.adapt import AdaptRun
from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits.scene import CHOICES, LATENT_DIM, sample_scene
from zeroshift.worlds.portraits import Portraits

PEOPLE, SEEDS = range(2000, 2128), "2000-2127"
TARGETS = {
    "style": "watercolor",
    "identity": "zombie",
    "in-domain": "person with sunglasses",
    "far": "pencil sketch",
}
WANTED = ("glasses", "sunglasses")
"""Attribute that the in-domain target asks for."""
LIMITS = {
    "style": {"way": (0.7, 1.1), "recognised": (0.9, 1.0), "frechet": (0.0, 0.2), "diversity": (0.8, 1.25)},
    "identity": {"way": (0.84, 1.1), "frechet": (0.0, 0.3), "diversity": (0.8, 1.4)},
    "in-domain": {"after": (0.5, 1.0), "others kept": (0.8, 1.0)},
    "far": {"way": (0.76, 1.1), "recognised": (0.8, 1.0), "frechet": (0.0, 0.3), "diversity": (0.8, 1.8)},
}


def against_truth(run: AdaptRun) -> dict[str, float]:
    """Scores of a run whose target is a domain of the built-in world."""
    names = ("way", "recognised", "distance", "frechet", "diversity")
    found = zs.evaluate(run, metrics=[f"truth.{name}" for name in names], seeds=SEEDS, save=False)
    return {name: found.value(f"truth.{name}") for name in names}


@torch.no_grad()
def attribute_gained(run: AdaptRun) -> dict[str, float]:
    """Share of people seen with the attribute before and after, and how many others are read right, relative
    to the source."""
    judge, (wanted, choice) = load_clip("portraits-judge"), WANTED
    z = z_from_seeds(PEOPLE, LATENT_DIM)
    scene = sample_scene(z)
    all_have = torch.full_like(scene.choice[wanted], CHOICES[wanted][0].index(choice))
    asked = replace(scene, choice={**scene.choice, wanted: all_have})
    read = {}
    for name, generator in (("before", run.source), ("after", run.generator)):
        pictures = torch.cat([generator.synthesize(generator.map(part)) for part in z.split(16)]).clamp(-1, 1)
        read[name] = read_attributes(judge, judge.encode_image(pictures), Portraits(), asked.choice)
    others = [read["after"][name] / read["before"][name] for name in CHOICES if name != wanted]
    return {
        "before": read["before"][wanted],
        "after": read["after"][wanted],
        "others kept": sum(others) / len(others),
    }


def main() -> int:
    """0 where every recipe reaches its score, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument(
        "--target", help="another target than the one the limits belong to; checks nothing then"
    )
    args = parser.parse_args()
    told, bad = {}, []
    for name in args.recipes:
        began, target = time.perf_counter(), args.target or TARGETS[name]
        with tempfile.TemporaryDirectory() as folder:
            run = zs.adapt(recipe=name, target=target, seed=0, out=Path(folder) / "run", grid_every=0)
            scores = attribute_gained(run) if name == "in-domain" else against_truth(run)
        told[name] = {"target": target, "minutes": (time.perf_counter() - began) / 60, **scores}
        print(
            f"{name:10} {target:24}",
            "  ".join(f"{key} {value:.3f}" for key, value in scores.items()),
            flush=True,
        )
        limits = {} if args.target else LIMITS[name]
        bad += [
            f"{name}: {key} {scores[key]:.3f}"
            for key, (low, high) in limits.items()
            if not low <= scores[key] <= high
        ]
    print(json.dumps({"benchmark": "recipes", "seed": 0, "recipes": told}))
    if bad:
        print("worse than published: " + "; ".join(bad), file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
