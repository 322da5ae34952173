"""What a weights file or folder is: architecture, parameters, average style, labels, and what cannot be used
and why.

And what this installation is: versions, devices, built-in models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshift import __version__
from zeroshift.errors import InputError, printable
from zeroshift.files.checkpoints import (
    DIFFUSION_FORMAT,
    DISCRIMINATOR_FORMAT,
    GENERATOR_FORMAT,
    AnyGenerator,
    about,
    generator_of,
    is_diffusers_folder,
    load_generator_file,
    our_config,
    read_settings,
)
from zeroshift.files.deltas import DELTA_FORMAT, Delta, delta_of
from zeroshift.files.formats import (
    DIFFUSION,
    FOREIGN,
    LAYOUTS,
    Layout,
    chosen,
    discriminator_state,
    generator_weights,
    recognise,
    tensorflow_networks,
    unprefixed,
)
from zeroshift.files.layouts import (
    LayoutError,
    State,
    check_shapes,
    discriminator_shapes,
    generator_shapes,
    infer_config,
    infer_discriminator_config,
)
from zeroshift.files.pickles import Content, flat_tensors, read_tensors
from zeroshift.files.registry import ASSETS, CLIPS, GENERATOR_FILES, GENERATORS, locate
from zeroshift.files.unpickle import Record
from zeroshift.models.parameters import MOVES
from zeroshift.models.stylegan2 import StyleGAN2Config

NOT_PARAMETERS = ("latent_avg", "noises.")
COMPRESSION = "compression."
LONGEST = 300
"""Characters of a metadata value that are shown."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `inspect` found. `use` says what the package does with it; `problems` what cannot be used, and
    why."""

    path: str
    kind: str
    what: str
    usable: bool = False
    use: str = ""
    architecture: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    average_style: dict[str, Any] | None = None
    parts: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        """The description as plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """The description in words, a few lines."""
        lines = [self.path, f"  {self.what}", f"  {self.use}" if self.use else ""]
        if self.architecture:
            lines += [
                "architecture",
                *(f"  {name:20} {_shown(value)}" for name, value in self.architecture.items()),
            ]
        if self.parameters is not None:
            lines.append(f"parameters             {self.parameters:,}")
        if self.average_style is not None:
            norm = self.average_style["norm"]
            lines.append(
                "average style          "
                + ("absent; computed when the file is read" if norm is None else f"norm {norm:.4g}")
            )
        for heading, rows in (("parts", self.parts), ("metadata", self.metadata)):
            lines += [heading, *(f"  {name:20} {value}" for name, value in rows.items())] if rows else []
        lines += ["cannot be used", *(f"  {problem}" for problem in self.problems)] if self.problems else []
        return "\n".join(line for line in lines if line)


def inspect(spec: str | Path) -> Description:
    """Description of a file, a folder, a built-in generator or a reference to the hub. InputError if it
    cannot be read.

    Nothing in a file is executed. The weights are only looked at, except that a CLIP or a diffusion model is
    loaded, to say whether it can be used.
    """
    path = Path(spec)
    facts = {}
    built_in = GENERATORS | CLIPS
    if str(spec) in built_in:
        path = ASSETS / built_in[str(spec)]
    elif not path.exists():
        path, facts = locate(spec)
    found = _folder(path) if path.is_dir() else _file(path, facts)
    return _clip(found, path) if found.kind == "clip" and found.usable else found


def _clip(found: Description, path: Path) -> Description:
    """What a CLIP is made of, or why it cannot be used: known for certain only once it is loaded."""
    from zeroshift.files.clips import load_clip_file, load_clip_folder

    try:
        clip = (load_clip_folder if path.is_dir() else load_clip_file)(path)
    except InputError as error:
        return replace(found, usable=False, use="", problems=[*found.problems, str(error)])
    tower = getattr(clip.model.vision_model, "config", None)
    architecture = {
        "picture tower": "ResNet of OpenAI" if tower is None else tower.model_type,
        "picture size": clip.resolution,
        "features": clip.embed_dim,
        "text width": clip.text_width,
        "text layers": clip.model.text_model.config.num_hidden_layers,
        "context length": clip.context_length,
        "words": type(clip.tokenizer).__name__,
        "template sentences": len(clip.templates.templates),
    }
    return replace(
        found, architecture=architecture, parameters=sum(each.numel() for each in clip.parameters())
    )


