"""Evaluations of runs, generators and folders: equal pictures measure alike, and the record says what the
numbers depend on."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import zeroshift as zs
from zeroshift import portraits
from zeroshift.app import cli
from zeroshift.clip.features import normalize, text_direction
from zeroshift.config.measuring import EvaluateConfig, NetworksConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.clips import save_clip
from zeroshift.files.faces import IrSe, IrSeConfig, save_ir_se
from zeroshift.files.images import eight_bit, fitted, save_pictures
from zeroshift.files.writing import file_sha256
from zeroshift.measure import features as looked
from zeroshift.measure import metrics
from zeroshift.measure.evaluate import METRICS, Evaluation, evaluate, metric_named, metrics_of
from zeroshift.measure.networks import open_networks
from zeroshift.measure.picture_sets import Files, read_folder
from zeroshift.methods.adapt import AdaptRun
from zeroshift.models.seeds import z_from_seeds
from zeroshift.pictures.sample import draw
from zeroshift.portraits.scene import CHOICES
from zeroshift.worlds.portraits import Portraits

SEEDS = range(24)
QUICK = ("diversity", "clip_score", "direction")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdaptRun]:
    """A folder with a run, its judge, a face network, and the run's pictures before and after as files."""
    folder = tmp_path_factory.mktemp("world")
    save_generator(folder / "source.safetensors", tiny.generator())
    run = tiny.run(
        folder / "run",
        state=tiny.given(generator=None),
        generator=str(folder / "source.safetensors"),
        method="nada",
        train={"steps": 8, "lr": 0.05, "layers": "all"},
    )
    save_clip(tiny.clip(5), folder / "judge")
    save_ir_se(folder / "faces.safetensors", IrSe(IrSeConfig((4,), (1,), 4, 4, 6, 8), crop=False).eval())
    for name, generator in (("before", run.source), ("after", run.generator)):
        save_pictures(draw(generator, SEEDS), SEEDS, folder / name, {})
    return folder, run


def judged(world: tuple[Path, AdaptRun], what: Any = None, **options: Any) -> Evaluation:
    folder, run = world
    return evaluate(
        run if what is None else what,
        **{"seeds": "0-23", "judge": str(folder / "judge"), "save": False} | options,
    )


def values(done: Evaluation, *names: str) -> dict[str, float]:
    return {name: done.value(name) for name in names}


def test_scores_of_a_run_equal_those_of_its_pictures_by_hand(world: Any) -> None:
    folder, run = world
    judge = zs.load_clip(str(folder / "judge"))
    before, after = (judge.encode_image(eight_bit(draw(each, SEEDS))) for each in (run.source, run.generator))
    text = normalize(
        torch.stack(
            [each / each.norm() for each in judge.encode_text(judge.templates.sentences("zombie"))]
        ).mean(0)
    )
    change = text_direction(judge, "photo", "zombie")
    done = judged(world)
    assert done.value("clip_score") == pytest.approx(float((normalize(after) @ text).mean()), abs=1e-6)
    moved = normalize(normalize(after) - normalize(before))
    assert done.value("direction") == pytest.approx(float((moved @ change.T).mean()), abs=1e-5)
    assert done.record["metrics"]["direction"]["spread"] == pytest.approx(
        float((moved @ change.T).std(correction=0)), abs=1e-5
    )
    ratio = metrics.pairwise_diversity(after) / metrics.pairwise_diversity(before)
    assert done.value("diversity") == pytest.approx(ratio, rel=1e-5) and ratio != 1.0


def test_a_run_its_folder_and_its_picture_files_measure_alike(world: Any) -> None:
    folder, _ = world
    expected = values(judged(world), *QUICK)
    assert values(judged(world, folder / "run"), *QUICK) == pytest.approx(expected, rel=1e-9)
    files = judged(world, folder / "after", source=str(folder / "before"), labels=("photo", "zombie"))
    assert values(files, *QUICK) == pytest.approx(expected, rel=1e-6)
    seeds = judged(
        world, folder / "after", source=str(folder / "source.safetensors"), labels=("photo", "zombie")
    )
    assert values(seeds, *QUICK) == pytest.approx(expected, rel=1e-6)
    file = judged(world, folder / "run" / "generator.safetensors", source=str(folder / "source.safetensors"))
    assert values(file, *QUICK) == pytest.approx(expected, rel=1e-6)


