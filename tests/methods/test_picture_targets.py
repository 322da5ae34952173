"""Pictures as target of the zero-shot methods: alone, beside words, per picture, for both kinds of
generator."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.app.publish import write_folder
from zeroshift.clip.features import normalize
from zeroshift.config.measuring import EvaluateConfig
from zeroshift.config.schema import ViewsConfig
from zeroshift.errors import InputError
from zeroshift.files.clips import save_clip
from zeroshift.files.images import eight_bit, fitted, read_picture, write_png
from zeroshift.measure.evaluate import evaluate
from zeroshift.measure.picture_sets import open_inputs
from zeroshift.methods import shots as methods_shots
from zeroshift.methods import style_backend
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.methods.ipl import open_run
from zeroshift.methods.picture_way import picture_set_direction, regressed_mean, set_mean
from zeroshift.methods.views import drawn_views, seen
from zeroshift.methods.zero_shot import ZeroShotRun
from zeroshift.models.seeds import average_style, draw_z
from zeroshift.pictures.runs import load
from zeroshift.pictures.sample import metadata_of

COUNT = 20
"""Pictures of the source over which tiny means are taken: too few to be told by styles."""


def folder_of(place: Path, count: int = 3, size: int = 16, seed: int = 0) -> Path:
    """A folder of noisy variants of one picture of noise."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(3, size, size, generator=draw)
    for number in range(count):
        own = 0.1 * torch.randn(3, size, size, generator=draw)
        write_png(place / f"{number}.png", (0.4 * common + own).clamp(-1, 1))
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and few looks at pictures."""
    monkeypatch.setenv("ZEROSHIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(methods_shots, "LOOKS", 24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "drawings")


def options(folder: Path, method: str = "nada", **overrides: Any) -> dict[str, Any]:
    """Overrides of a run with pictures as target, without words unless some are given."""
    shots = {"folder": folder, "source_pictures": COUNT} | overrides.pop("shots", {})
    target = overrides.pop("target", "")
    return {"method": method, "target": target, "shots": shots, "monitor": {"every": 0}, **overrides}


def prepared(out: Path, folder: Path, method: str = "nada", **overrides: Any) -> ZeroShotRun:
    """A run that knows its way and has done no step."""
    run = open_run(tiny.config(out, **options(folder, method, **overrides)), tiny.given())
    run.prepare()
    return run


def carried_out(
    out: Path, folder: Path, method: str = "nada", hook: Any = None, **overrides: Any
) -> AdaptRun:
    return tiny.run(out, hook=hook, **options(folder, method, **overrides))


def same(first: AdaptRun, second: AdaptRun) -> bool:
    """Whether two runs have weights equal in every bit."""
    ours, theirs = first.generator.state(), second.generator.state()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def slow_mean(rows: Tensor) -> list[float]:
    """Mean of unit vectors, by sums."""
    units = [[x / math.hypot(*row) for x in row] for row in rows.tolist()]
    return [math.fsum(column) / len(units) for column in zip(*units, strict=True)]


def slow_direction(source: Tensor, target: Tensor) -> Tensor:
    """n( mean_j n(target_j) - mean_i n(source_i) )."""
    step = [t - s for t, s in zip(slow_mean(target), slow_mean(source), strict=True)]
    return torch.tensor([each / math.hypot(*step) for each in step])


def source_pictures(run: ZeroShotRun) -> Tensor:
    """The source's pictures by their keys, without noise."""
    z = torch.cat([draw_z(12, min(16, COUNT - 16 * part), 0, "source mean", part) for part in range(2)])
    with torch.no_grad():
        return run.source.synthesize(run.source.map(z), "off")


def test_the_direction_to_pictures_is_that_of_mean_features(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path / "run", folder, noise="off")
    shots = torch.stack([read_picture(folder / f"{number}.png") for number in range(3)])
    for clip, found in zip(run.clips, run.text_directions(run.backend.codes(1)), strict=True):
        features = (clip.clip.encode_image(each) for each in (source_pictures(run), shots))
        torch.testing.assert_close(found, slow_direction(*features)[None])
        assert clip.targets == () and clip.width == found.shape[1]


