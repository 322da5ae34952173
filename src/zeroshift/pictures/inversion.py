"""Pictures through noise and back: inversion kept by content, mixtures of diffusion models, and what is made
of both.

Kim et al., DiffusionCLIP (CVPR 2022): a picture is inverted with the source model and generated with the
adapted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from zeroshift.config.schema import FinetuneConfig
from zeroshift.errors import InputError, RunError
from zeroshift.files.writing import fingerprint, write_tensors
from zeroshift.models.diffusion import DiffusionGenerator, Predictor
from zeroshift.models.seeds import rng

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""

CACHE = "ZEROSHIFT_CACHE"
"""Environment variable with the folder of what can be computed again."""

AT_ONCE = {"cpu": 1}
"""Pictures inverted at a time, by kind of device. One on a CPU, so that its bits do not depend on the
others."""


@dataclass(frozen=True)
class Route:
    """How pictures go to noise and back: up to time `t0` on a grid of `invert_steps` points, down in `steps`
    steps."""

    t0: int = 500
    invert_steps: int = 40
    steps: int = 40

    @classmethod
    def of(cls, config: FinetuneConfig, t0: int | None = None, steps: int | None = None) -> Route:
        """That of a run where its results are shown or measured, unless said otherwise."""
        return cls(t0 or config.t0, config.invert_steps, steps or config.sample_steps)


# 1. Kept by content.


def cache_folder(kind: str) -> Path:
    """Folder for one kind of things that can be computed again; it may be deleted at any time."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "zeroshift") / kind


def model_key(model: DiffusionGenerator) -> str:
    """SHA-256 of all that a diffusion model computes by."""
    config = json.dumps(asdict(model.config), sort_keys=True, default=str)
    return hashlib.sha256((fingerprint(model.state()) + config).encode()).hexdigest()


