"""Training of the built-in diffusion model of photos: a small UNet on pixels.

Ho et al., DDPM (2020), with the published noise schedule. The network predicts the velocity
v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho, 2022): unlike eps it tells the clean picture at
every time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel
from zeroshift.files.writing import atomic_path
from zeroshift.measure import metrics
from zeroshift.models.diffusion import DiffusionGenerator, build_unet
from zeroshift.models.seeds import z_from_seeds
from zeroshift.models.stylegan2 import StyleGAN2Generator
from zeroshift.portraits.scene import LATENT_DIM
from zeroshift.portraits.shading import render
from zeroshift.pretrain import dataset
from zeroshift.pretrain.resumable import run_resumably

Network = Callable[..., tuple[Tensor, ...]]

OPTIONS = {
    "sample_size": dataset.SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": [32, 64, 128, 160, 192],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 16,
    "attention_head_dim": 32,
    "dropout": 0.0,
}
"""Options of diffusers' UNet2DModel. Most weights are at 8 and 4 px, most of the work at 64 and 32 px."""


@dataclass(frozen=True)
class DdpmRecipe:
    """Lengths and rates; pictures seen = batch * steps. The rate is constant, then falls: until then `steps`
    may be changed."""

    steps: int = 6000
    batch: int = 512
    peak_lr: float = 1e-3
    warmup: int = 300
    fall: float = 0.5  # share of the steps, at the end, over which the rate falls to zero
    ema: float = 0.999
    preview_every: int = 1000
    seed: int = 41


RECIPE = DdpmRecipe()


def learning_rate(step: int, recipe: DdpmRecipe) -> float:
    """Rate of a step: a linear warm-up to the peak, then constant, then a linear fall to 0."""
    falling = (recipe.steps - step) / max(1.0, recipe.fall * recipe.steps)
    return recipe.peak_lr * min(1.0, (step + 1) / recipe.warmup, falling)


def wrap(unet: nn.Module) -> DiffusionGenerator:
    """The generator of a network of these OPTIONS."""
    return DiffusionGenerator(unet, image_size=dataset.SIZE, prediction="v_prediction")


