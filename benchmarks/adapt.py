"""Time and memory of a step of `zs.adapt` against the published procedure written out literally
(`benchmarks/literal.py`).

    python benchmarks/adapt.py [--worlds vit portraits] [--stages 1 2] [--steps 4] [--channel-multiplier 1]
      [--threads 2]

Every side lives in a process of its own, which says its own peak memory; the sides take turns, step by step,
on the same models and the same injected latents, and their losses must be equal. "vit" is a ViT-B/32-shaped
CLIP with a 256 px StyleGAN2 of random weights; "portraits" the built-in models. Seconds are the least over
the steps after the first, which warms up: other work on the machine only adds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch

import zeroshift as zs
from turns import Row, Turn, against, least, require_equal, result, take_turns
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import IMAGENET, BytePairTokenizer
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.checkpoints import with_styles
from zeroshift.files.registry import load_generator
from zeroshift.methods.backend import Given
from zeroshift.models.seeds import draw_z, rng
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

SIDES: dict[str, dict[str, Any]] = {
    "literal": {},
    "ours": {},
    "amortised": {"train": {"adaptive": {"every": 2}}},
    "reused": {"mapper": {"pictures": 32}},
    "bf16": {"run": {"precision": "bf16"}},
}
"""The published procedure, and ours: the same work; with steps that select layers and steps that do not; with
pictures of stage 1 that are shown again; in bfloat16."""

ONLY = {"amortised": 2, "reused": 1}
"""Sides that differ in one stage alone."""

SHOWN, SELECTED = 4, 10
"""Times that stage 1 shows a picture on the side "reused", and steps from one selection to the next on the
side "amortised"."""


def models(world: str, multiplier: int) -> tuple[StyleGAN2Generator, list[ClipModel]]:
    """Generator and CLIPs, equal in every process, with the published 79 templates."""
    if world == "portraits":
        clips = [zs.load_clip(f"portraits-clip-{letter}") for letter in "ab"]
        for clip in clips:
            clip.templates = IMAGENET
        return with_styles(load_generator("portraits")[0], "portraits", "this benchmark"), clips
    import transformers

    torch.manual_seed(0)
    shape = transformers.CLIPConfig(text_config={"eos_token_id": 49407, "bos_token_id": 49406})
    clip = ClipModel(
        transformers.CLIPModel(shape), BytePairTokenizer(), resolution=224, name="ViT-B/32 shape"
    )
    return StyleGAN2Generator(StyleGAN2Config(size=256, channel_multiplier=multiplier)).eval(), [clip]


def settings(world: str, stage: int, steps: int, side: str, out: str) -> AdaptConfig:
    """Published sizes, layers chosen adaptively in both worlds; low rates, so that roundings do not grow from
    step to step."""
    stage2 = {"steps": steps if stage == 2 else 1, "batch": 2, "lr": 1e-4}
    changes: dict[str, Any] = {
        "source": "photo",
        "target": "pencil sketch",
        "mapper": {"steps": steps if stage == 1 else 1, "batch": 32 if stage == 1 else 2, "lr": 1e-3}
        | SIDES[side].get("mapper", {}),
        "train": stage2 | SIDES[side].get("train", {}),
        "quirks": {"noise": "buffers"},
        "run": {"checkpoint_every": 10**6, "grid_every": 0, **SIDES[side].get("run", {})},
        "clip": ("a", "b") if world == "portraits" else ("a",),
        "out": out,
    }
    return configure(**changes)


def latents(generator: StyleGAN2Generator, stage: int, steps: int) -> Given:
    """The same latents for all sides; a small step of stage 1 comes before stage 2.

    Later steps of stage 1 show the latents of the first one again, in the orders that `mapper.pictures`
    takes, so that all sides must have the same losses.
    """

    def stack(label: str, count: int, batch: int) -> torch.Tensor:
        return torch.stack([draw_z(generator.latent_dim, batch, 0, label, step) for step in range(count)])

    (first,) = stack("1", 1, 32 if stage == 1 else 2)
    orders = [torch.randperm(32, generator=rng("stage1 order", 0, step)) for step in range(1, steps)]
    again = [first[order] for order in orders] if stage == 1 else []
    count = steps if stage == 2 else 1
    return Given(
        stage1_z=torch.stack([first, *again]),
        stage2_z=stack("2", count, 2),
        select_z=stack("select", count, 8),
    )


def work(turn: Turn, side: str, world: str, stage: int, steps: int, multiplier: int) -> None:
    """What a side does in its process."""
    generator, clips = models(world, multiplier)
    given = latents(generator, stage, steps)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(world, stage, steps, side, str(Path(folder) / "run"))
        turn.wait()
        if side == "literal":
            run_literal(config, generator, clips, given, stage, turn.tell)
            return
        given.generator, given.clips = generator, clips

        def hook(event: dict[str, Any]) -> None:
            if event["stage"] == stage:
                turn.tell(float(event["losses"]["loss"]))

        zs.adapt(config, state=given, hook=hook)


def run_literal(
    config: AdaptConfig, generator: Any, clips: list[ClipModel], given: Given, stage: int, tell: Any
) -> None:
    """The published procedure on the given latents, from the mapper that a run with this config starts
    from."""
    from literal import Literal
    from zeroshift.methods.prompts import PromptMapper, prompt_mapper

    heads = [
        prompt_mapper(
            [clip], clip.context, generator.style_dim, seed=rng("mapper", 0, index).initial_seed()
        ).heads[0]
        for index, clip in enumerate(clips)
    ]
    loop = Literal(generator, clips, PromptMapper(cast(Any, heads)), config)
    assert given.stage1_z is not None and given.stage2_z is not None and given.select_z is not None
    if stage == 1:
        for z in given.stage1_z:
            tell(loop.stage1(z))
        return
    loop.stage1(given.stage1_z[0])
    for z, select_z in zip(given.stage2_z, given.select_z, strict=True):
        tell(loop.stage2(z, select_z))


def compare(world: str, stage: int, args: argparse.Namespace) -> dict[str, Any]:
    """One line of results: all sides of one stage in one world, taking turns."""
    sides = [side for side in args.sides if ONLY.get(side, stage) == stage]
    given = (world, stage, args.steps, args.channel_multiplier)
    seen = take_turns(f"{world} stage {stage}", sides, args.steps, args.threads, work, *given)
    found: dict[str, Any] = {"world": world, "stage": stage, "steps": args.steps}
    for side in sides:
        found[side] = result(seen[side], typical(side, seen[side]))
        if side == "reused":
            found[side]["seconds"] = (found["ours"]["seconds"] + (SHOWN - 1) * found[side]["seconds"]) / SHOWN
        against(found[side], seen[side], found["literal"], seen["literal"])
    require_equal(found["ours"])
    return found


def typical(side: str, rows: list[Row]) -> float:
    """Least after the first step; the mean over steps with and without a selection where it is not made at
    every step."""
    if side != "amortised":
        return least(rows[1:])
    return ((SELECTED - 1) * least(rows[1::2]) + least(rows[2::2])) / SELECTED


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", default=["vit", "portraits"], choices=["vit", "portraits"])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2], choices=[1, 2])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--channel-multiplier",
        type=int,
        default=1,
        help="1: NVIDIA's paper256, 2: config-f, twice the channels",
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = [compare(world, stage, args) for world in args.worlds for stage in args.stages]
    print(json.dumps({"threads": args.threads, "channel_multiplier": args.channel_multiplier, "rows": rows}))


if __name__ == "__main__":
    main()
