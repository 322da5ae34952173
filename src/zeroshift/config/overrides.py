"""Values laid over a config: the one way in which options are given, from Python, the command line and
`compare`."""

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import pydantic

from zeroshift.config.options import is_config, is_config_class, problems, refusal

Config = TypeVar("Config")
OptionPath = tuple[str, ...]
"""Full name of an option in parts: ("train", "diffusion", "t0")."""


def override(start: Config | type[Config], /, *layers: Mapping[str, Any], origin: str = "") -> Config:
    """The config with the values of the layers in place of its own, a later layer over an earlier one, all of
    it checked at once.

    A value is given by the full name of its field (`target`, `train.diffusion.t0`), by the end of that name
    where only one field has it (`seed`, `t0`), or within its section (`train={"steps": 100, "diffusion":
    {"t0": 300}}`, which keeps what it does not name; a config in place of the mapping replaces the section).
    A class may have bundles of values under names of their own (`compat="official"`). Where `start` is the
    class of a config, its defaults are what the layers are laid over.

    InputError names every problem; a wrong value is told with the one in `start`, as the default of `origin`
    ("recipe portraits") where that is given.
    """
    made: type[Config] = start if isinstance(start, type) else type(start)
    tree = {} if isinstance(start, type) else _plain(start)
    found: list[str] = []
    for layer in layers:
        for each in _unbundled(made, layer, found):
            for name, value in each.items():
                path = find(made, name)
                found += [_not_found(made, name)] if path is None else _put(made, tree, path, value)
    usual = "the default is" if isinstance(start, type) else "it was"
    words = f"the default of {origin} is" if origin else usual
    try:
        config = pydantic.TypeAdapter(made).validate_python(tree)
    except pydantic.ValidationError as error:
        raise refusal(found + problems(error, start, words=words)) from None
    if found:
        raise refusal(found)
    return config


def find(made: type, name: str) -> OptionPath | None:
    """The option of a config class that a name stands for; None where there is none, or more than one."""
    ends = _ending_in(made, name)
    return ends[0] if len(ends) == 1 else None


def _ending_in(made: type, name: str) -> list[OptionPath]:
    """Options that a name may stand for: the one of that full name, else all whose names end in it."""
    known = paths(made)
    path = tuple(name.split("."))
    return [path] if path in known else [each for each in known if each[-len(path) :] == path]


def _not_found(made: type, name: str) -> str:
    """Why a name stands for no option, and which there are."""
    if ends := _ending_in(made, name):
        choices = " or ".join(".".join(each) for each in ends)
        python = " or ".join(map(_in_python, ends))
        return f"{name!r} is an option of several sections; write {choices} (from Python {python})."
    known = paths(made)
    parts = tuple(name.split("."))
    section = next((parts[:end] for end in range(len(parts) - 1, 0, -1) if parts[:end] in known), ())
    options = ", ".join(each[-1] for each in known if each[:-1] == section)
    if section:
        return f"unknown option {name!r}; {'.'.join(section)} has {options}."
    within = f", and the options of the sections {', '.join(sections(made))}" if sections(made) else ""
    return f"unknown option {name!r}; there are {options}{within}."


def _in_python(path: OptionPath) -> str:
    """An option as a call names it: train={'diffusion': {'t0': ...}}."""
    inner = functools.reduce(lambda text, part: f"{{{part!r}: {text}}}", reversed(path[1:]), "...")
    return f"{path[0]}={inner}"


def chosen(made: type, layers: tuple[Mapping[str, Any], ...], path: OptionPath) -> Any:
    """The value that layers give to an option, the last one's; None where none does."""
    value: Any = None
    for layer in layers:
        for name, given in layer.items():
            place = find(made, name)
            if place is not None and place == path[: len(place)]:
                for part in path[len(place) :]:
                    given = given.get(part) if isinstance(given, Mapping) else getattr(given, part, None)
                value = value if given is None else given
    return value


def from_texts(made: type, texts: Mapping[str, str]) -> dict[str, Any]:
    """Values for `override` from texts, each read as the type of its field says: numbers, yes and no, files,
    "None" where nothing may be given, several values separated by spaces or as a JSON list.

    A text that cannot be read, and an unknown name, stay as they are; `override` refuses them.
    """
    kinds = {name: paths(made).get(find(made, name) or ()) for name in texts}
    return {name: text if kinds[name] is None else _read(kinds[name], text) for name, text in texts.items()}


@functools.cache
def paths(made: type) -> dict[OptionPath, Any]:
    """Every option of a config class and of its sections -> type of its values; sections stand among them."""
    found: dict[OptionPath, Any] = {}
    for name, kind in typing.get_type_hints(made).items():
        if name not in made.__dataclass_fields__:
            continue
        found[name,] = kind
        if is_config_class(kind):
            found |= {(name, *path): inner for path, inner in paths(kind).items()}
    return found


def sections(made: type) -> dict[str, type]:
    """The sections of a config class by name."""
    return {path[0]: kind for path, kind in paths(made).items() if len(path) == 1 and is_config_class(kind)}


def _plain(config: Any) -> dict[str, Any]:
    """Values by name, sections as mappings of their own."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: _plain(value) if is_config(value) else value for name, value in values.items()}


def _unbundled(made: type, layer: Mapping[str, Any], found: list[str]) -> Iterator[Mapping[str, Any]]:
    """A layer with its bundles before it, as layers of their own; problems go to `found`."""
    bundles: Mapping[str, Any] = getattr(made, "BUNDLES", {})
    for name, choices in bundles.items():
        if name in layer and str(layer[name]) in choices:
            yield choices[str(layer[name])]
        elif name in layer:
            found.append(f"{name} must be {' or '.join(map(repr, choices))}, got {layer[name]!r}.")
    yield {name: value for name, value in layer.items() if name not in bundles}


def _put(made: type, tree: dict[str, Any], path: OptionPath, value: Any) -> list[str]:
    """Puts a value, or the values of a section, into a config as mappings; the problems met."""
    kind = paths(made).get(path)
    if is_config_class(kind) and isinstance(value, Mapping):
        return [text for name in value for text in _put(made, tree, (*path, name), value[name])]
    if is_config_class(kind) and not is_config(value):
        example = next(each for each in paths(made) if len(each) > len(path) and each[: len(path)] == path)
        return [
            f"{'.'.join(path)} is a section, got {value!r}; give its options, such as {'.'.join(example)}."
        ]
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = _plain(value) if is_config(value) else value
    return []


def _read(kind: Any, text: str) -> Any:
    """The value of that type that a text stands for; the text itself where it stands for none."""
    if type(None) in typing.get_args(kind) and text in ("None", "null"):
        return None
    value: Any = text
    if typing.get_origin(kind) is tuple:
        try:
            value = json.loads(text) if text.lstrip().startswith("[") else text.split()
        except ValueError:
            return text
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError:
        return value
