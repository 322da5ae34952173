"""RSSA: what belongs together within a picture, and between neighbouring pictures, stays together while the
generator moves; styles are drawn near to those of the few pictures.

Xiao et al., Few Shot Generative Model Adaption via Relaxed Spatial Structural Alignment (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zeroshift import __version__
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.files.writing import write_tensors
from zeroshift.measure.metrics import perceptual_vectors
from zeroshift.measure.networks import load_lpips
from zeroshift.methods.backend import Given
from zeroshift.methods.cdc import CdcRun, activations, judged
from zeroshift.methods.few_shot import Latents, learn_to_judge, regularise_generator
from zeroshift.models.compression import stretched
from zeroshift.models.seeds import draw_z
from zeroshift.shapes import Latent, Picture, Scalar
from zeroshift.training.loop import Hook, Progress, Stage, Trained
from zeroshift.training.terms import Terms

LARGEST_SIDE = 256
"""Largest side of the maps within which correlations are kept, as published."""

DISTURBANCE_SIDE = 128
"""Largest side of the maps whose correlation between pictures is held; of this side only the first map."""

TILES = {64: 16, 128: 32}
"""Side of a map -> side of the tiles that are compared with each other alone, as published."""

CHUNK = 1 << 22
"""Correlations that are held at a time, of source and target each: 16 MiB in float32."""

CODES_FILE = "codes.safetensors"
"""Codes of the shots in a run folder, written when stage 1 ends."""

Part = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# 1. The equations.


def self_correlation(source: Sequence[Tensor], target: Sequence[Tensor], sides: Sequence[int]) -> Scalar:
    """L_scc: sum over maps, and over their four quadrants and their centre, of the mean smooth L1 between the
    correlations of all pairs of positions within the window, by source and target. Range from 0 up.

    Maps BCHW of other sides count nothing. Quadrants together are one term, the centre is another. Positions
    are unit vectors over channels, then averaged two by two.
    """
    terms = [torch.zeros((), device=target[0].device, dtype=target[0].dtype)]
    for before, after in zip(source, target, strict=True):
        if before.shape[-1] not in sides:
            continue
        (old_quadrants, old_centre), (new_quadrants, new_centre) = windows(before), windows(after)
        for old, new in ((old_quadrants, new_quadrants), (old_centre, new_centre)):
            terms.append(_in_chunks(_smooth_difference, old, old, new, new) / len(old))
    return torch.stack(terms).sum()


def windows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (4 B, P, C) of the quadrants and (B, P, C) of the centre of maps BCHW; P = (H / 4)^2
    positions each."""
    pooled = F.avg_pool2d(F.normalize(features, dim=1), 2)
    half = pooled.shape[-1] // 2
    inset = half // 2
    centre = pooled[..., inset : inset + half, inset : inset + half]
    return tiles(pooled, half), tiles(centre, half)


def tiles(features: Tensor, side: int) -> Tensor:
    """Positions (B * tiles, side^2, C) of maps BCHW cut into tiles of `side`, row by row."""
    batch, channels, height, width = features.shape
    cut = features.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, channels)


def disturbance_correlation(source: Sequence[Tensor], target: Sequence[Tensor]) -> Scalar:
    """L_dcc: sum over maps of the mean, over pairs of pictures j < k, tiles and positions of j, of the sum
    over positions of k of |C_target - C_source|, where C is the softmax, over positions of k, of the products
    of unit positions. Range [0, 2] per map.

    Of maps BCHW those up to 128 px count, and of 128 px the first. Equal to the published form, which divides
    by the 6 pairs of 4 pictures and is for these alone.
    """
    terms = [torch.zeros((), device=target[0].device, dtype=target[0].dtype)]
    for before, after in _disturbed(source, target):
        side = TILES.get(before.shape[-1], before.shape[-1])
        count = len(before)
        old, new = (
            tiles(F.normalize(each, dim=1), side).unflatten(0, (count, -1)) for each in (before, after)
        )
        pairs = list(combinations(range(count), 2))
        found = [_in_chunks(_shift_of_matches, old[j], old[k], new[j], new[k]) for j, k in pairs]
        terms.append(torch.stack(found).sum() / (len(pairs) * old.shape[1]))
    return torch.stack(terms).sum()


