"""CDC: pictures keep their distances to each other while the generator moves, and away from the few pictures
only patches are judged.

Ojha et al., Few-shot Image Generation via Cross-domain Correspondence (CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.models.seeds import draw_z, rng
from zeroshift.shapes import Latent, Scalar

# 1. The equations.


def near_anchors(step: int, every: int) -> bool:
    """Whether a step, from 1 on, draws around the anchors, where whole pictures are judged: the first of
    every `every` steps. The others draw anywhere, and patches are judged."""
    return (step - 1) % every == 0


def anchors(latent_dim: int, count: int, seed: int) -> Latent:
    """Anchors z_k (count, Z), standard normal, drawn once per run."""
    return draw_z(latent_dim, count, seed, "anchors", 0)


def around(anchors_KZ: Latent, spread: float, batch: int, seed: int, step: int) -> Latent:
    """z = z_k + spread N(0, I), shape BZ, each row by an anchor k of its own, drawn with replacement; row i
    depends on (seed, step, i) only."""
    rows = []
    for row in range(batch):
        draw = rng("around anchors", seed, step, row)
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
