"""Trainings of the built-in StyleGAN2: regression to renders, a mapping network distilled from it, an
adversarial finish.

1. Attributes of a person -> style -> picture, supervised at every resolution; the network grows from 16 to 64
  px.
2. The standard mapping network learns z -> the style that stage 1 gave the person of z.
3. A discriminator, live noise and style mixing make it a generator with noise, layer roles and truncation,
  while an anchor
   keeps G(z) near the render of z.
4. A last slow regression of the synthesis network brings it back to the renders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.models import ops
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.seeds import average_style, mix, rng
from zeroshift.models.stylegan2 import (
    EqualLinear,
    StyleGAN2Config,
    StyleGAN2Generator,
    resolve_modulation,
)
from zeroshift.portraits.scene import CHOICES, LATENT_DIM, SLIDERS, features, sample_scene
from zeroshift.pretrain import dataset
from zeroshift.pretrain.resumable import run_resumably, warmup_cosine

CONFIG = StyleGAN2Config(
    size=64, latent_dim=LATENT_DIM, style_dim=128, mapping_depth=5, channel_base=2048, channel_max=192
)
NUM_FEATURES = sum(len(c) for c, _ in CHOICES.values()) + len(SLIDERS)


@dataclass(frozen=True)
class GeneratorRecipe:
    """Lengths and rates of the four stages; pictures seen in stage 1 = batch * steps."""

    steps: int = 11000
    batch: int = 12
    peak_lr: float = 5e-3
    grow: tuple[float, float] = (0.08, 0.25)  # shares of the steps after which 32 px and 64 px begin
    mapping_steps: int = 12000
    finish_steps: int = 700
    finish_batch: int = 12
    finish_lr: float = 8e-4
    polish_steps: int = 1000
    polish_lr: float = 1.2e-3
    anchor: float = 20.0
    r1_gamma: float = 0.6


GENERATOR_RECIPE = GeneratorRecipe()


class Regressor(nn.Module):
    """A generator with an embedding of attributes in place of its mapping network."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = StyleGAN2Generator(CONFIG, seed=11)
        self.embed = nn.Linear(NUM_FEATURES, CONFIG.style_dim)
        self.hidden = nn.Linear(NUM_FEATURES, 256)
        self.bend = nn.Linear(256, CONFIG.style_dim)
        draw = torch.Generator().manual_seed(12)
        nn.init.normal_(self.embed.weight, std=0.25, generator=draw)
        nn.init.normal_(self.hidden.weight, std=0.4, generator=draw)
        nn.init.normal_(self.hidden.bias, std=0.8, generator=draw)
        for tensor in (self.embed.bias, self.bend.weight, self.bend.bias):
            nn.init.zeros_(tensor)

    def style(self, attributes: Tensor) -> Tensor:
        """Styles (B, S) with the range that the mapping network's last activation gives."""
        # The bend lets a style follow a curve as the head turns: places in a picture are no linear function
        # of the angle.
        bent = self.embed(attributes) + self.bend(F.leaky_relu(self.hidden(attributes), 0.2))
        return ops.scaled_leaky_relu(bent, torch.zeros(CONFIG.style_dim))


