"""Command lines read into commands, by tyro. Names, help texts and defaults are those of the configs; what is
given is laid over the defaults as everywhere (`config.overrides`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, Union, get_type_hints

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from zeroshift.app.commands import COMMANDS, Adapt, Command, Compare, Evaluate
from zeroshift.comparison.variants import changes
from zeroshift.config.measuring import CompareConfig, EvaluateConfig
from zeroshift.config.options import fields_of, is_config, is_config_class, to_dict
from zeroshift.config.overrides import override
from zeroshift.config.recipes import UNGIVEN, recipe, recipe_for
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError

SUMMARY = "Move a pretrained image generator into a domain that exists only as words."

TYRO = ConstructorRegistry()
"""How tyro reads configs and commands."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The options of `adapt` that decide which defaults all others have."""

    recipe: str = ""
    generator: str = "portraits"
    method: str = ""
    compat: str = "corrected"

    @classmethod
    def of(cls, words: Sequence[str]) -> Origin:
        """Those among the options of a command line."""
        return tyro.cli(cls, args=words, prog="zeroshift adapt", return_unknown_args=True, add_help=False)[0]

    def config(self) -> AdaptConfig:
        """The defaults, with a target still to be given."""
        name = self.recipe or recipe_for(self.generator, self.method)
        return recipe(name, UNGIVEN, generator=self.generator, compat=self.compat)


def parse(words: Sequence[str]) -> Command:
    """The command with its options; SystemExit after a message where they cannot be read, InputError where a
    value is wrong."""
    verb = words[0] if words else ""
    start = Origin.of(words[1:]).config() if verb == "adapt" else None
    defaults: dict[type, Any] = {} if start is None else {Adapt: Adapt(config=start)}
    verbs: Any = tuple(
        Annotated[
            made, tyro.conf.subcommand(made.__name__.lower(), default=defaults.get(made, MISSING_NONPROP))
        ]
        for made in COMMANDS
    )
    every: Any = Union[verbs]  # noqa: UP007  # built from a table
    about: dict[str, Any] = {"prog": "zeroshift", "description": SUMMARY, "registry": TYRO}
    rest: list[str] = []
    if verb == "compare":  # what it does not know is for every run, see `_shared`
        command, rest = tyro.cli(every, args=words, return_unknown_args=True, **about)
    else:
        command = tyro.cli(every, args=words or ["--help"], **about)
    if isinstance(command, Adapt):
        assert start is not None  # no option comes before the verb
        config = override(start, _given(command), origin=f"recipe {start.run.recipe}")
        return replace(command, config=config)
    if isinstance(command, Evaluate):
        return replace(command, config=override(EvaluateConfig, _given(command)))
    if isinstance(command, Compare):
        config = override(CompareConfig, _given(command))
        return replace(command, config=config, shared=_shared(rest))
    return command


def _given(command: Adapt | Evaluate | Compare) -> Any:
    """The config of a command as tyro has read it: a mapping still, see `_struct`."""
    return command.config


def _shared(words: Sequence[str]) -> dict[str, Any]:
    """Options for every run of a comparison, by their full names."""
    given = parse(["adapt", "--target", UNGIVEN, *words])
    if not isinstance(given, Adapt) or given.dry_run:
        raise InputError("compare has no --dry-run; --page-only runs nothing and shows what is there.")
    origin = Origin.of(words)
    if origin.method:
        raise InputError("method cannot be given for a comparison; use --methods.")
    start = origin.config()
    named = {"recipe": origin.recipe, "compat": origin.compat, "generator": origin.generator}
    return named | changes(to_dict(start), to_dict(given.config))


@TYRO.struct_rule
def _struct(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Configs are read as mappings, which are checked later and together; commands as what they are."""
    made: Any = info.type
    if made not in COMMANDS and not is_config_class(made):
        return None
    kinds = get_type_hints(made, include_extras=True)
    fields = tuple(
        StructFieldSpec(each.name, kinds[each.name], _default(info, each), partial(_help_of, made, each.name))
        for each in dataclasses.fields(made)
    )
    return StructConstructorSpec(dict if is_config_class(made) else made, fields)


def _default(info: StructTypeInfo, field: dataclasses.Field[Any]) -> Any:
    """Default of an option: what the default config has; what a config class requires must be given."""
    usual = field.default
    factory = field.default_factory
    required = usual is dataclasses.MISSING and factory is dataclasses.MISSING
    if dataclasses.is_dataclass(info.default) and not (required and is_config(info.default)):
        value = getattr(info.default, field.name)
        return "" if value == UNGIVEN else value
    if required:
        return tyro.MISSING
    return factory() if factory is not dataclasses.MISSING else usual


def _help_of(made: type, name: str) -> str:
    """The docstring under a field, in one line: tyro breaks lines itself."""
    return " ".join(_docstrings(made).get(name, "").split())


@cache
def _docstrings(made: type) -> dict[str, str]:
    """The docstrings under the fields of a class."""
    if is_config_class(made):
        return {name: field.description or "" for name, field in fields_of(made).items()}
    import docstring_parser

    return {each.arg_name: each.description or "" for each in docstring_parser.parse_from_object(made).params}
