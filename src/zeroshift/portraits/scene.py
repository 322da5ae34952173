"""Latent z -> the attributes of one person -> G-buffers, by a closed-form ray-caster over ellipsoids.

Every portrait is seen orthographically and framed by the eyes: the picture's centre lies a fixed distance
below the midpoint of the turned eyes, as in the field's aligned face sets. Axes: x right, y up, z towards the
viewer, one unit is about half a head's height. Shapes: B batch, N supersampled side, A attributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LATENT_DIM = 64
HALF_EXTENT = 1.46  # scene units from the picture's centre to its border
EYE_LINE = 0.22  # scene units by which the eyes lie above the picture's centre

# name -> (choices, probability of each); the order fixes which coordinate of z each attribute reads.
CHOICES: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "hair": (("short", "long", "curly", "bun", "bald"), (0.28, 0.27, 0.18, 0.14, 0.13)),
    "hair_color": (("black", "brown", "blond", "red", "gray"), (0.22, 0.22, 0.2, 0.18, 0.18)),
    "glasses": (("none", "glasses", "sunglasses"), (0.55, 0.25, 0.2)),
    "beard": (("none", "beard", "mustache"), (0.56, 0.24, 0.2)),
    "hat": (("none", "beanie", "hat"), (0.6, 0.2, 0.2)),
    "clothes": (("red", "blue", "green", "white", "black", "yellow"), (1 / 6,) * 6),
    "background": (("blue", "green", "gray", "pink", "orange", "white"), (1 / 6,) * 6),
}
SLIDERS = (
    "smile",
    "skin",
    "yaw",
    "pitch",
    "light",
    "face_width",
    "jaw",
    "nose",
    "eye_size",
    "eye_hue",
    "brow",
    "lips",
    "hair_volume",
    "light_height",
    "mouth_width",
    "age",
)
NUM_ATTRIBUTES = len(CHOICES) + len(SLIDERS)

# Part ids; the order is arbitrary but fixed, since shading looks parts up by number.
PARTS = (
    "background",
    "skin",
    "neck",
    "ear",
    "nose",
    "sclera",
    "iris",
    "pupil",
    "brow",
    "lips",
    "mouth_inside",
    "hair",
    "beard",
    "hat",
    "hat_band",
    "clothes",
    "collar",
    "frame",
    "lens",
    "dark_lens",
    "lid",
)
PART = {name: number for number, name in enumerate(PARTS)}

_HAIR_RGB = {
    "black": (0.07, 0.06, 0.07),
    "brown": (0.33, 0.19, 0.10),
    "blond": (0.85, 0.68, 0.32),
    "red": (0.66, 0.24, 0.08),
    "gray": (0.62, 0.62, 0.64),
}
_CLOTHES_RGB = {
    "red": (0.78, 0.13, 0.13),
    "blue": (0.15, 0.27, 0.72),
    "green": (0.15, 0.52, 0.22),
    "white": (0.92, 0.92, 0.9),
    "black": (0.09, 0.09, 0.1),
    "yellow": (0.92, 0.78, 0.16),
}
_BACKGROUND_RGB = {
    "blue": (0.42, 0.6, 0.86),
    "green": (0.45, 0.7, 0.45),
    "gray": (0.5, 0.5, 0.52),
    "pink": (0.92, 0.62, 0.72),
    "orange": (0.93, 0.62, 0.3),
    "white": (0.94, 0.94, 0.95),
}


@dataclass(frozen=True)
class Scene:
    """The attributes of B people: `choice[name]` long (B,), `slider[name]` float (B,) in (0, 1)."""

    choice: dict[str, Tensor]
    slider: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.slider["smile"])

    def words(self, index: int) -> dict[str, str]:
        """The chosen word of every categorical attribute of one person."""
        return {name: CHOICES[name][0][int(values[index])] for name, values in self.choice.items()}

    def subset(self, rows: slice | Tensor) -> Scene:
        """The people of some rows."""
        return Scene(
            {k: v[rows] for k, v in self.choice.items()}, {k: v[rows] for k, v in self.slider.items()}
        )


def sample_scene(z: Tensor) -> Scene:
    """The people of latents z (B, Z), Z >= 23: a fixed quantile map of the leading coordinates.

    z is first normalised as the mapping network normalises it (unit mean square), so that both see the same
    person.
    """
    if z.ndim != 2 or z.shape[1] < NUM_ATTRIBUTES:
        raise ValueError(
            f"z must have shape (batch, >= {NUM_ATTRIBUTES}), got {tuple(z.shape)}. Draw it with "
            "latent.z_from_seeds."
        )
    z = z.double()
    quantile = torch.special.ndtr(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()).clamp(1e-4, 1 - 1e-4)
    choice = {}
    for column, (name, (_, probabilities)) in enumerate(CHOICES.items()):
        edges = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)[:-1]
        choice[name] = torch.bucketize(quantile[:, column].contiguous(), edges)
    offset = len(CHOICES)
    slider = {name: quantile[:, offset + i].float() for i, name in enumerate(SLIDERS)}
    return Scene(choice, slider)


def features(scene: Scene) -> Tensor:
    """One-hot choices and sliders scaled to [-1.5, 1.5]: (B, 47), what the generator's regression starts
    from."""
    columns = [torch.nn.functional.one_hot(scene.choice[n], len(c)).float() for n, (c, _) in CHOICES.items()]
    columns += [3 * scene.slider[n][:, None] - 1.5 for n in SLIDERS]
    return torch.cat(columns, 1)


@dataclass(frozen=True)
class Buffers:
    """What the camera sees, at the supersampled size.

    part long (B, N, N); albedo (B, 3, N, N) in [0, 1]; normal (B, 3, N, N) unit, viewer's frame; depth (B, N,
    N), larger is nearer, 0 on the background; place (B, 3, N, N) in the head's own frame (textures stick to
    it); light (B, 3) unit.
    """

    part: Tensor
    albedo: Tensor
    normal: Tensor
    depth: Tensor
    place: Tensor
    light: Tensor


def _lerp(low: float, high: float, t: Tensor) -> Tensor:
    return low + (high - low) * t


def _rotation(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Head-to-viewer rotations (B, 3, 3): turn about y, then nod about x. Angles in radians."""
    cy, sy, cp, sp, zero, one = (
        yaw.cos(),
        yaw.sin(),
        pitch.cos(),
        pitch.sin(),
        torch.zeros_like(yaw),
        torch.ones_like(yaw),
    )
    turn = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], 1).view(-1, 3, 3)
    nod = torch.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], 1).view(-1, 3, 3)
    return nod @ turn


