"""CDC: pictures keep their distances to each other while the generator moves, and away from the few pictures
only patches are judged.

Ojha et al., Few-shot Image Generation via Cross-domain Correspondence (CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift.config.schema import AdaptConfig
from zeroshift.methods import adversarial
from zeroshift.methods.backend import Given
from zeroshift.methods.few_shot import (
    FewShotRun,
    Latents,
    learn_to_judge,
    made_pictures,
    random_latents,
    regularise_generator,
    styles,
)
from zeroshift.models.patch_heads import PatchHeads
from zeroshift.models.seeds import draw_z, rng
from zeroshift.shapes import Latent, Picture, Scalar
from zeroshift.training.loop import Hook, Progress
from zeroshift.training.terms import Terms

# 1. The equations.


def near_anchors(step: int, every: int) -> bool:
    """Whether a step, from 1 on, draws around the anchors, where whole pictures are judged: the first of
    every `every` steps. The others draw anywhere, and patches are judged."""
    return (step - 1) % every == 0


def anchors(latent_dim: int, count: int, seed: int) -> Latent:
    """Anchors z_k (count, Z), standard normal, drawn once per run."""
    return draw_z(latent_dim, count, seed, "anchors", 0)


def around(anchors_KZ: Latent, spread: float, batch: int, seed: int, label: str, step: int) -> Latent:
    """z = z_k + spread N(0, I), shape BZ, each row by an anchor k of its own, drawn with replacement; row i
    depends on (seed, label, step, i) only."""
    rows = []
    for row in range(batch):
        draw = rng("around anchors", seed, label, step, row)
        chosen = int(torch.randint(len(anchors_KZ), (1,), generator=draw))
        rows.append(anchors_KZ[chosen] + spread * torch.randn(anchors_KZ.shape[1], generator=draw))
    return torch.stack(rows)


def layers_of_anchors(num_layers: int, batch: int, seed: int, step: int) -> list[int]:
    """For every picture of a batch the layer, from 1 on, in whose activations it is compared with the
    others."""
    chosen = torch.randint(1, num_layers, (batch,), generator=rng("layers", seed, step))
    return chosen.tolist()


def similarities(activations: Tensor, picture: int) -> Tensor:
    """log softmax_{j != i} cos(a_i, a_j), shape (B - 1,), of activations B..., each picture's flattened."""
    flat = activations.flatten(1)
    others = torch.cat([flat[:picture], flat[picture + 1 :]])
    return F.cosine_similarity(flat[picture][None], others, dim=1).log_softmax(dim=0)


def distance_consistency(source: Sequence[Tensor], target: Sequence[Tensor], layers: Sequence[int]) -> Scalar:
    """L_dist = mean_{i, j != i} p_ij (log p_ij - log q_ij), p_i and q_i the `similarities` of picture i to
    the others by source and target, in the activations of layer `layers[i]`. Range from 0 up.

    As published the mean is over all B (B - 1) numbers, not over pictures.
    """
    parts = []
    for picture, layer in enumerate(layers):
        before = similarities(source[layer], picture)
        after = similarities(target[layer], picture)
        parts.append(before.exp() * (before - after))
    return torch.cat(parts).mean()


# 2. What a run has besides.


class CdcRun(FewShotRun):
    """A run that judges whole pictures around its anchors, and patches elsewhere."""

    def __init__(
        self, config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
    ) -> None:
        super().__init__(config, given, hook, progress)
        count = config.own.cdc.anchors or len(self.shots)
        self.anchors = anchors(self.source.latent_dim, count, config.run.seed)

    def heads(self) -> dict[str, nn.Module]:
        """The heads that judge patches."""
        seed = rng("patch heads", self.config.run.seed).initial_seed()
        return {"patches": PatchHeads(self.discriminator.config, seed=seed)}

    def logits(self, pictures: Picture, label: str, step: int) -> Tensor:
        """Logits B1 of whole pictures in a step near the anchors, else B1HW of patches, by a head that is
        drawn."""
        options = self.config.own.cdc
        if near_anchors(step, options.every):
            return self.discriminator(pictures)
        heads = self.networks["patches"]
        assert isinstance(heads, PatchHeads)
        draw = rng("patch head", self.config.run.seed, label, step)
        head = int(torch.randint(min(options.patch_maps, len(heads.heads)), (), generator=draw))
        return heads(self.discriminator, pictures, head)

    def latents(self, label: str, step: int) -> Latents:
        """Latents of the pictures to be judged in a step: around the anchors, not mixed, or anywhere."""
        options = self.config.own.cdc
        if not near_anchors(step, options.every):
            return random_latents(self, label, step=step)
        seed, batch = self.config.run.seed, self.config.train.batch
        return Latents(around(self.anchors, options.spread, batch, seed, label, step), label, step)

    def styles_of(self, generator: Any, latents: Latents) -> Tensor:
        """Styles BKS by which source and target are compared, each by its own mapping."""
        return styles(self, generator, latents)


def open_run(
    config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> CdcRun:
    """A run of CDC, loaded and checked; nothing is written."""
    return CdcRun(config, given, hook, progress)


def activations(run: CdcRun, latents: Latents) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the styled convolutions of source, without gradient, and target for the same latents."""

    def of(generator: Any) -> list[Tensor]:
        w = run.styles_of(generator, latents)
        return run.backend.activations(generator, w, latents.label, latents.step)

    with torch.no_grad():
        source = of(run.source)
    return source, of(run.target)


# 3. The training.


def train(run: CdcRun) -> None:
    """The stage, from where the run stands."""
    for step in run.loop.steps(2):
        # 1. the discriminator: whole pictures around the anchors, or patches of any pictures
        learn_to_judge(run, step, run.latents("discriminator", step))
        # 2. the generator: judged in the same way, and at its old distances
        run.free("target")
        run.loop.update("target", losses(run, step))
        regularise_generator(run, step)
        # 3. the running average
        run.loop.average()


def losses(run: CdcRun, step: int) -> Iterator[Terms]:
    """What the target learns from in a step."""
    yield judged(run, step)
    if run.config.own.cdc.weight:
        yield at_its_distances(run, step)


def judged(run: CdcRun, step: int) -> Terms:
    """How well the target's pictures of a step are taken for shots, or their patches for those of shots."""
    made = made_pictures(run, run.target, run.latents("generator", step))
    terms = Terms()
    terms.group().add("generator", adversarial.generator_loss(run.judge(made, "generator", step)))
    return terms


def at_its_distances(run: CdcRun, step: int) -> Terms:
    """How far the target's pictures of other latents have lost the source's distances to each other."""
    options, seed = run.config.own.cdc, run.config.run.seed
    z = draw_z(run.source.latent_dim, options.batch, seed, "distances", step)
    source, target = activations(run, Latents(z, "distances", step))
    layers = layers_of_anchors(len(source), len(z), seed, step)
    terms = Terms()
    terms.group().add("distance", distance_consistency(source, target, layers), options.weight)
    return terms
