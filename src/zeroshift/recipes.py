"""Named complete configs. A recipe is a function of the target label; the command line starts from one and overrides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config import AdaptConfig, MapperConfig, QuirkConfig, RunConfig, TrainConfig, configure
from .errors import InputError

HUB_CLIP = "openai/clip-vit-base-patch32"


def portraits(target: str) -> AdaptConfig:
    """For the built-in 64 px portraits and their CLIPs: minutes on two CPU cores."""
    return AdaptConfig(
        target=target,
        generator="portraits",
        clip=("portraits-clip-a", "portraits-clip-b"),
        # Cautious on purpose: words that fit the pictures well made worse generators here (docs/log.md, Image-specific words).
        mapper=MapperConfig(steps=150, batch=16, lr=0.02, prompt_init="tokens"),
        # Coarser layers hold who and where somebody is; freeing them turned faces into blots (docs/log.md).
        train=TrainConfig(steps=300, batch=4, lr=0.005, layers=",".join(f"convs.{i}" for i in range(2, 8)), free_rgb=True),
        # About the distance between two domains for these CLIPs: a direction alone is content with half the way.
        quirks=QuirkConfig(image_floor=1.2),
        run=RunConfig(recipe="portraits", truncation=1.0),
    )


def ipl_paper(target: str) -> AdaptConfig:
    """The settings published with IPL for StyleGAN2 at 512 and 1024 px, with OpenAI's ViT-B/32."""
    return AdaptConfig(
        target=target,
        clip=(HUB_CLIP,),
        mapper=MapperConfig(steps=300, batch=32, lr=0.05, context="a photo of a", lambda_domain=1.0),
        train=TrainConfig(steps=300, batch=2, lr=0.002),
        run=RunConfig(recipe="ipl-paper", truncation=0.7),
    )


RECIPES: dict[str, Callable[[str], AdaptConfig]] = {"portraits": portraits, "ipl-paper": ipl_paper}
"""Every recipe by the name that `--recipe` takes."""


def recipe(name: str, target: str, **overrides: Any) -> AdaptConfig:
    """The complete config of a recipe for a target label, with overrides as `configure` takes them."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    return configure(RECIPES[name](target), **overrides)


def recipe_for(generator: str) -> str:
    """Name of the recipe that suits a generator: the built-in world's own, else the published settings."""
    return "portraits" if generator == "portraits" else "ipl-paper"
