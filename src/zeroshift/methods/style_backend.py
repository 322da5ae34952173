"""What `adapt` needs of a generator with styles: latents, noise, and the selection of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.clip.features import normalize
from zeroshift.errors import InputError
from zeroshift.methods.guidance import Guide
from zeroshift.models import layers as trainable
from zeroshift.models.protocol import Generator, Noise, noise_of
from zeroshift.models.seeds import draw_noise, draw_z, rng
from zeroshift.pictures.sample import draw
from zeroshift.training.loop import Trainer

PART_PIXELS = {"cpu": 4 * 256**2}
"""Pixels drawn at a time without gradient, by kind of device: activations stay small, and in a CPU's
cache."""

LEGACY = 4 / 5
"""The published optimiser keeps a factor of lazy regularisation that it does not use: rate * 4/5, betas (0,
0.99 ** 4/5)."""


class StyleTrainer(Trainer):
    """A run of a generator with styles. The code of a picture is its style w."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.noise: tuple[tuple[str, int], list[Tensor]] = ("", 0), []
        self.album: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def check(self) -> None:
        """Refuses what does not fit the generator or the given latents."""
        config, given = self.config, self.given
        if config.method == "diffusionclip":
            raise InputError(
                f"{config.generator} is no diffusion model, which method diffusionclip is for; use nada or "
                "ipl."
            )
        for name, given_z, steps in (
            ("stage1_z", given.stage1_z, self.totals[1]),
            ("stage2_z", given.stage2_z, self.totals[2]),
        ):
            if given_z is not None and len(given_z) < steps:
                raise InputError(
                    f"{name} holds latents for {len(given_z)} steps, the run has {steps}; give one batch "
                    "per step."
                )

    def code_width(self, guide: Guide) -> int:
        """Width of a style."""
        return self.source.style_dim

    def optimiser(self, weights: list[nn.Parameter]) -> torch.optim.Adam:
        """The published one."""
        return torch.optim.Adam(weights, lr=self.config.train.lr * LEGACY, betas=(0.0, 0.99**LEGACY))

    def codes(self, step: int) -> Tensor:
        """Styles BS of the latents of a step."""
        given = self.given.stage1_z if self.stage == 1 else self.given.stage2_z
        batch = self.config.mapper.batch if self.stage == 1 else self.config.train.batch
        return self._map(given, batch, f"stage{self.stage}", step)

    @torch.no_grad()
    def _map(self, given: Tensor | None, batch: int, label: str, step: int) -> Tensor:
        z_BZ = (
            given[step - 1]
            if given is not None
            else draw_z(self.source.latent_dim, batch, self.config.run.seed, label, step)
        )
        return self.source.map(z_BZ.to(self.device, self.dtype))

    @torch.no_grad()
    def seen(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Styles BS of a step of stage 1, and the unit features BE of their source pictures for every CLIP.

        With `mapper.pictures`, the first steps draw that many and the later ones show them again, shuffled
        anew every round.
        """
        batch, seed = self.config.mapper.batch, self.config.run.seed
        pages = self.config.mapper.pictures // batch
        if not pages or step <= pages:
            return self._look(step)
        # A resumed run looks again at the same pages, so that roundings are the same.
        album = [self._look(page) for page in range(1, pages + 1)]
        order = torch.randperm(pages * batch, generator=rng("stage1 order", seed, (step - 1) // pages))
        rows = order.to(self.device)[(step - 1) % pages * batch :][:batch]
        features = [torch.cat(each)[rows] for each in zip(*(page[1] for page in album), strict=True)]
        return torch.cat([page[0] for page in album])[rows], features

    def _look(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Fresh styles and features of a step, kept where they will be shown again."""
        if step in self.album:
            return self.album[step]
        w_BS = self.codes(step)
        pictures = self.pictures(self.source, w_BS, step)
        found = w_BS, [normalize(guide.see(pictures)) for guide in self.guides]
        if self.config.mapper.pictures:
            self.album[step] = found
        return found

    def pictures(self, generator: Generator, w: Tensor, step: int, label: str = "") -> Tensor:
        """Pictures of styles BS or BKS, with the noise of a step."""
        label = label or f"stage{self.stage}"
        if self.config.quirks.noise == "independent" and generator is self.target:
            label += " target"
        noise = self._noise(label, step, len(w))
        size = len(w) if torch.is_grad_enabled() else self._part()
        parts = [slice(first, first + size) for first in range(0, len(w), size)]
        with self.guides[0].mixed(self.device):
            drawn = [generator.synthesize(w[part], noise_of(noise, part)).to(self.dtype) for part in parts]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    def most_at_once(self) -> int:
        """Pictures of the target that stage 2 differentiates at a time: a batch, or a part of those that
        select the layers."""
        train = self.config.train
        part = min(train.select_batch, self._part()) if train.layers == "adaptive" else 1
        return max(train.batch, part)

    def _part(self) -> int:
        """Pictures to draw at a time where no gradient is kept."""
        return max(1, PART_PIXELS.get(self.device.type, 16 * 256**2) // self.source.image_size**2)

    def _noise(self, label: str, step: int, batch: int) -> Noise:
        kind = self.config.quirks.noise
        if kind == "buffers" or kind == "off":
            return kind
        if self.noise[0] != (label, step):
            maps = draw_noise(self.source.noise_shapes(), batch, self.config.run.seed, label, step)
            self.noise = (label, step), [each.to(self.device, self.dtype) for each in maps]
        return self.noise[1]

    def free_layers(self, step: int) -> None:
        """Lets those weights move that this step may move, after selecting them anew where that is due."""
        train, quirks = self.config.train, self.config.quirks
        if train.layers != "adaptive":
            names = list(self.weights)
        else:
            if not self.chosen or (step - 1) % train.select_every == 0:
                self.chosen = self._select(step)
            names = trainable.select_latents(
                self.target, self.chosen, layer_map=quirks.layer_map, free_rgb=train.free_rgb
            )
        trainable.free(self.target, names)
        moving = set(names)
        self.layers = tuple(each.name for each in self.target.layers() if moving.issuperset(each.parameters))

    def _select(self, step: int) -> tuple[int, ...]:
        """The latents whose layers matter most to the target label, most first."""
        trainable.free(self.target, ())
        w_BS = self._map(self.given.select_z, self.config.train.select_batch, "select", step)

        def loss(pictures: Tensor) -> Tensor:
            return torch.stack(
                [guide.weight * guide.label_loss(pictures.to(self.dtype)) for guide in self.guides]
            ).sum()

        noise = self._noise("select", step, len(w_BS))
        with self.guides[0].mixed(self.device):
            scores, value = trainable.score_layers(
                self.target, w_BS, loss, noise=noise, part=self.most_at_once()
            )
        self._require_finite(value, step)
        self.facts |= {"scores": scores, "selection_loss": value}
        return trainable.top_latents(scores, self.config.train.top_k or trainable.default_top_k(self.target))

    def movable(self) -> list[str]:
        """Names of all weights that may move at any step of stage 2."""
        train, layer_map = self.config.train, self.config.quirks.layer_map
        if train.layers != "adaptive":
            return trainable.select(self.target, train.layers, free_rgb=train.free_rgb)
        count = self.target.num_latents
        if train.top_k is not None and train.top_k > count:
            raise InputError(
                f"train.top_k is {train.top_k}, this generator has {count} latents to choose from."
            )
        return trainable.select_latents(
            self.target, range(count), layer_map=layer_map, free_rgb=train.free_rgb
        )

    # What is looked at.

    @torch.no_grad()
    def watched(self, count: int) -> Tensor:
        """Styles BS of latents that belong to the seed of the run."""
        z_BZ = draw_z(self.source.latent_dim, count, self.config.run.seed, "monitor", 0)
        return self.source.map(z_BZ.to(self.device, self.dtype))

    def view(self, generator: Any, codes: Tensor) -> Tensor:
        """Pictures of styles with the generator's own noise maps."""
        parts = codes.split(self._part())
        with self.guides[0].mixed(codes.device):
            return torch.cat([generator.synthesize(part, "buffers").to(codes.dtype) for part in parts])

    def shown(self) -> Tensor:
        """Pictures BCHW of a sample grid."""
        return draw(self.ema, range(self.config.run.samples), self.config.run.truncation)

    def trial(self) -> Tensor:
        """One style."""
        return self.codes(1)[:1]