def test_other_pictures_measure_otherwise(world: Any) -> None:
    expected = values(judged(world), *QUICK)
    for options in ({"seeds": "24-47"}, {"truncation": 0.5}, {"size": 12}, {"labels": ("photo", "sketch")}):
        changed = values(judged(world, **options), *QUICK)
        assert changed != pytest.approx(expected, rel=1e-4), options


def test_the_batch_changes_nothing(world: Any) -> None:
    options = {"reference": world[0] / "before", "identity": str(world[0] / "faces.safetensors")}
    whole, parts = judged(world, **options, batch=64), judged(world, **options, batch=5)
    names = [*whole.record["metrics"]]
    assert "identity" in names and values(parts, *names) == pytest.approx(values(whole, *names), rel=1e-5)


def test_identity_is_the_cosine_of_the_face_network(world: Any) -> None:
    from zeroshift.files.faces import load_ir_se

    folder, run = world
    faces, sha256 = load_ir_se(folder / "faces.safetensors")
    pairs = [faces.embed(eight_bit(draw(each, SEEDS))) for each in (run.source, run.generator)]
    done = judged(world, identity=str(folder / "faces.safetensors"))
    assert done.value("identity") == pytest.approx(float((pairs[0] * pairs[1]).sum(1).mean()), abs=1e-6)
    assert done.record["networks"]["identity"]["sha256"] == sha256


def test_the_record_says_what_the_numbers_depend_on(world: Any) -> None:
    folder, run = world
    record = json.loads(json.dumps(judged(world, truncation=0.8).record, allow_nan=False))
    assert record["settings"] == {
        "pictures": 24,
        "seeds": "0-23",
        "truncation": 0.8,
        "noise": "the generators' own maps",
        "size": 16,
        "resize": "bicubic, antialiased, centre square",
    }
    assert record["sha256"]["generator"] == file_sha256(run.folder.generator_file)
    assert record["sha256"]["source"] == file_sha256(folder / "source.safetensors")
    assert record["networks"]["judge"]["resize"] == "bicubic, antialias, centre square of 16 px"
    assert record["labels"] == {"source": "photo", "target": "zombie"} and record["kind"] == "run"
    assert str(folder) not in json.dumps(record)


def test_what_lacks_its_network_or_pictures_is_left_out_and_named(world: Any) -> None:
    missing = judged(world).record["missing"]
    assert set(missing) | set(QUICK) == set(METRICS) and "reference" not in missing
    for name, flag in (
        ("fid", "--reference"),
        ("is", "--inception"),
        ("scs", "--edges"),
        ("identity", "--identity"),
    ):
        assert flag in missing[name]
    assert "--lpips" in missing["intra_lpips_zero_shot"] and "portraits" in missing["truth.distance"]
    assert "--inception" in judged(world, reference=world[0] / "before").record["missing"]["fid"]
    assert "--judge" in judged(world, judge="").record["missing"]["clip_score"]


def test_what_is_asked_for_and_cannot_be_measured_is_refused(world: Any) -> None:
    with pytest.raises(InputError, match="fid cannot be measured: .*--inception.*there are no real pictures"):
        judged(world, metrics=("clip_score", "fid"))
    with pytest.raises(InputError, match="there is no metric 'fit'; there are truth.way, "):
        judged(world, metrics=("fit",))
    with pytest.raises(InputError, match="labels must be two texts"):
        judged(world, labels=("zombie",))
    with pytest.raises(InputError, match="truncation"):
        judged(world, truncation=2)
    done = judged(world, metrics=("clip_score",))
    assert list(done.record["metrics"]) == ["clip_score"]
    with pytest.raises(InputError, match="fid was not measured"):
        done.value("fid")


