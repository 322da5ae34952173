"""Training of the built-in diffusion model of photos: a small UNet on 2 x 2 blocks of pixels.

Ho et al., DDPM (2020), with the published noise schedule. The network predicts the velocity
v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho, 2022): unlike eps it tells the clean picture at every time.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift import latent, metrics
from zeroshift.checkpoints import atomic_path
from zeroshift.clip import ClipModel
from zeroshift.diffusion import DiffusionGenerator, build_unet
from zeroshift.directions import normalize
from zeroshift.portraits import dataset, training
from zeroshift.portraits.scene import LATENT_DIM
from zeroshift.portraits.shading import render
from zeroshift.stylegan2 import StyleGAN2Generator

PATCH = 2
SIDE = dataset.SIZE // PATCH
OPTIONS = {
    "sample_size": SIDE,
    "in_channels": 3 * PATCH**2,
    "out_channels": 3 * PATCH**2,
    "layers_per_block": 1,
    "block_out_channels": [32, 64, 128, 192],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 16,
    "attention_head_dim": 32,
    "dropout": 0.0,
}
"""Options of diffusers' UNet2DModel. Most weights are at 8 and 4 px, most of the work at 32 and 16 px."""


@dataclass(frozen=True)
class DdpmRecipe:
    """Lengths and rates; pictures seen = batch * steps. The rate is constant, then falls: until then `steps` may be changed."""

    steps: int = 10000
    batch: int = 16
    peak_lr: float = 1e-3
    warmup: int = 200
    fall: float = 0.25  # share of the steps, at the end, over which the rate falls to zero
    snr_range: tuple[float, float] = (0.03, 5.0)  # weights of clean pictures; the upper end is min-SNR, Hang et al. (2023)
    ema: float = 0.9992
    preview_every: int = 1000
    seed: int = 41


RECIPE = DdpmRecipe()


def learning_rate(step: int, recipe: DdpmRecipe) -> float:
    """Linear warm-up, constant, linear fall."""
    falling = (recipe.steps - step) / max(1.0, recipe.fall * recipe.steps)
    return recipe.peak_lr * min(1.0, (step + 1) / recipe.warmup, falling)


def wrap(unet: nn.Module) -> DiffusionGenerator:
    """The generator of a network of these OPTIONS."""
    return DiffusionGenerator(unet, image_size=dataset.SIZE, patch=PATCH, prediction="v_prediction")


def loss_of(
    unet: nn.Module, model: DiffusionGenerator, pictures: Tensor, times: Tensor, noise: Tensor, snr_range: tuple[float, float]
) -> Tensor:
    """Mean of SNR |x_0 - its prediction|^2 with SNR = abar / (1 - abar) held within a range, written for the velocity.

    Below the lower end lie the times at which large areas get their colours: with their own SNR they would count for nothing.
    """
    abar = model.alphas_bar[times].view(-1, 1, 1, 1)
    x = model.add_noise(pictures, times, noise)
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * pictures
    with torch.autocast("cpu", torch.bfloat16):
        found = unet(F.pixel_unshuffle(x, PATCH), times, return_dict=False)[0]
    gap = F.pixel_shuffle(found.float(), PATCH) - velocity
    snr = abar / (1 - abar)
    return (snr.clamp(*snr_range) / (snr + 1) * gap.square()).mean()


def train(data: Path, work: Path, shards: int, recipe: DdpmRecipe = RECIPE) -> tuple[DiffusionGenerator, float]:
    """The model with averaged weights, and the seconds spent. The same call continues a killed training."""
    photos = dataset.load(data, shards, 0).photo
    unet = build_unet(OPTIONS, recipe.seed)
    average = copy.deepcopy(unet).requires_grad_(False)
    model = wrap(average)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), weight_decay=0.01)

    def step(number: int) -> dict:
        draw = torch.Generator().manual_seed(97 * number)
        rows = torch.randint(len(photos), (recipe.batch,), generator=draw)
        # One time from each of `batch` equal parts: the loss depends on time far more than on the picture.
        times = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=draw)) / recipe.batch * model.num_steps
        pictures = dataset.to_float(photos[rows])
        noise = torch.randn(pictures.shape, generator=draw)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, recipe)
        loss = loss_of(unet, model, pictures, times.long().clamp(max=model.num_steps - 1), noise, recipe.snr_range)
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
    seconds = training.run("ddpm", work, recipe.steps, parts, step)
    return wrap(average.eval()), seconds


