"""How much a weight, or a filter, matters to what a network was trained for, and losses that hold it by that.

Elastic Weight Consolidation (Kirkpatrick et al., 2017; for few shots Li et al., NeurIPS 2020) and the filters
of AdAM (Zhao et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from zeroshift.shapes import Scalar


def fisher(
    samples: Iterable[Sequence[tuple[float, Scalar]]], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """F = mean over samples of sum_k share_k (d L_k / d theta)^2 by weight. A sample is its losses L_k with
    their shares, which may have parts of their graphs in common."""
    found = {name: torch.zeros_like(each) for name, each in weights.items()}
    count = 0
    for sample in samples:
        count += 1
        for number, (share, loss) in enumerate(sample, start=1):
            gradients = torch.autograd.grad(
                loss, list(weights.values()), retain_graph=number < len(sample), allow_unused=True
            )
            for each, gradient in zip(found.values(), gradients, strict=True):
                if gradient is not None:
                    each += share * gradient.square()
    return {name: each / count for name, each in found.items()}


def of_mean_one(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """F / sum F: by it `elastic_loss` is the mean, over all weights, of F (theta - theta_s)^2 with F scaled
    to the mean 1, so that its weight in the loss has no unit of F. All alike where F is 0 everywhere."""
    total = torch.stack([each.sum() for each in importance.values()]).sum()
    if not total > 0:
        count = sum(each.numel() for each in importance.values())
        return {name: torch.full_like(each, 1 / count) for name, each in importance.items()}
    return {name: each / total for name, each in importance.items()}


def elastic_loss(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Scalar:
    """sum_l F_l (theta_l - theta_l,s)^2 over all weights: Elastic Weight Consolidation."""
    parts = [(importance[name] * (weights[name] - start[name]).square()).sum() for name in importance]
    return torch.stack(parts).sum()


def filter_importance(v: Tensor, u: Tensor, bias: Tensor | None = None) -> Tensor:
    """Importance (out,) of every filter of a modulated weight, of the Fisher information of v (out,), of u,
    and of its bias (out,) where it has one: F_v + mean(F_u), with a bias (F_v + mean(F_u) + F_b) / 2."""
    found = v + u.mean()
    return found if bias is None else (found + bias) / 2


def most_important(importance: Mapping[str, Tensor], quantile: float) -> dict[str, Tensor]:
    """Whether each filter (out,) of a group of weights lies above the quantile of the importance of all
    filters of the group: quantile 0 all of them, 1 none."""
    if not importance:
        return {}
    ranks = torch.cat(list(importance.values())).argsort(stable=True).argsort()
    above = ranks >= int(quantile * len(ranks))
    return dict(zip(importance, above.split([len(each) for each in importance.values()]), strict=True))