class _Canvas:
    """A running z-buffer: each primitive overwrites where it is nearer."""

    def __init__(self, scene: Scene, size: int) -> None:
        s = scene.slider
        batch = len(scene)
        self.rotation = _rotation(_lerp(-0.32, 0.32, s["yaw"]), _lerp(-0.1, 0.1, s["pitch"]))
        eyes = torch.tensor([0.0, 0.1, 0.78]).expand(batch, 3)
        centre = (self.rotation @ eyes[..., None])[..., 0] - torch.tensor([0.0, EYE_LINE, 0.0])
        axis = (torch.arange(size) + 0.5) / size * 2 - 1
        x = (axis * HALF_EXTENT)[None, None, :] + centre[:, 0, None, None]
        y = (-axis * HALF_EXTENT)[None, :, None] + centre[:, 1, None, None]
        self.view = torch.stack(
            [x.expand(batch, size, size), y.expand(batch, size, size), torch.zeros(batch, size, size)], 1
        )
        # Orthographic ray in the head frame: origin + t * along.
        self.origin = (
            x[:, None] * self.rotation[:, 0, :, None, None] + y[:, None] * self.rotation[:, 1, :, None, None]
        )
        self.along = self.rotation[:, 2]
        self.depth = torch.full((batch, size, size), -10.0)
        self.part = torch.zeros(batch, size, size, dtype=torch.long)
        self.solid = torch.zeros(batch, size, size, dtype=torch.long)
        self.solids: list[tuple[Tensor, Tensor, bool]] = []

    def ellipsoid(
        self,
        part: str,
        centre: Tensor,
        radii: Tensor,
        keep=None,
        body: bool = False,
        on: Tensor | None = None,
    ) -> None:
        """Casts one ellipsoid; centre and radii (B, 3) or (3,); `keep(place)` cuts it; `on` (B,) switches it
        per person."""
        batch = len(self.depth)
        centre, radii = centre.expand(batch, 3), radii.expand(batch, 3)
        origin = self.view if body else self.origin
        along = torch.tensor([0.0, 0.0, 1.0]).expand(batch, 3) if body else self.along
        inverse = 1 / radii.square()
        a = (along.square() * inverse).sum(1)[:, None, None]
        b, c = 0.0, -1.0
        for i in range(3):
            offset = origin[:, i] - centre[:, i, None, None]
            b = b + offset * (along[:, i] * inverse[:, i])[:, None, None]
            c = c + offset.square() * inverse[:, i, None, None]
        disc = b * b - a * c
        t = (disc.clamp_min(0).sqrt() - b) / a
        hit = (disc > 0) & (t > self.depth)
        if on is not None:
            hit &= on[:, None, None]
        if keep is not None:
            hit &= keep(origin + t[:, None] * along[:, :, None, None])
        self._write(hit, t, part, (centre, inverse, body))

    def sheet(self, part: str, z: float, keep, on: Tensor) -> None:
        """Casts a plane z = const of the head frame, cut by `keep(place)`: spectacles."""
        batch = len(self.depth)
        t = (z - self.origin[:, 2]) / self.along[:, 2, None, None]
        hit = (
            (t > self.depth)
            & on[:, None, None]
            & keep(self.origin + t[:, None] * self.along[:, :, None, None])
        )
        flat = (
            torch.tensor([0.0, 0.0, z - 1.0]).expand(batch, 3),
            torch.tensor([1e-4, 1e-4, 1.0]).expand(batch, 3),
            False,
        )
        self._write(hit, t, part, flat)

    def _write(self, hit: Tensor, t: Tensor, part: str, solid: tuple[Tensor, Tensor, bool]) -> None:
        self.solids.append(solid)
        self.depth = torch.where(hit, t, self.depth)
        self.part.masked_fill_(hit, PART[part])
        self.solid.masked_fill_(hit, len(self.solids))

    def place(self) -> Tensor:
        """Visible points in the head's frame (B, 3, N, N)."""
        return self.origin + self.depth[:, None] * self.along[:, :, None, None]

    def paint(self, over: tuple[str, ...], part: str, where: Tensor) -> None:
        """Renames visible points of the parts `over` where `where` holds: eyes, lips, brows."""
        inside = torch.zeros_like(where)
        for name in over:
            inside |= self.part == PART[name]
        self.part.masked_fill_(inside & where, PART[part])

    def normals(self) -> Tensor:
        """Unit outward normals in the viewer's frame (B, 3, N, N)."""
        batch, size, _ = self.depth.shape
        table = torch.zeros(batch, len(self.solids) + 1, 7)
        for i, (centre, inverse, body) in enumerate(self.solids, 1):
            table[:, i] = torch.cat([centre, inverse, torch.full((batch, 1), float(body))], 1)
        rows = torch.gather(table, 1, self.solid.view(batch, -1, 1).expand(-1, -1, 7)).view(
            batch, size, size, 7
        )
        rows = rows.permute(0, 3, 1, 2)
        body = rows[:, 6:] > 0.5
        view = torch.stack([self.view[:, 0], self.view[:, 1], self.depth], 1)
        point = torch.where(body, view, self.place())
        gradient = (point - rows[:, :3]) * rows[:, 3:6]
        turned = torch.einsum("bij,bjyx->biyx", self.rotation, gradient)
        normal = torch.where(body, gradient, turned)
        normal = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return torch.where(
            (self.solid > 0)[:, None], normal, torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]
        )


