"""Which views of a picture help, how many, and what they cost: the table of ADR 0029.

    python benchmarks/views.py --targets "pencil sketch" cartoon --clips portraits-clip-a+portraits-clip-b

Groups of CLIPs are separated by spaces, the CLIPs of a group by +. Every variant is a run of `zeroshift
adapt` in a folder of its own below `--out`, measured against the truth of people whom no training saw; the
same command again goes on where it was stopped, and measures nothing twice. `--set` lays further options over
all of them. Cost is the time of a step of stage 2 over that of a step with one view, in turns in one process.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zeroshift as zs
from zeroshift.config.overrides import from_texts
from zeroshift.config.recipes import resolve
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.writing import write_json
from zeroshift.methods.backend import Given
from zeroshift.methods.ipl import open_run
from zeroshift.methods.steps import clip_terms, move_target, source_and_target
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.training.run_folder import RunFolder
from zeroshift.training.terms import Terms

METRICS = ("recognised", "distance", "frechet", "diversity")
KINDS = ("zoom", "shift", "turn", "flip", "grain")
"""Kinds of change, each tried alone."""

VARIANTS: dict[str, dict[str, Any]] = {
    "1": {"count": 1},
    "2": {"count": 2},
    "4": {"count": 4},
    "8": {"count": 8},
    "4 at half strength": {"count": 4, "strength": 0.5},
} | {f"4, {kind} alone": {"count": 4, **{name: 0.0 for name in KINDS if name != kind}} for kind in KINDS}
"""Name -> options of `train.views`."""

Json = dict[str, Any]


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def config_of(
    target: str, clips: Sequence[str], variant: str, out: Path, args: argparse.Namespace
) -> AdaptConfig:
    """The run of a variant: what suits the generator, without grids, and what was asked for."""
    plain = {"method": args.method, "seed": args.seed, "device": args.device, "clip": tuple(clips)}
    given = dict(each.split("=", 1) for each in args.set)
    config = resolve(None, {"generator": args.generator}, plain, target=target, grid_every=0)
    config = configure(config, {"train.steps": args.steps}, from_texts(AdaptConfig, given))
    return configure(config, {"train": {"views": VARIANTS[variant]}, "out": out})


def measured(config: AdaptConfig, people: str) -> Json:
    """Scores of a run against the truth, kept in its folder."""
    # Refuses scores of a run with other options.
    kept = RunFolder.check(config).path / "views.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if people not in known:
        run = zs.adapt(config)
        names = [f"truth.{name}" for name in METRICS]
        found = zs.evaluate(run, metrics=names, seeds=people, device=config.run.device, save=False)
        known[people] = {name: found.value(f"truth.{name}") for name in METRICS}
        write_json(kept, known)
    return known[people]


def timed(run: ZeroShotRun) -> Iterator[float]:
    """Seconds of every step of stage 2, as `methods/ipl.py` does it."""
    for step in run.loop.steps(2):
        began = time.perf_counter()
        codes = run.backend.codes(step)
        pair = source_and_target(run, codes, step)
        terms = Terms()
        clip_terms(run, terms, pair, run.text_directions(codes))
        move_target(run, terms, pair)
        # The loss on the host: everything before it is done.
        float(terms.total().detach())
        yield time.perf_counter() - began


def costs(target: str, clips: Sequence[str], args: argparse.Namespace) -> dict[str, float]:
    """Time of a step of every variant over that of one with one view; medians of steps in turns."""
    by_count = {VARIANTS[name]["count"]: name for name in ("1", *args.variants)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides: dict[int, Iterator[float]] = {}
        for count, name in by_count.items():
            config = config_of(target, clips, name, Path(folder) / str(count), args)
            quiet = {
                "train.steps": args.cost_steps + 1,
                "train.monitor.every": 0,
                "run.checkpoint_every": 10**6,
            }
            run = open_run(configure(config, quiet), Given())
            stack.enter_context(run.loop.recorded())
            sides[count] = timed(run)
        # The first step of each warms up.
        turns = [{count: next(side) for count, side in sides.items()} for _ in range(args.cost_steps + 1)][1:]
        for side in sides.values():
            list(side)
    median = {count: statistics.median(turn[count] for turn in turns) for count in sides}
    return {name: median[VARIANTS[name]["count"]] / median[1] for name in args.variants}


def table(rows: Sequence[Json]) -> str:
    """Markdown: one line per variant."""
    lines = [
        "| views | recognised | distance to truth | Frechet | diversity over truth's | cost of a step |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = " | ".join(f"{row[name]:.3f}" for name in METRICS)
        cost = f"{row['cost']:.2f}" if "cost" in row else ""
        lines.append(f"| {row['views']} | {scores} | {cost} |")
    return "\n".join(lines)


def means(rows: Sequence[Json]) -> list[Json]:
    """Rows of each variant, averaged over targets."""
    by_name: dict[str, list[Json]] = {}
    for row in rows:
        by_name.setdefault(row["views"], []).append(row)
    return [
        same[0] | {name: statistics.fmean(row[name] for row in same) for name in METRICS}
        for same in by_name.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", default=["pencil sketch", "cartoon"])
    parser.add_argument("--clips", nargs="+", default=["portraits-clip-a+portraits-clip-b"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=300, help="steps of stage 2")
    parser.add_argument("--method", default="nada")
    parser.add_argument("--generator", default="portraits")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs")
    parser.add_argument("--seeds", default="2000-2127", help="seeds of the people that are measured")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="options of all runs")
    parser.add_argument("--cost-steps", type=int, default=8, help="steps that are timed; 0: none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/views"))
    args = parser.parse_args()
    told: list[Json] = []
    for group in args.clips:
        clips = group.split("+")
        cost = costs(args.targets[0], clips, args) if args.cost_steps else {}
        found: list[Json] = []
        for target in args.targets:
            rows: list[Json] = []
            for name in args.variants:
                out = args.out / slug(group) / slug(target) / slug(name)
                scores = measured(config_of(target, clips, name, out, args), args.seeds)
                row = {"clips": group, "target": target, "views": name, **scores}
                rows.append(row | ({"cost": cost[name]} if name in cost else {}))
                print(json.dumps(rows[-1]), flush=True)
            print(f"\n{target}, {group}, {args.method}\n\n{table(rows)}\n", flush=True)
            found += rows
        if len(args.targets) > 1:
            print(f"\nmean over {len(args.targets)} targets, {group}\n\n{table(means(found))}\n", flush=True)
        told += found
    asked = {name: value for name, value in vars(args).items() if name not in ("out", "variants")}
    print(json.dumps({"benchmark": "views", "asked": asked, "rows": told}))


if __name__ == "__main__":
    main()
