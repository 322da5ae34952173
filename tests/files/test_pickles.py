"""Weights files of other programs as plain data: equal to what their own libraries read."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import foreign
from zeroshift.errors import InputError, printable
from zeroshift.files.pickles import flat_tensors, read_tensors
from zeroshift.files.unpickle import PickleLimits, Record

KINDS = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
]
KINDS += [torch.uint8, torch.bool]


def network() -> nn.Module:
    return nn.Sequential(
        OrderedDict(first=nn.Conv2d(2, 3, 3), norm=nn.BatchNorm2d(3), last=nn.Sequential(nn.ReLU()))
    )


def values() -> dict[Any, Any]:
    """Every kind of value that the files of this field hold."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "tensors": {str(kind): torch.tensor([[0, 1], [2, 3]]).to(kind) for kind in KINDS},
        "views": [base[1:, ::2], base.t(), base[2, 3], base[:0], base[None, :, 1:2]],
        "plain": [
            None,
            True,
            False,
            0,
            -5,
            70000,
            2**40,
            -(2**70),
            1.5,
            "text",
            "Ã¼",
            (1, (2, 3)),
            [],
            {},
            (),
        ],
        "sets": {1, 2, 3},
        "sizes": torch.Size([1, 2]),
        "arrays": [
            np.arange(6.0).reshape(2, 3),
            np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
            np.zeros((0, 3)),
        ],
        "scalar": np.float32(0.1),
        "options": argparse.Namespace(size=64, path="a/b", nested={"lr": 0.1}),
        "module": network(),
        "ordered": OrderedDict(a=1, b=OrderedDict(c=2)),
        "default": defaultdict(list, a=[1]),
        "bytes": [b"", b"ab", bytes(300)],
        1: "a number as key",
    }


