"""CLIPs in and out of files: every format that people hold, told apart by content. Nothing in a file is ever
executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from zeroshift.clip.model import (
    OPENAI_MEAN,
    OPENAI_STD,
    ClipModel,
    Lengths,
    Resize,
    SiglipClip,
    own_randomness,
)
from zeroshift.clip.text import (
    IMAGENET,
    BytePairTokenizer,
    HubTokenizer,
    TemplateBank,
    Tokenizer,
    WordTokenizer,
    without_punctuation,
)
from zeroshift.errors import InputError, MissingExtra
from zeroshift.files.clip_layouts import Activation, from_openai_state, openai_layout, openai_sizes
from zeroshift.files.pickles import flat_tensors, read_tensors

OPEN_CLIP_CONFIG = "open_clip_config.json"
SIGLIP2_WORDS = 256_000
"""Vocabulary of SigLIP 2, which unlike SigLIP reads punctuation."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers draws a bar for every load and save of weights and tables of what did not fit, amid our
    own messages."""
    import logging as levels

    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(levels.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
"""Files one of which a folder must hold, unless its vocabulary has the size of OpenAI's byte pairs."""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns whatever libraries raise on damaged or foreign files into one sentence that names the place."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # Some errors announce the reason on the next line.
        reason = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(".")
        raise InputError(
            f'cannot load a CLIP from "{path}": {reason}. Give a hub id or a folder with its weights.'
        ) from error


