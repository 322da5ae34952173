"""IR-SE networks, which say whose face a picture shows: the published IR-SE50 of ArcFace, and smaller ones of
the same form.

The sizes of a network are read off the shapes of its weights, so one reader serves the published file and the
encoder of the built-in world. Sources: Deng et al., CVPR 2019 (ArcFace); Hu et al., CVPR 2018
(squeeze-excitation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift import __version__
from zeroshift.errors import InputError
from zeroshift.files.formats import unprefixed
from zeroshift.files.layouts import LayoutError, check_shapes
from zeroshift.files.pickles import flat_tensors, read_tensors
from zeroshift.files.writing import atomic_path, file_sha256
from zeroshift.shapes import Picture, UnitFeature

FORMAT = "zeroshift.ir_se"
FACE_ROWS = slice(35, 223)
FACE_COLUMNS = slice(32, 220)
FACE_SIDE = 256
"""The part of an aligned 256 px face that the published network was trained on."""


@dataclass(frozen=True)
class IrSeConfig:
    """Sizes of an IR-SE network; the defaults are those of IR-SE50. Every group of units begins with stride
    2."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    units: tuple[int, ...] = (3, 4, 14, 3)
    first: int = 64
    """Channels of the first convolution."""
    squeeze: int = 16
    """Channels over those of the squeezed vector."""
    embed_dim: int = 512
    size: int = 112
    """Side of the pictures: 2 ** groups times the side of the last map."""


class SqueezeExcite(nn.Module):
    """Maps times a factor per channel, which their spatial means decide."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same shape."""
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class Unit(nn.Module):
    """Batch norm, 3x3, PReLU, 3x3 with the stride, batch norm, squeeze-excitation; beside a shortcut."""

    def __init__(self, width: int, channels: int, stride: int, squeeze: int) -> None:
        super().__init__()
        # Without a change of channels the shortcut is every stride-th pixel.
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if width != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(width, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Conv2d(width, channels, 3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcite(channels, max(1, channels // squeeze)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps of `channels` channels and a side smaller by the stride."""
        return self.res_layer(x) + self.shortcut_layer(x)


class IrSe(nn.Module):
    """Unit features of faces. Attributes are named as the published file names its weights."""

    def __init__(self, config: IrSeConfig | None = None, crop: bool = True) -> None:
        """`crop`: pictures are aligned faces with a margin, cut off as published; else they are taken
        whole."""
        super().__init__()
        self.config = config or IrSeConfig()
        self.crop = crop
        width = self.config.first
        units = []
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        for channels, times in zip(self.config.widths, self.config.units, strict=True):
            for number in range(times):
                units.append(Unit(width, channels, 1 if number else 2, self.config.squeeze))
                width = channels
        self.body = nn.Sequential(*units)
        side = self.config.size >> len(self.config.widths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(width * side * side, self.config.embed_dim),
            nn.BatchNorm1d(self.config.embed_dim),
        )

    def forward(self, faces: Tensor) -> UnitFeature:
        """Unit features BE of faces B,3,size,size in [-1, 1], differentiable."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)

    def embed(self, pictures: Picture) -> UnitFeature:
        """Unit features BE of pictures BCHW in [-1, 1] of any size: pooled to 256 px, cut and pooled again,
        as published.

        Without `crop` the whole picture is pooled to the network's size.
        """
        if self.crop:
            pictures = (
                F.adaptive_avg_pool2d(pictures, FACE_SIDE) if pictures.shape[-1] != FACE_SIDE else pictures
            )
            pictures = pictures[..., FACE_ROWS, FACE_COLUMNS]
        return self(F.adaptive_avg_pool2d(pictures, self.config.size))

    @property
    def resize(self) -> str:
        """How pictures come to the network's size, in words."""
        cut = f"averaged to {FACE_SIDE} px, rows 35:223 and columns 32:220, " if self.crop else ""
        return f"{cut}averaged to {self.config.size} px"


def infer_config(state: Mapping[str, Tensor]) -> IrSeConfig:
    """Sizes of the network that some weights belong to. LayoutError, the end of a sentence, where they are of
    another kind."""
    try:
        first = state["input_layer.0.weight"].shape[0]
        channels = []
        strides = []
        while (name := f"body.{len(channels)}.res_layer") + ".1.weight" in state:
            width = channels[-1] if channels else first
            channels.append(state[f"{name}.1.weight"].shape[0])
            strides.append(2 if len(channels) == 1 or channels[-1] != width else 1)
        starts = [place for place, stride in enumerate(strides) if stride == 2]
        ends = [*starts[1:], len(channels)]
        embed_dim, flat = state["output_layer.3.weight"].shape
        side = round((flat / channels[-1]) ** 0.5)
        squeezed = state["body.0.res_layer.5.fc1.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise LayoutError("holds no IR-SE network (input_layer, body.0-23, output_layer)") from error
    if side * side * channels[-1] != flat:
        raise LayoutError(f"holds an IR-SE network whose last map of {flat} numbers is not square")
    return IrSeConfig(
        widths=tuple(channels[start] for start in starts),
        units=tuple(end - start for start, end in zip(starts, ends, strict=True)),
        first=first,
        squeeze=max(1, channels[0] // squeezed),
        embed_dim=embed_dim,
        size=side << len(starts),
    )


def ir_se_of(state: Mapping[str, Tensor], crop: bool = True) -> IrSe:
    """The network with these weights, frozen, in evaluation mode."""
    network = IrSe(infer_config(state), crop)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_shapes(state, shapes, [name for name in shapes if name.endswith("num_batches_tracked")])
    network.load_state_dict(dict(state), strict=False)
    return network.eval().requires_grad_(False)


def load_ir_se(path: str | Path) -> tuple[IrSe, str]:
    """Network of a file (`model_ir_se50.pth`, or one of `save_ir_se`) and the file's sha256; InputError says
    what is wrong."""
    content = read_tensors(path)
    try:
        ours = content.metadata.get("format") == FORMAT
        network = ir_se_of(
            unprefixed(flat_tensors(content.tree)), not ours or content.metadata.get("crop") == "face"
        )
    except LayoutError as error:
        raise InputError(
            f"{path} {error}. Give model_ir_se50.pth, or a network written by this package."
        ) from error
    return network, file_sha256(path)


def save_ir_se(
    path: str | Path, network: IrSe, metadata: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Writes a network with its sizes, whole or not at all; `half`: in 16 bits, which is read back into
    32."""
    from safetensors.torch import save_file

    told = {"format": FORMAT, "version": __version__, "crop": "face" if network.crop else "none"}
    told |= {name: str(value) for name, value in asdict(network.config).items()} | dict(metadata or {})
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    with atomic_path(path) as part:
        save_file(state, part, told)
