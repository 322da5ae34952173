"""The language of pickles without its power to call anything: a small machine that builds data and nothing
else.

A pickle is a program that names functions and calls them. Here a name is only looked up in the closed tables
at the foot, where each stands for a few lines of ours; nothing is imported, no object has methods of the
file's choosing, and every other name is refused. What a file declares is checked against its size before
anything is allocated. Source: pickletools of Python.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zeroshift.errors import InputError, printable


@dataclass(frozen=True, kw_only=True)
class PickleLimits:
    """What a file of weights may ask of its reader. A file that asks for more is refused with a message that
    names the limit. The defaults let everything through that known programs write, and stop what is made to
    exhaust memory or time; InputError where one is below 1.
    """

    instructions: int = 300_000
    """Instructions of a pickle and containers that it makes: a checkpoint with all optimiser states of the
    largest encoders needs half."""
    text_bytes: int = 64 << 20
    """Bytes of all texts."""
    copied_bytes: int = 3 << 29
    """Bytes of all numbers that must be copied out of the file, because they lie askew or in texts."""
    copied_share: int = 3
    """Bytes copied per byte of the file: bytes in old pickles are text first."""
    tensor_share: int = 2
    """Bytes of all tensors per byte of the file (and a page): weights may have two names."""
    integer_bytes: int = 32
    """Bytes of one whole number."""
    name_characters: int = 500
    """Characters of the name of a class or function, with its module."""
    header_bytes: int = 4 << 20
    """Bytes of a safetensors header or of a zip's table of contents. Files of known models have a tenth."""
    depth: int = 100
    """Containers within containers."""
    values: int = 300_000
    """Values of the tree that comes out, counted as often as they are reached."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.")

    def named(self, name: str) -> str:
        """The end of a message about a file that asks for more than the limit of this name."""
        return f"limit {name}: {getattr(self, name)}"


class Refused(Exception):
    """Why a file is not read, as an end of the sentence that begins with its path."""


class Damaged(Refused):
    """The file contradicts itself or ends too early."""


@dataclass(eq=False, slots=True)
class Record:
    """An object of a known class as data: the name of the class and what was stored in it. The class itself
    is never imported."""

    class_name: str
    module: str
    state: Any = None


class Budget:
    """What reading one file may cost, whatever it declares. Archives inside the file share it."""

    def __init__(self, file_bytes: int, limits: PickleLimits) -> None:
        self.limits = limits
        by_size = limits.copied_share * file_bytes
        self.copied_limit = "copied_share" if by_size < limits.copied_bytes else "copied_bytes"
        self.left = {
            "steps": limits.instructions,
            "text": limits.text_bytes,
            "copied": min(by_size, limits.copied_bytes),
            "tensors": limits.tensor_share * file_bytes + 4096,
        }

    def spend(self, what: Literal["steps", "text", "copied", "tensors"], amount: int) -> None:
        """Takes an amount, steps or bytes, from what is left; Refused where that is less."""
        self.left[what] -= amount
        if self.left[what] >= 0:
            return
        wanted, limit = {
            "steps": ("steps to be read", "instructions"),
            "text": ("text", "text_bytes"),
            "copied": ("numbers", self.copied_limit),
            "tensors": ("numbers", "tensor_share"),
        }[what]
        raise Refused(
            f"needs more {wanted} than a file of weights of its size does ({self.limits.named(limit)}); it "
            "is damaged or made to exhaust memory"
        )


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the pickle mentions and the tables know."""

    full: str


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers in a row, before tensors are cut out of them."""

    values: Tensor


@dataclass(eq=False, slots=True)
class NumpyType:
    """Element type of an array: kind and bytes, as in "f4"."""

    code: str
    big_endian: bool = False


@dataclass(eq=False, slots=True)
class NumpyArray:
    """An array whose numbers follow later in the pickle."""

    values: Tensor | None = None


class Machine:
    """Runs the instructions of one pickle, from `at`, over its bytes; `end` is where the pickle ended.

    `storage` gives the numbers that a persistent id (a tuple) stands for; `inner` reads an archive within the
    pickle.
    """

    def __init__(
        self,
        data: memoryview,
        at: int,
        budget: Budget,
        storage: Callable[[tuple[Any, ...]], Storage],
        inner: Callable[[memoryview], Storage] | None = None,
    ) -> None:
        self.data = data
        self.end = at
        self.budget = budget
        self.storage = storage
        self.inner = inner
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes."""
        data = self.data
        left = self.budget.left
        try:
            while (code := data[self.end]) != STOP:
                self.end += 1
                left["steps"] -= 1
                if code not in ACTIONS or left["steps"] < 0:
                    self.refuse(code)
                ACTIONS[code](self)
            self.end += 1
            return self.stack.pop()
        except (
            IndexError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            AttributeError,
            RuntimeError,
            struct.error,
        ) as error:
            raise Damaged(f"instruction before byte {self.end}: {type(error).__name__}") from error

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self.data) - self.end:
            raise Damaged("it ends too early")
        self.end += count
        return self.data[self.end - count : self.end]

    def number(self, form: str) -> Any:
        """A number in the coding of the struct module."""
        (value,) = struct.unpack_from(form, self.data, self.end)
        self.end += struct.calcsize(form)
        return value

    def text(self, form: str, coding: str) -> str:
        count = self.number(form)
        self.budget.spend("text", count)
        return str(self.take(count), coding)

    def line(self) -> str:
        """Text up to the end of the line, without it."""
        head = bytes(self.data[self.end : self.end + 2 * self.budget.limits.name_characters])
        if b"\n" not in head:
            raise Damaged("a name does not end")
        line = head.partition(b"\n")[0]
        self.end += len(line) + 1
        return line.decode("utf-8")

    def name(self, module: object, name: object) -> Name:
        """A name that the tables know; every other one is refused."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("a name that is none")
        limits = self.budget.limits
        if len(module) + len(name) > limits.name_characters:
            raise Damaged(f"a name that is none, {limits.named('name_characters')}")
        full = f"{RENAMED.get(module, module)}.{name}"
        if "." in name or not (
            full in CALLS or full in CLASSES or full in STORAGES or full in PLAIN or _is_record(full)
        ):
            raise Refused(
                f"needs {printable(f'{module}.{name}')}, which is not read because that could run code"
            )
        return Name(full)

    def refuse(self, code: int) -> None:
        """Says why this instruction is not carried out."""
        self.budget.spend("steps", 0)
        if code in b"i":
            self.name(self.line(), self.line())
        if code in b"\x82\x83\x84":
            raise Refused(
                "names a function by a number of the extension registry, which is not read because that "
                "could run code"
            )
        raise Refused(
            f"holds the pickle instruction {code:#04x}, which no file of weights needs; it is damaged or "
            "not one"
        )

    def pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise Damaged("items for something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key)] = value

    def add_items(self, items: list[Any], kind: type) -> None:
        target = self.stack[-1]
        if type(target) is not kind:
            raise Damaged(f"items for something that is no {kind.__name__}")
        target.extend(items) if kind is list else target.update(map(_key, items))

    def call(self, arguments: object, function: object) -> Any:
        """What a known name stands for, with these arguments."""
        if not isinstance(function, Name) or type(arguments) is not tuple:
            raise Damaged("a call of something that is no name")
        if function.full in CALLS:
            return CALLS[function.full](self, *arguments)
        if function.full in CLASSES:
            return {}
        if _is_record(function.full):
            module, _, class_name = function.full.rpartition(".")
            return Record(class_name, module)
        raise Refused(f"calls {printable(function.full)}, which is not read because that could run code")

    def build(self, state: object, target: object) -> Any:
        """The object on the stack, filled with its stored state."""
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, NumpyType) and type(state) is tuple:
            target.big_endian = state[1] == ">"
        elif isinstance(target, NumpyArray) and type(state) is tuple:
            _, shape, kind, fortran, raw = state
            target.values = self.array(raw, kind, shape, bool(fortran))
        elif type(target) is not dict:
            # A dictionary's own attributes, such as the version of a state dict, are of no use.
            raise Damaged(f"a state for a {type(target).__name__}")
        return target

    def array(self, raw: object, kind: object, shape: object, fortran: bool) -> Tensor:
        """Tensor of the numbers of a numpy array."""
        if not isinstance(kind, NumpyType):
            raise Damaged("an array without a type")
        if kind.code not in NUMPY_TYPES:
            raise Refused(f"holds an array of type {printable(kind.code)}, which is no plain number")
        if kind.big_endian:
            raise Refused("holds numbers in big-endian order, which is not supported")
        if not isinstance(raw, memoryview | bytes | str):
            raise Damaged("an array without bytes")
        self.budget.spend("copied", len(raw))
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        dtype = NUMPY_TYPES[kind.code]
        size = _sizes(shape)
        if math.prod(size) * dtype.itemsize != len(raw):
            raise Damaged(f"an array of shape {size} in {len(raw)} bytes")
        values = torch.frombuffer(bytearray(raw), dtype=dtype) if len(raw) else torch.empty(0, dtype=dtype)
        return (
            values.reshape(size[::-1]).permute(*range(len(size))[::-1]) if fortran else values.reshape(size)
        )

    def tensor(self, storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
        """Tensor cut out of a storage, within it and not longer than it."""
        if not isinstance(storage, Storage):
            raise Damaged("a tensor without numbers")
        (start,) = _sizes((offset,))
        size = _sizes(size)
        stride = _sizes(stride)
        values = storage.values
        count = math.prod(size)
        last = start + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if count > len(values) or (count and last >= len(values)):
            raise Damaged(f"a tensor of shape {size} in {len(values)} numbers")
        self.budget.spend("tensors", count * values.element_size())
        return values.as_strided(size, stride, start) if count else values.new_empty(size)


def _key(key: object) -> object:
    """Keys that cannot be chosen to collide, which would make a dictionary slow."""
    if key is None or type(key) in (str, bool) or (type(key) is int and abs(key) < 1 << 60):
        return key
    raise Damaged(f"a key of type {type(key).__name__}")


def _sizes(values: Any) -> tuple[int, ...]:
    """Lengths, strides or offsets, if they are possible ones."""
    known = type(values) in (tuple, list) and len(values) <= 16
    if not known or any(type(value) is not int or not 0 <= value < 1 << 48 for value in values):
        raise Damaged("an impossible shape")
    return tuple(values)


def _is_record(full: str) -> bool:
    module, _, name = full.rpartition(".")
    known = module.startswith(RECORD_MODULES) and (name[:1].isupper() or module.startswith("__torch__"))
    return full in RECORDS or known


def _integer(machine: Machine, form: str) -> int:
    count = machine.number(form)
    limits = machine.budget.limits
    if count > limits.integer_bytes:
        raise Damaged(f"a whole number of {count} bytes, {limits.named('integer_bytes')}")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _encode(machine: Machine, text: object, coding: object) -> bytes:
    if not isinstance(text, str) or coding != "latin1":
        raise Damaged("an unknown coding of bytes")
    machine.budget.spend("copied", len(text))
    return text.encode("latin-1")


def _collection(kind: type, machine: Machine, items: Any = ()) -> Any:
    if type(items) not in (list, tuple, set):
        raise Damaged(f"a {kind.__name__} of a {type(items).__name__}")
    machine.budget.spend("steps", len(items))
    return kind(map(_key, items) if kind in (set, frozenset) else items)


def _ordered(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in _collection(list, machine, pairs)}


def _persistent_object(_: Machine, meta: object) -> Record:
    """A class that carries its own source: the source is left alone."""
    if type(meta) is not dict or not isinstance(meta.get("class_name"), str):
        raise Damaged("a module without a class")
    return Record(meta["class_name"], "persistence", meta.get("state"))


def _inner_storage(machine: Machine, raw: object) -> Storage:
    if machine.inner is None or not isinstance(raw, memoryview | bytes):
        raise Damaged("an archive within an archive")
    if isinstance(raw, bytes):
        machine.budget.spend("copied", len(raw))
        raw = memoryview(bytearray(raw))  # tensors need memory that may be written to
    return machine.inner(raw)


def _number(machine: Machine, kind: object, raw: object) -> Any:
    return machine.array(raw, kind, (), False).item()


def _numpy_type(_: Machine, code: object, *__: object) -> NumpyType:
    if not isinstance(code, str):
        raise Damaged("a type of numbers without a name")
    return NumpyType(code.lstrip("<=|"))


def _load(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def act(machine: Machine) -> None:
        made = make(machine)  # first, because it may exchange the stack
        machine.stack.append(made)

    return act


def _fold(count: int, make: Callable[..., Any]) -> Callable[[Machine], None]:
    """Replaces the top `count` objects, of which the topmost is the first argument, by what `make`
    returns."""

    def act(machine: Machine) -> None:
        arguments = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(make(machine, *arguments))

    return act


def _mark(machine: Machine) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _memoize(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _persistent(machine: Machine, key: object) -> Any:
    if type(key) is not tuple or not key:
        raise Damaged("a reference to nothing")
    # Whole models of old files name the class and its source: the class is a name, the source is left alone.
    return key[1] if key[0] == "module" else machine.storage(key)


STOP = ord(".")

ACTIONS: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m.take(1),
    0x95: lambda m: m.take(8),
    ord("("): _mark,
    ord("0"): lambda m: m.stack.pop() if m.stack else m.pop_to_mark(),
    ord("1"): lambda m: m.pop_to_mark(),
    0x94: lambda m: _memoize(m, len(m.memo)),
    ord("q"): lambda m: _memoize(m, m.number("<B")),
    ord("r"): lambda m: _memoize(m, m.number("<I")),
    ord("h"): _load(lambda m: m.memo[m.number("<B")]),
    ord("j"): _load(lambda m: m.memo[m.number("<I")]),
    ord("N"): _load(lambda m: None),
    0x88: _load(lambda m: True),
    0x89: _load(lambda m: False),
    ord("J"): _load(lambda m: m.number("<i")),
    ord("K"): _load(lambda m: m.number("<B")),
    ord("M"): _load(lambda m: m.number("<H")),
    0x8A: _load(lambda m: _integer(m, "<B")),
    0x8B: _load(lambda m: _integer(m, "<I")),
    ord("G"): _load(lambda m: m.number(">d")),
    ord("U"): _load(lambda m: m.text("<B", "latin-1")),
    ord("T"): _load(lambda m: m.text("<I", "latin-1")),
    0x8C: _load(lambda m: m.text("<B", "utf-8")),
    ord("X"): _load(lambda m: m.text("<I", "utf-8")),
    0x8D: _load(lambda m: m.text("<Q", "utf-8")),
    ord("C"): _load(lambda m: m.take(m.number("<B"))),
    ord("B"): _load(lambda m: m.take(m.number("<I"))),
    0x8E: _load(lambda m: m.take(m.number("<Q"))),
    0x96: _load(lambda m: m.take(m.number("<Q"))),
    ord("]"): _load(lambda m: []),
    ord("}"): _load(lambda m: {}),
    ord(")"): _load(lambda m: ()),
    0x8F: _load(lambda m: set()),
    0x85: _fold(1, lambda m, a: (a,)),
    0x86: _fold(2, lambda m, b, a: (a, b)),
    0x87: _fold(3, lambda m, c, b, a: (a, b, c)),
    ord("t"): _load(lambda m: tuple(m.pop_to_mark())),
    0x91: _load(lambda m: frozenset(map(_key, m.pop_to_mark()))),
    ord("a"): lambda m: m.add_items([m.stack.pop()], list),
    ord("e"): lambda m: m.add_items(m.pop_to_mark(), list),
    0x90: lambda m: m.add_items(m.pop_to_mark(), set),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("c"): _load(lambda m: m.name(m.line(), m.line())),
    0x93: _fold(2, lambda m, name, module: m.name(module, name)),
    ord("R"): _fold(2, Machine.call),
    0x81: _fold(2, Machine.call),
    ord("b"): _fold(2, Machine.build),
    ord("Q"): _fold(1, _persistent),
}
"""Instruction -> what it does. Those that no file of weights uses are absent: text forms, copies of the top,
extension codes."""

RENAMED = {"__builtin__": "builtins"} | {
    f"numpy._core.{part}": f"numpy.core.{part}" for part in ("multiarray", "numeric")
}

CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.set": lambda m, items=(): _collection(set, m, items),
    "builtins.frozenset": lambda m, items=(): _collection(frozenset, m, items),
    "builtins.list": lambda m, items=(): _collection(list, m, items),
    "builtins.bytes": lambda m: b"",
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": Machine.tensor,
    "torch._utils._rebuild_tensor_v2": Machine.tensor,
    "torch._utils._rebuild_parameter": lambda m, data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda m, data, *_: data,
    "torch.storage._load_from_bytes": _inner_storage,
    "torch.Size": lambda m, sizes=(): _sizes(sizes),
    "torch.device": lambda m, kind, index=0: kind,
    "torch.jit._pickle.restore_type_tag": lambda m, value, tag: value,
    "numpy.core.multiarray._reconstruct": lambda m, *_: NumpyArray(),
    "numpy.core.multiarray.scalar": _number,
    "numpy.core.numeric._frombuffer": lambda m, raw, kind, shape, order: m.array(
        raw, kind, shape, order == "F"
    ),
    "numpy.dtype": _numpy_type,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
}
"""Functions that a pickle of weights calls -> what we do instead."""
CALLS |= {
    f"torch.jit._pickle.build_{kind}list": CALLS["builtins.list"]
    for kind in ("int", "double", "bool", "tensor")
}

CLASSES = {"builtins.dict", "collections.defaultdict", "dnnlib.util.EasyDict"}
"""Classes whose objects become dictionaries."""

RECORDS = {"argparse.Namespace", "dnnlib.tflib.network.Network"}
RECORD_MODULES = ("torch.nn.modules.", "__torch__", "omegaconf.")
"""Classes, and modules of classes, whose objects become records. `__torch__` is where TorchScript keeps the
classes of a file."""

STORAGES = {
    f"torch.{name}Storage": getattr(torch, kind)
    for name, kind in zip(
        "Float Double Half BFloat16 Long Int Short Char Byte Bool".split(),
        "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split(),
        strict=True,
    )
} | {"torch.storage.UntypedStorage": torch.uint8}

PLAIN = {
    f"torch.{kind}" for kind in "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool".split()
}
PLAIN |= {f"builtins.{kind}" for kind in "object int float str bool".split()} | {
    "numpy.ndarray",
    "typing.Any",
}
"""Names that stand for themselves: they become text."""

NUMPY_TYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool}
NUMPY_TYPES |= {
    f"{kind[0]}{size}": getattr(torch, f"{kind}{8 * size}")
    for kind in ("int", "uint")
    for size in (1, 2, 4, 8)
}
