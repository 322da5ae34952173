"""Unit features of labels in CLIP's space, and the direction from one label to another. n(x) = x / ||x||."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import TemplateBank
from zeroshift.config.targets import target_parts
from zeroshift.shapes import TemplateFeature, UnitFeature


def normalize(x: Tensor) -> Tensor:
    """n(x) over the last axis; zero for a zero row."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


def template_features(clip: ClipModel, label: str, bank: TemplateBank | None = None) -> TemplateFeature:
    """Unit text features P,E of a label in every template, by default those of the CLIP."""
    return normalize(clip.encode_text((bank or clip.templates).sentences(label)))


def text_direction(
    clip: ClipModel, source: str, target: str, bank: TemplateBank | None = None
) -> UnitFeature:
    """Eq. StyleGAN-NADA (Gal et al. 2022): n( mean_k [ n(E_T(T_k(target))) - n(E_T(T_k(source))) ] ), shape
    1,E."""
    difference_PE = template_features(clip, target, bank) - template_features(clip, source, bank)
    return normalize(difference_PE.mean(dim=0, keepdim=True))


def mixed(vectors: Sequence[Tensor], shares: Sequence[float]) -> UnitFeature:
    """Eq. UniHDA (arXiv 2401.12596): n( sum_i a_i x_i ) of unit rows x_i B,E or 1,E, for hybrid domains; the
    only one as it is."""
    if len(vectors) == 1:
        return vectors[0]
    weighted = [share * each for share, each in zip(shares, vectors, strict=True)]
    return normalize(torch.stack(torch.broadcast_tensors(*weighted)).sum(dim=0))


def target_direction(clip: ClipModel, source: str, target: str) -> UnitFeature:
    """Direction 1,E from a source label to a target: `text_direction`, of a hybrid mixed by shares."""
    parts = target_parts(target)
    found = [text_direction(clip, source, part.label) for part in parts]
    return mixed(found, [part.share for part in parts])


def target_feature(clip: ClipModel, target: str) -> UnitFeature:
    """Unit feature 1,E of a target: n of the mean over templates, of a hybrid mixed by shares."""
    parts = target_parts(target)
    found = [normalize(template_features(clip, part.label).mean(dim=0, keepdim=True)) for part in parts]
    return mixed(found, [part.share for part in parts])
