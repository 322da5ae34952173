"""Worlds by name: the built-in one, those that a program registers, and those of installed packages.

`world_of` is how the rest of the package finds the world of a generator; nothing asks for a built-in name.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from zeroshift.errors import InputError
from zeroshift.files.registry import world_name
from zeroshift.worlds.portraits import Portraits
from zeroshift.worlds.world import World

ENTRY_POINTS = "zeroshift.worlds"
"""Group of the entry points by which installed packages bring worlds: NAME -> a World, or a subclass of it
that is made without arguments. NAME is the world's own."""

_known: dict[str, World] = {Portraits.name: Portraits()}


def register(world: World) -> World:
    """The same world, known by its name from now on, in the place of one of the same name. InputError where
    it has no name, fewer than two domains, a source domain that its own `domain_of` does not find, or
    held-out domains that are none of its domains."""
    name = getattr(world, "name", "")
    domains = getattr(world, "domains", ())
    if not name or len(domains) < 2:
        raise InputError(
            f"a world needs a name and at least two domains, the source's first; got {name!r} and "
            f"{list(domains)}."
        )
    if lost := [domain for domain in domains if world.domain_of(domain) != domain]:
        raise InputError(
            f"domain_of({lost[0]!r}) of the world {name} must give {lost[0]!r}, one of its domains; it gives "
            f"{world.domain_of(lost[0])!r}."
        )
    if unknown := [domain for domain in world.held_out if domain not in domains[1:]]:
        raise InputError(
            f"the world {name} holds out {unknown[0]!r}, which is none of its target domains "
            f"({', '.join(domains[1:])})."
        )
    _known[name] = world
    return world


def world_named(name: str | None) -> World | None:
    """The world of a name; None for no name, and for one that was neither registered nor installed.
    InputError where an installed package offers something else than a world under it."""
    if not name:
        return None
    if name not in _known:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            found = entry.load()
            made = found() if isinstance(found, type) else found
            if not isinstance(made, World) or made.name != name:
                raise InputError(
                    f"the entry point {entry.value} offers no world named {name!r}; it must be a "
                    "zeroshift.worlds.world.World of that name."
                )
            register(made)
    return _known.get(name)


def world_of(facts: Mapping[str, str]) -> World | None:
    """The world that a generator's metadata name, or a run's record of its source generator
    (`RunFolder.environment["source"]`); None where they name none, or one that is not known here."""
    return world_named(world_name(facts))
