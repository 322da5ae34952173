"""What the trainings of the built-in models share: a resumable loop with a log, and a falling learning
rate."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

CHECKPOINT_SECONDS = 150


def save_atomically(payload: dict, path: Path) -> None:
    """torch.save under a temporary name, then rename: a killed training finds the previous file whole."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(payload, temporary)
    os.replace(temporary, path)


def warmup_cosine(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Learning rate: linear to `peak`, then half a cosine to 2 % of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))


def run_resumably(
    name: str,
    folder: Path,
    steps: int,
    parts: dict[str, torch.nn.Module | torch.optim.Optimizer],
    step_fn: Callable[[int], dict],
) -> float:
    """Calls step_fn(step) -> scalars until `steps`, logging and saving `parts`; the same call continues a
    killed run.

    Returns the seconds spent, over all starts. The draws of a step must depend on its number alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    log = folder / f"{name}.jsonl"
    start, spent = 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location="cpu")
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        start, spent = saved["step"], saved["seconds"]
        print(f"{name}: continuing at step {start} of {steps}", flush=True)
    began = saved_at = time.monotonic()

    def save(step: int) -> None:
        states = {key: part.state_dict() for key, part in parts.items()}
        save_atomically({**states, "step": step, "seconds": spent + time.monotonic() - began}, path)

    for step in range(start, steps):
        scalars = step_fn(step)
        if step % 50 == 0 or step == steps - 1:
            row = {"step": step, "minutes": round((spent + time.monotonic() - began) / 60, 2)}
            row |= {key: round(float(torch.as_tensor(value).detach()), 4) for key, value in scalars.items()}
            print(name, json.dumps(row), flush=True)
            with open(log, "a") as file:
                file.write(json.dumps(row) + "\n")
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            save(step + 1)
            saved_at = time.monotonic()
    if start < steps:
        save(steps)
    return spent + time.monotonic() - began
