"""How configs are made: frozen dataclasses that check themselves and name every problem in words."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, dataclass_transform

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from zeroshift.errors import InputError


def _text_of(place: Any) -> Any:
    return str(place) if isinstance(place, PurePath) else place


ModelName = Annotated[str, pydantic.BeforeValidator(_text_of)]
"""Text that names a model: a built-in name, a hub id, or a file or folder, in Python a Path too."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def config_class(cls: type | None = None, *, section: str = "") -> Any:
    """Frozen, keyword-only pydantic dataclass whose construction raises one InputError that lists every
    problem found.

    The docstring under a field is its help text. `section` is its name within another config, by which
    messages call it.
    """
    if cls is None:
        return functools.partial(config_class, section=section)
    options = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    made = dataclass(cls, frozen=True, kw_only=True, config=options)
    build: Callable[..., None] = made.__init__

    @functools.wraps(build)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            build(self, *args, **values)
        except pydantic.ValidationError as error:
            prefix = f"{section}." if section else ""
            raise refusal(problems(error, made, prefix)) from None

    made.__init__ = checked
    return made


def is_config(value: Any) -> bool:
    """Whether a value is a config (not the class of one)."""
    return not isinstance(value, type) and is_config_class(type(value))


def is_config_class(kind: Any) -> bool:
    """Whether a type is the class of a config."""
    return isinstance(kind, type) and pydantic.dataclasses.is_pydantic_dataclass(kind)


def fields_of(made: Any) -> dict[str, Any]:
    """Fields of a config class by name, with `default`, `description` (the help text) and `metadata`."""
    return made.__pydantic_fields__


def to_dict(config: Any) -> dict[str, Any]:
    """Config as plain JSON values."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One "name: old -> new" for every value in which two configs as plain values differ."""
    lines: list[str] = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def refusal(lines: Sequence[str]) -> InputError:
    """The error that tells problems: one as it is, several as a list."""
    if len(lines) == 1:
        return InputError(lines[0])
    return InputError(f"{len(lines)} problems:\n" + "\n".join(f"- {line}" for line in lines))


def problems(
    error: pydantic.ValidationError, start: Any, prefix: str = "", words: str = "the default is"
) -> list[str]:
    """Sentences, one per problem: which option, what it must be, what it was, and the value to go back to.

    That value is the one in `start`, a config or the class of one, told in `words`; `prefix` stands before
    every name.
    """
    lines: list[str] = []
    for item in error.errors():
        if item["type"] == "value_error":
            lines += str(item["ctx"]["error"]).splitlines() if "ctx" in item else [item["msg"]]
            continue
        path = [str(part) for part in item["loc"]]
        name = prefix + ".".join(path)
        if item["type"] in ("missing", "missing_argument"):
            lines.append(f"{name} is missing.")
        elif item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"unknown option {name}.")
        elif item["type"] == "unexpected_positional_argument":
            lines.append(f"options are given by name, got {item['input']!r} without one.")
        else:
            what = item["msg"].removeprefix("Input ").replace("should be", "must be")
            lines.append(f"{name} {what}, got {item['input']!r}{hint(start, path, words)}.")
    return lines


def hint(start: Any, path: Sequence[str], words: str = "the default is") -> str:
    """The value of an option in words: "; the default is 300". Empty where it says nothing in a sentence.

    `start` is a config, or the class of one, whose defaults are then meant.
    """
    value = start
    for part in path:
        if is_config_class(value):
            field = fields_of(value).get(part)
            value = None if field is None else field.default
        else:
            value = getattr(value, part, None)
    return f"; {words} {value!r}" if isinstance(value, (int, float, str)) and value != "" else ""
