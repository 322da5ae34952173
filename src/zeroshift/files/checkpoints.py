"""Generator files in and out: our safetensors, and every layout of StyleGAN2 and of diffusion models that
people hold.

Files are recognised by content, never by extension, and nothing in them is ever executed (see `pickles`).
Writes go to a temporary file beside the place, are forced to the disk, then moved: readers see the old file
or the new.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from zeroshift import __version__
from zeroshift.errors import InputError, printable
from zeroshift.files.formats import (
    DIFFUSION,
    diffusion_weights,
    discriminator_state,
    generator_weights,
    recognise,
)
from zeroshift.files.layouts import (
    LayoutError,
    check_shapes,
    discriminator_shapes,
    generator_shapes,
    infer_config,
    infer_discriminator_config,
    to_rosinality,
)
from zeroshift.files.pickles import Content, flat_tensors, read_tensors
from zeroshift.files.unets import (
    config_of,
    ddpm_generator,
    diffusers_generator,
    generator_with,
    guided_generator,
    to_ddpm,
    to_guided,
)
from zeroshift.files.writing import atomic_path
from zeroshift.models.diffusion import DiffusionConfig, DiffusionGenerator
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.protocol import PictureGenerator
from zeroshift.models.seeds import average_style
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

AnyGenerator = StyleGAN2Generator | DiffusionGenerator
Network = TypeVar("Network", StyleGAN2Generator, StyleGAN2Discriminator)

GENERATOR_FORMAT = StyleGAN2Generator.file_format
DISCRIMINATOR_FORMAT = StyleGAN2Discriminator.file_format
DIFFUSION_FORMAT = DiffusionGenerator.file_format

UNET_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Weights in a folder of diffusers, best first."""