def pyramid(generator: StyleGAN2Generator, w: Tensor, side: int) -> list[Tensor]:
    """The running RGB pictures of 4, 8, ... `side` px, without noise: what a growing generator shows."""
    path = resolve_modulation("auto", w.device)
    x = generator.input.input.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    x = generator.conv1(x, w, None, path)
    shown = [generator.to_rgb1(x, w, None, path)]
    for index in range(0, len(generator.convs), 2):
        if shown[-1].shape[-1] >= side:
            break
        x = generator.convs[index + 1](generator.convs[index](x, w, None, path), w, None, path)
        shown.append(generator.to_rgbs[index // 2](x, w, shown[-1], path))
    return shown


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 + 4 L2 + 4 squared differences of neighbouring-pixel gradients: small features count as much as flat
    areas."""
    gap = made - wanted
    across, down = gap.diff(dim=3), gap.diff(dim=2)
    return gap.abs().mean() + 4 * gap.square().mean() + 4 * (across.square().mean() + down.square().mean())


def regress(
    data: Path, work: Path, shards: int, recipe: GeneratorRecipe = GENERATOR_RECIPE
) -> tuple[Regressor, float]:
    """Stage 1; returns the trained regressor and the seconds spent."""
    people = dataset.load(data, shards, 0)
    attributes = features(sample_scene(people.z))
    model = Regressor()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99))

    def step(number: int) -> dict:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(number, recipe.steps, recipe.peak_lr)
        rows = torch.randint(
            len(people.z), (recipe.batch,), generator=torch.Generator().manual_seed(31 * number)
        )
        side = (
            16
            if number < recipe.grow[0] * recipe.steps
            else 32
            if number < recipe.grow[1] * recipe.steps
            else 64
        )
        wanted = dataset.to_float(people.photo[rows])
        with torch.autocast("cpu", torch.bfloat16):
            shown = pyramid(model.generator, model.style(attributes[rows]), side)
        loss = torch.zeros(())
        for made in shown:
            weight = 1.0 if made.shape[-1] == side else 0.25
            loss = loss + weight * picture_loss(made.float(), F.avg_pool2d(wanted, 64 // made.shape[-1]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        error = (shown[-1].float() - F.avg_pool2d(wanted, 64 // side)).abs().mean()
        return {"loss": loss, "error": error, "side": side}

    seconds = run_resumably("regress", work, recipe.steps, {"model": model, "optimizer": optimizer}, step)
    return model, seconds


def _init_thresholds(first: nn.Linear) -> None:
    """Pairs of hidden units around every quantile edge of the choices, so that steps need not be
    discovered."""
    row = 0
    sharp = 60.0  # softer edges leave every second person between two choices
    with torch.no_grad():
        for column, (_, probabilities) in enumerate(CHOICES.values()):
            edges = torch.special.ndtri(
                torch.tensor(probabilities, dtype=torch.float64).cumsum(0)[:-1]
            ).tolist()
            for edge in edges:
                for half in (-0.5, 0.5):
                    first.weight[row].zero_()
                    first.weight[row, column] = sharp
                    first.bias[row] = -sharp * edge + half
                    row += 1


def distil(
    model: Regressor, work: Path, recipe: GeneratorRecipe = GENERATOR_RECIPE
) -> tuple[StyleGAN2Generator, float]:
    """Stage 2: trains the mapping network so that map(z) equals the style of the person of z; sets the
    average style."""
    generator = model.generator
    sizes = [CONFIG.latent_dim] + [CONFIG.style_dim] * CONFIG.mapping_depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        plain = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        for layer in plain:
            nn.init.normal_(layer.weight, std=0.7 * layer.in_features**-0.5)
    _init_thresholds(plain[0])
    layers = nn.ModuleList(plain)
    optimizer = torch.optim.Adam(layers.parameters(), lr=2e-3, betas=(0.9, 0.99))
    zero = torch.zeros(CONFIG.style_dim)

    def step(number: int) -> dict:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(number, recipe.mapping_steps, 2e-3)
        z = torch.randn(1024, LATENT_DIM, generator=torch.Generator().manual_seed(99_000_000 + number))
        with torch.no_grad():
            wanted = model.style(features(sample_scene(z)))
        x = ops.pixel_norm(z)
        for layer in plain:
            x = ops.scaled_leaky_relu(layer(x), zero)
        loss = F.mse_loss(x, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss, "relative": loss / wanted.var()}

    seconds = run_resumably(
        "distil", work, recipe.mapping_steps, {"layers": layers, "optimizer": optimizer}, step
    )
    with torch.no_grad():
        for layer, learnt in zip(list(generator.style)[1:], plain, strict=True):
            assert isinstance(layer, EqualLinear)
            layer.weight.copy_(learnt.weight / layer.scale)
            layer.bias.copy_(learnt.bias / layer.lr_mul)
        generator.latent_avg.copy_(average_style(generator))
    return generator, seconds


def _mixed(generator: StyleGAN2Generator, w: Tensor, anchored: int, draw: torch.Generator) -> Tensor:
    """Styles B,K,S: the first `anchored` rows as they are, the others mixed with each other at a random
    latent."""
    cut = int(torch.randint(1, generator.num_latents, (1,), generator=draw))
    plain = w[:anchored, None].expand(-1, generator.num_latents, -1)
    return torch.cat([plain, mix(w[anchored:], w[anchored:].flip(0), cut, generator.num_latents)])


def _critic_loss(critic: StyleGAN2Discriminator, fake: Tensor, real: Tensor, r1: float) -> Tensor:
    """Logistic loss, with R1 of weight `r1` on half of the real pictures where it is not 0."""
    with torch.autocast("cpu", torch.bfloat16):
        judged = critic(torch.cat([fake, real])).float()
    loss = F.softplus(judged[: len(fake)]).mean() + F.softplus(-judged[len(fake) :]).mean()
    if r1:
        real = real[: len(real) // 2].requires_grad_()
        (slope,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
        loss = loss + r1 / 2 * slope.square().sum((1, 2, 3)).mean()
    return loss


def _fooled(critic: StyleGAN2Discriminator, fake: Tensor) -> Tensor:
    """Non-saturating loss of the generator; the critic's weights receive no gradient."""
    critic.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.softplus(-critic(fake).float()).mean()
    critic.requires_grad_(True)
    return loss


def _drawn(
    generator: StyleGAN2Generator, people: dataset.People, batch: int, held: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pictures BCHW of random people with random noise, of which all but the first `held` have two people's
    styles; and the photos of these people."""
    rows = torch.randint(len(people.z), (batch,), generator=draw)
    w = _mixed(generator, generator.map(people.z[rows]), held, draw)
    noise = [torch.randn(batch, *shape[1:], generator=draw) for shape in generator.noise_shapes()]
    with torch.autocast("cpu", torch.bfloat16):
        pictures = generator.synthesize(w, noise)
    return pictures.float(), dataset.to_float(people.photo[rows])


def finish(
    generator: StyleGAN2Generator,
    data: Path,
    work: Path,
    shards: int,
    recipe: GeneratorRecipe = GENERATOR_RECIPE,
):
    """Stage 3: returns the averaged generator, its discriminator and the seconds spent."""
    people = dataset.load(data, shards, 0)
    average = generator.clone()
    critic = StyleGAN2Discriminator(CONFIG, seed=14)
    moving = [p for name, p in generator.named_parameters() if not name.startswith("style.")]
    of_generator = torch.optim.Adam(moving, lr=recipe.finish_lr, betas=(0.0, 0.99))
    of_critic = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.99))
    batch = recipe.finish_batch
    held = 2 * batch // 3  # the others mix two people's styles and have no render to be held to

    def step(number: int) -> dict:
        with torch.no_grad():
            fake, _ = _drawn(generator, people, batch, held, rng("finish", "critic", number))
        rows = torch.randint(len(people.z), (batch,), generator=rng("finish", "real", number))
        # Lazy regularisation: every 16th step, 16 times the weight.
        r1 = 16 * recipe.r1_gamma if number % 16 == 0 else 0.0
        loss_critic = _critic_loss(critic, fake, dataset.to_float(people.photo[rows]), r1)
        of_critic.zero_grad(set_to_none=True)
        loss_critic.backward()
        of_critic.step()
        if number < recipe.finish_steps // 7:  # the critic starts from nothing: its first opinions are noise
            return {"critic": loss_critic}
        for group in of_generator.param_groups:
            group["lr"] = warmup_cosine(number, recipe.finish_steps, recipe.finish_lr)
        fake, wanted = _drawn(generator, people, batch, held, rng("finish", "generator", number))
        fool = _fooled(critic, fake)
        anchor = picture_loss(fake[:held], wanted[:held])
        of_generator.zero_grad(set_to_none=True)
        (fool + recipe.anchor * anchor).backward()
        of_generator.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(now, 0.01)
        return {
            "critic": loss_critic,
            "fool": fool,
            "anchor": anchor,
            "error": (fake[:held] - wanted[:held]).abs().mean(),
        }

    parts = {
        "generator": generator,
        "average": average,
        "critic": critic,
        "of_generator": of_generator,
        "of_critic": of_critic,
    }
    seconds = run_resumably("finish", work, recipe.finish_steps, parts, step)
    return average, critic, seconds


def polish(
    model: Regressor,
    generator: StyleGAN2Generator,
    data: Path,
    work: Path,
    shards: int,
    recipe: GeneratorRecipe = GENERATOR_RECIPE,
):
    """Stage 4: a last, slow regression of the synthesis to the renders, without noise; returns the generator
    and the seconds."""
    people = dataset.load(data, shards, 0)
    attributes = features(sample_scene(people.z))
    moving = [p for name, p in generator.named_parameters() if not name.startswith("style.")]
    optimizer = torch.optim.Adam(moving, lr=recipe.polish_lr, betas=(0.9, 0.99))

    def step(number: int) -> dict:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(number, recipe.polish_steps, recipe.polish_lr, warmup=100)
        rows = torch.randint(len(people.z), (16,), generator=rng("polish", number))
        with torch.no_grad():
            w = model.style(attributes[rows])
        with torch.autocast("cpu", torch.bfloat16):
            pictures = generator.synthesize(w, "off").float()
        wanted = dataset.to_float(people.photo[rows])
        loss = picture_loss(pictures, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss, "error": (pictures - wanted).abs().mean()}

    seconds = run_resumably(
        "polish", work, recipe.polish_steps, {"generator": generator, "optimizer": optimizer}, step
    )
    return generator, seconds
