"""StyleGAN2 weights in the layouts of other programs and in ours: names, shapes, and the way from one to
another, exactly.

Ours are rosinality's names without the filter kernels, with `latent_avg`, and with `embed.*` where there are
classes. NVIDIA's weights differ by names and by leading dimensions of length 1; TensorFlow's by the order of
dimensions, the direction of one kernel, and biases stored without their 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zeroshift.errors import InputError, printable
from zeroshift.models import ops
from zeroshift.models.stylegan2 import StyleGAN2Config

State = dict[str, Tensor]

PREFIXES = ("module.", "generator.", "decoder.", "g_ema.")
"""What data-parallel wrappers, forks and encoders put in front of every key."""

MAX_NUMBERS = 250_000_000
"""Of one network: eight times the largest published one."""

RGB_BIAS = re.compile(r"to_rgb(?:1|s\.\d+)\.bias")


class LayoutError(InputError):
    """Weights that contradict their layout; the message is the end of a sentence about the file."""


def nvidia_names(levels: int, depth: int, classes: bool) -> dict[str, str]:
    """Our name of every tensor of a generator -> NVIDIA's. `levels` counts the sides above 4 px, `depth` the
    mapping layers."""
    names = {"latent_avg": "mapping.w_avg", "input.input": "synthesis.b4.const"}
    for part in ("weight", "bias"):
        names |= {f"style.{index + 1}.{part}": f"mapping.fc{index}.{part}" for index in range(depth)}
        names |= {f"embed.{part}": f"mapping.embed.{part}"} if classes else {}
    layers = [("conv1", "b4.conv1"), ("to_rgb1", "b4.torgb")]
    for level in range(1, levels + 1):
        block = f"b{4 << level}"
        layers += [(f"convs.{2 * level - 2}", f"{block}.conv0"), (f"convs.{2 * level - 1}", f"{block}.conv1")]
        layers += [(f"to_rgbs.{level - 1}", f"{block}.torgb")]
    maps = 0
    for ours, theirs in ((ours, f"synthesis.{theirs}") for ours, theirs in layers):
        names[f"{ours}.conv.weight"] = f"{theirs}.weight"
        names |= {f"{ours}.conv.modulation.{part}": f"{theirs}.affine.{part}" for part in ("weight", "bias")}
        if "rgb" in ours:
            names[f"{ours}.bias"] = f"{theirs}.bias"
            continue
        names |= {
            f"{ours}.activate.bias": f"{theirs}.bias",
            f"{ours}.noise.weight": f"{theirs}.noise_strength",
        }
        names[f"noises.noise_{maps}"] = f"{theirs}.noise_const"
        maps += 1
    return names


def nvidia_discriminator_names(levels: int) -> dict[str, str]:
    """Our name of every tensor of a discriminator -> NVIDIA's."""
    top = f"b{4 << levels}"
    pairs = [("convs.0.0.weight", f"{top}.fromrgb.weight"), ("convs.0.1.bias", f"{top}.fromrgb.bias")]
    for index in range(1, levels + 1):
        ours = f"convs.{index}"
        theirs = f"b{4 << (levels + 1 - index)}"
        pairs += [
            (f"{ours}.conv1.0.weight", f"{theirs}.conv0.weight"),
            (f"{ours}.conv1.1.bias", f"{theirs}.conv0.bias"),
        ]
        pairs += [
            (f"{ours}.conv2.1.weight", f"{theirs}.conv1.weight"),
            (f"{ours}.conv2.2.bias", f"{theirs}.conv1.bias"),
        ]
        pairs += [(f"{ours}.skip.1.weight", f"{theirs}.skip.weight")]
    pairs += [("final_conv.0.weight", "b4.conv.weight"), ("final_conv.1.bias", "b4.conv.bias")]
    for index, theirs in enumerate(("fc", "out")):
        pairs += [(f"final_linear.{index}.{part}", f"b4.{theirs}.{part}") for part in ("weight", "bias")]
    return dict(pairs)


