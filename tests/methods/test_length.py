"""How far pictures are to go: by one bound, or by the distance of the labels in each CLIP."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel, Lengths
from zeroshift.errors import InputError
from zeroshift.files.clips import load_clip_folder, save_clip
from zeroshift.methods.adapt import open_run

Event = dict[str, Any]


def clips() -> list[ClipModel]:
    """Two CLIPs, the second with a scale of its own."""
    made = tiny.clips()
    made[1].lengths = Lengths(1.5, 1.2)
    return made


def length(clip: ClipModel) -> float:
    """Distance of the labels' mean unit features, by the scale of the CLIP."""
    sums = []
    for label in ("photo", "zombie"):
        units = [normalize(clip.encode_text([t.replace("{}", label)]))[0] for t in clip.templates.templates]
        sums.append(
            [math.fsum(column) / len(units) for column in zip(*(u.tolist() for u in units), strict=True)]
        )
    return clip.lengths.scale * math.dist(*sums) ** clip.lengths.power


def shifted() -> dict[str, Tensor]:
    """Weights near those of the source, whose pictures differ a little."""
    draw = torch.Generator().manual_seed(4)
    return {
        name: each + 0.02 * torch.randn(each.shape, generator=draw) if name.endswith("conv.weight") else each
        for name, each in tiny.generator().state().items()
    }


def step(out: Path, target: Any = None, **options: Any) -> Event:
    """The first step of a run by the labels' direction."""
    events: list[Event] = []
    train = {"steps": 1, "layers": "all"} | options.pop("train", {})
    given = tiny.given(clips=clips(), target=target)
    tiny.run(out, hook=events.append, state=given, method="nada", noise="off", train=train, **options)
    return events[0]


def test_the_length_is_the_distance_of_the_labels_by_the_scale_of_the_clip(tmp_path: Path) -> None:
    for rule in ("floor", "labels", "point"):
        run = open_run(tiny.config(tmp_path / rule, length=rule), tiny.given(clips=clips()))
        assert [each.length for each in run.clips] == pytest.approx([length(c) for c in clips()], rel=1e-5)
        floors = [0.05, 0.05] if rule == "floor" else [each.length for each in run.clips]
        assert [each.floor for each in run.clips] == floors


def test_the_labels_length_divides_in_place_of_the_floor(tmp_path: Path) -> None:
    event = step(tmp_path / "run", shifted(), length="labels", image_floor=5.0)
    before, after = event["pictures"]
    short = 0
    for clip, found in zip(clips(), event["image_directions"], strict=True):
        way = normalize(clip.encode_image(after)) - normalize(clip.encode_image(before))
        for row, ours in zip(way, found, strict=True):
            short += float(row.norm()) < length(clip)
            torch.testing.assert_close(ours, row / max(float(row.norm()), length(clip)), rtol=0, atol=1e-5)
    assert short
    total = sum(
        float((1 - found @ text[0]).mean())
        for found, text in zip(event["image_directions"], event["text_directions"], strict=True)
    )
    assert float(event["losses"]["direction"]) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("views", [1, 3])
def test_a_point_is_as_far_as_the_labels_and_starts_at_one(tmp_path: Path, views: int) -> None:
    train = {"views": {"count": views}}
    first = step(tmp_path / "same", length="point", train=train)
    # One for each of the two CLIPs.
    assert float(first["losses"]["direction"]) == pytest.approx(2, abs=1e-5)
    later = step(tmp_path / "moved", shifted(), length="point")
    before, after = later["pictures"]
    total = 0.0
    for clip, text in zip(clips(), later["text_directions"], strict=True):
        way = normalize(clip.encode_image(after)) - normalize(clip.encode_image(before))
        aim = length(clip) * text[0]
        total += sum(math.dist(row.tolist(), aim.tolist()) ** 2 for row in way) / 2 / length(clip) ** 2
    assert float(later["losses"]["direction"]) == pytest.approx(total, abs=1e-4)
    assert "log_direction" not in later["losses"]


def test_a_point_has_no_logarithm_where_directions_have_one(tmp_path: Path) -> None:
    for rule, names in (("floor", {"direction", "log_direction"}), ("point", {"direction"})):
        events: list[Event] = []
        config = tiny.tune(tmp_path / rule, length=rule, train={"steps": 1})
        tiny.adapt(config, hook=events.append, state=tiny.given_diffusion())
        assert set(events[0]["losses"]) == names | {"loss"}


def test_labels_that_are_the_same_to_a_clip_have_no_length(tmp_path: Path) -> None:
    for rule in ("labels", "point"):
        config = tiny.config(tmp_path / rule, source="xylem", target="quark", length=rule)
        with pytest.warns(UserWarning), pytest.raises(InputError, match="the same to the CLIP tiny-1"):
            open_run(config, tiny.given())
    with pytest.warns(UserWarning):
        open_run(tiny.config(tmp_path / "floor", source="xylem", target="quark"), tiny.given())


def test_a_folder_of_a_clip_keeps_its_lengths_and_one_without_those_of_its_labels(tmp_path: Path) -> None:
    save_clip(clips()[1], tmp_path)
    assert load_clip_folder(tmp_path).lengths == Lengths(1.5, 1.2)
    facts = tmp_path / "zeroshift.json"
    known = json.loads(facts.read_text())
    facts.write_text(json.dumps({name: each for name, each in known.items() if "length" not in name}))
    assert load_clip_folder(tmp_path).lengths == Lengths(1.0, 1.0)
    for name in ("length_scale", "length_power"):
        for wrong in (0, -1.0, "long", True):
            facts.write_text(json.dumps(known | {name: wrong}))
            with pytest.raises(InputError, match=f"{name} in .* must be a number above 0"):
                load_clip_folder(tmp_path)
