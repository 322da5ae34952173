"""Pictures in and out of files, and several of them on one sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.errors import InputError
from zeroshift.files.writing import write_bytes

SUFFIXES = (".png", ".jpg", ".jpeg")


def eight_bit(pictures: Tensor) -> Tensor:
    """Pictures as a PNG file would hold them."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def fitted(pictures: Tensor, size: int) -> Tensor:
    """The middle square of pictures BCHW, at `size`; the same pictures where they fit already."""
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pictures = pictures[..., top : top + side, left : left + side]
    if side == size:
        return pictures
    return F.interpolate(
        pictures, size=(size, size), mode="bicubic", align_corners=False, antialias=True
    ).clamp(-1, 1)


def picture_files(folder: Path) -> tuple[Path, ...]:
    """Pictures of a folder by name; sheets of `zeroshift sample` and `translate` are passed over."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(path for path in found if path.name not in ("grid.png", "before_after.png")))


def _opaque(picture: Any) -> Any:
    """A picture of Pillow's in RGB, what is transparent laid on white."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def read_picture(path: Path) -> Tensor:
    """Picture CHW in [-1, 1] of a file, turned upright, what is transparent laid on white; InputError where
    it is none."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            pixels = np.array(_opaque(ImageOps.exif_transpose(file)))
    except FileNotFoundError:
        raise InputError(f"there is no picture {path}.") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{path} cannot be read as a picture ({error}); leave it out or replace it."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


GAP = 4
"""White pixels between the pictures of a sheet."""


def grid(pictures: Tensor, columns: int | None = None) -> Tensor:
    """One picture CHW with all pictures BCHW side by side, near to a square unless `columns` is given."""
    side = math.ceil(len(pictures) ** 0.5)
    most = int(2 * len(pictures) ** 0.5)
    # Full rows where that is possible without a strip.
    columns = columns or next((each for each in range(side, most + 1) if len(pictures) % each == 0), side)
    tiles = F.pad(enlarged(pictures), (GAP, 0, GAP, 0), value=1.0)
    return _stacked([torch.cat(list(row), dim=-1) for row in tiles.split(columns)])


def _stacked(lines: Sequence[Tensor]) -> Tensor:
    """Pictures CHW one below the other, on white, with a margin at the right and below."""
    width = max(line.shape[-1] for line in lines)
    return F.pad(
        torch.cat([F.pad(line, (0, width - line.shape[-1]), value=1.0) for line in lines], dim=-2),
        (0, GAP, 0, GAP),
        value=1.0,
    )


def enlarged(pictures: Tensor, smallest: int = 128) -> Tensor:
    """Pictures of at least `smallest` pixels a side, by whole factors, so that small ones can be looked
    at."""
    factor = max(1, smallest // pictures.shape[-1])
    return pictures.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def labelled_rows(rows: Sequence[tuple[str, Tensor]]) -> Tensor:
    """One picture CHW with a row of pictures BCHW per label, the label at its left."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    tiles = [F.pad(enlarged(pictures), (GAP, 0, GAP, 0), value=1.0) for _, pictures in rows]
    side = tiles[0].shape[-2]
    font = ImageFont.load_default(size=max(13, side // 9))
    texts = [label.replace(" ", "\n") for label, _ in rows]
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    margin = 4 * GAP + int(max(ruler.multiline_textbbox((0, 0), text, font=font)[2] for text in texts))
    lines = []
    for text, row in zip(texts, tiles, strict=True):
        label = Image.new("RGB", (margin, side), "white")
        ImageDraw.Draw(label).multiline_text(
            (2 * GAP, side / 2), text, fill="#333333", font=font, anchor="lm"
        )
        pixels = torch.from_numpy(np.array(label)).permute(2, 0, 1) / 127.5 - 1
        lines.append(torch.cat([pixels, *row], dim=-1))
    return _stacked(lines)


def write_png(path: Path, picture: Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a picture CHW in [-1, 1] as a PNG file, whole or not at all, with the metadata in its text
    chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = ((picture.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    texts = PngInfo()
    buffer = io.BytesIO()
    for key, value in (metadata or {}).items():
        texts.add_itxt(key, value)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG", pnginfo=texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def save_pictures(
    pictures: Tensor, seeds: Iterable[int], folder: Path, metadata: Mapping[str, str]
) -> list[Path]:
    """Paths of grid.png and of one PNG per seed; each holds its seed and the given metadata."""
    numbers = list(seeds)
    paths = [folder / "grid.png"]
    write_png(paths[0], grid(pictures), {"seeds": ",".join(map(str, numbers)), **metadata})
    for number, picture in zip(numbers, pictures, strict=True):
        paths.append(folder / f"seed{number:05d}.png")
        write_png(paths[-1], picture, {"seed": str(number), **metadata})
    return paths