def cast(scene: Scene, size: int) -> Buffers:
    """The G-buffers of every person of a scene at `size` x `size` rays."""
    canvas = _Canvas(scene, size)
    _body(canvas, scene)
    _head(canvas, scene)
    _hair(canvas, scene)
    _hat(canvas, scene)
    _face(canvas, scene)
    _glasses(canvas, scene)
    seen = canvas.part > 0
    s = scene.slider
    azimuth, height = _lerp(-1.1, 1.1, s["light"]), _lerp(0.15, 0.85, s["light_height"])
    light = torch.stack([azimuth.sin() * height.cos(), height.sin(), azimuth.cos() * height.cos()], 1)
    palette = _palette(scene)
    flat = canvas.part.view(len(scene), -1, 1).expand(-1, -1, 3)
    albedo = torch.gather(palette, 1, flat).view(*canvas.part.shape, 3).permute(0, 3, 1, 2).contiguous()
    place = canvas.place()
    depth = torch.where(seen, canvas.depth + 3, torch.zeros(()))
    return Buffers(
        canvas.part,
        albedo,
        canvas.normals(),
        depth,
        torch.where(seen[:, None], place, torch.zeros(())),
        light,
    )


def _body(canvas: _Canvas, scene: Scene) -> None:
    v = torch.tensor
    canvas.ellipsoid("neck", v([0.0, -1.15, -0.15]), v([0.36, 0.75, 0.36]), body=True)
    canvas.ellipsoid("clothes", v([0.0, -2.02, -0.2]), v([1.55, 0.82, 0.7]), body=True)
    canvas.ellipsoid("collar", v([0.0, -1.36, -0.1]), v([0.5, 0.13, 0.5]), body=True)