def _file(path: Path, facts: Mapping[str, str] | None = None) -> Description:
    content = read_tensors(path)
    with about(path):
        found = _described(path, content, facts or {})
    shown = {key: value for key, value in content.metadata.items() if key not in ("format", "config")}
    return replace(
        found, metadata={printable(key): printable(value, LONGEST) for key, value in shown.items()}
    )


def _described(path: Path, content: Content, facts: Mapping[str, str]) -> Description:
    ours = content.metadata.get("format", "")
    if ours in (GENERATOR_FORMAT, DISCRIMINATOR_FORMAT):
        make = _generator if ours == GENERATOR_FORMAT else _discriminator
        return make(path, "zeroshift", content.tree, our_config(content), {})
    if ours == DELTA_FORMAT:
        return _delta(path, delta_of(content))
    if ours == DIFFUSION_FORMAT:
        what = f"a diffusion model in {LAYOUTS['zeroshift']}"
        return _diffusion(
            path, "diffusion", what, lambda: generator_of(content), _num_parameters(content.tree)
        )
    if "facts" in content.metadata or "heads" in content.metadata:
        kind = "checkpoint" if "facts" in content.metadata else "words"
        what = (
            "the state of an unfinished run"
            if kind == "checkpoint"
            else "the mapper of a run, from styles to words"
        )
        return Description(
            path=str(path),
            kind=kind,
            what=f"{what}, written by Zeroshift",
            use="It belongs into its run folder.",
        )
    try:
        kind = recognise(content)
        if kind == "generator":
            weights = generator_weights(content)
            config = infer_config(weights.state, **weights.facts)
            return _generator(
                path, weights.layout, weights.state, config, _parts(content, weights.place), _encoded(content)
            )
        if kind in DIFFUSION:
            names = unprefixed(flat_tensors(chosen(content.tree)[1]))
            count = _num_parameters(names)
            found = _diffusion(path, kind, DIFFUSION[kind], lambda: generator_of(content, facts), count)
            labels = [_CLASSES] if "label_emb.weight" in names else []
            use = f"{found.use} {_UNSAID}" if found.usable else ""
            return replace(found, parts=_parts(content, ""), use=use, problems=[*found.problems, *labels])
        if kind == "discriminator":
            state = discriminator_state(content)
            layout = "tensorflow" if tensorflow_networks(content.tree) else "rosinality"
            return _discriminator(path, layout, state, infer_discriminator_config(state), {})
    except LayoutError as error:
        return Description(
            path=str(path), kind="unknown", what="weights that are not usable", problems=[f"the file {error}"]
        )
    return _foreign(path, content, kind)


def _foreign(path: Path, content: Content, kind: str) -> Description:
    """Weights that are no network of ours: what they are, if any program known here writes them."""
    state = unprefixed(flat_tensors(chosen(content.tree)[1]))
    known = kind in FOREIGN
    what, _, why = (
        FOREIGN[kind]
        if known
        else f"{_CONTAINERS[content.kind]} that no program known here writes; it {kind}"
    ).partition("; ")
    found = _DETAILS.get(kind, lambda state, tree: {})(state, content.tree)
    return Description(
        path=str(path),
        kind=kind if known else "unknown",
        what=what,
        use=_USES.get(kind, ""),
        usable=kind in _USES,
        architecture={name: value for name, value in found.items() if value is not None},
        parameters=_num_parameters(state),
        parts=_parts(content, ""),
        problems=[] if kind in _USES else [why],
    )


def _generator(
    path: Path,
    layout: Layout,
    state: State,
    config: StyleGAN2Config,
    parts: dict[str, str],
    problems: Sequence[str] = (),
) -> Description:
    average = state.get("latent_avg")
    problems = list(problems)
    norm = None if average is None else average.double().norm().item()
    if config.num_classes:
        problems.append(
            f"its {config.num_classes} classes together: choose one with for_class() before adapting it"
        )
    usable = True
    shapes = generator_shapes(config)
    try:
        check_shapes(state, shapes, [name for name in shapes if name.startswith(NOT_PARAMETERS)])
    except LayoutError as error:
        usable = False
        problems = [f"the file {error}", *problems]
    architecture = {
        name: value for name, value in asdict(config).items() if value and not name.startswith("channel_")
    }
    noise = "in the file" if "noises.noise_0" in state else "absent; drawn from a fixed seed"
    return Description(
        path=str(path),
        kind="generator",
        what=f"a StyleGAN2 generator in {LAYOUTS[layout]}",
        usable=usable,
        use="Use it with --generator." if usable else "",
        architecture={**architecture, "channels": _channels(config), "noise_maps": noise},
        parameters=_num_parameters(
            {
                name: value
                for name, value in state.items()
                if not name.startswith((*NOT_PARAMETERS, COMPRESSION))
            }
        ),
        average_style={"present": average is not None, "norm": norm},
        parts=parts,
        problems=problems,
    )


