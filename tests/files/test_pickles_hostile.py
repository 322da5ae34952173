"""No file runs anything, takes all memory or time, or ends in anything but one sentence: made, cut and
mutated files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foreign
import hostile
import tiny
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_discriminator_file, load_generator_file
from zeroshift.files.describe import inspect
from zeroshift.files.pickles import read_tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="memory is bounded by the POSIX way")


def outcomes(folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """What came of every file, opened in a process of its own with little memory."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, hostile.__file__, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=len(files) * hostile.SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check_one_sentence(said: str, path: Path) -> None:
    assert said.startswith(f"refused: {path} "), said
    assert "\n" not in said and len(said) < len(str(path)) + 400 and said.isprintable(), said


def test_nothing_in_a_file_is_ever_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = hostile.runs(canary)
    assert len(files) > 60
    found = outcomes(tmp_path / "files", files)["files"]
    assert not canary.exists() and sorted(found) == sorted(files)
    for name, result in found.items():
        path = tmp_path / "files" / name
        check_one_sentence(result["load_generator_file"], path)
        assert not result["inspect"].startswith("failed") and result["seconds"] < hostile.SECONDS
        kind, _, full = name.partition(" ")
        if kind in ("call", "name", "step") and "." in full:
            assert (
                f" needs {full}, which is not read because that could run code"
                in result["load_generator_file"]
            )
    named = (
        "nested",
        "instance",
        "object",
        "state",
        "torch file",
        "torchscript",
        "old torch file",
        "within an archive",
    )
    assert all("could run code" in found[name]["load_generator_file"] for name in named)
    assert all(
        "extension registry" in found[f"extension {size}"]["load_generator_file"] for size in (1, 2, 4)
    )


def test_no_file_takes_all_memory_or_time(tmp_path: Path) -> None:
    files = hostile.devours()
    assert len(files) > 50
    found = outcomes(tmp_path / "files", files)
    assert sorted(found["files"]) == sorted(files) and found["peak"] < hostile.MEMORY
    for name, result in found["files"].items():
        check_one_sentence(result["load_generator_file"], tmp_path / "files" / name)
        assert not result["inspect"].startswith("failed") and result["seconds"] < hostile.SECONDS, result


def test_a_sparse_file_of_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    heads = {
        "bytes": hostile.program(b"\x8e" + (1 << 30).to_bytes(8, "little"))[:-1],
        "tensors": b"\x80\x02}.",
    }
    for name, head in heads.items():
        with open(folder / name, "wb") as file:
            file.write(head)
            file.truncate(len(head) + (1 << 30))
            file.seek(0, os.SEEK_END)
            file.write(b".")
    command = [sys.executable, hostile.__file__, str(folder)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert found["peak"] < 1 << 30
    assert all(result["load_generator_file"].startswith("refused") for result in found["files"].values())


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small generator in every layout."""
    files = foreign.every_layout(tmp_path_factory.mktemp("layouts"), foreign.generator())
    return {name: path.read_bytes() for name, path in files.items()}


LAYOUTS = ["nvidia", "nvidia state", "ours", "rosinality", "rosinality legacy", "tensorflow"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_is_refused_in_one_sentence(
    layout: str, layouts: dict[str, bytes], tmp_path: Path
) -> None:
    whole = layouts[layout]
    path = tmp_path / "cut"
    places = {int(len(whole) * share / 40) for share in range(1, 40)} | {
        1,
        2,
        8,
        9,
        10,
        30,
        100,
        len(whole) - 1,
    }
    for place in sorted(places):
        path.write_bytes(whole[:place])
        with pytest.raises(InputError) as caught:
            load_generator_file(path)
        check_one_sentence(f"refused: {caught.value}", path)


def mutated(whole: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """A file with bytes exchanged, removed, inserted or repeated at places given as shares of its length."""
    content = bytearray(whole)
    for kind, share, value in changes:
        place = int(share * len(content))
        if kind == "exchange":
            content[place : place + 1] = bytes([value])
        elif kind == "remove":
            del content[place : place + 1 + value]
        elif kind == "insert":
            content[place:place] = bytes([value])
        else:
            content[place:place] = content[place : place + value]
    return bytes(content)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["exchange", "exchange", "remove", "insert", "repeat"]),
        st.floats(0, 1, exclude_max=True) | st.floats(0, 0.02) | st.floats(0.9, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(layout=st.sampled_from(LAYOUTS), changes=CHANGES)
def test_a_mutated_file_is_read_or_refused_and_nothing_else(
    layout: str, changes: list[tuple[str, float, int]], layouts: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "mutated"
    path.write_bytes(mutated(layouts[layout], changes))
    for verb in (load_generator_file, load_discriminator_file, inspect):
        try:
            verb(path)
            if verb is load_generator_file:
                assert torch.isfinite(tiny.styled(load_generator_file(path)[0]).latent_avg).all()
        except InputError as error:
            check_one_sentence(f"refused: {error}", path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mutated"]


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    body=st.lists(
        st.sampled_from([bytes([code]) for code in range(256)]) | st.binary(max_size=4), max_size=60
    )
)
def test_any_instructions_are_read_or_refused(body: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(hostile.program(*body, protocol=4))
    try:
        assert read_tensors(path).kind in ("pickle", "torch")
    except InputError as error:
        check_one_sentence(f"refused: {error}", path)


def test_a_device_or_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(InputError, match="no regular file"):
            read_tensors(path)
