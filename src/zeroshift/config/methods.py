"""Every method as one row: whose words it learns, which kinds of generator it moves and how, and its
defaults.

A new method is one new file in `methods/` and one row here. What a method cannot be combined with is refused
here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zeroshift.errors import InputError

Kind = Literal["styles", "diffusion"]
"""Kinds of generators, as `models.protocol.PictureGenerator.kind` names them."""

KINDS: dict[Kind, str] = {"styles": "a generator with styles", "diffusion": "a diffusion model"}
"""Kind -> what people call it."""

BUILT_IN: dict[Kind, str] = {"styles": "portraits", "diffusion": "portraits-ddpm"}
"""Kind -> a built-in generator to try a method on."""


@dataclass(frozen=True)
class Procedure:
    """How a method moves generators of one kind."""

    log_direction: bool = False
    """Whether the directional loss enters by its logarithm (DiffusionCLIP, as coded)."""


@dataclass(frozen=True)
class Method:
    """What a method learns, what it moves, and where it is written."""

    title: str
    """Name as its paper writes it."""
    summary: str
    """What it does, in half a sentence; part of the help text."""
    words: Literal["own", "shared", "none"]
    """Whether every picture learns words of its own, all share learned ones, or the labels alone are used."""
    on: Mapping[Kind, Procedure]
    """Kinds of generator that it moves."""
    file: str
    """File of `methods/` that carries it out: `open_run` and `train`."""
    recipe: str
    """Recipe that supplies the defaults where the generator has no home recipe: the published settings."""

    @property
    def learns_words(self) -> bool:
        """Whether there is a stage 1."""
        return self.words != "none"


_LOG = Procedure(log_direction=True)

METHODS: dict[str, Method] = {
    "ipl": Method(
        title="IPL",
        summary="every picture gets its own direction, from its own learned words",
        words="own",
        on={"styles": Procedure(), "diffusion": _LOG},
        file="ipl",
        recipe="ipl-paper",
    ),
    "coop": Method(
        title="CoOp",
        summary="one direction for all, from words that are learned once",
        words="shared",
        on={"styles": Procedure(), "diffusion": _LOG},
        file="ipl",
        recipe="ipl-paper",
    ),
    "nada": Method(
        title="StyleGAN-NADA",
        summary="one direction for all, from the labels",
        words="none",
        on={"styles": Procedure(), "diffusion": Procedure()},
        file="ipl",
        recipe="ipl-paper",
    ),
    "diffusionclip": Method(
        title="DiffusionCLIP",
        summary="NADA's direction by the published training procedure for diffusion models",
        words="none",
        on={"diffusion": _LOG},
        file="ipl",
        recipe="diffusionclip",
    ),
}
"""Name -> method, in the order in which they are explained."""


def procedure(method: str, kind: Kind, generator: str) -> Procedure:
    """How a method moves a generator of this kind and name. InputError, which names what would work, if it
    does not."""
    row = METHODS[method]
    if kind in row.on:
        return row.on[kind]
    others = [name for name, each in METHODS.items() if kind in each.on]
    where = " or ".join(f"{KINDS[each]} such as {BUILT_IN[each]}" for each in row.on)
    raise InputError(
        f"method {method} moves {where}, and {generator} is {KINDS[kind]}; methods for it are "
        f"{', '.join(others)}."
    )