def _head(canvas: _Canvas, scene: Scene) -> None:
    v = torch.tensor
    s = scene.slider
    width, jaw = _lerp(0.88, 1.12, s["face_width"]), _lerp(0.86, 1.12, s["jaw"])
    one = torch.ones_like(width)
    canvas.ellipsoid("skin", v([0.0, 0.12, 0.0]), torch.stack([0.76 * width, 0.92 * one, 0.84 * one], 1))
    canvas.ellipsoid(
        "skin", v([0.0, -0.38, 0.12]), torch.stack([0.6 * width * jaw, 0.66 * one, 0.68 * one], 1)
    )
    for side in (-1.0, 1.0):
        centre = torch.stack([side * 0.75 * width, 0.02 * one, -0.05 * one], 1)
        canvas.ellipsoid("ear", centre, v([0.12, 0.22, 0.16]))
    nose = _lerp(0.75, 1.3, s["nose"])
    canvas.ellipsoid("nose", v([0.0, -0.12, 0.86]), torch.stack([0.11 * nose, 0.22 * one, 0.16 * nose], 1))
    canvas.ellipsoid("nose", v([0.0, -0.24, 0.88]), torch.stack([0.15 * nose, 0.1 * nose, 0.14 * nose], 1))


def _hair(canvas: _Canvas, scene: Scene) -> None:
    v = torch.tensor
    s = scene.slider
    style = scene.choice["hair"]
    hat = scene.choice["hat"]
    volume = _lerp(0.92, 1.12, s["hair_volume"])
    width = _lerp(0.88, 1.12, s["face_width"]) * volume
    one = torch.ones_like(width)
    hairy = style != 4
    bare = hat == 0

    def cap(
        place: Tensor,
    ) -> Tensor:  # behind a line that runs over the forehead and down in front of the ears
        return place[:, 1] > 0.28 + 0.62 * place[:, 2] - 0.25 * place[:, 0].square()

    def lower_cap(place: Tensor) -> Tensor:
        return (place[:, 2] < 0.1) & (place[:, 1] > -0.28 + 1.1 * place[:, 2]) & (place[:, 1] > -0.75)

    radii = torch.stack([0.84 * width, 0.98 * one * volume, 0.93 * one], 1)
    canvas.ellipsoid("hair", v([0.0, 0.16, -0.04]), radii, cap, on=hairy & bare)
    canvas.ellipsoid("hair", v([0.0, 0.14, -0.06]), radii * v([1.0, 0.96, 0.96]), lower_cap, on=hairy)
    long = style == 1
    canvas.ellipsoid(
        "hair", v([0.0, -0.45, -0.42]), torch.stack([1.0 * width, 1.25 * one, 0.42 * one], 1), on=long
    )
    for side in (-1.0, 1.0):
        centre = torch.stack([side * 0.8 * width, -0.45 * one, -0.02 * one], 1)
        canvas.ellipsoid("hair", centre, torch.stack([0.2 * one, 0.85 * one, 0.34 * one], 1), on=long)
    curly = style == 2
    for angle in torch.linspace(-0.35, math.pi + 0.35, 9).tolist():
        centre = torch.stack(
            [0.86 * math.cos(angle) * width, 0.3 + 0.74 * math.sin(angle) * one, -0.1 * one], 1
        )
        canvas.ellipsoid(
            "hair", centre, (0.36 * volume)[:, None].expand(-1, 3), on=curly & (bare | (centre[:, 1] < 0.6))
        )
    bun = (0.33 * volume)[:, None].expand(-1, 3)
    canvas.ellipsoid("hair", v([0.0, 1.08, -0.1]), bun, on=(style == 3) & bare)
    canvas.ellipsoid(
        "hair", v([0.8, -0.42, -0.3]), bun, on=(style == 3) & ~bare
    )  # a low bun stays visible under a hat


