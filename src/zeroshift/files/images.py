"""Pictures in and out of files, and several of them on one sheet."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.errors import InputError
from zeroshift.files.writing import write_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""Formats of pictures that are read. Others are not even tried, whatever a file is called: Pillow would start
Ghostscript for PostScript."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")

SHEETS = ("grid.png", "before_after.png")
"""Sheets of several pictures, as `zeroshift sample` and `translate` call them."""

MOST_PIXELS = 10**8
"""Pixels of the largest picture that is decoded: 1.2 GB in memory, and all that cameras make."""

MOST_BYTES = 2**29
"""Bytes of the largest picture file that is read."""


def eight_bit(pictures: Tensor) -> Tensor:
    """Pictures as a PNG file would hold them."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def fitted(pictures: Tensor, size: int, crop: Literal["centre", "top", "pad"] = "centre") -> Tensor:
    """A square of pictures BCHW, at `size`; the same pictures where they fit already. The middle square, the
    upper one of tall pictures, or the whole on white."""
    height, width = pictures.shape[-2:]
    if crop == "pad":
        # Resized before it is padded: the square of a long strip might not fit into memory.
        longer = max(height, width)
        height, width = (max(1, round(size * side / longer)) for side in (height, width))
        across, down = size - width, size - height
        sides = (across // 2, across - across // 2, down // 2, down - down // 2)
        return F.pad(_resized(pictures, height, width), sides, value=1.0)
    side = min(height, width)
    top, left = (0 if crop == "top" else (height - side) // 2), (width - side) // 2
    return _resized(pictures[..., top : top + side, left : left + side], size, size)


def _resized(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures BCHW of that size, antialiased; the same pictures where they have it."""
    if pictures.shape[-2:] == (height, width):
        return pictures
    return F.interpolate(
        pictures, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    ).clamp(-1, 1)


def picture_files(folder: Path) -> tuple[Path, ...]:
    """Pictures of a folder by name; hidden files and sheets of `zeroshift sample` and `translate` are passed
    over."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir())
    return tuple(sorted(path for path in found if path.name not in SHEETS and not path.name.startswith(".")))


def folder_of_pictures(folder: str | Path) -> tuple[Path, ...]:
    """Pictures of a folder as `picture_files`; InputError where it is none, cannot be read, or has none."""
    folder = Path(folder)
    kinds = "PNG, JPEG or WebP files"
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no folder"
        raise InputError(f"{folder} is {what} of pictures; give a folder with {kinds}.")
    try:
        found = picture_files(folder)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read ({error.strerror}).") from error
    if not found:
        inside = (
            "; folders in it are not looked into" if any(each.is_dir() for each in folder.iterdir()) else ""
        )
        raise InputError(f"{folder} holds no pictures{inside}; give a folder with {kinds}.")
    return found


def _eight_bit_grey(picture: Any, is_png: bool) -> Any:
    """A picture of Pillow's with 16 bits of grey in 8, transparent pixels white; others as they are. Pillow
    itself would cut off all that is brighter than 255."""
    import numpy as np
    from PIL import Image

    if picture.mode in ("I", "F") and not is_png:  # Pillow before 11 calls 16 bits of a PNG "I"
        raise ValueError("its numbers have 32 bits, and no known range")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.uint32)
    values = np.where(values == picture.info.get("transparency", -1), 2**16 - 1, values)
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _opaque(picture: Any) -> Any:
    """A picture of Pillow's in RGB, what is transparent laid on white."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def picture_bytes(path: Path) -> bytes:
    """What a picture file holds; InputError where it is not there, cannot be read, or is too large."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file; give a picture.")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(
                f"{path} has {size / 2**20:.0f} MiB, more than the {MOST_BYTES // 2**20} of a picture; leave "
                "it out or make it smaller."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no picture {path}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture ({error.strerror}).") from error


def decode_picture(content: bytes, name: str | Path) -> Tensor:
    """Picture CHW in [-1, 1] of what a file of that name holds, the first of several, turned upright, what is
    transparent laid on white; InputError where it is none, or has more than MOST_PIXELS."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Its limits of pixels are not ours, and what is odd but readable needs no word.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                if file.width * file.height > MOST_PIXELS:
                    raise ValueError(f"{file.width} x {file.height} pixels are more than {MOST_PIXELS}")
                turned = ImageOps.exif_transpose(file)
                pixels = np.array(_opaque(_eight_bit_grey(turned, file.format == "PNG")))
    except Exception as error:  # Pillow raises nearly anything where a file is damaged
        why = (
            "no PNG, JPEG, WebP, TIFF, BMP or GIF"
            if isinstance(error, Image.UnidentifiedImageError)
            else str(error) or type(error).__name__
        )
        raise InputError(
            f"{name} cannot be read as a picture ({why}); leave it out or replace it."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(127.5).sub_(1)


def read_picture(path: Path) -> Tensor:
    """Picture CHW in [-1, 1] of a file, as `decode_picture`; InputError where there is none."""
    return decode_picture(picture_bytes(path), path)


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
