"""Named complete configs. A recipe is a function of the target label; the command line starts from one and
overrides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zeroshift.config.methods import METHODS
from zeroshift.config.overrides import chosen, override
from zeroshift.config.schema import (
    AdaptConfig,
    AirConfig,
    FinetuneConfig,
    LossConfig,
    MapperConfig,
    OwnConfig,
    QuirkConfig,
    RunConfig,
    SvlConfig,
    TrainConfig,
    ViewsConfig,
    configure,
)
from zeroshift.errors import InputError

HUB_CLIP = "openai/clip-vit-base-patch32"
DIFFUSION_CLIP = "openai/clip-vit-base-patch16"

UNGIVEN = "unset"
"""Stands for a target that is still to be given."""


# With the published weights the angle to the target does not settle in this world (docs/log.md).
WORLD_SVL = SvlConfig(steps=500, lr=0.01, covariance=0.3, elastic=1e4, consistency=1.0)

_PORTRAIT_WORDS = MapperConfig(
    steps=150,
    batch=16,
    pictures=128,
    lr=0.3,
    prompt_init="tokens",
    lambda_domain=0.1,
    mean="label",
    individual=0.5,
)
"""Words that tell the built-in people apart, about the direction of the labels (ADR 0017)."""


def portraits(target: str) -> AdaptConfig:
    """For the built-in 64 px portraits and their CLIPs: minutes on two CPU cores."""
    return AdaptConfig(
        target=target,
        generator="portraits",
        clip=("portraits-clip-a", "portraits-clip-b"),
        mapper=_PORTRAIT_WORDS,
        # Coarser layers hold who and where somebody is; freeing them turned faces into blots (docs/log.md).
        train=TrainConfig(
            steps=300,
            batch=4,
            lr=0.005,
            layers=",".join(f"convs.{i}" for i in range(2, 8)),
            free_rgb=True,
            views=ViewsConfig(count=4),
        ),
        own=OwnConfig(svl=WORLD_SVL),
        # A direction alone is content with half the way, or with more than the whole (ADR 0030).
        quirks=QuirkConfig(length="point", residual="none"),
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


def portraits_ddpm(target: str) -> AdaptConfig:
    """For the built-in diffusion model of photos and the CLIPs of that world: minutes on two CPU cores.

    A point has no logarithm, so `diffusionclip` and `nada` are the same here.
    """
    return AdaptConfig(
        target=target,
        generator="portraits-ddpm",
        method="diffusionclip",
        clip=("portraits-clip-a", "portraits-clip-b"),
        mapper=_PORTRAIT_WORDS,
        train=TrainConfig(
            steps=300,
            batch=2,
            lr=1.5e-5,
            layers="all",
            ema=0.95,
            # Six steps of the optimiser in the time of one through all of them, and as near to the truth
            # (docs/log.md).
            diffusion=FinetuneConfig(
                mode="per-step",
                t0=500,
                invert_steps=20,
                train_steps=6,
                sample_steps=20,
                num_pictures=24,
                lr_growth=1.0,
            ),
        ),
        # Larger weights hold the photo's colours: with 0.3 zombies are further from the truth than with 0.1
        # (docs/log.md).
        losses=LossConfig(direction=3.0, pixel=0.2),
        own=OwnConfig(svl=WORLD_SVL),
        quirks=QuirkConfig(length="point", residual="none"),
        run=RunConfig(recipe="portraits-ddpm", truncation=1.0),
    )


def diffusionclip(target: str) -> AdaptConfig:
    """The settings published with DiffusionCLIP for models of 256 px, with OpenAI's ViT-B/16: five rounds of
    50 pictures."""
    return AdaptConfig(
        target=target,
        method="diffusionclip",
        clip=(DIFFUSION_CLIP,),
        mapper=MapperConfig(context="a photo of a"),
        train=TrainConfig(
            steps=250, batch=1, lr=8e-6, layers="all", ema=0.0, diffusion=FinetuneConfig(t0=500)
        ),
        losses=LossConfig(direction=3.0, pixel=1.0),
        run=RunConfig(recipe="diffusionclip", truncation=1.0),
    )


def air_paper(target: str) -> AdaptConfig:
    """The settings published with AIR for StyleGAN2 at 1024 px, with OpenAI's ViT-B/32 (photo to sketch)."""
    return AdaptConfig(
        target=target,
        method="air",
        clip=(HUB_CLIP,),
        train=TrainConfig(steps=300, batch=2, lr=0.002, layers="all"),
        own=OwnConfig(air=AirConfig(offset_pictures=1000)),
        run=RunConfig(recipe="air-paper", truncation=0.7),
    )


