"""Where a run computes, and how a device says that its memory ran out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from zeroshift.errors import InputError


@dataclass(frozen=True)
class Precision:
    """Number format of the heavy parts of a run, drawing and encoding; losses and weights stay as they
    are."""

    format: Literal["fp32", "bf16"]
    device: torch.device

    def autocast(self) -> torch.autocast:
        """Context in which heavy parts run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.format == "bf16")


def resolve_device(name: str) -> torch.device:
    """The device of a config; "auto" takes a GPU where there is one. InputError where the asked one is
    missing."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    if (device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count())) or (
        device.type == "mps" and not mps
    ):
        raise InputError(f"there is no device {name} here; use --device auto or cpu.")
    return device


def device_name(device: torch.device) -> str:
    """What kind of device it is, in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))
