"""What a weights file holds, told by its content, and the StyleGAN2 weights in it under our names.

Every program of the field wraps its weights in its own way: under keys, in modules, beside optimisers. It
comes off here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from zeroshift.errors import printable
from zeroshift.files.layouts import (
    PREFIXES,
    LayoutError,
    State,
    from_nvidia,
    from_nvidia_discriminator,
    from_rosinality,
    from_tensorflow,
    from_tensorflow_discriminator,
)
from zeroshift.files.pickles import Content, flat_tensors
from zeroshift.files.unpickle import Record

Layout = Literal["zeroshift", "rosinality", "nvidia", "tensorflow"]

LAYOUTS: dict[Layout, str] = {
    "zeroshift": "Zeroshift's own safetensors",
    "rosinality": "the rosinality layout, as most PyTorch programs of this field use",
    "nvidia": "NVIDIA's PyTorch layout (StyleGAN2-ADA)",
    "tensorflow": "NVIDIA's old TensorFlow layout",
}

FOREIGN: dict[str, str] = {
    "stylegan3": "a StyleGAN3 generator; its alias-free layers are not supported, only StyleGAN2's are",
    "discriminator": "a discriminator, not a generator; it judges pictures and draws none",
    "ipl mapper": "an IPL mapper; it gives words for styles and draws nothing",
    "hyperdomainnet": "HyperDomainNet domain vectors; they change a source generator and cannot stand alone",
    "styleclip mapper": "a StyleCLIP mapper; it edits styles and draws nothing",
    "encoder": "an inversion encoder (pSp, e4e, ReStyle) without its generator; inversion is not supported",
    "identity": "the face recognition network IR-SE50 (ArcFace); it draws nothing",
    "clip": "a CLIP; it guides (--clip) and draws nothing",
    "coop": "a prompt learnt by CoOp; it draws nothing",
    "lpips": "the linear layers of LPIPS; they draw nothing",
    "latents": "styles or directions; they need a generator to become pictures",
}
"""Kind of a file that holds no usable generator -> what it holds; why that is no use."""

DIFFUSION: dict[str, str] = {
    "ddpm": "a DDPM U-Net, as SDEdit, DiffusionCLIP and ddim store it",
    "guided diffusion": "a U-Net of guided-diffusion",
    "diffusers": "a U-Net of diffusers",
}
"""Kind of a file that holds a diffusion generator -> what it holds."""

GENERATOR_KEYS = ("g_ema", "G_ema", "g", "G", "state_dict", "params_ema", "m")
"""Where programs keep the weights of the network, best first."""


@dataclass(frozen=True)
class Weights:
    """A generator found in a file: weights under our names, and options that their shapes do not show.

    `place` is the key that it was found under, "" for the whole file.
    """

    layout: Layout
    state: State
    facts: dict[str, Any] = field(default_factory=dict)
    place: str = ""


def generator_weights(content: Content) -> Weights:
    """The StyleGAN2 generator of a file in a layout of other programs. LayoutError says what else the file
    is."""
    networks = tensorflow_networks(content.tree)
    if networks:
        return Weights(
            "tensorflow", from_tensorflow(_variables(networks[-1])), _tensorflow_facts(networks[-1]), "Gs"
        )
    place, network = chosen(content.tree)
    state = unprefixed(flat_tensors(network))
    if "synthesis.b4.const" in state:
        return Weights("nvidia", from_nvidia(state), _nvidia_facts(network), place)
    kind = recognise(content)
    if kind != "generator":
        raise LayoutError(f"holds {FOREIGN[kind]}" if kind in FOREIGN else kind)
    state = from_rosinality(state)
    average = content.tree.get("latent_avg") if isinstance(content.tree, Mapping) else None
    average = average if isinstance(average, Tensor) else state.get("latent_avg")
    if average is not None:
        # Encoders store one row per layer.
        rows = average.reshape(-1, average.shape[-1]) if average.dim() and average.numel() else average
        state["latent_avg"] = rows.float().mean(dim=0)
    return Weights("rosinality", state, {}, place)


def diffusion_weights(content: Content) -> State:
    """The noise-predicting network of a file under the names of its program: averaged weights where the file
    has them."""
    return unprefixed(flat_tensors(chosen(content.tree)[1]))


def discriminator_state(content: Content) -> State:
    """The StyleGAN2 discriminator of a file in a layout of other programs, under our names."""
    networks = tensorflow_networks(content.tree)
    if len(networks) == 3:
        return from_tensorflow_discriminator(_variables(networks[1]))
    state = unprefixed(flat_tensors(chosen(content.tree, ("d", "D", "state_dict"))[1]))
    return from_nvidia_discriminator(state) if "b4.fc.weight" in state else from_rosinality(state, gain=1.0)


def recognise(content: Content) -> str:
    """Kind of a file: "generator" (StyleGAN2), a key of DIFFUSION or FOREIGN, or the end of a sentence that
    says why not."""
    tree = content.tree
    if content.kind == "torchscript":
        return (
            "clip"
            if "visual.conv1.weight" in flat_tensors(tree)
            else "holds a TorchScript program that is not a known model"
        )
    if tensorflow_networks(tree):
        return "generator"
    if not isinstance(chosen(tree)[1], Mapping | Record):
        return "latents" if _is_latents(tree) else f"holds a {type(tree).__name__}, not weights by name"
    top = set(tree) if isinstance(tree, Mapping) else set()
    if {"m", "m_optim"} <= top:
        return "ipl mapper"
    if "model_type" in top and {"state_dict", "da_type", "sg2_params"} & top:
        return "hyperdomainnet"
    state = unprefixed(flat_tensors(chosen(tree, (*GENERATOR_KEYS, "d", "D"))[1]))
    if kind := next((kind for kind, keys in _SIGNS if any(key in state for key in keys)), None):
        return kind
    if state and all(value.dim() <= 3 and value.shape[-1:] == (512,) for value in state.values()):
        return "latents"
    return f"holds no StyleGAN2 generator, and nothing else known, in its {len(state)} tensors"


_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("stylegan3", ("synthesis.input.freqs",)),
    ("generator", ("synthesis.b4.const", "input.input", "conv1.conv.weight", "style.1.weight")),
    ("discriminator", ("final_linear.1.weight", "b4.fc.weight")),
    ("ddpm", ("temb.dense.0.weight",)),
    ("guided diffusion", ("time_embed.0.weight",)),
    ("diffusers", ("time_embedding.linear_1.weight",)),
    (
        "styleclip mapper",
        ("mapper.course_mapping.mapping.1.weight", "mapper.medium_mapping.mapping.1.weight"),
    ),
    ("hyperdomainnet", ("heads.conv_0.params_in",)),
    ("encoder", ("encoder.input_layer.0.weight", "encoder.conv1.weight", "styles.0.convs.0.weight")),
    ("identity", ("output_layer.3.weight",)),
    (
        "clip",
        (
            "visual.conv1.weight",
            "vision_model.embeddings.patch_embedding.weight",
            "text_model.embeddings.token_embedding.weight",
        ),
    ),
    ("coop", ("ctx", "prompt_learner.ctx")),
    ("lpips", ("lin0.model.1.weight",)),
)
"""Kind of a file -> names of tensors, of which one is enough to tell it; the first that fits counts."""


def unprefixed(state: Mapping[str, Tensor]) -> State:
    """Tensors without what wrappers put in front of every name."""
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {
                key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
            }
    return dict(state)


def tensorflow_networks(tree: Any) -> list[Record]:
    """Networks of a pickle of the old TensorFlow programs: (G, D, Gs), or one alone; empty for other
    files."""
    items = list(tree) if isinstance(tree, tuple | list) else [tree]
    networks = [item for item in items if isinstance(item, Record) and item.module == "dnnlib.tflib.network"]
    if len(networks) != len(items):
        return []
    for network in networks:
        state = network.state if isinstance(network.state, Mapping) else {}
        if not isinstance(version := state.get("version"), int) or version < 4:
            raise LayoutError(
                "is a pickle of a TensorFlow program older than StyleGAN2, which is not supported"
            )
    return networks


def _variables(network: Record, prefix: str = "") -> State:
    """Variables of a TensorFlow network and of its components, each under the name of its component."""
    state = network.state if isinstance(network.state, Mapping) else {}
    found: State = {}
    for pair in state.get("variables") or []:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise LayoutError("is damaged: a network's variables have no names")
        if isinstance(pair[1], Tensor | int | float):
            found[prefix + pair[0]] = torch.as_tensor(pair[1])
    components = state.get("components")
    for name, part in components.items() if isinstance(components, Mapping) else ():
        if isinstance(part, Record):
            found |= _variables(part, f"{prefix}{name}/")
    return found


def chosen(tree: Any, keys: tuple[str, ...] = GENERATOR_KEYS) -> tuple[str, Any]:
    """The first of the keys that holds weights, and these; the whole where none does. Lists end with averaged
    weights, if any."""
    if isinstance(tree, list):
        return "", next(
            (part for part in [tree[-1], tree[0]] if isinstance(part, Mapping)), tree
        ) if tree else tree
    if isinstance(tree, Mapping):
        for key in keys:
            if isinstance(tree.get(key), Mapping | Record):
                return key, tree[key]
    return "", tree


def _is_latents(tree: Any) -> bool:
    return isinstance(tree, Tensor) and tree.dim() <= 3 and tree.shape[-1:] == (512,)


def _nvidia_facts(network: Any) -> dict[str, Any]:
    """Options of NVIDIA's module objects that its weights do not show; none for bare weights."""
    facts: dict[str, Any] = {}
    states = dict(_named_states(network))
    bounds = {_bound(state["conv_clamp"]) for state in states.values() if "conv_clamp" in state}
    if len(bounds) > 1:
        raise LayoutError("bounds its layers differently, which is not supported")
    facts |= {"conv_clamp": bounds.pop()} if bounds else {}
    for option, known in {"architecture": {"skip"}, "activation": {"lrelu", "linear"}}.items():
        for state in states.values():
            _known(option, state.get(option), known)
    rate = states.get("mapping.fc0", {}).get("bias_gain")
    return facts | ({"lr_mlp": rate} if isinstance(rate, float) and 0 < rate <= 1 else {})


