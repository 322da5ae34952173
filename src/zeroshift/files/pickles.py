"""Weights files of any program as plain data: safetensors, torch archives old and new, TorchScript, pickles
with module objects.

The first bytes decide what a file is, never its name. Nothing in a file is executed (see `unpickle`). Sizes
that a file declares are checked against its real size before anything is allocated, so a file costs at most
about twice its size and some seconds. `torch.load(weights_only=True)` is not used: it believes declared sizes
(ADR 0014).
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zeroshift.errors import InputError, printable
from zeroshift.files.unpickle import (
    STORAGES,
    Budget,
    Damaged,
    Machine,
    Name,
    NumpyArray,
    NumpyType,
    PickleLimits,
    Record,
    Refused,
    Storage,
)

DEFAULT_LIMITS = PickleLimits()
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

Kind = Literal["safetensors", "torch", "torchscript", "pickle"]


@dataclass(frozen=True)
class Content:
    """What a file holds. `tree` is made of dicts, lists, tuples, sets, texts, numbers, tensors and records.

    Note. Tensors may be views of the file on the disk: copy what outlives it.
    """

    kind: Kind
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensors(path: str | Path, limits: PickleLimits = DEFAULT_LIMITS) -> Content:
    """Content of a weights file. InputError says in one sentence why a file is not read: damaged, hostile,
    another kind, or beyond one of the limits, which it names."""
    path = Path(path)
    data = _mapped(path)
    try:
        if data[8:9] == b"{":
            return _read_safetensors(path, data, limits)
        if data[:2] == b"PK":
            return _read_zip(data, limits)
        if data[:1] == b"\x80":
            return _read_pickle(data, limits)
    except Damaged as error:
        raise InputError(f"{path} is truncated or damaged ({error}). Copy or download it again.") from error
    except Refused as error:
        raise InputError(f"{path} {error}.") from error
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is.") from error
    head = bytes(data[:4])
    raise InputError(
        f"{path} is neither a safetensors file, a torch file nor a pickle (it begins with {head!r})."
    )


def flat_tensors(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors by dotted name, as a state dict has them, of nested dicts and of records of modules (also
    TorchScript's)."""
    found: dict[str, Tensor] = {}
    for name, value in _members(tree).items():
        full = f"{prefix}{name}"
        if isinstance(value, Tensor):
            found[full] = value
        elif isinstance(value, Mapping | Record):
            found.update(flat_tensors(value, f"{full}."))
    return found


