"""Every option of `adapt`, as frozen, keyword-only dataclasses; the docstring under a field is its help text
everywhere."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import tyro
from pydantic import Field

from zeroshift.config.few_shot import ShotsConfig
from zeroshift.config.methods import METHODS
from zeroshift.config.options import ModelName
from zeroshift.config.options import config_class as _config
from zeroshift.config.options import differences as differences
from zeroshift.config.options import to_dict as to_dict
from zeroshift.config.overrides import OptionPath, override, sections
from zeroshift.config.own import AdversarialConfig as AdversarialConfig
from zeroshift.config.own import AirConfig as AirConfig
from zeroshift.config.own import CdcConfig as CdcConfig
from zeroshift.config.own import OwnConfig as OwnConfig
from zeroshift.config.own import RssaConfig as RssaConfig
from zeroshift.config.own import SvlConfig as SvlConfig
from zeroshift.config.targets import Target, target_parts

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


@_config(section="mapper.network")
class MapperNetworkConfig:
    """The mapper: layers of one width."""

    hidden: Annotated[int, Field(ge=0)] = 0
    """Width of the mapper's hidden layers; 0 takes the style width."""
    depth: Annotated[int, Field(ge=1)] = 4
    """Layers of the mapper."""


@_config(section="mapper")
class MapperConfig:
    """Stage 1: learn the words. A mapper turns every style into the words of its own prompt; CoOp's are the
    same for all."""

    steps: Annotated[int, Field(ge=1)] = 300
    """Steps of stage 1."""
    batch: Annotated[int, Field(ge=2)] = 32
    """Pictures per step of stage 1. The contrastive loss tells the pictures of one batch apart, so at least
    2."""
    pictures: Annotated[int, Field(ge=0)] = 0
    """How many different pictures stage 1 sees, in whole batches: drawn once, then shown again in new orders,
    which saves their cost. 0: new ones at every step, as published."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate of the mapper (Adam, betas 0.9 and 0.999)."""
    context: str = ""
    """Words that the learned ones replace, and the text of the residual feature. Empty: the context that each
    CLIP brings."""
    words: Annotated[int, Field(ge=0)] = 0
    """How many words are learned; 0: as many as the context has tokens."""
    lambda_domain: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the domain regularisation. Small keeps more of the source, large approaches NADA's one
    direction."""
    lambda_source: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the source label's part of the domain regularisation."""
    prompt_init: Literal["random", "tokens"] = "random"
    """Where the words start: the mapper's random output (as published) or the context's own token vectors
    plus a small change."""
    mean: Literal["words", "label"] = "words"
    """Mean direction over all pictures (ipl only): that of the learned words, as published, or that of the
    labels, about which the words then only tell the pictures apart. Words drift in ways that have nothing to
    do with the target."""
    individual: Annotated[float, Field(ge=0)] = 1.0
    """Mean `label`: share of what is a picture's own in the direction of its words. Not all of it is about
    the domain; 0 leaves NADA's one direction."""
    network: MapperNetworkConfig = MapperNetworkConfig()
    """Size of the mapper."""


@_config(section="train.monitor")
class MonitorConfig:
    """Watching for collapse during stage 2, on the same few pictures all along. It never changes what is
    trained."""

    every: Annotated[int, Field(ge=0)] = 25
    """Steps between two records; the last step has one too. 0 turns the monitor off."""
    count: Annotated[int, Field(ge=2)] = 16
    """Pictures that are watched. Their latents belong to the seed of the run."""
    least_diversity: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the source's diversity below which a warning is given and a record cannot be the best. In the
    built-in world the true pictures of the plainest domains have 0.2, those of colourful ones 0.8 to 1."""
    least_nearest: Annotated[float, Field(ge=0)] = 0.5
    """Methods that learn from pictures against a discriminator: how far pictures must lie from the nearest
    shot, as a share of the distance from shot to shot, else a warning is given and a record cannot be the
    best. In the built-in world new true pictures have 0.8 to 1; repeated shots have 0."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Records in a row, none the best so far, after which the score has stopped rising."""
    least_gain: Annotated[float, Field(ge=0)] = 0.01
    """How far a record's score must lie above that of the best so far to become the best. Scores lie between
    0 and 1."""


