"""Between a source and what was adapted from it, and between several adapted ones: weights of generators with
styles, predictions of diffusion models.

Kim et al., DiffusionCLIP (CVPR 2022), section 3.4, for the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from zeroshift.errors import InputError

STRENGTHS = (0.0, 2.0)
"""0 is the source, 1 the target, 2 goes as far again beyond it."""

Predictor = Callable[[Tensor, int], Tensor]
"""Noise in x at time t."""

Module = TypeVar("Module", bound="WithWeights")


class WithWeights(Protocol):
    """A network that can be copied."""

    def clone(self: Module) -> Module:
        """An independent copy with equal weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights and buffers."""
        ...


class PredictsNoise(Protocol):
    """A diffusion model, as far as its predictions go."""

    @property
    def num_steps(self) -> int:
        """Number of times of its schedule."""
        ...

    def predict_noise(self, x: Tensor, t: int) -> Tensor:
        """Noise in x BCHW at time t."""
        ...


def check_strength(strength: float) -> None:
    """InputError for a strength outside `STRENGTHS`."""
    if not STRENGTHS[0] <= strength <= STRENGTHS[1]:
        raise InputError(
            f"strength must be between {STRENGTHS[0]:g} (source) and {STRENGTHS[1]:g}, got {strength}; 1 is "
            "the target."
        )


@torch.no_grad()
def blend(source: Module, target: Module, strength: float) -> Module:
    """A network whose weights lie between source (0) and target (1), or beyond it (up to 2); the target
    itself at 1. InputError where the two are of different shapes."""
    check_strength(strength)
    if strength == 1.0:
        return target
    start = source.state()
    end = target.state()
    shapes = [{name: value.shape for name, value in state.items()} for state in (start, end)]
    if unlike := [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]:
        raise InputError(
            f"source and target differ in {len(unlike)} tensors such as {unlike[0]}; give the source of "
            "this target."
        )
    mixed = {
        name: torch.lerp(start[name].to(value), value, strength) if value.is_floating_point() else value
        for name, value in end.items()
    }
    between = target.clone()
    assert isinstance(between, nn.Module)
    between.load_state_dict(mixed)
    return between


def mixture(models: Sequence[PredictsNoise], schedule: Mapping[int, Sequence[float]]) -> Predictor:
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


def between(source: PredictsNoise, target: PredictsNoise, strength: float) -> Predictor:
    """Noise strength eps_target + (1 - strength) eps_source: 0 is the source, 1 the target, more (up to 2)
    goes beyond it. InputError for other strengths."""
    check_strength(strength)
    if strength in (0.0, 1.0):
        return (target if strength else source).predict_noise

    def predict(x: Tensor, t: int) -> Tensor:
        return torch.lerp(source.predict_noise(x, t), target.predict_noise(x, t), strength)

    return predict


def relay(source: PredictsNoise, target: PredictsNoise, t0: int, strength: float = 1.0) -> Predictor:
    """Noise of the source at times above t0, of the target (or between both) from there on: of a seed, the
    same picture adapted.

    A fine-tuned model has learned nothing about times above t0.
    """
    below = between(source, target, strength)
    return lambda x, t: source.predict_noise(x, t) if t > t0 else below(x, t)
