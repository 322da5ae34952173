"""How well text directions agree with the true picture directions of the built-in world: `python
benchmarks/directions.py`.

The true direction of a person is that from the feature of the photo to the feature of the true picture of the
same person, as the guiding CLIP sees them. For every CLIP and target, over 128 people of unseen seeds, the
mean cosine with it of

- label: the direction of the two labels, which is NADA's;
- best: the mean of the true directions, the best that one direction for all could be;
- captions: each person's own direction between captions that name every attribute of theirs, what perfect
  words would give;
- words: IPL's learned words after stage 1 (`--words` with the overrides of a run, such as '{"mapper": {"lr":
  0.3}}').

Agreement in what is individual: the cosine of captions (or words) and truth after the mean over people is
taken off each.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from zeroshift.clip.features import normalize, text_direction
from zeroshift.clip.model import ClipModel
from zeroshift.devices import Precision
from zeroshift.files.registry import load_clip
from zeroshift.methods.adapt import adapt
from zeroshift.methods.guidance import clip_objective
from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits import captions, render
from zeroshift.portraits.scene import LATENT_DIM, sample_scene

SEEDS = range(2000, 2128)


@torch.no_grad()
def seen(clip: ClipModel, pictures: Tensor) -> Tensor:
    """Unit features of pictures."""
    return normalize(torch.cat([clip.encode_image(part) for part in pictures.split(64)]))


@torch.no_grad()
def caption_directions(clip: ClipModel, z: Tensor, target: str) -> Tensor:
    """Each person's direction from the caption of the photo to the same caption of the target."""
    scene = sample_scene(z)
    texts = [
        [captions.full_caption(scene, row, domain, random.Random(row)) for row in range(len(z))]
        for domain in ("photo", target)
    ]
    before, after = (normalize(clip.encode_text(each)) for each in texts)
    return normalize(after - before)


@torch.no_grad()
def word_directions(name: str, z: Tensor, target: str, overrides: dict) -> Tensor:
    """Each person's direction of the words that stage 1 learns with one guiding CLIP."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"train": {"steps": 1, "monitor": {"every": 0}}, "run": {"grid_every": 0}}
        with torch.enable_grad():
            run = adapt(target=target, clip=(name,), out=Path(folder) / "run", **quiet, **overrides)
    assert run.mapper is not None
    (words,) = run.mapper(run.source.map(z))
    precision = Precision("fp32", torch.device("cpu"))
    return clip_objective(load_clip(name), 1.0, run.config, precision).text_direction(words)


def row(truth: Tensor, found: Tensor) -> tuple[float, float]:
    """Mean cosine with the true directions, and with what is individual in them."""
    individual = cosine_similarity(found - found.mean(0), truth - truth.mean(0), dim=1)
    return float((found * truth).sum(dim=1).mean()), float(individual.mean())


def main() -> None:
    """Prints a table in Markdown and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips", nargs="+", default=["portraits-clip-a", "portraits-clip-b", "portraits-clip-plain"]
    )
    parser.add_argument(
        "--targets", nargs="+", default=["pencil sketch", "cartoon", "marble statue", "zombie", "watercolor"]
    )
    parser.add_argument(
        "--words", type=json.loads, metavar="JSON", help="also train the words, with these overrides"
    )
    args = parser.parse_args()
    z, rows = z_from_seeds(SEEDS, LATENT_DIM), []
    print(
        "| CLIP | target | label | best | captions | individual part of captions | words | individual part "
        "of words |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in args.clips:
        clip = load_clip(name)
        photos = seen(clip, render(z))
        for target in args.targets:
            truth = normalize(seen(clip, render(z, target)) - photos)
            with torch.no_grad():
                values = [row(truth, text_direction(clip, "photo", target).expand_as(truth))[0]]
            values += [row(truth, normalize(truth.mean(dim=0, keepdim=True)).expand_as(truth))[0]]
            values += row(truth, caption_directions(clip, z, target))
            if args.words is not None:
                values += row(truth, word_directions(name, z, target, args.words))
            rows.append({"clip": name, "target": target, "cosines": values})
            cells = [f"{value:.3f}" for value in values] + ["-"] * (6 - len(values))
            print(f"| {name} | {target} | {' | '.join(cells)} |", flush=True)
    print(json.dumps({"benchmark": "directions", "people": len(SEEDS), "rows": rows}))


if __name__ == "__main__":
    main()
