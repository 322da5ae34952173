"""One function per domain, all from the same G-buffers: every portrait exists in every domain, pixel-aligned.

Textures (paper, hatching, grain) are fixed patterns of the canvas, equal in every picture, so that the true
picture of a domain is a function of the person alone. Shapes: rgb (B, 3, N, N) in [0, 1]; tone (B, 1, N, N)
in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zeroshift.portraits.scene import PART, Buffers, Scene, cast, sample_scene


def _rgb(*value: float) -> Tensor:
    return torch.tensor(value)[None, :, None, None]


def _is(g: Buffers, *names: str) -> Tensor:
    """1 where one of the parts is seen: (B, 1, N, N) float."""
    mask = torch.zeros_like(g.part, dtype=torch.bool)
    for name in names:
        mask |= g.part == PART[name]
    return mask[:, None].float()


def _blur(x: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    for _ in range(2):
        x = F.avg_pool2d(F.pad(x, (radius,) * 4, mode="replicate"), size, 1)
    return x


@cache
def _grain(size: int, cells: int, seed: int) -> Tensor:
    """A fixed smooth noise pattern (1, 1, N, N), mean 0, values about [-1, 1]."""
    noise = torch.rand(1, 1, cells, cells, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)


@cache
def _ramp(size: int) -> tuple[Tensor, Tensor]:
    """Pixel coordinates x, y (1, 1, N, N) in units of 1/64 of the picture's side."""
    axis = (torch.arange(size) + 0.5) * 64 / size
    return axis.view(1, 1, 1, -1).expand(1, 1, size, size), axis.view(1, 1, -1, 1).expand(1, 1, size, size)


def _lambert(g: Buffers, wrap: float = 0.25) -> Tensor:
    facing = (g.normal * g.light[:, :, None, None]).sum(1, keepdim=True)
    return ((facing + wrap) / (1 + wrap)).clamp(0, 1)


def _gloss(g: Buffers, power: float) -> Tensor:
    half = g.light + torch.tensor([0.0, 0.0, 1.0])
    half = half / half.norm(dim=1, keepdim=True)
    return (g.normal * half[:, :, None, None]).sum(1, keepdim=True).clamp(0, 1) ** power


