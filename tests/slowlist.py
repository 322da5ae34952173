"""Which tests `make test-fast` leaves out: those that `slow.txt` lists."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

SLOW = Path(__file__).parent / "slow.txt"
"""Tests as `file::test`, and whole files, that `make test-fast` leaves out."""

LONG, LONG_SETUP = 0.5, 2.0
"""Seconds from which `--note-slow` lists a test, and a file for what it prepares."""


def slow_names() -> set[str]:
    """Entries of `slow.txt`."""
    lines = SLOW.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def slow_lines(reports: list[pytest.TestReport]) -> list[str]:
    """Entries of `slow.txt` for tests that took as long as in these reports."""
    took, files = defaultdict[str, float](float), set[str]()
    for report in reports:
        file, _, test = report.nodeid.removeprefix("tests/").partition("::")
        took[f"{file}::{test.partition('[')[0]}"] += report.duration
        if report.when == "setup" and report.duration >= LONG_SETUP:
            files.add(file)
    long = {
        test for test, seconds in took.items() if seconds >= LONG and test.partition("::")[0] not in files
    }
    return sorted(files | long)