def test_pictures_and_source_are_seen_in_views_as_in_training(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_shots, "LOOKS", 90)
    views = ViewsConfig(count=3)
    run = prepared(tmp_path / "run", folder, noise="off", views={"count": 3})
    shots = torch.stack([read_picture(folder / f"{number}.png") for number in range(3)])

    def mean(clip: Any, pictures: Tensor, stage: str, looks: int) -> Tensor:
        """Mean over pictures and looks of unit features, picture by picture."""
        total = torch.zeros(clip.width)
        for number, picture in enumerate(pictures):
            for look in range(looks):
                keys = (0, stage, look // 2, number)
                one = replace(views, count=1)
                drawn = drawn_views(one, picture[None], *keys, opposite=look % 2 == 1)
                total += normalize(clip.clip.encode_image(seen(picture[None], drawn)))[0]
        return total / len(pictures) / looks

    for clip in run.clips:
        assert clip.way is not None
        target = mean(clip, shots, "shots", 30)  # 3 pictures, 90 looks
        source = mean(clip, source_pictures(run), "source mean", 6)  # 20 pictures, in pairs of looks
        torch.testing.assert_close(clip.direction[0], normalize(target - source), rtol=0, atol=2e-5)


def test_another_seed_changes_the_start_of_the_way_and_the_same_does_not(
    tmp_path: Path, folder: Path
) -> None:
    first, again = (prepared(tmp_path / name, folder) for name in "ab")
    other = prepared(tmp_path / "c", folder, seed=1)
    for clip, same_clip, other_clip in zip(first.clips, again.clips, other.clips, strict=True):
        assert torch.equal(clip.direction, same_clip.direction)
        assert 0.5 < float(clip.direction @ other_clip.direction.T) < 0.9999


def test_many_pictures_of_the_source_are_told_by_their_styles(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_backend, "MEAN_STYLES", 1000)
    run = prepared(tmp_path / "run", folder, noise="off", shots={"source_pictures": 80})
    shots = torch.stack([read_picture(folder / f"{number}.png") for number in range(3)])
    styles = run.source.map(torch.cat([draw_z(12, 16, 0, "source mean", part) for part in range(5)]))
    for clip in run.clips:
        features = normalize(clip.clip.encode_image(run.source.synthesize(styles, "off")))
        start = regressed_mean(features, styles, average_style(run.source, 1000, 0))
        target = set_mean(normalize(clip.clip.encode_image(shots)))
        torch.testing.assert_close(clip.direction, picture_set_direction(start.mean, target.mean))
        assert float((start.mean - features.mean(dim=0)).norm()) > 1e-3


def test_the_start_of_the_way_is_kept_for_other_runs_of_the_same_source_views_and_seed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(tmp_path / "first", folder)
    seen: list[str] = []
    count = methods_shots.features_of

    def counted(clips: Any, parts: Any, stage: str, number: int) -> Any:
        seen.append(stage)
        return count(clips, parts, stage, number)

    monkeypatch.setattr(methods_shots, "features_of", counted)
    others = folder_of(tmp_path / "more", seed=1)
    again = prepared(tmp_path / "again", folder)
    assert seen == ["shots"]
    for ours, theirs in zip(first.clips, again.clips, strict=True):
        assert torch.equal(ours.direction, theirs.direction) and ours.length == theirs.length
    prepared(tmp_path / "others", others, target="zombie")
    assert seen == ["shots"] * 2
    prepared(tmp_path / "seed", folder, seed=1)
    prepared(tmp_path / "views", folder, views={"count": 2})
    prepared(tmp_path / "count", folder, shots={"source_pictures": 16})
    assert seen == ["shots"] * 2 + ["shots", "source mean"] * 3


def test_without_words_of_the_target_the_label_of_the_source_changes_nothing(
    tmp_path: Path, folder: Path
) -> None:
    photo, statue = (carried_out(tmp_path / name, folder, source=name) for name in ("photo", "statue"))
    assert same(photo, statue)
    others = carried_out(tmp_path / "others", folder_of(tmp_path / "more", seed=1))
    assert not same(photo, others)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_words_and_pictures_are_mixed_by_share(tmp_path: Path, folder: Path, share: float) -> None:
    words = open_run(tiny.config(tmp_path / "words", method="nada"), tiny.given())
    alone = prepared(tmp_path / "alone", folder)
    both = prepared(tmp_path / "both", folder, target="zombie", shots={"share": share})
    for text, picture, found in zip(words.clips, alone.clips, both.clips, strict=True):
        for name in ("direction", "target_feature", "target_sentence_feature"):
            vectors = getattr(text, name), getattr(picture, name)
            mixture = normalize((1 - share) * vectors[0] + share * vectors[1])
            torch.testing.assert_close(getattr(found, name), mixture)
        assert found.length == pytest.approx((1 - share) * text.length + share * picture.length)


@pytest.mark.parametrize("mean", ["words", "label"])
def test_learned_words_of_every_picture_are_mixed_with_the_pictures_of_the_target(
    tmp_path: Path, folder: Path, mean: str
) -> None:
    run = prepared(
        tmp_path / "run", folder, "ipl", target="zombie", mapper={"mean": mean}, shots={"share": 0.3}
    )
    plain = open_run(tiny.config(tmp_path / "plain", mapper={"mean": mean}), tiny.given())
    for each in (run, plain):
        each.recentre_directions()
    codes = run.backend.codes(1)
    for clip, mixed, words in zip(
        run.clips, run.text_directions(codes), plain.text_directions(codes), strict=True
    ):
        assert clip.way is not None and clip.label_direction is not None
        if mean == "words":
            expected = normalize(0.7 * words + 0.3 * clip.way.direction)
        else:
            assert run.mapper is not None and clip.words_mean is not None
            own = replace(clip, way=None, words_mean=None)
            found = own.text_direction(run.words(codes)[run.clips.index(clip)])
            both = normalize(0.7 * clip.label_direction + 0.3 * clip.way.direction)
            expected = normalize(both + found - clip.words_mean)
        torch.testing.assert_close(mixed, expected)
        assert float((mixed[0] - mixed[1]).norm()) > 1e-4


def test_to_a_point_pictures_go_as_far_as_the_pictures_of_the_target_are(
    tmp_path: Path, folder: Path
) -> None:
    run = prepared(tmp_path / "run", folder, length="point", noise="off")
    shots = torch.stack([read_picture(folder / f"{number}.png") for number in range(3)])
    for clip in run.clips:
        units = [normalize(clip.clip.encode_image(each)).double() for each in (source_pictures(run), shots)]
        apart = math.dist(*(each.mean(dim=0).tolist() for each in units))
        errors = [
            sum(math.dist(row, each.mean(dim=0).tolist()) ** 2 for row in each.tolist())
            / (len(each) - 1)
            / len(each)
            for each in units
        ]
        assert clip.length == clip.floor == pytest.approx((apart**2 - sum(errors)) / apart, rel=1e-4)


@pytest.mark.parametrize("at", [(2, 1), (2, 3)])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, folder: Path, at: tuple[int, int]
) -> None:
    train = {"views": {"count": 2}}
    whole = carried_out(tmp_path / "whole", folder, train=train)
    with pytest.raises(ZeroDivisionError):
        carried_out(tmp_path / "run", folder, hook=tiny.Stop(at, ZeroDivisionError()), train=train)
    assert same(carried_out(tmp_path / "run", folder, train=train), whole)