def from_nvidia(state: Mapping[str, Tensor]) -> State:
    """A generator's weights under our names; those of NVIDIA's that are missing or unknown are left to the
    check of the whole."""
    _check_filters(state, "resample_filter", gain=1.0)
    sides = _indices(state, r"synthesis\.b(\d+)\..*")
    names = nvidia_names(
        max(1, len(sides) - 1),
        len(_indices(state, r"mapping\.fc(\d+)\.weight")),
        "mapping.embed.weight" in state,
    )
    ours = {theirs: name for name, theirs in names.items()}
    found = {ours.get(key, key): value for key, value in state.items() if not key.endswith("resample_filter")}
    return {name: _widened(name, value) for name, value in found.items()}


def to_nvidia(state: Mapping[str, Tensor]) -> State:
    """A generator's weights, ours, as the state dict that NVIDIA's PyTorch programs load."""
    _refuse_compression(state)
    levels, depth = _shape_of(state)
    names = nvidia_names(levels, depth, "embed.weight" in state)
    result = {theirs: _narrowed(name, state[name]).clone() for name, theirs in names.items()}
    for side in (4 << level for level in range(levels + 1)):
        parts = ["", ".conv1"] if side == 4 else ["", ".conv0", ".conv1"]
        result |= {f"synthesis.b{side}{part}.resample_filter": ops.fir_kernel() for part in parts}
    return result


def from_nvidia_discriminator(state: Mapping[str, Tensor]) -> State:
    """A discriminator's weights under our names."""
    _check_filters(state, "resample_filter", gain=1.0)
    if any(key.startswith("mapping.") for key in state):
        raise LayoutError("holds a discriminator of a generator with classes, which is not supported")
    sides = _indices(state, r"b(\d+)\..*")
    ours = {theirs: name for name, theirs in nvidia_discriminator_names(max(1, len(sides) - 1)).items()}
    return {ours.get(key, key): value for key, value in state.items() if not key.endswith("resample_filter")}