def svl_paper(target: str) -> AdaptConfig:
    """The settings published with SVL for StyleGAN2, with OpenAI's ViT-B/32."""
    return AdaptConfig(
        target=target,
        method="svl",
        clip=(HUB_CLIP,),
        train=TrainConfig(steps=300, batch=4, lr=0.002, layers="all"),
        run=RunConfig(recipe="svl-paper", truncation=0.7),
    )


PUBLISHED_FEW_SHOT: Mapping[str, Any] = {
    "train": {
        "steps": 1000,
        "batch": 4,
        "lr": 0.002,
        "layers": "all",
        # 0.5 ** (32 / 10000), per step of 4 pictures
        "ema": 0.99778,
    }
}
"""What trainers against a discriminator share at 256 px. Near domains take about 1000 steps, artistic ones
4000 to 5000 (CDC)."""


@dataclass(frozen=True)
class Home:
    """What the recipes need to know of the world that a generator is from."""

    recipe: str = "ipl-paper"
    """Recipe with the settings that suit the generator as it is."""
    identity_source: str = "human"
    """Source label of recipe `identity`."""
    identity_steps: float = 2 / 3
    """Steps of recipe `identity`, as a share of those that suit the generator."""
    in_domain_source: str = "human"
    """Source label of recipe `in-domain`."""
    far: Mapping[str, Any] = field(default_factory=lambda: {"train": {"steps": 500, "layers": "all"}})
    """What recipe `far` changes."""
    few_shot: Mapping[str, Any] = field(default_factory=lambda: PUBLISHED_FEW_SHOT)
    """What recipe `few-shot` changes."""


_PORTRAITS = Home(
    # The CLIPs of the built-in world know no word for people as opposed to other beings; from "person", 0.23
    # of the zombies were seen.
    identity_source="photo",
    # Where the length of the way is known, going on does not overshoot.
    identity_steps=1.0,
    in_domain_source="person",
    # Moving every layer ruins these pictures (docs/results.md).
    far={},
    few_shot={
        "train": {"steps": 300, "batch": 4, "lr": 0.002, "layers": "all", "ema": 0.98},
        # Turns and places of ADA show in pictures of 64 px (ADR 0038); more batches of AdAM choose the same
        # filters (docs/log.md).
        "own": {
            "adversarial": {"augment": {"parts": ("color",)}},
            "adam": {"steps": 60, "batches": 25},
            # In 64 px near styles gain nothing, and without them the result is an ordinary generator
            # (docs/log.md).
            "rssa": {"compression": 0.0, "steps": 200},
        },
    },
)

HOMES: dict[str, Home] = {
    "portraits": replace(_PORTRAITS, recipe="portraits"),
    "portraits-ddpm": replace(_PORTRAITS, recipe="portraits-ddpm"),
}
"""Generators that bring settings of their own."""

ELSEWHERE = Home()
"""What holds for every other generator."""


def style(target: str, generator: str) -> AdaptConfig:
    """Another look of the same things: drawings, paintings, lights. What suits the generator, as it is."""
    return _base(target, generator)[0]


