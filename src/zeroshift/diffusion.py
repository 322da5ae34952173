"""Diffusion generators: a network that predicts noise, and the deterministic way between pictures and noise (DDIM).

Song et al., DDIM (2021), eq. 12 and 16; time grids as in Kim et al., DiffusionCLIP (CVPR 2022). A diffusion model has no styles
and no latent per layer, and does not pretend to: its latent is a noisy picture x_t.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zeroshift.errors import InputError
from zeroshift.latent import rng

NUM_STEPS = 1000
"""Times of the published schedules: 0 (nearly clean) to 999 (noise)."""

Times = list[tuple[int, int]]
Variance = Literal["fixedsmall", "fixedlarge", "learned"]
Prediction = Literal["epsilon", "v_prediction"]
StepNoise = Callable[[int], Tensor]
Progress = Callable[[int, int], None]


def linear_betas(num_steps: int = NUM_STEPS, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Published noise schedule: equally spaced in float64, then float32."""
    return torch.linspace(first, last, num_steps, dtype=torch.float64).float()


def time_grid(t0: int, steps: int) -> list[int]:
    """Times 0 .. t0 of the published grid with `steps` points: (i step) t0 in doubles, rounded down."""
    if steps < 2 or t0 < 1:
        raise InputError(f"a time grid needs at least 2 steps and a time above 0, got {steps} steps to time {t0}.")
    step = 1.0 / (steps - 1)
    return [int((i * step if i < steps - 1 else 1.0) * t0) for i in range(steps)]


def generation_times(t0: int, steps: int) -> Times:
    """Pairs (t, t_next) from t0 down; the last t_next is -1, the clean picture."""
    grid = time_grid(t0, steps)
    return list(zip(grid[::-1], [*grid[-2::-1], -1], strict=True))


def inversion_times(t0: int, steps: int) -> Times:
    """Pairs (t, t_next) from 0 up to t0. The picture counts as x_0, though strictly it is at -1; noise is predicted at t."""
    grid = time_grid(t0, steps)
    return list(zip(grid[:-1], grid[1:], strict=True))


