"""Which code of a picture should write the words of Diff-IPL: the choice of ADR 0018, measured.

    python benchmarks/codes.py --targets zombie "pencil sketch" --jobs 2

Every code takes the same run of `zeroshift adapt --generator portraits-ddpm --method ipl`, with words that
really learn (`mapper.lr` 0.3 about the label, ADR 0017), and is measured against the truth of people whom no
training saw. "guide" is the product's own code. Codes are functions of the picture x_0, its noise x_t0, or
the network; "random" tells nothing of the picture, and "label" is the fixed direction of DiffusionCLIP,
without words. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import zeroshift as zs
from zeroshift.clip.features import normalize
from zeroshift.config.recipes import recipe
from zeroshift.config.schema import configure
from zeroshift.methods.adaptation import BACKENDS
from zeroshift.methods.diffusion_backend import DiffusionBackend, InvertedSet
from zeroshift.methods.guidance import ClipObjective
from zeroshift.models.seeds import rng

CODES = ("guide", "other guide", "noise", "middle block", "random", "label")
TIME = 50
"""Time at which the network's middle block is read: little noise, so that it sees the whole picture."""
METRICS = ("truth.recognised", "truth.distance", "truth.frechet", "truth.diversity", "truth.attributes")

Json = dict[str, Any]


class OtherCodes(DiffusionBackend):
    """A run whose words are written from another code of the picture."""

    code = "guide"

    def _inverted_set(self, pictures: Tensor, clips: Sequence[ClipObjective]) -> InvertedSet:
        found = super()._inverted_set(pictures, clips)
        return dataclasses.replace(found, codes=[normalize(code) for code in self.codes_of(found)])

    @torch.no_grad()
    def codes_of(self, found: InvertedSet) -> list[Tensor]:
        """Codes BE for every guiding CLIP."""
        if self.code == "other guide":
            return found.features[::-1]
        if self.code == "noise":
            code = F.adaptive_avg_pool2d(found.noisy, 8).flatten(1)
        elif self.code == "middle block":
            kept: list[Tensor] = []
            block: Any = self.source.unet.mid_block
            hook = block.register_forward_hook(lambda block, given, made: kept.append(made.mean(dim=(2, 3))))
            self.source.predict_noise(found.pictures, TIME)
            hook.remove()
            code = kept[0]
        else:
            keys = [hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest() for row in found.pictures]
            code = torch.stack([torch.randn(64, generator=rng("code", key)) for key in keys]).to(
                found.pictures
            )
        return [code] * len(found.features)

    def code_width(self, clip: ClipObjective) -> int:
        """Width of the code. The two built-in guides have features of one width."""
        if self.code == "other guide":
            return super().code_width(clip)
        middle = self.source.config.unet["block_out_channels"][-1]
        return {"noise": 64 * self.source.channels, "middle block": middle, "random": 64}[self.code]


def measured(kind: str, target: str, seed: int, people: str, device: str) -> Json:
    """Line of results of a code."""
    if kind not in ("guide", "label"):
        BACKENDS["diffusion"] = type("Backend", (OtherCodes,), {"code": kind})
    method = "diffusionclip" if kind == "label" else "ipl"
    contrast: list[float] = []

    def hook(event: Json) -> None:
        if event["stage"] == 1:
            contrast.append(float(event["losses"]["contrastive"]))

    with tempfile.TemporaryDirectory() as folder:
        own = {"method": method, "seed": seed, "device": device, "out": folder + "/run"}
        config = recipe("portraits-ddpm", target, generator="portraits-ddpm", **own)
        config = configure(config, mapper={"lr": 0.3, "mean": "label"}, monitor={"every": 0})
        run = zs.adapt(config, hook=hook)
        found = zs.evaluate(run, seeds=people, metrics=METRICS, device=device)
    last = contrast[-20:]
    row = {"code": kind, "target": target, "seed": seed, "contrast": sum(last) / len(last) if last else None}
    row |= {name.removeprefix("truth."): found.value(name) for name in METRICS}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codes", nargs="+", default=list(CODES), choices=CODES)
    parser.add_argument("--targets", nargs="+", default=["zombie"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--people", default="2000-2127", help="seeds of the people that are measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    asked = [
        (code, target, seed, args.people, args.device)
        for seed in args.seeds
        for target in args.targets
        for code in args.codes
    ]
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        rows = pool.starmap(measured, asked, chunksize=1)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
