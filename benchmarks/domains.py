"""One picture of many domains: `python benchmarks/domains.py RUN_FOLDER ... --out docs/domains.png`.

The source's pictures of the first seeds, then for every run of the built-in world what it makes of them, and
the truth below. Of 256 colours, to be small.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import zeroshift as zs
from zeroshift.shapes import Picture
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_of

LABEL_PX = 92
SEEDS = range(8)


def strip(pictures: Picture) -> Image.Image:
    """Pictures BCHW in [-1, 1] side by side."""
    eight_bit = ((torch.cat(list(pictures), 2) + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(eight_bit.permute(1, 2, 0).numpy())


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[tuple[str, Image.Image]] = []
    for folder in args.folders:
        run = zs.load(folder)
        finished = RunFolder.load(folder)
        if not rows:
            rows.append((finished.config.source, strip(run.sample(seeds=SEEDS, strength=0.0))))
        rows.append((finished.config.target, strip(run.sample(seeds=SEEDS))))
        world = world_of(finished.environment["source"])
        truth = world and world.truth_of_seeds(SEEDS, finished.config.target, rows[0][1].height)
        if truth is not None:
            rows.append(("truth", strip(truth)))
    width, height = rows[0][1].size
    sheet = Image.new("RGB", (LABEL_PX + width, len(rows) * (height + 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(rows):
        top = number * (height + 2)
        sheet.paste(pictures, (LABEL_PX, top))
        pen.text((4, top + height // 2 - 6), label, fill="black")
    sheet.quantize(256).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
