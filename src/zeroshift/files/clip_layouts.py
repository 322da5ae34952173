"""CLIPs under OpenAI's names, as its archives, open_clip and most training code write them: names, shapes,
heads -> a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from zeroshift.clip.model import ClipModel, Resize, own_randomness
from zeroshift.clip.resnet import REDUCTION, ResNetClip, ResNetClipConfig
from zeroshift.clip.text import BytePairTokenizer
from zeroshift.errors import InputError

Activation = Literal["quick_gelu", "gelu"]

HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Picture towers of open_clip (ViT-H, g, bigG, e) whose heads are not 64 wide: width -> width of a head."""


def from_openai_state(
    state: Mapping[str, Tensor],
    vision_heads: int | None = None,
    text_heads: int | None = None,
    *,
    activation: Activation = "quick_gelu",
    name: str = "clip",
    resize: Resize = "antialias",
) -> ClipModel:
    """A CLIP in float32 from a state dict with OpenAI's names: a vision transformer or a ResNet. Raises
    InputError where tensors are missing, left over or of the wrong shape.

    Sizes come from the shapes. Heads cannot be seen in weights: see `openai_sizes`. Nor can the activation:
    OpenAI's own models have QuickGELU, x sigmoid(1.702 x), most of open_clip's GELU. Convolutional towers
    have ReLU whatever it is.
    """
    import transformers
    from transformers.initialization import no_init_weights

    sizes = openai_sizes(state)
    words = sizes["vocab_size"]
    depth = sizes["transformer_layers"]
    text = _tower(
        state, "transformer", sizes["transformer_width"], depth, text_heads or sizes["transformer_heads"]
    )
    text |= {"hidden_act": activation}
    text |= {"vocab_size": words, "max_position_embeddings": sizes["context_length"]}
    text |= {"bos_token_id": words - 2, "eos_token_id": words - 1}
    heads = vision_heads or sizes["vision_heads"]
    width = sizes["vision_width"]
    layers = sizes["vision_layers"]
    side = sizes["image_resolution"]
    embed_dim = sizes["embed_dim"]
    with own_randomness(0), no_init_weights():
        if isinstance(layers, int):
            vision = _tower(state, "visual.transformer", width, layers, heads)
            vision |= {"image_size": side, "patch_size": sizes["vision_patch_size"], "hidden_act": activation}
            hub_config = transformers.CLIPConfig(
                vision_config=vision, text_config=text, projection_dim=embed_dim
            )
            model: nn.Module = transformers.CLIPModel(hub_config)
        else:
            text_config = transformers.CLIPTextConfig(**text)
            model = ResNetClip(ResNetClipConfig(text_config, tuple(layers), width, side, heads, embed_dim))
    _load_weights(model, dict(_hub_entries(state)), name)
    tokenizer = BytePairTokenizer()
    if tokenizer.vocab_size != words:
        raise InputError(
            f"the text tower of {name} knows {words} tokens, not OpenAI's {tokenizer.vocab_size}. Use "
            "another."
        )
    return ClipModel(model, tokenizer, resolution=side, name=name, resize=resize)


def openai_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of OpenAI's constructor, and `vision_heads`, read off the shapes of a state dict with
    OpenAI's names.

    Heads are width / 64 (a ResNet's 32 width / 64), but for the widths of open_clip's towers that are known
    to differ.
    """
    try:
        patches = state["visual.conv1.weight"]
        text_width = len(state["ln_final.weight"])
        sizes: dict[str, Any] = {
            "embed_dim": state["text_projection"].shape[1],
            "context_length": len(state["positional_embedding"]),
            "vocab_size": len(state["token_embedding.weight"]),
            "transformer_width": text_width,
            "transformer_heads": max(1, text_width // 64),
            "transformer_layers": _num_blocks(state, r"transformer\.resblocks\.(\d+)\."),
        }
        if "visual.layer1.0.conv1.weight" in state:
            width = len(state["visual.layer1.0.conv1.weight"])
            cells = len(state["visual.attnpool.positional_embedding"]) - 1
            stages = [_num_blocks(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
            vision = {
                "vision_layers": stages,
                "vision_patch_size": None,
                "image_resolution": REDUCTION * math.isqrt(cells),
            }
            return sizes | vision | {"vision_width": width, "vision_heads": max(1, REDUCTION * width // 64)}
        width = len(patches)
        patch = patches.shape[-1]
        cells = len(state["visual.positional_embedding"]) - 1
        layers = _num_blocks(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    except KeyError as missing:
        raise InputError(
            f"these weights lack the tensor {missing} of a CLIP. Take the complete checkpoint."
        ) from None
    vision = {
        "vision_layers": layers,
        "vision_patch_size": patch,
        "image_resolution": patch * math.isqrt(cells),
    }
    return (
        sizes | vision | {"vision_width": width, "vision_heads": max(1, width // HEAD_WIDTHS.get(width, 64))}
    )


def _num_blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the group of a pattern takes at the beginning of the names."""
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def _tower(state: Mapping[str, Tensor], prefix: str, width: int, layers: int, heads: int) -> dict[str, Any]:
    """transformers' config of a tower of transformer blocks, without its activation."""
    if width % heads:
        raise InputError(
            f"{heads} heads do not divide the width {width} of the tower {prefix}. Give the right number of "
            "heads."
        )
    inner = state.get(f"{prefix}.resblocks.0.mlp.c_fc.weight")
    sizes = {"hidden_size": width, "intermediate_size": 4 * width if inner is None else len(inner)}
    return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}


