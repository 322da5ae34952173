"""Where the time of a training step goes: counted FLOPs of every part, the machine's measured ceiling, and
the gap between them.

    python benchmarks/cost.py [--worlds vit portraits] [--repeats 3] [--channel-multiplier 1] [--threads 2]

The parts are those of the two loops in `methods/ipl.py`, called on its own trainer with the
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
from zeroshift.methods import directions, losses
from zeroshift.methods.ipl import open_run
from zeroshift.methods.style_backend import StyleBackend
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.training.terms import Terms

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


def stage1(run: ZeroShotRun, parts: Parts) -> None:
    """Parts of a step of stage 1, as in `methods/ipl.py`."""
    run.loop.place.stage = 1
    backend, mapper = run.backend, run.mapper
    assert isinstance(backend, StyleBackend) and mapper is not None
    with torch.no_grad():
        w = parts.measure("latents and mapping", lambda: backend.codes(1))
        pictures = parts.measure("source pictures", lambda: backend.pictures(run.source, w, 1))
        parts.measure("CLIP on pictures", lambda: [clip.encode_image(pictures) for clip in run.clips])
    codes, images = backend.source_features(1, run.clips)

    def terms() -> Terms:
        made = Terms()
        for clip, words, image in zip(run.clips, mapper(codes), images, strict=True):
            (goal,) = clip.targets
            source, target = (clip.prompt_features(words, label, 1) for label in (clip.source, goal))
            added = made.group(clip.weight)
            added.add("contrastive", losses.contrastive(image, source, clip.logit_scale))
            added.add("domain", losses.domain(target, goal.template_mean))
        return made

    parts.measure("prompts and losses", terms)
    parts.measure("backward and Adam", lambda: run.loop.update("mapper", terms()), less=parts.last())


def stage2(run: ZeroShotRun, parts: Parts) -> None:
    """Parts of a step of stage 2, as in `methods/ipl.py`."""
    run.loop.place.stage = 2
    backend = run.backend
    w = parts.measure("latents and mapping", lambda: backend.codes(1))
    parts.measure("selection of layers", lambda: backend.free_layers(1, run.clips))
    with torch.no_grad():
        before = parts.measure("source pictures", lambda: backend.pictures(run.source, w, 1))
        words = run.words(w)
        texts = parts.measure(
            "prompts",
            lambda: [clip.text_direction(each) for clip, each in zip(run.clips, words, strict=True)],
        )
    parts.measure("target pictures", lambda: backend.pictures(run.target, w, 1))

    def terms() -> Terms:
        made = Terms()
        after = backend.pictures(run.target, w, 1)
        with torch.no_grad():
            source = backend.encode_source(run.clips, before, 1)
        for clip, seen, text in zip(run.clips, source, texts, strict=True):
            change = directions.image_direction(seen, clip.encode_image(after), clip.floor)
            made.group(clip.weight).add("direction", losses.directional(change, text))
        return made

    parts.measure("CLIP on pictures", terms, less=parts.last())
    parts.measure("backward and Adam", lambda: run.loop.update("target", terms()), less=parts.last(2))
    parts.measure("running average", run.loop.average)


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
                run = open_run(settings(world, stage, 1, "ours", str(Path(folder) / "run")), given)
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
