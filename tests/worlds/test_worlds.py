"""A world of one's own, of a few lines: found through metadata, adapted in, measured against its truth and
shown beside it, as the built-in one is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
import zeroshift as zs
from zeroshift.comparison.tables import group_of
from zeroshift.config.measuring import EvaluateConfig, NetworksConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.images import eight_bit, fitted, labelled_rows, save_pictures
from zeroshift.files.registry import find_generator
from zeroshift.files.writing import file_sha256, write_json
from zeroshift.measure.evaluate import METRICS, evaluate, metrics_of
from zeroshift.measure.networks import Judge, open_networks
from zeroshift.measure.picture_sets import open_inputs
from zeroshift.measure.report import write_report
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.models.seeds import z_from_seeds
from zeroshift.pictures.sample import draw
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds import known
from zeroshift.worlds.known import register, world_named, world_of
from zeroshift.worlds.portraits import Portraits
from zeroshift.worlds.roles import NetworkRecord
from zeroshift.worlds.world import World

SEEDS = range(24)


@dataclass(frozen=True)
class ToneReader:
    """Reads whether the photo behind a picture is bright; a sketch is its negative."""

    negative: bool
    record = NetworkRecord("tone", "0" * 64, "none")

    def read(self, pictures: Tensor) -> dict[str, Tensor]:
        mean = pictures.mean(dim=(1, 2, 3))
        return {"tone": ((mean < 0) if self.negative else (mean > 0)).long()}


class Negatives(World):
    """The pictures of a tiny generator; a sketch is the negative of one, a statue its mirror image."""

    name = "negatives"
    latent_dim = 12
    domains = ("photo", "sketch", "statue")
    held_out = ("statue",)
    choices = {"tone": ("dark", "bright")}

    def __init__(self) -> None:
        self.photos = tiny.generator()
        self.judge = tiny.clip(5)

    @torch.no_grad()
    def truth(self, z: Tensor, label: str, size: int) -> Tensor:
        photos = fitted(self.photos.synthesize(self.photos.map(z)).clamp(-1, 1), size)
        return {"photo": photos, "sketch": -photos, "statue": photos.flip(3)}[label]

    def oracle_ratio(self, generator: str, label: str) -> float | None:
        return {"sketch": 0.2}.get(label) if len(generator) == 64 else None

    def attributes(self, z: Tensor) -> dict[str, Tensor]:
        return {"tone": (self.truth(z, "photo", 16).mean(dim=(1, 2, 3)) > 0).long()}

    def open_reader(self, label: str, device: str | torch.device = "cpu") -> ToneReader:
        return ToneReader(negative=self.domain_of(label) == "sketch")


class Bare(World):
    """As little as a world can be."""

    name = "bare"
    latent_dim = 12
    domains = ("photo", "sketch")

    def truth(self, z: Tensor, label: str, size: int) -> Tensor:
        return torch.zeros(len(z), 3, size, size)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is not known to the next."""
    monkeypatch.setattr(known, "_known", dict(known._known))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AdaptRun, Path]]:
    """A run of a generator that says it belongs to the world, and the file of that generator."""
    before = dict(known._known)
    register(Negatives())
    folder = tmp_path_factory.mktemp("negatives")
    save_generator(folder / "photos.safetensors", tiny.generator(), {"world": "negatives"})
    run = tiny.run(
        folder / "run",
        state=tiny.given(generator=None),
        generator=str(folder / "photos.safetensors"),
        method="nada",
        target="sketch",
        train={"steps": 8, "lr": 0.05, "layers": "all"},
    )
    yield run, folder / "photos.safetensors"
    known._known.clear()
    known._known.update(before)


def test_a_run_is_measured_against_the_truth_of_its_own_world(made: tuple[AdaptRun, Path]) -> None:
    run, _ = made
    done = evaluate(run, seeds="0-23", save=False)
    photos, sketches = (eight_bit(draw(each, SEEDS)) for each in (run.source, run.generator))
    expected = (sketches + photos).abs().mean()
    assert done.value("truth.distance") == pytest.approx(float(expected), rel=1e-4)
    was_bright = photos.mean(dim=(1, 2, 3)) > 0
    shown = sketches.mean(dim=(1, 2, 3)) < 0
    assert done.value("truth.tone") == pytest.approx(float((shown == was_bright).float().mean()))
    assert "1.000 on the true pictures" in done.record["metrics"]["truth.tone"]["note"]
    assert done.value("truth.attributes") == pytest.approx(done.value("truth.tone"))
    assert {"truth.frechet", "truth.perceptual", "fid", "is", "sifid"} <= set(done.record["metrics"])
    assert done.record["networks"]["judge"]["name"] == "tiny-5" and done.record["domain"] == "sketch"
    assert done.record["networks"]["reader"]["name"] == "tone" and done.record["held_out"] is False
    assert not any(name.endswith(("hair", "glasses")) for name in metrics_of(world_named("negatives")))