def _decay(number: int, recipe: DdpmRecipe) -> float:
    """Decay of the average: short at the start, when old weights are worth little."""
    return min(recipe.ema, (1 + number) / (10 + number))


@torch.no_grad()
def preview(model: DiffusionGenerator, path: Path, steps: int = 20, across: int = 8, down: int = 4) -> None:
    """Writes a grid of pictures of the first seeds, for a person to look at."""
    from PIL import Image

    with torch.autocast("cpu", torch.bfloat16):
        made = model.generate(model.latents(range(across * down)), steps=steps).float()
    grid = ((made.clamp(-1, 1) + 1) * 127.5).round().byte().unflatten(0, (down, across)).permute(0, 3, 1, 4, 2)
    with atomic_path(path) as part:
        Image.fromarray(grid.reshape(down * dataset.SIZE, across * dataset.SIZE, 3).numpy()).save(part, "PNG")


@torch.no_grad()
def _features(judge: ClipModel, pictures: Tensor) -> Tensor:
    return torch.cat([normalize(judge.encode_image(part.clamp(-1, 1))) for part in pictures.split(64)])


@torch.no_grad()
def measure(
    model: DiffusionGenerator, generator: StyleGAN2Generator, judge: ClipModel, count: int = 512, steps: int = 40
) -> dict:
    """Distance to renders of people whom no training saw, beside that of the built-in GAN; and the way to the noise and back.

    Distances are Frechet's between unit features of the judge, of `count` pictures each, as in `evaluate`. Seed i of the GAN
    is the person of seed i, which brings it nearer to the renders of the same seeds than chance allows any other model, so
    it is measured against the same renders with other people too. The floor is that of renders of other people.
    """
    seen, others = range(count), range(10_000, 10_000 + count)
    truth = render(latent.z_from_seeds(seen, LATENT_DIM))
    began = time.perf_counter()
    made = torch.cat([model.generate(part, steps=steps) for part in model.latents(seen).split(32)])
    seconds = time.perf_counter() - began
    shown = [
        torch.cat([generator.synthesize(generator.map(part)) for part in latent.z_from_seeds(seeds, LATENT_DIM).split(32)])
        for seeds in (seen, others)
    ]
    real = _features(judge, truth)
    ours = _features(judge, made)
    quality: dict[str, Any] = {
        "frechet": metrics.frechet_distance(ours, real),
        "frechet_generator": metrics.frechet_distance(_features(judge, shown[1]), real),
        "frechet_generator_same_people": metrics.frechet_distance(_features(judge, shown[0]), real),
        "frechet_renders_of_other_people": metrics.frechet_distance(
            _features(judge, render(latent.z_from_seeds(others, LATENT_DIM))), real
        ),
        "diversity_over_renders": metrics.diversity_ratio(ours, real),
        "pictures": count,
        "steps": steps,
        "seconds_per_picture": seconds / count,
    }
    for t0 in (model.num_steps - 1, 500, 400):
        quality[f"round_trip_{t0}"] = round_trip(model, truth[:64], t0, steps)
    return quality


@torch.no_grad()
def round_trip(model: DiffusionGenerator, pictures: Tensor, t0: int, steps: int) -> float:
    """Mean absolute error of pictures after inversion to time t0 and generation from there."""
    back = [model.generate(model.invert(part, t0, steps), t0, steps) for part in pictures.split(32)]
    return float((torch.cat(back) - pictures).abs().mean())
