"""Published picture networks in plain PyTorch, under the names of their published weights: Inception of FID,
VGG16, AlexNet, HED.

torchvision is not needed: its builds for some machines lag behind PyTorch's. Each network is written from its
paper and from the shapes of its weights. Only features come out; no network here is trained.

Sources: Szegedy et al. 2016 (Inception v3); Simonyan and Zisserman 2015 (VGG); Krizhevsky 2014 (AlexNet, one
tower); Xie and Tu 2015 (HED).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kernel = int | tuple[int, int]
Step = tuple[str, int, Kernel]
"""Name, channels and kernel of one convolution."""
Branch = Sequence[Sequence[Step]]
"""What is done one after the other; the convolutions of one place see the same input, side by side."""


def _line(*steps: Step) -> list[Sequence[Step]]:
    """A branch of single convolutions."""
    return [(step,) for step in steps]


class Conv(nn.Module):
    """Convolution without bias, batch norm (eps 0.001, TensorFlow's), ReLU."""

    def __init__(self, width: int, channels: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad else 0
        self.conv = nn.Conv2d(width, channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of `channels` channels."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, concatenated, and a pooled one behind them.

    With `halve` the last convolution of every branch has stride 2 without padding and the pool is a bare
    maximum. Else a 1x1 convolution of `pooled` channels follows the pool; the average leaves padding out of
    its count, as TensorFlow's does.
    """

    def __init__(
        self,
        width: int,
        branches: Sequence[Branch],
        pooled: int = 0,
        maximum: bool = False,
        halve: bool = False,
    ) -> None:
        super().__init__()
        self.maximum = maximum
        self.halve = halve
        self.out = 0
        self.paths = [[tuple(name for name, _, _ in place) for place in branch] for branch in branches]
        for branch in branches:
            channels = width
            for number, place in enumerate(branch, 1):
                shrink = halve and number == len(branch)
                for name, made, kernel in place:
                    self.add_module(name, Conv(channels, made, kernel, 2 if shrink else 1, pad=not shrink))
                channels = sum(made for _, made, _ in place)
            self.out += channels
        self.out += width if halve else pooled
        if pooled:
            self.branch_pool = Conv(width, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of `out` channels."""
        parts = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            parts.append(y)
        if self.halve:
            return torch.cat([*parts, F.max_pool2d(x, 3, stride=2)], dim=1)
        pool = F.max_pool2d(x, 3, 1, 1) if self.maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*parts, self.branch_pool(pool)], dim=1)


_TRIPLE = _line(("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))


def _a(width: int, pooled: int) -> Mixed:
    five = _line(("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
    return Mixed(width, [_line(("branch1x1", 64, 1)), five, _TRIPLE], pooled)


def _c(width: int, middle: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    single = _line(("branch7x7_1", middle, 1), ("branch7x7_2", middle, row), ("branch7x7_3", 192, column))
    double = [
        (f"branch7x7dbl_{n}", 192 if n == 5 else middle, row if n % 2 else column) for n in (2, 3, 4, 5)
    ]
    return Mixed(
        width, [_line(("branch1x1", 192, 1)), single, _line(("branch7x7dbl_1", middle, 1), *double)], 192
    )


def _e(width: int, maximum: bool) -> Mixed:
    row, column = (1, 3), (3, 1)
    single = [*_line(("branch3x3_1", 384, 1)), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))]
    double = _line(("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    double.append((("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)))
    return Mixed(width, [_line(("branch1x1", 320, 1)), single, double], 192, maximum)


class Inception(nn.Module):
    """Inception v3 of the FID graph (2015-12-05), 1008 outputs, as converted for PyTorch.

    It differs from torchvision's in the averages (padding not counted), in the maximum of the last block, and
    in its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = Mixed(288, [_line(("branch3x3", 384, 3)), _TRIPLE], halve=True)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            _c(768, middle) for middle in (128, 160, 160, 192)
        )
        single = _line(("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3))
        cross = _line(
            ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
        )
        self.Mixed_7a = Mixed(768, [single, [*cross, (("branch7x7x3_4", 192, 3),)]], halve=True)
        self.Mixed_7b, self.Mixed_7c = _e(1280, maximum=False), _e(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def early(self, x: Tensor) -> Tensor:
        """Maps B,64,H',W' before the first maximum: what SIFID compares. `x` in [-1, 1]."""
        return self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features B,2048 and logits B,1008 without bias, as the published scores take them; `x` 299
        px in [-1, 1]."""
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(self.early(x), 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))
        return features, features @ self.fc.weight.T


def resize_tensorflow(pictures: Tensor, side: int) -> Tensor:
    """Bilinear pictures of `side` as TensorFlow 1 made them: corners at whole pixels from the upper left, no
    antialiasing."""
    for axis in (-2, -1):
        length = pictures.shape[axis]
        place = torch.arange(side, device=pictures.device, dtype=pictures.dtype) * (length / side)
        low = place.floor().long().clamp(max=length - 1)
        share = (place - low).view((-1, 1) if axis == -2 else (-1,))
        first, second = (
            pictures.index_select(axis, low),
            pictures.index_select(axis, (low + 1).clamp(max=length - 1)),
        )
        pictures = first + (second - first) * share
    return pictures


class Taps(NamedTuple):
    """Where LPIPS reads a network: the convolutions of `features` by number, and after which of them, behind
    its ReLU."""

    convolutions: dict[int, tuple[int, int, int, int, int]]
    """Number -> channels in and out, kernel, stride, padding."""
    pools: tuple[tuple[int, int], ...]
    """Convolution before which a maximum of this side (stride 2) stands."""
    read: tuple[int, ...]


def _vgg() -> Taps:
    convolutions = {}
    pools = []
    width = 3
    number = 0
    for channels, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if number:
            pools.append((number, 2))
        for _ in range(times):
            convolutions[number] = (width, channels, 3, 1, 1)
            width = channels
            number += 2
        number += 1
    return Taps(convolutions, tuple(pools), (2, 7, 14, 21, 28))


_ALEX = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
TAPS = {"vgg": _vgg(), "alex": Taps(_ALEX, ((3, 3), (6, 3)), (0, 3, 6, 8, 10))}


class TappedNet(nn.Module):
    """The convolutions of VGG16 or AlexNet under torchvision's names (`features.N`), read where LPIPS reads
    them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.taps = TAPS[kind]
        made = {str(number): nn.Conv2d(*sizes) for number, sizes in self.taps.convolutions.items()}
        self.features = nn.ModuleDict(made)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five maps BCHW, behind their ReLUs."""
        maps = []
        pools = dict(self.taps.pools)
        for number in self.taps.convolutions:
            if number in pools:
                x = F.max_pool2d(x, pools[number], stride=2)
            x = F.relu(self.features[str(number)](x))
            if number in self.taps.read:
                maps.append(x)
        return maps


class Hed(nn.Module):
    """Holistically nested edge detection: five side outputs of a VGG16, brought to the picture's size and
    combined."""

    STAGES = (
        ("One", 3, 64, 2),
        ("Two", 64, 128, 2),
        ("Thr", 128, 256, 3),
        ("Fou", 256, 512, 3),
        ("Fiv", 512, 512, 3),
    )
    MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)

    def __init__(self) -> None:
        super().__init__()
        for name, width, channels, times in self.STAGES:
            layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if name != "One" else []
            for number in range(times):
                layers += [nn.Conv2d(channels if number else width, channels, 3, padding=1), nn.ReLU()]
            self.add_module(f"netVgg{name}", nn.Sequential(*layers))
            self.add_module(f"netScore{name}", nn.Conv2d(channels, 1, 1))
        self.netCombine = nn.Sequential(nn.Conv2d(5, 1, 1), nn.Sigmoid())

    def forward(self, pictures: Tensor) -> Tensor:
        """Edges B1HW in [0, 1] of pictures BCHW in [-1, 1]."""
        x = (pictures.flip(1) + 1) * 127.5 - pictures.new_tensor(self.MEAN_BGR).view(1, 3, 1, 1)
        sides = []
        for name, *_ in self.STAGES:
            x = self.get_submodule(f"netVgg{name}")(x)
            score = self.get_submodule(f"netScore{name}")(x)
            sides.append(F.interpolate(score, size=pictures.shape[-2:], mode="bilinear", align_corners=False))
        return self.netCombine(torch.cat(sides, dim=1))
