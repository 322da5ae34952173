"""The repository keeps what it says: tree, budgets, method map, light import, tests that assert."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from packaging.requirements import Requirement

from slowlist import slow_lines

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
MAX_COLUMNS = 110


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


def test_every_link_between_the_documents_leads_to_a_file() -> None:
    pages = [ROOT / "README.md", ROOT / "NOTICE.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 5
    assert [f"{label(page)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


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


def test_ruff_holds_the_columns() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert ruff["line-length"] == MAX_COLUMNS
    assert "E" in ruff["lint"]["select"] and not {"E", "E5", "E501"} & set(ruff["lint"]["ignore"])
    assert "exclude" not in ruff and "per-file-ignores" not in ruff["lint"]


def test_configs_keep_their_budget() -> None:
    every = [node for path in (PACKAGE / "config").glob("*.py") for node in parsed(path).body]
    classes = [node for node in every if isinstance(node, ast.ClassDef)]
    fields = {node.name: sum(isinstance(item, ast.AnnAssign) for item in node.body) for node in classes}
    assert fields and max(fields.values()) <= MAX_CONFIG_FIELDS, fields


PREDICATE = re.compile(
    r"_*(is|has|holds?|held|close|equals?|agrees?|same|contains|exists|finished|all|any|callable|search|match"
    r"|fullmatch|startswith|endswith|allclose|array_equal|grad(grad)?check)($|_)|is[a-z]+$"
)
"""Names of functions that answer yes or no."""


def is_oracle(test: ast.expr) -> bool:
    """Whether an asserted expression compares something, or asks a function that answers yes or no.

    `assert run()` and `assert made` are satisfied by nearly everything.
    """
    match test:
        case ast.Compare():
            return True
        case ast.BoolOp(values=values):
            return any(map(is_oracle, values))
        case ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args):
            return bool(PREDICATE.match(name)) or name == "bool" and any(map(is_oracle, args))
        case ast.Attribute(attr=name):
            return bool(PREDICATE.match(name))
    return False


def asserts_something(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a test holds an assert statement with an oracle (see `is_oracle`), `pytest.raises`,
    `pytest.warns`, or a call named assert_* or check_*."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and is_oracle(node.test):
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


def test_every_slow_test_that_is_listed_exists() -> None:
    lines = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.partition("::") for line in lines if not line.startswith("#")]
    texts = {path.relative_to(ROOT / "tests").as_posix(): path.read_text(encoding="utf-8") for path in TESTS}
    missing = [
        "".join(entry) for entry in entries if entry[2] and f"def {entry[2]}(" not in texts.get(entry[0], "")
    ]
    assert entries and missing == []
    assert {file for file, _, _ in entries} <= set(texts)


def test_slow_tests_are_listed_by_what_all_their_cases_took_and_files_by_their_preparation() -> None:
    def report(test: str, when: Literal["setup", "call"], seconds: float) -> pytest.TestReport:
        return pytest.TestReport(f"tests/{test}", ("", 0, ""), {}, "passed", None, when, duration=seconds)

    took = [report("a.py::test_x[1]", "call", 0.3), report("a.py::test_x[2]", "call", 0.3)]
    took += [report("a.py::test_y", "call", 0.3), report("b.py::test_z", "setup", 2.5)]
    assert slow_lines([*took, report("b.py::test_z", "call", 0.9)]) == ["a.py::test_x", "b.py"]


@pytest.mark.parametrize(
    ("body", "enough"),
    [
        ("run()", False),
        ("assert run()", False),
        ("assert made", False),
        ("assert run(), 'told'", False),
        ("assert run() and made", False),
        ("assert run() == 3", True),
        ("assert not run()", True),
        ("assert torch.equal(run(), 3)", True),
        ("assert path.is_file() and made", True),
        ("assert all(each for each in made)", True),
        ("with pytest.raises(ValueError):\n        run()", True),
        ("check_weights(run())", True),
    ],
)
def test_a_test_without_an_oracle_is_found(body: str, enough: bool) -> None:
    (function,) = ast.parse(f"def test_x():\n    {body}").body
    assert isinstance(function, FUNCTIONS)
    assert asserts_something(function) == enough


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


@pytest.mark.parametrize("module", ["losses", "directions", "picture_way", "prompts", "adversarial"])
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


DRAWS = re.compile(
    r"torch\.(random\.)?(seed|manual_seed)\("
    r"|(np|numpy)\.random\.(?!Generator|PCG64|default_rng)"
    r"|(?<![\w.])random\.(?!Random)\w+\("
)
"""Seeding and drawing from the global random state."""


def unguarded_draws(text: str) -> list[int]:
    """Lines that touch the global random state outside `with torch.random.fork_rng(...)`.

    A library that draws from the global state is given a copy of its own there.
    """
    forks = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.With)
        and any("torch.random.fork_rng(" in ast.unparse(item.context_expr) for item in node.items)
    ]
    lines = [number for number, line in enumerate(text.splitlines(), 1) if DRAWS.search(line)]
    return [line for line in lines if not any(line in fork for fork in forks)]


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_the_global_random_state_is_never_used(path: Path) -> None:
    assert unguarded_draws(path.read_text(encoding="utf-8")) == []


def test_a_draw_beside_a_forked_state_is_found() -> None:
    fork = "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(2)"
    text = f"torch.manual_seed(1)\n{fork}\nnp.random.rand()"
    assert unguarded_draws(text) == [1, 4]
    assert unguarded_draws("x = np.random.default_rng(3)\ny = random.Random(4).random()") == []


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
    # Trainings of hours say how they go.
    allowed = {"cli.py", "__main__.py", "resumable.py", "mistakes.py", "oracle.py"}
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
