"""The repository keeps what it says: tree, budgets, method map, light import, tests that assert."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "zeroshift"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "PIL",
    "tyro",
    "rich",
    "jinja2",
    "tensorboard",
    "pydantic",
    "huggingface_hub",
)

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_CONFIG_FIELDS = 12


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def listed(page: str) -> str:
    """The list of the package's rooms or files in a page."""
    block = re.search(
        r"```\nsrc/zeroshift/\n(.*?)\n(?:\S|```)", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    )
    assert block, f"{page} has no list that starts with src/zeroshift/"
    return block[1]


def rooms() -> list[str]:
    return [line.split("/")[0].strip() for line in listed("README.md").splitlines()]


def files_in_order() -> list[str]:
    """Files that CONTRIBUTING.md lists, each with its room, top to bottom."""
    found, room = [], ""
    for line in listed("CONTRIBUTING.md").splitlines():
        name = line.split()[0]
        room = name if name.endswith("/") else room if line.startswith("    ") else ""
        found += [] if name.endswith("/") else [room + name]
    return found


def test_the_readme_shows_the_rooms_that_there_are() -> None:
    assert set(rooms()) == {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def test_contributing_lists_every_file_room_by_room() -> None:
    skipped = {"__main__.py", *(f"{room}/__init__.py" for room in rooms())}
    files = {path.relative_to(PACKAGE).as_posix() for path in SOURCES} - skipped
    assert set(files_in_order()) == files
    listed_rooms = [name.split("/")[0] for name in files_in_order() if "/" in name]
    assert list(dict.fromkeys(listed_rooms)) == rooms()


def commands(of: str) -> list[list[str]]:
    """Commands of a program in the README, split into words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{of} ")]


def test_every_command_in_the_readme_can_be_read() -> None:
    from zeroshift.app.cli import parse

    assert len(commands("zeroshift")) >= 6
    assert all(parse(words) is not None for words in commands("zeroshift"))


def test_every_link_between_the_documents_leads_to_a_file() -> None:
    pages = [ROOT / "README.md", ROOT / "NOTICE.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 5
    assert [f"{label(page)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[0] for words in commands("make")} == {"demo", "test"}
    assert {"setup", "demo", "test", "lint", "bench", "golden"} <= targets


def test_the_python_example_in_the_readme_names_only_what_exists() -> None:
    import zeroshift as zs

    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    used = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "zs"
    }
    assert used and used <= set(zs.__all__)


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=label)
def test_files_and_functions_keep_their_budget(path: Path) -> None:
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(parsed(path))
        if isinstance(node, FUNCTIONS)
        and node.end_lineno
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


def test_configs_keep_their_budget() -> None:
    classes = [
        node for node in parsed(PACKAGE / "config" / "schema.py").body if isinstance(node, ast.ClassDef)
    ]
    fields = {node.name: sum(isinstance(item, ast.AnnAssign) for item in node.body) for node in classes}
    assert fields and max(fields.values()) <= MAX_CONFIG_FIELDS, fields


def asserts_something(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a test holds an assert statement, `pytest.raises`, `pytest.warns` or a call named assert_* or
    check_*."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        name = getattr(node, "attr", None) or getattr(node, "id", "")
        if name in ("raises", "warns") or str(name).startswith(("assert_", "check_")):
            return True
    return False


@pytest.mark.parametrize("path", TESTS, ids=label)
def test_every_test_asserts(path: Path) -> None:
    tests = [
        node
        for node in ast.walk(parsed(path))
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_")
    ]
    assert [test.name for test in tests if not asserts_something(test)] == []


def test_a_test_without_an_assert_is_found() -> None:
    idle, busy = (ast.parse(f"def test_x():\n    {body}").body[0] for body in ("run()", "assert run()"))
    assert isinstance(idle, FUNCTIONS) and not asserts_something(idle)
    assert isinstance(busy, FUNCTIONS) and asserts_something(busy)


def named_functions() -> set[tuple[str, str]]:
    """(module, name) of every `module.name` in the second column of the method map."""
    rows = re.findall(
        r"^\|(?:\\\||[^|\n])*\|([^|\n]*)\|",
        (ROOT / "docs" / "method.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {pair for row in rows for pair in re.findall(r"`((?:\w+\.)?\w+)\.(\w+)`", row)}


def module_called(name: str) -> ModuleType:
    """The module of the package that a name such as `losses` or `clip.features` means."""
    room, _, file = name.rpartition(".")
    skipped = ("pretrain", "comparison") if not room else ()
    (path,) = (
        path
        for path in SOURCES
        if path.stem == file and path.parent.name not in skipped and room in ("", path.parent.name)
    )
    return importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))


def test_every_function_of_the_method_map_exists() -> None:
    missing = [
        f"{module}.{name}"
        for module, name in sorted(named_functions())
        if not hasattr(module_called(module), name)
    ]
    assert named_functions() and missing == []


@pytest.mark.parametrize("module", ["losses", "directions", "prompts"])
def test_every_public_function_of_the_method_is_on_the_map(module: str) -> None:
    tops = parsed(PACKAGE / "methods" / f"{module}.py").body
    public = {
        node.name
        for node in tops
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
    }
    assert public - {name for where, name in named_functions() if where == module} == set()


def loaded_by(statement: str, watched: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of the watched packages a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {watched!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import zeroshift") == set()


def test_building_the_command_line_loads_no_torch() -> None:
    assert (
        loaded_by("import zeroshift.app.cli", ("torch", "transformers", "pandas", "PIL", "tensorboard"))
        == set()
    )


def test_working_with_a_gan_loads_no_library_of_diffusion_models() -> None:
    statement = (
        "import zeroshift as zs, zeroshift.methods.adapt, zeroshift.measure.evaluate; "
        "zs.sample('portraits', [0])"
    )
    assert loaded_by(statement, ("diffusers", "torch")) == {"torch"}


def test_a_heavy_import_is_noticed() -> None:
    assert "numpy" in loaded_by("import zeroshift, numpy")


def test_every_public_name_can_be_fetched_and_verbs_win_over_modules() -> None:
    code = (
        "import zeroshift.methods.adapt, zeroshift.pictures.sample, zeroshift as zs\n"
        "assert callable(zs.adapt) and callable(zs.sample), (zs.adapt, zs.sample)\n"
        "print(*(name for name in zs.__all__ if getattr(zs, name) is not None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "adapt" in done.stdout.split() and "load" in done.stdout.split()


def test_the_global_random_state_is_never_used() -> None:
    draws = r"torch\.seed\(|np\.random\.(?!Generator|PCG64|default_rng)|(?<![\w.])random\.(?!Random)\w+\("
    # A library that draws from the global state is given a copy of its own.
    seeds = re.compile(rf"{draws}|torch\.manual_seed")
    found = {label(path) for path in SOURCES if seeds.search(path.read_text(encoding="utf-8"))}
    forked = {label(path) for path in SOURCES if "torch.random.fork_rng" in path.read_text(encoding="utf-8")}
    assert found - forked == set()


def test_nothing_unfinished_and_no_path_of_one_computer() -> None:
    words = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|(?<![\w.$}~-])/(?:root|home|work|Users)/\w")
    kinds = ("*.py", "*.md", "*.toml", "*.lock", "*.cff", "*.j2", "Makefile")
    folders = (ROOT, ROOT / "src", ROOT / "tests", ROOT / "docs", ROOT / "benchmarks")
    texts = {
        path
        for folder in folders
        for kind in kinds
        for path in (folder.glob if folder == ROOT else folder.rglob)(kind)
    }
    assert len(texts) > 40
    assert [label(path) for path in sorted(texts) if words.search(path.read_text(encoding="utf-8"))] == []


def test_only_commands_print() -> None:
    allowed = {"cli.py", "__main__.py", "resumable.py"}
    prints = {
        label(path)
        for path in SOURCES
        if path.name not in allowed
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert prints == set()


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    # What make installs; torchvision has no build for every machine that PyTorch has one for.
    lines = [*project["dependencies"], *(line for name in ("dev", "onnx") for line in extras[name])]
    return [Requirement(line) for line in lines]


def test_the_lock_pins_every_dependency_within_its_range() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    outside = [
        str(item) for item in requirements() if not item.specifier.contains(pins.get(item.name.lower(), "0"))
    ]
    assert outside == []
    assert all("+" not in pin and "/" not in pin for pin in pins.values())


def test_every_declared_dependency_is_imported_somewhere() -> None:
    # TensorBoard is reached through torch.
    spelled = {"pillow": "PIL", "tensorboard": r"torch\.utils\.tensorboard"}
    runtime = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    names = [Requirement(line).name for line in runtime]
    assert [
        name
        for name in names
        if not re.search(rf"^\s*(?:import|from) {spelled.get(name, name)}\b", text, re.MULTILINE)
    ] == []


def test_the_version_is_written_once() -> None:
    import zeroshift

    assert zeroshift.__version__ == version("zeroshift")
    assert f"version: {zeroshift.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_changelog_names_the_version() -> None:
    import zeroshift

    assert f"## {zeroshift.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