def save_generator(
    path: str | Path, generator: PictureGenerator, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a generator with its architecture, version and further `metadata`, as safetensors, whole or not
    at all."""
    _save(path, generator.file_tensors(), generator.file_format, generator.config_text(), metadata)


def save_discriminator(
    path: str | Path, discriminator: StyleGAN2Discriminator, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a discriminator as `save_generator` writes a generator."""
    tensors = discriminator.state_dict()
    _save(path, tensors, discriminator.file_format, discriminator.config_text(), metadata)


def load_generator_file(
    path: str | Path, facts: Mapping[str, str] | None = None
) -> tuple[AnyGenerator, dict[str, str]]:
    """Generator of a file of any known layout or of a folder of diffusers, on the CPU in float32, and the
    file's metadata.

    Foreign files have no metadata. Those without an average style get one computed from a fixed seed; missing
    noise maps are drawn from a fixed seed. `facts` say what the tensors of a diffusion model do not show
    (`unets.FACTS`). InputError says what is wrong with a file that is truncated, of another kind, or does not
    fit together.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name in UNET_FILES) and is_diffusers_folder(folder):
        with about(path):
            return _of_diffusers(folder), {}
    content = read_tensors(path)
    with about(path):
        ours = content.metadata.get("format") in (GENERATOR_FORMAT, DIFFUSION_FORMAT)
        return generator_of(content, facts), content.metadata if ours else {}


def generator_of(content: Content, facts: Mapping[str, str] | None = None) -> AnyGenerator:
    """Generator of what was read from a file. LayoutError, the end of a sentence about the file, says why
    there is none."""
    if content.metadata.get("format") == DIFFUSION_FORMAT:
        return generator_with(our_diffusion_config(content), content.tree)
    if is_ours(content, GENERATOR_FORMAT):
        config = our_config(content)
        check_shapes(content.tree, generator_shapes(config))
        return _with_weights(StyleGAN2Generator(config), content.tree)
    kind = recognise(content)
    if kind == "diffusers":
        raise LayoutError(
            "holds the weights of a U-Net of diffusers without their config.json; give the folder with both"
        )
    if kind in DIFFUSION:
        make = ddpm_generator if kind == "ddpm" else guided_generator
        return make(diffusion_weights(content), facts)
    weights = generator_weights(content)
    config = infer_config(weights.state, **weights.facts)
    shapes = generator_shapes(config)
    check_shapes(
        weights.state, shapes, [name for name in shapes if name == "latent_avg" or name.startswith("noises.")]
    )
    generator = _with_weights(StyleGAN2Generator(config), weights.state)
    if "latent_avg" not in weights.state:
        generator.latent_avg.copy_(_average(generator))
    return generator


def with_styles(generator: AnyGenerator, name: str, doing: str) -> StyleGAN2Generator:
    """The generator, if it is one with styles; InputError says that a diffusion model has none."""
    if generator.kind != "styles":
        raise InputError(
            f"{name} is a diffusion model, which has no styles; {doing} takes StyleGAN2 generators only."
        )
    return generator


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder was written by diffusers: a network or a pipeline."""
    return any("_class_name" in read_settings(path, name) for name in ("config.json", "model_index.json"))


def weights_file(path: Path) -> Path:
    """The file with the weights: of a folder of diffusers that in it, else the path itself. InputError where
    there is none."""
    if not path.is_dir():
        return path
    folder = path / "unet" if (path / "unet").is_dir() else path
    files = [folder / name for name in UNET_FILES if (folder / name).is_file()]
    files += sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if not files:
        raise InputError(f"{folder} holds no weights ({', '.join(UNET_FILES)}).")
    return files[0]


def read_settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Content of a folder's config.json, or of another file of settings; empty where there is none."""
    file = folder / name
    try:
        if not file.is_file():
            return {}
        if file.stat().st_size > 1 << 20:
            raise InputError(f"{file} is too long for the settings of a model.")
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {file}: {printable(error)}.") from error
    return read if isinstance(read, dict) else {}


def _of_diffusers(folder: Path) -> DiffusionGenerator:
    """Generator of a folder of diffusers: a U-Net with its settings and those of its scheduler, if it has
    one."""
    more = [name for name in read_settings(folder, "model_index.json") if not name.startswith("_")]
    if others := [name for name in more if name not in ("unet", "scheduler")]:
        raise LayoutError(
            f"is a pipeline with a part {printable(others[0])} beside its U-Net, which is not supported"
        )
    settings = read_settings(folder / "unet" if (folder / "unet").is_dir() else folder)
    if settings.get("_class_name") != "UNet2DModel":
        raise LayoutError(
            f"holds a {printable(settings.get('_class_name', 'model'))}, not the UNet2DModel that is "
            "supported"
        )
    places = (folder / "scheduler", folder, folder.parent / "scheduler")
    schedule = next(filter(None, (read_settings(place, "scheduler_config.json") for place in places)), {})
    state = flat_tensors(read_tensors(weights_file(folder)).tree)
    return diffusers_generator(state, settings, schedule)


def load_discriminator_file(path: str | Path) -> tuple[StyleGAN2Discriminator, dict[str, str]]:
    """Discriminator of one of our files, of a training checkpoint ("d"), or of NVIDIA's pickles; and the
    file's metadata.

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
    return _with_weights(StyleGAN2Discriminator(config), state)


def export_pt(path: str | Path, generator: StyleGAN2Generator) -> None:
    """Writes the `.pt` layout that other StyleGAN2 programs read: {"g_ema": weights and kernels,
    "latent_avg": (S,)}."""
    state = {name: tensor.cpu().contiguous() for name, tensor in generator.state().items()}
    try:
        content = {"g_ema": to_rosinality(state), "latent_avg": state["latent_avg"]}
    except LayoutError as error:
        raise InputError(f"this generator {error}.") from error
    write_torch(path, content)


def export_unet(
    path: str | Path, generator: DiffusionGenerator, to: Literal["ddpm", "guided-diffusion"]
) -> None:
    """Writes the flat state dict that the programs of DDPM's family, or guided-diffusion's, load."""
    state = to_ddpm(generator) if to == "ddpm" else to_guided(generator)
    write_torch(path, {name: tensor.detach().cpu().clone() for name, tensor in state.items()})


def write_torch(path: str | Path, content: Mapping[str, object]) -> None:
    """Writes a torch file, whole or not at all."""
    # Through memory: torch's own writer reports a full disk as damage, and TorchScript's ends the process.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as part:
        part.write_bytes(buffer.getbuffer())


def _save(
    path: str | Path, state: Mapping[str, Tensor], kind: str, config: str, metadata: Mapping[str, str] | None
) -> None:
    from safetensors.torch import save_file

    everything = {**(metadata or {}), "format": kind, "version": __version__, "config": config}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as part:
        save_file(tensors, part, everything)


def is_ours(content: Content, expected: str) -> bool:
    """Whether we wrote the file; LayoutError if we wrote it as something else than the format `expected`."""
    kind = content.metadata.get("format", "")
    if kind.startswith("zeroshift.") and kind != expected:
        raise LayoutError(
            f"holds a {printable(kind.rpartition('.')[2])}, not a {expected.rpartition('.')[2]}"
        )
    return kind == expected


def our_config(content: Content) -> StyleGAN2Config:
    """Architecture that one of our StyleGAN2 files states."""
    with _stated(content) as text:
        values = json.loads(text)
        if unknown := sorted(set(values) - {field.name for field in fields(StyleGAN2Config)}):
            raise InputError(f"the option {printable(unknown[0])} is unknown to this version")
        config = StyleGAN2Config(**values)
        if config.mapping_depth > len(content.tree):
            raise InputError(f"{config.mapping_depth} mapping layers in {len(content.tree)} tensors")
        return config


def our_diffusion_config(content: Content) -> DiffusionConfig:
    """Architecture and schedule that one of our files of a diffusion model states."""
    with _stated(content) as text:
        return config_of(text)


@contextmanager
def _stated(content: Content) -> Iterator[str]:
    """What one of our files says of its architecture; LayoutError where that cannot be read."""
    metadata = content.metadata
    try:
        yield metadata["config"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        written = printable(metadata.get("version", "unknown"))
        raise LayoutError(
            f"was written by version {written} and has no readable architecture ({printable(error)})"
        ) from error


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
        raise InputError(
            f"{path} holds weights of shapes or types that no generator has ({printable(error)})."
        ) from error


def _with_weights(network: Network, state: Mapping[str, Tensor]) -> Network:
    """The network with these weights, whose shapes were checked."""
    network.load_state_dict(dict(state), strict=False)
    return network


def _average(generator: StyleGAN2Generator) -> Tensor:
    """Average style of a generator that was saved without one; with classes, over all of them alike."""
    count = generator.config.num_classes
    every = (
        [average_style(generator.for_class(label)) for label in range(count)]
        if count
        else [average_style(generator)]
    )
    return torch.stack(every).mean(dim=0)