def from_rosinality(entries: Mapping[str, Any], gain: float = 4.0) -> State:
    """Weights without prefixes, old bias shapes and filter kernels, which must be the ones that we build (sum
    `gain`)."""
    state = {
        key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {
                key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
            }
    _check_filters(state, "kernel", gain)
    state = {key: value for key, value in state.items() if not key.endswith("kernel")}
    return {key: value.flatten() if key.endswith("activate.bias") else value for key, value in state.items()}


def to_rosinality(state: Mapping[str, Tensor]) -> State:
    """A generator's weights with the filter kernels that rosinality's programs store, without the average
    style."""
    if "embed.weight" in state:
        raise LayoutError(
            "has classes, which the rosinality layout cannot hold; choose one with for_class() and convert "
            "that"
        )
    _refuse_compression(state)
    result = {name: value for name, value in state.items() if name != "latent_avg"}
    kernel = ops.fir_kernel(gain=4.0)
    for level in range(_shape_of(state)[0]):
        result |= {
            f"convs.{2 * level}.conv.blur.kernel": kernel.clone(),
            f"to_rgbs.{level}.upsample.kernel": kernel.clone(),
        }
    return result


def _refuse_compression(state: Mapping[str, Tensor]) -> None:
    if "compression.basis" in state:
        raise LayoutError(
            "draws through a latent compression (RSSA), which layouts of other programs cannot hold; convert "
            "it to safetensors, onnx or torchscript, or adapt without (--rssa.compression 0)"
        )


def from_tensorflow(variables: Mapping[str, Tensor]) -> State:
    """A generator's weights under our names, of the variables of the old TensorFlow programs.

    Names are `mapping/Dense0/weight`, `synthesis/8x8/Conv0_up/mod_bias`, `synthesis/noise3`, `dlatent_avg`.
    """
    if any("_lod" in name for name in variables):
        raise LayoutError("is a generator of the progressively grown kind (ToRGB_lod), not StyleGAN2")
    if any("LabelConcat" in name for name in variables):
        raise LayoutError(
            "is a TensorFlow generator with classes of the first StyleGAN2 program, which is not supported"
        )
    layers = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Const": ""}
    result: State = {}
    for name, value in variables.items():
        part = name.rpartition("/")[2]
        if name == "dlatent_avg":
            result["mapping.w_avg"] = value
        elif match := re.fullmatch(r"mapping/(?:Dense(\d+)|(LabelEmbed))/(weight|bias)", name):
            key = f"fc{match[1]}" if match[1] else "embed"
            result[f"mapping.{key}.{match[3]}"] = value.t() if match[3] == "weight" else value
        elif match := re.fullmatch(r"synthesis/noise(\d+)", name):
            index = int(match[1])
            layer = "unknown"
            if index < 40:
                side = 4 << ((index + 1) // 2)
                layer = f"b{side}.conv1" if index % 2 == 0 else f"b{side}.conv0"
            result[f"synthesis.{layer}.noise_const"] = value[0, 0]
        elif match := re.fullmatch(r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB|Const)/\w+", name):
            block = f"synthesis.b{match[1]}"
            layer = layers[match[2]]
            result[_tensorflow_key(block, layer, part)] = _TENSORFLOW.get(part, _same)(value, match[2])
        elif value.numel() > 1:
            result[name] = value
    return from_nvidia({name: value.contiguous() for name, value in result.items()})


def from_tensorflow_discriminator(variables: Mapping[str, Tensor]) -> State:
    """A discriminator's weights under our names, of the variables of the old TensorFlow programs."""
    layers = {
        "FromRGB": "fromrgb",
        "Conv0": "conv0",
        "Conv1_down": "conv1",
        "Skip": "skip",
        "Conv": "conv",
        "Dense0": "fc",
    }
    result: State = {}
    for name, value in variables.items():
        match = re.fullmatch(r"(?:(\d+)x\1/(\w+)|(Output))/(weight|bias)", name)
        layer = match and ("out" if match[3] else layers.get(match[2]))
        if match and layer:
            if match[4] == "weight" and layer in ("fc", "out"):
                value = value.t()
            elif match[4] == "weight" and value.dim() == 4:
                value = _TENSORFLOW["weight"](value, layer)
            result[f"b{match[1] or 4}.{layer}.{match[4]}"] = value
        elif value.numel() > 1:
            result[name] = value
    return from_nvidia_discriminator({name: value.contiguous() for name, value in result.items()})


def infer_config(state: Mapping[str, Tensor], **facts: Any) -> StyleGAN2Config:
    """Architecture of a generator by the shapes of its weights, ours; `facts` are options that shapes do not
    show."""
    dims = {
        "input.input": 4,
        "style.1.weight": 2,
        "conv1.conv.weight": 5,
        "to_rgb1.conv.weight": 5,
        "convs.0.conv.weight": 5,
    }
    for key, count in dims.items():
        if key not in state:
            raise LayoutError(f"holds no StyleGAN2 generator: {key} is missing among {len(state)} tensors")
        if state[key].dim() != count:
            raise LayoutError(
                f"gives {key} the shape {tuple(state[key].shape)}, StyleGAN2 has {count} dimensions there"
            )
    levels, depth = _shape_of(state)
    size = 4 << min(levels, 20)
    convs = len(_indices(state, r"convs\.(\d+)\.conv\.weight"))
    widths = {4: int(state["input.input"].shape[1])}
    for level in range(levels):
        weight = state[f"convs.{2 * level}.conv.weight"]
        widths[8 << level] = int(weight.shape[1]) if weight.dim() == 5 else 0
    style_dim, latent_dim = state["style.1.weight"].shape
    if "embed.weight" in state:
        if state["embed.weight"].dim() != 2 or latent_dim <= style_dim:
            raise LayoutError("gives its classes shapes that do not fit the mapping network")
        facts = {**facts, "num_classes": int(state["embed.weight"].shape[1])}
        latent_dim -= style_dim
    if state["to_rgb1.conv.weight"].shape[1] != 3:
        raise LayoutError(
            f"draws pictures of {state['to_rgb1.conv.weight'].shape[1]} channels; only colour (3) is "
            "supported"
        )
    try:
        dims = {"size": size, "latent_dim": latent_dim, "style_dim": style_dim, "mapping_depth": depth}
        return StyleGAN2Config(**dims, **infer_channels(widths), **facts)
    except LayoutError:
        raise
    except InputError as error:
        raise LayoutError(
            f"has {convs} convolutions, which no supported generator has: {str(error).rstrip('.')}"
        ) from error


def infer_discriminator_config(state: Mapping[str, Tensor]) -> StyleGAN2Config:
    """Architecture of a discriminator by the shapes of its weights, ours."""
    levels = _consecutive(_indices(state, r"convs\.(\d+)\.conv2\.1\.weight"), first=1)
    keys = ["convs.0.0.weight", *(f"convs.{index}.conv2.1.weight" for index in range(1, levels + 1))]
    if not levels or any(key not in state or state[key].dim() != 4 for key in keys):
        raise LayoutError(
            "holds no StyleGAN2 discriminator: convs.0.0.weight or convs.1.conv2.1.weight is missing or "
            "misshapen"
        )
    widths = {4 << (levels - index): int(state[key].shape[0]) for index, key in enumerate(keys)}
    return StyleGAN2Config(size=4 << min(levels, 20), **infer_channels(widths))


def infer_channels(widths: Mapping[int, int]) -> dict[str, int]:
    """Options of StyleGAN2Config that give these channels at these sides."""
    size = max(widths)
    top = max(widths.values())
    if min(widths.values()) < 1 or top > 1 << 14:
        raise LayoutError(f"has impossible channels {dict(widths)} by side")
    published = [{"channel_multiplier": multiplier, "channel_max": top} for multiplier in (2, 1, 4, 8)]
    by_base = [
        {"channel_base": side * width, "channel_max": top}
        for side, width in widths.items()
        if side * width >= size
    ]
    for options in [*published, *by_base]:
        try:
            config = StyleGAN2Config(size=size, **options)
        except InputError as error:
            raise LayoutError(
                f"has {len(widths) - 1} levels, which no supported generator has: {str(error).rstrip('.')}"
            ) from error
        if all(config.channels(side) == width for side, width in widths.items()):
            return options
    raise LayoutError(
        f"has channels {dict(widths)} by side, which follow neither the published table nor base / side"
    )


def generator_shapes(config: StyleGAN2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a generator, ours, without building it."""
    width = config.style_dim
    levels = config.size.bit_length() - 3
    shapes: dict[str, tuple[int, ...]] = {
        "latent_avg": (width,),
        "input.input": (1, config.channels(4), 4, 4),
    }
    fan_in = config.latent_dim + width * bool(config.num_classes)
    for index in range(config.mapping_depth):
        shapes |= {
            f"style.{index + 1}.weight": (width, width if index else fan_in),
            f"style.{index + 1}.bias": (width,),
        }
    if config.num_classes:
        shapes |= {"embed.weight": (width, config.num_classes), "embed.bias": (width,)}
    layers = [("conv1", config.channels(4), config.channels(4), 3), ("to_rgb1", config.channels(4), 3, 1)]
    for level in range(1, levels + 1):
        below = config.channels(2 << level)
        own = config.channels(4 << level)
        layers += [(f"convs.{2 * level - 2}", below, own, 3), (f"convs.{2 * level - 1}", own, own, 3)]
        layers += [(f"to_rgbs.{level - 1}", own, 3, 1)]
    for name, num_in, num_out, side in layers:
        shapes |= {
            f"{name}.conv.weight": (1, num_out, num_in, side, side),
            f"{name}.conv.modulation.weight": (num_in, width),
        }
        shapes |= {f"{name}.conv.modulation.bias": (num_in,)}
        rgb = {f"{name}.bias": (1, 3, 1, 1)}
        plain = {f"{name}.noise.weight": (1,), f"{name}.activate.bias": (num_out,)}
        shapes |= rgb if "rgb" in name else plain
    for index in range(2 * levels + 1):
        shapes[f"noises.noise_{index}"] = (1, 1, 4 << (index + 1) // 2, 4 << (index + 1) // 2)
    if count := config.compression_codes:
        latents = 2 * levels + 2
        shapes |= {"compression.basis": (latents, width, count), "compression.alpha": (latents,)}
    return shapes


def discriminator_shapes(config: StyleGAN2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a discriminator, ours, without building it."""
    sides = [config.size >> index for index in range(config.size.bit_length() - 2)]
    widths = [config.channels(side) for side in sides]
    shapes: dict[str, tuple[int, ...]] = {
        "convs.0.0.weight": (widths[0], 3, 1, 1),
        "convs.0.1.bias": (widths[0],),
    }
    for index, (num_in, num_out) in enumerate(zip(widths, widths[1:], strict=False), start=1):
        name = f"convs.{index}"
        shapes |= {f"{name}.conv1.0.weight": (num_in, num_in, 3, 3), f"{name}.conv1.1.bias": (num_in,)}
        shapes |= {f"{name}.conv2.1.weight": (num_out, num_in, 3, 3), f"{name}.conv2.2.bias": (num_out,)}
        shapes |= {f"{name}.skip.1.weight": (num_out, num_in, 1, 1)}
    last = widths[-1]
    shapes |= {"final_conv.0.weight": (last, last + 1, 3, 3), "final_conv.1.bias": (last,)}
    shapes |= {"final_linear.0.weight": (last, last * 16), "final_linear.0.bias": (last,)}
    return shapes | {"final_linear.1.weight": (1, last), "final_linear.1.bias": (1,)}


def check_shapes(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    optional: Iterable[str] = (),
    limit: int | None = MAX_NUMBERS,
) -> None:
    """LayoutError that names the first tensor that is missing, does not belong, has another shape, or is not
    finite."""
    if limit is not None and sum(map(math.prod, shapes.values())) > limit:
        raise LayoutError(f"asks for more than {limit:,} numbers, which no known StyleGAN2 has")
    if missing := [name for name in shapes if name not in state and name not in set(optional)]:
        raise LayoutError(
            f"lacks {len(missing)} of {len(shapes)} tensors, first {missing[0]}; the file is incomplete"
        )
    if extra := [name for name in state if name not in shapes]:
        first = printable(extra[0])
        raise LayoutError(
            f"has {len(extra)} tensors that do not belong, first {first}; it is another architecture"
        )
    for name, value in state.items():
        if tuple(value.shape) != shapes[name]:
            got = printable(tuple(value.shape))
            raise LayoutError(
                f"gives {name} the shape {got}, its architecture needs {shapes[name]}; it is another one"
            )
        if not bool(torch.isfinite(value).all()):
            raise LayoutError(
                f"holds values that are not finite in {name}; the training that wrote it had failed"
            )


def _widened(name: str, value: Tensor) -> Tensor:
    """A tensor of NVIDIA's with the leading dimensions that ours has under that name."""
    if name.startswith("noises."):
        return value[None, None]
    if name == "input.input" or name.endswith(".conv.weight") or name.endswith("noise.weight"):
        return value[None]
    return value[None, :, None, None] if RGB_BIAS.fullmatch(name) and value.dim() == 1 else value


def _narrowed(name: str, value: Tensor) -> Tensor:
    if name.startswith("noises."):
        return value[0, 0]
    if name == "input.input" or name.endswith(".conv.weight") or name.endswith("noise.weight"):
        return value[0]
    return value[0, :, 0, 0] if RGB_BIAS.fullmatch(name) else value


def _same(value: Tensor, _: str) -> Tensor:
    return value


_TENSORFLOW: dict[str, Callable[[Tensor, str], Tensor]] = {
    "weight": lambda value, layer: (value.flip(0, 1) if layer == "Conv0_up" else value).permute(3, 2, 0, 1),
    "mod_weight": lambda value, _: value.t(),
    "mod_bias": lambda value, _: value + 1,
    "const": lambda value, _: value[0],
}
"""Last part of a TensorFlow name -> what turns its value into NVIDIA's."""


def _tensorflow_key(block: str, layer: str, part: str) -> str:
    named = {"mod_weight": "affine.weight", "mod_bias": "affine.bias", "const": "const"}.get(part, part)
    return f"{block}.{layer}.{named}" if layer else f"{block}.{named}"


def _check_filters(state: Mapping[str, Tensor], ending: str, gain: float) -> None:
    expected = ops.fir_kernel(gain)
    for key, value in state.items():
        if not key.endswith(ending):
            continue
        if value.shape != expected.shape or not torch.allclose(value.float(), expected, atol=1e-6):
            raise LayoutError(
                f"has another filter {printable(key)} than StyleGAN2's (1, 3, 3, 1), the only one supported"
            )


def _shape_of(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Levels above 4 px, and mapping layers, of weights under our names."""
    convs = _consecutive(_indices(state, r"convs\.(\d+)\.conv\.weight"))
    return convs // 2, _consecutive(_indices(state, r"style\.(\d+)\.weight"), first=1)


def _indices(state: Mapping[str, Tensor], pattern: str) -> set[int]:
    """Numbers that the keys that match have; each at most four digits long."""
    return {int(match[1]) for key in state if (match := re.fullmatch(pattern, key)) and len(match[1]) <= 4}


def _consecutive(numbers: set[int], first: int = 0) -> int:
    return next(count for count in range(len(numbers) + 1) if first + count not in numbers)