def _delta(path: Path, delta: Delta) -> Description:
    weights = list(dict.fromkeys(name.rpartition(".")[0] for name in delta.tensors))
    return Description(
        path=str(path),
        kind="delta",
        what=f"what a run changed in its source generator: {MOVES[delta.kind]} (parameters {delta.kind})",
        usable=True,
        use=f"Use it as a generator; it needs its source {printable(delta.source_name)} "
        f"(sha256 {printable(delta.source_sha256[:12])}...).",
        architecture={"parameters": delta.kind, "changed weights": len(weights)},
        parameters=_num_parameters(delta.tensors),
    )


def _discriminator(
    path: Path, layout: Layout, state: State, config: StyleGAN2Config, parts: dict[str, str]
) -> Description:
    problems = []
    try:
        check_shapes(state, discriminator_shapes(config))
    except LayoutError as error:
        problems.append(f"the file {error}")
    return Description(
        path=str(path),
        kind="discriminator",
        what=f"a StyleGAN2 discriminator in {LAYOUTS[layout]}",
        usable=not problems,
        use="It judges pictures while a generator is trained; it draws none.",
        architecture={"size": config.size, "channels": _channels(config)},
        parameters=_num_parameters(state),
        parts=parts,
        problems=problems,
    )


def _channels(config: StyleGAN2Config) -> dict[str, int]:
    """Channels by side in pixels."""
    return {str(4 << level): config.channels(4 << level) for level in range(config.size.bit_length() - 2)}


