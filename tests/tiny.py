"""Real components at tiny sizes: a 16 px StyleGAN2 and two-layer CLIPs of two widths, made from our own
classes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel, build_dual_encoder
from zeroshift.clip.text import TemplateBank, WordTokenizer
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.images import write_png
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.backend import Given
from zeroshift.models.diffusion import DiffusionGenerator, build_unet
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator
from zeroshift.worlds.known import register
from zeroshift.worlds.world import World

WORDS = ("a photo of the sketch zombie statue cartoon person face in style . ,",)
TEMPLATES = TemplateBank("tiny", ("{}", "a {}", "a photo of a {}.", "the {} of a face"))


class Stop:
    """Hook that ends a run in its own way at one (stage, step): by an error, or by signal 9 where that is
    None."""

    def __init__(self, at: tuple[int, int], error: BaseException | None) -> None:
        self.at, self.error = at, error

    def __call__(self, event: dict[str, Any]) -> None:
        if (event["stage"], event["step"]) == self.at:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.error


def generator(seed: int = 0, size: int = 16) -> StyleGAN2Generator:
    """A generator of 16 px with live noise and colours strong enough to see."""
    config = StyleGAN2Config(
        size=size, latent_dim=12, style_dim=16, mapping_depth=2, channel_base=16 * size, channel_max=16
    )
    made = StyleGAN2Generator(config, seed=seed).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("noise.weight"):
                weight.fill_(0.1)
    return made


def diffusion(
    seed: int = 0, size: int = 8, channels: int = 3, outputs: int | None = None, **options: Any
) -> DiffusionGenerator:
    """A diffusion model of two levels with attention; `options` are those of the generator."""
    unet = build_unet(
        {
            "in_channels": channels,
            "out_channels": outputs or channels,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 8,
        },
        seed,
    )
    return DiffusionGenerator(unet, image_size=size, **options).eval()


def tune(out: Path, method: str = "diffusionclip", **overrides: Any) -> AdaptConfig:
    """A short run of a diffusion model, on four pictures that it makes itself."""
    train = {"steps": 6, "batch": 2, "lr": 1e-3, "layers": "all", "ema": 0.0} | overrides.pop("train", {})
    tuning = {"t0": 300, "invert_steps": 4, "train_steps": 3, "sample_steps": 6, "num_pictures": 4}
    tuning |= overrides.pop("diffusion", {})
    watch = {"every": 3, "count": 2} | overrides.pop("monitor", {})
    return config(out, method=method, train=train | {"diffusion": tuning, "monitor": watch}, **overrides)


def shots(folder: Path, count: int = 5, size: int = 16, seed: int = 0) -> Path:
    """A folder of pictures of the target, made where it is not there yet."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        draw = torch.Generator().manual_seed(seed)
        for number in range(count):
            write_png(folder / f"{number}.png", torch.rand(3, size, size, generator=draw) * 2 - 1)
    return folder


def learn(out: Path, method: str = "tgan", **overrides: Any) -> AdaptConfig:
    """A short run against a discriminator, on five pictures beside its folder, with both penalties due."""
    train = {"steps": 5, "batch": 4, "lr": 0.01, "layers": "all", "ema": 0.5} | overrides.pop("train", {})
    watch = {"every": 3, "count": 4} | overrides.pop("monitor", {})
    lazy = {"r1_every": 3, "path_every": 2} | overrides.pop("adversarial", {})
    pictures = overrides.pop("pictures", None) or shots(out.parent / "shots")
    own = {"adversarial": lazy, "shots": {"folder": pictures}} | overrides.pop("own", {})
    return config(out, method=method, train=train | {"monitor": watch}, own=own, **overrides)


def discriminator(seed: int = 0, size: int = 16) -> StyleGAN2Discriminator:
    """The discriminator of a tiny generator."""
    return StyleGAN2Discriminator(generator(size=size).config, seed=seed)


def given_few_shot(**parts: Any) -> Given:
    """What a tiny run against a discriminator gets instead of loading files."""
    return Given(**({"generator": generator(), "discriminator": discriminator()} | parts))


def described() -> str:
    """Name of a world with captions, known from now on."""
    return register(Described()).name


def given_diffusion(**parts: Any) -> Given:
    """What a tiny run of a diffusion model gets instead of loading files."""
    return Given(**({"generator": diffusion(), "clips": clips()} | parts))


def styled(loaded: Any) -> StyleGAN2Generator:
    """What was loaded, which must be a generator with styles."""
    assert isinstance(loaded, StyleGAN2Generator)
    return loaded


def clip(seed: int = 0, embed_dim: int = 24, text_width: int = 16) -> ClipModel:
    """A frozen CLIP of 16 px with two text layers."""
    tokenizer = WordTokenizer(WORDS)
    model = build_dual_encoder(
        tokenizer.vocab_size,
        widths=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        embed_dim=embed_dim,
        text_width=text_width,
        text_layers=2,
        text_heads=2,
        context_length=16,
        resolution=16,
        seed=seed,
    )
    return ClipModel(model, tokenizer, resolution=16, name=f"tiny-{seed}", templates=TEMPLATES)


def clips() -> list[ClipModel]:
    """Two CLIPs that share no width."""
    return [clip(1), clip(2, embed_dim=20, text_width=12)]


def config(out: Path, **overrides: Any) -> AdaptConfig:
    """A short ipl run guided by two CLIPs, without grids."""
    base = AdaptConfig(target="zombie", clip=("tiny-1", "tiny-2"))
    sections: dict[str, Any] = {
        "mapper": {"steps": 4, "batch": 4, "lr": 0.02},
        "train": {"steps": 5, "batch": 2, "lr": 0.01, "adaptive": {"batch": 2}},
        "run": {"out": out, "device": "cpu", "grid_every": 0, "checkpoint_every": 2, "samples": 2},
    }
    return configure(base, sections, overrides)


class Described(World):
    """A world of the tiny generator that has captions: a latent's first number says who wears a style."""

    name = "tiny-described"
    latent_dim = 12
    domains = ("photo", "zombie", "sketch")

    def truth(self, z: Tensor, label: str, size: int) -> Tensor:
        return torch.full((len(z), 3, size, size), {"photo": -0.5, "zombie": 0.0}.get(label, 0.5))

    def captions(self, z: Tensor, label: str) -> list[str] | None:
        if self.domain_of(label) is None:
            return None
        return [f"a {label} of a person {'in style' if row[0] > 0 else 'face'}" for row in z]


def given(**parts: Any) -> Given:
    """What a tiny run gets instead of loading files."""
    return Given(**({"generator": generator(), "clips": clips()} | parts))


def run(
    out: Path, *, hook: Any = None, progress: Any = None, state: Given | None = None, **overrides: Any
) -> AdaptRun:
    """A tiny run, carried out."""
    return adapt(config(out, **overrides), hook=hook, progress=progress, state=state or given())