def loss_of(
    unet: Network, model: DiffusionGenerator, pictures: Tensor, times: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the velocity at the times; that of the clean picture weighed by SNR + 1, SNR =
    abar / (1 - abar)."""
    abar = model.abar(times, pictures)
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * pictures
    x = model.add_noise(pictures, times, noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16):
        found = unet(x, times, return_dict=False)[0]
    return (found.float() - velocity).square().mean()


def train(
    data: Path, work: Path, shards: int, recipe: DdpmRecipe = RECIPE, device: str = "cpu"
) -> tuple[DiffusionGenerator, float]:
    """The model with averaged weights, and the seconds spent. The same call continues a killed training."""
    photos = dataset.load(data, shards, 0).photo.to(device)
    unet = build_unet(OPTIONS, recipe.seed).to(device)
    average = copy.deepcopy(unet).requires_grad_(False)
    model = wrap(average)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    network: Network = unet
    if photos.device.type == "cuda":
        network = torch.compile(unet.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]

    def step(number: int) -> dict:
        draw = torch.Generator(device).manual_seed(97 * number)
        rows = torch.randint(len(photos), (recipe.batch,), generator=draw, device=device)
        # One time from each of `batch` equal parts: the loss depends on time far more than on the picture.
        parts = torch.arange(recipe.batch, device=device) + torch.rand(
            recipe.batch, generator=draw, device=device
        )
        times = (parts / recipe.batch * model.num_steps).long().clamp(max=model.num_steps - 1)
        pictures = dataset.to_float(photos[rows])
        noise = torch.randn(pictures.shape, generator=draw, device=device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, recipe)
        loss = loss_of(network, model, pictures, times, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), unet.parameters(), strict=True):
                slow.lerp_(fast, 1 - _decay(number, recipe))
        if number and number % recipe.preview_every == 0:
            preview(model, work / f"ddpm_{number:06d}.png")
        return {"loss": loss, "norm": norm, "rate": learning_rate(number, recipe) * 1000}

    parts: dict = {"unet": unet, "average": average, "optimizer": optimizer}
    seconds = run_resumably("ddpm", work, recipe.steps, parts, step)
    return wrap(average.eval()), seconds


def _decay(number: int, recipe: DdpmRecipe) -> float:
    """Decay of the average: short at the start, when old weights are worth little."""
    return min(recipe.ema, (1 + number) / (10 + number))


@torch.no_grad()
def preview(model: DiffusionGenerator, path: Path, steps: int = 20, across: int = 8, down: int = 4) -> None:
    """Writes a grid of pictures of the first seeds, for a person to look at."""
    from PIL import Image

    made = model.sample(range(across * down), steps)
    grid = ((made + 1) * 127.5).round().byte().unflatten(0, (down, across)).permute(0, 3, 1, 4, 2)
    with atomic_path(path) as part:
        Image.fromarray(grid.reshape(down * dataset.SIZE, across * dataset.SIZE, 3).numpy()).save(part, "PNG")


@torch.no_grad()
def _features(judge: ClipModel, pictures: Tensor) -> Tensor:
    return torch.cat([normalize(judge.encode_image(part.clamp(-1, 1))) for part in pictures.split(64)])


@torch.no_grad()
def measure(
    model: DiffusionGenerator,
    generator: StyleGAN2Generator,
    judge: ClipModel,
    count: int = 512,
    steps: int = 40,
) -> dict:
    """Distance to renders of people whom no training saw, beside that of the built-in GAN; and the way to the
    noise and back.

    Distances are Frechet's between unit features of the judge, of `count` pictures each, as in `evaluate`.
    Seed i of the GAN is the person of seed i, which brings it nearer to the renders of the same seeds than
    chance allows any other model, so it is measured against the same renders with other people too. The floor
    is that of renders of other people. Pictures are made with fresh noise at every step (eta 1), and
    deterministically too.
    """
    seen = range(count)
    others = range(10_000, 10_000 + count)
    truth = render(z_from_seeds(seen, LATENT_DIM))
    began = time.perf_counter()
    made = model.sample(seen, steps, eta=1.0)
    seconds = time.perf_counter() - began
    shown = [
        torch.cat(
            [generator.synthesize(generator.map(part)) for part in z_from_seeds(seeds, LATENT_DIM).split(32)]
        )
        for seeds in (seen, others)
    ]
    real = _features(judge, truth)
    ours = _features(judge, made)
    deterministic = _features(judge, model.sample(seen, steps))
    quality: dict[str, Any] = {
        "frechet": metrics.frechet_distance(ours, real),
        "frechet_deterministic": metrics.frechet_distance(deterministic, real),
        "frechet_generator": metrics.frechet_distance(_features(judge, shown[1]), real),
        "frechet_generator_same_people": metrics.frechet_distance(_features(judge, shown[0]), real),
        "frechet_renders_of_other_people": metrics.frechet_distance(
            _features(judge, render(z_from_seeds(others, LATENT_DIM))), real
        ),
        "diversity_over_renders": metrics.diversity_ratio(ours, real),
        "diversity_over_renders_deterministic": metrics.diversity_ratio(deterministic, real),
        "pictures": count,
        "steps": steps,
        "eta": 1.0,
        "seconds_per_picture": seconds / count,
    }
    for t0 in (model.num_steps - 1, 500, 400):
        quality[f"round_trip_{t0}"] = round_trip(model, truth[:64], t0, steps)
    return quality


@torch.no_grad()
def round_trip(model: DiffusionGenerator, pictures: Tensor, t0: int, steps: int) -> float:
    """Mean absolute error of pictures after inversion to time t0 and generation from there."""
    pictures = pictures.to(next(model.parameters()).device)
    back = [model.generate(model.invert(part, t0, steps), t0, steps) for part in pictures.split(32)]
    return float((torch.cat(back) - pictures).abs().mean())