def test_a_run_names_its_pictures_by_hash_and_holds_none_unless_asked(tmp_path: Path, folder: Path) -> None:
    run = carried_out(tmp_path / "run", folder)
    hashes = [hashlib.sha256((folder / f"{number}.png").read_bytes()).hexdigest() for number in range(3)]
    assert [each["sha256"] for each in run.folder.environment["shots"]] == hashes
    assert not (run.folder.path / "shots").exists()
    copied = carried_out(tmp_path / "copied", folder, shots={"copy": True})
    assert len(list((copied.folder.path / "shots").iterdir())) == 3 and same(copied, run)
    with pytest.raises(ZeroDivisionError):
        carried_out(tmp_path / "cut", folder, hook=tiny.Stop((2, 2), ZeroDivisionError()))
    folder_of(folder, seed=5)
    with pytest.raises(InputError, match=r"pictures of the target are not those .* \(0\.png differs\)"):
        carried_out(tmp_path / "cut", folder)


def test_a_finished_run_is_returned_for_its_own_pictures_and_refused_for_others(
    tmp_path: Path, folder: Path
) -> None:
    run = carried_out(tmp_path / "run", folder)
    (folder / "notes.png").write_text("no picture, and none when the run was done")
    assert carried_out(tmp_path / "run", folder).steps_done == 0
    write_png(folder / "3.png", torch.zeros(3, 16, 16))
    with pytest.raises(InputError, match=r"are not those .* \(3\.png differs\)"):
        carried_out(tmp_path / "run", folder)
    (folder / "3.png").unlink()
    (folder / "1.png").unlink()
    with pytest.raises(InputError, match=r"\(1\.png differs\)"):
        carried_out(tmp_path / "run", folder)
    shutil.rmtree(folder)
    assert same(carried_out(tmp_path / "run", folder), run)


