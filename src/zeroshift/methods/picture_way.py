"""The way from the source's pictures to pictures of the target in CLIP's space: direction, length, and where
it ends.

NADA's code has the direction ("image-based targets"). The length and the mean over many pictures are ours
(docs/adr/0037). x are unit features of pictures, rows N,E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.errors import InputError
from zeroshift.shapes import Feature, UnitFeature

LEAST_LENGTH = 0.25
"""Smallest length of a way, as a share of the distance of the means: what is left by chance is never known so
well that it could be nothing."""

ROWS_PER_CODE = 4
"""Pictures for every number of a code from which features are told by least squares; fewer would fit what is
chance."""


@dataclass(frozen=True)
class SetMean:
    """Mean of the unit features of some pictures, for that of all pictures of their kind."""

    mean: Feature
    """1,E; shorter than 1, the more the pictures differ."""
    error: float
    """Expected square of its distance to the mean of all such pictures; 0 where that is not known."""


@dataclass(frozen=True)
class PictureWay:
    """What one CLIP knows of a target that is given by pictures."""

    direction: UnitFeature
    """1,E, from the mean of the source's pictures to that of the target's."""
    length: float
    """How far a picture of the source is from the target along that direction, on average."""
    target: UnitFeature
    """n of the mean of the target's pictures, 1,E."""


def set_mean(features: UnitFeature) -> SetMean:
    """mean_j x_j, and tr S / N by the spread of the rows, S = sum_j (x_j - mean)(x_j - mean)^T / (N - 1); of
    one picture the spread is not known."""
    mean = features.mean(dim=0, keepdim=True)
    freedom = max(1, len(features) - 1)
    return SetMean(mean, float((features - mean).square().sum() / freedom / len(features)))


def worth_regressing(codes: Tensor) -> bool:
    """Whether there are ROWS_PER_CODE rows for every number of codes N,S."""
    return len(codes) >= ROWS_PER_CODE * codes.shape[1]


def regressed_mean(features: UnitFeature, codes: Tensor, code_mean: Tensor) -> SetMean:
    """mean_j x_j + (cbar - mean_j c_j) B, where the rows x_j are told by their codes c_j (N,S) as
    x_j = a + c_j B + rest, least squares, and cbar (S,) is the mean of all codes, known much better than that
    of these.

    A control variate: the error is that of the rest alone, tr S_rest / N. With no more rows than a code has
    numbers there is no rest; `worth_regressing` asks for several times as many.
    """
    count, width = codes.shape
    x, c = features.double().cpu(), codes.double().cpu()
    centred = c - c.mean(dim=0)
    B = torch.linalg.lstsq(centred, x - x.mean(dim=0)).solution
    rest = x - x.mean(dim=0) - centred @ B
    mean = x.mean(dim=0) + (code_mean.double().cpu() - c.mean(dim=0)) @ B
    error = float(rest.square().sum() / (count - width - 1) / count)
    return SetMean(mean[None].to(features), error)


def picture_set_direction(source: Feature, target: Feature) -> UnitFeature:
    """Eq. StyleGAN-NADA's code: n( mean_j n(E_I(target_j)) - mean_i n(E_I(source_i)) ), shape 1,E, of the two
    means 1,E."""
    return normalize(target - source)


def way_length(source: SetMean, target: SetMean) -> float:
    """L = ( |m|^2 - e_t - e_s ) / |m|, m the difference of the means and e their errors; not below
    LEAST_LENGTH |m|.

    The steps of pictures that arrive have m as their mean, so along n(m) they go |m| on average. But few
    pictures lie off the mean of their kind, which makes |m| larger: E |m|^2 = |m_true|^2 + e_t + e_s. Along
    n(m) the true step goes m_true . n(m), of which L is the unbiased estimate up to the divisor.
    """
    apart = float(torch.linalg.vector_norm(target.mean - source.mean))
    if not apart:
        return 0.0
    return max(LEAST_LENGTH * apart, (apart**2 - source.error - target.error) / apart)


def picture_way(source: SetMean, target: SetMean, name: str) -> PictureWay:
    """The way between two means; InputError, with the name of the CLIP, where they are the same."""
    length = way_length(source, target)
    if not length:
        raise InputError(
            f"the pictures of the target are the same as the source's to the CLIP {name}, so there is no "
            "direction; give others."
        )
    direction = picture_set_direction(source.mean, target.mean)
    return PictureWay(direction, length, normalize(target.mean))
