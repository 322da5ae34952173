"""Time and memory of fine-tuning a diffusion model with `zs.adapt` against DiffusionCLIP's published
procedure.

    python benchmarks/diffusion.py [--worlds portraits ddpm] [--modes through per-step] [--steps 3] [--at-once
      3] [--threads 2]

The published procedure is written out literally in `benchmarks/literal_diffusion.py`. A step is one visit to
a picture: six of denoising, and in mode per-step as many of the optimiser. Sides take turns, step by step, on
the same model and picture, and in float32 their losses must be equal. Sides under OPTIONS do other work, and
say so. "portraits" is the built-in diffusion model with its two guiding CLIPs; "ddpm" the published
architecture of 256 px models with a ViT-B/16-shaped CLIP, random weights, at 128 px, because the published
procedure fills 24 GB at 256 px. No more than `--at-once` sides are held in memory together, the published one
always among them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import zeroshift as zs
from literal_diffusion import LiteralDiffusion
from turns import Turn, against, least, require_equal, result, take_turns
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import IMAGENET, BytePairTokenizer
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.checkpoints import load_generator_file, save_generator
from zeroshift.methods.backend import Given
from zeroshift.models.diffusion import DiffusionGenerator, build_unet
from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits import render
from zeroshift.portraits.scene import LATENT_DIM
from zeroshift.pretrain import ddpm

PUBLISHED = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
"""Options of the published U-Net of CelebA-HQ at 256 px (google/ddpm-celebahq-256)."""

SAME: dict[str, dict[str, Any]] = {
    "literal": {},
    "ours": {},
    "checkpointing": {"diffusion": {"checkpointing": True}},
    "bf16": {"run": {"precision": "bf16"}},
    "bf16, checkpointing": {"run": {"precision": "bf16"}, "diffusion": {"checkpointing": True}},
}
"""The published procedure, and ours, which computes the same."""

OPTIONS: dict[str, dict[str, Any]] = {
    "backprop_steps 2": {"diffusion": {"backprop_steps": 2}},
    "train_steps 3": {"diffusion": {"train_steps": 3}},
}
"""Options that do less work, and learn something else."""

SIDES = SAME | OPTIONS

THROUGH = {"checkpointing", "bf16, checkpointing", "backprop_steps 2"}
"""Sides that are for mode through alone."""

SIZES = {"portraits": 64, "ddpm": 128}

Json = dict[str, Any]


def generator_of(world: str) -> DiffusionGenerator:
    """The diffusion model of a world: in "portraits" the built-in one, where it is there."""
    if world == "ddpm":
        return DiffusionGenerator(
            build_unet(PUBLISHED | {"sample_size": SIZES[world]}), image_size=SIZES[world]
        )
    try:
        found: Any = zs.load_generator("portraits-ddpm")[0]
        return found
    except zs.ZeroshiftError:
        return ddpm.wrap(build_unet(ddpm.OPTIONS))


def clips_of(world: str) -> list[ClipModel]:
    """The CLIPs of a world, equal in every process, with the published 79 templates."""
    if world == "portraits":
        clips = [zs.load_clip(f"portraits-clip-{letter}") for letter in "ab"]
        for clip in clips:
            clip.templates = IMAGENET
        return clips
    import transformers

    torch.manual_seed(0)
    tokens = {"eos_token_id": 49407, "bos_token_id": 49406}
    shape = transformers.CLIPConfig(text_config=tokens, vision_config={"patch_size": 16})
    return [
        ClipModel(transformers.CLIPModel(shape), BytePairTokenizer(), resolution=224, name="ViT-B/16 shape")
    ]


def picture_of(world: str) -> torch.Tensor:
    """A portrait, of the size of the world."""
    picture = render(z_from_seeds(range(900, 901), LATENT_DIM))
    return F.interpolate(picture, (SIZES[world],) * 2, mode="bicubic").clamp(-1, 1)


def settings(world: str, mode: str, steps: int, side: str, model: str, out: str) -> AdaptConfig:
    """Published sizes, but a short way to the noise; a low rate, so that roundings do not grow from step to
    step."""
    tuning = {"mode": mode, "invert_steps": 6, "lr_growth": 1.0} | SIDES[side].get("diffusion", {})
    visits = steps * tuning.get("train_steps", 6) if mode == "per-step" else steps
    changes: Json = {
        "source": "photo",
        "target": "pencil sketch",
        "generator": model,
        "method": "diffusionclip",
        "train": {"steps": visits, "batch": 1, "lr": 1e-6, "layers": "all", "ema": 0.0, "diffusion": tuning},
        "losses": {"direction": 3.0, "pixel": 1.0},
        "monitor": {"every": 0},
        "run": {
            "device": "cpu",
            "checkpoint_every": 10**6,
            "grid_every": 0,
            "samples": 1,
            **SIDES[side].get("run", {}),
        },
        "clip": ("a", "b") if world == "portraits" else ("a",),
        "out": out,
    }
    return configure(**changes)


def literal_of(model: DiffusionGenerator, clips: list[ClipModel], config: AdaptConfig) -> LiteralDiffusion:
    """The published procedure on a network."""
    return LiteralDiffusion(
        model.unet, clips, config, patch=model.patch, velocity=model.prediction == "v_prediction"
    )


def work(turn: Turn, side: str, world: str, mode: str, steps: int, model: str) -> None:
    """What a side does in its process: the mean loss of every visit."""
    clips, picture = clips_of(world), picture_of(world)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(world, mode, steps, side, model, str(Path(folder) / "run"))
        turn.wait()
        if side == "literal":
            loop = literal_of(opened(model), clips, config)
            noisy = loop.noisy(picture)
            for _ in range(steps):
                losses = list(loop.losses(picture, noisy))
                turn.tell(sum(losses) / len(losses))
            return
        losses, visit = list[float](), config.train.steps // steps

        def hook(event: Json) -> None:
            losses.append(float(event["losses"]["loss"]))
            if len(losses) == visit:
                mean = sum(losses) / visit
                losses.clear()
                turn.tell(mean)

        zs.adapt(config, state=Given(clips=clips, pictures=picture), hook=hook)


def opened(path: str) -> DiffusionGenerator:
    """The model in a file."""
    found: Any = load_generator_file(Path(path))[0]
    return found


def compare(world: str, mode: str, model: str, args: argparse.Namespace) -> list[Json]:
    """Lines of results: the sides of one mode in one world, some at a time, every time beside the published
    procedure."""
    sides = [side for side in args.sides if side != "literal" and (mode == "through" or side not in THROUGH)]
    rows = []
    for start in range(0, len(sides), args.at_once - 1):
        some = ["literal", *sides[start : start + args.at_once - 1]]
        seen = take_turns(
            f"{world} {mode}", some, args.steps, args.threads, work, world, mode, args.steps, model
        )
        found: Json = {"world": world, "mode": mode, "steps": args.steps}
        for side in some:
            found[side] = result(seen[side], least(seen[side][1:]))
            against(found[side], seen[side], found["literal"], seen["literal"])
            if side in SAME and "bf16" not in side:
                require_equal(found[side])
            if side in OPTIONS:
                found[side]["other work"] = True
        rows.append(found)
    return rows


@torch.no_grad()
def inversion(world: str, model: str, repeats: int) -> Json:
    """Seconds in which a picture is made noisy in 40 published steps, in turns, and how far both results are
    from each other."""
    picture, mine = picture_of(world), opened(model)
    config = settings(world, "through", 1, "ours", model, "unused")
    config = configure(config, train={"diffusion": {"invert_steps": 40}})
    theirs = literal_of(opened(model), [], config)
    seconds: dict[str, list[float]] = {"literal": [], "ours": []}
    made: dict[str, torch.Tensor] = {}
    for _ in range(repeats):
        ways = {
            "literal": lambda: theirs.noisy(picture),
            "ours": lambda: mine.invert(picture, config.train.diffusion.t0, 40),
        }
        for side, way in ways.items():
            began = time.perf_counter()
            made[side] = way()
            seconds[side].append(time.perf_counter() - began)
    gap = float((made["ours"] - made["literal"]).abs().max())
    return {
        "world": world,
        "inversion": {side: min(each) for side, each in seconds.items()},
        "largest difference": gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument(
        "--modes", nargs="+", default=["through", "per-step"], choices=["through", "per-step"]
    )
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=3, help="sides held in memory together, 2 or more")
    parser.add_argument(
        "--inversions", type=int, default=0, help="times that a picture is inverted by each side"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Json] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZEROSHIFT_CACHE"] = folder
        for world in args.worlds:
            model = str(Path(folder) / f"{world}.safetensors")
            save_generator(model, generator_of(world))
            for mode in args.modes:
                rows += compare(world, mode, model, args)
            if args.inversions:
                rows.append(inversion(world, model, args.inversions))
    print(json.dumps({"threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
