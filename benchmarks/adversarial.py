"""Time and memory of a step against a discriminator, with and without its penalties and augmentation.

    python benchmarks/adversarial.py [--methods tgan freezed] [--augments none ada] [--sizes 64] [--batch 4]
                                     [--steps 17]

64 px is the built-in generator's architecture; other sizes have NVIDIA's paper256 widths. Weights are random.
Every choice of method, augmentation and size runs in a process of its own, on ten random pictures, with R1 in
every 16th step and path lengths in every 4th. Seconds are the least over steps of a kind. `planned` is what
`--dry-run` estimates, `peak` what the process held at most above what it held before the run (on a GPU: what
PyTorch did). Prints a line each, then a line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from turns import peak_bytes
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.images import write_png
from zeroshift.methods.adapt import adapt, plan
from zeroshift.methods.backend import Given
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

SHOTS = 10


def given(size: int) -> Given:
    """Generator and discriminator of a size, of random weights."""
    small = {"latent_dim": 64, "style_dim": 128, "mapping_depth": 5, "channel_base": 2048, "channel_max": 192}
    wide = {"channel_base": 16384, "channel_max": 512}
    config = StyleGAN2Config(size=size, **(small if size == 64 else wide))
    return Given(generator=StyleGAN2Generator(config), discriminator=StyleGAN2Discriminator(config))


def config_of(method: str, augment: str, size: int, args: argparse.Namespace, folder: Path) -> AdaptConfig:
    """A run of one method, on random pictures that it makes."""
    shots = folder / "shots"
    shots.mkdir()
    draw = torch.Generator().manual_seed(0)
    for number in range(SHOTS):
        write_png(shots / f"{number}.png", torch.rand(3, size, size, generator=draw) * 2 - 1)
    return configure(
        AdaptConfig(target="x"),
        method=method,
        shots={"folder": shots},
        adversarial={"augment": {"kind": augment}},
        train={"steps": args.steps, "batch": args.batch, "layers": "all", "monitor": {"every": 0}},
        run={"out": folder / "run", "device": args.device, "grid_every": 0, "samples": 1},
    )


def measured(method: str, augment: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Least seconds of steps by what was due in them, and bytes, planned and held."""
    torch.set_num_threads(args.threads)
    cuda = args.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as name:
        state = given(size)
        config = config_of(method, augment, size, args, Path(name))
        planned = plan(config, state=state).memory_bytes
        before = 0 if cuda else peak_bytes()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        lines = adapt(config, state=state).folder.metrics()
    peak = torch.cuda.max_memory_allocated() if cuda else peak_bytes() - before
    seconds = defaultdict[str, list[float]](list)
    for line in lines[1:]:  # the first one warms up
        due = [each for each in ("r1", "path") if each in line]
        seconds[" and ".join(due) or "plain"].append(line["seconds"])
    return {
        "method": method,
        "augment": augment,
        "size": size,
        **{due: min(each) for due, each in seconds.items()},
        "mean": sum(line["seconds"] for line in lines[1:]) / (len(lines) - 1),
        "planned": planned,
        "peak": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["tgan", "freezed"])
    parser.add_argument("--augments", nargs="+", default=["none"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    rows = []
    for size, method, augment in itertools.product(args.sizes, args.methods, args.augments):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measured, (method, augment, size, args))
        rows.append(row)
        times = ", ".join(f"{name} {value:.3f} s" for name, value in row.items() if isinstance(value, float))
        sizes = ", ".join(f"{name} {row[name] / 2**20:,.0f} MiB" for name in ("planned", "peak"))
        print(f"{method:8} {augment:11} {size:4} px, batch {args.batch}: {times}; {sizes}", flush=True)
    print(json.dumps({"benchmark": "adversarial", "device": args.device, "batch": args.batch, "rows": rows}))


if __name__ == "__main__":
    main()
