"""Tiny CLIPs of every kind, and their files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel, build_dual_encoder
from zeroshift.clip.text import WordTokenizer

WORDS = WordTokenizer(["a photo of a face", "pencil sketch , ."])
TEXTS = ["a photo of a face", "sketch", "a pencil sketch of a photo of a face , a face ."]


def small(vision: Any = "resnet", text_width: int = 16, seed: int = 0, **options: Any) -> ClipModel:
    model = build_dual_encoder(
        WORDS.vocab_size,
        vision=vision,
        widths=(8, 16),
        depths=(1, 1),
        embed_dim=12,
        text_width=text_width,
        text_heads=2,
        text_layers=2,
        seed=seed,
    )
    return ClipModel(model, WORDS, **{"resolution": 64, "name": "small", **options})


def vit(**sizes: Any) -> transformers.CLIPModel:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407} | sizes
    config = transformers.CLIPConfig(
        vision_config=tower | {"image_size": 32, "patch_size": 8}, text_config=text, projection_dim=12
    )
    return transformers.CLIPModel(config).eval()


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(
        dtype
    )


def openai_state(resnet: bool = False, width: int = 16, patch: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under OpenAI's names: a text tower of two blocks beside a ViT of two blocks, or beside a
    small ResNet."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, 16),
        "text_projection": (16, 12),
        "logit_scale": (),
    }
    shapes |= {"token_embedding.weight": (49408, 16), "ln_final.weight": (16,), "ln_final.bias": (16,)}
    shapes |= _blocks("transformer.", 16)
    if resnet:
        shapes |= _resnet(8)
    else:
        shapes |= {
            "visual.class_embedding": (width,),
            "visual.positional_embedding": (17, width),
            "visual.proj": (width, 12),
        }
        shapes |= {"visual.conv1.weight": (width, 3, patch, patch)} | _blocks("visual.transformer.", width)
        shapes |= {
            f"visual.ln_{end}.{kind}": (width,) for end in ("pre", "post") for kind in ("weight", "bias")
        }
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}
    return {
        key: value.abs() + 0.5 if "running_var" in key or key == "logit_scale" else value
        for key, value in state.items()
    }


def _blocks(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in (f"{prefix}resblocks.{number}." for number in range(2)):
        found |= {f"{name}attn.in_proj_weight": (3 * width, width), f"{name}attn.in_proj_bias": (3 * width,)}
        found |= {f"{name}attn.out_proj.weight": (width, width), f"{name}attn.out_proj.bias": (width,)}
        found |= {f"{name}mlp.c_fc.weight": (4 * width, width), f"{name}mlp.c_fc.bias": (4 * width,)}
        found |= {f"{name}mlp.c_proj.weight": (width, 4 * width), f"{name}mlp.c_proj.bias": (width,)}
        found |= {f"{name}ln_{number}.{kind}": (width,) for number in (1, 2) for kind in ("weight", "bias")}
    return found


def _resnet(width: int) -> dict[str, tuple[int, ...]]:
    """A stem and one block a stage, for pictures of 64 px."""
    convolutions = {
        "conv1": (width // 2, 3, 3, 3),
        "conv2": (width // 2, width // 2, 3, 3),
        "conv3": (width, width // 2, 3, 3),
    }
    channels = width
    for stage, planes in enumerate((width, 2 * width, 4 * width, 8 * width), 1):
        block = f"layer{stage}.0."
        convolutions |= {f"{block}conv1": (planes, channels, 1, 1), f"{block}conv2": (planes, planes, 3, 3)}
        convolutions |= {
            f"{block}conv3": (4 * planes, planes, 1, 1),
            f"{block}downsample.0": (4 * planes, channels, 1, 1),
        }
        channels = 4 * planes
    found: dict[str, tuple[int, ...]] = {f"visual.{key}.weight": shape for key, shape in convolutions.items()}
    for key, shape in convolutions.items():
        norm = key.replace("conv", "bn") if "conv" in key else key.replace("downsample.0", "downsample.1")
        found |= {
            f"visual.{norm}.{kind}": shape[:1] for kind in ("weight", "bias", "running_mean", "running_var")
        }
    pool = {"positional_embedding": (5, channels), "c_proj.weight": (12, channels), "c_proj.bias": (12,)}
    pool |= {f"{part}_proj.weight": (channels, channels) for part in "qkv"} | {
        f"{part}_proj.bias": (channels,) for part in "qkv"
    }
    return found | {f"visual.attnpool.{key}": shape for key, shape in pool.items()}


class _Part(nn.Module):
    """A module that only holds weights, so that an archive of it has their names."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def write_archive(path: Path, state: dict[str, Tensor]) -> None:
    """A TorchScript archive with the entries of a state dict, as OpenAI published its models."""
    root = _Part()
    for key, value in state.items():
        *parents, last = key.split(".")
        module: nn.Module = root
        for name in parents:
            if name not in module._modules:
                module.add_module(name, _Part())
            module = module.get_submodule(name)
        module.register_buffer(last, value)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        traced: Any = torch.jit.trace(root, torch.zeros(1))
        traced.save(str(path))