@_config(section="train.diffusion")
class FinetuneConfig:
    """Stage 2 of a diffusion model: how pictures go to noise and back (DiffusionCLIP). Not used by generators
    with styles."""

    t0: Annotated[int, Field(ge=1)] = 500
    """Time, 1 to 999, to which pictures are made noisy. Larger allows larger changes of shape and keeps less
    of the picture."""
    invert_steps: Annotated[int, Field(ge=2)] = 40
    """Points of the time grid from a picture to its noise."""
    train_steps: Annotated[int, Field(ge=2)] = 6
    """Steps from noise to picture in training."""
    sample_steps: Annotated[int, Field(ge=2)] = 40
    """Steps from noise to picture wherever pictures are shown or measured."""
    num_pictures: Annotated[int, Field(ge=1)] = 50
    """Pictures to learn from, gone through again and again in the same order."""
    picture_folder: Path | None = None
    """Folder of pictures to learn from, the first by name; unset: pictures made by the source, from seeds of
    the run's own."""
    mode: Literal["through", "per-step"] = "through"
    """through: back-propagation through all steps of a picture, then one step of the optimiser. per-step: a
    step of the optimiser at every step of a picture, on the clean picture predicted there; it needs much less
    memory."""
    lr_growth: Annotated[float, Field(gt=0)] = 1.3
    """Factor on the learning rate after each round through the pictures."""
    checkpointing: bool = False
    """Mode through: keeps one picture per step and computes the rest again on the way back. Less memory, the
    same numbers."""
    backprop_steps: Annotated[int, Field(ge=0)] = 0
    """Mode through: how many of the last steps the gradient goes back through; 0: all, as published."""


@_config(section="train.views")
class ViewsConfig:
    """Views: CLIPs see every picture several times, changed at random, source and target alike. What they
    reward must then lie in the picture, not in one look at it."""

    count: Annotated[int, Field(ge=1), tyro.conf.arg(aliases=("--views",))] = 1
    """Views of every picture that each CLIP sees per step, in one call. 1: the picture itself, as
    published."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    """Factor on all that changes; flips become no more frequent than `flip`."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Size of what is seen: up to this much smaller or larger than the picture. 0: none."""
    shift: Annotated[float, Field(ge=0)] = 0.3
    """Shift to the side, and up or down, at most, in half sides of the picture. 0: none."""
    turn: Annotated[float, Field(ge=0)] = 0.3
    """Turn in either sense at most, in radians. 0: none."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance that left and right are exchanged. 0: none."""
    grain: Annotated[float, Field(ge=0)] = 0.05
    """Deviation of the noise that is added to pictures in [-1, 1]. 0: none."""


@_config(section="train.adaptive")
class AdaptiveConfig:
    """Adaptive selection of layers in stage 2, by generators with styles."""

    top_k: Annotated[int | None, Field(ge=1)] = None
    """Layers that adaptive selection frees; unset: two thirds of them."""
    every: Annotated[int, Field(ge=1)] = 1
    """Steps for which one adaptive selection holds. 1 is as published; 10 makes a step much cheaper."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Pictures per adaptive selection."""


@_config(section="train.parameters")
class ParametersConfig:
    """What moves in the layers that may move. Everything but `weights` leaves a file of kilobytes,
    `delta.safetensors`, beside the generator."""

    kind: Annotated[
        Literal["weights", "affine", "lowrank", "domain"], tyro.conf.arg(aliases=("--parameters",))
    ] = "weights"
    """weights: everything, as published. affine: the layers that turn w into styles (StyleDomain). lowrank: a
    change of low rank to every convolution. domain: one factor per input channel of every convolution
    (domain modulation). Diffusion models take weights and lowrank."""
    rank: Annotated[int, Field(ge=1)] = 4
    """lowrank: the rank of every change."""


