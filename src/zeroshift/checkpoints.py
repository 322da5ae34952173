"""Generator files in and out: our safetensors, and the widely used StyleGAN2 `.pt` layout.

Files are recognised by content, never by extension. Torch files are read with `weights_only=True`, so nothing in them is ever
executed. Writes go to a temporary file beside the place, are forced to the disk, then moved: readers see the old file or the new.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshift import __version__, ops
from zeroshift.errors import InputError, RunError
from zeroshift.latent import average_style
from zeroshift.stylegan2 import StyleGAN2Config, StyleGAN2Discriminator, StyleGAN2Generator

GENERATOR_FORMAT = "zeroshift.stylegan2.generator"
DISCRIMINATOR_FORMAT = "zeroshift.stylegan2.discriminator"

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

PREFIXES = ("module.", "generator.", "decoder.", "g_ema.")
"""What data-parallel wrappers, forks and encoders put in front of every key."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. On leaving it is forced to the disk and moved to `path`; on failure removed."""
    from safetensors import SafetensorError

    path = Path(path)
    part, opened = path.with_name(f".{path.name}.{os.getpid()}.part"), False
    try:
        with open(part, "wb") as file:
            opened, mode = True, os.fstat(file.fileno()).st_mode
        yield part
        os.chmod(part, mode & 0o777)  # safetensors makes files that only their owner can read
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in DISK_FULL or "No space left" in str(error):
            raise RunError(
                f"the disk is full: cannot write {path}. What was there before is intact; free space and repeat."
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


def save_generator(path: str | Path, generator: StyleGAN2Generator, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a generator with its architecture, version and further `metadata`, as safetensors, whole or not at all."""
    _save(path, generator.state(), GENERATOR_FORMAT, generator.config, metadata)


def save_discriminator(
    path: str | Path, discriminator: StyleGAN2Discriminator, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a discriminator as `save_generator` writes a generator."""
    _save(path, discriminator.state_dict(), DISCRIMINATOR_FORMAT, discriminator.config, metadata)


def load_generator_file(path: str | Path) -> tuple[StyleGAN2Generator, dict[str, str]]:
    """Generator of a file, on the CPU in float32, and the file's metadata (empty for foreign files).

    Foreign files without an average style get one computed from a fixed seed; missing noise maps are drawn from a fixed seed.
    InputError says what is wrong with a file that is truncated, of another kind, or does not fit together.
    """
    path = Path(path)
    content, metadata = _read(path)
    if _is_ours(path, metadata, GENERATOR_FORMAT):
        generator = StyleGAN2Generator(_config(path, metadata))
        _fit(path, generator, content)
        return generator, metadata
    state, average = _foreign_generator(path, content)
    generator = StyleGAN2Generator(_infer_config(path, state))
    own = generator.state_dict()
    for name in own:
        if name.startswith("noises."):
            state.setdefault(name, own[name])
    state.setdefault("latent_avg", own["latent_avg"] if average is None else average)
    _fit(path, generator, state)
    if average is None:
        generator.latent_avg.copy_(average_style(generator))
    return generator, {}


def load_discriminator_file(path: str | Path) -> tuple[StyleGAN2Discriminator, dict[str, str]]:
    """Discriminator of one of our files or of the key "d" of a training checkpoint, and the file's metadata."""
    path = Path(path)
    content, metadata = _read(path)
    if _is_ours(path, metadata, DISCRIMINATOR_FORMAT):
        discriminator = StyleGAN2Discriminator(_config(path, metadata))
        _fit(path, discriminator, content)
        return discriminator, metadata
    state = _clean(path, content["d"] if isinstance(content.get("d"), Mapping) else content, gain=1.0)
    blocks = _count(state, r"convs\.(\d+)\.conv2\.1\.weight", first=1)
    if blocks == 0 or "convs.0.0.weight" not in state:
        raise InputError(f"{path} holds no StyleGAN2 discriminator: convs.0.0.weight or convs.1.conv2.1.weight is missing.")
    sides = [4 << (blocks - index) for index in range(blocks + 1)]
    shapes = [state["convs.0.0.weight"], *(state[f"convs.{k}.conv2.1.weight"] for k in range(1, blocks + 1))]
    widths = {side: int(weight.shape[0]) for side, weight in zip(sides, shapes, strict=True)}
    discriminator = StyleGAN2Discriminator(StyleGAN2Config(size=sides[0], **_infer_channels(path, widths)))
    _fit(path, discriminator, state)
    return discriminator, {}


def export_pt(path: str | Path, generator: StyleGAN2Generator) -> None:
    """Writes the `.pt` layout that other StyleGAN2 programs read: {"g_ema": weights and kernels, "latent_avg": (S,)}."""
    state = {name: tensor.cpu().contiguous() for name, tensor in generator.state().items()}
    average, kernel = state.pop("latent_avg"), ops.fir_kernel(gain=4.0)
    for level in range(len(generator.to_rgbs)):
        state[f"convs.{2 * level}.conv.blur.kernel"] = kernel.clone()
        state[f"to_rgbs.{level}.upsample.kernel"] = kernel.clone()
    with atomic_path(path) as part:
        torch.save({"g_ema": state, "latent_avg": average}, part)


def _save(
    path: str | Path, state: Mapping[str, Tensor], kind: str, config: StyleGAN2Config, metadata: Mapping[str, str] | None
) -> None:
    from safetensors.torch import save_file

    facts = {**(metadata or {}), "format": kind, "version": __version__, "config": json.dumps(asdict(config))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as part:
        save_file(tensors, part, facts)


def _is_ours(path: Path, metadata: Mapping[str, str], expected: str) -> bool:
    """Whether we wrote the file; InputError if we wrote it as something else."""
    kind = metadata.get("format", "")
    if kind.startswith("zeroshift.") and kind != expected:
        raise InputError(f"{path} holds a {kind.rpartition('.')[2]}, not a {expected.rpartition('.')[2]}.")
    return kind == expected


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Content of a file, and its metadata where it has some."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Give the path of a generator file.") from error
    if not head:
        raise InputError(f"{path} is empty. Copy or download it again.")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _read_torch(path), {}
    raise InputError(f"{path} is neither a safetensors nor a torch file (it begins with {head[:4]!r}). Give a generator file.")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or damaged ({error}). Copy or download it again.") from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # Training checkpoints carry their options as a Namespace, which holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            what = f"it needs the class {match[1]}, which is not read because that could run code"
            raise InputError(f"{path} is not a plain weights file: {what}. Save its state dict and give that.") from error
        pickled = "is truncated, or a pickle of another program (such as NVIDIA's .pkl), which is not read"
        raise InputError(f"{path} {pickled}. Copy it again, or convert it to the .pt layout.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is truncated or damaged. Copy or download it again.") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not weights by name. Give a generator file.")
    return dict(content)


def _foreign_generator(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Weights under our names and the average style (S,) of a foreign checkpoint."""
    if "m" in content and "m_optim" in content:
        raise InputError(f"{path} holds an IPL mapper, not a generator.")
    inner = next((content[key] for key in ("g_ema", "g", "state_dict") if isinstance(content.get(key), Mapping)), content)
    state = _clean(path, inner, gain=4.0)
    if "final_linear.1.weight" in state:
        raise InputError(f"{path} holds a discriminator, not a generator.")
    for key in ("input.input", "conv1.conv.weight", "style.1.weight", "to_rgb1.conv.weight", "convs.0.conv.weight"):
        if key not in state:
            raise InputError(f"{path} holds no StyleGAN2 generator: {key} is missing among {len(state)} tensors.")
        dims = {"input": 4, "style": 2}.get(key.split(".")[0], 5)
        if state[key].dim() != dims:
            raise InputError(f"{path}: {key} has shape {tuple(state[key].shape)}, StyleGAN2 has {dims} dimensions there.")
    average = content.get("latent_avg", state.pop("latent_avg", None))
    if isinstance(average, Tensor):
        # Encoders store one row per layer.
        average = average.reshape(-1, average.shape[-1]).float().mean(dim=0)
    return state, average if isinstance(average, Tensor) else None


def _clean(path: Path, entries: Mapping[str, Any], gain: float) -> dict[str, Tensor]:
    """Float32 tensors without prefixes, old bias shapes and kernels; the kernels must be the ones that we build."""
    state = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("kernel"):
            expected = ops.fir_kernel(gain)
            if value.shape != expected.shape or not torch.allclose(value.float(), expected, atol=1e-6):
                raise InputError(
                    f"{path}: the filter {key} is not the StyleGAN2 one (1, 3, 3, 1), which is the only one supported."
                )
        elif key.endswith("activate.bias"):
            result[key] = value.float().flatten()
        else:
            result[key] = value.float() if value.is_floating_point() else value
    return result


def _infer_config(path: Path, state: Mapping[str, Tensor]) -> StyleGAN2Config:
    convs = _count(state, r"convs\.(\d+)\.conv\.weight")
    depth = _count(state, r"style\.(\d+)\.weight", first=1)
    levels = convs // 2
    size = 4 << levels
    widths = {4: int(state["input.input"].shape[1])}
    widths |= {8 << level: int(state[f"convs.{2 * level}.conv.weight"].shape[1]) for level in range(levels)}
    style_dim, latent_dim = state["style.1.weight"].shape
    try:
        return StyleGAN2Config(
            size=size, latent_dim=latent_dim, style_dim=style_dim, mapping_depth=depth, **_infer_channels(path, widths)
        )
    except InputError as error:
        raise InputError(f"{path} has {convs} convolutions, which no supported generator has: {error}") from error


def _infer_channels(path: Path, widths: Mapping[int, int]) -> dict[str, int]:
    """Options of StyleGAN2Config that give these channels at these sides."""
    size, top = max(widths), max(widths.values())
    published = [{"channel_multiplier": multiplier, "channel_max": top} for multiplier in (2, 1, 4, 8)]
    by_base = [{"channel_base": side * width, "channel_max": top} for side, width in widths.items() if side * width >= size]
    for options in [*published, *by_base]:
        config = StyleGAN2Config(size=size, **options)
        if all(config.channels(side) == width for side, width in widths.items()):
            return options
    raise InputError(f"{path} has channels {dict(widths)} by side, which follow neither the published table nor base / side.")


def _count(state: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many consecutive indices, from `first`, the keys that match have."""
    indices = {int(match[1]) for key in state if (match := re.fullmatch(pattern, key))}
    return next(n for n in range(len(indices) + 1) if first + n not in indices)


def _config(path: Path, metadata: Mapping[str, str]) -> StyleGAN2Config:
    try:
        values = json.loads(metadata["config"])
        if unknown := sorted(set(values) - {field.name for field in fields(StyleGAN2Config)}):
            raise InputError(f"the option {unknown[0]} is unknown to this version")
        return StyleGAN2Config(**values)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, InputError) as error:
        written = metadata.get("version", "unknown")
        raise InputError(f"{path}, written by version {written}, has no readable architecture: {error}") from error


def _fit(path: Path, module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the state strictly, naming the first thing that does not fit."""
    own = module.state_dict()
    if missing := [name for name in own if name not in state]:
        raise InputError(f"{path} lacks {len(missing)} of {len(own)} tensors, first {missing[0]}. The file is incomplete.")
    if extra := [name for name in state if name not in own]:
        raise InputError(f"{path} has {len(extra)} tensors that do not belong, first {extra[0]}. It is another architecture.")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            expected, got = tuple(tensor.shape), tuple(state[name].shape)
            raise InputError(f"{path}: {name} has shape {got}, its architecture needs {expected}. It is another architecture.")
        if not bool(torch.isfinite(state[name]).all()):
            raise InputError(f"{path}: {name} holds values that are not finite. The training that wrote it had failed.")
    module.load_state_dict(dict(state))
