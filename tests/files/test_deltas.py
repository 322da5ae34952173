"""Small parameters in a file of their own: found by content, applied to the source that they belong to and to
no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import zeroshift as zs
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file, save_generator
from zeroshift.files.deltas import is_delta, load_delta, save_delta
from zeroshift.files.registry import load_generator
from zeroshift.files.writing import file_sha256
from zeroshift.models import layers
from zeroshift.models.parameters import Kind, folded, reparametrise, small_parameters


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """File of a generator."""
    save_generator(tmp_path / "source.safetensors", tiny.generator(1))
    return tmp_path / "source.safetensors"


def written(path: Path, source: Path, kind: Kind = "domain", metadata: dict[str, str] | None = None) -> Any:
    """A file of small parameters of a source, and the generator that they make of it."""
    plain: Any = load_generator_file(source)[0]
    target = plain.clone()
    reparametrise(target, kind, layers.select(target, "convs.0,convs.1"))
    with torch.no_grad():
        for each in small_parameters(target).values():
            each.add_(0.25)
    facts = {"source_name": str(source), "source_sha256": file_sha256(source), "world": "somewhere"}
    save_delta(path, kind, small_parameters(target), facts | (metadata or {}))
    return folded(target, plain)


@pytest.mark.parametrize("kind", ["affine", "lowrank", "domain"])
def test_a_file_of_small_parameters_is_a_generator_wherever_one_is_asked_for(
    tmp_path: Path, source: Path, kind: Kind
) -> None:
    path = tmp_path / "any.name"
    expected = written(path, source, kind)
    made, info = load_generator(path)
    assert (info.world, info.sha256) == ("somewhere", file_sha256(path))
    assert load_delta(path).kind == kind
    for each in (made, zs.load(str(path))):
        assert all(
            torch.equal(each.state_dict()[name], value) for name, value in expected.state_dict().items()
        )
    assert torch.equal(zs.sample(path, [3]), expected.sample([3]))


def test_only_such_files_are_taken_for_one(tmp_path: Path, source: Path) -> None:
    written(tmp_path / "delta", source)
    save_generator(tmp_path / "named", tiny.generator(), {"source_name": "zeroshift.delta"})
    (tmp_path / "short").write_bytes(b"{}")
    (tmp_path / "odd").write_bytes(
        (64).to_bytes(8, "little") + b'{"__metadata__": ["zeroshift.delta"]'.ljust(64)
    )
    found = {path.name for path in tmp_path.iterdir() if is_delta(path)}
    assert found == {"delta"} and not is_delta(tmp_path) and not is_delta(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no small parameters of a run"):
        load_delta(source)
    with pytest.raises(InputError, match="holds a delta, not a generator"):
        load_generator_file(tmp_path / "delta")


def test_a_source_that_moved_is_found_where_one_says_and_another_is_refused(
    tmp_path: Path, source: Path
) -> None:
    delta = tmp_path / "delta.safetensors"
    expected = written(delta, source)
    moved = source.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(
        InputError, match=r"source generator of .*delta\.safetensors was not found: .*--generator"
    ):
        zs.load(delta)
    assert torch.equal(zs.load(str(delta), generator=str(moved)).sample([0]), expected.sample([0]))
    save_generator(source, tiny.generator(2))
    with pytest.raises(
        InputError, match=r"source\.safetensors is not the source generator of .*: its sha256 is"
    ):
        zs.load(delta)


def test_what_does_not_say_its_source_or_kind_or_does_not_fit_is_refused(
    tmp_path: Path, source: Path
) -> None:
    delta = tmp_path / "delta.safetensors"
    for metadata, said in (
        ({"source_sha256": ""}, r"does not say what it belongs to \(source_sha256 is missing\)"),
        ({"source_name": ""}, r"\(source_name is missing\)"),
    ):
        written(delta, source, metadata=metadata)
        with pytest.raises(InputError, match=said):
            zs.load(delta)
    facts = {"source_name": str(source), "source_sha256": file_sha256(source)}
    of_a_later_version: Any = "magic"
    save_delta(delta, of_a_later_version, {"x": torch.zeros(1)}, facts)
    with pytest.raises(
        InputError, match="holds parameters magic, this version knows affine, lowrank, domain"
    ):
        zs.load(delta)
    save_delta(delta, "domain", {"convs.9.conv.modulation.weight.change": torch.zeros(1)}, facts)
    with pytest.raises(InputError, match="does not fit its source: the generator has no weight 'convs.9"):
        zs.load(delta)


def test_inspect_says_what_it_is_and_what_it_needs(tmp_path: Path, source: Path) -> None:
    written(tmp_path / "delta", source, metadata={"target": "zombie"})
    found = zs.inspect(tmp_path / "delta")
    assert (found.kind, found.usable, found.parameters) == ("delta", True, 32)
    assert found.architecture == {"parameters": "domain", "changed weights": 2}
    assert str(source)[:20] in found.use and file_sha256(source)[:12] in found.use
    assert found.metadata["target"] == "zombie"