def test_a_judge_that_guided_is_named_in_a_warning(world: Any, tmp_path: Path) -> None:
    save_clip(tiny.clips()[0], tmp_path / "guide")
    with pytest.warns(UserWarning, match="guided this run, so its numbers flatter it"):
        done = judged(world, judge=str(tmp_path / "guide"))
    assert len(done.record["warnings"]) == 1 and judged(world).record["warnings"] == []


def test_the_source_of_a_run_that_has_moved_is_asked_for(world: Any) -> None:
    folder, run = world
    place = folder / "source.safetensors"
    place.rename(folder / "moved.safetensors")
    try:
        done = judged(world, folder / "run")
        assert "--source" in done.record["missing"]["direction"] and done.value("clip_score")
        found = judged(world, folder / "run", source=str(folder / "moved.safetensors"))
        assert values(found, *QUICK) == pytest.approx(values(judged(world), *QUICK), rel=1e-9)
    finally:
        (folder / "moved.safetensors").rename(place)


def test_a_recorded_metric_is_explained_whatever_its_world() -> None:
    rows = metrics_of(Portraits())
    for name in ("fid", "truth.distance", "truth.hair", "truth.hair_color"):
        assert metric_named(name).title == rows[name].title and metric_named(name).better == rows[name].better
    assert metric_named("truth.tail_length").title == "tail length read right"
    for name in ("fit", "truth.", "tail"):
        with pytest.raises(InputError, match=f"no metric '{name}'; there are truth.way, "):
            metric_named(name)


def test_a_metric_that_was_not_asked_for_is_told_from_one_that_does_not_exist(world: Any) -> None:
    done = judged(world, metrics=("clip_score",))
    with pytest.raises(InputError, match="direction was not measured: it was not asked for"):
        done.value("direction")
    with pytest.raises(InputError, match="no metric 'fit'"):
        done.value("fit")


# The record in files.