def test_a_diffusion_model_goes_from_the_pictures_it_learns_from_to_those_of_the_target(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path / "drawings", size=8)
    chosen: dict[str, Any] = {"target": "", "shots": {"folder": folder}}
    run = open_run(tiny.tune(tmp_path / "run", **chosen), tiny.given_diffusion())
    run.prepare()
    shots = torch.stack([read_picture(folder / f"{number}.png") for number in range(3)])
    learned: Any = run.backend
    for clip in run.clips:
        features = (clip.clip.encode_image(each) for each in (learned.learned.pictures, shots))
        torch.testing.assert_close(clip.direction, slow_direction(*features)[None])
    more = open_run(
        tiny.tune(tmp_path / "more", target="", shots={"folder": folder, "source_pictures": 6}),
        tiny.given_diffusion(),
    )
    more.prepare()
    assert not torch.equal(more.clips[0].direction, run.clips[0].direction)
    done = adapt(run.config, state=tiny.given_diffusion())
    assert done.finished and [each["name"] for each in done.folder.environment["shots"]] == [
        f"{number}.png" for number in range(3)
    ]


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"losses": {"patch": 1.0}}, "losses.patch compares with words of the target"),
        ({"losses": {"manifold": 1.0}}, "losses.manifold compares with words of the target"),
    ],
)
def test_what_needs_words_of_the_target_is_refused_without(
    tmp_path: Path, folder: Path, overrides: dict[str, Any], part: str
) -> None:
    with pytest.raises(InputError, match=part):
        tiny.config(tmp_path / "run", **options(folder, **overrides))


def test_the_losses_of_the_whole_target_compare_with_its_pictures(tmp_path: Path, folder: Path) -> None:
    run = carried_out(
        tmp_path / "run", folder, losses={"global_clip": 1.0, "relation": 1.0}, layers="adaptive"
    )
    assert all(line["global_clip"] > 0 for line in run.folder.metrics())
    assert plan(run.config, state=tiny.given()).config.target_name == "drawings"


def test_a_run_without_words_has_report_pictures_card_and_measurements(tmp_path: Path, folder: Path) -> None:
    given = tiny.given(world=tiny.described())
    run = tiny.run(tmp_path / "run", state=given, **options(folder, monitor={"every": 3}))
    page = (run.folder.path / "report.html").read_text("utf-8")
    assert "photo to drawings" in page and "3 pictures of the target" in page
    assert [set(row["cosines"]) for row in run.folder.agreement] == []  # nobody says which domain it is
    card = write_folder(run.folder, "me/drawings", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text("utf-8")
    assert set(card) >= {"README.md"} and 'to "drawings" by 3 pictures of the new domain' in text
    assert str(folder.parent) not in text
    assert metadata_of("run", load(run.folder.path))["target"] == "drawings"
    with pytest.raises(InputError, match="the labels are not known: --labels SOURCE TARGET"):
        evaluate(run, metrics=("direction",), seeds="0-3")
    done = evaluate(run, seeds="0-3", networks={"judge": str(judge_folder(tmp_path))})
    assert done.value("diversity") > 0 and done.record["labels"] == {"source": "", "target": ""}


def judge_folder(place: Path) -> Path:
    """A folder of a CLIP that guides no run."""
    save_clip(tiny.clip(7), place / "judge")
    return place / "judge"


def test_a_run_is_measured_against_its_own_pictures_while_they_are_there(
    tmp_path: Path, folder: Path
) -> None:
    run = carried_out(tmp_path / "run", folder, shots={"crop": "top"})
    found = open_inputs(run, EvaluateConfig(seeds="0-3", size=8)).sets["shots"]
    pictures = [fitted(read_picture(folder / f"{number}.png")[None], 8, "top") for number in range(3)]
    torch.testing.assert_close(found.part(slice(0, 3)), eight_bit(torch.cat(pictures)))
    folder_of(folder, seed=5)
    assert "shots" not in open_inputs(run, EvaluateConfig(seeds="0-3", size=8)).sets
