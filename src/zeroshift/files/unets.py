"""Noise-predicting networks as other programs store them, both ways: diffusers, DDPM, guided-diffusion.

Our names are diffusers'. The architecture is read off the tensors; what they do not show has the published
value, or is said behind the name of the file (`FACTS`). DDPM is Ho et al.'s U-Net as SDEdit, DiffusionCLIP
and ddim store it; guided-diffusion is Dhariwal and Nichol's.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from zeroshift.errors import InputError, printable
from zeroshift.files.layouts import LayoutError, State, check_shapes
from zeroshift.models.diffusion import DiffusionConfig, DiffusionGenerator, build_diffusion, linear_betas

Options = dict[str, Any]

FACTS: dict[str, str] = {
    "size": "side of the pictures in pixels",
    "head_channels": "channels of an attention head",
    "heads": "heads of every attention",
    "schedule": "linear or cosine",
    "variance": "fixedsmall or fixedlarge",
}
"""What tensors do not show. Written behind the name of a file: weights.pt:heads=4,schedule=cosine."""

HEAD_CHANNELS = 64
"""Of an attention head in the published models of guided-diffusion, whose blocks change the side."""

HEADS = 4
"""Of an attention in the models of its forerunner improved-diffusion, where convolutions do that."""

SMALLEST_SIDE = 8
"""Pixels of the lowest level in published models of 64 px and more."""

CIFAR = (1, 2, 2, 2)
"""Widths, over that of the first, of the models of 32 px pictures, whose lowest level has 4 px."""

BLOCKS = {
    "down": {"plain": "DownBlock2D", "attention": "AttnDownBlock2D", "resnet": "ResnetDownsampleBlock2D"},
    "up": {"plain": "UpBlock2D", "attention": "AttnUpBlock2D", "resnet": "ResnetUpsampleBlock2D"},
}
"""diffusers' blocks of one level that are known here."""

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_DDPM_PARTS = {"time_emb_proj": "temb_proj", "conv_shortcut": "nin_shortcut"}
_DDPM_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_GUIDED_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_GUIDED_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def split_facts(spec: str) -> tuple[str, dict[str, str]]:
    """The name of a file and the facts written behind it; none where nothing of that form is there."""
    name, _, told = spec.rpartition(":")
    pairs = [part.partition("=") for part in told.split(",")]
    if not name or not all(sep and key in FACTS for key, sep, _ in pairs):
        return spec, {}
    return name, {key: value for key, _, value in pairs}


def ddpm_generator(state: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> DiffusionGenerator:
    """Generator of a state dict in DDPM's names."""
    options = ddpm_options(state)
    levels = len(options["block_out_channels"])
    return _translated(state, options, lambda name: ddpm_name(name, levels), facts or {})


def guided_generator(
    state: Mapping[str, Tensor], facts: Mapping[str, str] | None = None
) -> DiffusionGenerator:
    """Generator of a state dict in guided-diffusion's names. A label embedding is left out, as DiffusionCLIP
    does."""
    facts = facts or {}
    options = guided_options(state, facts)
    state = {name: value for name, value in state.items() if not name.startswith("label_emb.")}
    return _translated(
        _split_attention(state, options), options, lambda name: guided_name(name, options), facts
    )


def diffusers_generator(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], schedule: Mapping[str, Any]
) -> DiffusionGenerator:
    """Generator of a state dict of diffusers with the settings in its config.json and those of its scheduler,
    if it has one."""
    known = _unet_options(settings)
    for name in ("num_class_embeds", "class_embed_type"):
        if known.get(name) is not None:
            raise LayoutError("has classes, which are not supported for diffusion models")
    if known.get("time_embedding_type", "positional") != "positional":
        raise LayoutError(
            f"tells the time by {printable(known['time_embedding_type'])}, only positional is supported"
        )
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise LayoutError(f"predicts {printable(prediction)}; supported are epsilon and v_prediction")
    size = settings.get("sample_size")
    variance = {"fixed_large": "fixedlarge", "fixed_large_log": "fixedlarge"}.get(
        str(schedule.get("variance_type")), "fixedsmall"
    )
    learned = known.get("out_channels") == 2 * int(known.get("in_channels", 3))
    config = DiffusionConfig(
        image_size=size
        if isinstance(size, int)
        else usual_size(tuple(known.get("block_out_channels", (1,)))),
        unet=known,
        betas=tuple(scheduled_betas(schedule).tolist()),
        variance="learned" if learned else variance,  # pyright: ignore[reportArgumentType]  # one of the two above
        prediction=prediction,
    )
    return generator_with(config, {modern_name(name): value for name, value in state.items()})


