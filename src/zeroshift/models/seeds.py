"""Seeds -> noise, and what is done with styles: truncation, mixing, the average.

Every draw comes from a CPU generator seeded by its own key, so a sample depends on its key alone: not on its
batch, the device, earlier draws or the global random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zeroshift.errors import InputError

if TYPE_CHECKING:
    from zeroshift.models.protocol import Generator


def rng(*key: int | str) -> torch.Generator:
    """CPU generator seeded by the SHA-256 of the key, e.g. rng(run_seed, "stage2", step, sample)."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def z_from_seeds(seeds: Sequence[int] | range, latent_dim: int) -> Tensor:
    """Noise BZ, standard normal; row i depends on seeds[i] only."""
    if not len(seeds):
        raise InputError("seeds is empty. Give at least one integer, for example range(16).")
    return torch.stack([torch.randn(latent_dim, generator=rng("z", int(seed))) for seed in seeds])


def draw_z(latent_dim: int, batch: int, seed: int, stage: str, step: int) -> Tensor:
    """Noise BZ of one training step; row i depends on (seed, stage, step, i) only."""
    return torch.stack(
        [torch.randn(latent_dim, generator=rng("z", seed, stage, step, i)) for i in range(batch)]
    )


def draw_noise(
    shapes: Sequence[tuple[int, ...]], batch: int, seed: int, stage: str, step: int, first_sample: int = 0
) -> list[Tensor]:
    """Noise maps (B, 1, H, W) of one step, one per shape; row i depends on (seed, stage, step, first_sample +
    i) only."""
    sources = [rng("noise", seed, stage, step, first_sample + i) for i in range(batch)]
    return [
        torch.stack([torch.randn(tuple(shape[1:]), generator=source) for source in sources])
        for shape in shapes
    ]


def check_truncation(psi: float) -> None:
    """InputError for a truncation outside 0 to 1."""
    if not 0 <= psi <= 1:
        raise InputError(
            f"truncation must be between 0 and 1, got {psi}; 1 is the full variety, 0 the average picture."
        )


def truncate(w: Tensor, average: Tensor, psi: float) -> Tensor:
    """Styles BS or BKS pulled towards the average (S, 1S or KS): average + psi (w - average). psi 1 changes
    nothing."""
    return w if psi == 1.0 else average + psi * (w - average)


def mix(first: Tensor, second: Tensor, index: int, num_latents: int) -> Tensor:
    """BKS whose rows below `index` come from `first` and the others from `second` (BS or BKS each)."""
    if not 0 <= index <= num_latents:
        raise InputError(f"the mixing index must lie in 0 to {num_latents}, got {index}.")
    rows = [w.unsqueeze(1).expand(-1, num_latents, -1) if w.dim() == 2 else w for w in (first, second)]
    return torch.cat([rows[0][:, :index], rows[1][:, index:]], dim=1)


@torch.no_grad()
def average_style(generator: Generator, num_samples: int = 4096, seed: int = 0) -> Tensor:
    """Mean style (S,) over `num_samples` draws: the centre of truncation for a generator that was saved
    without one."""
    z = torch.randn(num_samples, generator.latent_dim, generator=rng("average_style", seed))
    parts = [generator.map(part.to(generator.latent_avg)) for part in z.split(512)]
    return torch.cat(parts).mean(dim=0)