def _load_weights(model: nn.Module, entries: Mapping[str, Tensor], name: str) -> None:
    """Loads entries under the model's own names, and says which tensor does not fit."""
    # A released ResNet counts the batches of its training.
    expected, given = (
        {key: value for key, value in each.items() if not key.endswith("num_batches_tracked")}
        for each in (model.state_dict(), entries)
    )
    lacking = expected.keys() - given.keys()
    surplus = given.keys() - expected.keys()
    if lacking:
        raise InputError(
            f"the weights of {name} lack {len(lacking)} tensors, as {min(lacking)}. Take the complete "
            "checkpoint."
        )
    if surplus:
        raise InputError(
            f"the weights of {name} have {len(surplus)} tensors of an unknown architecture, as "
            f"{min(surplus)}."
        )
    for key, value in given.items():
        if value.shape != expected[key].shape:
            sizes = f"{tuple(value.shape)} where {tuple(expected[key].shape)} is expected"
            raise InputError(f"the tensor {key} of {name} is {sizes}. Take another checkpoint.")
    # Copied into place, and widened where they are of half precision.
    model.load_state_dict(given, strict=False)


# OpenAI's name -> transformers' name (a ResNet's picture tower: ours), longest first where one is the
# beginning of another.
_OPENAI_NAMES = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "visual.attnpool.c_proj.": "visual_projection.",
    "visual.": "vision_model.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_OPENAI_BLOCK_NAMES = {
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".c_fc.": ".fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
# Released archives also carry sizes and masks; the bias of a sigmoid loss shifts all logits alike.
_PASSED_OVER = {"input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias"}


def _hub_entries(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Entries under transformers' names: projections transposed, joined attention weights split into query,
    key, value."""
    patches = "visual.layer1.0.conv1.weight" not in state
    for key, value in state.items():
        if key.rsplit(".", 1)[-1] in _PASSED_OVER:
            continue
        prefix = next((prefix for prefix in _OPENAI_NAMES if key.startswith(prefix)), "")
        name = _OPENAI_NAMES.get(prefix, "") + key[len(prefix) :]
        if patches and key.startswith("visual.conv1."):
            name = name.replace("conv1", "embeddings.patch_embedding")
        for old, new in _OPENAI_BLOCK_NAMES.items():
            name = name.replace(old, new)
        if ".in_proj_" in name:
            stem, kind = name.split("in_proj_")
            yield from (
                (f"{stem}{part}_proj.{kind}", rows) for part, rows in zip("qkv", value.chunk(3), strict=True)
            )
        else:
            yield name, value.T if prefix in ("visual.proj", "text_projection") else value


def openai_layout(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The entries of a CLIP under OpenAI's names, out of whatever a checkpoint wraps them in."""
    mark = "visual.conv1.weight"
    found = sorted((key for key in tensors if f".{key}".endswith(f".{mark}")), key=len)
    if not found:
        for other, what in _OTHER_LAYOUTS.items():
            if any(other in key for key in tensors):
                raise InputError(f"{path} holds {what}.")
        some = ", ".join(list(tensors)[:3]) or "no tensors"
        raise InputError(
            f"{path} holds no CLIP ({some}). Give a CLIP of OpenAI or open_clip, or a folder of transformers."
        )
    prefix = found[0].removesuffix(mark)
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    # Later versions of open_clip keep the text tower apart.
    return (
        {key.removeprefix("text."): value for key, value in state.items()}
        if "text.ln_final.weight" in state
        else state
    )


_OTHER_LAYOUTS = {
    "text_model.embeddings.": "a CLIP under transformers' names: give its folder, with config.json",
    "visual.trunk.": "an open_clip model whose picture tower is of timm, which is not supported: take a ViT "
    "or ResNet",
    "visual.patch_embed.": "an EVA-CLIP, which is not supported: take a ViT or ResNet",
}
