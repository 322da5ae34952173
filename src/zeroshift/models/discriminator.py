"""The discriminator of StyleGAN2, with the parameter names of the widely used PyTorch checkpoints.

Karras et al., Analyzing and Improving the Image Quality of StyleGAN (2020), the residual variant; its
architecture is that of the generator's `StyleGAN2Config`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.errors import InputError
from zeroshift.models import ops
from zeroshift.models.stylegan2 import Bias, EqualLinear, Resettable, StyleGAN2Config, initialise


class EqualConv2d(Resettable):
    """Convolution whose weight is scaled at run time by 1 / sqrt(fan-in); no bias."""

    def __init__(self, num_in: int, num_out: int, side: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in, side, side))
        self.scale = 1.0 / math.sqrt(num_in * side * side)
        self.stride = stride
        self.padding = padding

    def reset(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.weight, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        """BCHW with `num_out` channels."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class Smooth(nn.Module):
    """Low-pass filter before down-sampling."""

    kernel: Tensor

    def __init__(self, padding: int, stride: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.stride = stride
        self.register_buffer("kernel", ops.fir_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """BCHW, every channel filtered; see `ops.fir_filter` for the side."""
        return ops.fir_filter(x, self.kernel, self.padding, self.stride)


class ResidualBlock(nn.Module):
    """Half the side: (down-sampled two-convolution branch + down-sampled skip) / sqrt(2)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(EqualConv2d(num_in, num_in, 3, padding=1), Bias(num_in))
        self.conv2 = nn.Sequential(
            Smooth(padding=2), EqualConv2d(num_in, num_out, 3, stride=2), Bias(num_out)
        )
        # The filter takes the stride of the 1x1 convolution behind it: a quarter of the work, the same
        # numbers.
        self.skip = nn.Sequential(Smooth(padding=1, stride=2), EqualConv2d(num_in, num_out, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """BCHW of half the side, and the outputs of both convolutions of the branch."""
        first = self.conv1(x)
        second = self.conv2(first)
        return (second + self.skip(x)).mul_(1 / ops.SQRT2), first, second


class StyleGAN2Discriminator(nn.Module):
    """Pictures BCHW in [-1, 1] -> logits (B, 1); weights drawn from `seed` alone.

    Note. The minibatch standard deviation couples the pictures of a batch: a logit depends on its neighbours.
    """

    file_format: ClassVar[str] = "zeroshift.stylegan2.discriminator"

    def __init__(self, config: StyleGAN2Config, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        levels = int(math.log2(config.size)) - 1
        widths = [config.channels(config.size >> level) for level in range(levels)]
        blocks = [ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.convs = nn.Sequential(nn.Sequential(EqualConv2d(3, widths[0], 1), Bias(widths[0])), *blocks)
        last = widths[-1]
        self.final_conv = nn.Sequential(EqualConv2d(last + 1, last, 3, padding=1), Bias(last))
        # What is left of a picture has 4 x 4 positions.
        self.final_linear = nn.Sequential(EqualLinear(last * 16, last, activate=True), EqualLinear(last, 1))
        initialise(self, torch.Generator().manual_seed(seed))

    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """Full names of the parameters of every block, from the picture's side: colours into features, then
        one block per halving of the side, then what judges 4 x 4 positions."""
        names = [name for name, _ in self.named_parameters()]
        first = [
            tuple(each for each in names if each.startswith(f"convs.{n}.")) for n in range(len(self.convs))
        ]
        return (*first, tuple(each for each in names if each.startswith("final_")))

    def config_text(self) -> str:
        """The `StyleGAN2Config` as JSON, as files of ours state it."""
        return self.config.as_text()

    def block_outputs(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What every residual block gives, one after the other, each computed when it is asked for: its
        output, and the outputs of both convolutions of its branch."""
        size = self.config.size
        if image.dim() != 4 or image.shape[1:] != (3, size, size):
            raise InputError(
                f"pictures must have shape (batch, 3, {size}, {size}), got {tuple(image.shape)}."
            )
        # Channels last is the faster layout for the filters on CPUs (15 to 25 % of a step).
        x = image.contiguous(memory_format=torch.channels_last) if image.device.type == "cpu" else image
        x = self.convs[0](x)
        for block in list(self.convs)[1:]:
            x, first, second = block(x)
            yield x, first, second

    @overload
    def forward(self, image: Tensor, *, features: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, image: Tensor, *, features: Literal[True]) -> tuple[Tensor, list[Tensor]]: ...
    def forward(self, image: Tensor, *, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (B, 1) of pictures in [-1, 1]; with `features` also the outputs of both convolutions of
        every residual block, in order."""
        x = image
        maps: list[Tensor] = []
        for block in self.block_outputs(image):
            x, first, second = block
            maps += [first, second]
        logits = self.final_linear[-1](self._last_features(x))
        return (logits, maps) if features else logits

    def last_features(self, image: Tensor) -> Tensor:
        """What the last layer makes the logits of, (B, F)."""
        x = image
        for block in self.block_outputs(image):
            x = block[0]
        return self._last_features(x)

    def _last_features(self, x: Tensor) -> Tensor:
        x = self.final_conv(ops.minibatch_std(x))
        return self.final_linear[0](x.flatten(1))