def _hat(canvas: _Canvas, scene: Scene) -> None:
    v = torch.tensor
    hat = scene.choice["hat"]
    width = _lerp(0.88, 1.12, scene.slider["face_width"])
    one = torch.ones_like(width)

    def above(place: Tensor) -> Tensor:
        return place[:, 1] > 0.46

    def roll(place: Tensor) -> Tensor:
        return (place[:, 1] > 0.44) & (place[:, 1] < 0.68)

    beanie, brimmed = hat == 1, hat == 2
    canvas.ellipsoid(
        "hat", v([0.0, 0.3, -0.02]), torch.stack([0.9 * width, 0.98 * one, 1.0 * one], 1), above, on=beanie
    )
    canvas.ellipsoid(
        "hat_band",
        v([0.0, 0.3, -0.02]),
        torch.stack([0.96 * width, 1.05 * one, 1.06 * one], 1),
        roll,
        on=beanie,
    )
    canvas.ellipsoid(
        "hat", v([0.0, 0.62, -0.02]), torch.stack([0.78 * width, 0.72 * one, 0.86 * one], 1), on=brimmed
    )
    canvas.ellipsoid(
        "hat", v([0.0, 0.6, 0.0]), torch.stack([1.28 * one, 0.1 * one, 1.2 * one], 1), on=brimmed
    )
    canvas.ellipsoid(
        "hat_band", v([0.0, 0.7, -0.02]), torch.stack([0.82 * width, 0.1 * one, 0.9 * one], 1), on=brimmed
    )


def _face(canvas: _Canvas, scene: Scene) -> None:
    """Eyes, brows, mouth and beard are painted on the visible skin, in head coordinates."""
    s = {name: value[:, None, None] for name, value in scene.slider.items()}
    x, y, z = canvas.place().unbind(1)
    front, across = z > 0, x.abs()
    beard = scene.choice["beard"][:, None, None]
    smile = _lerp(-0.5, 1.0, s["smile"])
    mouth_y = -0.5 + 0.42 * smile * x.square() * (1 + s["mouth_width"])
    chin = front & (y < -0.26 + 0.55 * across) & (y < 0.05)
    canvas.paint(("skin",), "beard", (beard == 1) & (chin | ((y < -0.3) & (across > 0.42) & (z > -0.1))))
    whisker = ((x / 0.34).square() + ((y + 0.375 - 0.25 * x.square()) / 0.085).square() < 1) & front
    canvas.paint(("skin", "beard"), "beard", (beard > 0) & whisker)
    half = _lerp(0.2, 0.31, s["mouth_width"])
    thick = _lerp(0.05, 0.1, s["lips"]) * (1 - (x / half).square()).clamp_min(0).sqrt()
    canvas.paint(("skin", "beard"), "lips", front & ((y - mouth_y).abs() < thick))
    canvas.paint(("lips",), "mouth_inside", (smile > 0.35) & ((y - mouth_y).abs() < 0.45 * thick))
    size = _lerp(0.85, 1.2, s["eye_size"])
    ex, ey = (across - 0.33) / (0.185 * size), (y - 0.1) / (0.115 * size)
    eye = front & (ex.square() + ey.square() < 1)
    canvas.paint(("skin", "nose"), "lid", front & (ex.square() / 1.25 + (ey - 0.18).square() / 1.45 < 1))
    canvas.paint(("skin", "nose", "lid"), "sclera", eye)
    round_ = ((across - 0.33) / 0.1).square() + ((y - 0.1) / 0.1).square()
    canvas.paint(("sclera",), "iris", round_ < 1)
    canvas.paint(("iris",), "pupil", round_ < 0.22)
    thickness = _lerp(0.035, 0.075, s["brow"])
    brow_y = 0.34 - 0.35 * (across - 0.3).square()
    canvas.paint(("skin",), "brow", front & ((y - brow_y).abs() < thickness) & ((across - 0.34).abs() < 0.23))