def _tensorflow_facts(network: Record) -> dict[str, Any]:
    """Options of a TensorFlow network that its variables do not show."""
    given = network.state.get("static_kwargs") if isinstance(network.state, Mapping) else None
    options = given if isinstance(given, Mapping) else {}
    _known("architecture", options.get("architecture"), {"skip"})
    _known("activation", options.get("nonlinearity"), {"lrelu"})
    kernel = options.get("resample_kernel")
    if kernel is not None and (not isinstance(kernel, list | tuple) or list(kernel) != [1, 3, 3, 1]):
        raise LayoutError("has another filter than StyleGAN2's (1, 3, 3, 1), the only one supported")
    rate = options.get("mapping_lrmul")
    facts = {"lr_mlp": rate} if isinstance(rate, float) and 0 < rate <= 1 else {}
    return facts | ({"conv_clamp": _bound(options["conv_clamp"])} if "conv_clamp" in options else {})


def _known(option: str, value: object, known: set[str]) -> None:
    if isinstance(value, str) and value not in known:
        raise LayoutError(f"has the {option} {printable(value)}, which is not supported")


def _bound(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise LayoutError(f"bounds its layers by {printable(value)}, which is no number above 0")
    return float(value)


def _named_states(network: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Attributes of a module and of the modules in it, by dotted name."""
    if not isinstance(network, Record) or not isinstance(network.state, Mapping):
        return
    yield prefix, network.state
    modules = network.state.get("_modules")
    for name, part in modules.items() if isinstance(modules, Mapping) else ():
        yield from _named_states(part, f"{prefix}.{name}".lstrip("."))
