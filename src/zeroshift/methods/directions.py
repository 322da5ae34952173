"""Where to go in CLIP's space: directions between texts and between pictures.

n(x) = x / ||x||. Everywhere the source comes first and the direction points to the target.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import context_sentence
from zeroshift.errors import InputError
from zeroshift.shapes import Feature, UnitFeature, Words

Residual = Literal["corrected", "published", "none"]


def residual_feature(clip: ClipModel, context: str, label: str, kind: Residual = "corrected") -> Feature:
    """Text feature 1,E that is added to a learned prompt's, un-normalised.

    "corrected": of "{context} {label}." in both stages. "published": of the bare context, which is what the
    authors' second stage really encodes for both labels, because its template has no placeholder. "none":
    zero.
    """
    if kind not in ("corrected", "published", "none"):
        raise InputError(f'unknown residual "{kind}". Use "corrected", "published" or "none".')
    feature_1E = clip.encode_text(
        [context_sentence(context, label, period=True) if kind != "published" else context]
    )
    return torch.zeros_like(feature_1E) if kind == "none" else feature_1E


def prompt_features(
    clip: ClipModel,
    words: Words,
    context: str,
    label: str,
    residual: Tensor | None = None,
    *,
    context_tokens: int | None = None,
) -> UnitFeature:
    """Unit text features h B,E of "{context} {label}" with the whole context replaced by `words` B,M,D.

    Eq. IPL (Guo et al. 2023): h = n( f_Y(V_i) + E_T(...) ), the residual E or 1,E un-normalised and not
    changed. `context_tokens`: the number of tokens of the context, where it is known.
    """
    replaced = len(clip.embed_tokens(context)) if context_tokens is None else context_tokens
    sentence = context_sentence(context, label, period=False)
    features_BE = clip.encode_prompts(words, sentence, replaced=replaced)
    return normalize(features_BE if residual is None else features_BE + residual)


def prompt_direction(source: UnitFeature, target: UnitFeature) -> UnitFeature:
    """Eq. IPL: a text direction for each image, n(h_target - h_source), shape B,E."""
    return normalize(target - source)


def recentred(found: UnitFeature, mean: Feature, label: UnitFeature, individual: float = 1.0) -> UnitFeature:
    """n(label + individual (found - mean)), shape B,E: directions of pictures whose mean 1,E is replaced by
    the label's 1,E, with a share of what is each picture's own.

    Not published. A learned prompt moves all directions alike, away from the label's, besides telling the
    pictures apart; only the second is wanted (docs/adr/0017), and not all of it is about the domain.
    """
    return normalize(label + individual * (found - mean))


def image_direction(source: Feature, target: Feature, floor: float = 0.05) -> Feature:
    """Eq. NADA and IPL, with a bounded divisor: d / max(||d||, floor), d = n(target) - n(source), shape B,E.

    Unit rows where the pictures differ by more than `floor`, shorter ones below, zero where they are equal. 0
    gives the published formula, which is NaN at a zero row.

    Note. Every first step without live noise has zero rows. A divisor near 1e-8 lets one gradient of 1e6 and
    more into Adam's second moment, after which nothing moves for a thousand steps.
    """
    difference = normalize(target) - normalize(source)
    norm = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    return difference / (norm.clamp_min(floor) if floor > 0 else norm)
