"""The package is read from top to bottom: a file imports only from files above it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "zeroshift"

ORDER: Sequence[str] = """
shapes errors devices config.options config.schema config.recipes clip.text files.unpickle files.pickles
clip.resnet clip.model files.clip_layouts files.clips methods.prompts methods.directions methods.losses
methods.guidance models.protocol models.ops models.stylegan2 models.layers models.seeds models.diffusion
files.layouts files.unets files.formats files.checkpoints files.hub files.registry files.describe
files.export training.run_folder measure.metrics measure.backbones files.faces portraits.reader
measure.networks pictures.inversion pictures.sample measure.picture_sets pictures.translate measure.report
app.publish measure.features measure.evaluate measure.monitor training.loop methods.style_backend
methods.diffusion_backend methods.adapt comparison.variants comparison.statistics comparison.tables
comparison.jobs comparison.voting comparison.page comparison.compare pretrain app.display app.commands
app.cli
""".split()

# The rendered world needs only the first files, so any file below them may draw the truth from it; its
# trainer needs the models.
WORLD = {"portraits", "portraits.scene", "portraits.shading", "portraits.captions"}
ROOMS = {name.split(".")[0] for name in ORDER if "." in name}


def placed(name: str) -> str:
    """Name by which a file stands in the order: the makers of the built-in models stand there as one."""
    return "pretrain" if name.startswith("pretrain.") else name


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
            origin = [
                *(["zeroshift", *base] if node.level else []),
                *(node.module.split(".") if node.module else []),
            ]
            found |= {".".join([*origin, alias.name]) for alias in node.names} | {".".join(origin)}
    inside = {item.removeprefix("zeroshift.") for item in found if item.startswith("zeroshift.")}
    shorter = {item if item in modules() else item.rpartition(".")[0] for item in inside}
    # A room is no more than its files.
    return {item for item in shorter if item not in ROOMS} - {"", name}


def test_every_file_has_its_place_in_the_order() -> None:
    assert {placed(name) for name in modules()} <= set(ORDER) | WORLD | ROOMS


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_file_imports_only_from_files_above_it(name: str) -> None:
    used = imports(name, modules()[name])
    if name in WORLD:
        assert used <= WORLD | {"errors", "shapes", "clip.text", "clip"}
        return
    if name in ROOMS:
        return
    own = ORDER.index(placed(name))
    below = {
        item
        for item in used - WORLD - ROOMS
        if placed(item) != placed(name) and ORDER.index(placed(item)) > own
    }
    assert not below, f"{name} imports from below: {sorted(below)}"


def test_imports_are_read_in_every_spelling(tmp_path: Path) -> None:
    lines = (
        "from . import errors",
        "from .config.schema import AdaptConfig",
        "import zeroshift.clip.model",
        "def f():",
        "    from zeroshift.methods import adapt",
    )
    (tmp_path / "x.py").write_text("\n".join(lines))
    assert imports("x", tmp_path / "x.py") == {"errors", "config.schema", "clip.model", "methods.adapt"}
