"""The package is read from top to bottom: a room imports only from rooms above it, a file only from files
above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "zeroshift"


def order() -> list[str]:
    """Dotted names of all files as CONTRIBUTING.md lists them, room by room, top to bottom."""
    page = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"```\nsrc/zeroshift/\n(.*?)```", page, re.DOTALL)
    assert block, "CONTRIBUTING.md lists no files"
    found, room = [], ""
    for line in block[1].splitlines():
        name = line.split()[0]
        room = name.rstrip("/") + "." if name.endswith("/") else room if line.startswith("    ") else ""
        found += [room + name.removesuffix(".py")] if name.endswith(".py") else []
    return found


def modules() -> dict[str, Path]:
    """Files of the package by dotted name; a room's `__init__` by the room's."""
    named = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    every = {".".join(part for part in parts if part != "__init__"): path for path, parts in named.items()}
    return {name: path for name, path in every.items() if name not in ("", "__main__")}


def imports(name: str, path: Path) -> set[str]:
    """Dotted names, within the package, of everything a file imports at any depth."""
    parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["zeroshift", *parents[: len(parents) - node.level + 1]] if node.level else []
            origin = [*base, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*origin, alias.name]) for alias in node.names} | {".".join(origin)}
    inside = {item.removeprefix("zeroshift.") for item in found if item.startswith("zeroshift.")}
    return {item if item in modules() else item.rpartition(".")[0] for item in inside} - {"", name}


def below(name: str) -> list[str]:
    """What a file imports although it stands below it. A room stands where its first file stands."""
    listed = order()
    place = {each: number for number, each in reversed(list(enumerate(listed)))}
    rooms = {each.split(".")[0]: number for number, each in reversed(list(enumerate(listed))) if "." in each}
    used = imports(name, modules()[name])
    within = {each for each in used if each.split(".")[0] == name.split(".")[0] and each in rooms}
    return sorted(each for each in used - within if (place | rooms)[each] > (place | rooms)[name])


def test_every_file_has_its_place_in_the_order() -> None:
    files = {name for name, path in modules().items() if path.name != "__init__.py"}
    assert files == set(order()) - {"__init__"}


@pytest.mark.parametrize("name", order()[1:])
def test_a_file_imports_only_from_files_above_it(name: str) -> None:
    assert below(name) == []


@pytest.mark.parametrize(
    "room", sorted({name.split(".")[0] for name in order() if "." in name} - {"portraits"})
)
def test_entering_a_room_loads_no_file_of_it(room: str) -> None:
    assert imports(room, modules()[room]) == set()


@pytest.mark.parametrize(
    "name",
    [each for each in order()[1:] if each.split(".")[0] not in ("portraits", "worlds", "pretrain")],
)
def test_the_built_in_world_is_met_as_a_world_like_any_other(name: str) -> None:
    used = imports(name, modules()[name]) - ({"portraits"} if name == "config.recipes" else set())
    assert not {each for each in used if each.split(".")[0] == "portraits" or each == "worlds.portraits"}


def test_imports_are_read_in_every_spelling(tmp_path: Path) -> None:
    lines = (
        "from . import errors",
        "from .config.schema import AdaptConfig",
        "import zeroshift.clip.model",
        "def f():",
        "    from zeroshift.methods import adapt",
    )
    (tmp_path / "x.py").write_text("\n".join(lines))
    wanted = {"errors", "config.schema", "clip.model", "methods", "methods.adapt"}
    assert imports("x", tmp_path / "x.py") == wanted