def _glasses(canvas: _Canvas, scene: Scene) -> None:
    kind = scene.choice["glasses"]

    def lens(place: Tensor, radius: float) -> Tensor:
        return ((place[:, 0].abs() - 0.35) / 1.12).square() + (place[:, 1] - 0.08).square() < radius**2

    def rim(place: Tensor) -> Tensor:
        bridge = (place[:, 0].abs() < 0.12) & ((place[:, 1] - 0.12).abs() < 0.035)
        arms = (place[:, 0].abs() > 0.6) & (place[:, 0].abs() < 0.82) & ((place[:, 1] - 0.12).abs() < 0.035)
        return (lens(place, 0.27) & ~lens(place, 0.205)) | bridge | arms

    canvas.sheet("frame", 0.93, rim, kind > 0)
    canvas.sheet("dark_lens", 0.93, lambda place: lens(place, 0.205), kind == 2)


def _palette(scene: Scene) -> Tensor:
    """Albedo of every part of every person (B, parts, 3) in [0, 1]."""
    batch = len(scene)
    s = scene.slider
    tone = s["skin"][:, None]
    dark, middle, light = torch.tensor([[0.30, 0.18, 0.12], [0.70, 0.47, 0.33], [0.97, 0.79, 0.68]])
    skin = torch.where(
        tone < 0.5, dark + (middle - dark) * 2 * tone, middle + (light - middle) * (2 * tone - 1)
    )
    hair = torch.tensor([_HAIR_RGB[c] for c in CHOICES["hair_color"][0]])[scene.choice["hair_color"]]
    hair = hair + (torch.tensor([0.75, 0.75, 0.77]) - hair) * 0.35 * (s["age"][:, None] - 0.6).clamp_min(0)
    clothes = torch.tensor([_CLOTHES_RGB[c] for c in CHOICES["clothes"][0]])[scene.choice["clothes"]]
    background = torch.tensor([_BACKGROUND_RGB[c] for c in CHOICES["background"][0]])[
        scene.choice["background"]
    ]
    hue = s["eye_hue"][:, None]
    iris = (1 - hue) * torch.tensor([0.32, 0.18, 0.07]) + hue * torch.tensor([0.2, 0.5, 0.75])
    hat = torch.where(
        (scene.choice["hat"] == 1)[:, None], torch.tensor([0.45, 0.12, 0.3]), torch.tensor([0.36, 0.27, 0.18])
    )

    def rgb(*value: float) -> Tensor:
        return torch.tensor(value).expand(batch, 3)

    colours = {
        "background": background,
        "skin": skin,
        "neck": skin * 0.86,
        "ear": skin * 0.92,
        "nose": skin * torch.tensor([1.02, 0.97, 0.95]),
        "sclera": rgb(0.96, 0.96, 0.95),
        "iris": iris,
        "pupil": rgb(0.02, 0.02, 0.02),
        "brow": hair * 0.6 + 0.02,
        "lips": skin * 0.45 + rgb(0.38, 0.07, 0.1),
        "mouth_inside": rgb(0.95, 0.93, 0.9),
        "hair": hair,
        "beard": hair * 0.8 + 0.02,
        "hat": hat,
        "hat_band": hat * 0.6 + 0.12,
        "clothes": clothes,
        "collar": clothes * 0.7 + 0.06,
        "frame": rgb(0.05, 0.05, 0.06),
        "lens": rgb(0.8, 0.85, 0.9),
        "dark_lens": rgb(0.07, 0.07, 0.09),
        "lid": skin * 0.55,
    }
    return torch.stack([colours[name].float() for name in PARTS], 1).clamp(0, 1)
