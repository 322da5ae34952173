"""Diffusion generators: a network that predicts noise, and the deterministic way between pictures and noise
(DDIM).

Song et al., DDIM (2021), eq. 12 and 16; time grids as in Kim et al., DiffusionCLIP (CVPR 2022). A diffusion
model has no styles and no latent per layer, and does not pretend to: its latent is a noisy picture x_t, of
the shape of the picture.

The step is our own: diffusers' schedulers compute the same one (a test shows it), but only between times of
equal distance, and the published grids are rounded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zeroshift.errors import InputError
from zeroshift.models.mixing import Predictor, relay
from zeroshift.models.protocol import Layer, Progress
from zeroshift.models.seeds import rng

NUM_STEPS = 1000
"""Times of the published schedules: 0 (nearly clean) to 999 (noise)."""

SAMPLE_STEPS = 50
"""Steps from noise to a picture where nothing else is asked for."""

Times = list[tuple[int, int]]
Variance = Literal["fixedsmall", "fixedlarge", "learned"]
"""Of an ancestral step: that of the posterior, that of the forward process, or between them as the network
says."""
Prediction = Literal["epsilon", "v_prediction"]
"""What the network predicts: the noise, or the velocity sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho,
2022)."""
StepNoise = Callable[[int], Tensor]
"""Fresh noise BCHW of step k."""


def linear_betas(num_steps: int = NUM_STEPS, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Published noise schedule: equally spaced in float64, then float32."""
    return torch.linspace(first, last, num_steps, dtype=torch.float64).float()


def time_grid(t0: int, steps: int) -> list[int]:
    """Times 0 .. t0 of the published grid with `steps` points: (i step) t0 in doubles, rounded down."""
    if steps < 2 or t0 < 1:
        raise InputError(
            f"a time grid needs at least 2 steps and a time above 0, got {steps} steps to time {t0}."
        )
    step = 1.0 / (steps - 1)
    return [int((i * step if i < steps - 1 else 1.0) * t0) for i in range(steps)]


def generation_times(t0: int, steps: int) -> Times:
    """Pairs (t, t_next) from t0 down; the last t_next is -1, the clean picture."""
    grid = time_grid(t0, steps)
    return list(zip(grid[::-1], [*grid[-2::-1], -1], strict=True))


def inversion_times(t0: int, steps: int) -> Times:
    """Pairs (t, t_next) from 0 up to t0. The picture counts as x_0, though strictly it is at -1; noise is
    predicted at t."""
    grid = time_grid(t0, steps)
    return list(zip(grid[:-1], grid[1:], strict=True))


@dataclass(frozen=True)
class DiffusionConfig:
    """What makes up a diffusion generator beside its weights. `unet` are options of `build_unet`, `betas` the
    noise schedule."""

    image_size: int
    unet: Mapping[str, Any]
    betas: tuple[float, ...]
    patch: int = 1
    variance: Variance = "fixedsmall"
    prediction: Prediction = "epsilon"


