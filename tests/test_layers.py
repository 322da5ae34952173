"""The package is read from top to bottom: a file imports only from files above it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "zeroshift"

ORDER: Sequence[str] = """
shapes errors devices options config recipes text unpickle pickles clip_resnet clip clip_openai clip_files prompts directions
losses guidance generators ops stylegan2 trainable latent diffusion layouts unets formats checkpoints hub registry describe
export record metrics backbones arcface reader networks inversion sample gallery translate report publish look evaluate monitor
trainer style_trainer diffusion_trainer adapt fewshot augment invert variants tally standings tasks ballots wall compare cluster
portraits display commands cli app
""".split()

# The rendered world needs only the first files, so any file below them may draw the truth from it; its trainer needs the models.
WORLD = {"portraits", "portraits.scene", "portraits.shading", "portraits.captions"}


def modules() -> dict[str, Path]:
    """Files of the package by dotted name, without the two that hold no logic (`__init__`, `__main__`)."""
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
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = [*(["zeroshift", *base] if node.level else []), *(node.module.split(".") if node.module else [])]
            found |= {".".join([*origin, alias.name]) for alias in node.names} | {".".join(origin)}
    inside = {item.removeprefix("zeroshift.") for item in found if item.startswith("zeroshift.")}
    return {item if item in modules() else item.rpartition(".")[0] for item in inside} - {"", name}


def test_every_file_has_its_place_in_the_order() -> None:
    assert {name.split(".")[0] for name in modules()} <= set(ORDER)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_file_imports_only_from_files_above_it(name: str) -> None:
    used = imports(name, modules()[name])
    if name in WORLD:
        assert used <= WORLD | {"errors", "shapes", "text"}
        return
    own = ORDER.index(name.split(".")[0])
    below = {item for item in used - WORLD if item.split(".")[0] != name.split(".")[0] and ORDER.index(item.split(".")[0]) > own}
    assert not below, f"{name} imports from below: {sorted(below)}"


def test_imports_are_read_in_every_spelling(tmp_path: Path) -> None:
    lines = (
        "from . import errors",
        "from .config import AdaptConfig",
        "import zeroshift.clip",
        "def f():",
        "    from zeroshift import adapt",
    )
    (tmp_path / "x.py").write_text("\n".join(lines))
    assert imports("x", tmp_path / "x.py") == {"errors", "config", "clip", "adapt"}