def test_the_truth_stands_in_the_third_row_of_the_picture_and_in_the_report(
    made: tuple[AdaptRun, Path],
) -> None:
    run, _ = made
    truth = Negatives().truth(z_from_seeds(range(2), 12), "sketch", 16)
    photos, sketches = (draw(each, range(2)) for each in (run.source, run.generator))
    expected = (labelled_rows([("photo", photos), ("sketch", sketches), ("truth", truth)]) + 1) * 127.5
    shown = numpy.asarray(Image.open(run.folder.path / "before_after.png")).transpose(2, 0, 1)
    assert shown.shape == tuple(expected.shape)
    assert float((torch.from_numpy(shown.copy()) - expected).abs().max()) <= 0.51
    evaluate(run, seeds="0-23")
    page = (run.folder.path / "report.html").read_text("utf-8")
    assert "the third row is the truth" in page and "tone read right" in page
    assert "distance to the true picture" in page


def test_the_source_file_and_a_folder_of_its_pictures_know_their_truth_too(
    made: tuple[AdaptRun, Path], tmp_path: Path
) -> None:
    run, file = made
    photos = draw(run.source, SEEDS)
    apart = float((2 * eight_bit(photos)).abs().mean())
    of_file = evaluate(file, labels=("photo", "sketch"), seeds="0-23", metrics=("truth.distance",))
    assert of_file.value("truth.distance") == pytest.approx(apart, rel=1e-4)
    assert evaluate(file, seeds="0-3", metrics=("truth.distance",)).value("truth.distance") < 1e-6
    save_pictures(photos, SEEDS, tmp_path / "photos", {})
    of_folder = evaluate(
        tmp_path / "photos", source=str(file), labels=("photo", "sketch"), metrics=("truth.distance",)
    )
    assert of_folder.value("truth.distance") == pytest.approx(apart, rel=1e-4)
    mirrored = evaluate(file, labels=("photo", "statue"), seeds="0-3")
    assert mirrored.record["held_out"] is True and "a held-out domain" in mirrored.text()


def test_a_diffusion_model_of_the_world_is_measured_on_its_true_source_pictures(tmp_path: Path) -> None:
    register(Negatives())
    save_generator(tmp_path / "model.safetensors", tiny.diffusion(), {"world": "negatives"})
    run = adapt(
        tiny.tune(
            tmp_path / "run",
            generator=str(tmp_path / "model.safetensors"),
            target="sketch",
            monitor={"every": 0},
        ),
        state=tiny.given_diffusion(generator=None),
    )
    inputs = open_inputs(run, EvaluateConfig(seeds="7,9"))
    photos = Negatives().truth(z_from_seeds([7, 9], 12), "photo", 8)
    torch.testing.assert_close(inputs.sets["source"].part(slice(0, 2)), photos, atol=0.51 / 127.5, rtol=0)
    torch.testing.assert_close(inputs.sets["truth"].part(slice(0, 2)), -photos, atol=0.51 / 127.5, rtol=0)
    bare = open_inputs(str(tmp_path / "model.safetensors"), EvaluateConfig(labels=("photo", "sketch")))
    assert "no latent of the world negatives" in bare.missing_reasons["truth"]


