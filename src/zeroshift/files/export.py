"""Generators taken elsewhere: the layouts of other programs, and networks that run without this package.

A layout (safetensors; of StyleGAN2 rosinality and nvidia-state; of diffusion models ddpm and
guided-diffusion) holds weights, bit for bit the same. A network (ONNX, TorchScript; of StyleGAN2) holds the
computation too, with the styles or the noise as its input; it is compared with ours before it is put in its
place.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from zeroshift import __version__
from zeroshift.errors import InputError, MissingExtra, RunError
from zeroshift.files.checkpoints import (
    export_pt,
    export_unet,
    load_generator_file,
    save_generator,
    weights_file,
    write_torch,
)
from zeroshift.files.layouts import LayoutError, to_nvidia
from zeroshift.files.registry import locate
from zeroshift.files.writing import atomic_path, file_sha256
from zeroshift.models.diffusion import DiffusionGenerator
from zeroshift.models.seeds import rng, truncate

if TYPE_CHECKING:
    from zeroshift.models.stylegan2 import StyleGAN2Generator

Network = Literal["onnx", "torchscript"]
UnetLayout = Literal["ddpm", "guided-diffusion"]
Target = Literal[
    "safetensors", "rosinality", "nvidia-state", "ddpm", "guided-diffusion", "onnx", "torchscript"
]

LR_MLP = 0.01
"""Factor of the mapping weights that the layouts of other programs take for granted."""

TOLERANCE = 1e-4
"""Largest difference of two pixels, per unit of the largest pixel and at least absolute, between a network
and ours."""

Call = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What an exported network takes and how it computes; layouts know none of this."""

    part: Literal["synthesis", "full"] = "synthesis"
    """synthesis: styles `w` (B, latents, S) -> `image`. full: noise `z` (B, Z) and `truncation` (1,) ->
    `image`."""
    batch: int | None = None
    """Pictures per call, fixed in the network; unset: any number."""
    noise: Literal["buffers", "off"] = "buffers"
    """The generator's own noise maps, or none."""
    modulation: Literal["scale", "grouped"] = "scale"
    """How styles enter convolutions: by the activations, or by the weights of one group per picture (fixed
    batch only)."""


@dataclass(frozen=True)
class Converted:
    """A written file. `difference` is the largest one of two pixels in the comparison with ours; None where
    none was made."""

    path: Path
    to: str
    size: int
    difference: float | None = None