def save_clip(clip: ClipModel, folder: str | Path) -> None:
    """Writes a folder that `load_clip_folder` and transformers read: weights, config, processor constants,
    words, templates.

    InputError for OpenAI's ResNets, for which transformers has no model.
    """
    if not hasattr(clip.model, "save_pretrained"):
        raise InputError(
            f"the CLIP {clip.name} has no form that transformers reads; keep the file it came from."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        clip.model.save_pretrained(folder)
    if isinstance(clip.tokenizer, WordTokenizer | HubTokenizer):
        clip.tokenizer.save(folder)
    side = clip.resolution
    processor = {"do_resize": True, "size": {"shortest_edge": side}, "resample": 3, "do_center_crop": True}
    processor |= {
        "crop_size": {"height": side, "width": side},
        "image_mean": list(clip.mean),
        "image_std": list(clip.std),
    }
    ours = {"name": clip.name, "templates": list(clip.templates.templates), "context": clip.context}
    ours |= {"length_scale": clip.lengths.scale, "length_power": clip.lengths.power}
    for file_name, content in (("preprocessor_config.json", processor), ("zeroshift.json", ours)):
        (folder / file_name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_clip_folder(
    path: str | Path,
    resize: Resize = "antialias",
    name: str | None = None,
    activation: Activation | None = None,
) -> ClipModel:
    """A CLIP in float32 from a local folder: of transformers (config.json says CLIP, SigLIP, or a dual
    encoder with CLIP's text tower), of open_clip (open_clip_config.json), or with one file of weights, which
    is read as `load_clip_file` does.

    Raises InputError where nothing is found, the files are damaged or incomplete, or the architecture is
    another.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f'there is no folder "{path}" to load a CLIP from. Give a folder, a file, or a hub id.'
        )
    kind = _settings(path / "config.json").get("model_type")
    if kind is None:
        return load_clip_file(_only_weights(path), resize, name or path.name, activation)
    if activation is not None:
        raise InputError(f"{path / 'config.json'} states the activation. Leave :{activation} out.")
    with _explained(path), _quiet():
        return _from_transformers(path, str(kind), resize, name)


def load_clip_file(
    path: str | Path,
    resize: Resize = "antialias",
    name: str | None = None,
    activation: Activation | None = None,
) -> ClipModel:
    """A CLIP in float32 from one file: OpenAI's archive, or a state dict with OpenAI's names, as open_clip
    has them too, alone or within a training checkpoint. An open_clip_config.json beside it is heeded.

    Heads are those of the config, or see `openai_sizes`. The activation is QuickGELU in OpenAI's archives,
    else what the argument, the config or the file's name ("quickgelu") says. Raises InputError where none
    says it, and as the folder does.
    """
    path = Path(path)
    content = read_tensors(path)
    state = openai_layout(flat_tensors(content.tree), path)
    # OpenAI's archive says all about itself, wherever it lies.
    settings = {} if content.kind == "torchscript" else _settings(path.parent / OPEN_CLIP_CONFIG)
    with _explained(path.parent / OPEN_CLIP_CONFIG):
        model = settings.get("model_cfg", {})
        processor = settings.get("preprocess_cfg", {})
        vision = model.get("vision_cfg", {})
        text = model.get("text_cfg", {})
        width = openai_sizes(state)["vision_width"]
        _require_plain(path, model)
        if vision.get("width", width) != width:
            raise InputError(
                f"{OPEN_CLIP_CONFIG} beside {path} is of another model: width {vision['width']}, not {width}."
            )
        heads = width // vision["head_width"] if "head_width" in vision else None, text.get("heads")
        mean, std = (
            _three(path, processor.get(key, usual))
            for key, usual in (("mean", OPENAI_MEAN), ("std", OPENAI_STD))
        )
        activation = activation or _activation_of(path, content.kind, state, model)
        clip = from_openai_state(state, *heads, activation=activation, name=name or path.stem, resize=resize)
    clip.mean = mean
    clip.std = std
    return clip


def split_activation(spec: str) -> tuple[str, Activation | None]:
    """The name of a CLIP and the activation that is written behind it: "weights.pt:gelu" or
    "weights.pt:quick_gelu"."""
    name, _, last = spec.rpartition(":")
    for activation in get_args(Activation):
        if name and last == activation:
            return name, activation
    return spec, None


def _json(path: Path) -> Any:
    """Content of a json file; an empty dict where there is none. InputError names a broken one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no json file: {error}. Copy or download it again.") from error


def _settings(path: Path) -> dict[str, Any]:
    if not isinstance(found := _json(path), dict):
        raise InputError(f"{path} is no table of settings. Copy or download it again.")
    return found


def _three(path: Path, numbers: Any) -> tuple[float, float, float]:
    """Mean or deviation of the three colours."""
    red, green, blue = map(float, numbers)
    if not all(math.isfinite(each) for each in (red, green, blue)):
        raise InputError(
            f"the colour constants {numbers} of {path} are no numbers. Take the files of one model."
        )
    return red, green, blue


def _lengths(path: Path, ours: Mapping[str, Any]) -> Lengths:
    """What a CLIP's folder says of its lengths; numbers that it does not name are 1."""
    numbers: list[float] = []
    for name in ("length_scale", "length_power"):
        number = ours.get(name, 1.0)
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < math.inf:
            raise InputError(
                f"{name} in {path / 'zeroshift.json'} must be a number above 0, got {number!r}; leave it "
                "out for 1."
            )
        numbers.append(float(number))
    return Lengths(*numbers)


def _from_transformers(path: Path, kind: str, resize: Resize, name: str | None) -> ClipModel:
    """A CLIP of transformers, with its own processor constants, tokenizer and templates."""
    processor = _settings(path / "preprocessor_config.json")
    processor = processor or _settings(path / "processor_config.json").get("image_processor", {})
    ours = _settings(path / "zeroshift.json")
    model = _pretrained(path, kind)
    return (SiglipClip if kind == "siglip" else ClipModel)(
        model,
        _tokenizer_of(path, model.config),
        name=name or ours.get("name") or path.name,
        resolution=_resolution_of(path, model.config, processor),
        mean=_three(path, processor.get("image_mean", OPENAI_MEAN)),
        std=_three(path, processor.get("image_std", OPENAI_STD)),
        templates=TemplateBank(ours.get("name", "own"), tuple(ours["templates"]))
        if "templates" in ours
        else IMAGENET,
        context=ours.get("context", "a photo of a"),
        lengths=_lengths(path, ours),
        resize=resize,
    )


def _pretrained(path: Path, kind: str) -> Any:
    """The transformers model in float32."""
    import transformers

    names = {"clip": "CLIP", "siglip": "Siglip", "vision-text-dual-encoder": "VisionTextDualEncoder"}
    if kind not in names:
        raise InputError(
            f"\"{path}\" is a {kind} model. CLIPs here are {', '.join(names)}, or OpenAI's and open_clip's "
            "files."
        )
    # Classes by name, not Auto classes, which offer to run code that lies in the folder.
    config = getattr(transformers, f"{names[kind]}Config").from_pretrained(path, local_files_only=True)
    if config.text_config.model_type not in ("clip_text_model", "siglip_text_model"):
        raise InputError(
            f'the text tower of "{path}" is a {config.text_config.model_type}, not a CLIP text tower. Give '
            "another."
        )
    loader: Any = getattr(transformers, f"{names[kind]}Model")
    options = {
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    pickled = [] if any(path.glob("*.safetensors")) else sorted(path.glob("pytorch_model*.bin"))
    state = {
        name: each for file in pickled for name, each in flat_tensors(read_tensors(file).tree).items()
    } or None
    with own_randomness(0):
        model, report = loader.from_pretrained(
            None if state else path, config=config, state_dict=state, **options
        )
    if report["mismatched_keys"]:
        tensor, found, expected = min(report["mismatched_keys"])
        sizes = f"{tuple(found)} in the weights and {tuple(expected)} by config.json"
        raise InputError(f'the tensor {tensor} of "{path}" is {sizes}. Take the complete checkpoint again.')
    if lacking := sorted(report["missing_keys"]):
        raise InputError(
            f'the weights in "{path}" lack {len(lacking)} tensors, as {lacking[0]}. Take the complete '
            "checkpoint."
        )
    if surplus := sorted(each for each in report["unexpected_keys"] if not each.endswith("position_ids")):
        raise InputError(
            f'the weights in "{path}" have {len(surplus)} tensors that config.json does not know, as '
            f"{surplus[0]}."
        )
    for tensor in (*model.parameters(), *model.buffers()):
        # Weights mapped from a file begin at odd addresses, for which matrix products round differently.
        tensor.data = tensor.data.clone()
    return model


def _resolution_of(path: Path, config: Any, processor: Mapping[str, Any]) -> int:
    """Side of the picture tower's input: what the tower says, else the crop, else the size of the processor.
    They must agree."""
    sides = [getattr(config.vision_config, "image_size", None)]
    crops = processor.get("do_center_crop", "crop_size" in processor) and "crop_size" in processor
    sides += [processor.get("crop_size" if crops else "size")]
    numbers = [
        each.get("height") or each.get("shortest_edge") if isinstance(each, Mapping) else each
        for each in sides
    ]
    stated = [each for each in numbers if each is not None]
    if not stated or not all(isinstance(each, int) and each > 0 for each in stated):
        raise InputError(
            f'"{path}" does not say its picture size (found {stated}). Add image_size to its vision config.'
        )
    if config.model_type == "clip" and stated[0] % config.vision_config.patch_size:
        raise InputError(
            f"patches of {config.vision_config.patch_size} px do not fill the {stated[0]} px pictures of "
            f'"{path}".'
        )
    if len(set(stated)) > 1:
        raise InputError(
            f'"{path}" states pictures of {stated[0]} px in config.json and of {stated[1]} px in '
            "preprocessor_config.json. "
            "Take the files of one model."
        )
    return stated[0]


def _tokenizer_of(path: Path, config: Any) -> Tokenizer:
    """Our word list, OpenAI's byte pairs where the vocabulary is theirs, else the folder's own transformers
    tokenizer."""
    vocabulary = _json(path / WordTokenizer.file_name)
    size = config.text_config.vocab_size
    if isinstance(vocabulary, list):
        words = WordTokenizer.load(path)
        if words.vocab_size != size:
            raise InputError(
                f"{path / WordTokenizer.file_name} gives {words.vocab_size} ids, config.json {size}."
            )
        return words
    own = BytePairTokenizer()
    if size == own.vocab_size and vocabulary in ({}, own.vocab):
        return own
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f'"{path}" has no tokenizer: none of {", ".join(TOKENIZER_FILES)}. Copy those of the model into '
            "it."
        )
    import transformers

    # Read without its sentencepiece model where the same is written in tokenizer.json.
    plain = (path / "tokenizer.json").is_file()
    loader = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    if not plain and config.model_type == "siglip" and find_spec("sentencepiece") is None:
        raise MissingExtra(
            f'"{path}" has no tokenizer.json. Take a folder that has one, or: pip install sentencepiece'
        )
    with _explained(path / ("tokenizer.json" if plain else "tokenizer_config.json")):
        tokenizer: Any = loader.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if not set(tokenizer("a photo")["input_ids"]) - set(tokenizer.all_special_ids):
            raise InputError(
                f'the tokenizer in "{path}" knows no words; its files are damaged or of another model.'
            )
    if len(tokenizer) > size:
        raise InputError(
            f'the tokenizer in "{path}" gives {len(tokenizer)} ids, config.json {size}. Take files of one '
            "model."
        )
    if config.model_type == "siglip":
        prepare = str.lower if size == SIGLIP2_WORDS else without_punctuation
        return HubTokenizer(tokenizer, -1, tokenizer.eos_token_id, tokenizer.pad_token_id, prepare)
    return HubTokenizer(tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id)


def _only_weights(folder: Path) -> Path:
    """The file of weights in a folder of open_clip, which may hold the same weights in several formats."""
    found = sorted(
        each for each in folder.iterdir() if each.suffix in (".safetensors", ".bin", ".pt", ".pth")
    )
    if (folder / OPEN_CLIP_CONFIG).is_file():
        found = sorted(
            found, key=lambda each: (not each.name.startswith("open_clip"), each.suffix != ".safetensors")
        )[:1]
    if len(found) != 1:
        listed = f" but {len(found)} files of weights" if found else ""
        raise InputError(
            f'"{folder}" holds no config.json of a transformers model and no {OPEN_CLIP_CONFIG}{listed}.'
        )
    return found[0]


# What open_clip's configs may say: sizes, which the weights show too, and what matters only in training.
_PLAIN = {
    "image_size",
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "patch_dropout",
    "output_tokens",
}
_PLAIN |= {
    "context_length",
    "vocab_size",
    "heads",
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
}
_PLAIN |= {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "pad_id"}


def _require_plain(path: Path, model: Mapping[str, Any]) -> None:
    """Refuses options of open_clip's config that would change what is computed."""
    for part in (model, model.get("vision_cfg", {}), model.get("text_cfg", {})):
        for key, value in part.items():
            if key not in _PLAIN and value not in (None, False, 0, "tok", "argmax", "learnable"):
                raise InputError(
                    f"{OPEN_CLIP_CONFIG} beside {path} asks for {key} {value!r}, which is not supported."
                )


def _activation_of(
    path: Path, kind: str, state: Mapping[str, Tensor], model: Mapping[str, Any]
) -> Activation:
    """Activation of the transformer blocks, which weights do not show: from who wrote the file, a config, or
    the file's name."""
    if kind == "torchscript" or "input_resolution" in state:
        return "quick_gelu"
    if model:
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    if re.search("quick_?gelu", path.name.lower()):
        return "quick_gelu"
    raise InputError(
        f"{path} does not say whether its activation is GELU or QuickGELU, which changes every feature. "
        f"Write {path}:quick_gelu for weights of OpenAI, Meta or DFN, {path}:gelu for most others."
    )