@_config(section="train")
class TrainConfig:
    """Stage 2: move the generator along the directions of the words."""

    steps: Annotated[int, Field(ge=1), tyro.conf.arg(aliases=("--steps",))] = 300
    """Steps of stage 2."""
    batch: Annotated[int, Field(ge=1), tyro.conf.arg(aliases=("--batch",))] = 2
    """Pictures per step of stage 2."""
    lr: Annotated[float, Field(gt=0), tyro.conf.arg(aliases=("--lr",))] = 0.002
    """Learning rate before the published factor 4/5 (Adam, betas 0 and 0.99 ** 0.8)."""
    layers: Annotated[str, tyro.conf.arg(aliases=("--layers",))] = "adaptive"
    """What may move: `adaptive` (the layers that matter most to the target label), a phase (`all`, `shape`,
    `texture`, ...), or layer names separated by commas. `--dry-run` lists the names."""
    adaptive: AdaptiveConfig = AdaptiveConfig()
    """The adaptive selection of layers."""
    parameters: ParametersConfig = ParametersConfig()
    """What moves in these layers."""
    free_rgb: bool = False
    """Frees the to-RGB layers too, whatever was selected: needed where the target has other colours."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per step of the averaged weights, which are the result of the run."""
    until: Annotated[Literal["steps", "converged"], tyro.conf.arg(aliases=("--until",))] = "steps"
    """When stage 2 ends: after `steps`, or, at the latest then, once the monitor's score has stopped rising.
    The result is then the generator of the best record."""
    views: ViewsConfig = ViewsConfig()
    """Several views of every picture, in both stages."""
    monitor: MonitorConfig = MonitorConfig()
    """Watching for collapse."""
    diffusion: FinetuneConfig = FinetuneConfig()
    """What only diffusion models need; `lr` is then the rate itself (Adam, betas 0.9 and 0.999)."""


@_config(section="losses")
class LossConfig:
    """Weights of the losses of stage 2, within each CLIP."""

    direction: Annotated[float, Field(ge=0)] = 1.0
    """Angle between the picture's direction and the text's direction."""
    global_clip: Annotated[float, Field(ge=0)] = 0.0
    """Distance of the adapted picture to the target label (the global loss)."""
    manifold: Annotated[float, Field(ge=0)] = 0.0
    """Difference between the picture pair's similarity and the label pair's."""
    relation: Annotated[float, Field(ge=0)] = 0.0
    """Change in how alike the pictures of a batch are to each other, against collapse (HyperDomainNet); needs
    a batch of at least 2."""
    patch: Annotated[float, Field(ge=0)] = 0.0
    """Directions of the parts of one 510 px patch; needs pictures larger than 510 px."""
    texture: Annotated[float, Field(ge=0)] = 0.0
    """Distance, in the un-normalised features of `texture_clip`, of the adapted picture to
    `texture_image`."""
    texture_image: Path | None = None
    """Picture file whose texture is wanted; unset: every picture's own source, so that more of it stays."""
    texture_clip: ModelName = ""
    """CLIP of the texture loss, OpenAI's RN50 as published; empty: the first guiding one whose picture tower
    is convolutional."""
    pixel: Annotated[float, Field(ge=0)] = 0.0
    """Mean absolute difference between the adapted picture and its source (DiffusionCLIP's L1)."""
    raster: Annotated[float, Field(ge=0)] = 0.0
    """Mean square of the change that repeats from one block of 4 x 4 px to the next: a raster, which CLIPs do
    not mind."""
    identity: Annotated[float, Field(ge=0)] = 0.0
    """Distance between the faces of the adapted picture and of its source, as a face network sees them."""
    identity_network: ModelName = ""
    """Face network of the identity loss: model_ir_se50.pth; empty: the built-in world's own, on portraits."""