def test_the_evaluation_of_a_run_is_kept_and_shown_by_report_and_card(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", method="nada", target="zombie | <b>")
    save_clip(tiny.clip(5), tmp_path / "judge")
    chosen = evaluate(run, judge=str(tmp_path / "judge"), seeds="0-3", metrics=("clip_score",))
    assert chosen.path is None and run.folder.evaluation is None
    done = evaluate(run, judge=str(tmp_path / "judge"), seeds="0-3")
    assert done.path == tmp_path / "run" / "evaluation.json" and run.folder.evaluation == done.record
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    shown = f"{done.value('clip_score'):.4f}"
    assert "How good it is" in page and shown in page and "4 pictures of 16 px; seeds 0-3" in page
    zs.push_to_hub(run, "ann/zombie", dry_run=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "## Evaluation" in card and shown in card.split("## Evaluation")[1]


def test_a_table_for_people_and_one_for_programs_hold_the_same_values(world: Any) -> None:
    done = judged(world, reference=world[0] / "before")
    rows = list(csv.DictReader(io.StringIO(done.csv())))
    assert [row["metric"] for row in rows] == list(done.record["metrics"])
    for row in rows:
        assert float(row["value"]) == done.value(row["metric"])
        assert row["sha256"] == done.record["networks"]["judge"]["sha256"] and row["truncation"] == "1.0"
        assert row["resize"].startswith("bicubic") and row["pictures"] == "24" and row["target"] == "zombie"
    text = done.text()
    assert all(row["title"] in text and f"{float(row['value']):.4f}" in text for row in rows)
    assert "not measured" in text and "--edges FILE" in text


def test_the_command_prints_a_table_or_one_object_and_writes_the_files(
    world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = world
    words = [
        "evaluate",
        str(folder / "run"),
        "--judge",
        str(folder / "judge"),
        "--seeds",
        "0-5",
        "--device",
        "cpu",
    ]
    assert cli.main([*words, "--csv", str(folder / "table.csv")]) == 0
    said = capsys.readouterr().out
    assert (
        "CLIP score" in said
        and str(folder / "run" / "evaluation.json") in said
        and "looking at pictures: 6" in said
    )
    assert "clip_score" in (folder / "table.csv").read_text()
    assert cli.main([*words, "--json"]) == 0
    told = capsys.readouterr()
    record = json.loads(told.out)
    assert record == run.folder.evaluation and "looking at pictures: 6" in told.err
    assert cli.main([*words, "--metrics", "clip_score", "direction", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == ["clip_score", "direction"]


BAD = {
    "nothing there": ("missing", "no generator"),
    "an empty folder": ("empty", "is empty: it has no pictures"),
    "a file that is no picture": ("broken", "cannot be read as a picture"),
    "pictures without a partner": ("alone", "no picture for 1 of 1, first other.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_code_2_and_one_message(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, expected = BAD[case]
    for folder in ("empty", "broken", "alone"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "alone" / "other.png").write_bytes((world[0] / "after" / "seed00000.png").read_bytes())
    words = [
        "evaluate",
        str(tmp_path / name),
        *(("--source", str(world[0] / "before")) if name == "alone" else ()),
    ]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said


# The built-in world.


@pytest.fixture(scope="module")
def photos() -> Evaluation:
    """The built-in generator's photos as if they were cartoons, which they are not."""
    return evaluate("portraits", labels=("photo", "cartoon"), source="portraits", seeds="0-23", device="cpu")


def test_the_truth_of_a_domain_is_rendered_for_the_same_people(photos: Evaluation) -> None:
    made = eight_bit(draw(zs.load_generator("portraits")[0], SEEDS))
    true = eight_bit(portraits.render(z_from_seeds(SEEDS, portraits.LATENT_DIM), "cartoon"))
    assert photos.value("truth.distance") == pytest.approx(metrics.distance_to_truth(made, true), rel=1e-6)
    judge = open_networks(NetworksConfig(), Portraits()).judge
    assert judge is not None
    features = [judge.features(each) for each in (made, true)]
    assert photos.value("truth.frechet") == pytest.approx(metrics.frechet_distance(*features), rel=1e-4)
    assert photos.value("fid") == pytest.approx(photos.value("truth.frechet"), rel=1e-6)
    ratio = metrics.pairwise_diversity(features[0]) / metrics.pairwise_diversity(features[1])
    assert photos.value("truth.diversity") == pytest.approx(ratio, rel=1e-5)
    found = metrics.recognised(judge.clip, features[0], "cartoon", portraits.DOMAINS)
    assert photos.value("truth.recognised") == float(found.mean())


def test_photos_that_never_moved_have_gone_no_way_and_are_not_warned_about(photos: Evaluation) -> None:
    assert photos.value("truth.way") == pytest.approx(0.0, abs=1e-9) and photos.record["warnings"] == []
    ratio = Portraits().oracle_ratio(photos.record["sha256"]["source"], "cartoon")
    assert (
        ratio is not None and f"{ratio:.3f} after training" in photos.record["metrics"]["truth.way"]["note"]
    )
    assert list(photos.record["metrics"])[0] == "truth.way"


def test_grain_and_raster_are_those_of_the_pictures_over_the_detail_of_the_truth(photos: Evaluation) -> None:
    made = eight_bit(draw(zs.load_generator("portraits")[0], SEEDS))
    true = eight_bit(portraits.render(z_from_seeds(SEEDS, portraits.LATENT_DIM), "cartoon"))
    whole = float(metrics.grain(true).mean())
    assert photos.value("truth.grain") == pytest.approx(float(metrics.grain(made).mean()) / whole)
    assert photos.value("truth.raster") == pytest.approx(float(metrics.raster(made).mean()) / whole)
    said = photos.record["metrics"]["truth.raster"]["note"]
    assert f"{float(metrics.raster(true).mean()) / whole:.3f} in the true pictures" in said


def test_the_built_in_world_measures_everything_but_what_needs_other_peoples_pictures(
    photos: Evaluation,
) -> None:
    record = photos.record
    assert set(record["missing"]) <= {"identity", "intra_lpips_few_shot", "memorised"}
    assert record["domain"] == "cartoon" and record["held_out"] is False
    assert "the true pictures, cartoon, 24 pictures" in record["reference"]
    assert record["networks"]["edges"]["name"].startswith("Sobel")
    assert (
        photos.value("scs") == 1.0 and photos.value("diversity") == 1.0 and photos.value("direction") == 0.0
    )


def test_true_pictures_measure_as_true(tmp_path: Path) -> None:
    seeds = range(2000, 2024)
    true = portraits.render(z_from_seeds(seeds, portraits.LATENT_DIM), "mosaic")
    save_pictures(true, seeds, tmp_path / "true", {})
    done = evaluate(tmp_path / "true", source="portraits", labels=("photo", "mosaic"), device="cpu")
    assert done.value("truth.distance") < 1e-6 and done.value("truth.perceptual") < 1e-6
    assert done.value("truth.frechet") < 1e-6 and done.value("truth.diversity") == pytest.approx(1.0)
    ratio = Portraits().oracle_ratio(done.record["sha256"]["source"], "mosaic")
    assert ratio is not None and done.value("truth.way") == pytest.approx(1 / (1 - ratio), rel=1e-5)
    assert done.value("truth.grain") == pytest.approx(1.0)
    assert (
        done.value("truth.attributes") == pytest.approx(1.0)
        and done.value("precision") == done.value("recall") == 1.0
    )
    assert done.record["held_out"] is True and "a held-out domain" in done.text()
    assert done.value("truth.recognised") > 0.9 and done.value("direction") > 0.5


def test_the_truth_belongs_to_known_seeds_domains_and_truncation_1() -> None:
    cases: dict[str, dict[str, Any]] = {
        "truncation 1, not 0.7": {"truncation": 0.7},
        "does not draw": {"labels": ("photo", "zebra")},
    }
    for why, options in cases.items():
        with pytest.raises(InputError, match=why):
            evaluate("portraits", seeds="0-3", metrics=("truth.distance",), **options)
    names = ("truth.distance", "truth.hair")
    done = evaluate("portraits", seeds="0-3", metrics=names)
    assert done.record["labels"]["target"] == "photo" and done.value("truth.distance") < 0.1


def test_few_shot_clusters_gather_around_the_given_pictures(tmp_path: Path) -> None:
    shots = (3, 8)
    seeds = range(12)
    true = portraits.render(z_from_seeds(seeds, portraits.LATENT_DIM), "zombie")
    save_pictures(true[list(shots)], shots, tmp_path / "shots", {})
    save_pictures(true, seeds, tmp_path / "made", {})
    done = evaluate(
        tmp_path / "made",
        source="portraits",
        labels=("photo", "zombie"),
        shots=tmp_path / "shots",
        metrics=("intra_lpips_few_shot",),
        device="cpu",
    )
    judge: Any = open_networks(NetworksConfig(), Portraits()).judge
    vectors = metrics.perceptual_vectors(judge.maps(eight_bit(true)))
    distances = metrics.squared_distances(vectors, vectors)
    labels = distances[:, list(shots)].argmin(dim=1)
    means = []
    for label in (0, 1):
        rows = (labels == label).nonzero()[:, 0].tolist()
        pairs = [float(distances[i, j]) for i in rows for j in rows if i != j]
        means += [sum(pairs) / len(pairs)] if pairs else []
    assert done.value("intra_lpips_few_shot") == pytest.approx(sum(means) / len(means), rel=1e-4)


def test_copies_of_shots_count_as_memorised(tmp_path: Path) -> None:
    shots, seeds = (3, 8), range(2000, 2008)
    true = portraits.render(z_from_seeds([*seeds, *shots], portraits.LATENT_DIM), "zombie")
    save_pictures(true[8:], shots, tmp_path / "shots", {})
    made = true[:8].clone()
    made[:3] = true[8] + 0.01
    save_pictures(made, seeds, tmp_path / "made", {})
    options: dict[str, Any] = {"source": "portraits", "labels": ("photo", "zombie"), "device": "cpu"}
    options |= {"metrics": ("memorised",), "shots": tmp_path / "shots"}
    done = evaluate(tmp_path / "made", **options)
    assert done.value("memorised") == 3 / 8
    assert "nearest of 2 shots" in done.record["metrics"]["memorised"]["note"]
    assert done.record["metrics"]["memorised"]["role"] == "perceptual"
    true_ones = evaluate(tmp_path / "made", **options, reference=tmp_path / "shots")
    assert true_ones.value("memorised") == 0, "nothing is nearer to the shots than they are"


def test_people_of_the_few_shot_pictures_among_those_measured_are_told(tmp_path: Path) -> None:
    true = portraits.render(z_from_seeds(range(4), portraits.LATENT_DIM), "zombie")
    save_pictures(true, range(4), tmp_path / "made", {})
    for seeds in (range(2, 4), range(4, 6)):
        save_pictures(true[:2], seeds, tmp_path / f"shots {seeds[0]}", {})
    asked: dict[str, Any] = {
        "labels": ("photo", "zombie"),
        "metrics": ("truth.distance",),
        "source": "portraits",
    }
    with pytest.warns(UserWarning, match="2 of the people measured, first seed 2, are those of the few-shot"):
        told = evaluate(tmp_path / "made", shots=tmp_path / "shots 2", **asked)
    others = evaluate(tmp_path / "made", shots=tmp_path / "shots 4", **asked)
    assert len(told.record["warnings"]) == 1 and others.record["warnings"] == []


def test_pairs_are_compared_alike_in_one_block_and_in_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seeds = range(7)
    save_pictures(portraits.render(z_from_seeds(seeds, portraits.LATENT_DIM)), seeds, tmp_path, {})
    files = read_folder(tmp_path)
    judge = open_networks(NetworksConfig(), Portraits()).judge
    few = Files(files.paths[:3], files.size, "few")
    steps: list[tuple[str, int, int]] = []

    def matrix(second: Files | None) -> Tensor:
        network: Any = judge
        return looked.perceptual_matrix(network, files, second, 2, "cpu", lambda *step: steps.append(step))

    whole, across = matrix(None), matrix(few)
    monkeypatch.setattr(looked, "BLOCK", 1)
    assert torch.allclose(matrix(None), whole, atol=1e-5) and torch.allclose(matrix(few), across, atol=1e-5)
    assert torch.allclose(across, whole[:, :3], atol=1e-5) and whole.diagonal().abs().max() == 0
    assert (
        torch.allclose(whole, whole.T) and float(whole.sum()) > 1 and steps[-1] == ("comparing pairs", 7, 7)
    )


# Pictures.


def test_pictures_are_cut_to_the_middle_square_and_resized_only_where_they_must() -> None:
    wide = torch.rand(1, 3, 8, 12) * 2 - 1
    assert torch.equal(fitted(wide, 8), wide[..., 2:10])
    small = fitted(wide, 4)
    assert small.shape == (1, 3, 4, 4) and torch.allclose(small.mean(), wide[..., 2:10].mean(), atol=0.1)


def test_a_folder_gives_its_pictures_by_name_and_its_seeds(world: Any) -> None:
    files = read_folder(world[0] / "after")
    assert len(files) == 24 and files.seeds == list(SEEDS) and files.size == 16
    assert torch.allclose(files.part(slice(0, 24)), eight_bit(draw(world[1].generator, SEEDS)), atol=1e-6)


def test_options_of_an_evaluation_have_the_defaults_of_the_benchmark() -> None:
    config = EvaluateConfig()
    assert config.seeds == "2000-2255" and config.truncation == 1.0 and config.networks == NetworksConfig()


def test_the_page_about_metrics_names_every_metric_and_no_function_that_is_not_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    tables = re.findall(r"^\| name \| equation \|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [line.split(" | ") for table in tables for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    assert named - set(METRICS) == {"truth.hair"} and set(METRICS) <= named
    assert set(metrics_of(Portraits())) - set(METRICS) == {f"truth.{name}" for name in CHOICES}
    functions = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    assert len(functions) > 10 and all(hasattr(metrics, name) for name in functions)