def scheduled_betas(schedule: Mapping[str, Any]) -> Tensor:
    """Noise schedule of the settings of a diffusers scheduler; the published one where it says nothing."""
    if (trained := schedule.get("trained_betas")) is not None:
        return torch.tensor(trained, dtype=torch.float32)
    count = int(schedule.get("num_train_timesteps", 1000))
    first = float(schedule.get("beta_start", 1e-4))
    last = float(schedule.get("beta_end", 0.02))
    kind = str(schedule.get("beta_schedule", "linear"))
    if not 2 <= count <= 100_000:
        raise LayoutError(f"has a schedule of {count} times")
    if kind == "linear":
        return linear_betas(count, first, last)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    try:
        return DDPMScheduler(count, first, last, kind).betas.float()  # pyright: ignore[reportArgumentType]  # refuses others
    except (NotImplementedError, ValueError) as error:
        raise LayoutError(f"has the noise schedule {printable(kind)}, which is not known") from error


def ddpm_options(state: Mapping[str, Tensor]) -> Options:
    """Options of the network whose weights have DDPM's names."""
    levels = 1 + max(
        [int(match[1]) for name in state if (match := re.match(r"down\.(\d{1,3})\.block\.", name))],
        default=-1,
    )
    widths = tuple(_length(state, f"down.{level}.block.0.conv1.weight", 0) for level in range(levels))
    attended = [f"down.{level}.attn.0.norm.weight" in state for level in range(levels)]
    kinds = ["attention" if each else "plain" for each in attended]
    if levels > 1 and "down.0.downsample.conv.weight" not in state:
        raise LayoutError("has no convolutions between its levels, which is not supported")
    return {
        **_common(state, "conv_in.weight", "conv_out.weight", "temb.dense.0.weight", widths),
        "down_block_types": tuple(BLOCKS["down"][kind] for kind in kinds),
        "up_block_types": tuple(BLOCKS["up"][kind] for kind in reversed(kinds)),
        "layers_per_block": sum(
            1 for name in state if re.fullmatch(r"down\.0\.block\.\d+\.norm1\.weight", name)
        ),
        "downsample_padding": 0,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "resnet_time_scale_shift": "default",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    }


