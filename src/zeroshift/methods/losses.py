"""Losses as pure functions, one per equation. Features and directions come in as unit vectors, but for
`texture`; scalars go out.

Sources: NADA, StyleGAN-NADA (Gal et al., SIGGRAPH 2022) and its code; IPL (Guo et al., CVPR 2023) and its
code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.errors import InputError
from zeroshift.shapes import Feature, Scalar, UnitFeature


def directional(image_direction: Tensor, text_direction: Tensor) -> Scalar:
    """Eq. NADA, IPL stage 2: mean_i (1 - DeltaI_i . DeltaT_i); text directions B,E, or 1,E for all images.
    Range [0, 2].

    Note. A product of given directions, not a cosine: normalising again would undo the bounded divisor of
    `image_direction`.
    """
    return (1 - (image_direction * text_direction).sum(dim=-1)).mean()


def to_point(
    source: UnitFeature,
    target: UnitFeature,
    text_direction: UnitFeature,
    length: float,
    across: float = 1.0,
) -> Scalar:
    """Mean over pictures of ((L - p_i)^2 + across |d_i - p_i DeltaT_i|^2) / L^2, d_i = t_i - s_i the step of
    a picture and p_i = d_i . DeltaT_i its part along the text direction (B,E, or 1,E for all): square
    distance to the point at length L, with what goes astray weighed by `across`; 1 where nothing has moved.
    Range from 0 up.

    Not published. Unlike `directional` it grows again beyond the point.
    """
    step = target - source
    along = (step * text_direction).sum(dim=-1, keepdim=True)
    astray = (step - along * text_direction).square().sum(dim=-1)
    return ((length - along.squeeze(-1)).square() + across * astray).mean() / length**2


def relation(source: UnitFeature, target: UnitFeature) -> Scalar:
    """Eq. HyperDomainNet (in-domain loss): 2 / (B (B - 1)) sum_{i<j} (s_i . s_j - t_i . t_j)^2; 0 for one
    picture. Of features ...,B,E the mean over what leads. Range [0, 4]."""
    count = source.shape[-2]
    change = source @ source.mT - target @ target.mT
    return change.triu(diagonal=1).square().sum(dim=(-2, -1)).mean() * 2 / max(1, count * (count - 1))


def log_direction(directional_loss: Scalar) -> Scalar:
    """Eq. DiffusionCLIP, as coded: -log((2 - L_dir) / 2), L_dir the mean directional loss in [0, 2). Range
    from 0 up."""
    return -((2 - directional_loss) / 2).log()


def contrastive(image: UnitFeature, text: UnitFeature, logit_scale: float) -> Scalar:
    """Eq. IPL stage 1, as coded: mean of row and column cross-entropies of logit_scale I h^T, pairs on the
    diagonal."""
    logits = logit_scale * image @ text.T
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def classification(image: UnitFeature, labels: UnitFeature, logit_scale: float) -> Scalar:
    """Eq. CoOp (Zhou et al. 2022): mean cross-entropy of logit_scale I h_Y^T over labels' prompts Y,E; images
    are of row 0."""
    logits = logit_scale * image @ labels.T
    return F.cross_entropy(logits, torch.zeros(len(image), dtype=torch.long, device=image.device))


def domain(prompt: UnitFeature, label_mean: Tensor) -> Scalar:
    """Eq. IPL stage 1: mean_i (1 - cos(h_i, tbar)), tbar the mean of a label's template features (E or 1,E,
    any length)."""
    return (1 - F.cosine_similarity(prompt, label_mean.reshape(1, -1), dim=-1)).mean()


def global_clip(image: UnitFeature, text: UnitFeature, logit_scale_over_100: float = 1.0) -> Scalar:
    """Eq. NADA (global loss): mean_i (1 - logit_i / 100); logit_i / 100 is a cosine where the scale is
    100."""
    return (1 - logit_scale_over_100 * (image * text).sum(dim=-1)).mean()


def manifold(source: UnitFeature, target: UnitFeature, text_cosine: float | Tensor) -> Scalar:
    """Eq. NADA's code (angle loss): mean_i | s_i . t_i - c |, c the cosine of the two labels' template
    means."""
    return ((source * target).sum(dim=-1).clamp(-1, 1) - text_cosine).abs().mean()


def texture(wanted: Feature, image: Feature) -> Scalar:
    """Eq. NADA's code (texture loss): mean square over all elements of E(wanted) - E(image), features
    un-normalised, of a ResNet.

    `wanted` B,E, or 1,E for all images.
    """
    return (image - wanted).square().mean()


def pixel(source: Tensor, target: Tensor) -> Scalar:
    """Eq. DiffusionCLIP: mean |x_0 - x| over all numbers of the pictures."""
    return (target - source).abs().mean()


def raster(source: Tensor, target: Tensor, block: int = 4, window: int = 4) -> Scalar:
    """Mean square of the part of x - x_0 that repeats from block to block: 0 where changes do not depend on
    the place within one.

    Of x - x_0 the mean over every `window` x `window` blocks of `block` x `block` px, at each of their
    places, less the mean over the places. What is left of a side beyond whole blocks is not looked at;
    windows at edges are smaller. Not published: networks that make blocks of pixels, or double pixels, cover
    pictures with a raster when they move, which no CLIP minds.
    """
    rows, columns = (side // block * block for side in source.shape[-2:])
    places = F.pixel_unshuffle((target - source)[..., :rows, :columns], block).unflatten(1, (-1, block**2))
    return (
        F.avg_pool2d((places - places.mean(dim=2, keepdim=True)).flatten(1, 2), window, ceil_mode=True)
        .square()
        .mean()
    )


def identity(source: UnitFeature, target: UnitFeature) -> Scalar:
    """Eq. DiffusionCLIP: mean_i (1 - R(x_0,i) . R(x_i)), R the unit features of a face network."""
    return (1 - (source * target).sum(dim=-1)).mean()


def patch(patch_direction: UnitFeature, part_directions: UnitFeature) -> Scalar:
    """Eq. NADA's code (patch-directional): mean_{i,p} (1 - e_i . d_p) softmax_p(e_i . d_p).

    e: directions between source and target patches, one row per patch; d: text directions of the parts, one
    row per part.
    """
    similarity = patch_direction @ part_directions.T
    return ((1 - similarity) * similarity.softmax(dim=-1)).mean()


def crop_patches(images: Tensor, centers_xy: Tensor, size: int = 510) -> Tensor:
    """Squares B,C,size,size around one centre (x column, y row) per image: rows y - size/2 to y + size/2 - 1,
    columns alike.

    Raises InputError where a square leaves its picture.
    """
    half = size // 2
    corners = (centers_xy - half).tolist()
    height, width = images.shape[-2:]
    for left, top in corners:
        if min(left, top) < 0 or left + size > width or top + size > height:
            raise InputError(
                f"a {size} px patch at column {left}, row {top} leaves the {width}x{height} px picture. Use "
                "a larger one."
            )
    return torch.stack(
        [image[:, y : y + size, x : x + size] for image, (x, y) in zip(images, corners, strict=True)]
    )