def _members(tree: Any) -> Mapping[Any, Any]:
    """Named parts of a dictionary or of a record; a module's are its parameters, buffers and modules."""
    state = tree.state if isinstance(tree, Record) else tree
    if not isinstance(state, Mapping):
        return {}
    parts = [state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
    if not isinstance(tree, Record) or not any(isinstance(part, Mapping) for part in parts):
        return state
    return {name: value for part in parts if isinstance(part, Mapping) for name, value in part.items()}


def _mapped(path: Path) -> memoryview:
    """Bytes of a file, read from the disk when they are looked at."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
            raise InputError(f"{path} is no regular file. Give the path of a weights file.")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise InputError(f"{path} is empty. Copy or download it again.")
            # A private copy on write: tensors need memory that may be written to, and the file must never
            # change.
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}. Give the path of a weights file."
        ) from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}. Give the path of a weights file.") from error


def _read_safetensors(path: Path, data: memoryview, limits: PickleLimits) -> Content:
    from safetensors import SafetensorError, safe_open

    length = struct.unpack("<Q", data[:8])[0]
    if length > limits.header_bytes:
        raise Damaged(f"a header of {length} bytes, {limits.named('header_bytes')}")
    try:
        with safe_open(path, "pt") as file:
            return Content(
                "safetensors",
                {name: file.get_tensor(name) for name in file.keys()},
                dict(file.metadata() or {}),
            )
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise Damaged(printable(error, 150)) from error


class _ShortReads(io.RawIOBase):
    """Bytes as a file that refuses long reads, so that no table of contents is longer than it should be."""

    def __init__(self, data: memoryview, limits: PickleLimits) -> None:
        self.data = data
        self.limits = limits
        self.at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: len(self.data)}[whence]
        if self.at < 0:
            raise OSError("before the start")
        return self.at

    def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size < 0 else min(self.at + size, len(self.data))
        if end - self.at > self.limits.header_bytes:
            raise OSError(f"too long a table of contents, {self.limits.named('header_bytes')}")
        found = bytes(self.data[self.at : end])
        self.at = max(end, self.at)
        return found


def _read_zip(data: memoryview, limits: PickleLimits) -> Content:
    try:
        with zipfile.ZipFile(_ShortReads(data, limits)) as archive:  # pyright: ignore[reportArgumentType]  # reads, seeks and tells
            members = {info.filename: info for info in archive.infolist()}
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        struct.error,
        NotImplementedError,
        IndexError,
        RuntimeError,
    ) as error:
        raise Damaged(printable(error, 150)) from error
    roots = [
        name.removesuffix("data.pkl")
        for name in members
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise Refused("is a zip archive without the weights of a torch file")
    (root,) = roots
    budget = Budget(len(data), limits)

    def region(name: str) -> memoryview:
        if name not in members:
            raise Damaged("weights are missing from the archive")
        return _member(data, members[name])

    if (order := f"{root}byteorder") in members and bytes(region(order)) != b"little":
        raise Refused("holds numbers in big-endian order, which is not supported")

    def storage(key: tuple[Any, ...]) -> Storage:
        dtype, name, count = _storage_key(key)
        return Storage(_tensor_of(region(f"{root}data/{name}"), dtype, count, budget))

    tree = _finish(Machine(region(f"{root}data.pkl"), 0, budget, storage).run(), budget)
    is_script = f"{root}constants.pkl" in members
    return Content("torchscript" if is_script else "torch", tree)


def _member(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """Bytes of one member of a zip archive."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise Refused("holds compressed or encrypted weights, which torch never writes")
    head = data[info.header_offset : info.header_offset + 30] if info.header_offset >= 0 else b""
    if len(head) < 30 or head[:4] != b"PK\x03\x04" or info.file_size != info.compress_size:
        raise Damaged("a member without a beginning")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
    if info.file_size > len(data) - start:
        raise Damaged("a member longer than the file")
    return data[start : start + info.file_size]


def _storage_key(key: tuple[Any, ...]) -> tuple[torch.dtype, str, int]:
    """Type, name and length of a storage by its persistent id: ("storage", type, name, device, length)."""
    kind, dtype, name, _, count, *view = key
    if kind != "storage" or not isinstance(dtype, Name) or dtype.full not in STORAGES or any(view):
        raise Refused("refers to something that is no storage of numbers")
    if type(name) is not str or type(count) is not int or count < 0:
        raise Damaged("a storage without a name or length")
    return STORAGES[dtype.full], name, count


def _tensor_of(region: memoryview, dtype: torch.dtype, count: int, budget: Budget) -> Tensor:
    """The first `count` numbers of some bytes, without a copy where they lie as the processor wants them."""
    if count * dtype.itemsize > len(region):
        raise Damaged(f"{count} numbers in {len(region)} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    values = torch.frombuffer(region, dtype=dtype, count=count)
    if values.data_ptr() % dtype.itemsize == 0:
        return values
    budget.spend("copied", count * dtype.itemsize)
    return torch.frombuffer(bytearray(region[: count * dtype.itemsize]), dtype=dtype)


def _read_pickle(data: memoryview, limits: PickleLimits) -> Content:
    budget = Budget(len(data), limits)

    def refuse(_: tuple[Any, ...]) -> Storage:
        raise Refused("refers to weights outside itself")

    machine = Machine(data, 0, budget, refuse, lambda raw: _inner_storage(raw, budget))
    first = machine.run()
    if type(first) is int and first == LEGACY_MAGIC:
        return Content("torch", _finish(_read_legacy(data, machine.end, budget), budget))
    return Content("pickle", _finish(first, budget))


def _inner_storage(data: memoryview, budget: Budget) -> Storage:
    """Storage that an archive within a pickle holds: how torch writes numbers into the pickle of another
    program."""
    if data[:1] != b"\x80":
        raise Damaged("weights of an unknown form within the pickle")
    magic = Machine(data, 0, budget, lambda _: Storage(torch.empty(0)))
    if magic.run() != LEGACY_MAGIC:
        raise Damaged("weights of an unknown form within the pickle")
    found = _read_legacy(data, magic.end, budget)
    if not isinstance(found, Storage):
        raise Damaged("weights of an unknown form within the pickle")
    return found


def _read_legacy(data: memoryview, at: int, budget: Budget) -> Any:
    """Object of a torch archive before 1.6: pickles one after the other, then every storage with its length
    in front."""
    storages: dict[str, Storage] = {}

    def storage(key: tuple[Any, ...]) -> Storage:
        dtype, name, count = _storage_key(key)
        if name not in storages:
            # The numbers come after the pickle: the space is made now, after a look at whether the file can
            # hold them.
            budget.spend("copied", count * dtype.itemsize)
            storages[name] = Storage(torch.empty(count, dtype=dtype))
        if storages[name].values.dtype != dtype or len(storages[name].values) != count:
            raise Damaged("two storages of one name")
        return storages[name]

    parts: list[Any] = []
    for _ in range(4):
        machine = Machine(data, at, budget, storage)
        parts.append(machine.run())
        at = machine.end
    _, system, tree, names = parts
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("holds numbers in big-endian order, which is not supported")
    if type(names) is not list or set(map(str, names)) != set(storages):
        raise Damaged("storages that are not named")
    for name in names:
        values = storages[name].values
        if len(data) - at < 8 or struct.unpack("<q", data[at : at + 8])[0] != len(values):
            raise Damaged("it ends too early")
        at += 8
        length = len(values) * values.element_size()
        own = Budget(length, budget.limits)  # the space of these numbers was counted when it was made
        values.copy_(_tensor_of(data[at : at + length], values.dtype, len(values), own))
        at += length
    return tree


class _Walk:
    """Replaces what only the machine knows by plain values; refuses trees too deep or too large to walk, and
    circles."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.done: dict[int, tuple[Any, Any, int]] = {}
        self.open: set[int] = set()

    def visit(self, item: Any, depth: int = 0) -> tuple[Any, int]:
        """A plain value and how many values it is made of, counted as often as they are reached."""
        if item is None or isinstance(item, str | int | float | Tensor | bytes | frozenset):
            return item, 1
        if id(item) in self.done:
            return self.done[id(item)][1:]
        limits = self.budget.limits
        if depth > limits.depth or id(item) in self.open:
            raise Damaged(f"containers within containers without end, {limits.named('depth')}")
        self.budget.spend("steps", 1)
        self.open.add(id(item))
        result, nodes = self.convert(item, depth + 1)
        if nodes > limits.values:
            raise Damaged(f"more values than any file of weights has, {limits.named('values')}")
        self.open.discard(id(item))
        self.done[id(item)] = (item, result, nodes)
        return result, nodes

    def convert(self, item: Any, depth: int) -> tuple[Any, int]:
        if isinstance(item, dict):
            pairs = [(key, self.visit(value, depth)) for key, value in item.items()]
            return {key: value for key, (value, _) in pairs}, 1 + sum(nodes for _, (_, nodes) in pairs)
        if isinstance(item, list | tuple):
            visited = [self.visit(value, depth) for value in item]
            return type(item)(value for value, _ in visited), 1 + sum(nodes for _, nodes in visited)
        if isinstance(item, Record):
            if item.module.startswith("omegaconf"):
                return self.visit(_option_value(item.state), depth)
            item.state, nodes = self.visit(item.state, depth)
            return item, 1 + nodes
        if isinstance(item, memoryview):
            self.budget.spend("text", len(item))
        return _plain(item), 1


def _finish(item: Any, budget: Budget) -> Any:
    return _Walk(budget).visit(item)[0]


def _option_value(state: Any) -> Any:
    """Value that an omegaconf container or node wraps."""
    if not isinstance(state, dict):
        return None
    return state.get("_content", state.get("_val"))


def _plain(item: Any) -> Any:
    """Value of an object that only the machine knows."""
    if isinstance(item, Name):
        return item.full
    if isinstance(item, Storage):
        return item.values
    if isinstance(item, NumpyType):
        return item.code
    if isinstance(item, NumpyArray) and item.values is not None:
        return item.values
    if isinstance(item, memoryview):
        return bytes(item)
    if isinstance(item, set):
        return item
    raise Damaged(f"an unfinished {type(item).__name__}")
