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
    words: Literal["own", "shared", "none", "captions"]
    """Whether every picture learns words of its own, all share learned ones, or the labels alone are used; or
    every picture has its true caption, which only a world knows."""
    on: Mapping[Kind, Procedure]
    """Kinds of generator that it moves."""
    file: str
    """File of `methods/` that carries it out: `open_run` and `train`."""
    recipe: str
    """Recipe that supplies the defaults where the generator has no home recipe: the published settings."""
    shots: Literal["none", "beside", "instead", "needed"] = "none"
    """What pictures of the target are to it: refused; taken beside the words of the target; taken beside them
    or instead of them; needed, and words are but a name."""
    least_shots: int = 1
    """From how few pictures of the target it can learn."""
    adversarial: bool = False
    """Whether it learns from pictures against a discriminator: it needs pictures, and neither words nor
    CLIPs."""
    augmented: bool = True
    """Whether what its discriminator sees is augmented where nothing else is asked for."""

    @property
    def learns_words(self) -> bool:
        """Whether there is a stage 1 that learns words."""
        return self.words in ("own", "shared")

    @property
    def bound(self) -> bool:
        """Whether it is no method for use but the bound of others, in worlds that know the truth."""
        return self.words == "captions"


_LOG = Procedure(log_direction=True)

METHODS: dict[str, Method] = {
    "ipl": Method(
        title="IPL",
        summary="every picture gets its own direction, from its own learned words",
        words="own",
        on={"styles": Procedure(), "diffusion": _LOG},
        file="ipl",
        recipe="ipl-paper",
        shots="beside",
    ),
    "coop": Method(
        title="CoOp",
        summary="one direction for all, from words that are learned once",
        words="shared",
        on={"styles": Procedure(), "diffusion": _LOG},
        file="ipl",
        recipe="ipl-paper",
        shots="beside",
    ),
    "nada": Method(
        title="StyleGAN-NADA",
        summary="one direction for all, from the labels",
        words="none",
        on={"styles": Procedure(), "diffusion": Procedure()},
        file="ipl",
        recipe="ipl-paper",
        shots="instead",
    ),
    "diffusionclip": Method(
        title="DiffusionCLIP",
        summary="NADA's direction by the published training procedure for diffusion models",
        words="none",
        on={"diffusion": _LOG},
        file="ipl",
        recipe="diffusionclip",
        shots="instead",
    ),
    "air": Method(
        title="AIR",
        summary="NADA's direction, and from half of the steps on that from anchors on the way",
        words="none",
        on={"styles": Procedure(), "diffusion": _LOG},
        file="air",
        recipe="air-paper",
    ),
    "svl": Method(
        title="SVL",
        summary="a spread of directions, from variations of the target text",
        words="none",
        on={"styles": Procedure(), "diffusion": Procedure()},
        file="svl",
        recipe="svl-paper",
    ),
    "captions": Method(
        title="Captions",
        summary="the bound of ipl: each person's true captions in place of learned words, in worlds that "
        "have them",
        words="captions",
        on={"styles": Procedure()},
        file="captions",
        recipe="ipl-paper",
    ),
    "tgan": Method(
        title="TGAN",
        summary="plain training on a few pictures against a discriminator, the control that collapses",
        words="none",
        on={"styles": Procedure()},
        file="tgan",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
        augmented=False,
    ),
    "freezed": Method(
        title="FreezeD",
        summary="the same, with the discriminator's blocks near the picture frozen",
        words="none",
        on={"styles": Procedure()},
        file="tgan",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "ewc": Method(
        title="EWC",
        summary="tgan with those weights held that matter to the source",
        words="none",
        on={"styles": Procedure()},
        file="ewc",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "cr": Method(
        title="CR",
        summary="a discriminator that judges real pictures alike when they are moved",
        words="none",
        on={"styles": Procedure()},
        file="consistency",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "bcr": Method(
        title="bCR",
        summary="the same for real and made pictures",
        words="none",
        on={"styles": Procedure()},
        file="consistency",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "zcr": Method(
        title="zCR",
        summary="a discriminator that judges pictures of neighbouring latents alike, which the generator "
        "holds apart",
        words="none",
        on={"styles": Procedure()},
        file="consistency",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "dag": Method(
        title="DAG",
        summary="a discriminator that judges pictures under several transforms, with a head for each",
        words="none",
        on={"styles": Procedure()},
        file="dag",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "cdc": Method(
        title="CDC",
        summary="patches are judged, whole pictures only around a few latents, and pictures keep their "
        "distances to each other",
        words="none",
        on={"styles": Procedure()},
        file="cdc",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "rssa": Method(
        title="RSSA",
        summary="judged as in cdc, and what belongs together within and between pictures stays together",
        words="none",
        on={"styles": Procedure()},
        file="rssa",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
    "adam": Method(
        title="AdAM",
        summary="filters that matter to the target are kept and modulated, all others move",
        words="none",
        on={"styles": Procedure()},
        file="adam",
        recipe="few-shot",
        shots="needed",
        adversarial=True,
    ),
}
"""Name -> method, in the order in which they are explained."""


def procedure(method: str, kind: Kind, generator: str, *, captioned: bool = False) -> Procedure:
    """How a method moves a generator of this kind and name, whose world has captions of the labels or not.
    InputError, which names what would work, if it does not."""
    row = METHODS[method]
    others = ", ".join(name for name, each in METHODS.items() if kind in each.on and not each.bound)
    if kind in row.on:
        if row.bound and not captioned:
            raise InputError(
                f"method {method} takes the true captions of each picture from the world of its generator, "
                f"and {generator} has none for these labels; it is for domains of {BUILT_IN[kind]}. Methods "
                f"for {generator} are {others}."
            )
        return row.on[kind]
    where = " or ".join(f"{KINDS[each]} such as {BUILT_IN[each]}" for each in row.on)
    raise InputError(
        f"method {method} moves {where}, and {generator} is {KINDS[kind]}; methods for it are {others}."
    )