def _lines(g: Buffers, width: int = 1) -> Tensor:
    """Outlines (B, 1, N, N) in [0, 1] where part, depth or surface direction jumps; `width` in rays."""
    part = g.part[:, None]
    depth = g.depth[:, None]
    normal = g.normal
    edge = torch.zeros_like(depth)
    for axis in (2, 3):
        jump = (part != part.roll(1, axis)) | ((depth - depth.roll(1, axis)).abs() > 0.16)
        jump |= (normal * normal.roll(1, axis)).sum(1, keepdim=True) < 0.55
        edge = torch.maximum(edge, jump.float())
    edge[:, :, 0], edge[:, :, :, 0] = 0, 0
    return edge if width <= 1 else F.max_pool2d(edge, 2 * (width // 2) + 1, 1, width // 2)


def _strands(g: Buffers) -> Tensor:
    """Streaks along hair and beard, stuck to the head: (B, 1, N, N), about 1."""
    x, y, z = g.place[:, 0:1], g.place[:, 1:2], g.place[:, 2:3]
    wave = torch.sin(18 * x + 3 * torch.sin(4 * y) + 6 * z)
    return 1 + 0.13 * wave * _is(g, "hair", "beard")


def photo(g: Buffers) -> Tensor:
    """The source domain: soft light with a shadow side, shine on skin and eyes, a graded backdrop."""
    _, y = _ramp(g.part.shape[-1])
    tone = 0.34 + 0.8 * _lambert(g)
    skin = _is(g, "skin", "nose", "ear", "lips", "iris", "pupil", "sclera", "dark_lens", "frame")
    lit = g.albedo * _strands(g) * tone + 0.16 * _gloss(g, 22) * skin + 0.05 * _gloss(g, 8)
    lit = lit * (1 - 0.3 * _is(g, "neck"))
    backdrop = g.albedo * (1.08 - 0.3 * y / 64)
    return torch.where(_is(g, "background") > 0, backdrop, lit).clamp(0, 1)


def _tone(g: Buffers) -> Tensor:
    return (photo(g) * _rgb(0.3, 0.59, 0.11)).sum(1, keepdim=True)


def pencil_sketch(g: Buffers) -> Tensor:
    """Graphite lines and diagonal hatching by tone on white paper."""
    size = g.part.shape[-1]
    x, y = _ramp(size)
    tone = torch.where(_is(g, "background") > 0, torch.ones(()), 0.15 + 0.95 * _tone(g))
    first, second = torch.sin((x + y) * 1.75) * 0.5 + 0.5, torch.sin((x - y) * 1.75) * 0.5 + 0.5
    hatch = (
        torch.sigmoid((first - 1.45 * tone + 0.12) * 9) * 0.5
        + torch.sigmoid((second - 2.4 * tone + 0.1) * 9) * 0.4
    )
    ink = (hatch * (tone < 0.93) + 0.9 * _lines(g)).clamp(0, 1)
    return ((0.97 + 0.03 * _grain(size, 48, 1)) * (1 - ink) + 0.17 * ink).expand(-1, 3, -1, -1)


def cartoon(g: Buffers) -> Tensor:
    """Cel shading in two flat tones with saturated colours and black outlines."""
    flat = torch.where(_lambert(g) > 0.42, torch.ones(()), torch.tensor(0.68))
    flat = torch.where(_is(g, "background") > 0, torch.ones(()), flat)
    grey = g.albedo.mean(1, keepdim=True)
    colour = (grey + (g.albedo - grey) * 1.6) * 1.12
    return (colour * flat).clamp(0, 1) * (1 - _lines(g) * 0.95)


def _stone(g: Buffers, base: Tensor, shadow: float) -> Tensor:
    """One material over the whole figure; albedo survives only as a faint relief."""
    relief = 0.85 + 0.3 * g.albedo.mean(1, keepdim=True)
    return base * relief * (shadow + (1.12 - shadow) * _lambert(g, 0.1)) * (1 - 0.45 * _lines(g))


def marble_statue(g: Buffers) -> Tensor:
    """White veined stone before a dark grey wall."""
    size = g.part.shape[-1]
    vein = (1 - _grain(size, 9, 2).abs() * 5).clamp(0, 1) * 0.22
    stone = _stone(g, _rgb(0.93, 0.92, 0.9) * (1 - vein), 0.4) + 0.25 * _gloss(g, 30)
    return torch.where(_is(g, "background") > 0, _rgb(0.2, 0.2, 0.22), stone).clamp(0, 1)


def bronze_statue(g: Buffers) -> Tensor:
    """Dark metal with hot highlights and green patina before a black wall."""
    size = g.part.shape[-1]
    patina = (_grain(size, 12, 3) - 0.2).clamp(0, 1) * 0.8
    metal = _rgb(0.55, 0.34, 0.14) * (1 - patina) + _rgb(0.2, 0.45, 0.38) * patina
    metal = _stone(g, metal, 0.22) + _rgb(1.0, 0.78, 0.42) * 0.75 * _gloss(g, 14)
    return torch.where(_is(g, "background") > 0, _rgb(0.06, 0.05, 0.05), metal).clamp(0, 1)


def zombie(g: Buffers) -> Tensor:
    """Rotting green skin with dark sockets, pale eyes, bloody lips, a foul backdrop."""
    size = g.part.shape[-1]
    skin = _is(g, "skin", "neck", "ear", "nose", "lid")
    spots = (_grain(size, 16, 4) - 0.15).clamp(0, 1)
    level = g.albedo.mean(1, keepdim=True) * 0.55 + 0.4
    rotten = level * _rgb(0.5, 0.72, 0.36) * (1 - spots) + spots * _rgb(0.26, 0.16, 0.12)
    x, y = g.place[:, 0:1].abs(), g.place[:, 1:2]
    socket = torch.exp(-((x - 0.33).square() + (y - 0.08).square()) / 0.05)
    rotten = rotten * (1 - 0.75 * socket)
    albedo = torch.where(skin > 0, rotten, g.albedo.mean(1, keepdim=True) * 0.3 + g.albedo * 0.25)
    albedo = torch.where(_is(g, "sclera") > 0, _rgb(0.95, 0.9, 0.55), albedo)
    albedo = torch.where(_is(g, "iris") > 0, _rgb(0.8, 0.8, 0.7), albedo)
    albedo = torch.where(_is(g, "lips", "mouth_inside") > 0, _rgb(0.45, 0.03, 0.05), albedo)
    lit = albedo * (0.3 + 0.85 * _lambert(g))
    murk = _rgb(0.16, 0.19, 0.12) * (1 + 0.5 * _grain(size, 6, 5)) + 0.08 * g.albedo
    return torch.where(_is(g, "background") > 0, murk, lit).clamp(0, 1)


def neon(g: Buffers) -> Tensor:
    """Glowing tubes in the colours of the parts on a black wall."""
    grey = g.albedo.mean(1, keepdim=True)
    warm = _is(g, "skin", "ear", "nose", "neck", "lips", "lid")
    tint = (g.albedo - grey) * 3.5 + 0.5
    tint = torch.where(warm > 0, _rgb(1.0, 0.15, 0.75), tint)
    tint = torch.where(
        _is(g, "frame", "sclera", "iris", "pupil", "dark_lens", "brow") > 0, _rgb(0.1, 0.95, 1.0), tint
    )
    tube = _lines(g, 3) * tint.clamp(0.05, 1)
    glow = _blur(tube, 4) * 1.5
    return (
        _rgb(0.03, 0.01, 0.07) + 0.1 * tint * (1 - _is(g, "background")) * _lambert(g) + tube + glow
    ).clamp(0, 1)


def watercolor(g: Buffers) -> Tensor:
    """Pale washes that bleed over their borders, darker at the rims, on rough paper with a white margin."""
    size = g.part.shape[-1]
    x, y = _ramp(size)
    wash = _blur(photo(g), 3)
    wash = wash * 0.62 + 0.42
    rim = (_blur(_lines(g), 2) * 1.1).clamp(0, 0.35)
    wash = (wash - rim * (1.15 - wash)) * (1 + 0.09 * _grain(size, 10, 6)) + 0.025 * _grain(size, 64, 7)
    margin = torch.sigmoid(
        (((x - 32) / 29).square() ** 2 + ((y - 32) / 29).square() ** 2 - 1 + 0.3 * _grain(size, 8, 8)) * 9
    )
    return (wash * (1 - margin) + 0.98 * margin).clamp(0, 1)


def _blocks(rgb: Tensor, cells: int) -> Tensor:
    small = F.interpolate(rgb, size=(cells, cells), mode="area")
    return F.interpolate(small, size=rgb.shape[-2:], mode="nearest")


def pixel_art(g: Buffers) -> Tensor:
    """Sixteen by sixteen blocks in a small palette."""
    vivid = photo(g)
    grey = vivid.mean(1, keepdim=True)
    return (_blocks((grey + (vivid - grey) * 1.5).clamp(0, 1), 16) * 4).round() / 4


@cache
def _brush(size: int) -> Tensor:
    """Sampling grid of short slanted strokes (1, N, N, 2): every stroke takes the colour of its middle."""
    x, y = _ramp(size)
    along, across = (x + 0.6 * y) / 5.5, (y - 0.6 * x) / 2.2
    jitter = torch.sin(across.floor() * 12.9) * 0.5
    along_mid, across_mid = ((along + jitter).floor() + 0.5 - jitter) * 5.5, (across.floor() + 0.5) * 2.2
    mid_x, mid_y = (along_mid - 0.6 * across_mid) / 1.36, (across_mid + 0.6 * along_mid) / 1.36
    return torch.stack([mid_x[0, 0] / 32 - 1, mid_y[0, 0] / 32 - 1], -1)[None]


def oil_painting(g: Buffers) -> Tensor:
    """Thick slanted strokes in warm, deep colours with ridges of paint."""
    size = g.part.shape[-1]
    x, y = _ramp(size)
    rgb = F.grid_sample(
        _blur(photo(g), 1),
        _brush(size).expand(len(g.part), -1, -1, -1),
        padding_mode="border",
        align_corners=False,
    )
    grey = rgb.mean(1, keepdim=True)
    rgb = (grey + (rgb - grey) * 1.5 - 0.5) * 1.2 + 0.47
    ridge = torch.sin((y - 0.6 * x) / 2.2 * 2 * torch.pi) * 0.07
    return (rgb * _rgb(1.06, 0.97, 0.78) * (1 - 0.35 * _lines(g)) + ridge).clamp(0, 1)


def charcoal(g: Buffers) -> Tensor:
    """Smudged black masses and grain on brownish paper."""
    size = g.part.shape[-1]
    tone = torch.where(_is(g, "background") > 0, torch.tensor(0.88), _blur(_tone(g), 1))
    dark = (1.05 - 1.35 * tone).clamp(0, 1) ** 0.8 + 0.55 * _blur(_lines(g, 3), 1)
    dark = (0.85 * dark * (1 + 0.22 * _grain(size, 56, 9)) + 0.06 * _grain(size, 40, 10)).clamp(0, 0.93)
    return (_rgb(0.8, 0.74, 0.64) * (1 - dark) + 0.05 * dark).clamp(0, 1)


def blueprint(g: Buffers) -> Tensor:
    """White construction lines and a grid on blue paper."""
    x, y = _ramp(g.part.shape[-1])
    grid = (((x % 8) < 0.5) | ((y % 8) < 0.5)).float() * 0.14
    hatch = (
        (torch.sin((x + y) * 2.1) > 0.55).float()
        * (1 - _tone(g)).clamp(0, 1)
        * 0.35
        * (1 - _is(g, "background"))
    )
    white = (grid + hatch + 0.95 * _lines(g)).clamp(0, 1)
    return _rgb(0.09, 0.24, 0.56) * (1 - white) + _rgb(0.93, 0.96, 1.0) * white


def ukiyo_e(g: Buffers) -> Tensor:
    """Woodblock print: few flat muted inks on cream paper, thin dark lines, no shadows."""
    size = g.part.shape[-1]
    _, y = _ramp(size)
    ink = ((g.albedo * 3).round() / 3) * _rgb(0.82, 0.76, 0.64) + _rgb(0.1, 0.1, 0.1)
    ink = torch.where(
        _is(g, "skin", "neck", "ear", "nose", "lid") > 0,
        _rgb(0.93, 0.83, 0.68) * (0.8 + 0.2 * g.albedo.mean(1, keepdim=True)),
        ink,
    )
    ink = torch.where(_is(g, "clothes", "collar") > 0, 0.5 * ink + 0.5 * _rgb(0.18, 0.28, 0.42), ink)
    sky = _rgb(0.9, 0.84, 0.7) * (y / 64).clamp(0.0, 1) + _rgb(0.42, 0.55, 0.62) * (1 - y / 64)
    ink = torch.where(_is(g, "background") > 0, sky * 0.85 + 0.15 * g.albedo, ink)
    return (
        (ink + 0.03 * _grain(size, 40, 11)) * (1 - 0.85 * _lines(g)) + _rgb(0.1, 0.08, 0.1) * 0.85 * _lines(g)
    ).clamp(0, 1)


def mosaic(g: Buffers) -> Tensor:
    """Square stone tiles with dark grout and uneven glaze."""
    size = g.part.shape[-1]
    x, y = _ramp(size)
    cells = 64 / 4
    tiles = _blocks(photo(g), int(cells))
    glaze = F.interpolate(_grain(int(cells), int(cells), 12), size=(size, size), mode="nearest") * 0.16
    grout = (((x % 4) < 0.9) | ((y % 4) < 0.9)).float()
    return ((tiles + glaze) * (1 - grout) + 0.16 * grout).clamp(0, 1)


# Label as people type it -> how it is drawn. The last three are held out: nothing may be tuned on them.
SHADERS: dict[str, Callable[[Buffers], Tensor]] = {
    "photo": photo,
    "pencil sketch": pencil_sketch,
    "cartoon": cartoon,
    "marble statue": marble_statue,
    "zombie": zombie,
    "neon": neon,
    "watercolor": watercolor,
    "pixel art": pixel_art,
    "oil painting": oil_painting,
    "charcoal": charcoal,
    "blueprint": blueprint,
    "ukiyo-e": ukiyo_e,
    "mosaic": mosaic,
    "bronze statue": bronze_statue,
}
DOMAINS = tuple(SHADERS)
HELD_OUT = ("ukiyo-e", "mosaic", "bronze statue")
TUNING = tuple(d for d in DOMAINS if d not in HELD_OUT and d != "photo")


def shade(buffers: Buffers, domain: str, size: int) -> Tensor:
    """Pictures (B, 3, size, size) in [-1, 1] of one domain, averaged down from the supersampled buffers."""
    if domain not in SHADERS:
        raise ValueError(f"No domain {domain!r} in the built-in world. Choose one of: {', '.join(DOMAINS)}.")
    rgb = SHADERS[domain](buffers)
    return (F.avg_pool2d(rgb, rgb.shape[-1] // size) * 2 - 1).clamp(-1, 1)


def render(z: Tensor, domain: str = "photo", size: int = 64, batch: int = 16) -> Tensor:
    """The true pictures (B, 3, size, size) in [-1, 1] of latents z (B, Z) in a domain, with 2x2
    supersampling."""
    scene: Scene = sample_scene(z.cpu())
    rows = [
        shade(cast(scene.subset(slice(i, i + batch)), 2 * size), domain, size)
        for i in range(0, len(scene), batch)
    ]
    return torch.cat(rows)
