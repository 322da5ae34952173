"""A folder of pictures of the target is read as a person expects: every usual kind of file, upright, on
white, square; and what is no picture has a sentence of its own."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import tiny
from zeroshift.config.few_shot import ShotsConfig
from zeroshift.errors import InputError
from zeroshift.files import images, shots
from zeroshift.files.images import decode_picture, fitted, read_picture
from zeroshift.files.shots import Shots, read_shots
from zeroshift.training.run_folder import RunFolder, environment


def pixels(width: int = 12, height: int = 12) -> np.ndarray:
    """Colours HWC that differ in every pixel and channel."""
    steps = np.arange(height * width * 3, dtype=np.float64).reshape(height, width, 3)
    return (255 * steps / steps.max()).round().astype(np.uint8)


def picture(values: np.ndarray) -> Tensor:
    """Colours HWC of 0 to 255 as a picture CHW."""
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def read(folder: Path, size: int = 12, least: int = 1, **options: Any) -> Shots:
    return read_shots(ShotsConfig(folder=folder, **options), size, least)


def refused(folder: Path, **options: Any) -> str:
    """The sentence by which a folder is refused."""
    with pytest.raises(InputError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(folder, **options)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", ")"))
    return text


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".TIFF", ".bmp"])
def test_a_lossless_file_gives_its_pixels(suffix: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(pixels()).save(tmp_path / f"a{suffix}", **options)
    torch.testing.assert_close(read(tmp_path).pictures[0], picture(pixels()))


def test_a_jpeg_gives_nearly_its_pixels_and_a_gif_its_first_picture(tmp_path: Path) -> None:
    flat = np.full((12, 12, 3), (200, 100, 50), np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.JPG", quality=95)
    frames = [Image.fromarray(each) for each in (flat, 255 - flat)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    found = read(tmp_path)
    assert found.names == ("a.JPG", "b.gif")
    for each in found.pictures:
        assert float((each - picture(flat)).abs().max()) < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_whatever_its_exif_orientation(orientation: int, tmp_path: Path) -> None:
    upright = pixels(8, 16)
    # How the camera stored it: what a viewer does to it, undone.
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    torch.testing.assert_close(read_picture(tmp_path / "a.png"), picture(upright))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_laid_on_white(mode: str, tmp_path: Path) -> None:
    grey = np.full((12, 12), 100, np.uint8)
    alpha = np.zeros((12, 12), np.uint8)
    alpha[:, 6:] = 255
    if mode == "P":
        made = Image.fromarray((alpha // 255).astype(np.uint8), "P")
        made.putpalette([0, 0, 0, 100, 100, 100])
        made.save(tmp_path / "a.png", transparency=0)
    else:
        bands = [grey] * (len(mode) - 1)
        Image.merge(mode, [Image.fromarray(each) for each in (*bands, alpha)]).save(tmp_path / "a.png")
    expected = np.where(alpha[..., None] > 0, 100, 255).repeat(3, axis=2)
    torch.testing.assert_close(read(tmp_path).pictures[0], picture(expected))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file of its chunks."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def test_sixteen_bits_of_grey_keep_their_brightness(tmp_path: Path) -> None:
    values = np.linspace(0, 2**16 - 1, 144).round().astype(">u2").reshape(12, 12)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(12, 12, 16, 0, rows))
    transparent = (b"tRNS", struct.pack(">H", int(values[0, 0])))
    (tmp_path / "b.png").write_bytes(png(12, 12, 16, 0, rows, transparent))
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "c.tif")
    expected = (values.astype(np.float64) / 257).round()[..., None].repeat(3, axis=2)
    plain, holed, tiff = read(tmp_path).pictures
    torch.testing.assert_close(plain, picture(expected))
    torch.testing.assert_close(tiff, picture(expected))
    expected[0, 0] = 255
    torch.testing.assert_close(holed, picture(expected))


def test_sixteen_bits_of_colour_and_one_of_grey_are_read(tmp_path: Path) -> None:
    wide = pixels().astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    (tmp_path / "a.png").write_bytes(png(12, 12, 16, 2, rows))
    bits = np.arange(144).reshape(12, 12) % 2 == 0
    Image.fromarray(bits).save(tmp_path / "b.png")
    colour, black_and_white = read(tmp_path).pictures
    torch.testing.assert_close(colour, picture(pixels()))
    torch.testing.assert_close(black_and_white, picture(bits[..., None].repeat(3, axis=2) * 255))


def test_cmyk_is_ink_on_white(tmp_path: Path) -> None:
    ink = np.zeros((12, 12, 4), np.uint8)
    ink[:4, :, 0], ink[4:8, :, 3] = 255, 255
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    Image.fromarray(ink, "CMYK").save(tmp_path / "b.jpg", quality=100)
    expected = np.full((12, 12, 3), 255)
    expected[:4], expected[4:8] = (0, 255, 255), 0
    exact, lossy = read(tmp_path).pictures
    torch.testing.assert_close(exact, picture(expected))
    assert float((lossy - picture(expected)).abs().mean()) < 0.05


def test_the_square_of_a_picture_is_the_middle_the_top_or_all_of_it_on_white() -> None:
    tall = picture(pixels(4, 10))[None]
    assert torch.equal(fitted(tall, 4), tall[..., 3:7, :])
    assert torch.equal(fitted(tall, 4, "top"), tall[..., :4, :])
    whole = fitted(tall, 10, "pad")
    assert torch.equal(whole[..., 3:7], tall)
    assert bool((whole[..., :3] == 1).all()) and bool((whole[..., 7:] == 1).all())
    strip = torch.full((1, 3, 2, 60_000), -1.0)
    thin = fitted(strip, 9, "pad")
    torch.testing.assert_close(thin[..., 4, :], strip[..., 0, :9])
    assert float(thin.sum()) == pytest.approx(3 * (72 - 9))
    wide = tall.mT
    assert torch.equal(fitted(wide, 4, "top"), wide[..., 3:7])


def test_a_large_picture_is_made_smaller_without_moire(tmp_path: Path) -> None:
    board = np.indices((96, 96)).sum(axis=0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    found = read(tmp_path, size=12).pictures
    assert found.shape == (1, 3, 12, 12) and float(found.abs().max()) < 0.02
    full = read_picture(tmp_path / "a.png")[None]
    expected = interpolate(full, (12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(found, expected)


def test_pictures_come_by_name_with_their_hashes_and_hidden_files_and_sheets_are_passed_over(
    tmp_path: Path,
) -> None:
    for name, shade in (("b.png", 10), ("a.png", 20), ("c10.png", 30), (".hidden.png", 40), ("grid.png", 50)):
        Image.new("L", (12, 12), shade).save(tmp_path / name)
    (tmp_path / "deeper.png").mkdir()
    (tmp_path / "notes.txt").write_text("not a picture, and not called one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(tmp_path)
    assert found.names == ("a.png", "b.png", "c10.png")
    shades = (found.pictures[:, 0, 0, 0] + 1) * 127.5
    assert shades.round().tolist() == [20, 10, 30]
    hashes = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in found.names]
    assert list(found.sha256) == hashes
    assert found.record()[1] == {"name": "b.png", "sha256": hashes[1]}


def test_what_cannot_be_read_is_named_and_skipped_or_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "lost.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "phone.heic").write_bytes(b"....ftypheic")
    with pytest.warns(UserWarning, match="passed over") as caught:
        found = read(tmp_path)
    assert found.names == ("good.png",) and len(found.skipped) == 5
    for name in ("text.png", "cut.png", "empty.jpg", "lost.png", "phone.heic"):
        assert name in str(caught[0].message)
    text = refused(tmp_path, unreadable="refuse")
    assert "text.png cannot be read as a picture (no PNG, JPEG, WebP, TIFF, BMP or GIF)" in text


def test_a_postscript_file_that_is_called_png_starts_no_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    ran: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: ran.append(words))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(script)
    assert "holds 0 pictures that can be read" in refused(tmp_path)
    assert Image.open(io.BytesIO(script)).format == "EPS"  # which Pillow alone would have read
    assert ran == []


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(60000, 60000, 8, 2, b"")
    with pytest.raises(InputError, match="60000 x 60000 pixels|decompression bomb"):
        decode_picture(bomb, "bomb.png")
    large = png(12000, 9000, 8, 2, b"")
    with pytest.raises(InputError, match=r"12000 x 9000 pixels are more than 100000000"):
        decode_picture(large, "large.png")
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    assert "holds 0 pictures" in refused(tmp_path)


def test_every_folder_that_holds_too_little_or_is_none_has_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(tmp_path / "gone").endswith(
        "gone is no folder of pictures; give a folder with PNG, JPEG or WebP files."
    )
    assert "holds no pictures; give" in refused(tmp_path)
    (tmp_path / "inner").mkdir()
    assert "holds no pictures; folders in it are not looked into; give" in refused(tmp_path)
    for name in "ab":
        Image.fromarray(pixels()).save(tmp_path / f"{name}.png")
    assert "is a file, not a folder" in refused(tmp_path / "a.png")
    assert "holds 2 pictures that can be read, and the method needs 5; add some" in refused(tmp_path, least=5)
    monkeypatch.setattr(shots, "MOST_SHOTS", 1)
    assert "holds 2 pictures, and at most 1 are learned from" in refused(tmp_path)


def test_copies_hold_what_the_run_sees_and_whose_they_are(tmp_path: Path) -> None:
    Image.fromarray(pixels(20, 30)).save(tmp_path / "a.jpg")
    found = read(tmp_path)
    found.write(tmp_path / "out")
    with Image.open(tmp_path / "out" / "0000-a.png") as file:
        assert file.info == found.record()[0]
    copied = read_picture(tmp_path / "out" / "0000-a.png")
    assert float((copied - found.pictures[0]).abs().max()) < 0.005


def test_a_run_is_not_resumed_with_other_pictures(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run")

    def begin(*hashes: str) -> None:
        made = [{"name": f"{number}.png", "sha256": each} for number, each in enumerate(hashes)]
        folder = RunFolder.check(config)
        folder.begin(config, environment("cpu", {"name": "g", "sha256": "0"}, []) | {"shots": made})
        folder.close()

    begin("one", "two")
    begin("one", "two")
    for others in (("one", "three"), ("one",), ("one", "two", "three"), ()):
        with pytest.raises(InputError, match=r"pictures of the target are not those .*\.png differs"):
            begin(*others)