def _disturbed(source: Sequence[Tensor], target: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Maps of source and target that count for the disturbance correlation."""
    sides = [each.shape[-1] for each in source]
    first = sides.index(DISTURBANCE_SIDE) if DISTURBANCE_SIDE in sides else -1
    return [
        (before, after)
        for number, (before, after) in enumerate(zip(source, target, strict=True))
        if sides[number] < DISTURBANCE_SIDE or number == first
    ]


def _smooth_difference(old: Tensor, old_other: Tensor, new: Tensor, new_other: Tensor) -> Tensor:
    """Sum over windows of the mean smooth L1 between the correlations of positions (windows, P, C)."""
    difference = F.smooth_l1_loss(new @ new_other.mT, old @ old_other.mT, reduction="none")
    return difference.mean(dim=(1, 2)).sum()


def _shift_of_matches(old: Tensor, old_other: Tensor, new: Tensor, new_other: Tensor) -> Tensor:
    """Sum over tiles of the mean, over positions (tiles, P, C), of the L1 distance between where source and
    target find each position again."""
    difference = (new @ new_other.mT).softmax(dim=-1) - (old @ old_other.mT).softmax(dim=-1)
    return difference.abs().sum(dim=-1).mean(dim=-1).sum()


def _in_chunks(part: Part, *positions: Tensor) -> Tensor:
    """Sum of a part over windows. Where their correlations are many they are computed a few at a time, and
    again on the way back, so that no more than these few are ever held."""
    each_window = positions[0].shape[1] ** 2
    if len(positions[0]) * each_window <= CHUNK:
        return part(*positions)
    most = max(1, CHUNK // each_window)
    sums = [
        checkpoint(part, *rows, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(*(each.split(most) for each in positions), strict=True)
    ]
    return torch.stack(sums).sum()


def neighbours(z: Latent, disturbed: float) -> Latent:
    """z_i = (1 - disturbed) z_0 + disturbed z_i of latents BZ: pictures that differ a little; with 1 the
    latents themselves."""
    return (1 - disturbed) * z[:1] + disturbed * z


def published_sides(size: int) -> tuple[int, ...]:
    """Sides of the maps within which correlations are kept, for pictures of `size` px: the three largest, up
    to the published ones."""
    largest = min(size, LARGEST_SIDE)
    return largest // 4, largest // 2, largest


# 2. What a run has besides.


class ShotCodes(nn.Module):
    """Codes NKS of shots, a style for every latent."""

    def __init__(self, start: Tensor, num_latents: int, count: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(start.detach().expand(count, num_latents, -1).clone())


class RssaRun(CdcRun):
    """A run whose first stage, where styles are compressed, finds the codes of the shots."""

    codes: ShotCodes | None = None

    def stages(self) -> tuple[Stage, ...]:
        """A stage of the codes before the generator's, where styles are compressed."""
        options = self.config.own.rssa
        size = self.source.image_size
        self.sides = options.sides or published_sides(size)
        """Sides of the maps within which correlations are kept."""
        there = [size >> level for level in range(size.bit_length() - 2)]
        if wrong := [side for side in self.sides if side not in there]:
            raise InputError(
                f"rssa.sides names {wrong[0]}, and the generator has maps of {', '.join(map(str, there))} px."
            )
        if not options.compression:
            return super().stages()
        if self.config.train.parameters.kind != "weights":
            raise InputError(
                "small parameters leave a file without the latent compression that pictures are drawn "
                "through; set train.parameters.kind to weights, or rssa.compression to 0."
            )
        if self.source.compression is not None:
            raise InputError(
                f"{self.config.generator} draws through a latent compression already; adapt it with "
                "rssa.compression 0, or another method."
            )
        count = min(options.codes, len(self.shots))
        self.codes = ShotCodes(self.source.latent_avg, self.source.num_latents, count)
        self._compress(torch.zeros_like(self.codes.codes), 0.0)
        (moving,) = super().stages()
        learned = dict(self.codes.named_parameters())
        found = Trained(learned, torch.optim.Adam(list(learned.values()), lr=options.lr))
        codes = {"codes": self.codes}
        first = Stage(1, options.steps, {"codes": found}, codes, "own.rssa", count)
        return first, replace(moving, models={**moving.models, **codes})

    def end_stage(self, stage: int) -> None:
        """Writes the codes, and makes target and average draw near to them."""
        super().end_stage(stage)
        if stage == 1 and self.codes is not None:
            codes = self.codes.codes.detach()
            write_tensors(self.loop.folder.path / CODES_FILE, {"codes": codes}, {"version": __version__})
            self._compress(codes, self.config.own.rssa.compression)

    def styles_of(self, generator: Any, latents: Latents) -> Tensor:
        """Styles BKS by which source and target are compared, each by its own mapping. The source's are
        compressed as the target compresses its own."""
        w = super().styles_of(generator, latents)
        return self.target.compressed(w) if generator is self.source else w

    def _compress(self, codes: Tensor, factor: float) -> None:
        shares = stretched(self.config.own.rssa.shares, self.source.num_latents)
        for each in (self.target, self.average):
            each.compress(codes, factor * shares)


def open_run(
    config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> RssaRun:
    """A run of RSSA, loaded and checked; nothing is written."""
    return RssaRun(config, given, hook, progress)


# 3. The training.


def train(run: RssaRun) -> None:
    """Both stages, from where the run stands."""
    find_codes(run)
    move_generator(run)


def find_codes(run: RssaRun) -> None:
    """Stage 1, where styles are compressed: the styles by which the source makes the shots, as near as it can
    come, from its average style on and with its own noise maps."""
    if run.codes is None or run.loop.place.stage > 1:
        return
    options = run.config.own.rssa
    seen = comparison(run)
    for step in run.loop.steps(1):
        quarters = 4 * (step - 1) // options.steps
        run.loop.update("codes", differences(run, run.codes, seen), lr=options.lr / 2**quarters)


def differences(run: RssaRun, codes: ShotCodes, seen: Callable[[Picture], Tensor]) -> Iterator[Terms]:
    """How far the source's pictures of codes are from the shots, for a batch of them after the other; the sum
    is the mean over all."""
    count = len(codes.codes)
    for first in range(0, count, run.config.train.batch):
        rows = slice(first, first + run.config.train.batch)
        shots, pictures = run.shots[:count][rows], run.source.synthesize(codes.codes[rows])
        with torch.no_grad():
            wanted = seen(shots)
        terms = Terms()
        added = terms.group(len(shots) / count)
        added.add("perceptual", (seen(pictures) - wanted).square().sum(dim=1).mean())
        added.add("pixel", (pictures - shots).square().mean())
        yield terms


def comparison(run: RssaRun) -> Callable[[Picture], Tensor]:
    """Rows BN of pictures whose squared distances say how different they look: by LPIPS, at 256 px at most,
    or by the discriminator's maps."""
    name = run.config.own.rssa.lpips
    lpips = load_lpips(name, run.device) if name else None

    def rows(pictures: Picture) -> Tensor:
        if lpips is None:
            maps = run.discriminator(pictures, features=True)[1]
            # The mean over maps, so that pixels weigh about as much as beside LPIPS.
            return perceptual_vectors(maps) / len(maps) ** 0.5
        small = pictures.shape[-1] <= LARGEST_SIDE
        shown = pictures if small else F.adaptive_avg_pool2d(pictures, LARGEST_SIDE)
        return perceptual_vectors(lpips.maps(shown), lpips.weights)

    return rows


def move_generator(run: RssaRun) -> None:
    """Stage 2: judged as in CDC, the generator keeps what belongs together."""
    for step in run.loop.steps(2):
        # 1. the discriminator: whole pictures around the anchors, or patches of any pictures
        learn_to_judge(run, step, run.latents("discriminator", step))
        # 2. the generator: judged in the same way, and with its old correlations
        run.free("target")
        run.loop.update("target", losses(run, step))
        regularise_generator(run, step)
        # 3. the running average
        run.loop.average()


def losses(run: RssaRun, step: int) -> Iterator[Terms]:
    """What the target learns from in a step."""
    options = run.config.own.rssa
    yield judged(run, step)
    if options.correlation:
        yield together_within(run, step)
    if options.disturbance and (step - 1) % options.disturbance_every == 0:
        yield together_between(run, step)


def together_within(run: RssaRun, step: int) -> Terms:
    """How far the target has lost what belongs together within pictures."""
    source, target = activations(run, _compared(run, "within", step))
    terms = Terms()
    lost = self_correlation(source, target, run.sides)
    terms.group().add("self_correlation", lost, run.config.own.rssa.correlation)
    return terms


def together_between(run: RssaRun, step: int) -> Terms:
    """How far the target has lost what belongs together between neighbouring pictures."""
    options, drawn = run.config.own.rssa, _compared(run, "between", step)
    source, target = activations(run, replace(drawn, z=neighbours(drawn.z, options.disturbed)))
    terms = Terms()
    lost = disturbance_correlation(source, target)
    terms.group().add("disturbance_correlation", lost, options.disturbance)
    return terms


def _compared(run: RssaRun, label: str, step: int) -> Latents:
    """Latents of the pictures whose correlations are compared, not mixed."""
    count, seed = run.config.own.cdc.batch, run.config.run.seed
    return Latents(draw_z(run.source.latent_dim, count, seed, label, step), label, step)