@_config(section="quirks")
class QuirkConfig:
    """Choices in which the authors' code differs from what is correct; the defaults are correct."""

    residual: Literal["corrected", "published", "none"] = "corrected"
    """Residual text of stage 2: context and label, or the bare context of the published code. `none`: no
    residual in either stage."""
    layer_map: Literal["exact", "published"] = "exact"
    """Layers that a latent stands for in adaptive selection: those it drives, or the published list, which is
    off by one."""
    noise: Literal["live", "independent", "buffers", "off"] = "live"
    """Noise in the pictures of training: fresh and shared by source and target, fresh for each (as
    published), the generator's registered maps, or none."""
    frozen_adam: Literal["skip", "decay"] = "skip"
    """Adam's treatment of tensors that are frozen in a step: skipped, or fed zero gradients as with PyTorch
    before 2.0."""
    resize: Literal["antialias", "noantialias"] = "antialias"
    """Filter that brings pictures to CLIP's size."""
    image_floor: Annotated[float, Field(ge=0)] = 0.05
    """Smallest divisor of an image direction. At the first step source equals target, and a tiny divisor
    would poison Adam's second moment for a thousand steps. 0 is as published. Above the length of usual
    directions (about 1) the loss asks for the whole way, not for the angle alone."""
    length: Literal["floor", "labels", "point"] = "floor"
    """How far pictures are to go. floor: `image_floor` is the smallest divisor, as published with 0. labels:
    in its place the distance of the two labels in each CLIP, by its own scale, so the whole way is asked for.
    point: the loss is the square distance to the point at that distance, so going too far costs too."""
    across: Annotated[float, Field(ge=0)] = 1.0
    """Length `point`: weight of what goes astray of the direction, beside what is missing along it. Small
    where directions are not to be trusted, as those of labels; 1 is the plain distance."""
    logit_scale_over_100: bool = False
    """Multiplies the cosine of the global loss by CLIP's logit scale over 100, as published; else the cosine
    itself."""
    identity: Literal["predicted", "detached"] = "predicted"
    """Picture whose face the identity loss sees in mode per-step: the predicted clean one, or, as published,
    the noisy one of the next step without gradient, by which nothing is learned."""


OFFICIAL_QUIRKS = QuirkConfig(
    residual="published",
    layer_map="published",
    noise="independent",
    frozen_adam="decay",
    resize="noantialias",
    image_floor=0.0,
    length="floor",
    logit_scale_over_100=True,
    identity="detached",
)
"""The bundle behind `compat="official"`."""


@_config(section="run")
class RunConfig:
    """How the run is carried out and recorded."""

    recipe: str = ""
    """Name of the recipe that the values came from."""
    out: Path | None = None
    """Run folder; unset: runs/METHOD-TARGET-seedSEED. The same command again resumes."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every draw: the same seed, options and thread count give the same weights, bit for bit on a
    CPU."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the heavy parts; bf16 is for GPUs that have it."""
    log_every: Annotated[int, Field(ge=1)] = 1
    """Steps between lines of metrics.jsonl."""
    grid_every: Annotated[int, Field(ge=0)] = 50
    """Steps of stage 2 between sample grids; 0 draws none."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Steps between checkpoints."""
    samples: Annotated[int, Field(ge=1)] = 8
    """Pictures in a sample grid, of the seeds 0, 1, 2, ..."""
    truncation: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Truncation of the sample grids: 1 is the full variety, 0 the average picture."""
    tensorboard: bool = False
    """Writes TensorBoard scalars into the run folder too."""


@_config
class AdaptConfig:
    """One adaptation: a source generator, two labels, a method, and how to run it."""

    target: Target = ""
    """Label of the domain to move to, such as "pencil sketch"; or several with weights, whose directions are
    mixed: "pencil sketch:0.6" zombie:0.4. Where pictures say it (--pictures), some methods need no words."""
    source: str = "photo"
    """Label of what the source generator makes: "photo" for changes of style, "human" for changes of
    identity."""
    method: MethodName = "ipl"
    """`ipl`: every picture gets its own direction, from its own learned words. `coop`: one direction for all,
    from words that are learned once. `nada`: one direction for all, from the labels. `diffusionclip`: NADA's
    direction by the published training procedure for diffusion models. `air`: NADA's direction, and from half
    of the steps on that from anchors on the way. `svl`: a spread of directions, from variations of the target
    text. `captions`: the bound of ipl: each person's true captions in place of learned words, in worlds that
    have them. `tgan`: plain training on a few pictures against a discriminator, the control that collapses.
    `freezed`: the same, with the discriminator's blocks near the picture frozen. `ewc`: tgan with those
    weights held that matter to the source. `cr`: a discriminator that judges real pictures alike when they
    are moved. `bcr`: the same for real and made pictures. `zcr`: a discriminator that judges pictures of
    neighbouring latents alike, which the generator holds apart. `dag`: a discriminator that judges pictures
    under several transforms, with a head for each. `cdc`: patches are judged, whole pictures only around a
    few latents, and pictures keep their distances to each other. `rssa`: judged as in cdc, and what belongs
    together within and between pictures stays together. `adam`: filters that matter to the target are kept
    and modulated, all others move."""
    generator: ModelName = "portraits"
    """Source generator: a built-in name, a file, or a hub id."""
    clip: tuple[ModelName, ...] = ("portraits-clip-a", "portraits-clip-b")
    """CLIPs that guide: built-in names, folders, files, or hub ids. FILE:gelu or FILE:quick_gelu says a
    file's activation."""
    clip_weights: tuple[float, ...] = ()
    """One weight per CLIP; empty: 1 each."""
    mapper: MapperConfig = MapperConfig()
    """Stage 1 (ipl and coop)."""
    train: TrainConfig = TrainConfig()
    """Stage 2."""
    losses: LossConfig = LossConfig()
    """Weights of the losses of stage 2."""
    own: Annotated[OwnConfig, tyro.conf.arg(name="")] = OwnConfig()
    """What only some methods need."""
    quirks: QuirkConfig = QuirkConfig()
    """Correct or as published, one by one."""
    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = RunConfig()
    """How the run is carried out."""

    BUNDLES = {
        "compat": {
            "corrected": {},
            "official": {"quirks": OFFICIAL_QUIRKS, "own": {"adam": {"scrambled": True}}},
        }
    }
    """Values that one override chooses together: its name -> each choice -> what it overrides."""

    @pydantic.model_validator(mode="after")
    def _agree(self) -> "AdaptConfig":
        if problems := list(_conflicts(self)):
            raise ValueError("\n".join(problems))
        return self

    @property
    def folder(self) -> Path:
        """Run folder: `run.out`, or a name made of method, target and seed."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.target_name.lower()).strip("-") or "target"
        usual = Path("runs") / f"{self.method}-{slug}-seed{self.run.seed}"
        return usual if self.run.out is None else self.run.out

    @property
    def shots(self) -> ShotsConfig:
        """Pictures of the target."""
        return self.own.shots

    @property
    def target_name(self) -> str:
        """What people call the target: its label, or where it has none the name of the folder of its
        pictures."""
        if self.target.strip() or self.shots.folder is None:
            return self.target
        return self.shots.folder.absolute().name

    @property
    def learns_words(self) -> bool:
        """Whether the method has a stage 1."""
        return METHODS[self.method].learns_words

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per CLIP."""
        return self.clip_weights or (1.0,) * len(self.clip)


