"""Files of other programs, made from our own generators by their formulas: what their programs would have
written.

Their classes do not exist here, so stand-ins of the same names are pickled. The source text that NVIDIA's
pickles carry is made to write a file when anybody runs it.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from zeroshift.errors import InputError
from zeroshift.files import layouts
from zeroshift.methods.prompts import LatentMapper
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

CONFIG = StyleGAN2Config(size=16, latent_dim=6, style_dim=8, mapping_depth=2, channel_base=64, channel_max=8)

BUFFERS = ("noise_const", "resample_filter", "w_avg")


def generator(seed: int = 3, config: StyleGAN2Config = CONFIG) -> StyleGAN2Generator:
    """A generator with noise, and with biases that survive the TensorFlow layout's minus 1 plus 1 exactly."""
    made = StyleGAN2Generator(config, seed=seed).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for name, value in made.state_dict().items():
        if name.endswith("modulation.bias"):
            value.copy_(1 + torch.randint(-64, 64, value.shape, generator=rng) / 128)
        elif name.endswith(("bias", "noise.weight", "latent_avg")):
            value.copy_(torch.randn(value.shape, generator=rng) / 8)
    return made


@contextmanager
def stand_ins(names: Mapping[str, Any]) -> Iterator[None]:
    """Objects that pickle finds under the dotted names of other programs."""
    parts = {}
    for full, thing in names.items():
        module, _, name = full.rpartition(".")
        thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
        for depth in range(1, module.count(".") + 2):
            package = ".".join(module.split(".")[:depth])
            parts.setdefault(package, ModuleType(package))
        parts[module].__dict__[name] = thing
    before = {module: sys.modules.get(module) for module in parts}
    sys.modules.update(parts)
    try:
        yield
    finally:
        for module, old in before.items():
            sys.modules.pop(module)
            if old is not None:
                sys.modules[module] = old


class EasyDict(dict):
    """A dictionary of NVIDIA's programs."""


class Network:
    """A network of the TensorFlow programs."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def rebuild(meta: dict[str, Any]) -> None:
    """What NVIDIA's loader calls; only its name is pickled."""
    raise AssertionError("called")


class Module:
    """A module of NVIDIA's programs: its attributes, and the source of its class."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (self.meta,), None


def module(
    class_name: str,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Mapping[str, Any]],
    source: str,
    at: str = "",
) -> Module:
    """Nested modules of a flat state dict; `facts` are further attributes by the module's dotted name."""
    own = {name: value for name, value in state.items() if "." not in name}
    below = OrderedDict.fromkeys(name.partition(".")[0] for name in state if "." in name)
    parts = OrderedDict()
    for name in below:
        inner = {
            key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")
        }
        parts[name] = module("Layer", inner, facts, source, f"{at}.{name}".lstrip("."))
    content: dict[str, Any] = {
        "training": False,
        "_backward_hooks": OrderedDict(),
        "_non_persistent_buffers_set": set(),
    }
    content["_parameters"] = OrderedDict(
        (k, torch.nn.Parameter(v.clone())) for k, v in own.items() if k not in BUFFERS
    )
    content["_buffers"] = OrderedDict((k, v.clone()) for k, v in own.items() if k in BUFFERS)
    content["_modules"] = parts
    return Module(class_name, {**content, **facts.get(at, {})}, source)


def nvidia_pickle(
    path: Path,
    made: StyleGAN2Generator,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    source: str = "raise SystemExit",
) -> Path:
    """A pickle of NVIDIA's PyTorch program with G_ema, a discriminator, and options."""
    clamp = {"conv_clamp": made.config.conv_clamp, "activation": "lrelu"}
    layers = {
        key.rpartition(".")[0].removesuffix(".affine"): clamp
        for key in layouts.to_nvidia(made.state())
        if ".conv" in key or ".torgb" in key
    }
    layers = {name: value for name, value in layers.items() if not name.endswith("affine")}
    attributes = {**layers, "mapping.fc0": {"bias_gain": made.config.lr_mlp}, **(facts or {})}
    judge = StyleGAN2Discriminator(
        StyleGAN2Config(size=16, channel_base=64, channel_max=8), seed=1
    ).state_dict()
    names = layouts.nvidia_discriminator_names(2)
    with stand_ins(
        {"torch_utils.persistence._reconstruct_persistent_obj": rebuild, "dnnlib.util.EasyDict": EasyDict}
    ):
        tree = {
            "G": None,
            "G_ema": module("Generator", layouts.to_nvidia(made.state()), attributes, source),
            "D": module("Discriminator", {names[key]: value for key, value in judge.items()}, {}, source),
            "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", resolution=16),
            "augment_pipe": None,
        }
        path.write_bytes(pickle.dumps(tree))
    return path


