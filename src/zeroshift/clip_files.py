"""CLIPs in and out of files: every format that people hold, told apart by content. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from zeroshift.clip import OPENAI_MEAN, OPENAI_STD, ClipModel, Resize, own_randomness
from zeroshift.clip_resnet import REDUCTION, ResNetClip, ResNetClipConfig
from zeroshift.errors import InputError
from zeroshift.text import IMAGENET, BytePairTokenizer, HubTokenizer, TemplateBank, Tokenizer, WordTokenizer

Activation = Literal["quick_gelu", "gelu"]

HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Picture towers of open_clip (ViT-H, g, bigG, e) whose heads are not 64 wide: width -> width of a head."""


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Transformers draws a bar for every load and save of weights, which would break up our own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_clip(clip: ClipModel, folder: str | Path) -> None:
    """Writes a folder that `load_clip_folder` and transformers read: weights, config, processor constants, words, templates."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _no_progress_bars():
        clip.model.save_pretrained(folder)
    if isinstance(clip.tokenizer, WordTokenizer | HubTokenizer):
        clip.tokenizer.save(folder)
    side = clip.resolution
    processor = {"do_resize": True, "size": {"shortest_edge": side}, "resample": 3, "do_center_crop": True}
    processor |= {"crop_size": {"height": side, "width": side}, "image_mean": list(clip.mean), "image_std": list(clip.std)}
    ours = {"name": clip.name, "templates": list(clip.templates.templates), "context": clip.context}
    for file_name, content in (("preprocessor_config.json", processor), ("zeroshift.json", ours)):
        (folder / file_name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_clip_folder(path: str | Path, resize: Resize = "antialias", name: str | None = None, frozen: bool = True) -> ClipModel:
    """A CLIP from a local folder or a hub id, with its own processor constants, tokenizer and templates, in float32.

    Raises InputError where nothing is found, the files are damaged or incomplete, or the architecture is another.
    """
    spec = str(path)
    try:
        model, lacking = _pretrained(spec)
        processor, ours = _json_of(spec, "preprocessor_config.json"), _json_of(spec, "zeroshift.json")
        tokenizer = _tokenizer_of(spec, model.config)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(f'cannot load a CLIP from "{spec}": {reason}. Give a hub id or a folder with its weights.') from error
    if lacking:
        raise InputError(f'the weights in "{spec}" lack {len(lacking)} tensors, as {lacking[0]}. Take the complete checkpoint.')
    return ClipModel(
        model,
        tokenizer,
        name=name or ours.get("name") or Path(spec).name,
        resolution=_resolution_of(model.config, processor),
        mean=processor.get("image_mean", OPENAI_MEAN),
        std=processor.get("image_std", OPENAI_STD),
        templates=TemplateBank(ours.get("name", "own"), tuple(ours["templates"])) if "templates" in ours else IMAGENET,
        context=ours.get("context", "a photo of a"),
        resize=resize,
        frozen=frozen,
    )


def _pretrained(spec: str) -> tuple[Any, list[str]]:
    """The transformers model in float32 and the names of tensors that its weights lack."""
    import transformers

    classes = {"clip": transformers.CLIPModel, "vision-text-dual-encoder": transformers.VisionTextDualEncoderModel}
    config = transformers.AutoConfig.from_pretrained(spec)
    loader: Any = classes.get(config.model_type)
    if loader is None or config.text_config.model_type != "clip_text_model":
        raise InputError(f'"{spec}" is a {config.model_type} model, not a CLIP with a CLIP text tower. Give another.')
    with own_randomness(0), _no_progress_bars():
        model, report = loader.from_pretrained(spec, dtype=torch.float32, output_loading_info=True)
    for tensor in (*model.parameters(), *model.buffers()):
        # Weights mapped from a file begin at odd addresses, for which matrix products round differently.
        tensor.data = tensor.data.clone()
    return model, sorted(report["missing_keys"])


def _file_of(spec: str, file_name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    found = cached_file(spec, file_name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _json_of(spec: str, file_name: str) -> Any:
    """Content of a json file of the model; an empty dict where there is none."""
    path = _file_of(spec, file_name)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def _resolution_of(config: Any, processor: Mapping[str, Any]) -> int:
    """Side of the vision tower's input: what the tower says, else the crop, else the size of the processor."""
    side = getattr(config.vision_config, "image_size", None) or processor.get("crop_size") or processor.get("size")
    if isinstance(side, Mapping):
        side = side.get("height") or side.get("shortest_edge")
    if not isinstance(side, int):
        raise InputError(f"this CLIP does not say its picture size (found {side!r}). Add image_size to its vision config.")
    return side


def _tokenizer_of(spec: str, config: Any) -> Tokenizer:
    """Our word list, OpenAI's byte pairs where the vocabulary is theirs, else the folder's own transformers tokenizer."""
    vocabulary = _json_of(spec, WordTokenizer.file_name)
    if isinstance(vocabulary, list):
        return WordTokenizer(vocabulary)
    own = BytePairTokenizer()
    if config.text_config.vocab_size == own.vocab_size and vocabulary in ({}, own.vocab):
        return own
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(spec)
    return HubTokenizer(tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id)


