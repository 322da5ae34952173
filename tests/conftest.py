"""What every test shares: no network, one thread; which tests are slow; what golden numbers leave to say."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import goldenlib
from slowlist import SLOW, slow_lines, slow_names

torch.set_num_threads(1)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuses every connection that would leave the machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise OSError(f"a test tried to reach {address[0]}; tests run without a network")
        connect(self, address)  # pyright: ignore[reportArgumentType]  # typeshed names the address type privately

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


def uncovered_groups(root: Path, tests: Path) -> list[str]:
    """Names of the golden groups under `root` that no test file of a room names, sorted."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in tests.glob("*/test_*.py"))
    groups = (folder.name for folder in root.iterdir() if folder.is_dir())
    return sorted(group for group in groups if f'"{group}"' not in sources)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that writes `slow.txt` anew, after a run of all tests."""
    parser.addoption("--note-slow", action="store_true", help="write tests/slow.txt from what tests took")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of files that read golden numbers, for `-m golden`, and slow ones, for `-m "not slow"`."""
    sources = {path: path.read_text(encoding="utf-8") for path in {item.path for item in items}}
    slow, root = slow_names(), Path(__file__).parent
    for item in items:
        if "goldenlib" in sources[item.path]:
            item.add_marker("golden")
        file = item.path.relative_to(root).as_posix()
        if slow & {file, f"{file}::{item.name.partition('[')[0]}"}:
            item.add_marker("slow")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails or skips a test for which the golden folder has no run, see `goldenlib.params`."""
    for mark in item.iter_markers("lacking"):
        goldenlib.lacking(mark.args[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Keeps what a test remarked about golden numbers, for the end of the session."""
    goldenlib.REMARKS.clear()
    try:
        return (yield)
    finally:
        item.user_properties.extend(("golden", remark) for remark in goldenlib.REMARKS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists how near golden runs came to their limits, what was left out, and groups not covered yet."""
    every = [report for reports in terminalreporter.stats.values() for report in reports]
    if terminalreporter.config.getoption("--note-slow"):
        head = [line for line in SLOW.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        tests = [report for report in every if isinstance(report, pytest.TestReport)]
        SLOW.write_text("\n".join([*head, *slow_lines(tests)]) + "\n", encoding="utf-8")
    said = [pair for report in every for pair in getattr(report, "user_properties", ())]
    for remark in dict.fromkeys(remark for name, remark in said if name == "golden"):
        terminalreporter.write_line(f"golden {remark}")
    named = os.environ.get("ZEROSHIFT_GOLDEN")
    if named is None or not Path(named).is_dir():
        return
    for group in uncovered_groups(Path(named), Path(__file__).parent):
        terminalreporter.write_line(f"golden group not covered yet: {group}")
