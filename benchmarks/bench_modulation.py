"""Time of a training step of the generator with both ways of modulating its convolutions.

    python benchmarks/bench_modulation.py [--device cuda] [--size 64] [--batch 8] [--published]

The last line is JSON: milliseconds per step of each path, and `ratio`, grouped over scale. Above 1, scaling
is the faster one.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from zeroshift.models.ops import ModulationPath
from zeroshift.models.seeds import z_from_seeds
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator, resolve_modulation

PATHS: tuple[ModulationPath, ModulationPath] = ("scale", "grouped")


def step_sec(generator: StyleGAN2Generator, w: torch.Tensor, path: ModulationPath, backward: bool) -> float:
    """Seconds of one forward pass, and backward pass where asked for."""
    generator.modulation = path
    synchronize = torch.cuda.synchronize if w.device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        image = generator.synthesize(w)
    if backward:
        image.square().mean().backward()
        generator.zero_grad(set_to_none=True)
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--published", action="store_true", help="published widths instead of those of the built-in generator"
    )
    args = parser.parse_args()

    small = (
        {}
        if args.published
        else {"latent_dim": 64, "style_dim": 128, "channel_base": 2048, "channel_max": 192}
    )
    generator = StyleGAN2Generator(StyleGAN2Config(size=args.size, **small)).to(args.device)
    w = generator.map(z_from_seeds(range(args.batch), generator.latent_dim).to(args.device)).detach()
    result: dict[str, object] = {"device": args.device, "size": args.size, "batch": args.batch}
    for kind, backward in (("inference", False), ("training", True)):
        # Interleaved, and the best of each: other work on the machine then disturbs both alike.
        times = [
            {path: step_sec(generator, w, path, backward) for path in PATHS} for _ in range(args.repeats + 1)
        ][1:]
        best = {path: min(each[path] for each in times) for path in PATHS}
        result |= {f"{kind}_{path}_ms": round(1000 * best[path], 2) for path in PATHS}
        result[f"{kind}_ratio"] = round(best["grouped"] / best["scale"], 3)
        print(f"{kind}: scale {1000 * best['scale']:.1f} ms, grouped {1000 * best['grouped']:.1f} ms a step")
    result["ratio"] = result["training_ratio"]
    result["auto"] = resolve_modulation("auto", torch.device(args.device))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