def guided_options(state: Mapping[str, Tensor], facts: Mapping[str, str]) -> Options:
    """Options of the network whose weights have guided-diffusion's names."""
    last = max(
        [int(match[1]) for name in state if (match := re.match(r"output_blocks\.(\d{1,3})\.", name))],
        default=0,
    )
    turns = {
        name.split(".")[1]
        for name in state
        if re.match(r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight", name)
    }
    levels = 1 + len(turns)
    resized = not any(re.match(r"output_blocks\.\d+\.[12]\.conv\.", name) for name in state)
    per_level = (last + 1) // levels
    starts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    widths = tuple(_length(state, f"{start}.0.out_layers.3.weight", 0) for start in starts)
    usual = "resnet" if resized else "plain"
    kinds = ["attention" if f"{start}.1.qkv.weight" in state else usual for start in starts]
    shifted = _length(state, "input_blocks.1.0.emb_layers.1.weight", 0) == 2 * widths[0]
    heads = _positive(facts, "heads")
    channels = _positive(facts, "head_channels")
    if not heads and not channels:
        heads, channels = (None, HEAD_CHANNELS) if resized else (HEADS, None)
    return {
        **_common(state, "input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight", widths),
        "down_block_types": tuple(BLOCKS["down"][kind] for kind in kinds),
        "up_block_types": tuple(BLOCKS["up"][kind] for kind in reversed(kinds)),
        "layers_per_block": per_level - 1,
        "downsample_padding": 1,
        "downsample_type": "resnet" if resized else "conv",
        "upsample_type": "resnet" if resized else "conv",
        "resnet_time_scale_shift": "scale_shift" if shifted else "default",
        "attn_norm_num_groups": 32,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "attention_head_dim": None if heads else channels,
        **({"num_heads": heads} if heads else {}),
    }


def ddpm_name(name: str, levels: int) -> str:
    """DDPM's name of one of our tensors."""
    match name.split("."):
        case ["time_embedding", linear, end]:
            return f"temb.dense.{int(linear[-1]) - 1}.{end}"
        case ["conv_norm_out", end]:
            return f"norm_out.{end}"
        case ["mid_block", kind, index, *rest]:
            part = "block" if kind == "resnets" else "attn"
            return f"mid.{part}_{int(index) + 1}.{_renamed(rest, kind, _DDPM_PARTS)}"
        case ["down_blocks" | "up_blocks" as way, level, kind, index, *rest]:
            number = int(level) if way == "down_blocks" else levels - 1 - int(level)
            places = {"resnets": f"block.{index}", "attentions": f"attn.{index}"}
            place = places.get(kind) or kind.removesuffix("rs")
            return f"{way.split('_')[0]}.{number}.{place}.{_renamed(rest, kind, _DDPM_PARTS)}"
    return name


def guided_name(name: str, options: Mapping[str, Any]) -> str:
    """guided-diffusion's name of one of our tensors; q, k and v stand for the parts of its qkv."""
    per_level = options["layers_per_block"] + 1
    match name.split("."):
        case ["mid_block", kind, index, *rest]:
            place = 2 * int(index) if kind == "resnets" else 1
            return f"middle_block.{place}.{_renamed(rest, kind, _GUIDED_PARTS)}"
        case ["down_blocks" | "up_blocks" as way, level, kind, index, *rest]:
            turn = kind in ("downsamplers", "upsamplers")
            number = int(level) * per_level + (per_level - 1 if turn else int(index)) + (way == "down_blocks")
            attended = options["up_block_types"][int(level)] == BLOCKS["up"]["attention"]
            place = {"attentions": 1, "upsamplers": 1 + attended}.get(kind, 0)
            end = _renamed(rest, kind, _GUIDED_PARTS)
            if kind == "downsamplers" and rest[0] == "conv":
                end = f"op.{rest[1]}"
            return f"{'input' if way == 'down_blocks' else 'output'}_blocks.{number}.{place}.{end}"
        case [*first, end] if ".".join(first) in _GUIDED_ENDS:
            return f"{_GUIDED_ENDS['.'.join(first)]}.{end}"
    return name


def modern_name(name: str) -> str:
    """diffusers' name of a tensor of its old or present versions."""
    *first, part, end = name.split(".")
    old = part in _OLD_ATTENTION and "attentions" in first
    return ".".join([*first, _OLD_ATTENTION[part], end]) if old else name


def to_ddpm(generator: DiffusionGenerator) -> State:
    """Weights in DDPM's names. InputError where that layout cannot say what the generator is."""
    options = generator.config.unet
    levels = len(options["block_out_channels"])
    attention = re.compile(r"(.*\.)?attn[._]\d+\.(q|k|v|proj_out)\.weight")
    named = {ddpm_name(name, levels): value for name, value in generator.unet.state_dict().items()}
    state = {
        name: value[:, :, None, None] if attention.fullmatch(name) else value for name, value in named.items()
    }
    _check_expressible(generator, options, ddpm_options, state, "DDPM's")
    return state


def to_guided(generator: DiffusionGenerator) -> State:
    """Weights in guided-diffusion's names. InputError where that layout cannot say what the generator is."""
    options = generator.config.unet
    named = {guided_name(name, options): value for name, value in generator.unet.state_dict().items()}
    state: State = {}
    for name, value in named.items():
        base, part, end = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
        if part == "q":
            heads = _heads(options, len(value))
            rows = [named[f"{base}.{each}.{end}"].reshape(heads, 1, -1, *value.shape[1:]) for each in "qkv"]
            value = torch.cat(rows, dim=1).reshape(-1, *value.shape[1:])
            name = f"{base}.qkv.{end}"
        elif part in ("k", "v"):
            continue
        state[name] = value[:, :, None] if re.search(r"\.1\.(qkv|proj_out)\.weight$", name) else value
    given = {"heads": options.get("num_heads"), "head_channels": options.get("attention_head_dim")}
    told = {fact: str(value) for fact, value in given.items() if value}
    _check_expressible(
        generator, options, lambda state: guided_options(state, told), state, "guided-diffusion's"
    )
    return state


def config_of(text: str) -> DiffusionConfig:
    """The config that one of our files states. LayoutError where it is none."""
    values = json.loads(text)
    if unknown := sorted(set(values) - {field.name for field in fields(DiffusionConfig)}):
        raise LayoutError(f"has the option {printable(unknown[0])}, which is unknown to this version")
    options = _unet_options(values["unet"], ("num_heads", "time_width"))
    return DiffusionConfig(
        **{**values, "unet": options, "betas": tuple(float(beta) for beta in values["betas"])}
    )


def generator_with(config: DiffusionConfig, state: Mapping[str, Tensor]) -> DiffusionGenerator:
    """A generator with these weights under our names, in float32. LayoutError where they do not fit."""
    options = config.unet
    for way, known in BLOCKS.items():
        if unknown := [kind for kind in options.get(f"{way}_block_types", ()) if kind not in known.values()]:
            raise LayoutError(f"has blocks of the kind {printable(unknown[0])}, which are not supported")
    try:
        # So that a few words of a file cannot ask for millions of layers.
        if int(options.get("layers_per_block", 2)) * len(options.get("block_out_channels", "1234")) > len(
            state
        ):
            raise LayoutError(f"asks for more layers than its {len(state)} tensors can be")
        generator = build_diffusion(config, weights=False)
    except LayoutError:
        raise
    except (
        InputError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise LayoutError(f"has an architecture that cannot be built ({printable(error)})") from error
    shapes = {name: tuple(value.shape) for name, value in generator.unet.state_dict().items()}
    fitted = {name: _fitted(value, shapes.get(name)) for name, value in state.items()}
    check_shapes(fitted, shapes, limit=None)
    generator.unet.load_state_dict(
        {name: value.float().clone() for name, value in fitted.items()}, assign=True
    )
    return generator


def _translated(
    state: Mapping[str, Tensor], options: Options, name_of: Any, facts: Mapping[str, str]
) -> DiffusionGenerator:
    """Generator of foreign weights; what is missing is told by the names of the file."""
    schedule = {"cosine": "squaredcos_cap_v2"}.get(
        facts.get("schedule", "linear"), facts.get("schedule", "linear")
    )
    learned = options["out_channels"] == 2 * options["in_channels"]
    size = _positive(facts, "size") or usual_size(options["block_out_channels"])
    config = DiffusionConfig(
        image_size=size,
        unet={**options, "sample_size": size},
        betas=tuple(scheduled_betas({"beta_schedule": schedule}).tolist()),
        variance="learned" if learned else facts.get("variance", "fixedsmall"),  # pyright: ignore[reportArgumentType]
    )
    names = {name_of(name): name for name in _names(config)}
    if missing := [name for name in names if name not in state]:
        raise LayoutError(
            f"lacks {len(missing)} of {len(names)} tensors, first {missing[0]}; the file is incomplete"
        )
    return generator_with(config, {names.get(name, name): value for name, value in state.items()})


def _names(config: DiffusionConfig) -> list[str]:
    """Names of the weights of a network."""
    try:
        return list(build_diffusion(config, weights=False).unet.state_dict())
    except (InputError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise LayoutError(f"has an architecture that cannot be built ({printable(error)})") from error


def _common(
    state: Mapping[str, Tensor], first: str, last: str, time: str, widths: tuple[int, ...]
) -> Options:
    """Options that are read off in the same way in every layout."""
    if not widths or 0 in widths:
        raise LayoutError("lacks the blocks of one of its levels; the file is incomplete")
    width = _length(state, time, 1)
    return {
        "in_channels": _length(state, first, 1),
        "out_channels": _length(state, last, 0),
        "block_out_channels": widths,
        "time_embedding_dim": _length(state, time, 0),
        "norm_num_groups": 32,
        "act_fn": "silu",
        "center_input_sample": False,
        **({"time_width": width} if width != widths[0] else {}),
    }


def _length(state: Mapping[str, Tensor], name: str, dimension: int) -> int:
    """One side of a tensor, 0 where there is none of the name."""
    value = state.get(name)
    return int(value.shape[dimension]) if value is not None and value.dim() > dimension else 0


def usual_size(widths: tuple[int, ...]) -> int:
    """Side of the pictures that published models of as many levels draw."""
    cifar = tuple(width // max(1, widths[0]) for width in widths) == CIFAR
    return (SMALLEST_SIDE // 2 if cifar else SMALLEST_SIDE) << (len(widths) - 1)


def _positive(facts: Mapping[str, str], name: str) -> int | None:
    """A fact that is a number above 0; None where it was not given."""
    if (told := facts.get(name)) is None:
        return None
    if not told.isdigit() or not 0 < int(told) <= 1 << 16:
        raise LayoutError(f"was given {name}={printable(told)}, which is no number above 0")
    return int(told)


def _renamed(rest: list[str], kind: str, parts: Mapping[str, str]) -> str:
    """The end of a name within a block."""
    *first, end = rest
    part = ".".join(first)
    return f"{(_DDPM_ATTENTION if kind == 'attentions' else parts).get(part, part)}.{end}"


def _heads(options: Mapping[str, Any], width: int) -> int:
    """Attention heads at a width."""
    heads = options.get("num_heads") or max(1, width // (options.get("attention_head_dim") or width))
    if width % heads:
        raise LayoutError(
            f"has attention over {width} channels, which are not {heads} heads; say which (:head_channels=N "
            "or :heads=N)"
        )
    return heads


def _split_attention(state: Mapping[str, Tensor], options: Options) -> State:
    """Weights in which q, k and v are apart. Head by head they follow each other in the file."""
    result: State = {}
    for name, value in state.items():
        base, _, end = name.rpartition(".qkv.")
        if not base or len(value) % 3:
            result[name] = value
            continue
        width = len(value) // 3
        rows = value.reshape(_heads(options, width), 3, -1, *value.shape[1:])
        for index, part in enumerate("qkv"):
            result[f"{base}.{part}.{end}"] = rows[:, index].reshape(width, *value.shape[1:])
    return result


def _fitted(value: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """A convolution of 1 x 1 as the matrix that it is, where a matrix is wanted."""
    if shape is None or value.dim() <= len(shape) or value.numel() != math.prod(shape):
        return value
    return value.reshape(shape) if tuple(value.shape[: len(shape)]) == shape else value


def _unet_options(settings: Mapping[str, Any], more: tuple[str, ...] = ()) -> Options:
    """Options of UNet2DModel among settings, lists as tuples. LayoutError for options it does not know."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    known = {*inspect.signature(UNet2DModel.__init__).parameters, *more} - {"self"}
    given = {name: value for name, value in settings.items() if not name.startswith("_")}
    if unknown := sorted(set(given) - known):
        raise LayoutError(f"has the option {printable(unknown[0])}, which diffusers' U-Net does not know")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _check_expressible(
    generator: DiffusionGenerator, options: Mapping[str, Any], read: Any, state: State, whose: str
) -> None:
    """InputError where reading the weights back would give another network."""
    try:
        reread = read(state)
    except LayoutError as error:
        raise InputError(
            f"{whose} layout has no words for this generator, which {error}; convert it to safetensors."
        ) from error
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    said["time_embedding_dim"] = said.get("time_embedding_dim") or 4 * said["block_out_channels"][0]
    unlike = [name for name, value in reread.items() if said.get(name) != value]
    if generator.patch > 1 or generator.prediction != "epsilon" or unlike:
        what = unlike[0] if unlike else "the prediction of velocity"
        if generator.patch > 1:
            what = "blocks of pixels"
        raise InputError(
            f"{whose} layout has no words for {what} of this generator; convert it to safetensors."
        )
