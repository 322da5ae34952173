"""What every test shares: no network, one thread, and the golden groups that no test covers yet."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

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
    """Names of the golden groups under `root` that no test file names, sorted."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py"))
    groups = (folder.name for folder in root.iterdir() if folder.is_dir())
    return sorted(group for group in groups if f'"{group}"' not in sources)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of files that read golden numbers, so that `-m golden` finds them."""
    readers = {
        path for path in {item.path for item in items} if "goldenlib" in path.read_text(encoding="utf-8")
    }
    for item in items:
        if item.path in readers:
            item.add_marker("golden")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the groups of a foreign golden folder that are not covered yet."""
    named = os.environ.get("ZEROSHIFT_GOLDEN")
    if named is None or not Path(named).is_dir():
        return
    for group in uncovered_groups(Path(named), Path(__file__).parent):
        terminalreporter.write_line(f"golden group not covered yet: {group}")
