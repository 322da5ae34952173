"""The documentation says what the code says: generated pages are current, the notebook runs, anchors are
headings."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zeroshift.app import cli
from zeroshift.config.methods import METHODS
from zeroshift.measure.evaluate import METRICS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
VERBS = [made.__name__.lower() for made in cli.VERBS]

TINY = {"STEPS": 2, "MEASURED": "2000-2007"}
"""What the check puts in place of the notebook's constants, beside its folder."""

AS_A_NOTEBOOK = """
import ast, json, pathlib, sys

space = {}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")):
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), space)
    if last is not None:
        print("shown:", type(eval(compile(ast.Expression(last.value), "cell", "eval"), space)).__name__)
"""
"""Runs the cells of a file one after the other; a cell shows its last expression, as in a notebook."""


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current() -> None:
    stale = [
        path.relative_to(ROOT).as_posix()
        for path, text in generator().pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make docs"


def test_every_verb_has_a_page_and_no_page_is_left_over() -> None:
    assert {path.stem for path in (DOCS / "verbs").glob("*.md")} == set(VERBS)


def flags_of_help(verb: str) -> set[str]:
    """The options that the command line itself lists, its own help aside."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main([verb, "--help"]) == 0
    # Help texts, which name options too, are indented further or stand behind a gap.
    lines = [line[2:].split("  ")[0] for line in said.getvalue().splitlines() if re.match(r"(│ |  )-", line)]
    return {flag for line in lines for flag in re.findall(r"--[a-z][a-z0-9.-]*", line)} - {"--help"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_page_has_exactly_the_options_of_the_command(verb: str) -> None:
    page = (DOCS / "verbs" / f"{verb}.md").read_text(encoding="utf-8")
    options = page.split("\n## Recipes")[0].split("\n## From Python")[0]
    cells = re.findall(r"^\| ((?:`[^`]+`(?:<br>)?)+) \|", options, re.MULTILINE)
    documented = {flag for cell in cells for flag in re.findall(r"`(--[^`]+)`", cell)}
    assert documented == flags_of_help(verb)
    assert "|  |\n" not in options, "an option without a help text"


def test_examples_of_the_pages_can_be_read() -> None:
    examples = [line for lines in generator().EXAMPLES.values() for line in lines]
    for example in examples:
        assert cli.parse(shlex.split(example, comments=True)[1:]) is not None
    assert len(examples) >= len(VERBS)


def test_the_readme_says_which_method_moves_which_generator_as_the_table_in_code_does() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- generated: methods -->")[1].split("<!-- end -->")[0]
    lines = [line.strip("|") for line in block.splitlines() if line]
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in lines]
    assert rows[0][2:] == ["StyleGAN2", "diffusion"]
    said = {name: (styles == "yes", noise == "yes") for name, _, styles, noise in rows[2:]}
    assert said == {name: ("styles" in row.on, "diffusion" in row.on) for name, row in METHODS.items()}


def test_the_readme_keeps_within_110_columns_and_names_every_metric() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    # A row of a table cannot be wrapped.
    assert [line for line in readme.splitlines() if len(line) > 110 and not line.startswith("|")] == []
    metrics = readme.split("| metrics | network")[1].split("\n\n")[0]
    patterns = [name.replace("*", ".*") for name in re.findall(r"`([a-z_.*]+)`", metrics)]
    unnamed = [name for name in METRICS if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    assert unnamed == []


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#]+)\)", index))
    pages = {path.relative_to(DOCS).as_posix() for path in [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb")]}
    assert pages - {"index.md"} <= linked
    assert {f"verbs/{verb}.md" for verb in VERBS} <= linked


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a Markdown page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_anchor_in_a_link_is_a_heading() -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    links = [
        (page, file, anchor)
        for page in pages
        for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 3
    lost = [
        f"{page.name}: {file}#{anchor}"
        for page, file, anchor in links
        if anchor not in anchors(page.parent / file if file else page)
    ]
    assert lost == []


def code_cells() -> list[dict[str, Any]]:
    """The notebook's cells of code."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    first, *others = ["".join(cell["source"]) for cell in code_cells()]
    constants = TINY | {"OUT": str(tmp_path / "run")}
    assert all(re.search(rf"^{name} = ", first, re.MULTILINE) for name in constants)
    small = "\n".join(f"{name} = {value!r}" for name, value in constants.items())
    place = tmp_path / "cells.json"
    place.write_text(json.dumps([first, small, *others]), encoding="utf-8")
    command = [sys.executable, "-c", AS_A_NOTEBOOK, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("shown: Image") == 3, done.stdout
    assert "distance to the true picture" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_notebook_is_committed_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