def convert(
    source: str | Path,
    out: str | Path,
    to: Target,
    *,
    options: NetworkOptions | None = None,
    label: int | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Converted:
    """Writes the generator of a file, a run folder, a built-in name or a hub reference in another form, whole
    or not at all.

    `label` chooses one class of a generator with classes; what is written then has none. A network is
    compared with ours where `check` asks for it and its runtime is installed; RunError where it differs, and
    nothing is written. InputError where `out` is there and `overwrite` is not set. MissingExtra where ONNX is
    not installed.
    """
    out = Path(out)
    if to not in get_args(Target):
        raise InputError(f"unknown form {to!r}; the forms are {', '.join(get_args(Target))}.")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of the file to write.")
    if out.exists() and not overwrite:
        raise InputError(
            f"{out} exists and was left alone; choose another name, or allow it with --overwrite."
        )
    if options is not None and to not in get_args(Network):
        raise InputError(
            f"part, batch, noise and modulation are options of {' and '.join(get_args(Network))}, not of "
            f"{to}."
        )
    path, told = locate(source)
    generator, metadata = load_generator_file(path, told)
    metadata |= {"converted_from": path.name, "converted_sha256": file_sha256(weights_file(path))}
    if generator.kind == "diffusion":
        _write_diffusion(out, generator, to, metadata, label)
        return Converted(out, to, out.stat().st_size)
    if to in get_args(UnetLayout):
        raise InputError(
            f"{source} is a StyleGAN2 generator, which the layout {to} cannot hold; it is for diffusion "
            "models."
        )
    if label is not None:
        if not generator.config.num_classes:
            raise InputError(f"{source} has no classes, so label {label} means nothing; leave it out.")
        generator = generator.for_class(label)
    difference = None
    if to == "safetensors":
        save_generator(out, generator, metadata)
    elif to in ("rosinality", "nvidia-state"):
        write_layout(out, generator, to)
    else:
        metadata |= {"format": f"zeroshift.{to}", "version": __version__}
        network = ExportedNetwork(generator.eval().requires_grad_(False), options or NetworkOptions())
        difference = _write_network(out, network, to, metadata, check)
    return Converted(out, to, out.stat().st_size, difference)


def _write_network(
    out: Path, network: ExportedNetwork, to: str, metadata: Mapping[str, str], check: bool
) -> float | None:
    """Writes a network, and gives its difference from ours where that was looked for and can be found."""
    with atomic_path(out) as part:
        if to == "onnx":
            write_onnx(part, network, metadata)
        else:
            write_torchscript(part, network, metadata)
        if not check:
            return None
        call = onnx_runner(part) if to == "onnx" else torchscript_runner(part)
        return None if call is None else difference_from_ours(network, call, out)


def _write_diffusion(
    out: Path, generator: DiffusionGenerator, to: Target, metadata: Mapping[str, str], label: int | None
) -> None:
    """Writes a diffusion model; InputError where the form is for other generators."""
    if label is not None:
        raise InputError(
            f"a diffusion model has no classes here, so label {label} means nothing; leave it out."
        )
    if to == "safetensors":
        save_generator(out, generator, metadata)
    elif to == "ddpm" or to == "guided-diffusion":
        export_unet(out, generator, to)
    else:
        raise InputError(
            f"a diffusion model cannot be written as {to}; choose safetensors, "
            f"{' or '.join(get_args(UnetLayout))}."
        )


def write_layout(out: Path, generator: StyleGAN2Generator, to: Literal["rosinality", "nvidia-state"]) -> None:
    """Writes rosinality's file, or the state dict that NVIDIA's PyTorch programs load."""
    usual = with_usual_mapping(generator)
    if to == "rosinality":
        export_pt(out, usual)
    else:
        try:
            state = to_nvidia(usual.state())
        except LayoutError as error:
            raise InputError(f"this generator {error}.") from error
        write_torch(out, {name: tensor.contiguous() for name, tensor in state.items()})
    if (bound := generator.config.conv_clamp) is not None:
        warnings.warn(
            f"the layout {to} does not say that activations are bounded at {bound:g} (conv_clamp); a "
            "program that does not bound "
            "them draws slightly other pictures where the bound is reached",
            stacklevel=3,
        )


def with_usual_mapping(generator: StyleGAN2Generator) -> StyleGAN2Generator:
    """A generator of the same pictures whose mapping weights have the usual factor; itself where they have
    it."""
    config = generator.config
    if config.lr_mlp == LR_MLP:
        return generator
    state = generator.state()
    scaled = {
        name: value * (config.lr_mlp / LR_MLP) for name, value in state.items() if name.startswith("style.")
    }
    made = type(generator)(replace(config, lr_mlp=LR_MLP))
    made.load_state_dict(state | scaled)
    return made.eval()


class ExportedNetwork(nn.Module):
    """What is exported: the generator with its inputs as plain tensors, every choice made beforehand."""

    def __init__(self, generator: StyleGAN2Generator, options: NetworkOptions) -> None:
        super().__init__()
        if options.batch is not None and options.batch < 1:
            raise InputError(
                f"batch must be at least 1, got {options.batch}. Leave it out for any number of pictures."
            )
        if options.modulation == "grouped" and options.batch is None:
            raise InputError(
                "modulation grouped needs a fixed batch, because one group per picture is built in; give "
                "--batch."
            )
        if options.part == "full" and generator.config.num_classes:
            raise InputError(
                f"this generator draws {generator.config.num_classes} classes; choose one with --label."
            )
        # Only the mapping knows of classes, and it is left out or has none.
        generator = generator.for_class(0)
        self.generator = generator
        self.options = options
        generator.modulation = options.modulation

    def forward(self, *inputs: Tensor) -> Tensor:
        """Pictures BCHW, not clamped."""
        generator = self.generator
        first = inputs[0]
        if self.options.batch is not None:
            # Makes a network of fixed batch refuse another one, where its runtime does not.
            first = first.reshape(self.options.batch, *first.shape[1:])
        if self.options.part == "full":
            average = generator.latent_avg
            first = average + inputs[1] * (generator.map(first) - average)
        return generator.synthesize(first, self.options.noise)

    @property
    def names(self) -> list[str]:
        """Names of the inputs."""
        return ["z", "truncation"] if self.options.part == "full" else ["w"]

    def example(self, batch: int, truncation: float = 0.7) -> tuple[Tensor, ...]:
        """Inputs for `batch` pictures from a fixed seed, every latent with a style of its own."""
        generator = self.generator
        count = 1 if self.options.part == "full" else generator.num_latents
        z = torch.randn(batch * count, generator.latent_dim, generator=rng("export", batch))
        if self.options.part == "full":
            return z, torch.tensor([truncation])
        return (generator.map(z).view(batch, count, generator.style_dim),)

    def expected(self, *inputs: Tensor) -> Tensor:
        """Pictures that our own generator makes of the inputs."""
        w = inputs[0]
        if self.options.part == "full":
            w = truncate(self.generator.map(w), self.generator.latent_avg, float(inputs[1]))
        return self.generator.synthesize(w, self.options.noise)


def write_onnx(path: Path, network: ExportedNetwork, metadata: Mapping[str, str]) -> None:
    """Writes one ONNX file with weights and metadata."""
    try:
        for package in ("onnx", "onnxscript"):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"ONNX needs the extra `onnx` ({error}). Install it: pip install 'zeroshift[onnx]'"
        ) from error
    inputs = network.example(network.options.batch or 2)
    shapes = None
    if network.options.batch is None:
        batch = torch.export.Dim("batch", min=1)
        shapes = ({0: batch}, None)[: len(inputs)]
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            inputs,
            input_names=network.names,
            output_names=["image"],
            dynamic_shapes=None if shapes is None else (shapes,),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            # The exporter notes there the files of this computer that the node came from.
            node.metadata_props.clear()
        program.model.metadata_props.update(metadata)
        program.save(str(path), external_data=False)


