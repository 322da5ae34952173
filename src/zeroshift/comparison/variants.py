"""What is compared: the options of `zeroshift compare`, and methods with options of their own, as `--methods`
takes them.

    ipl                                                 a method
    ipl:mapper.lambda_domain=10                         with another value of an option
    ipl:train.layers=convs.2,convs.3,train.lr=0.01      with several: a comma before NAME= separates them
    "no residual=ipl:quirks.residual=published"         under a name of one's choice
    far=ipl:recipe=ipl-paper                            starting from another recipe

NAME is a field of the config, with its section; the section may be left out where only one has such a field.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from zeroshift.config.methods import METHODS
from zeroshift.config.options import config_class
from zeroshift.config.recipes import recipe, recipe_for
from zeroshift.config.schema import (
    SECTIONS,
    AdaptConfig,
    EvaluateConfig,
    NetworksConfig,
    configure,
    from_dict,
    to_dict,
)
from zeroshift.errors import InputError

FIXED = ("target", "source", "generator", "method", "out", "seed", "run.seed")
"""What the runs of a comparison share, or what it sets itself."""

LONGEST = 48
"""Letters of a label or target in a file name; what is longer ends in a part of its hash."""


@config_class
class CompareConfig:
    """Which methods are compared on which targets, and how they are measured."""

    methods: tuple[str, ...] = ("nada", "ipl")
    """Methods, each METHOD, METHOD:FIELD=VALUE,FIELD=VALUE or NAME=METHOD:FIELD=VALUE, such as
    ipl:lambda_domain=10."""
    targets: tuple[str, ...] = ()
    """Labels of the domains to move to."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    """Seeds of the runs: every method is run on every target once per seed."""
    out: Path = Path("runs/compare")
    """Folder for everything. The same command again goes on; more methods, targets or seeds add to what is
    there."""
    jobs: Annotated[int, Field(ge=1)] = 1
    """Runs side by side, each in a process with one thread. 1: one after the other, in this process, with all
    threads."""
    metrics: tuple[str, ...] = ()
    """Metrics to compute, as for `zeroshift evaluate`; empty: all for which there is what they need."""
    eval_seeds: str = "2000-2255"
    """Seeds of the pictures that are measured: numbers and ranges."""
    pictures: Annotated[int, Field(ge=1)] = 6
    """People shown on the page, of the seeds 0, 1, 2, ..."""
    page_only: bool = False
    """Write tables and page from the runs that are there, and run nothing."""
    votes: tuple[Path, ...] = ()
    """Files of votes that vote.html gave to download; the page then shows who was preferred."""
    networks: Annotated[NetworksConfig, tyro.conf.OmitArgPrefixes] = NetworksConfig()
    """What the metrics look through."""

    @property
    def evaluation(self) -> EvaluateConfig:
        """What is measured on every run."""
        return EvaluateConfig(metrics=self.metrics, seeds=self.eval_seeds, networks=self.networks)


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
    for part in re.split(r",(?=\s*[a-z_]+(?:\.[a-z_]+)*\s*=)", listed) if listed else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise InputError(
                f"{part!r} in {text!r} gives no option its value; write METHOD:FIELD=VALUE,FIELD=VALUE."
            )
        if name in FIXED:
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

    `shared` holds options as `methods.adapt.resolve` takes them (`recipe`, `steps`, `train={...}`) or by
    their full name ("train.steps"). InputError names the variant where its options are wrong.
    """
    own = dict(variant.options)
    plain = {name: value for name, value in shared.items() if "." not in name}
    name = (
        own.pop("recipe", "")
        or plain.pop("recipe", "")
        or recipe_for(str(plain.get("generator", "portraits")), variant.method)
    )
    config = recipe(name, target, **{key: value for key, value in plain.items() if key != "recipe"})
    try:
        config = with_options(config, {key: value for key, value in shared.items() if "." in key})
        config = with_options(config, own)
        return configure(config, method=variant.method, target=target, seed=seed, out=out)
    except InputError as error:
        raise InputError(f"method {variant.label!r}: {error}") from None


def with_options(config: AdaptConfig, options: Mapping[str, Any]) -> AdaptConfig:
    """The config with some options changed, checked together. A text is read as the kind of value that the
    option has."""
    tree: dict[str, Any] = to_dict(config) | {"out": config.out}
    for name, value in options.items():
        path = name.split(".")
        if len(path) == 1 and name not in tree:
            homes = [section for section in SECTIONS if name in tree[section]]
            if len(homes) > 1:
                choices = " or ".join(f"{home}.{name}" for home in homes)
                raise InputError(f"{name!r} is an option of several sections; write {choices}.")
            path = [*homes, name]
        owner: Any = tree
        for part in path[:-1]:
            owner = owner.get(part) if isinstance(owner, dict) else None
        if not isinstance(owner, dict) or path[-1] not in owner or isinstance(owner[path[-1]], dict):
            names = tree if not isinstance(owner, dict) else owner.get(path[-1], owner)
            raise InputError(f"unknown option {name!r}; there are {', '.join(map(str, names))}.")
        owner[path[-1]] = _read(value, owner[path[-1]]) if isinstance(value, str) else value
    return from_dict(tree)


def _read(text: str, before: Any) -> Any:
    """The value that a text stands for, where `before` is a value of the same option."""
    if isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text.split() if isinstance(before, list) else text


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of `new`, by their full names, that differ from `old`; both are configs as plain values."""
    found: dict[str, Any] = {}
    for name, value in new.items():
        if isinstance(value, Mapping):
            found |= changes(old[name], value, f"{prefix}{name}.")
        elif value != old[name]:
            found[f"{prefix}{name}"] = value
    return found
