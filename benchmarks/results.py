"""Methods against ground truth on the built-in world: `python benchmarks/results.py --out runs/results`.

For every method, target and seed: adapts, then compares 256 pictures of unseen seeds with the true pictures of the same people.
Finished runs are skipped, so the same command continues. Ends with a table in Markdown and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import zeroshift as zs
from zeroshift import portraits
from zeroshift.adapt import AdaptRun

SEEDS = "2000-2255"
COLUMNS = ("recognised", "distance", "frechet", "diversity")


def score(adapted: AdaptRun) -> dict[str, float]:
    """Numbers of one adapted generator against the truth of its target."""
    names = [f"truth.{column}" for column in COLUMNS]
    found = zs.evaluate(adapted, metrics=names, seeds=SEEDS, save=False)
    return {column: found.value(name) for column, name in zip(COLUMNS, names, strict=True)}


def run(method: str, target: str, seed: int, out: Path, overrides: dict) -> dict:
    """One row of results, computed or read back."""
    folder = out / f"{method}-{target.replace(' ', '-')}-seed{seed}"
    kept = folder / "scores.json"
    if kept.exists():
        return json.loads(kept.read_text())
    began = time.perf_counter()
    adapted = zs.adapt(method=method, target=target, seed=seed, out=folder, **overrides)
    minutes = (time.perf_counter() - began) / 60
    row = {"method": method, "target": target, "seed": seed, "minutes": minutes}
    row |= score(adapted)
    kept.write_text(json.dumps(row, indent=2) + "\n")
    return row


def table(rows: list[dict]) -> str:
    """Markdown: one line per target and method, mean over seeds (and half the spread)."""
    lines = [
        "| target | method | recognised | distance to truth | Frechet to truth | diversity / truth's |",
        "|---|---|---|---|---|---|",
    ]
    for target in dict.fromkeys(row["target"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            group = [row for row in rows if row["target"] == target and row["method"] == method]
            cells = []
            for column in COLUMNS:
                values = [row[column] for row in group]
                cells.append(f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}")
            lines.append(f"| {target} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs everything that is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--methods", nargs="+", default=["nada", "ipl"])
    parser.add_argument("--targets", nargs="+", default=list(portraits.TUNING))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=JSON", help="overrides of the recipe, such as train='{\"lr\": 0.01}'"
    )
    args = parser.parse_args()
    overrides = {name: json.loads(value) for name, value in (item.split("=", 1) for item in args.set)}
    rows = []
    for target in args.targets:
        for seed in args.seeds:
            for method in args.methods:
                rows.append(run(method, target, seed, args.out, overrides))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    print(json.dumps({"rows": len(rows), "recognised": statistics.mean(row["recognised"] for row in rows)}))


if __name__ == "__main__":
    main()
