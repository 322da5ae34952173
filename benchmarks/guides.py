"""Whether guiding CLIPs prefer the truth to what adaptation under them makes: `python benchmarks/guides.py
RUN_FOLDER ...`.

For every finished run of the built-in world's generator with styles and every CLIP that guided it, over 256
people of unseen seeds: the share of people whose true picture has a lower directional loss than their adapted
picture, by the loss, direction and length that the run itself followed. Beside it the mean losses of source,
adapted and true pictures. A guide that is followed downhill should like nothing better than the truth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from zeroshift.config.schema import configure
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.methods import losses
from zeroshift.methods.agreement import seen
from zeroshift.methods.backend import Given
from zeroshift.methods.directions import image_direction
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.ipl import open_run
from zeroshift.methods.zero_shot import MAPPER_FILE
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_of

SEEDS = range(2000, 2256)
PART = 32


def losses_of(clip: ClipObjective, source: Tensor, target: Tensor, text_direction: Tensor) -> Tensor:
    """Directional loss of every picture, by the form that the run followed; unit features BE."""
    quirks = clip.config.quirks
    rows = zip(source.split(1), target.split(1), text_direction.expand_as(source).split(1), strict=True)
    if quirks.length == "point":
        found = [losses.to_point(*row, clip.length, quirks.across) for row in rows]
    else:
        found = [losses.directional(image_direction(s, t, clip.floor), d) for s, t, d in rows]
    return torch.stack(found)


@torch.no_grad()
def measured(folder: Path) -> list[dict[str, Any]]:
    """A row per CLIP that guided a run."""
    finished = RunFolder.load(folder)
    config = finished.config
    mapper = load_file(folder / MAPPER_FILE) if config.learns_words else None
    with tempfile.TemporaryDirectory() as elsewhere:
        # The same run in a folder that is not there yet: what guides it is loaded, nothing is written.
        run = open_run(configure(config, run={"out": Path(elsewhere) / "run"}), Given(mapper=mapper))
    run.recentre_directions()
    world = world_of(finished.environment["source"])
    assert world is not None, "only worlds know the truth"
    adapted: Any = load_generator_file(finished.generator_file)[0]
    z = world.latents(SEEDS)
    w = run.source.map(z)
    pictures = [
        torch.cat([each.synthesize(part, "buffers") for part in w.split(PART)])
        for each in (run.source, adapted)
    ]
    pictures.append(world.truth(z, config.target, run.source.image_size))
    rows = []
    for clip, words in zip(run.clips, run.words(w), strict=True):
        source, made, truth = (seen(clip, each) for each in pictures)
        text_direction = clip.text_direction(words)
        at = {
            name: losses_of(clip, source, each, text_direction)
            for name, each in (("source", source), ("adapted", made), ("truth", truth))
        }
        share = float((at["truth"] < at["adapted"]).float().mean())
        row = {"target": config.target, "method": config.method, "seed": config.run.seed, "clip": clip.name}
        rows.append(row | {"truth_above": share} | {name: float(each.mean()) for name, each in at.items()})
    return rows


def main() -> None:
    """Prints a table in Markdown and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    rows: list[dict[str, Any]] = []
    print("| target | method | seed | CLIP | truth above adapted | source | adapted | truth |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in parser.parse_args().folders:
        for row in measured(folder):
            rows.append(row)
            numbers = " | ".join(f"{row[name]:.3f}" for name in ("truth_above", "source", "adapted", "truth"))
            print(
                f"| {row['target']} | {row['method']} | {row['seed']} | {row['clip']} | {numbers} |",
                flush=True,
            )
    print(json.dumps({"benchmark": "guides", "people": len(SEEDS), "rows": rows}))


if __name__ == "__main__":
    main()
