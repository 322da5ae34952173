"""Where the time of a training step goes: counted FLOPs of every part, the machine's measured ceiling, and
the gap between them.

    python benchmarks/cost.py [--worlds vit portraits] [--repeats 3] [--channel-multiplier 1] [--threads 2]

The parts are those of the two loops in `zeroshift.methods.adapt`, called on its own trainer with the
models of `benchmarks/adapt.py`. A
multiplication and an addition count as two; element-wise work counts as none, so the gap is what memory and
overhead cost. The ceiling is the fastest of a matrix product and four convolutions of StyleGAN2's shapes.
Prints tables, then a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adapt import latents, models, settings
from zeroshift.methods.style_backend import StyleTrainer

SHAPES = ((512, 32), (256, 64), (128, 128), (64, 256))
"""Channels and side of the convolutions that the ceiling is measured with."""


def least(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least seconds of a call after a first one, and what it gives."""
    result, seconds = call(), []
    for _ in range(repeats):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def ceiling(repeats: int) -> float:
    """GFLOP/s of the fastest dense operation."""
    square = torch.ones(2048, 2048)
    rates = [2 * 2048**3 / least(lambda: square @ square, repeats)[0]]
    for channels, side in SHAPES:
        x = torch.ones(4, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = torch.ones(channels, channels, 3, 3)
        seconds = least(lambda x=x, weight=weight: torch.conv2d(x, weight, padding=1), repeats)[0]
        rates.append(2 * 4 * channels**2 * 9 * side**2 / seconds)
    return max(rates) / 1e9


class Parts:
    """Rows of the table: name, GFLOP, seconds."""

    def __init__(self, repeats: int) -> None:
        self.repeats, self.rows = repeats, []

    def measure(self, name: str, call: Callable[[], Any], less: tuple[float, float] = (0.0, 0.0)) -> Any:
        """Adds a part and gives its result; `less` is taken off, for a call that repeats an earlier part."""
        with FlopCounterMode(display=False) as counter:
            call()
        seconds, result = least(call, self.repeats)
        self.rows.append((name, counter.get_total_flops() / 1e9 - less[0], max(0.0, seconds - less[1])))
        return result

    def last(self, count: int = 1) -> tuple[float, float]:
        """GFLOP and seconds of the last parts together."""
        return sum(row[1] for row in self.rows[-count:]), sum(row[2] for row in self.rows[-count:])


def stage1(run: StyleTrainer, parts: Parts) -> None:
    """Parts of a step of stage 1."""
    run.stage = 1
    with torch.no_grad():
        w = parts.measure("latents and mapping", lambda: run.codes(1))
        pictures = parts.measure("source pictures", lambda: run.pictures(run.source, w, 1))
        parts.measure("CLIP on pictures", lambda: [guide.see(pictures) for guide in run.guides])
    _, images = run.seen(1)

    def losses() -> list[dict[str, torch.Tensor]]:
        return [
            guide.word_losses(*each) for guide, *each in zip(run.guides, run.mapper(w), images, strict=True)
        ]

    parts.measure("prompts and losses", losses)
    parts.measure("backward and Adam", lambda: run.update(1, losses()), less=parts.last())


def stage2(run: StyleTrainer, parts: Parts) -> None:
    """Parts of a step of stage 2."""
    run.stage = 2
    w = parts.measure("latents and mapping", lambda: run.codes(1))
    parts.measure("selection of layers", lambda: run.free_layers(1))
    with torch.no_grad():
        before = parts.measure("source pictures", lambda: run.pictures(run.source, w, 1))
        words = run.mapper(w)
        texts = parts.measure(
            "prompts",
            lambda: [guide.direction_of(each) for guide, each in zip(run.guides, words, strict=True)],
        )
    parts.measure("target pictures", lambda: run.pictures(run.target, w, 1))

    def losses() -> list[dict[str, torch.Tensor]]:
        after = run.pictures(run.target, w, 1)
        return [
            run.compare(guide, before, after, text, 1) for guide, text in zip(run.guides, texts, strict=True)
        ]

    parts.measure("CLIP on pictures", losses, less=parts.last())
    parts.measure("backward and Adam", lambda: run.update(1, losses()), less=parts.last(2))
    parts.measure("running average", run.average)


def table(rows: list[tuple[str, float, float]], top: float) -> str:
    """Markdown: one line per part."""
    lines = [
        "| part | GFLOP | ms | share | GFLOP/s | of the ceiling | ms at the ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    total = sum(row[2] for row in rows)
    for name, work, seconds in [*rows, ("together", sum(row[1] for row in rows), total)]:
        rate = work / seconds if seconds else 0.0
        cells = (
            f"{1000 * seconds:.1f} | {seconds / total:.0%} | {rate:.0f} | {rate / top:.0%} | "
            f"{1000 * work / top:.1f}"
        )
        lines.append(f"| {name} | {work:.2f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", default=["vit", "portraits"], choices=["vit", "portraits"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--channel-multiplier", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    top, result = ceiling(args.repeats + 2), []
    print(f"ceiling: {top:.0f} GFLOP/s in float32, {args.threads} threads")
    for world in args.worlds:
        for stage, measure in ((1, stage1), (2, stage2)):
            generator, clips = models(world, args.channel_multiplier)
            given = latents(generator, stage, 1)
            given.generator, given.clips = generator, clips
            with tempfile.TemporaryDirectory() as folder:
                run = StyleTrainer(settings(world, stage, 1, "ours", str(Path(folder) / "run")), given)
                run.load()
                parts = Parts(args.repeats)
                measure(run, parts)
            print(f"\n{world}, stage {stage}\n\n{table(parts.rows, top)}", flush=True)
            work, seconds = parts.last(len(parts.rows))
            result.append(
                {
                    "world": world,
                    "stage": stage,
                    "gflop": work,
                    "seconds": seconds,
                    "of_ceiling": work / seconds / top,
                }
            )
    print(json.dumps({"ceiling_gflops": round(top, 1), "threads": args.threads, "rows": result}))


if __name__ == "__main__":
    main()