def test_the_way_is_the_share_of_what_training_on_the_truth_gains(made: tuple[AdaptRun, Path]) -> None:
    run, file = made
    done = evaluate(run, seeds="0-23", save=False)
    photos, sketches = (eight_bit(draw(each, SEEDS)) for each in (run.source, run.generator))
    ratio = float((sketches + photos).abs().mean() / (2 * photos).abs().mean())
    assert done.value("truth.way") == pytest.approx((1 - ratio) / (1 - 0.2), rel=1e-3)
    row = done.record["metrics"]["truth.way"]
    assert f"{ratio:.3f} of the source's distance is left, 0.200 after" in row["note"] and row["spread"] > 0
    statues = evaluate(file, source=str(file), labels=("photo", "statue"), seeds="0-3")
    assert "negatives does not say how near" in statues.record["missing"]["truth.way"]
    assert "World.oracle_ratio" in statues.record["missing"]["truth.way"]
    alone = evaluate(file, labels=("photo", "sketch"), seeds="0-3")
    assert "--source" in alone.record["missing"]["truth.way"]


def test_pictures_further_from_the_truth_than_the_source_are_warned_about(
    made: tuple[AdaptRun, Path], tmp_path: Path
) -> None:
    _, file = made
    photos = draw(tiny.generator(), SEEDS)
    save_pictures(photos, SEEDS, tmp_path / "photos", {})
    save_pictures((photos + photos.sign() * 0.3).clamp(-1, 1), SEEDS, tmp_path / "harsh", {})
    asked: dict[str, Any] = {"labels": ("photo", "sketch"), "metrics": ("truth.distance",)}
    with pytest.warns(UserWarning, match="further from the truth than the source's own: distance"):
        harsh = evaluate(tmp_path / "harsh", source=str(file), **asked)
    (told,) = harsh.record["warnings"]
    apart = float((2 * eight_bit(photos)).abs().mean())
    assert f"{harsh.value('truth.distance'):.4f} for {apart:.4f}, " in told
    assert f"{harsh.value('truth.distance') / apart:.2f} times" in told and told in harsh.text()
    same = evaluate(tmp_path / "photos", source=str(file), **asked)
    assert same.record["warnings"] == [] and "warnings" not in same.text()


def test_the_report_begins_with_the_way_and_shows_the_warnings(
    made: tuple[AdaptRun, Path], tmp_path: Path
) -> None:
    run, _ = made
    copy = Path(shutil.copytree(run.folder.path, tmp_path / "copy"))
    done = evaluate(copy, seeds="0-23")
    record = done.record | {"warnings": ["worse than <nothing>"]}
    write_json(copy / "evaluation.json", record)
    page = write_report(RunFolder.load(copy)).read_text("utf-8")
    first = page.index(f"<dt>way to the truth</dt><dd>{done.value('truth.way'):.2f}</dd>")
    assert first < page.index("<dt>state</dt>")
    assert page.index('<td class="name">way to the truth</td>') < page.index("distance to the true picture")
    assert "<strong>Warning:</strong> worse than &lt;nothing&gt;" in page


def test_the_card_of_the_built_in_generator_tells_how_near_each_domain_can_come() -> None:
    world = Portraits()
    sha256 = file_sha256(find_generator("portraits"))
    ratios = [world.oracle_ratio(sha256, domain) for domain in world.domains[1:]]
    assert all(ratio is not None and 0 < ratio < 1 for ratio in ratios)
    assert world.oracle_ratio(sha256, "Roman  mosaic") == world.oracle_ratio(sha256, "mosaic")
    assert world.oracle_ratio(sha256, "photo") is None
    assert world.oracle_ratio("0" * 64, "mosaic") is None and Bare().oracle_ratio("0" * 64, "sketch") is None


def test_without_judge_and_attributes_a_world_measures_pixels_and_says_what_else_it_lacks(
    tmp_path: Path,
) -> None:
    register(Bare())
    save_generator(tmp_path / "g.safetensors", tiny.generator(), {"world": "bare"})
    done = evaluate(tmp_path / "g.safetensors", labels=("photo", "sketch"), seeds="0-3")
    assert list(done.record["metrics"]) == ["truth.distance"]
    assert "no detail of single pixels" in done.record["missing"]["truth.grain"]
    expected = eight_bit(draw(tiny.generator(), range(4))).abs().mean()
    assert done.value("truth.distance") == pytest.approx(float(expected), rel=1e-2)
    assert "the world bare has no attributes" in done.record["missing"]["truth.attributes"]
    assert "--judge" in done.record["missing"]["truth.recognised"]
    assert "--edges" in done.record["missing"]["scs"]
    assert set(done.record["missing"]) | {"truth.distance"} == set(METRICS)


