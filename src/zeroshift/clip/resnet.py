"""OpenAI CLIP's ResNets (RN50, RN101, RN50x4, ...), whose picture tower transformers lacks.

The text side is transformers' CLIP. Attributes are named as in its CLIPModel, weights inside the picture
tower as OpenAI's.

Source: Radford et al., ICML 2021, section 2.4 (He et al. 2015 with the stem and pools of ResNet-D, and
attention pooling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REDUCTION = 32
"""Side of the picture over side of the last map."""


class Pooled(NamedTuple):
    """What a tower returns, under transformers' name."""

    pooler_output: Tensor
    """Features B,F before the projection."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; stride 2 is an average pool before the last
    convolution, on both ways."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps B,4*planes,H/stride,W/stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
            y = F.avg_pool2d(y, self.stride)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """One vector of a map: multi-head attention over its positions and their mean, asked by the mean
    alone."""

    def __init__(self, side: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(side * side + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Vectors B,F of maps B,F,H,W."""
        places_BNF = x.flatten(2).transpose(1, 2)
        tokens_BNF = (
            torch.cat([places_BNF.mean(dim=1, keepdim=True), places_BNF], dim=1) + self.positional_embedding
        )

        def by_head(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = self.q_proj(tokens_BNF[:, :1])
        key = self.k_proj(tokens_BNF)
        value = self.v_proj(tokens_BNF)
        return F.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value)).flatten(1)


class ResNetTower(nn.Module):
    """Stem of three convolutions, four stages of bottlenecks, attention pool; batch norms use their running
    statistics.

    Pictures must be `resolution` px, because the pool has a position for every cell of the last map.
    """

    def __init__(self, layers: Sequence[int], width: int, resolution: int, heads: int) -> None:
        super().__init__()
        half = width // 2
        channels = width
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        for number, count in enumerate(layers):
            planes = width << number
            blocks = [Bottleneck(channels, planes, 1 + (number > 0))]
            blocks += [Bottleneck(4 * planes, planes, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            channels = 4 * planes
        self.attnpool = AttentionPool(resolution // REDUCTION, channels, heads)

    def forward(self, pixel_values: Tensor) -> Pooled:
        """Features B,32*width of prepared pictures BCHW."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        return Pooled(self.attnpool(x))


class ResNetClipConfig(NamedTuple):
    """What describes a ResNetClip, under transformers' names where it has them."""

    text_config: Any
    layers: tuple[int, ...]
    width: int
    image_size: int
    heads: int
    projection_dim: int
    model_type: str = "clip_resnet"


class ResNetClip(nn.Module):
    """Both towers, their projections and the logit scale, untrained: the counterpart of transformers'
    CLIPModel."""

    def __init__(self, config: ResNetClipConfig) -> None:
        from transformers import CLIPTextModel

        super().__init__()
        self.config = config
        self.text_model = CLIPTextModel(config.text_config)
        self.vision_model = ResNetTower(config.layers, config.width, config.image_size, config.heads)
        self.visual_projection = nn.Linear(REDUCTION * config.width, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
