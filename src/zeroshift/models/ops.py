"""FIR filtering, modulated convolution and friends of StyleGAN2, in plain PyTorch.

Everything here is differentiable twice (R1 and path length need it) and works in float32, float64 and under
autocast. Source of all formulas: Karras et al., Analyzing and Improving the Image Quality of StyleGAN (2020),
in the layout of the widely used PyTorch checkpoints.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SQRT2 = math.sqrt(2.0)
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)

ModulationPath = Literal["scale", "grouped"]


def fir_kernel(gain: float = 1.0) -> Tensor:
    """Separable low-pass kernel, 4 x 4, sum `gain`. Up-sampling by 2 needs gain 4, smoothing and
    down-sampling gain 1."""
    taps = torch.tensor(FIR_TAPS)
    square = torch.outer(taps, taps)
    return square * (gain / square.sum())


def fir_filter(x: Tensor, kernel: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Every channel of BCHW filtered by the kernel; side (H + 2 padding - 4) / stride + 1."""
    channels = x.shape[1]
    # The strided bfloat16 backward pass on CPUs is several times slower than the float32 one.
    widen = stride > 1 and x.device.type == "cpu"
    with torch.autocast(x.device.type, enabled=False):
        source = x.to(kernel.dtype) if widen else x
        weight = kernel.to(source.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(source, weight, padding=padding, stride=stride, groups=channels).to(x.dtype)


def fir_upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """BCHW enlarged by 2: zeros inserted after every sample, then the kernel (gain 4)."""
    channels = x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, -1, -1)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)


def pixel_norm(x: Tensor) -> Tensor:
    """BZ scaled to mean square 1 over the features."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def scaled_leaky_relu(x: Tensor, bias: Tensor) -> Tensor:
    """sqrt(2) leaky_relu(x + bias) with slope 0.2; the gain keeps unit variance. Features are dimension 1."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    # Gain and bias in one pass over the activations, the nonlinearity in place: they bound the time on CPUs.
    return F.leaky_relu_(torch.add((bias * SQRT2).to(x.dtype).view(shape), x, alpha=SQRT2), 0.2)


def minibatch_std(x: Tensor, group: int = 4) -> Tensor:
    """BCHW with one more channel: the standard deviation across a group of pictures, averaged over channels
    and positions.

    Note. Sample b belongs to sub-group b mod (B / group); a batch that `group` does not divide uses the
    largest divisor below it.
    """
    batch, channels, height, width = x.shape
    size = max(n for n in range(1, min(group, batch) + 1) if batch % n == 0)
    grouped = x.view(size, batch // size, channels, height, width)
    spread = torch.sqrt(grouped.var(dim=0, unbiased=False) + 1e-8).mean(dim=(1, 2, 3))
    extra = spread.repeat(size).view(batch, 1, 1, 1).expand(batch, 1, height, width)
    return torch.cat([x, extra], dim=1)


def modulated_conv2d(
    x: Tensor, weight: Tensor, style: Tensor, path: ModulationPath, up_kernel: Tensor | None = None
) -> Tensor:
    """Convolution whose input channels are scaled per sample by `style`; not demodulated.

    Shapes. x BCHW, weight (out, in, k, k), style B x in. With `up_kernel` (gain 4) the side doubles.
    Note. Both paths give the same numbers: "scale" multiplies the activations and shares one convolution,
    "grouped" multiplies the weights and runs one group per sample.
    """
    convolve = _scaled_convolution if path == "scale" else _grouped_convolution
    y = convolve(x, weight, style, up=up_kernel is not None)
    return y if up_kernel is None else fir_filter(y, up_kernel, padding=1)


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """B x out factors 1 / || weight * style || over input channels and kernel positions. weight (out, in, k,
    k), style B x in.

    Note. The factor is constant per sample and output channel, so multiplying the output of the convolution
    (and of the filter behind it) equals demodulating the weights.
    """
    with torch.autocast(weight.device.type, enabled=False):
        energy = weight.square().sum(dim=(2, 3))
        return torch.rsqrt(style.to(weight.dtype).square() @ energy.t() + 1e-8)


def styled_activation(x: Tensor, factor: Tensor, bias: Tensor, noise: Tensor | None) -> Tensor:
    """sqrt(2) leaky_relu(factor x + noise + bias) with slope 0.2. x BCHW, factor BC, bias C, noise (1 or
    B)1HW."""
    # The gain is folded into the three small tensors and the rest is in place: fewer passes over the
    # activations.
    y = x * (factor * SQRT2).to(x.dtype)[:, :, None, None]
    if noise is not None:
        y.add_((noise * SQRT2).to(x.dtype))
    y.add_((bias * SQRT2).to(x.dtype)[None, :, None, None])
    return F.leaky_relu_(y, 0.2)


def _scaled_convolution(x: Tensor, weight: Tensor, style: Tensor, up: bool) -> Tensor:
    x = x * style.to(x.dtype)[:, :, None, None]
    if up:
        return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def _grouped_convolution(x: Tensor, weight: Tensor, style: Tensor, up: bool) -> Tensor:
    batch, channels, height, width = x.shape
    out, _, side, _ = weight.shape
    own = weight * style.to(weight.dtype)[:, None, :, None, None]
    folded = x.reshape(1, batch * channels, height, width)
    if up:
        per_sample = own.transpose(1, 2).reshape(batch * channels, out, side, side)
        y = F.conv_transpose2d(folded, per_sample, stride=2, groups=batch)
    else:
        y = F.conv2d(folded, own.reshape(batch * out, channels, side, side), padding=side // 2, groups=batch)
    return y.view(batch, out, *y.shape[2:])