class DiffusionGenerator(nn.Module):
    """A network that predicts noise, with its schedule: pictures BCHW in [-1, 1] <-> noisy pictures of the
    same shape. It has no styles, and refuses what needs some.

    `unet(x, t, return_dict=False)[0]` predicts noise (or what `prediction` says), or that and an
    interpolation of log-variances where it has twice the channels. With `patch` p it sees each p x p block of
    pixels as p^2 channels at 1/p of the side; outside it all stays pixels.
    """

    kind: Literal["diffusion"] = "diffusion"
    file_format: ClassVar[str] = "zeroshift.diffusion.generator"

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
        options = _options(unet)
        inputs = int(options["in_channels"])
        outputs = int(options["out_channels"])
        if inputs % patch**2 or outputs not in (inputs, 2 * inputs):
            raise InputError(
                f"a network of {inputs} to {outputs} channels predicts no noise of pictures in blocks of "
                f"{patch}."
            )
        if (variance == "learned") != (outputs == 2 * inputs):
            raise InputError(
                f"the variance is {variance!r}, but the network has {inputs} to {outputs} channels."
            )
        self.unet = unet
        self.image_size = image_size
        self.patch = patch
        self.variance: Variance = variance
        self.prediction: Prediction = prediction
        self.channels = inputs // patch**2
        # No buffers: they would follow the network into bfloat16, where 1 - alphas_bar is 0.
        self.betas = linear_betas() if betas is None else betas.detach().float().cpu()
        self.alphas_bar = torch.cumprod(1 - self.betas, dim=0)
        self.log_variances = _log_variances(self.betas)

    @property
    def config(self) -> DiffusionConfig:
        """Everything that makes up the generator but its weights."""
        betas = tuple(self.betas.tolist())
        return DiffusionConfig(
            self.image_size, _options(self.unet), betas, self.patch, self.variance, self.prediction
        )

    @property
    def num_steps(self) -> int:
        """Number of times of the schedule; they run from 0 (nearly clean) to this less 1 (noise)."""
        return len(self.betas)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Shape CHW of a picture and of its latent."""
        return self.channels, self.image_size, self.image_size

    # 1. One step.

    def predict(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """Noise in x at time t (one for all, or one per picture); where the variance is learned, also its
        place v between the bounds, -1 to 1. Both in the number format of x, whatever that of the network
        is."""
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        blocks = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        precision = next(self.unet.parameters()).dtype
        output = self.unet(blocks.to(precision), times, return_dict=False)[0].to(x.dtype)
        parts = output.split(blocks.shape[1], dim=1)
        if self.patch > 1:
            parts = [F.pixel_shuffle(part, self.patch) for part in parts]
        eps = parts[0]
        if self.prediction == "v_prediction":
            abar = self.abar(times, x)
            eps = abar.sqrt() * eps + (1 - abar).sqrt() * x
        return eps, parts[1] if len(parts) > 1 else None

    def predict_noise(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Noise in x at time t: one for all, or one per picture."""
        return self.predict(x, t)[0]

    def abar(self, t: int | Tensor, like: Tensor) -> Tensor:
        """Share of the picture in the variance of x_t, to be multiplied with `like`; at time -1 all of it."""
        # Behind the last time stands the clean picture, so that index -1 finds it.
        return _at(torch.cat([self.alphas_bar, torch.ones(1)]), t, like)

    def clean(self, x: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """The clean picture that x_t would be without the noise eps."""
        abar = self.abar(t, x)
        return (x - (1 - abar).sqrt() * eps) / abar.sqrt()

    def add_noise(self, pictures: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """x_t of clean pictures: a draw of q(x_t | x_0)."""
        abar = self.abar(t, pictures)
        return abar.sqrt() * pictures + (1 - abar).sqrt() * noise

    def step(
        self,
        x: Tensor,
        t: int | Tensor,
        t_next: int | Tensor,
        eps: Tensor,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """x at t_next of x at t, up or down: one DDIM step. `eta` above 0 (only down) replaces a part of eps
        by `noise`."""
        now = self.abar(t, x)
        then = self.abar(t_next, x)
        if not eta:
            return then.sqrt() * self.clean(x, t, eps) + (1 - then).sqrt() * eps
        if noise is None:
            raise InputError(f"eta {eta:g} needs noise for every step; give noise=, or eta 0.")
        fresh = eta * ((1 - now / then) * (1 - then) / (1 - now)).sqrt()
        return then.sqrt() * self.clean(x, t, eps) + (1 - then - fresh**2).sqrt() * eps + fresh * noise

    def ancestral_step(
        self, x: Tensor, t: int | Tensor, eps: Tensor, noise: Tensor, place: Tensor | None = None
    ) -> Tensor:
        """x at t - 1 of x at t by DDPM's own step, without noise at t = 0. `place` is the second part of
        `predict`."""
        beta = _at(self.betas, t, x)
        mean = (x - beta / (1 - self.abar(t, x)).sqrt() * eps) / (1 - beta).sqrt()
        is_noisy = _at((torch.arange(self.num_steps) > 0).float(), t, x)
        return mean + is_noisy * (0.5 * self.log_variance(t, x, place)).exp() * noise

    def log_variance(self, t: int | Tensor, like: Tensor, place: Tensor | None = None) -> Tensor:
        """Log-variance of an ancestral step; a learned one lies between those of posterior and forward
        process."""
        small, large, forward = (_at(table, t, like) for table in self.log_variances)
        if self.variance != "learned":
            return small if self.variance == "fixedsmall" else large
        if place is None:
            raise InputError("the variance is learned: give the second part of predict() as place.")
        share = (place + 1) / 2
        return share * forward + (1 - share) * small

    # 2. The whole way.

    def generate(
        self,
        x: Tensor,
        t0: int | None = None,
        steps: int = SAMPLE_STEPS,
        *,
        eta: float = 0.0,
        noise: StepNoise | None = None,
        predict: Predictor | None = None,
        checkpointing: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures of noisy pictures at time t0 (unset: the last). Differentiable; `checkpointing` keeps one
        picture per step and computes the rest again on the way back. `predict` stands in for the network, to
        mix several."""
        predict = predict or self.predict_noise
        return self._walk(
            x, generation_times(self._time(t0), steps), predict, eta, noise, checkpointing, progress
        )

    def invert(
        self,
        pictures: Tensor,
        t0: int | None = None,
        steps: int = SAMPLE_STEPS,
        *,
        predict: Predictor | None = None,
        checkpointing: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """Noisy pictures at time t0 from which `generate` comes back to these pictures, up to the error of
        the steps."""
        times = inversion_times(self._time(t0), steps)
        return self._walk(pictures, times, predict or self.predict_noise, 0.0, None, checkpointing, progress)

    @torch.no_grad()
    def ancestral(
        self, x: Tensor, noise: StepNoise, t0: int | None = None, progress: Progress | None = None
    ) -> Tensor:
        """Pictures of noisy pictures at time t0 by DDPM's own sampler, which takes every time."""
        start = self._time(t0)
        for k, t in enumerate(range(start, -1, -1)):
            eps, place = self.predict(x, t)
            x = self.ancestral_step(x, t, eps, noise(k).to(x), place)
            if progress is not None:
                progress(k + 1, start + 1)
        return x

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int] | range,
        steps: int | None = None,
        eta: float | None = None,
        *,
        truncation: float = 1.0,
        batch: int = 16,
        predict: Predictor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures BCHW in [-1, 1] on the CPU, one per seed, in 50 `steps` and with `eta` 0 unless said
        otherwise. A seed's picture depends neither on the others nor on the batch. `predict` stands in for
        the network, as in `generate`. A `truncation` other than 1 is refused.
        """
        if truncation != 1.0:
            raise InputError(
                f"truncation {truncation:g} needs styles, which a diffusion model has not; leave it out."
            )
        steps = SAMPLE_STEPS if steps is None else steps
        eta = 0.0 if eta is None else eta
        if steps < 2:
            raise InputError(f"steps must be at least 2, got {steps}; {SAMPLE_STEPS} is usual.")
        if not 0 <= eta <= 1:
            raise InputError(f"eta must be between 0 and 1, got {eta:g}; 0 is deterministic.")
        device = next(self.unet.parameters()).device
        groups = [list(seeds[at : at + batch]) for at in range(0, len(seeds), batch)]
        parts: list[Tensor] = []
        for index, group in enumerate(groups):
            tell = None if progress is None else _offset(progress, index * steps, len(groups) * steps)
            x = self.latents(group).to(device)
            noise = self.step_noise(group)
            made = self.generate(x, None, steps, eta=eta, noise=noise, predict=predict, progress=tell)
            parts.append(made.clamp(-1, 1).cpu())
        return torch.cat(parts)

    def sample_adapted(
        self,
        source: DiffusionGenerator,
        seeds: Sequence[int] | range,
        strength: float = 1.0,
        *,
        t0: int,
        truncation: float = 1.0,
        steps: int | None = None,
        eta: float | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures of seeds as `sample` gives them, by the source down to time `t0`, by both mixed by
        `strength` from there on: this model has learned nothing about times above `t0`."""
        predict = relay(source, self, t0, strength)
        return source.sample(seeds, steps, eta, truncation=truncation, predict=predict, progress=progress)

    def _walk(
        self,
        x: Tensor,
        times: Times,
        predict: Predictor,
        eta: float,
        noise: StepNoise | None,
        checkpointing: bool,
        progress: Progress | None,
    ) -> Tensor:
        def one(x: Tensor, t: int, t_next: int, drawn: Tensor | None) -> Tensor:
            return self.step(x, t, t_next, predict(x, t), eta, drawn)

        for k, (t, t_next) in enumerate(times):
            drawn = noise(k).to(x) if noise is not None and eta else None
            if checkpointing:
                x = checkpoint(one, x, t, t_next, drawn, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
            else:
                x = one(x, t, t_next, drawn)
            if progress is not None:
                progress(k + 1, len(times))
        return x

    # 3. What it starts from.

    def latents(self, seeds: Sequence[int] | range) -> Tensor:
        """Pure noise BCHW on the CPU; row i depends on seeds[i] only."""
        if not len(seeds):
            raise InputError("seeds is empty. Give at least one integer, for example range(16).")
        return torch.stack(
            [torch.randn(self.picture_shape, generator=rng("x_T", int(seed))) for seed in seeds]
        )

    def step_noise(self, seeds: Sequence[int] | range) -> StepNoise:
        """Noise BCHW of step k on the CPU; row i depends on (seeds[i], k) only."""
        return lambda k: torch.stack(
            [torch.randn(self.picture_shape, generator=rng("eta", int(seed), k)) for seed in seeds]
        )

    def _time(self, t0: int | None) -> int:
        last = self.num_steps - 1
        if t0 is not None and not 0 < t0 <= last:
            raise InputError(f"t0 must be a time between 1 and {last}, got {t0}.")
        return last if t0 is None else t0

    # 4. What every generator has.

    def layers(self) -> tuple[Layer, ...]:
        """Every parameter once, in groups named as in the network, in the order of computation; no latent
        drives one alone."""
        groups: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            first, second = name.removeprefix("unet.").split(".")[:2]
            groups.setdefault(f"{first}.{second}" if second.isdigit() else first, []).append(name)
        order = (
            "time_embedding",
            "conv_in",
            "down_blocks",
            "mid_block",
            "up_blocks",
            "conv_norm_out",
            "conv_out",
        )
        place = {name: order.index(name.split(".")[0]) for name in groups}
        return tuple(
            Layer(name, None, "block", tuple(groups[name]))
            for name in sorted(groups, key=lambda name: place[name])
        )

    def clone(self) -> Self:
        """An independent copy with equal weights."""
        twin = copy.deepcopy(self)
        twin.zero_grad(set_to_none=True)
        return twin

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights, on their device."""
        return {name: value.detach().clone() for name, value in self.state_dict().items()}

    def file_tensors(self) -> dict[str, Tensor]:
        """Weights of the network by diffusers' names; not copied."""
        return self.unet.state_dict()

    def config_text(self) -> str:
        """The `DiffusionConfig` as JSON."""
        return json.dumps(asdict(self.config))


def build_unet(options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """diffusers' UNet2DModel, in training mode, its weights drawn from the seed.

    Beside its own options it knows two that models of guided-diffusion need: `num_heads`, where every
    attention has as many, and `time_width`, where the sinusoids are wider than the first block.
    """
    from diffusers.models.embeddings import TimestepEmbedding
    from diffusers.models.unets.unet_2d import UNet2DModel

    own = ("num_heads", "time_width")
    given = {name: value for name, value in options.items() if name not in own}
    heads = options.get("num_heads")
    width = options.get("time_width")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(**given)
        if width is not None:
            inner = unet.time_embedding.linear_2.out_features
            unet.time_proj.num_channels = width
            unet.time_embedding = TimestepEmbedding(width, inner)
    if heads is not None:
        attentions: list[Any] = [module for module in unet.modules() if hasattr(module, "to_q")]
        for module in attentions:
            module.heads = heads
            module.scale = (module.to_q.out_features / heads) ** -0.5
    unet.register_to_config(**{name: options[name] for name in own if options.get(name) is not None})
    return unet


def build_diffusion(config: DiffusionConfig, seed: int = 0, *, weights: bool = True) -> DiffusionGenerator:
    """A generator with fresh weights, drawn from the seed; or with none yet, on torch's meta device."""
    betas = torch.tensor(config.betas)
    with torch.device("cpu" if weights else "meta"):
        unet = build_unet(config.unet, seed)
    names = ("image_size", "patch", "variance", "prediction")
    return DiffusionGenerator(unet, betas=betas, **{name: getattr(config, name) for name in names})


def _options(unet: Any) -> dict[str, Any]:
    """Options that a network was made of, without diffusers' own notes."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def _at(table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
    """Entries of a table over times, to be multiplied with pictures."""
    times = torch.as_tensor(t)
    return table.to(times.device)[times].to(like).view(-1, 1, 1, 1)


def _log_variances(betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-variances of an ancestral step at every time: of the posterior, "fixedlarge", and of the forward
    process."""
    beta = betas.double()
    abar = torch.cumprod(1 - beta, dim=0)
    before = torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
    posterior = beta * (1 - before) / (1 - abar)
    large = torch.cat([posterior[1:2], beta[1:]])
    return posterior.clamp(min=1e-20).log().float(), large.log().float(), beta.log().float()


def _offset(progress: Progress, done: int, total: int) -> Progress:
    """Progress of a part of the work, told as that of the whole."""
    return lambda step, _: progress(done + step, total)
