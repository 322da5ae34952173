"""DiffusionCLIP's published fine-tuning, written out literally from its formulas: the yardstick of
`benchmarks/diffusion.py`.

Eq. Kim et al., DiffusionCLIP (CVPR 2022), and its code. What costs its authors time is kept: every picture of
the source encoded by CLIP anew at every step, gradients of every CLIP weight, which are never taken away,
torch's plain Adam. Where the published program is unclear or wasteful beyond its method the cheaper reading
is taken: one model is held (the source's pictures are made noisy before it moves), the source's picture is
encoded without gradient, only one device is used, and nothing is drawn or saved. What is computed follows our
own defaults (bounded image direction), so that the losses must equal those of the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from literal import encode, unit
from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import AdaptConfig


def grid(t0: int, count: int) -> list[int]:
    """Times from 0 to t0."""
    return [int(share * t0) for share in torch.linspace(0, 1, count, dtype=torch.float64).tolist()]


class LiteralDiffusion:
    """Both modes, one picture at a time. The models are changed in place."""

    def __init__(
        self,
        unet: nn.Module,
        clips: Sequence[ClipModel],
        config: AdaptConfig,
        *,
        patch: int = 1,
        velocity: bool = False,
    ) -> None:
        """`patch`: side of the blocks of pixels that the network takes as channels; `velocity`: it predicts
        that, not noise."""
        self.unet, self.clips, self.config, self.patch, self.velocity = unet, clips, config, patch, velocity
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).float()
        self.abar = torch.cat([torch.cumprod(1 - betas, dim=0), torch.ones(1)])
        for clip in clips:
            clip.memory_format = torch.contiguous_format
            clip.model.to(memory_format=torch.contiguous_format).requires_grad_(True)
        unet.requires_grad_(True)
        self.adam = torch.optim.Adam(unet.parameters(), lr=config.train.lr)
        self.directions = [self._direction(clip) for clip in clips]

    def _direction(self, clip: ClipModel) -> Tensor:
        """Direction of the words, computed once and kept."""
        means = [
            unit(encode(clip, clip.templates.sentences(label)))
            for label in (self.config.source, self.config.target)
        ]
        return unit((means[1] - means[0]).mean(dim=0, keepdim=True))

    def step(self, x: Tensor, t: int, t_next: int) -> tuple[Tensor, Tensor]:
        """x at the next time and the clean picture that is predicted; time -1 is the clean picture."""
        now, then = self.abar[t], self.abar[t_next]
        seen = F.pixel_unshuffle(x, self.patch)
        found = F.pixel_shuffle(self.unet(seen, torch.full((len(x),), t), return_dict=False)[0], self.patch)
        noise = now.sqrt() * found + (1 - now).sqrt() * x if self.velocity else found
        clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * noise, clean

    @torch.no_grad()
    def noisy(self, picture: Tensor) -> Tensor:
        """A picture's latent at time t0, before anything moves."""
        times = grid(self.config.train.diffusion.t0, self.config.train.diffusion.invert_steps)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            picture, _ = self.step(picture, t, t_next)
        return picture

    def loss(self, picture: Tensor, made: Tensor) -> Tensor:
        """Loss of what is made of a picture."""
        weights, total = self.config.losses, picture.new_zeros(())
        for weight, clip, words in zip(self.config.weights, self.clips, self.directions, strict=True):
            with torch.no_grad():
                seen = unit(clip.encode_image(picture))
            moved = unit(clip.encode_image(made)) - seen
            moved = moved / moved.norm(dim=-1, keepdim=True).clamp_min(self.config.quirks.image_floor)
            direction = (1 - (moved * words).sum(dim=-1)).mean()
            far = (picture - made).abs().mean()
            total = total + weight * (-weights.direction * ((2 - direction) / 2).log() + weights.pixel * far)
        return total

    def losses(self, picture: Tensor, x: Tensor) -> Iterator[float]:
        """Losses of one visit to a picture with the latent x: one of mode through, as many as steps of mode
        per-step."""
        tuning = self.config.train.diffusion
        times = grid(tuning.t0, tuning.train_steps)[::-1]
        for t, t_next in zip(times, [*times[1:], -1], strict=True):
            x, clean = self.step(x, t, t_next)
            if tuning.mode == "per-step":
                yield self._learn(self.loss(picture, clean))
                x = x.detach()
        if tuning.mode == "through":
            yield self._learn(self.loss(picture, x))

    def _learn(self, loss: Tensor) -> float:
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return float(loss.detach())
