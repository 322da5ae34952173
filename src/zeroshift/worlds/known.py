"""Worlds by name: the built-in one, those of installed packages, and those that a program registers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import cast

from zeroshift.errors import InputError
from zeroshift.files.registry import world_name
from zeroshift.worlds.portraits import Portraits
from zeroshift.worlds.world import World

ENTRY_POINTS = "zeroshift.worlds"
"""Group of the entry points by which installed packages bring worlds: NAME -> a World, or what makes one."""

_known: dict[str, World] = {Portraits.name: Portraits()}


def register(world: World) -> World:
    """Makes a world known by its name, in the place of one of the same name. InputError where it has no name
    or domains."""
    if not world.name or len(world.domains) < 2:
        raise InputError(
            f"a world needs a name and at least two domains, the source's first; got {world.name!r} and "
            f"{list(world.domains)}."
        )
    _known[world.name] = world
    return world


def world_named(name: str | None) -> World | None:
    """The world of a name; None for no name, and for one that nothing here knows."""
    if not name:
        return None
    if name not in _known:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            found = entry.load()
            register(cast(World, found() if callable(found) else found))
    return _known.get(name)


def world_of(facts: Mapping[str, str]) -> World | None:
    """The world that a generator's metadata, or a run's record of its source generator, name."""
    return world_named(world_name(facts))
