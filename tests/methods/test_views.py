"""Views: drawn by keys, shown as the formula says, and the same for source and target of every method and
stage."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.features import normalize
from zeroshift.config.schema import ViewsConfig
from zeroshift.methods.adapt import AdaptRun, adapt, open_run, plan
from zeroshift.methods.views import Views, draw_views, drawn_views, for_every_view, mean_feature, seen
from zeroshift.models.seeds import rng

STILL: dict[str, Any] = {"zoom": 0.0, "shift": 0.0, "turn": 0.0, "flip": 0.0, "grain": 0.0}
Event = dict[str, Any]


def pictures(batch: int = 2, height: int = 5, width: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 3, height, width, generator=draw, dtype=torch.float64) * 2 - 1


def drawn(batch: int = 2, *, seed: int = 0, stage: str = "stage2", step: int = 1, **options: Any) -> Views:
    views = draw_views(ViewsConfig(**({"count": 3} | options)), pictures(batch), seed, stage, step)
    assert views is not None
    return views


def mirrored(place: int, side: int) -> int:
    """The pixel at a place on a line that is mirrored at its ends again and again: a b c c b a a b c ..."""
    place %= 2 * side
    return place if place < side else 2 * side - 1 - place


def slow_view(picture: Tensor, theta: list[list[float]]) -> Tensor:
    """A view of one picture CHW pixel by pixel, in half sides from the middle of the picture."""
    _, height, width = picture.shape
    made = torch.zeros_like(picture)
    for row, column in itertools.product(range(height), range(width)):
        x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
        at_x, at_y = (a * x + b * y + c for a, b, c in theta)
        across, down = ((at_x + 1) * width - 1) / 2, ((at_y + 1) * height - 1) / 2
        left, top = math.floor(across), math.floor(down)
        for i, j in itertools.product((0, 1), (0, 1)):
            weight = abs(1 - j - (down - top)) * abs(1 - i - (across - left))
            made[:, row, column] += weight * picture[:, mirrored(top + j, height), mirrored(left + i, width)]
    return made


def test_a_view_is_the_picture_at_the_places_of_its_matrix_with_its_noise() -> None:
    shown = pictures()
    views = drawn(strength=1.5)
    assert views.noise is not None and views.noise.shape == (3, 2, 3, 5, 6)
    slow = [
        slow_view(picture, views.theta[k, i].tolist()) + views.noise[k, i]
        for k in range(3)
        for i, picture in enumerate(shown)
    ]
    torch.testing.assert_close(seen(shown, views), torch.stack(slow), rtol=1e-6, atol=1e-6)


def test_a_matrix_is_a_flip_then_a_turn_and_a_zoom_and_a_shift() -> None:
    views = drawn(4, zoom=0.2, shift=0.4, turn=0.5, strength=0.5, step=7, seed=3)
    sides = set[bool]()
    for i in range(4):
        draw = rng("views", 3, "stage2", 7, i)
        for k in range(3):
            size, across, down, angle, chance = torch.rand(5, generator=draw).double().tolist()
            zoom, turn = 1 + 0.1 * (2 * size - 1), 0.25 * (2 * angle - 1)
            rotation = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
            # Half the strength leaves half the chance of a flip.
            flip = -1 if chance < 0.25 else 1
            sides.add(flip < 0)
            slow = [
                [zoom * rotation[0][0] * flip, zoom * rotation[0][1], 0.2 * (2 * across - 1)],
                [zoom * rotation[1][0] * flip, zoom * rotation[1][1], 0.2 * (2 * down - 1)],
            ]
            torch.testing.assert_close(
                views.theta[k, i], torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-6
            )
    assert sides == {True, False}


@pytest.mark.parametrize("options", [{"strength": 0.0}, STILL])
def test_without_strength_every_view_is_the_picture(options: dict[str, Any]) -> None:
    shown = pictures()
    views = drawn(**options)
    assert views.noise is None
    torch.testing.assert_close(seen(shown, views), shown.repeat(3, 1, 1, 1), rtol=0, atol=1e-12)


def test_one_view_is_the_picture_itself() -> None:
    shown = pictures()
    assert draw_views(ViewsConfig(strength=3.0), shown, 0, "stage2", 1) is None
    assert seen(shown, None) is shown


def test_a_flip_exchanges_left_and_right() -> None:
    shown = pictures()
    options: dict[str, Any] = STILL | {"flip": 1.0}
    views = drawn(**options)
    torch.testing.assert_close(seen(shown, views)[2:4], shown.flip(-1), rtol=0, atol=1e-12)


def test_a_known_shift_moves_pixels_and_mirrors_the_edge() -> None:
    shown = pictures(1)
    # Six columns are two half sides: a third of a half side is one column; two fifths are one row.
    theta = torch.tensor([[[[1.0, 0, 1 / 3], [0, 1, -2 / 5]]]], dtype=torch.float64)
    rows, columns = [0, 0, 1, 2, 3], [1, 2, 3, 4, 5, 5]
    expected = shown[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(seen(shown, Views(theta, None)), expected, rtol=0, atol=1e-12)


def test_noise_has_its_deviation_and_is_added_to_what_is_seen() -> None:
    shown = pictures(2, 40, 50)
    options = ViewsConfig(**(STILL | {"count": 2, "grain": 0.1, "strength": 2.0}))
    added = seen(shown, draw_views(options, shown, 0, "stage2", 1)) - shown.repeat(2, 1, 1, 1)
    assert float(added.std()) == pytest.approx(0.2, rel=0.02) and abs(float(added.mean())) < 0.005


def test_views_depend_on_seed_stage_step_and_sample_alone() -> None:
    plain = drawn()
    again, longer, batch = drawn(), drawn(count=5), drawn(4)
    assert torch.equal(plain.theta, again.theta) and torch.equal(plain.theta, longer.theta[:3])
    assert torch.equal(plain.theta, batch.theta[:, :2])
    assert plain.noise is not None and longer.noise is not None and batch.noise is not None
    assert torch.equal(plain.noise, longer.noise[:3]) and torch.equal(plain.noise, batch.noise[:, :2])
    later = draw_views(ViewsConfig(count=3), pictures(2)[1:], 0, "stage2", 1, first_sample=1)
    assert later is not None and torch.equal(later.theta, plain.theta[:, 1:])
    others = [drawn(seed=1), drawn(stage="stage1"), drawn(step=2)]
    every = [plain, *others]
    assert len({str(each.theta[k, i].tolist()) for each in every for k in range(3) for i in range(2)}) == 24
    assert not any(torch.equal(plain.noise, each.noise) for each in others if each.noise is not None)


def test_kinds_of_change_do_not_disturb_each_other() -> None:
    plain, still = drawn(), drawn(shift=0.0, grain=0.0)
    assert torch.equal(plain.theta[..., :2], still.theta[..., :2])
    assert not still.theta[..., 2].any() and plain.theta[..., 2].all()


def test_rows_of_pictures_go_with_each_of_their_views_and_a_single_row_with_all() -> None:
    rows = torch.arange(6.0).view(2, 3)
    assert torch.equal(for_every_view(rows, 2), rows[[0, 1, 0, 1]])
    assert torch.equal(for_every_view(rows[:1], 4), rows[:1])


def test_the_mean_feature_is_the_unit_mean_of_unit_features_of_views() -> None:
    clip, shown = tiny.clip(1).double(), pictures(2, 16, 16)
    views = draw_views(ViewsConfig(count=3), shown, 0, "stage1", 4)
    assert views is not None
    sights = seen(shown, views)
    for i, row in enumerate(mean_feature(clip.encode_image, shown, views)):
        units = [normalize(clip.encode_image(sights[k * 2 + i][None]))[0] for k in range(3)]
        torch.testing.assert_close(row, normalize(sum(units[1:], units[0])))
    plain = mean_feature(clip.encode_image, shown, None)
    torch.testing.assert_close(plain, normalize(clip.encode_image(shown)))


# Runs.


def shifted() -> dict[str, Tensor]:
    """Weights near those of the source, whose pictures differ a little."""
    draw = torch.Generator().manual_seed(4)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=draw) if name.endswith("conv.weight") else each
        for name, each in tiny.generator().state().items()
    }


def last_event(out: Path, count: int, given: Any = None, **options: Any) -> Event:
    """The last of the steps of a run with views."""
    events: list[Event] = []
    train = {"steps": 1, "layers": "all", "views": {"count": count}} | options.pop("train", {})
    tiny.run(out, hook=events.append, train=train, state=given, noise="off", **options)
    return events[-1]


def test_source_and_target_are_seen_by_the_same_views(tmp_path: Path) -> None:
    event = last_event(tmp_path / "run", 4, method="nada")
    # Equal pictures, seen alike, have no direction: zero rows, one for every view of both pictures.
    assert [tuple(each.shape) for each in event["image_directions"]] == [(8, 24), (8, 20)]
    assert all(float(each.abs().max()) < 1e-4 for each in event["image_directions"])
    assert torch.equal(*event["pictures"])


@pytest.mark.parametrize("method", ["nada", "ipl"])
def test_the_loss_is_the_mean_over_views_of_the_loss_of_each(tmp_path: Path, method: str) -> None:
    given = tiny.given(target=shifted())
    event = last_event(tmp_path / "run", 3, given, method=method, image_floor=0.0)
    before, after = event["pictures"]
    views = draw_views(ViewsConfig(count=3), before, 0, "stage2", 1)
    total = 0.0
    for clip, text in zip(tiny.clips(), event["text_directions"], strict=True):
        shown = [[clip.encode_image(each[None])[0] for each in seen(x, views)] for x in (before, after)]
        for row, (s, t) in enumerate(zip(*shown, strict=True)):
            way = normalize(normalize(t) - normalize(s))
            total += float(1 - way @ text[row if len(text) > 1 else 0]) / 6
    assert float(event["losses"]["direction"]) == pytest.approx(total, abs=1e-4)
    if method == "ipl":
        first = event["text_directions"][0]
        assert torch.equal(first[:2], first[2:4]) and not torch.equal(first[0], first[1])
    else:
        assert len(event["text_directions"][0]) == 1


def test_a_clip_is_called_once_for_all_views(tmp_path: Path) -> None:
    clips, sizes = tiny.clips(), []
    clips[0].model.vision_model.register_forward_pre_hook(
        lambda module, args, options: sizes.append(len(options["pixel_values"])), with_kwargs=True
    )
    last_event(tmp_path / "run", 3, tiny.given(clips=clips), method="nada", monitor={"every": 0})
    assert sizes == [6, 6]


def test_layers_are_selected_by_plain_pictures(tmp_path: Path) -> None:
    scores = [
        last_event(tmp_path / str(count), count, method="nada", train={"layers": "adaptive"})["scores"]
        for count in (1, 3)
    ]
    assert torch.equal(*scores)


def test_strength_is_nothing_to_a_single_view(tmp_path: Path) -> None:
    runs = [
        tiny.run(tmp_path / str(strength), train={"views": {"strength": strength}}) for strength in (1.0, 0.3)
    ]
    states = [run.generator.state() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_stage_1_ties_words_to_the_mean_over_the_views_of_its_pictures(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run", noise="off", mapper={"pictures": 8}, train={"views": {"count": 2}})
    run = open_run(config, tiny.given())
    codes, found = run.backend.source_features(2, run.clips)
    shown = run.source.synthesize(codes, "off")
    views = draw_views(ViewsConfig(count=2), shown, 0, "stage1", 2)
    for clip, features in zip(tiny.clips(), found, strict=True):
        slow = mean_feature(clip.encode_image, shown, views)
        torch.testing.assert_close(features, slow, rtol=0, atol=1e-5)
        assert not torch.allclose(features, mean_feature(clip.encode_image, shown, None), atol=1e-3)
    # Shown again: the rows are those of the first time, in another order.
    later = [run.backend.source_features(step, run.clips)[1][0] for step in (3, 4)]
    first = [run.backend.source_features(step, run.clips)[1][0] for step in (1, 2)]
    rows = [{str(row.tolist()) for row in torch.cat(each)} for each in (first, later)]
    assert rows[0] == rows[1] and len(rows[0]) == 8


def test_diffusion_codes_stay_those_of_the_plain_picture(tmp_path: Path) -> None:
    config = tiny.tune(tmp_path / "run", "ipl", train={"views": {"count": 3}})
    run = open_run(config, tiny.given_diffusion())
    run.backend.prepare(run.clips)
    backend: Any = run.backend
    learned = backend.learned
    shown = learned.pictures
    for clip, codes, features in zip(tiny.clips(), learned.codes, learned.features, strict=True):
        torch.testing.assert_close(codes, normalize(clip.encode_image(shown)), rtol=0, atol=1e-5)
        views = draw_views(ViewsConfig(count=3), shown, 0, "stage1", 0)
        torch.testing.assert_close(features, mean_feature(clip.encode_image, shown, views), rtol=0, atol=1e-5)
        assert not torch.allclose(codes, features, atol=1e-3)


def test_views_count_in_the_estimate_of_memory_and_are_what_to_lower(tmp_path: Path) -> None:
    train: dict[str, Any] = {"layers": "all", "batch": 1}
    plans = [
        plan(
            tiny.config(tmp_path / str(count), method="nada", train=train | {"views": {"count": count}}),
            state=tiny.given(),
        )
        for count in (1, 2, 3)
    ]
    needed = [each.memory_bytes for each in plans]
    # Every further view needs the same again.
    assert needed[2] - needed[1] == pytest.approx(needed[1] - needed[0], rel=0.5) and needed[1] > needed[0]
    run = open_run(plans[2].config, tiny.given())
    assert run.backend.memory_tip(2) == "try train.views.count 1"


def carried_out(kind: str, out: Path, hook: Any = None) -> AdaptRun:
    if kind == "styles":
        return tiny.run(out, hook=hook, mapper={"pictures": 8}, train={"views": {"count": 2}})
    config = tiny.tune(out, "ipl", train={"views": {"count": 2}}, diffusion={"mode": "per-step"})
    return adapt(config, hook=hook, state=tiny.given_diffusion())


@pytest.mark.parametrize("kind", ["styles", "diffusion"])
def test_a_resumed_run_with_views_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    whole = carried_out(kind, tmp_path / "whole")
    for stage, step in ((1, 3), (2, 3)):
        with pytest.raises(ZeroDivisionError):
            carried_out(kind, tmp_path / "run", tiny.Stop((stage, step), ZeroDivisionError()))
    again = carried_out(kind, tmp_path / "run")
    states: list[Any] = [run.generator.state_dict() for run in (whole, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.folder.metrics()[-1]["loss"] == again.folder.metrics()[-1]["loss"]


def test_a_view_and_its_opposite_lie_around_the_picture() -> None:
    keys = (pictures(3), 0, "shots", 1)
    views, others = (drawn_views(ViewsConfig(count=4), *keys, opposite=each) for each in (False, True))
    told = []
    for each in (views, others):
        areas = torch.linalg.det(each.theta[..., :2])
        turns = torch.atan2(each.theta[..., 1, 0] * areas.sign(), each.theta[..., 1, 1])
        told.append((areas.abs().sqrt(), turns, each.theta[..., 2], areas.sign()))
    for ours, theirs, middle in zip(*told, (1, 0, 0, 0), strict=True):
        torch.testing.assert_close((ours + theirs) / 2, torch.full_like(ours, middle))
        assert float((ours - theirs).abs().min()) > 0
    plain = draw_views(ViewsConfig(count=4), *keys)
    assert plain is not None and torch.equal(plain.theta, views.theta)
