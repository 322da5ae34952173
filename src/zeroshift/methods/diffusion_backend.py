"""A zero-shot run's diffusion model: pictures and their noise, fine-tuning through the steps back, codes for
the words.

Kim et al., DiffusionCLIP (CVPR 2022), and its code. With learned words it is what IPL's paper calls Diff-IPL:
the fixed direction gives way to one for each picture. A diffusion model has no styles, so the code of a
picture, from which its words are learned, is what each guiding CLIP sees in it (ADR 0018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.clip.features import normalize
from zeroshift.errors import InputError
from zeroshift.measure.picture_sets import read_folder
from zeroshift.methods.backend import Backend, Surroundings
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.views import draw_views, mean_feature
from zeroshift.models import layers
from zeroshift.models.diffusion import generation_times
from zeroshift.models.seeds import rng
from zeroshift.pictures.inversion import Route, inverted, sampled
from zeroshift.shapes import Feature, Picture, UnitFeature

PART = {"cpu": 4}
"""Pictures generated at a time without gradient, by kind of device."""


@dataclass(frozen=True)
class InvertedSet:
    """Pictures with all that is known of them from the start."""

    pictures: Picture
    """BCHW in [-1, 1]."""
    noisy: Tensor
    """Their latents BCHW at time t0, by the source."""
    features: list[UnitFeature]
    """For every guiding CLIP what stage 1 ties words to: its unit features BE of them, or with several views
    the means of these."""
    codes: list[Tensor]
    """For every guiding CLIP the codes from which words are learned: its unit features BE of the plain
    pictures (ADR 0018)."""


@dataclass(frozen=True)
class Visit:
    """Where a step of stage 2 stands: one picture set is visited again and again."""

    round_number: int
    """Round through the pictures, from 0."""
    denoising: int
    """Step of denoising within the visit, from 0; always 0 where the gradient goes through all of them."""
    rows: slice
    """Pictures of the visit."""


class DiffusionBackend(Backend):
    """Learns from a fixed set of pictures. A step of stage 2 is one of the optimiser, in mode per-step also
    one of denoising."""

    def __init__(self, surroundings: Surroundings, source: Any, target: Any, average: Any) -> None:
        super().__init__(surroundings, source, target, average)
        self.tuning = self.config.train.diffusion
        self.found = self._found()
        """Pictures that are given, or lie in the folder that is named; None where the source makes them."""
        self.learned_set: InvertedSet | None = None
        self.monitor_set: InvertedSet | None = None
        self.next_x: Tensor | None = None
        """Mode per-step: the noisy pictures of the next step of denoising."""
        self.grid_start: Tensor | None = None
        """Pictures of a sample grid at time t0, which only the source makes."""
        self._check()
        self.movable = self.parameters_of(layers.select(self.target, self.config.train.layers))

    # 1. Before the first step.

    def _check(self) -> None:
        """Refuses what a diffusion model cannot do."""
        if self.config.train.layers == "adaptive":
            raise InputError(
                f"{self.config.generator} is a diffusion model: it has no latent per layer by which layers "
                "could be "
                "selected. Use a recipe for diffusion models (--recipe diffusionclip), or --layers all."
            )
        last = self.source.num_steps - 1
        if self.tuning.t0 > last:
            raise InputError(f"train.diffusion.t0 must be a time between 1 and {last}, got {self.tuning.t0}.")
        count = self.tuning.num_pictures if self.found is None else len(self.found)
        if self.config.learns_words and self.config.mapper.batch > count:
            raise InputError(
                f"mapper.batch is {self.config.mapper.batch}, but there are {count} pictures to learn from; "
                "lower it, or raise train.diffusion.num_pictures."
            )

    def _found(self) -> Picture | None:
        pictures = self.given.pictures
        folder = self.tuning.picture_folder
        if pictures is None and folder is not None:
            pictures = read_folder(folder, self.source.image_size).part(slice(0, self.tuning.num_pictures))
        return None if pictures is None else pictures.to(self.device, self.dtype)

    def record(self) -> dict[str, Any]:
        """Hash of the pictures that are given."""
        if self.found is None:
            return {}
        return {"pictures": hashlib.sha256(self.found.cpu().numpy().tobytes()).hexdigest()}

    def code_width(self, clip: ClipObjective) -> int:
        """Width of a CLIP's features."""
        return clip.width

    def optimiser(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam as published; fused where torch has that, a third of the time on a CPU."""
        return torch.optim.Adam(weights, lr=self.config.train.lr, fused=self.device.type in ("cpu", "cuda"))

    def prepare(self, clips: Sequence[ClipObjective]) -> None:
        """Makes the pictures to learn from, where they are not given, and inverts them."""
        if self.found is None:
            self.learned_set = self._made_set("train", self.tuning.num_pictures, clips)
        else:
            self.learned_set = self._inverted_set(self.found, clips)

    def _made_set(self, label: str, count: int, clips: Sequence[ClipObjective]) -> InvertedSet:
        """Pictures that the source makes of seeds of the run's own."""
        return self._inverted_set(self._made(label, count).to(self.device, self.dtype), clips)

    def _made(self, label: str, count: int) -> Picture:
        """As many pictures that the source makes, on the CPU."""
        draw = rng("pictures", self.config.run.seed, label)
        seeds = torch.randint(2**31, (count,), generator=draw).tolist()
        return sampled(self.source, seeds, self.tuning.sample_steps, self._tell)

    @torch.no_grad()
    def _inverted_set(self, pictures: Picture, clips: Sequence[ClipObjective]) -> InvertedSet:
        noisy = inverted(self.source, pictures, Route.of(self.tuning), self._tell)
        rows = pictures.split(1)
        codes = [torch.cat([normalize(clip.encode_image(row)) for row in rows]) for clip in clips]
        options = self.config.train.views
        if options.count == 1 or not self.config.learns_words:
            return InvertedSet(pictures, noisy, codes, codes)
        seed = self.config.run.seed
        views = [draw_views(options, row, seed, "stage1", 0, number) for number, row in enumerate(rows)]
        features = [
            torch.cat([mean_feature(clip.encode_image, *each) for each in zip(rows, views, strict=True)])
            for clip in clips
        ]
        return InvertedSet(pictures, noisy, features, codes)

    def _tell(self, what: str, done: int, total: int) -> None:
        self.surroundings.progress({"kind": "prepare", "what": what, "done": done, "total": total})

    @property
    def learned(self) -> InvertedSet:
        """The pictures that are learned from, once they are prepared."""
        assert self.learned_set is not None, "prepare() comes first"
        return self.learned_set

    # 2. Parts of a step.

    def visit(self, step: int) -> Visit:
        """Where a step of stage 2 stands."""
        steps = self.tuning.train_steps if self.tuning.mode == "per-step" else 1
        batch = self.config.train.batch
        number, denoising = divmod(step - 1, steps)
        visits = -(-len(self.learned.pictures) // batch)
        round_number, page = divmod(number, visits)
        return Visit(round_number, denoising, slice(page * batch, (page + 1) * batch))

    def source_features(
        self, step: int, clips: Sequence[ClipObjective]
    ) -> tuple[list[Tensor], list[UnitFeature]]:
        """Codes of a step of stage 1, and what CLIP sees; the pictures are shuffled anew in every round."""
        count = len(self.learned.pictures)
        batch = self.config.mapper.batch
        round_number, page = divmod(step - 1, count // batch)
        draw_order = rng("stage1 order", self.config.run.seed, round_number)
        rows = torch.randperm(count, generator=draw_order).to(self.device)[page * batch :][:batch]
        return [each[rows] for each in self.learned.codes], [each[rows] for each in self.learned.features]

    def codes(self, step: int) -> list[Tensor]:
        """Codes BE of the pictures of a step, for every CLIP."""
        rows = self.visit(step).rows
        return [each[rows] for each in self.learned.codes]

    def free_layers(self, step: int, clips: Sequence[ClipObjective]) -> None:
        """Lets the weights move that may move at all."""
        layers.free(self.target, self.movable)
        self.moving = layers.moving_layers(self.target, self.movable)
        self.step_log["chosen"] = ()

    def encode_source(self, clips: Sequence[ClipObjective], pictures: Picture, step: int) -> list[Feature]:
        """Features of the pictures of a step, which never change; those of unit length are kept."""
        rows = self.visit(step).rows
        return [each[rows] for each in self.learned.codes]

    def pictures(self, generator: Any, codes: Any, step: int) -> Picture:
        """Pictures of a step: the source's own; or those of another generator from their noise, in mode
        per-step the clean ones that it predicts there. Only the target goes on from there, so others come
        before it."""
        visit = self.visit(step)
        if generator is self.source:
            return self.learned.pictures[visit.rows]
        x = self.learned.noisy[visit.rows]
        if self.tuning.mode == "through":
            return self._through(generator, x)
        if visit.denoising and self.next_x is not None:
            x = self.next_x
        t, t_next = generation_times(self.tuning.t0, self.tuning.train_steps)[visit.denoising]
        with self.precision.autocast():
            eps = generator.predict_noise(x, t)
        if generator is self.target:
            self.next_x = generator.step(x, t, t_next, eps).detach()
            self.step_log["path"] = [self.next_x]
        return generator.clean(x, t, eps)

    def _through(self, generator: Any, x: Tensor) -> Picture:
        """Pictures by all steps, differentiable in the last ones."""
        tuning = self.tuning
        path: list[Tensor] = []
        differentiable = torch.is_grad_enabled()
        times = generation_times(tuning.t0, tuning.train_steps)
        free = {t for t, _ in times[-tuning.backprop_steps :]}

        def predict(x: Tensor, t: int) -> Tensor:
            path.append(x.detach())
            with torch.set_grad_enabled(differentiable and t in free):
                return generator.predict_noise(x, t)

        with self.precision.autocast():
            made = generator.generate(
                x, tuning.t0, tuning.train_steps, predict=predict, checkpointing=tuning.checkpointing
            )
        self.step_log["path"] = [*path[1 : tuning.train_steps], made.detach()]
        return made

    def faces(self, pictures: Picture) -> Picture:
        """The target's pictures as the identity loss takes them; as published, in mode per-step, noisy and
        without gradient."""
        detached = self.tuning.mode == "per-step" and self.config.quirks.identity == "detached"
        return self.next_x if detached and self.next_x is not None else pictures

    def learning_rate(self, step: int) -> float:
        """The rate of the round through the pictures."""
        rate = self.config.train.lr * self.tuning.lr_growth ** self.visit(step).round_number
        self.step_log["lr"] = rate
        return rate

    def most_at_once(self) -> int:
        """The batch of stage 2: nothing is selected here."""
        return self.config.train.batch

    # 3. What goes on from step to step.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The noisy pictures between two steps of mode per-step."""
        return ({} if self.next_x is None else {"x": self.next_x}), {"chosen": ()}

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with the noisy pictures."""
        self.next_x = tensors["x"].to(self.device) if "x" in tensors else None

    # 4. Pictures beside the training.

    def monitor_codes(self, count: int, clips: Sequence[ClipObjective]) -> list[Tensor]:
        """Codes of pictures that are not learned from."""
        if self.monitor_set is None or len(self.monitor_set.pictures) != count:
            self.monitor_set = self._made_set("monitor", count, clips)
        return self.monitor_set.codes

    def fixed_pictures(self, generator: Any, count: int, truncation: float = 1.0) -> Iterator[Picture]:
        """What a generator makes of the noise of the first pictures that are learned from, in the steps of
        training; of the source too, so that what inversion loses does not count as a change."""
        size = 1 if torch.is_grad_enabled() else PART.get(self.device.type, 16)
        for x in self.learned.noisy[:count].split(size):
            with self.precision.autocast():
                made = generator.generate(x, self.tuning.t0, self.tuning.train_steps)
            yield made

    @property
    def mean_count(self) -> int:
        """As many as are learned from: making others takes long."""
        return len(self.learned.pictures)

    def mean_pictures(self, count: int) -> Iterator[tuple[Picture, Tensor | None]]:
        """The pictures that are learned from, or where the source makes those, as many others as are asked
        for."""
        own = count == self.mean_count or self.found is not None
        pictures = self.learned.pictures if own else self._made("source mean", count)
        for part in pictures.split(PART.get(self.device.type, 16)):
            yield part.to(self.device, self.dtype), None

    def many_codes(self, count: int, clips: Sequence[ClipObjective]) -> list[Tensor]:
        """Codes of the pictures that are learned from; more would have to be made."""
        return self.learned.codes

    @torch.no_grad()
    def monitor_pictures(self, generator: Any, codes: Any) -> Picture:
        """The watched pictures, or what a generator makes of their noise in the steps of training."""
        assert self.monitor_set is not None, "monitor_codes() comes first"
        if generator is self.source:
            return self.monitor_set.pictures
        with self.precision.autocast():
            parts = self.monitor_set.noisy.split(PART.get(self.device.type, 16))
            made = [generator.generate(x, self.tuning.t0, self.tuning.train_steps) for x in parts]
        return torch.cat(made)

    @torch.no_grad()
    def sample_grid(self) -> Picture:
        """Pictures of seeds: by the source down to time t0, by the averaged generator from there on."""
        times = generation_times(self.source.num_steps - 1, self.tuning.sample_steps)
        x = self.grid_start
        if x is None:
            x = self.source.latents(range(self.config.run.samples)).to(self.device, self.dtype)
            for t, t_next in times:
                if t > self.tuning.t0:
                    x = self.source.step(x, t, t_next, self.source.predict_noise(x, t))
            self.grid_start = x
        for t, t_next in times:
            if t <= self.tuning.t0:
                x = self.average.step(x, t, t_next, self.average.predict_noise(x, t))
        return x.clamp(-1, 1).float().cpu()

    def probe(self, clips: Sequence[ClipObjective]) -> list[Tensor]:
        """Codes of one blank picture, which takes the place of the pictures to learn from."""
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        blank = torch.zeros(1, *self.source.picture_shape, **options)
        codes = [torch.ones(1, self.code_width(clip), **options) for clip in clips]
        self.learned_set = InvertedSet(blank, blank, codes, codes)
        return codes

    def memory_tip(self, stage: int) -> str:
        """Going through all steps of a picture takes most of the memory."""
        if stage == 1 or self.config.train.batch > 1:
            return super().memory_tip(stage)
        return "try train.diffusion.checkpointing, or train.diffusion.mode per-step"
