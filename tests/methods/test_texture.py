"""The texture loss as an option of `adapt`, against its formula written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tiny
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import BytePairTokenizer
from zeroshift.errors import InputError
from zeroshift.files.clips import save_clip
from zeroshift.files.images import write_png

DOUBLE = torch.float64


def moved() -> dict[str, Tensor]:
    """Weights of a target that already differs from the source."""
    draw = torch.Generator().manual_seed(3)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=draw) if name.endswith("conv.weight") else each
        for name, each in tiny.generator().state().items()
    }


def first_step(
    out: Path, clips: list[ClipModel], losses: dict[str, Any], **options: Any
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Losses of one step of stage 2, and the pictures of source and target that it saw."""
    events: list[dict[str, Any]] = []
    config = tiny.config(
        out,
        method="nada",
        clip=tuple(each.name for each in clips),
        noise="off",
        losses=losses,
        train={"steps": 1, "layers": "convolutions"},
        **options,
    )
    tiny.adapt(config, state=tiny.given(clips=clips, target=moved(), dtype=DOUBLE), hook=events.append)
    return events[0]["losses"], *events[0]["pictures"]


def slow_texture(clip: ClipModel, wanted: list[Tensor], pictures: Tensor) -> float:
    """Mean over pictures and elements of the squared difference of features, one picture at a time."""
    squares: list[float] = []
    for want, picture in zip(wanted, pictures, strict=True):
        a, b = (clip.encode_image(each[None])[0].tolist() for each in (want, picture))
        squares += [(x - y) ** 2 for x, y in zip(a, b, strict=True)]
    return sum(squares) / len(squares)


def test_by_default_the_first_convolutional_guide_keeps_pictures_near_their_source(tmp_path: Path) -> None:
    clips = [vit(), *tiny.clips()]
    got, before, after = first_step(
        tmp_path / "run", clips, {"direction": 1.0, "texture": 0.5}, clip_weights=(1.0, 0.7, 0.2)
    )
    texture = slow_texture(clips[1], list(before), after)
    assert texture > 0 and math.isclose(got["texture"], texture, rel_tol=1e-10)
    # The directions are already weighted by CLIP; the texture counts once, however many CLIPs guide.
    assert math.isclose(got["loss"], got["direction"] + 0.5 * got["texture"], rel_tol=1e-10)


def test_another_clip_can_be_named_and_the_texture_can_come_from_a_picture(tmp_path: Path) -> None:
    named = tiny.clip(5)
    save_clip(named, tmp_path / "texture")
    wanted = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    write_png(tmp_path / "wool.png", wanted)
    losses = {
        "direction": 0.0,
        "texture": 2.0,
        "texture_clip": str(tmp_path / "texture"),
        "texture_image": tmp_path / "wool.png",
    }
    got, _, after = first_step(tmp_path / "run", tiny.clips(), losses)
    rounded = ((wanted.double() + 1) * 127.5).round() / 127.5 - 1
    texture = slow_texture(named.double(), [rounded] * len(after), after)
    # Eight bits may round a half either way.
    assert math.isclose(got["loss"], 2 * texture, rel_tol=1e-2)
    environment = (tmp_path / "run" / "environment.json").read_text(encoding="utf-8")
    assert "tiny-5" in environment


def vit() -> ClipModel:
    """A CLIP whose picture tower is a transformer."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    config = transformers.CLIPConfig(
        vision_config=tower | {"image_size": 16, "patch_size": 8}, text_config=text, projection_dim=12
    )
    return ClipModel(transformers.CLIPModel(config), BytePairTokenizer(), resolution=16, name="vit")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"texture": 1.0}, "convolutional"),
        ({"texture": 1.0, "texture_clip": "nowhere/at.all"}, "nowhere"),
        ({"texture": 1.0, "texture_clip": "portraits-clip-a", "texture_image": Path("no.png")}, "no.png"),
        ({"texture_clip": "portraits-clip-a"}, "above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_run(
    tmp_path: Path, losses: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        first_step(tmp_path / "run", [vit()], losses)
    assert not (tmp_path / "run").exists()