def onnx_runner(path: Path) -> Call | None:
    """Runs an ONNX file; None where its runtime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        (image,) = session.run(["image"], given)
        return torch.from_numpy(image)

    return call


def write_torchscript(path: Path, network: ExportedNetwork, metadata: Mapping[str, str]) -> None:
    """Writes a TorchScript file, its metadata in the extra file `zeroshift.json`."""
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(network, network.example(network.options.batch or 2), check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={"zeroshift.json": json.dumps(dict(metadata))})
        path.write_bytes(buffer.getbuffer())


def torchscript_runner(path: Path) -> Call:
    """Runs a TorchScript file on the CPU."""
    with quiet():
        return torch.jit.load(str(path), map_location="cpu").eval()


@torch.no_grad()
def difference_from_ours(network: ExportedNetwork, call: Call, out: Path) -> float:
    """Largest difference of two pixels between a network and ours; RunError where it is more than
    rounding."""
    fixed = network.options.batch
    differences = []
    for batch, truncation in ((fixed or 1, 0.7), (fixed or 3, 1.0)):
        inputs = network.example(batch, truncation)
        expected = network.expected(*inputs)
        got = call(*inputs)
        difference = float((expected - got).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RunError(
                f"the exported network differs from ours by {difference:.2g} in a pixel, so {out} was not "
                "written."
            )
        differences.append(difference)
    return max(differences)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' remarks about themselves off the screen."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