def test_only_a_judge_that_knows_the_world_takes_more_roles_than_its_own(tmp_path: Path) -> None:
    from zeroshift.files.clips import save_clip

    world = Negatives()
    own = open_networks(NetworksConfig(), world, "sketch")
    assert own.judge is own.features is own.perceptual
    assert own.features is not None
    classes = own.features.encode(torch.zeros(3, 3, 16, 16)).classes
    assert [each.shape for each in classes] == [(3, 2)]
    save_clip(tiny.clip(6), tmp_path / "other")
    other = open_networks(NetworksConfig(judge=str(tmp_path / "other")), world, "sketch")
    assert type(other.judge) is Judge and other.features is None and other.perceptual is None


def test_a_world_that_is_not_known_here_is_named(tmp_path: Path) -> None:
    save_generator(tmp_path / "g.safetensors", tiny.generator(), {"world": "elsewhere"})
    inputs = open_inputs(tmp_path / "g.safetensors", EvaluateConfig(labels=("photo", "sketch"), seeds="0"))
    assert inputs.world is None and "'elsewhere'" in inputs.missing_reasons["truth"]
    assert "register" in inputs.missing_reasons["truth"]


def test_worlds_are_found_by_what_a_generator_says_of_itself() -> None:
    assert isinstance(world_of({"world": "portraits"}), Portraits)
    assert isinstance(world_of({"source_name": "portraits-ddpm"}), Portraits)
    assert isinstance(world_of({"name": "portraits", "sha256": "..."}), Portraits)
    assert world_of({"name": "ffhq.pkl"}) is None and world_of({}) is None and world_named("") is None
    mine = register(Negatives())
    assert world_of({"world": "negatives", "source_name": "portraits"}) is mine
    other = register(Negatives())
    assert world_named("negatives") is other and other is not mine


def broken(**parts: Any) -> World:
    return type("Broken", (Bare,), parts)()


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (broken(name=""), "a world needs a name"),
        (broken(domains=("photo",)), "at least two domains.*'bare'.*photo"),
        (broken(held_out=("mosaic",)), "holds out 'mosaic'"),
        (broken(held_out=("photo",)), "holds out 'photo'"),
        (broken(domain_of=lambda self, label: None), "domain_of..photo.. of the world bare"),
    ],
)
def test_a_world_that_contradicts_itself_is_refused(world: World, message: str) -> None:
    with pytest.raises(InputError, match=message):
        register(world)
    assert world_named("bare") is None


def test_an_attribute_may_not_take_the_name_of_a_metric() -> None:
    with pytest.raises(InputError, match="second metric truth.distance"):
        metrics_of(broken(choices={"distance": ("near", "far")}))


def test_an_installed_package_brings_its_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bare_world-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: bare-world\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[zeroshift.worlds]\nbare = bare_world:Bare\nwrong = bare_world:Bare\n"
    )
    module: Any = ModuleType("bare_world")
    module.Bare = Bare
    monkeypatch.setitem(sys.modules, "bare_world", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(world_named("bare"), Bare)
    with pytest.raises(InputError, match="no world named 'wrong'"):
        world_named("wrong")


def test_labels_name_domains_whatever_their_case_and_spaces() -> None:
    world = Negatives()
    assert world.domain_of("  Sketch ") == "sketch" and world.domain_of("drawing") is None
    assert world.source == "photo" and world.tuning == ("sketch",)
    assert world.is_held_out("Statue") and not world.is_held_out("sketch") and not world.is_held_out("x")
    assert Portraits().domain_of("Roman  mosaic") == "mosaic" and Portraits().is_held_out("roman mosaic")


def test_targets_are_grouped_by_the_world_of_their_run() -> None:
    world = Negatives()
    groups = [group_of(target, world) for target in ("sketch", "statue", "photo", "zebra")]
    assert groups == ["tuning", "held-out", "other", "other"] and group_of("sketch", None) == "other"


def test_the_truth_of_the_built_in_world_is_the_render_of_the_noise_of_a_seed() -> None:
    truth = Portraits().truth_of_seeds(range(2), "Pencil  sketch", 32)
    assert truth is not None and truth.shape == (2, 3, 32, 32)
    assert torch.equal(truth, zs.portraits.render(z_from_seeds(range(2), 64), "pencil sketch", 32))
    assert Portraits().truth_of_seeds(range(2), "a city at night", 32) is None