class DiffusionGenerator(nn.Module):
    """A noise-predicting network with its schedule: pictures BCHW in [-1, 1] <-> noisy pictures of the same shape.

    `unet(x, t, return_dict=False)[0]` predicts noise (or, by `prediction`, the velocity that tells it), or that and an
    interpolation of log-variances where it has twice the channels. With `patch` p it sees each p x p block of pixels as p^2
    channels at 1/p of the side; outside it all stays pixels.
    """

    has_style = False
    """It has no `map`, no styles and no truncation; `Generator` in generators.py is what GANs meet."""

    alphas_bar: Tensor
    betas: Tensor

    def __init__(
        self,
        unet: nn.Module,
        *,
        image_size: int,
        patch: int = 1,
        betas: Tensor | None = None,
        variance: Variance = "fixedsmall",
        prediction: Prediction = "epsilon",
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise InputError(f"pictures of {image_size} px have no whole blocks of {patch} x {patch}.")
        self.unet, self.image_size, self.patch, self.variance, self.prediction = unet, image_size, patch, variance, prediction
        self.channels = _in_channels(unet) // patch**2
        self.register_buffer("betas", linear_betas() if betas is None else betas.float(), persistent=False)
        self.register_buffer("alphas_bar", torch.cumprod(1 - self.betas, dim=0), persistent=False)

    @property
    def num_steps(self) -> int:
        """Times of the schedule."""
        return len(self.betas)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Shape CHW of a picture and of its latent."""
        return self.channels, self.image_size, self.image_size

    def predict(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """Noise in `x` at time(s) t, and in [-1, 1] where the log-variance lies between its bounds; None if it is not learned."""
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        blocks = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        found = self.unet(blocks, times, return_dict=False)[0]
        parts = found.split(blocks.shape[1], dim=1)
        if self.patch > 1:
            parts = [F.pixel_shuffle(part, self.patch) for part in parts]
        noise = parts[0]
        if self.prediction == "v_prediction":
            abar = self.abar(times, x)
            noise = abar.sqrt() * noise + (1 - abar).sqrt() * x
        return noise, parts[1] if len(parts) > 1 else None

    def predict_noise(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Noise in `x` at time t: one for all, or one per picture."""
        return self.predict(x, t)[0]

    def abar(self, t: int | Tensor, like: Tensor) -> Tensor:
        """Share of the picture's variance in x_t, to be multiplied with `like`; at time -1 all of it."""
        times = torch.as_tensor(t, device=self.alphas_bar.device)
        values = torch.where(times < 0, torch.ones((), device=times.device), self.alphas_bar[times.clamp(min=0)])
        return values.to(like).view(-1, 1, 1, 1)

    def clean(self, x: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """The clean picture that x_t would be without the noise eps."""
        abar = self.abar(t, x)
        return (x - (1 - abar).sqrt() * eps) / abar.sqrt()

    def add_noise(self, pictures: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """x_t of clean pictures: q(x_t | x_0)."""
        abar = self.abar(t, pictures)
        return abar.sqrt() * pictures + (1 - abar).sqrt() * noise

    def step(
        self, x: Tensor, t: int | Tensor, t_next: int | Tensor, eps: Tensor, eta: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """x at t_next of x at t, up or down: one DDIM step. `eta` above 0 (only down) replaces a part of eps by `noise`."""
        now, then = self.abar(t, x), self.abar(t_next, x)
        if not eta:
            return then.sqrt() * self.clean(x, t, eps) + (1 - then).sqrt() * eps
        if noise is None:
            raise InputError(f"eta {eta:g} needs noise for every step; give noise=, or eta 0.")
        fresh = eta * ((1 - now / then) * (1 - then) / (1 - now)).sqrt()
        return then.sqrt() * self.clean(x, t, eps) + (1 - then - fresh**2).sqrt() * eps + fresh * noise

    def generate(
        self,
        x: Tensor,
        t0: int | None = None,
        steps: int = 40,
        *,
        eta: float = 0.0,
        noise: StepNoise | None = None,
        checkpointing: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures of noisy pictures at time t0 (unset: the last), in `steps` steps. Differentiable; `checkpointing` keeps one
        picture per step and computes the rest again on the way back. `noise(k)` is the noise of step k where eta is above 0."""
        times = generation_times(self._time(t0), steps)
        return self._walk(x, times, eta, noise, checkpointing, progress)

    def invert(
        self,
        pictures: Tensor,
        t0: int | None = None,
        steps: int = 40,
        *,
        checkpointing: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """Noisy pictures at time t0 from which `generate` returns to these pictures, up to the error of the steps."""
        return self._walk(pictures, inversion_times(self._time(t0), steps), 0.0, None, checkpointing, progress)

    def _walk(
        self, x: Tensor, times: Times, eta: float, noise: StepNoise | None, checkpointing: bool, progress: Progress | None
    ) -> Tensor:
        def one(x: Tensor, t: int, t_next: int, drawn: Tensor | None) -> Tensor:
            return self.step(x, t, t_next, self.predict_noise(x, t), eta, drawn)

        for k, (t, t_next) in enumerate(times):
            drawn = noise(k).to(x) if noise is not None and eta else None
            if checkpointing:
                x = checkpoint(one, x, t, t_next, drawn, use_reentrant=False, preserve_rng_state=False)
            else:
                x = one(x, t, t_next, drawn)
            if progress is not None:
                progress(k + 1, len(times))
        return x

    def latents(self, seeds: Sequence[int] | range) -> Tensor:
        """Pure noise BCHW, on the CPU; row i depends on seeds[i] only."""
        return torch.stack([torch.randn(self.picture_shape, generator=rng("x_T", int(seed))) for seed in seeds])

    def step_noise(self, seeds: Sequence[int] | range) -> StepNoise:
        """Noise BCHW of step k for `generate`; row i depends on (seeds[i], k) only."""
        return lambda k: torch.stack([torch.randn(self.picture_shape, generator=rng("eta", int(seed), k)) for seed in seeds])

    def _time(self, t0: int | None) -> int:
        last = self.num_steps - 1
        if t0 is not None and not 0 < t0 <= last:
            raise InputError(f"t0 must be a time between 1 and {last}, got {t0}.")
        return last if t0 is None else t0

    def clone(self) -> Self:
        """An independent copy with equal weights."""
        return copy.deepcopy(self)

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights."""
        return {name: value.detach().clone() for name, value in self.unet.state_dict().items()}


def build_unet(options: dict[str, Any], seed: int = 0) -> nn.Module:
    """diffusers' UNet2DModel with these options, its weights drawn from the seed."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**options)


def _in_channels(unet: Any) -> int:
    return int(unet.config.in_channels)
