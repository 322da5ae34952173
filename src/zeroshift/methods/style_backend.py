"""A zero-shot run's generator with styles: latents, noise, and the adaptive selection of layers.

The code of a picture is its style w.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.errors import InputError
from zeroshift.methods.backend import Backend, Surroundings
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.views import draw_views, mean_feature
from zeroshift.models import layers
from zeroshift.models.protocol import Generator, Noise, noise_of
from zeroshift.models.seeds import average_style, draw_noise, draw_z, rng, truncate
from zeroshift.pictures.sample import draw
from zeroshift.shapes import Latent, Picture, Style, UnitFeature

PART_PIXELS = {"cpu": 4 * 256**2}
"""Pixels drawn at a time without gradient, by kind of device: activations stay small, and in a CPU's
cache."""

MEAN_PICTURES = 4096
"""Pictures over which the mean of what a CLIP sees in the source's is taken. With so many, told by their
styles, another seed changes the direction to ten pictures by less than a degree (docs/log.md)."""

MEAN_AT_ONCE = 16
"""How many of them are drawn together; their draws depend on it."""

MEAN_STYLES = 2**17
"""Styles over which their mean is taken."""

LEGACY = 4 / 5
"""The published optimiser keeps a factor of lazy regularisation that it does not use: rate * 4/5, betas (0,
0.99 ** 4/5)."""

Page = tuple[Style, list[UnitFeature]]
"""Styles of one batch of stage 1, and the features of their pictures for every CLIP."""


class StyleBackend(Backend):
    """Draws by latents; selects layers by the target label."""

    def __init__(self, surroundings: Surroundings, source: Any, target: Any, average: Any) -> None:
        super().__init__(surroundings, source, target, average)
        self.selected: tuple[int, ...] = ()
        """Latents of the last adaptive selection."""
        self.noise_key: tuple[str, int] = ("", 0)
        self.noise_maps: list[Tensor] = []
        self.pages: dict[int, Page] = {}
        self.drawn: dict[str, tuple[Style, Latent]] = {}
        """What was drawn last, by what it was drawn for: styles, and the noise that they are of."""
        self._check()
        self.movable = self.parameters_of(self._movable())

    def _check(self) -> None:
        """Refuses what does not fit the given latents."""
        steps = {"stage1_z": self.config.mapper.steps, "stage2_z": self.config.train.steps}
        for name, needed in steps.items():
            latents = getattr(self.given, name)
            if (
                latents is not None
                and len(latents) < needed
                and (name != "stage1_z" or self.config.learns_words)
            ):
                raise InputError(
                    f"{name} holds latents for {len(latents)} steps, the run has {needed}; give one batch "
                    "per step."
                )

    def code_width(self, clip: ClipObjective) -> int:
        """Width of a style."""
        return self.source.style_dim

    def _movable(self) -> list[str]:
        """Names of all weights that may move at any step."""
        train = self.config.train
        if train.layers != "adaptive":
            return layers.select(self.target, train.layers, free_rgb=train.free_rgb)
        count = self.target.num_latents
        wanted = train.adaptive.top_k
        if wanted is not None and wanted > count:
            raise InputError(
                f"train.adaptive.top_k is {wanted}, this generator has {count} latents to choose from."
            )
        return layers.select_latents(
            self.target, range(count), layer_map=self.config.quirks.layer_map, free_rgb=train.free_rgb
        )

    def optimiser(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam as published, its factor of lazy regularisation included."""
        return torch.optim.Adam(weights, lr=self.config.train.lr * LEGACY, betas=(0.0, 0.99**LEGACY))

    # Parts of a step.

    @torch.no_grad()
    def source_features(self, step: int, clips: Sequence[ClipObjective]) -> tuple[Style, list[UnitFeature]]:
        """Styles BS of a step of stage 1, and the unit features BE of their source pictures for every CLIP.

        With `mapper.pictures`, the first steps draw that many and the later ones show them again, shuffled
        anew every round, by the same views.
        """
        batch = self.config.mapper.batch
        count = self.config.mapper.pictures // batch
        if not count or step <= count:
            return self._page(step, clips)
        # A resumed run looks again at the same pages, so that roundings are the same.
        pages = [self._page(page, clips) for page in range(1, count + 1)]
        round_number, page = divmod(step - 1, count)
        draw_order = rng("stage1 order", self.config.run.seed, round_number)
        order = torch.randperm(count * batch, generator=draw_order).to(self.device)
        rows = order[page * batch :][:batch]
        styles = torch.cat([styles for styles, _ in pages])[rows]
        features = [torch.cat(each)[rows] for each in zip(*(found for _, found in pages), strict=True)]
        return styles, features

    def _page(self, step: int, clips: Sequence[ClipObjective]) -> Page:
        """Styles and features of a step's own latents, kept where they will be shown again."""
        if step in self.pages:
            return self.pages[step]
        w_BS = self._styles(self.given.stage1_z, self.config.mapper.batch, "stage1", step)
        pictures = self.draw(self.source, w_BS, "stage1", step)
        views = draw_views(self.config.train.views, pictures, self.config.run.seed, "stage1", step)
        page = w_BS, [mean_feature(clip.encode_image, pictures, views) for clip in clips]
        if self.config.mapper.pictures:
            self.pages[step] = page
        return page

    def codes(self, step: int) -> Style:
        """Styles BS of the latents of a step of stage 2."""
        return self._styles(self.given.stage2_z, self.config.train.batch, "stage2", step)

    @torch.no_grad()
    def _styles(self, given: Tensor | None, batch: int, label: str, step: int) -> Style:
        """Styles BS of a step's latents: given ones, or drawn by run seed, label and step."""
        if given is not None:
            z_BZ = given[step - 1]
        else:
            z_BZ = draw_z(self.source.latent_dim, batch, self.config.run.seed, label, step)
        w_BS = self.source.map(z_BZ.to(self.device, self.dtype))
        self.drawn[label] = (w_BS, z_BZ)
        return w_BS

    def latents(self, codes: Tensor) -> Latent:
        """Noise BZ of the styles that were drawn last for stage 2, or for the monitor."""
        return next(z_BZ for w_BS, z_BZ in self.drawn.values() if w_BS is codes).cpu()

    def pictures(self, generator: Generator, codes: Tensor, step: int) -> Picture:
        """Pictures of styles BS or BKS, with the noise of a step of stage 2."""
        return self.draw(generator, codes, "stage2", step)

    def draw(self, generator: Generator, w: Tensor, label: str, step: int) -> Picture:
        """Pictures BCHW of styles BS or BKS with the noise of a step and label."""
        noise = self.noise(self._label_of(generator, label), step, len(w))
        size = len(w) if torch.is_grad_enabled() else self._part()
        parts = [slice(first, first + size) for first in range(0, len(w), size)]
        with self.precision.autocast():
            drawn = [generator.synthesize(w[part], noise_of(noise, part)).to(self.dtype) for part in parts]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    def activations(self, generator: Any, w: Tensor, label: str, step: int) -> list[Tensor]:
        """Outputs of the styled convolutions of such pictures, all at once."""
        noise = self.noise(self._label_of(generator, label), step, len(w))
        with self.precision.autocast():
            return [each.to(self.dtype) for each in generator.synthesize(w, noise, features=True)[1]]

    def _label_of(self, generator: Any, label: str) -> str:
        """What the noise of a generator's pictures is keyed by: the target may have its own."""
        own = self.config.quirks.noise == "independent" and generator is self.target
        return f"{label} target" if own else label

    def noise(self, label: str, step: int, batch: int) -> Noise:
        """The noise of a step and label, drawn or as `quirks.noise` wants it."""
        kind = self.config.quirks.noise
        if kind == "buffers" or kind == "off":
            return kind
        if self.noise_key != (label, step):
            maps = draw_noise(self.source.noise_shapes(), batch, self.config.run.seed, label, step)
            self.noise_key = (label, step)
            self.noise_maps = [each.to(self.device, self.dtype) for each in maps]
        return self.noise_maps

    def free_layers(self, step: int, clips: Sequence[ClipObjective]) -> None:
        """Lets those weights move that this step may move, after selecting them anew where that is due."""
        train = self.config.train
        if train.layers != "adaptive":
            names = self.movable
        else:
            if not self.selected or (step - 1) % train.adaptive.every == 0:
                self.selected = self._select(step, clips)
            names = layers.select_latents(
                self.target, self.selected, layer_map=self.config.quirks.layer_map, free_rgb=train.free_rgb
            )
        self.step_log["chosen"] = self.selected
        moving = set(names).intersection(self.movable)
        layers.free(self.target, moving)
        self.moving = layers.moving_layers(self.target, moving)

    def _select(self, step: int, clips: Sequence[ClipObjective]) -> tuple[int, ...]:
        """The latents whose layers matter most to the target label, most first."""
        layers.free(self.target, ())
        w_BS = self._styles(self.given.select_z, self.config.train.adaptive.batch, "select", step)

        def loss(pictures: Tensor) -> Tensor:
            pictures = pictures.to(self.dtype)
            return torch.stack([clip.weight * clip.selection_loss(pictures) for clip in clips]).sum()

        noise = self.noise("select", step, len(w_BS))
        with self.precision.autocast():
            scores, value = layers.score_layers(
                self.target, w_BS, loss, noise=noise, part=self.most_at_once()
            )
        self.surroundings.require_finite(value)
        self.step_log["scores"] = scores
        self.step_log["selection_loss"] = value
        return layers.top_latents(
            scores, self.config.train.adaptive.top_k or layers.default_top_k(self.target)
        )

    def most_at_once(self) -> int:
        """Pictures of the target that stage 2 differentiates at a time: a batch, or a part of those that
        select layers."""
        train = self.config.train
        part = min(train.adaptive.batch, self._part()) if train.layers == "adaptive" else 1
        return max(train.batch, part)

    def _part(self) -> int:
        """Pictures to draw at a time where no gradient is kept."""
        return max(1, PART_PIXELS.get(self.device.type, 16 * 256**2) // self.source.image_size**2)

    # What goes on from step to step.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The last selection of layers, which may hold for several steps."""
        return {}, {"chosen": self.selected}

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with the last selection."""
        self.selected = tuple(facts["chosen"])

    # Pictures beside the training.

    @torch.no_grad()
    def monitor_codes(self, count: int, clips: Sequence[ClipObjective]) -> Style:
        """Styles BS of latents that belong to the seed of the run."""
        return self._styles(None, count, "monitor", 0)

    def fixed_pictures(self, generator: Any, count: int, truncation: float = 1.0) -> Iterator[Picture]:
        """Pictures of latents that belong to the seed of the run, with the generator's own noise maps."""
        w_BS = truncate(self._styles(None, count, "fixed", 0), self.source.latent_avg, truncation)
        for part in w_BS.split(1 if torch.is_grad_enabled() else self._part()):
            with self.precision.autocast():
                pictures = generator.synthesize(part, "buffers").to(self.dtype)
            yield pictures

    @property
    def mean_count(self) -> int:
        """Enough for a degree, see MEAN_PICTURES."""
        return MEAN_PICTURES

    @torch.no_grad()
    def mean_pictures(self, count: int) -> Iterator[tuple[Picture, Tensor | None]]:
        """Pictures of latents that belong to the seed of the run, with noise as in stage 2, and their
        styles."""
        for number, first in enumerate(range(0, count, MEAN_AT_ONCE)):
            w_BS = self._styles(None, min(MEAN_AT_ONCE, count - first), "source mean", number)
            yield self.draw(self.source, w_BS, "source mean", number), w_BS

    @torch.no_grad()
    def mean_code(self) -> Tensor:
        """Mean style over MEAN_STYLES latents, by the seed of the run."""
        return average_style(self.source, MEAN_STYLES, self.config.run.seed)

    def monitor_pictures(self, generator: Any, codes: Tensor) -> Picture:
        """Pictures of styles with the generator's own noise maps."""
        with self.precision.autocast():
            parts = [
                generator.synthesize(part, "buffers").to(codes.dtype) for part in codes.split(self._part())
            ]
        return torch.cat(parts)

    def sample_grid(self) -> Picture:
        """Pictures of the seeds 0, 1, 2, ..."""
        return draw(self.average, range(self.config.run.samples), self.config.run.truncation)

    def probe(self, clips: Sequence[ClipObjective]) -> Style:
        """Style 1,S of a latent of its own; only its shape matters."""
        return self._styles(None, 1, "stage2", 1)

    def memory_tip(self, stage: int) -> str:
        """Selecting layers may take more memory than the step itself."""
        tip = super().memory_tip(stage)
        if stage == 2 and self.most_at_once() > self.config.train.batch:
            half = max(1, self.config.train.adaptive.batch // 2)
            return f"try train.adaptive.batch {half}, or {tip.removeprefix('try ')}"
        return tip
