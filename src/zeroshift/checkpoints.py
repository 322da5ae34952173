"""Generator files in and out: our safetensors, and every layout of StyleGAN2 that people hold.

Files are recognised by content, never by extension, and nothing in them is ever executed (see `pickles`). Writes go to a
temporary file beside the place, are forced to the disk, then moved: readers see the old file or the new.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from zeroshift import __version__
from zeroshift.errors import InputError, RunError, printable
from zeroshift.formats import discriminator_state, generator_weights
from zeroshift.latent import average_style
from zeroshift.layouts import (
    LayoutError,
    check_shapes,
    discriminator_shapes,
    generator_shapes,
    infer_config,
    infer_discriminator_config,
    to_rosinality,
)
from zeroshift.pickles import Content, read_tensors
from zeroshift.stylegan2 import StyleGAN2Config, StyleGAN2Discriminator, StyleGAN2Generator

Network = TypeVar("Network", StyleGAN2Generator, StyleGAN2Discriminator)

GENERATOR_FORMAT = "zeroshift.stylegan2.generator"
DISCRIMINATOR_FORMAT = "zeroshift.stylegan2.discriminator"

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
    """Generator of a file of any known layout, on the CPU in float32, and the file's metadata (empty for foreign files).

    Foreign files without an average style get one computed from a fixed seed; missing noise maps are drawn from a fixed seed.
    InputError says what is wrong with a file that is truncated, of another kind, or does not fit together.
    """
    path = Path(path)
    content = read_tensors(path)
    with about(path):
        return generator_of(content), content.metadata if is_ours(content, GENERATOR_FORMAT) else {}


def generator_of(content: Content) -> StyleGAN2Generator:
    """Generator of what was read from a file. LayoutError, the end of a sentence about the file, says why there is none."""
    if is_ours(content, GENERATOR_FORMAT):
        config = our_config(content)
        check_shapes(content.tree, generator_shapes(config))
        return _filled(StyleGAN2Generator(config), content.tree)
    weights = generator_weights(content)
    config = infer_config(weights.state, **weights.facts)
    shapes = generator_shapes(config)
    check_shapes(weights.state, shapes, [name for name in shapes if name == "latent_avg" or name.startswith("noises.")])
    generator = _filled(StyleGAN2Generator(config), weights.state)
    if "latent_avg" not in weights.state:
        generator.latent_avg.copy_(_average(generator))
    return generator


def load_discriminator_file(path: str | Path) -> tuple[StyleGAN2Discriminator, dict[str, str]]:
    """Discriminator of one of our files, of a training checkpoint ("d"), or of NVIDIA's pickles; and the file's metadata.

    Note. A bound on its layers (`conv_clamp`) is not kept: trained networks do not reach it.
    """
    path = Path(path)
    content = read_tensors(path)
    with about(path):
        return discriminator_of(content), content.metadata


def discriminator_of(content: Content) -> StyleGAN2Discriminator:
    """Discriminator of what was read from a file; LayoutError as for `generator_of`."""
    ours = is_ours(content, DISCRIMINATOR_FORMAT)
    state = content.tree if ours else discriminator_state(content)
    config = our_config(content) if ours else infer_discriminator_config(state)
    check_shapes(state, discriminator_shapes(config))
    return _filled(StyleGAN2Discriminator(config), state)


def export_pt(path: str | Path, generator: StyleGAN2Generator) -> None:
    """Writes the `.pt` layout that other StyleGAN2 programs read: {"g_ema": weights and kernels, "latent_avg": (S,)}."""
    state = {name: tensor.cpu().contiguous() for name, tensor in generator.state().items()}
    try:
        content = {"g_ema": to_rosinality(state), "latent_avg": state["latent_avg"]}
    except LayoutError as error:
        raise InputError(f"this generator {error}.") from error
    write_torch(path, content)


def write_torch(path: str | Path, content: Mapping[str, object]) -> None:
    """Writes a torch file, whole or not at all."""
    # Through memory: torch's own writer reports a full disk as damage, and TorchScript's ends the process.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as part:
        part.write_bytes(buffer.getbuffer())


def _save(
    path: str | Path, state: Mapping[str, Tensor], kind: str, config: StyleGAN2Config, metadata: Mapping[str, str] | None
) -> None:
    from safetensors.torch import save_file

    facts = {**(metadata or {}), "format": kind, "version": __version__, "config": json.dumps(asdict(config))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as part:
        save_file(tensors, part, facts)


def is_ours(content: Content, expected: str) -> bool:
    """Whether we wrote the file; LayoutError if we wrote it as something else than the format `expected`."""
    kind = content.metadata.get("format", "")
    if kind.startswith("zeroshift.") and kind != expected:
        raise LayoutError(f"holds a {printable(kind.rpartition('.')[2])}, not a {expected.rpartition('.')[2]}")
    return kind == expected


def our_config(content: Content) -> StyleGAN2Config:
    """Architecture that one of our files states."""
    metadata = content.metadata
    try:
        values = json.loads(metadata["config"])
        if unknown := sorted(set(values) - {field.name for field in fields(StyleGAN2Config)}):
            raise InputError(f"the option {printable(unknown[0])} is unknown to this version")
        config = StyleGAN2Config(**values)
        if config.mapping_depth > len(content.tree):
            raise InputError(f"{config.mapping_depth} mapping layers in {len(content.tree)} tensors")
        return config
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, InputError) as error:
        written = printable(metadata.get("version", "unknown"))
        raise LayoutError(f"was written by version {written} and has no readable architecture ({printable(error)})") from error


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Makes a finding about the weights of a file an InputError that names the file."""
    try:
        yield
    except LayoutError as error:
        raise InputError(f"{path} {error}.") from error
    except InputError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} holds weights of shapes or types that no generator has ({printable(error)}).") from error


def _filled(network: Network, state: Mapping[str, Tensor]) -> Network:
    """The network with these weights, whose shapes were checked."""
    network.load_state_dict(dict(state), strict=False)
    return network


def _average(generator: StyleGAN2Generator) -> Tensor:
    """Average style of a generator that was saved without one; with classes, over all of them alike."""
    count = generator.config.num_classes
    every = [average_style(generator.for_class(label)) for label in range(count)] if count else [average_style(generator)]
    return torch.stack(every).mean(dim=0)