def tensorflow_variables(made: StyleGAN2Generator) -> dict[str, dict[str, Any]]:
    """Variables of the TensorFlow program by network: numpy, kernels (k, k, in, out), Conv0_up turned by half
    a turn."""
    state = {name: value.numpy() for name, value in made.state().items()}
    mapping = {}
    for index in range(made.config.mapping_depth):
        mapping[f"Dense{index}/weight"] = state[f"style.{index + 1}.weight"].T
        mapping[f"Dense{index}/bias"] = state[f"style.{index + 1}.bias"]
    synthesis = {"4x4/Const/const": state["input.input"]}
    layers = [("4x4/Conv", "conv1"), ("4x4/ToRGB", "to_rgb1")]
    for level in range(1, len(made.to_rgbs) + 1):
        side = f"{4 << level}x{4 << level}"
        layers += [
            (f"{side}/Conv0_up", f"convs.{2 * level - 2}"),
            (f"{side}/Conv1", f"convs.{2 * level - 1}"),
        ]
        layers += [(f"{side}/ToRGB", f"to_rgbs.{level - 1}")]
    for theirs, ours in layers:
        kernel = state[f"{ours}.conv.weight"][0].transpose(2, 3, 1, 0)
        synthesis[f"{theirs}/weight"] = kernel[::-1, ::-1].copy() if theirs.endswith("up") else kernel
        synthesis[f"{theirs}/mod_weight"] = state[f"{ours}.conv.modulation.weight"].T
        synthesis[f"{theirs}/mod_bias"] = state[f"{ours}.conv.modulation.bias"] - 1
        rgb = "RGB" in theirs
        synthesis[f"{theirs}/bias"] = (
            state[f"{ours}.bias"].reshape(3) if rgb else state[f"{ours}.activate.bias"]
        )
        if not rgb:
            synthesis[f"{theirs}/noise_strength"] = state[f"{ours}.noise.weight"][0]
    synthesis |= {f"noise{index}": state[f"noises.noise_{index}"] for index in range(made.num_latents - 1)}
    return {"mapping": mapping, "synthesis": synthesis, "": {"dlatent_avg": state["latent_avg"]}}


def tensorflow_pickle(
    path: Path, variables: Mapping[str, Mapping[str, Any]], version: int = 4, **options: Any
) -> Path:
    """A pickle (G, D, Gs) of the TensorFlow program; all three are the same network here."""
    with stand_ins({"dnnlib.tflib.network.Network": Network, "dnnlib.util.EasyDict": EasyDict}):

        def network(name: str, components: dict[str, Any]) -> Network:
            state = {
                "version": version,
                "name": name,
                "static_kwargs": EasyDict(options),
                "build_module_src": "raise SystemExit",
            }
            listed = list(variables.get(name, {}).items())
            return Network({**state, "components": EasyDict(components), "variables": listed})

        whole = network("", {name: network(name, {}) for name in variables if name})
        path.write_bytes(pickle.dumps((whole, whole, whole), protocol=4))
    return path


def rosinality_file(path: Path, made: StyleGAN2Generator, *, legacy: bool = False, **extra: Any) -> Path:
    """A checkpoint of rosinality's program with g_ema and the average style."""
    content = {"g_ema": layouts.to_rosinality(made.state()), "latent_avg": made.latent_avg.clone(), **extra}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def every_layout(folder: Path, made: StyleGAN2Generator) -> dict[str, Path]:
    """The same generator in every layout that is read, by name."""
    from zeroshift.files.checkpoints import save_generator

    folder.mkdir(exist_ok=True)
    files = {
        "rosinality": rosinality_file(folder / "rosinality.pt", made),
        "rosinality legacy": rosinality_file(folder / "legacy.pt", made, legacy=True),
        "nvidia": nvidia_pickle(folder / "nvidia.pkl", made),
        "tensorflow": tensorflow_pickle(folder / "tensorflow.pkl", tensorflow_variables(made)),
        "nvidia state": folder / "nvidia.pt",
        "ours": folder / "ours.safetensors",
    }
    torch.save(layouts.to_nvidia(made.state()), files["nvidia state"])
    save_generator(files["ours"], made, {"target": "pencil sketch"})
    return files


def mapper_from_official(state: Mapping[str, Tensor], num_words: int) -> LatentMapper:
    """The mapper of the authors' checkpoints (`mapping.mapping.1.weight` ...). Raises InputError where the
    keys are others."""
    prefix = "mapping.mapping."
    numbers = sorted({int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)})
    # Position 0 of the authors' network is the normalisation, which has no weights.
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise InputError(
            f"no mapper under {prefix}1.weight ... in this state dict. Give the entry m of the authors' "
            "mapper.pt."
        )
    first, last = state[f"{prefix}1.weight"], state[f"{prefix}{numbers[-1]}.weight"]
    if len(last) % num_words:
        raise InputError(
            f"the mapper writes {len(last)} numbers, which {num_words} words do not divide. Check the "
            "context's length."
        )
    mapper = LatentMapper(
        first.shape[1], num_words, len(last) // num_words, hidden=len(first), depth=len(numbers)
    ).to(first.dtype)
    mapper.load_state_dict(
        {
            f"layers.{number - 1}.{kind}": state[f"{prefix}{number}.{kind}"]
            for number in numbers
            for kind in ("weight", "bias")
        }
    )
    return mapper
