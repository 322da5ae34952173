"""Latent compression: styles drawn near to the space that the codes of a few pictures span.

Xiao et al., Few Shot Generative Model Adaption via Relaxed Spatial Structural Alignment (CVPR 2022), section
3.3. The length of a style is kept, so the map is not linear and cannot become part of any layer's weights: a
generator that was moved with it carries it along (ADR 0039).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

SMALLEST = 1e-6
"""Directions of the codes that are this much weaker than the strongest count as none."""


def stretched(shares: Sequence[float], num_latents: int) -> Tensor:
    """Shares (K,) for another number of latents, at least 2 of each: linear between the given ones."""
    places = torch.linspace(0, len(shares) - 1, num_latents, dtype=torch.float64)
    below = places.floor().long().clamp_max(len(shares) - 2)
    given = torch.tensor(shares, dtype=torch.float64)
    return torch.lerp(given[below], given[below + 1], places - below)


class LatentCompression(nn.Module):
    """w' = alpha_l |w| n(P_l w) + (1 - alpha_l) w for every latent l, P_l the projection onto the span of the
    codes' rows l."""

    basis: Tensor
    alpha: Tensor

    def __init__(self, num_latents: int, style_dim: int, num_codes: int) -> None:
        """One that changes nothing; weights or `of` make it another."""
        super().__init__()
        # Unit columns that span the rows of the codes; zeros where these span less.
        self.register_buffer("basis", torch.zeros(num_latents, style_dim, num_codes))
        self.register_buffer("alpha", torch.zeros(num_latents))

    @classmethod
    def of(cls, codes: Tensor, alpha: Tensor) -> Self:
        """The compression by codes NKS of N pictures, with shares alpha (K,)."""
        made = cls(codes.shape[1], codes.shape[2], len(codes)).to(codes.device)
        columns, strength, _ = torch.linalg.svd(codes.double().permute(1, 2, 0), full_matrices=False)
        kept = strength > SMALLEST * strength[:, :1]
        width = columns.shape[-1]
        made.basis[..., :width] = columns * kept[:, None]
        made.alpha.copy_(alpha)
        return made

    def with_shares(self, alpha: Tensor) -> Self:
        """The same codes with other shares (K,)."""
        made = type(self)(*self.basis.shape).to(self.basis)
        made.basis.copy_(self.basis)
        made.alpha.copy_(alpha)
        return made

    def forward(self, w: Tensor) -> Tensor:
        """Styles BKS of styles BS, which stand for all latents, or BKS."""
        with torch.autocast(w.device.type, enabled=False):
            w = w.to(self.basis.dtype)
            rows = w[:, None].expand(-1, len(self.alpha), -1) if w.dim() == 2 else w
            projected = torch.einsum(
                "lsn,bln->bls", self.basis, torch.einsum("lsn,bls->bln", self.basis, rows)
            )
            length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            unit = nn.functional.normalize(projected, dim=-1)
            alpha = self.alpha[:, None]
            return alpha * length * unit + (1 - alpha) * rows
