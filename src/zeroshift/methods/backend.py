"""What a zero-shot method needs of a kind of generator: codes, pictures, what may move, and the optimiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import Precision
from zeroshift.errors import InputError
from zeroshift.methods.guidance import ClipObjective
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.parameters import reparametrise
from zeroshift.shapes import Feature, Latent, Picture, UnitFeature
from zeroshift.training.loop import Progress, StepLog


@dataclass(kw_only=True)
class Given:
    """What a caller gives instead of having it drawn or loaded; every part is optional.

    Latents are (steps, B, Z); `pictures` are those that a diffusion model learns from. Weights are state
    dicts. Given CLIPs are moved to the device and type of the run. `world` names the world
    that a given generator belongs to.
    """

    generator: Any = None
    clips: Sequence[ClipModel] | None = None
    discriminator: StyleGAN2Discriminator | None = None
    stage1_z: Tensor | None = None
    stage2_z: Tensor | None = None
    select_z: Tensor | None = None
    pictures: Tensor | None = None
    mapper: Mapping[str, Tensor] | None = None
    target: Mapping[str, Tensor] | None = None
    ema: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.float32
    world: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What every part of a run shares."""

    config: AdaptConfig
    given: Given
    device: torch.device
    precision: Precision
    step_log: StepLog
    progress: Progress
    require_finite: Callable[[Tensor], None]
    """RunError where a loss is no number."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and pictures."""
        return self.given.dtype


class Backend(ABC):
    """A zero-shot run's view of its source and target generator.

    A picture has a code, from which its words are learned: its style, or where the generator has none another
    vector. The codes of a step are whatever the backend's own methods take.
    """

    def __init__(self, surroundings: Surroundings, source: Any, target: Any, average: Any) -> None:
        """`average`: the running average of the target. InputError for options that do not fit the
        generator."""
        self.surroundings = surroundings
        self.config = surroundings.config
        self.given = surroundings.given
        self.device = surroundings.device
        self.dtype = surroundings.dtype
        self.precision = surroundings.precision
        self.step_log = surroundings.step_log
        self.source = source
        self.target = target
        self.average = average
        self.movable: list[str] = []
        """Names of all parameters that may move at any step of stage 2."""
        self.moving: tuple[str, ...] = ()
        """Names of the layers that the current step may move."""

    # 1. Before the first step.

    def parameters_of(self, weights: list[str]) -> list[str]:
        """Names of the parameters that move where these weights of the target may: the weights themselves, or
        the small parameters that the run asks for, which the target and its average then have."""
        options = self.config.train.parameters
        if options.kind != "weights" and (self.given.target is not None or self.given.ema is not None):
            raise InputError(
                f"train.parameters.kind {options.kind} begins at the source, but other weights to begin at "
                "were given; leave them out, or use kind weights."
            )
        seed = self.config.run.seed
        reparametrise(self.average, options.kind, weights, rank=options.rank, seed=seed)
        return reparametrise(self.target, options.kind, weights, rank=options.rank, seed=seed)

    @abstractmethod
    def code_width(self, clip: ClipObjective) -> int:
        """Width of the codes that the mapper's head for a CLIP takes."""

    @abstractmethod
    def optimiser(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of stage 2, as published."""

    def prepare(self, clips: Sequence[ClipObjective]) -> None:
        """Work before the first step, once the run folder is held."""
        return None

    def record(self) -> dict[str, Any]:
        """Further entries of environment.json."""
        return {}

    # 2. Parts of a step.

    @abstractmethod
    def source_features(self, step: int, clips: Sequence[ClipObjective]) -> tuple[Any, list[UnitFeature]]:
        """Codes of a step of stage 1, and the unit features BE of their source pictures for every CLIP."""

    @abstractmethod
    def codes(self, step: int) -> Any:
        """Codes of the pictures of a step of stage 2."""

    def latents(self, codes: Any) -> Latent:
        """Noise BZ, on the CPU, from which codes of stage 2 or of the monitor were drawn. A method that asks
        for it has a row for these generators only."""
        raise NotImplementedError(f"a generator of kind {self.source.kind} draws no latents")

    @abstractmethod
    def free_layers(self, step: int, clips: Sequence[ClipObjective]) -> None:
        """Lets those weights move that this step of stage 2 may move."""

    @abstractmethod
    def pictures(self, generator: Any, codes: Any, step: int) -> Picture:
        """Pictures BCHW of the codes of a step of stage 2, by source or target."""

    def encode_source(self, clips: Sequence[ClipObjective], pictures: Picture, step: int) -> list[Feature]:
        """For every CLIP its features BE, un-normalised, of the source's pictures of a step of stage 2, as
        they are."""
        return [clip.encode_image(pictures) for clip in clips]

    def faces(self, pictures: Picture) -> Picture:
        """The target's pictures as the identity loss takes them."""
        return pictures

    def learning_rate(self, step: int) -> float | None:
        """Learning rate of a step of stage 2; None where it stays the optimiser's."""
        return None

    @abstractmethod
    def most_at_once(self) -> int:
        """Pictures of the target that stage 2 differentiates at a time."""

    # 3. What goes on from step to step.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that a checkpoint holds beside weights and optimisers."""
        return {}, {}

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with the `state` of a checkpoint."""
        return None

    # 4. Pictures beside the training.

    @abstractmethod
    def monitor_codes(self, count: int, clips: Sequence[ClipObjective]) -> Any:
        """Codes of the pictures that the monitor watches, the same whenever it is asked."""

    @abstractmethod
    def monitor_pictures(self, generator: Any, codes: Any) -> Picture:
        """Watched pictures BCHW, by the source or by another generator."""

    @abstractmethod
    def fixed_pictures(self, generator: Any, count: int, truncation: float = 1.0) -> Iterator[Picture]:
        """Pictures BCHW, in parts, of `count` codes that are the same whenever and of whatever generator they
        are asked: with gradient one by one, where gradients are on. A diffusion model has no more than it
        learns from, and no truncation."""

    @property
    @abstractmethod
    def mean_count(self) -> int:
        """Over how many pictures means over the source's pictures are taken, where nobody asks for others."""

    @abstractmethod
    def mean_pictures(self, count: int) -> Iterator[tuple[Picture, Tensor | None]]:
        """As many pictures BCHW of the source, in parts, for means over its pictures, and their styles BS
        where it has some."""

    def mean_code(self) -> Tensor:
        """Mean style S of the source over many more than these, where it has styles."""
        raise NotImplementedError(f"a generator of kind {self.source.kind} has no styles")

    def many_codes(self, count: int, clips: Sequence[ClipObjective]) -> Any:
        """Codes of about as many pictures, for means over pictures."""
        return self.monitor_codes(count, clips)

    @abstractmethod
    def sample_grid(self) -> Picture:
        """Pictures BCHW of a sample grid, by the averaged generator."""

    @abstractmethod
    def probe(self, clips: Sequence[ClipObjective]) -> Any:
        """Codes of one picture, by which the memory of a step is measured before a run."""

    def memory_tip(self, stage: int) -> str:
        """What to try where memory ran out."""
        section, batch = (
            ("mapper", self.config.mapper.batch) if stage == 1 else ("train", self.config.train.batch)
        )
        least = 2 if stage == 1 else 1
        if batch > least:
            return f"try {section}.batch {batch // 2}"
        if self.config.train.views.count > 1:
            return f"try train.views.count {self.config.train.views.count // 2}"
        return "try precision bf16 or a smaller generator"
