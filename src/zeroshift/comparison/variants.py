"""What is compared: methods with options of their own, as `--methods` takes them.

    ipl                                                 a method
    ipl:mapper.lambda_domain=10                         with another value of an option
    ipl:train.layers=convs.2,convs.3,train.lr=0.01      with several: a comma before NAME= separates them
    "no residual=ipl:quirks.residual=published"         under a name of one's choice
    far=ipl:recipe=ipl-paper                            starting from another recipe

NAME is a field of the config, with its section; the section may be left out where only one has such a field.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshift.config.methods import METHODS
from zeroshift.config.overrides import chosen, find, from_texts
from zeroshift.config.recipes import resolve
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError

FIXED = (("target",), ("source",), ("generator",), ("method",), ("run", "out"), ("run", "seed"))
"""What the runs of a comparison share, or what it sets itself."""

SHOTS = ("own", "shots", "folder")
"""The option with the folder of pictures of the target."""

PLACE = "{target}"
"""What stands in that folder for the name of the target, as file names have it."""

LONGEST = 48
"""Letters of a label or target in a file name; what is longer ends in a part of its hash."""


@dataclass(frozen=True)
class Variant:
    """A method under a name, with options of its own as texts."""

    label: str
    method: str
    options: tuple[tuple[str, str], ...] = ()


def parse_variant(text: str) -> Variant:
    """The variant that a word of `--methods` describes; InputError where it cannot be read."""
    before, equals, after = text.partition("=")
    named = bool(equals) and ":" not in before
    label, body = (before.strip(), after) if named else (text.strip(), text)
    method, _, listed = (part.strip() for part in body.partition(":"))
    if method not in METHODS:
        raise InputError(f"unknown method {method!r} in {text!r}; the methods are {', '.join(METHODS)}.")
    if not label:
        raise InputError(f"{text!r} has an empty name; write NAME=METHOD:FIELD=VALUE, or leave NAME= out.")
    options = []
    for part in re.split(r",(?=\s*[a-z_]\w*(?:\.[a-z_]\w*)*\s*=)", listed) if listed else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise InputError(
                f"{part!r} in {text!r} gives no option its value; write METHOD:FIELD=VALUE,FIELD=VALUE."
            )
        if find(AdaptConfig, name) in FIXED:
            raise InputError(
                f"{name} in {text!r} cannot differ between methods; give it once, for the whole comparison."
            )
        options.append((name, value))
    return Variant(label, method, tuple(options))


def parse_variants(texts: Sequence[str]) -> list[Variant]:
    """The variants of `--methods`, whose labels and folder names differ."""
    variants = [parse_variant(text) for text in texts]
    twice(("method", [variant.label for variant in variants]))
    return variants


def twice(*lists: tuple[str, Sequence[Any]]) -> None:
    """InputError where something is listed twice, or would have the same file name."""
    for what, items in lists:
        again = [name for name, count in Counter(slug(str(item)) for item in items).items() if count > 1]
        if again:
            same = [str(item) for item in items if slug(str(item)) == again[0]]
            raise InputError(
                f"the {what}s {' and '.join(map(repr, same))} cannot be told apart; leave one out or rename "
                "it."
            )


def slug(text: str) -> str:
    """A text as a part of a file name."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"
    return (
        name
        if len(name) <= LONGEST
        else f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )


def run_name(label: str, target: str, seed: int) -> str:
    """Folder name of one run."""
    return f"{slug(label)}--{slug(target)}--seed{seed}"


def variant_config(
    variant: Variant, shared: Mapping[str, Any], target: str, seed: int, out: Path
) -> AdaptConfig:
    """The complete config of one run: recipe, then the shared options, then those of the variant.

    `shared` holds options as `config.overrides.override` takes them, and `recipe`. Pictures of the target go
    to every method that takes some. InputError names the variant where its options are wrong.
    """
    own = from_texts(AdaptConfig, dict(variant.options))
    asked = {"method": variant.method, "target": target, "run.seed": seed, "out": out}
    given: dict[str, Any] = {}
    if (folder := shots_folder(shared)) is not None:
        taken = METHODS[variant.method].shots != "none"
        given[".".join(SHOTS)] = str(folder).replace(PLACE, slug(target)) if taken else None
    try:
        return resolve(None, shared, given, own, asked)
    except InputError as error:
        # What is wrong without the variant's options is not the variant's fault.
        resolve(None, shared, given, asked)
        raise InputError(f"method {variant.label!r}: {error}") from None


def shots_folder(shared: Mapping[str, Any]) -> Any:
    """Folder of pictures of the target among the options of all runs, with PLACE where a target's name
    stands; None where there is none."""
    return chosen(AdaptConfig, (shared,), SHOTS)


def target_names(targets: Sequence[str], shared: Mapping[str, Any]) -> dict[str, str]:
    """Every target -> what its runs are called; without words of a target the only one is "", called as the
    folder of its pictures. InputError where it is not known which pictures are of which target."""
    folder = shots_folder(shared)
    by_target = PLACE in str(folder)
    if folder is None or (targets and by_target) or len(targets) == 1:
        return {target: target for target in targets}
    if targets:
        raise InputError(
            f"the pictures in {folder} are of one target, and {len(targets)} are named; give a folder for "
            f'each, such as --pictures "shots/{PLACE}" for shots/{slug(targets[0])}.'
        )
    if by_target:
        raise InputError(f"--pictures {folder} stands for a folder per target; give --targets.")
    return {"": Path(folder).absolute().name}


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of `new`, by their full names, that differ from `old`; both are configs as plain values."""
    found: dict[str, Any] = {}
    for name, value in new.items():
        if isinstance(value, Mapping):
            found |= changes(old[name], value, f"{prefix}{name}.")
        elif value != old[name]:
            found[f"{prefix}{name}"] = value
    return found