def configure(
    config: AdaptConfig | None = None, /, *layers: Mapping[str, Any], **overrides: Any
) -> AdaptConfig:
    """Config with the overrides in place and everything checked at once; see `overrides.override` for how
    options are named. `compat="official"` chooses every quirk of the authors' code.
    """
    return override(AdaptConfig if config is None else config, *layers, overrides)


def from_dict(tree: Mapping[str, Any]) -> AdaptConfig:
    """Config from plain values, also those that earlier versions wrote (`MOVED`); what they lack has its
    default. Every problem of every section in one InputError."""
    return AdaptConfig(**_renamed(tree))


MOVED: dict[OptionPath, OptionPath] = {
    ("out",): ("run", "out"),
    ("mapper", "hidden"): ("mapper", "network", "hidden"),
    ("mapper", "depth"): ("mapper", "network", "depth"),
    ("train", "top_k"): ("train", "adaptive", "top_k"),
    ("train", "select_every"): ("train", "adaptive", "every"),
    ("train", "select_batch"): ("train", "adaptive", "batch"),
}
"""Options that had other names in run folders of earlier versions: the old name -> the new one."""


def _renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a config with the moved ones under their new names."""
    made = {name: dict(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    for (*old, last), (*new, name) in MOVED.items():
        place = functools.reduce(lambda at, part: at.get(part, {}), old, made)
        if last in place:
            value = place.pop(last)
            functools.reduce(lambda at, part: at.setdefault(part, {}), new, made)[name] = value
    return made


def placeless(config: AdaptConfig) -> dict[str, Any]:
    """Config as plain values that are the same wherever its run folder lies: what records hold."""
    tree = to_dict(config)
    tree["run"]["out"] = None
    return tree


SECTIONS = sections(AdaptConfig)
"""The sections of AdaptConfig."""


def _unseen(config: AdaptConfig) -> list[str]:
    """What is wrong with what CLIPs are to see and compare."""
    problems: list[str] = []
    if config.losses.relation and config.train.batch < 2:
        problems.append(
            "losses.relation compares the pictures of a batch, and train.batch is 1; set it to 2 or more, or "
            "losses.relation to 0."
        )
    views = config.train.views
    if views.zoom * views.strength >= 1:
        problems.append(
            f"train.views.zoom times strength is {views.zoom * views.strength:g}, by which a view may shrink "
            "to nothing; keep it below 1."
        )
    return problems


def _targetless(config: AdaptConfig) -> list[str]:
    """What is wrong with what names the target, or with what the method makes of it."""
    method, shots = config.method, METHODS[config.method].shots
    alone = ", ".join(name for name, each in METHODS.items() if each.shots in ("instead", "needed"))
    if config.shots.folder is None:
        if shots == "needed":
            return [
                f"method {method} learns from pictures of the target; give a folder of them (--pictures)."
            ]
        or_pictures = ", or pictures of it (--pictures FOLDER)" if shots == "instead" else ""
        words = f"target is empty; give the domain in words, such as 'pencil sketch'{or_pictures}."
        return [] if config.target.strip() else [words]
    if shots == "none":
        beside = ", ".join(name for name, each in METHODS.items() if each.shots != "none")
        return [f"method {method} takes no pictures of the target; leave --pictures out, or use {beside}."]
    if shots == "beside" and not config.target.strip():
        return [
            f"method {method} takes pictures beside words of the target; give --target too, or use {alone}."
        ]
    textual = [name for name in ("manifold", "patch") if getattr(config.losses, name)]
    if textual and not config.target.strip():
        return [f"losses.{textual[0]} compares with words of the target; give --target, or set it to 0."]
    return []


def _conflicts(config: AdaptConfig) -> list[str]:
    """What is wrong with the values taken together, one sentence each."""
    problems = _unseen(config) + _targetless(config)
    if not config.source.strip():
        problems.append("source is empty; give the domain in words, such as 'photo' or 'person'.")
    labels = [part.label for part in target_parts(config.target)]
    if same := [each for each in labels if each.strip().lower() == config.source.strip().lower() != ""]:
        problems.append(
            f"source and target are both {same[0]!r}, so there is no direction; change one of them."
        )
    if not config.generator.strip():
        problems.append("generator is empty; give a built-in name such as 'portraits', a file, or a hub id.")
    if not config.clip or any(not name.strip() for name in config.clip):
        problems.append(f"clip must name at least one CLIP and no empty name, got {list(config.clip)}.")
    if config.clip_weights and len(config.clip_weights) != len(config.clip):
        problems.append(
            f"clip_weights has {len(config.clip_weights)} for {len(config.clip)} CLIPs; give each one, or "
            "none."
        )
    if config.clip_weights and (min(config.clip_weights) < 0 or max(config.clip_weights) == 0):
        problems.append(f"clip_weights must not be negative and not all 0, got {list(config.clip_weights)}.")
    if config.train.diffusion.backprop_steps and config.train.diffusion.mode != "through":
        problems.append("train.diffusion.backprop_steps is for train.diffusion.mode 'through'; leave it 0.")
    if config.losses.identity_network and not config.losses.identity:
        problems.append("losses.identity_network needs the weight losses.identity above 0.")
    if not any(value for value in to_dict(config.losses).values() if isinstance(value, float)):
        problems.append(
            "all weights of losses are 0, so nothing would be learned; set losses.direction to 1."
        )
    if not config.losses.texture and (config.losses.texture_clip or config.losses.texture_image):
        problems.append("losses.texture_clip and texture_image need the weight losses.texture above 0.")
    if 0 < config.mapper.pictures < config.mapper.batch:
        problems.append(
            f"mapper.pictures is {config.mapper.pictures}, less than one batch of {config.mapper.batch}; "
            "use 0 or more."
        )
    if config.train.layers != "adaptive" and config.train.adaptive.top_k is not None:
        problems.append(
            f"train.adaptive.top_k is {config.train.adaptive.top_k} but train.layers is "
            f"{config.train.layers!r}; it needs 'adaptive'."
        )
    if not config.train.layers.strip():
        problems.append("train.layers is empty; use 'adaptive', a phase, or layer names separated by commas.")
    if config.train.until == "converged" and not config.train.monitor.every:
        problems.append(
            "train.until is 'converged' but train.monitor.every is 0, so nothing is watched; set it to 25."
        )
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.run.device):
        problems.append(f"device must be auto, cpu, mps, cuda or cuda:N, got {config.run.device!r}.")
    return problems
