"""Files written whole or not at all, and the hashes by which files and weights are known again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeroshift.errors import InputError, RunError

if TYPE_CHECKING:
    from torch import Tensor


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. On leaving it is forced to the disk and moved to `path`; on
    failure removed."""
    from safetensors import SafetensorError

    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    opened = False
    try:
        with open(part, "wb") as file:
            opened = True
            mode = os.fstat(file.fileno()).st_mode
        yield part
        os.chmod(part, mode & 0o777)  # safetensors makes files that only their owner can read
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error):
            raise RunError(
                f"the disk is full: cannot write {path}. What was there before is intact; free space and "
                "repeat."
            ) from error
        if not opened:
            raise InputError(
                f"cannot write in {path.parent}: {getattr(error, 'strerror', error)}. Choose another folder."
            ) from error
        raise
    finally:
        if opened:
            part.unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights: of their names, types, shapes and bytes, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole, or not at all. RunError where the disk is full."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a json file whole, or not at all."""
    write_bytes(path, (json.dumps(tree, indent=2) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whole, or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as part:
        try:
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
                part,
                dict(metadata),
            )
        except SafetensorError as error:
            # It names the system's error number in its text only.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), str(error)) if number else error from error
