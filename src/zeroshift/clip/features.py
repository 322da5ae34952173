"""Unit features of labels in CLIP's space, and the direction from one label to another. n(x) = x / ||x||."""

from __future__ import annotations

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import TemplateBank
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
