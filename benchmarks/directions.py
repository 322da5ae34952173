"""How well text directions agree with the true picture directions of the built-in world: `python
benchmarks/directions.py`.

The true direction of a person is that from the feature of the source's picture to the feature of the true
picture of the same person, as the guiding CLIP sees them. For every CLIP and target, over 64 people of unseen
seeds, the mean cosine with it of

- label: the direction of the two labels, which is NADA's;
- best: the mean of the true directions, the best that one direction for all could be;
- captions: each person's own direction between captions that name what the pictures show, what perfect words
  would give;
- words: IPL's learned words after stage 1, by the options of the recipe (`--options` lays others over them,
  such as '{"mapper": {"lr": 0.1}}').

Agreement in what is individual: the cosine of captions (or words) and truth after the mean over people is
taken off each. `contrastive`: the loss at the end of stage 1 over that of chance, the logarithm of the batch.
Every run of `adapt` writes the same numbers for its own CLIPs (directions.json, and the report).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from zeroshift.methods.adapt import adapt
from zeroshift.methods.agreement import AGREEMENT_FILE
from zeroshift.portraits import TUNING

COLUMNS = ("label", "best", "captions", "words")


def measured(clip: str, target: str, options: dict[str, Any]) -> dict[str, Any]:
    """Agreement of one CLIP and target after stage 1, with the loss at its end over that of chance."""
    quiet = {"train": {"steps": 1, "monitor": {"every": 0}}, "run": {"grid_every": 0}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run = adapt(target=target, clip=(clip,), out=out, **{**quiet, **options})
        (row,) = json.loads((out / AGREEMENT_FILE).read_text("utf-8"))
        last = [line for line in run.folder.metrics() if line["stage"] == 1][-10:]
        contrastive = sum(line["contrastive"] for line in last) / len(last)
        return {**row, "target": target, "contrastive": contrastive / math.log(run.config.mapper.batch)}


def main() -> None:
    """Prints a table in Markdown and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    guides = ["portraits-clip-a", "portraits-clip-b", "portraits-clip-plain"]
    parser.add_argument("--clips", nargs="+", default=guides)
    parser.add_argument("--targets", nargs="+", default=list(TUNING))
    parser.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON", help="overrides of the runs"
    )
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    titles = (*COLUMNS, "individual part of captions", "of words", "contrastive loss over chance")
    print(f"| CLIP | target | {' | '.join(titles)} |")
    print("|---" * (2 + len(titles)) + "|")
    for clip in args.clips:
        for target in args.targets:
            row = measured(clip, target, args.options)
            rows.append(row)
            cosines = row["cosines"]
            cells = [cosines[name][0] for name in COLUMNS] + [cosines[name][1] for name in COLUMNS[2:]]
            shown = " | ".join(f"{value:.3f}" for value in [*cells, row["contrastive"]])
            print(f"| {clip} | {target} | {shown} |", flush=True)
    print(json.dumps({"benchmark": "directions", "rows": rows}))


if __name__ == "__main__":
    main()
