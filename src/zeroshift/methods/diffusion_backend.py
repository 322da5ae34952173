"""What `adapt` needs of a diffusion model: pictures and their noise, fine-tuning through the steps back,
codes for the words.

Kim et al., DiffusionCLIP (CVPR 2022), and its code. With learned words it is what IPL's paper calls Diff-IPL:
the fixed direction gives way to one for each picture. A diffusion model has no styles, so the code of a
picture, from which its words are learned, is what each guiding CLIP sees in it (ADR 0018).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.clip.features import normalize
from zeroshift.config.schema import FinetuneConfig
from zeroshift.errors import InputError
from zeroshift.measure.picture_sets import read_folder
from zeroshift.methods import losses
from zeroshift.methods.guidance import Guide
from zeroshift.models import layers as trainable
from zeroshift.models.diffusion import generation_times
from zeroshift.models.seeds import rng
from zeroshift.pictures.inversion import Route, inverted, sampled
from zeroshift.training.loop import Trainer

PART = {"cpu": 4}
"""Pictures generated at a time without gradient, by kind of device."""


@dataclass(frozen=True)
class Album:
    """Pictures with all that is known of them from the start."""

    pictures: Tensor
    """BCHW in [-1, 1]."""
    noisy: Tensor
    """Their latents BCHW at time t0, by the source."""
    features: list[Tensor]
    """For every guiding CLIP its unit features BE of them."""
    codes: list[Tensor]
    """For every guiding CLIP the codes from which words are learned: its features (ADR 0018)."""


class DiffusionTrainer(Trainer):
    """A run of a diffusion model. A step of stage 2 is one of the optimiser, in mode per-step also one of
    denoising."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.album: Album | None = None
        self.window: Album | None = None
        self.start: Tensor | None = None
        self.x: Tensor | None = None
        self.ahead: Tensor | None = None

    @property
    def tuning(self) -> FinetuneConfig:
        """The options of diffusion models."""
        return self.config.train.diffusion

    # 1. Before the first step.

    def check(self) -> None:
        """Refuses what a diffusion model cannot do, and reads the pictures that are given."""
        config, name = self.config, self.config.generator
        if config.method == "nada":
            raise InputError(
                f"{name} is a diffusion model, and method nada moves generators with styles; use "
                "diffusionclip, which has the "
                "same direction, or ipl."
            )
        if config.train.layers == "adaptive":
            raise InputError(
                f"{name} is a diffusion model: it has no latent per layer by which layers could be "
                "selected. Use a recipe for "
                "diffusion models (--recipe diffusionclip), or --layers all."
            )
        last = self.source.num_steps - 1
        if self.tuning.t0 > last:
            raise InputError(f"train.diffusion.t0 must be a time between 1 and {last}, got {self.tuning.t0}.")
        self.found = self._found()
        count = self.tuning.num_pictures if self.found is None else len(self.found)
        if config.learns_words and config.mapper.batch > count:
            raise InputError(
                f"mapper.batch is {config.mapper.batch}, but there are {count} pictures to learn from; "
                "lower it, or raise "
                "train.diffusion.num_pictures."
            )

    def load(self) -> None:
        """As for every run; the pictures of a folder are put on record too."""
        super().load()
        if self.found is not None:
            self.environment["pictures"] = hashlib.sha256(self.found.cpu().numpy().tobytes()).hexdigest()

    def _found(self) -> Tensor | None:
        """Pictures that are given, or lie in the folder that is named; None where the source makes them."""
        given, folder, count = self.given.pictures, self.tuning.picture_folder, self.tuning.num_pictures
        if given is None and folder is None:
            return None
        if given is None:
            assert folder is not None
            given = read_folder(folder, self.source.image_size).part(slice(0, count))
        return given.to(self.device, self.dtype)

    def prepare(self) -> None:
        """Makes the pictures to learn from, where they are not given, and inverts them."""
        self.album = (
            self._album("train", self.tuning.num_pictures) if self.found is None else self._filled(self.found)
        )

    def _album(self, label: str, count: int) -> Album:
        """Pictures that the source makes of seeds of the run's own."""
        seeds = torch.randint(
            2**31, (count,), generator=rng("pictures", self.config.run.seed, label)
        ).tolist()
        return self._filled(
            sampled(self.source, seeds, self.tuning.sample_steps, self._tell).to(self.device, self.dtype)
        )

    @torch.no_grad()
    def _filled(self, pictures: Tensor) -> Album:
        noisy = inverted(self.source, pictures, Route.of(self.tuning), self._tell)
        features = [
            torch.cat([normalize(guide.see(row)) for row in pictures.split(1)]) for guide in self.guides
        ]
        return Album(pictures, noisy, features, features)

    def _tell(self, what: str, done: int, total: int) -> None:
        self.progress({"kind": "prepare", "what": what, "done": done, "total": total})

    def trial(self) -> list[Tensor]:
        """Codes of one blank picture."""
        blank = torch.zeros(1, *self.source.picture_shape, device=self.device, dtype=self.dtype)
        codes = [
            torch.ones(1, self.code_width(guide), device=self.device, dtype=self.dtype)
            for guide in self.guides
        ]
        self.album = Album(blank, blank, codes, codes)
        return codes

    def code_width(self, guide: Guide) -> int:
        """Width of a CLIP's features."""
        return guide.text_direction.shape[-1]

    def optimiser(self, weights: list[nn.Parameter]) -> torch.optim.Adam:
        """The published one; fused where torch has that, a third of the time on a CPU."""
        return torch.optim.Adam(weights, lr=self.config.train.lr, fused=self.device.type in ("cpu", "cuda"))

    def movable(self) -> list[str]:
        """Names of all weights of the layers that are to move."""
        return trainable.select(self.target, self.config.train.layers)

    # 2. Parts of a step.

    def place(self, step: int) -> tuple[int, int, slice]:
        """Of a step of stage 2: the round through the pictures from 0, the step of denoising from 0, and the
        rows."""
        assert self.album is not None
        steps = self.tuning.train_steps if self.tuning.mode == "per-step" else 1
        batch, count = self.config.train.batch, len(self.album.pictures)
        visit, denoising = divmod(step - 1, steps)
        turn, number = divmod(visit, -(-count // batch))
        return turn, denoising, slice(number * batch, (number + 1) * batch)

    def codes(self, step: int) -> list[Tensor]:
        """Codes BE of the pictures of a step, for every CLIP."""
        assert self.album is not None
        rows = self.place(step)[2]
        return [each[rows] for each in self.album.codes]

    def seen(self, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of a step of stage 1, and what CLIP sees; the pictures are shuffled anew in every round."""
        assert self.album is not None
        count, batch = len(self.album.pictures), self.config.mapper.batch
        turn, page = divmod(step - 1, count // batch)
        order = torch.randperm(count, generator=rng("stage1 order", self.config.run.seed, turn)).to(
            self.device
        )
        rows = order[page * batch :][:batch]
        return [each[rows] for each in self.album.codes], [each[rows] for each in self.album.features]

    def before(self, guide: Guide, pictures: Tensor, step: int) -> Tensor:
        """Features of the pictures of a step, which never change."""
        assert self.album is not None
        number = next(index for index, each in enumerate(self.guides) if each is guide)
        return self.album.features[number][self.place(step)[2]]

    def pictures(self, generator: Any, codes: Any, step: int) -> Tensor:
        """Pictures of a step: the source's own, or the target's from their noise, in mode per-step the clean
        ones predicted."""
        assert self.album is not None
        _, denoising, rows = self.place(step)
        if generator is self.source:
            return self.album.pictures[rows]
        x = self.album.noisy[rows]
        if self.tuning.mode == "through":
            return self._through(generator, x)
        x = x if not denoising or self.x is None else self.x
        t, t_next = generation_times(self.tuning.t0, self.tuning.train_steps)[denoising]
        with self.guides[0].mixed(self.device):
            eps = generator.predict_noise(x, t)
        self.ahead = generator.step(x, t, t_next, eps).detach()
        self.facts["path"] = [self.ahead]
        return generator.clean(x, t, eps)

    def _through(self, generator: Any, x: Tensor) -> Tensor:
        """Pictures by all steps, differentiable in the last ones."""
        tuning, path, differentiable = self.tuning, list[Tensor](), torch.is_grad_enabled()
        free = {t for t, _ in generation_times(tuning.t0, tuning.train_steps)[-tuning.backprop_steps :]}

        def predict(x: Tensor, t: int) -> Tensor:
            path.append(x.detach())
            with torch.set_grad_enabled(differentiable and t in free):
                return generator.predict_noise(x, t)

        with self.guides[0].mixed(self.device):
            made = generator.generate(
                x, tuning.t0, tuning.train_steps, predict=predict, checkpointing=tuning.checkpointing
            )
        self.facts["path"] = [*path[1 : tuning.train_steps], made.detach()]
        return made

    def free_layers(self, step: int) -> None:
        """Lets the weights move that may move at all."""
        trainable.free(self.target, self.weights)
        self.layers = tuple(
            each.name for each in self.target.layers() if set(self.weights).issuperset(each.parameters)
        )

    def most_at_once(self) -> int:
        """A batch."""
        return self.config.train.batch

    def compare(
        self, guide: Guide, before: Tensor, after: Tensor, text_direction: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Loss terms of one CLIP; the directional loss enters by its logarithm, as published."""
        terms = super().compare(guide, before, after, text_direction, step)
        if "direction" in terms:
            terms["log_direction"] = losses.log_direction(terms["direction"])
        return terms

    def face(self, after: Tensor) -> Tensor:
        """The target's pictures as the identity loss takes them."""
        detached = self.tuning.mode == "per-step" and self.config.quirks.identity == "detached"
        return self.ahead if detached and self.ahead is not None else after

    def update(self, step: int, terms: Any) -> None:
        """One step of the optimiser, at the rate of the round."""
        if self.stage == 2:
            rate = self.config.train.lr * self.tuning.lr_growth ** self.place(step)[0]
            for group in self.optimisers[2].param_groups:
                group["lr"] = rate
            self.facts["lr"] = rate
        super().update(step, terms)
        self.x = self.ahead

    # 3. What is looked at, and what is kept.

    def watched(self, count: int) -> list[Tensor]:
        """Codes of pictures that are not learned from."""
        self.window = self._album("monitor", count)
        return self.window.codes

    def many_codes(self, count: int) -> list[Tensor]:
        """Codes of the pictures that are learned from; more would have to be made."""
        assert self.album is not None
        return self.album.codes

    @torch.no_grad()
    def view(self, generator: Any, codes: Any) -> Tensor:
        """The watched pictures, or what a generator makes of their noise in the steps of training."""
        assert self.window is not None
        if generator is self.source:
            return self.window.pictures
        with self.guides[0].mixed(self.device):
            parts = self.window.noisy.split(PART.get(self.device.type, 16))
            return torch.cat([generator.generate(x, self.tuning.t0, self.tuning.train_steps) for x in parts])

    @torch.no_grad()
    def shown(self) -> Tensor:
        """Pictures of seeds: by the source down to time t0, by the averaged generator from there on."""
        times = generation_times(self.source.num_steps - 1, self.tuning.sample_steps)
        x: Tensor = self.source.latents(range(self.config.run.samples)) if self.start is None else self.start
        x = x.to(self.device, self.dtype)
        for t, t_next in times:
            if t > self.tuning.t0 and self.start is None:
                x = self.source.step(x, t, t_next, self.source.predict_noise(x, t))
            elif t <= self.tuning.t0:
                self.start = x if self.start is None else self.start
                x = self.ema.step(x, t, t_next, self.ema.predict_noise(x, t))
        return x.clamp(-1, 1).float().cpu()

    def carried(self) -> dict[str, Tensor]:
        """The noisy pictures between two steps of mode per-step."""
        return {} if self.stage == 1 or self.x is None else {"x": self.x}

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Goes on with what was carried."""
        self.x = tensors["x"].to(self.device) if "x" in tensors else None

    def smaller(self) -> str:
        """What to try when memory ran out."""
        if self.stage == 1 or self.config.train.batch > 1:
            return super().smaller()
        return "try train.diffusion.checkpointing, or train.diffusion.mode per-step"