def kept(kind: str, key: str, shape: Sequence[int], make: Callable[[], Tensor]) -> Tensor:
    """A tensor of this key and shape from the cache, or else made, kept there for the next time, and given on
    the CPU.

    A cache that cannot be read or written is passed over; a file in it that is damaged is made again.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = cache_folder(kind) / key[:2] / f"{key}.safetensors"
    try:
        found = load_file(path)["x"]
        if tuple(found.shape) == tuple(shape) and bool(found.isfinite().all()):
            return found
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    made = make().detach().cpu()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"x": made}, {})
    except (OSError, InputError, RunError):
        pass
    return made


def made_pictures(
    model: DiffusionGenerator, seeds: Sequence[int], steps: int, progress: Progress | None = None
) -> Tensor:
    """Pictures BCHW on the CPU that a model makes of seeds, kept by model, seeds and steps."""
    machine = [torch.__version__, torch.get_num_threads(), next(model.parameters()).device.type]
    key = hashlib.sha256(json.dumps([model_key(model), *machine, list(seeds), steps]).encode()).hexdigest()
    count = len(seeds)
    tell = (
        (lambda done, total: progress("making pictures", done * count // total, count)) if progress else None
    )
    shape = (len(seeds), *model.picture_shape)
    return kept("pictures", key, shape, lambda: model.sample(seeds, steps, progress=tell))


@torch.no_grad()
def inverted(
    model: DiffusionGenerator,
    pictures: Tensor,
    route: Route,
    progress: Progress | None = None,
    keep: bool = True,
) -> Tensor:
    """Noisy pictures BCHW at time t0 of pictures, on their device; kept by model, picture, t0 and steps, each
    by itself."""
    place, found = next(model.parameters()), []
    name, size = model_key(model), AT_ONCE.get(pictures.device.type, 16)
    # Bits differ between kinds of devices, threads and versions.
    machine = [torch.__version__, torch.get_num_threads(), place.device.type, str(place.dtype)]
    facts = json.dumps([name, *machine, route.t0, route.invert_steps])
    keys = [
        hashlib.sha256(facts.encode() + row.contiguous().cpu().numpy().tobytes()).hexdigest()
        for row in pictures
    ]
    for start in range(0, len(pictures), size):
        rows = slice(start, start + size)

        def make(rows: slice = rows) -> Tensor:
            return model.invert(pictures[rows].to(place.device), route.t0, route.invert_steps)

        key = hashlib.sha256("".join(keys[rows]).encode()).hexdigest() if size > 1 else keys[start]
        shape = pictures[rows].shape
        found.append(kept("inversions", key, shape, make) if keep else make().cpu())
        if progress is not None:
            progress("inverting pictures", min(start + size, len(pictures)), len(pictures))
    return torch.cat(found).to(pictures)


# 2. Several models at once.


def mixture(models: Sequence[DiffusionGenerator], schedule: Mapping[int, Sequence[float]]) -> Predictor:
    """Noise sum_i gamma_i(t) eps_i of several models: several attributes at once.

    Eq. DiffusionCLIP, section 3.4. `schedule` maps times to one ratio per model; the largest time not above t
    counts, and its ratios are divided by their sum. Raises InputError where a ratio is missing, or no time is
    0.
    """
    if wrong := [ratios for ratios in schedule.values() if len(ratios) != len(models)]:
        raise InputError(f"the ratios {list(wrong[0])} do not fit {len(models)} models; give one for each.")
    for time, ratios in schedule.items():
        if not all(math.isfinite(ratio) and ratio >= 0 for ratio in ratios) or sum(ratios) <= 0:
            raise InputError(
                f"ratios must be numbers from 0 up, not all 0, got {list(ratios)} for time {time}."
            )
    last = models[0].num_steps - 1
    if 0 not in schedule or not all(0 <= time <= last for time in schedule):
        raise InputError(
            f"the times of a schedule lie between 0 and {last}, and 0 is one of them, got {sorted(schedule)}."
        )

    def predict(x: Tensor, t: int) -> Tensor:
        ratios = schedule[max(time for time in schedule if time <= t)]
        parts = [
            ratio / sum(ratios) * model.predict_noise(x, t)
            for ratio, model in zip(ratios, models, strict=True)
            if ratio
        ]
        return torch.stack(parts).sum(dim=0)

    return predict


def between(source: DiffusionGenerator, target: DiffusionGenerator, strength: float) -> Predictor:
    """Noise strength eps_target + (1 - strength) eps_source: 0 is the source, 1 the target, more goes beyond
    it."""
    if strength in (0.0, 1.0):
        return (target if strength else source).predict_noise

    def predict(x: Tensor, t: int) -> Tensor:
        return torch.lerp(source.predict_noise(x, t), target.predict_noise(x, t), strength)

    return predict


def relay(
    source: DiffusionGenerator, target: DiffusionGenerator, t0: int, strength: float = 1.0
) -> Predictor:
    """Noise of the source at times above t0, of the target (or between both) from there on: of a seed, the
    same picture adapted.

    A fine-tuned model has learned nothing about times above t0.
    """
    below = between(source, target, strength)
    return lambda x, t: source.predict_noise(x, t) if t > t0 else below(x, t)


# 3. Pictures of pictures.


@torch.no_grad()
def translated(
    source: DiffusionGenerator,
    pictures: Tensor,
    route: Route,
    predict: Predictor,
    progress: Progress | None = None,
    batch: int = 16,
) -> Tensor:
    """Pictures BCHW in [-1, 1]: inverted by the source, generated by `predict`."""
    x, parts = inverted(source, pictures, route, progress), []
    for start in range(0, len(x), batch):
        parts.append(
            source.generate(x[start : start + batch], route.t0, route.steps, predict=predict).clamp(-1, 1)
        )
        if progress is not None:
            progress("drawing", min(start + batch, len(x)), len(x))
    return torch.cat(parts)


@torch.no_grad()
def drawn_into(
    source: DiffusionGenerator,
    pictures: Tensor,
    seed: int = 0,
    *,
    t0: int = 500,
    steps: int = 6,
    repeats: int = 8,
) -> Tensor:
    """Pictures of an unseen kind, such as strokes or paintings, drawn into the domain of the source model.

    Eq. DiffusionCLIP, section 3.4 (unseen to unseen): `repeats` times noise up to time t0, then `steps`
    deterministic steps down. Row i depends on picture i and (seed, i) only.

    Note. The published code adds the noise of time t0 - 1 and then goes down from t0.
    """
    for repeat in range(repeats):
        noise = torch.stack(
            [
                torch.randn(row.shape, generator=rng("unseen", seed, repeat, i))
                for i, row in enumerate(pictures)
            ]
        )
        pictures = source.generate(source.add_noise(pictures, t0, noise.to(pictures)), t0, steps)
    return pictures.clamp(-1, 1)