def from_openai_state(
    state: Mapping[str, Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation = "quick_gelu",
    name: str = "clip",
    resize: Resize = "antialias",
) -> ClipModel:
    """A CLIP in float32 from a state dict with OpenAI's names: a vision transformer or a ResNet. Raises InputError where tensors
    are missing, left over or of the wrong shape.

    Sizes come from the shapes. Heads cannot be seen in weights: see `openai_sizes`. Nor can the activation: OpenAI's own models
    have QuickGELU, x sigmoid(1.702 x), most of open_clip's GELU. Convolutional towers have ReLU whatever it is.
    """
    import transformers

    sizes = openai_sizes(state)
    words, depth = sizes["vocab_size"], sizes["transformer_layers"]
    text = _tower(state, "transformer", sizes["transformer_width"], depth, text_heads or sizes["transformer_heads"])
    text |= {"hidden_act": activation}
    text |= {"vocab_size": words, "max_position_embeddings": sizes["context_length"]}
    text |= {"bos_token_id": words - 2, "eos_token_id": words - 1}
    heads, width, layers = vision_heads or sizes["vision_heads"], sizes["vision_width"], sizes["vision_layers"]
    side, embed_dim = sizes["image_resolution"], sizes["embed_dim"]
    with own_randomness(0):
        if isinstance(layers, int):
            vision = _tower(state, "visual.transformer", width, layers, heads)
            vision |= {"image_size": side, "patch_size": sizes["vision_patch_size"], "hidden_act": activation}
            hub_config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=embed_dim)
            model: nn.Module = transformers.CLIPModel(hub_config)
        else:
            text_config = transformers.CLIPTextConfig(**text)
            model = ResNetClip(ResNetClipConfig(text_config, tuple(layers), width, side, heads, embed_dim))
    _fill(model, dict(_hub_entries(state)), name)
    return ClipModel(model, BytePairTokenizer(), resolution=side, name=name, resize=resize)


def openai_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of OpenAI's constructor, and `vision_heads`, read off the shapes of a state dict with OpenAI's names.

    Heads are width / 64 (a ResNet's 32 width / 64), but for the widths of open_clip's towers that are known to differ.
    """
    try:
        patches, text_width = state["visual.conv1.weight"], len(state["ln_final.weight"])
        sizes: dict[str, Any] = {
            "embed_dim": state["text_projection"].shape[1],
            "context_length": len(state["positional_embedding"]),
            "vocab_size": len(state["token_embedding.weight"]),
            "transformer_width": text_width,
            "transformer_heads": max(1, text_width // 64),
            "transformer_layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
        }
        if "visual.layer1.0.conv1.weight" in state:
            width = len(state["visual.layer1.0.conv1.weight"])
            cells = len(state["visual.attnpool.positional_embedding"]) - 1
            stages = [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
            vision = {"vision_layers": stages, "vision_patch_size": None, "image_resolution": REDUCTION * math.isqrt(cells)}
            return sizes | vision | {"vision_width": width, "vision_heads": max(1, REDUCTION * width // 64)}
        width, patch = len(patches), patches.shape[-1]
        cells, layers = len(state["visual.positional_embedding"]) - 1, _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    except KeyError as missing:
        raise InputError(f"these weights lack the tensor {missing} of a CLIP. Take the complete checkpoint.") from None
    vision = {"vision_layers": layers, "vision_patch_size": patch, "image_resolution": patch * math.isqrt(cells)}
    return sizes | vision | {"vision_width": width, "vision_heads": max(1, width // HEAD_WIDTHS.get(width, 64))}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the group of a pattern takes at the beginning of the names."""
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def _tower(state: Mapping[str, Tensor], prefix: str, width: int, layers: int, heads: int) -> dict[str, Any]:
    """transformers' config of a tower of transformer blocks, without its activation."""
    if width % heads:
        raise InputError(f"{heads} heads do not divide the width {width} of the tower {prefix}. Give the right number of heads.")
    inner = state.get(f"{prefix}.resblocks.0.mlp.c_fc.weight")
    sizes = {"hidden_size": width, "intermediate_size": 4 * width if inner is None else len(inner)}
    return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}


def _fill(model: nn.Module, entries: Mapping[str, Tensor], name: str) -> None:
    """Loads entries under the model's own names, and says which tensor does not fit."""
    # A released ResNet counts the batches of its training.
    expected, given = (
        {key: value for key, value in each.items() if not key.endswith("num_batches_tracked")}
        for each in (model.state_dict(), entries)
    )
    lacking, surplus = expected.keys() - given.keys(), given.keys() - expected.keys()
    if lacking:
        raise InputError(f"the weights of {name} lack {len(lacking)} tensors, as {min(lacking)}. Take the complete checkpoint.")
    if surplus:
        raise InputError(f"the weights of {name} have {len(surplus)} tensors of an unknown architecture, as {min(surplus)}.")
    for key, value in given.items():
        if value.shape != expected[key].shape:
            sizes = f"{tuple(value.shape)} where {tuple(expected[key].shape)} is expected"
            raise InputError(f"the tensor {key} of {name} is {sizes}. Take another checkpoint.")
    model.load_state_dict(given, strict=False)


# OpenAI's name -> transformers' name (a ResNet's picture tower: ours), longest first where one is the beginning of another.
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
    """Entries under transformers' names: projections transposed, joined attention weights split into query, key, value."""
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
        value = value.float() if value.is_floating_point() else value
        if ".in_proj_" in name:
            stem, kind = name.split("in_proj_")
            yield from ((f"{stem}{part}_proj.{kind}", rows) for part, rows in zip("qkv", value.chunk(3), strict=True))
        else:
            yield name, value.T if prefix in ("visual.proj", "text_projection") else value
