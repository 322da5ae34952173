"""How configs are made: frozen dataclasses that check themselves and name every problem in words."""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, dataclass_transform

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from zeroshift.errors import InputError


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
            raise InputError(_explain(made, section, error)) from None

    made.__init__ = checked
    return made


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


def _explain(made: type, section: str, error: pydantic.ValidationError) -> str:
    """The problems in words: which option, what it should be, what it was, and the default to go back to."""
    lines: list[str] = []
    for item in error.errors():
        if item["type"] == "value_error":
            lines += str(item["ctx"]["error"]).splitlines() if "ctx" in item else [item["msg"]]
            continue
        path = [str(part) for part in item["loc"]]
        name = ".".join([*([section] if section else []), *path])
        if item["type"] in ("missing", "missing_argument"):
            lines.append(f"{name} is missing.")
        elif item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"unknown option {name}.")
        elif item["type"] == "unexpected_positional_argument":
            lines.append(f"options are given by name, got {item['input']!r} without one.")
        else:
            what = item["msg"].removeprefix("Input ").replace("should be", "must be")
            lines.append(f"{name} {what}, got {item['input']!r}{_default(made, path)}.")
    return (
        lines[0]
        if len(lines) == 1
        else f"{len(lines)} problems:\n" + "\n".join(f"- {line}" for line in lines)
    )


def _default(made: type, path: list[str]) -> str:
    """Hint at the default value of a field, where it has one."""
    owner: Any = made
    for part in path[:-1]:
        inner = typing.get_type_hints(owner).get(part)
        owner = inner if dataclasses.is_dataclass(inner) else owner
    known = {field.name: field.default for field in dataclasses.fields(owner)}
    value = known.get(path[-1], dataclasses.MISSING)
    value = getattr(value, "default", value)
    simple = isinstance(value, (int, float, str)) and value != ""
    return f"; the default is {value!r}" if simple else ""