def assert_same(got: Any, expected: Any) -> None:
    """Equal as plain data: arrays as tensors, modules and namespaces as records."""
    if isinstance(expected, nn.Module):
        assert isinstance(got, Record) and got.class_name == type(expected).__name__
        assert_same(flat_tensors(got), dict(expected.state_dict()))
    elif isinstance(expected, argparse.Namespace):
        assert (got.module, got.class_name) == ("argparse", "Namespace")
        assert_same(got.state, vars(expected))
    elif isinstance(expected, Tensor | np.ndarray):
        expected = torch.as_tensor(expected)
        assert got.dtype == expected.dtype and got.shape == expected.shape and torch.equal(got, expected)
    elif isinstance(expected, dict):
        assert type(got) is dict and list(got) == list(expected)
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected and type(got) is type(
            expected if not isinstance(expected, np.generic) else expected.item()
        )


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("instructions", 40),
        ("text_bytes", 20),
        ("copied_bytes", 100),
        ("tensor_share", 1),
        ("integer_bytes", 4),
        ("name_characters", 20),
        ("depth", 1),
        ("values", 10),
    ],
)
def test_a_lower_limit_refuses_a_pickle_that_the_default_reads(
    limit: str, value: int, tmp_path: Path
) -> None:
    base = torch.arange(3000.0)
    tree = {"one": base, "two": base[1:], "three": {"five": list(range(20)), "six": 2**70}}
    torch.save(tree, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert_same(read_tensors(tmp_path / "x.pt").tree, tree)
    check_limit(tmp_path / "x.pt", limit, value)


def test_the_copies_of_a_file_are_limited_by_its_own_size(tmp_path: Path) -> None:
    array = np.zeros(1000)
    # Text in which old pickles keep bytes: every zero is two characters less than its number.
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": array, "b": array + 1}, protocol=2))
    assert len(read_tensors(tmp_path / "x.pkl").tree) == 2
    check_limit(tmp_path / "x.pkl", "copied_share", 1)


def test_long_tables_of_contents_are_limited(tmp_path: Path) -> None:
    save_file({f"name{index}": torch.zeros(1) for index in range(50)}, tmp_path / "x.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        assert read_tensors(tmp_path / name).tree
        check_limit(tmp_path / name, "header_bytes", 100)


def check_limit(path: Path, limit: str, value: int) -> None:
    """Asserts that a limit of this value refuses the file in one sentence that names it."""
    with pytest.raises(InputError, match=f"limit {limit}: {value}") as caught:
        read_tensors(path, PickleLimits(**{limit: value}))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="depth must be at least 1, got 0"):
        PickleLimits(depth=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_old_and_new_give_what_was_saved(legacy: bool, tmp_path: Path) -> None:
    saved = values()
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    content = read_tensors(tmp_path / "a.pt")
    assert content.kind == "torch"
    assert_same(content.tree, saved)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_with_tensors_in_them_give_what_was_saved(protocol: int, tmp_path: Path) -> None:
    saved = values()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(saved, protocol=protocol))
    content = read_tensors(tmp_path / "a.pkl")
    assert content.kind == "pickle"
    assert_same(content.tree, saved)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archives_give_their_tensors(tmp_path: Path) -> None:
    made = network().eval()
    torch.jit.trace(made, torch.zeros(1, 2, 4, 4)).save(tmp_path / "a.pt")  # pyright: ignore[reportAttributeAccessIssue]
    content = read_tensors(tmp_path / "a.pt")
    assert content.kind == "torchscript"
    assert_same(flat_tensors(content.tree), dict(made.state_dict()))


def test_safetensors_give_tensors_and_metadata(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "a", {"target": "sketch"})
    content = read_tensors(tmp_path / "a")
    assert content.kind == "safetensors" and content.metadata == {"target": "sketch"}
    assert_same(content.tree, {"a": torch.ones(2, 3)})


def test_one_storage_under_two_names_is_read_once_for_each(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    torch.save({"a": base, "b": base[1:]}, tmp_path / "a.pt")
    tree = read_tensors(tmp_path / "a.pt").tree
    assert_same(tree, {"a": base, "b": base[1:]})


def test_changing_what_was_read_changes_no_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    read_tensors(tmp_path / "a.pt").tree["a"].fill_(1)
    assert (tmp_path / "a.pt").read_bytes() == before


def test_option_containers_of_omegaconf_become_dictionaries(tmp_path: Path) -> None:
    class Container:
        def __init__(self, **state: Any) -> None:
            self.__dict__ |= state

    class Sequence(Container):
        pass

    class Node(Container):
        pass

    names = {
        "omegaconf.dictconfig.DictConfig": Container,
        "omegaconf.listconfig.ListConfig": Sequence,
        "omegaconf.nodes.AnyNode": Node,
    }
    with foreign.stand_ins(names):
        whole: Any = Container(_metadata=None, _parent=None, _content={})
        whole._content = {
            "lr": Node(_parent=whole, _val=0.1),
            "sizes": Sequence(_parent=whole, _content=[Node(_val=4), Node(_val=8)]),
        }
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"config": whole}))
    assert read_tensors(tmp_path / "a.pkl").tree == {"config": {"lr": 0.1, "sizes": [4, 8]}}


def test_modules_of_nvidia_are_records_whose_source_is_left_alone(tmp_path: Path) -> None:
    made = foreign.generator()
    source = f"open({str(tmp_path / 'ran')!r}, 'w')"
    tree = read_tensors(foreign.nvidia_pickle(tmp_path / "g.pkl", made, source=source)).tree
    assert tree["G_ema"].class_name == "Generator" and tree["training_set_kwargs"]["resolution"] == 16
    assert flat_tensors(tree["G_ema"])["synthesis.b4.const"].shape == (8, 4, 4)
    assert source not in str(tree) and not (tmp_path / "ran").exists()


def test_flat_names_are_those_of_a_state_dict() -> None:
    tree = {
        "a": {"b": torch.ones(1), "c": [torch.ones(1)]},
        "d": Record("X", "m", {"_modules": {"e": Record("Y", "m", {})}}),
    }
    assert list(flat_tensors(tree)) == ["a.b"]
    assert flat_tensors(None) == {} == flat_tensors([torch.ones(1)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"text and more text", "neither a safetensors file"),
        (b"PK\x05\x06" + bytes(18), "without the weights of a torch file"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"\x80\x04.", "truncated or damaged"),
    ],
)
def test_what_is_no_weights_file_is_refused_in_one_sentence(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.arange(3, dtype=">f4")))
    with pytest.raises(InputError, match="big-endian"):
        read_tensors(tmp_path / "a.pkl")


def test_text_of_files_is_made_safe_for_terminals() -> None:
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert printable("x" * 500) == "x" * 100 + "..."