def _shown(value: Any) -> str:
    """A value of the architecture in words."""
    return (
        ", ".join(f"{count} at {side} px" for side, count in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def _folder(path: Path) -> Description:
    settings = read_settings(path)
    if is_diffusers_folder(path):
        return _diffusion(path, "diffusers", DIFFUSION["diffusers"], lambda: load_generator_file(path)[0])
    if "model_type" in settings or "architectures" in settings:
        named = printable(settings.get("model_type") or settings.get("architectures"))
        if re.search("clip|siglip|vision-text", named.lower()):
            return Description(
                path=str(path), kind="clip", what=f"a CLIP folder ({named})", usable=True, use=_USES["clip"]
            )
        return Description(
            path=str(path),
            kind="unknown",
            what=f"a model folder of transformers ({named})",
            problems=["no use for it"],
        )
    if (path / "open_clip_config.json").exists():
        return Description(
            path=str(path), kind="clip", what="a CLIP folder of open_clip", usable=True, use=_USES["clip"]
        )
    if names := [name for name in GENERATOR_FILES if (path / name).is_file()]:
        return replace(_file(path / names[0]), path=str(path / names[0]))
    if (path / "status.json").is_file():
        raise InputError(
            f"{path} is a run without an adapted generator yet; run the command that began it again."
        )
    raise InputError(
        f"the folder {path} holds no model: neither config.json nor {', '.join(GENERATOR_FILES)}. Give a "
        "file in it."
    )


def _diffusion(
    path: Path, kind: str, what: str, load: Callable[[], AnyGenerator], count: int | None = None
) -> Description:
    """A diffusion model, or why it cannot be used: known for certain only once it is loaded."""
    try:
        made = load()
    except InputError as error:
        text = f"the file {error}" if isinstance(error, LayoutError) else str(error)
        return Description(path=str(path), kind=kind, what=what, parameters=count, problems=[text])
    assert made.kind == "diffusion"
    options = made.config.unet
    size = made.image_size // made.patch
    widths = options["block_out_channels"]
    blocks = options["down_block_types"]
    architecture = {
        "size": made.image_size,
        "colours": made.channels,
        "channels": {str(size >> level): width for level, width in enumerate(widths)},
        "blocks_per_level": options["layers_per_block"],
        "attention": ", ".join(f"{size >> level} px" for level, each in enumerate(blocks) if "Attn" in each)
        or "in the middle",
        "heads": options.get("num_heads") or f"of {options['attention_head_dim'] or 'all'} channels",
        "predicts": "noise" if made.prediction == "epsilon" else "velocity",
        "variance": made.variance,
        "times": made.num_steps,
        **({"block_of_pixels": made.patch} if made.patch > 1 else {}),
    }
    parameters = sum(value.numel() for value in made.parameters())
    use = "Use it with --generator."
    return Description(
        path=str(path),
        kind=kind,
        what=what,
        usable=True,
        use=use,
        architecture=architecture,
        parameters=parameters,
    )


def _parts(content: Content, chosen: str) -> dict[str, str]:
    """Top-level entries of a checkpoint, in a few words each."""
    if tensorflow_networks(content.tree):
        return {"Gs": "used", "G, D": "the training state, not used"}
    if not isinstance(content.tree, Mapping) or not any(
        isinstance(value, Mapping | Record) for value in content.tree.values()
    ):
        return {}
    parts = {}
    for key, value in content.tree.items():
        count = len(flat_tensors(value))
        if count:
            inside = f"{count} tensors"
        elif isinstance(value, Record):
            inside = printable(value.class_name, 40)
        else:
            inside = "empty" if value is None else printable(type(value).__name__, 40)
        role = _ROLES.get(str(key), "not used") if chosen else ""
        if key == chosen or key == "latent_avg":
            role = "used"
        parts[printable(key, 40)] = f"{inside}, {role}" if role else inside
    return parts


def _encoded(content: Content) -> list[str]:
    """What is said of an inversion encoder beside a generator."""
    found = any(name.startswith("encoder.") for name in flat_tensors(chosen(content.tree)[1]))
    return ["the inversion encoder beside the generator: inversion is not supported"] if found else []


def _num_parameters(state: Mapping[str, Tensor]) -> int:
    kernels = (".kernel", "resample_filter")
    return sum(
        value.numel()
        for name, value in state.items()
        if value.is_floating_point() and not name.endswith(kernels)
    )


def _mapper_details(state: State, tree: Any) -> dict[str, Any]:
    shapes = [tuple(value.shape) for name, value in state.items() if name.endswith("weight")]
    return {"layers": len(shapes), "shapes": ", ".join(map(str, shapes[:12]))}


def _domain_details(state: State, tree: Any) -> dict[str, Any]:
    vectors = [value.numel() for name, value in state.items() if name.endswith("params_in")]
    options = tree if isinstance(tree, Mapping) else {}
    named = {
        key: printable(options[key])
        for key in ("model_type", "da_type", "patch_key")
        if isinstance(options.get(key), str)
    }
    return {**named, "vectors": len(vectors) or None, "numbers": sum(vectors) or None}


def _encoder_details(state: State, tree: Any) -> dict[str, Any]:
    styles = {name.split("styles.")[1].split(".")[0] for name in state if "styles." in name}
    return {
        "styles": len(styles) or None,
        "input channels": _length(state, "encoder.input_layer.0.weight", 1),
    }


def _length(state: State, name: str, dimension: int) -> int | None:
    value = state.get(name, torch.empty(0))
    return int(value.shape[dimension]) if value.dim() > dimension and value.numel() else None


_DETAILS: dict[str, Callable[[State, Any], dict[str, Any]]] = {
    "ipl mapper": _mapper_details,
    "hyperdomainnet": _domain_details,
    "encoder": _encoder_details,
}

_UNSAID = (
    "What it does not say is taken as published; say otherwise behind its name: "
    "FILE:size=512,heads=4,schedule=cosine."
)
_CLASSES = "its classes: it draws without a label, as DiffusionCLIP has it"
_USES = {"clip": "Use it with --clip."}

_ROLES = {
    "g": "the generator without averaging, not used",
    "d": "its discriminator",
    "G": "the generator without averaging, not used",
}
_ROLES |= {
    "D": "its discriminator",
    "g_optim": "state of an optimiser, not used",
    "d_optim": "state of an optimiser, not used",
}

_CONTAINERS = {
    "safetensors": "a safetensors file",
    "torch": "a torch file",
    "torchscript": "a TorchScript file",
    "pickle": "a pickle",
}


def examine() -> dict[str, dict[str, str]]:
    """Versions, devices and built-in models of this installation."""
    import os
    import platform
    from importlib.metadata import version

    assets = {name: ASSETS / place for name, place in {**GENERATORS, **CLIPS}.items()}
    packages = ("torch", "transformers", "diffusers", "safetensors", "huggingface_hub", "pydantic", "tyro")
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": {
            "zeroshift": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "devices": {
            "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used",
            "cuda": ", ".join(cuda) or "none",
            "mps": "yes" if torch.backends.mps.is_available() else "none",
        },
        "built-in models": {name: str(path) if path.exists() else "missing" for name, path in assets.items()},
    }