def identity(target: str, generator: str) -> AdaptConfig:
    """Other beings in the same pose, in fewer steps where the way has no end of its own. The source label
    names who is there, not what kind of picture it is."""
    base, home = _base(target, generator)
    steps = int(base.train.steps * home.identity_steps)
    return configure(base, source=home.identity_source, train={"steps": steps})


def in_domain(target: str, generator: str) -> AdaptConfig:
    """Pictures of the kind that the generator already makes, such as people with hats: a short way, so few
    steps."""
    base, home = _base(target, generator)
    return configure(base, source=home.in_domain_source, train={"steps": 50})


def far(target: str, generator: str) -> AdaptConfig:
    """A look in which little of the source is left, where one direction for all pictures makes them alike:
    every layer may move, and for longer, or what the generator's own world wants in its place."""
    base, home = _base(target, generator)
    return configure(base, home.far)


def few_shot(target: str, generator: str) -> AdaptConfig:
    """A few pictures as the target, by methods that train against a discriminator: every layer moves."""
    base, home = _base(target, generator)
    return configure(base, home.few_shot)


def _base(target: str, generator: str) -> tuple[AdaptConfig, Home]:
    """What suits a generator as it is, and the facts of its world."""
    home = HOMES.get(generator, ELSEWHERE)
    return RECIPES[home.recipe](target, generator), home


RECIPES: dict[str, Callable[[str, str], AdaptConfig]] = {
    "portraits": lambda target, generator: portraits(target),
    "ipl-paper": lambda target, generator: ipl_paper(target),
    "portraits-ddpm": lambda target, generator: portraits_ddpm(target),
    "diffusionclip": lambda target, generator: diffusionclip(target),
    "air-paper": lambda target, generator: air_paper(target),
    "svl-paper": lambda target, generator: svl_paper(target),
    "style": style,
    "identity": identity,
    "in-domain": in_domain,
    "far": far,
    "few-shot": few_shot,
}
"""Every recipe by the name that `--recipe` takes: a config from the target label and the name of the
generator."""


def recipe(name: str, target: str, *layers: Mapping[str, Any], **overrides: Any) -> AdaptConfig:
    """The complete config of a recipe for a target label, with overrides as `configure` takes them."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    layers = (*layers, overrides)
    generator = str(chosen(AdaptConfig, layers, ("generator",)) or "portraits")
    # The target is laid over too, so that an empty one is told together with all that is wrong besides.
    start = configure(RECIPES[name](UNGIVEN, generator), run={"recipe": name})
    return override(start, {"target": target}, *layers, origin=f"recipe {name}")


def recipe_for(generator: str, method: str = "") -> str:
    """Name of the recipe that suits a generator and method: the built-in world's own, else the published
    settings. Methods that train against a discriminator have one that looks after the world itself."""
    if method in METHODS and METHODS[method].adversarial:
        return METHODS[method].recipe
    if generator in HOMES:
        return HOMES[generator].recipe
    return METHODS[method].recipe if method in METHODS else ELSEWHERE.recipe


def resolve(
    config: AdaptConfig | None = None, /, *layers: Mapping[str, Any], **overrides: Any
) -> AdaptConfig:
    """The config that was asked for: `config` with the overrides; without a config, they are laid over the
    recipe that they name (`recipe="far"`), or else over the one that suits the generator and method.
    """
    layers = (*layers, overrides)
    if config is not None:
        if (name := chosen(AdaptConfig, layers, ("run", "recipe"))) not in (None, config.run.recipe):
            raise InputError(
                f"recipe {name!r} was given together with a config, which a recipe would replace; start from "
                f"zs.recipe({name!r}, ...) or leave the recipe out."
            )
        return configure(config, *layers)
    decisive = (("run", "recipe"), ("generator",), ("method",))
    name, generator, method = (str(chosen(AdaptConfig, layers, path) or "") for path in decisive)
    name = name or recipe_for(generator or "portraits", method)
    target = chosen(AdaptConfig, layers, ("target",))
    return recipe(name, "" if target is None else target, *layers, {"run.recipe": name})
