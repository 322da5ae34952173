"""Rounds of mistakes: what adaptation makes under the guides is kept with the truth beside it, guides learn
from all of it, and nothing that is finished is made again."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel, Lengths
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.clips import load_clip_folder
from zeroshift.files.registry import load_generator
from zeroshift.methods import ipl
from zeroshift.portraits.shading import DOMAINS, HELD_OUT, TUNING
from zeroshift.pretrain import __main__ as pretrain
from zeroshift.pretrain import clips, dataset, guides, lengths, mistakes
from zeroshift.pretrain.clips import ClipRecipe
from zeroshift.pretrain.guides import Examples, Guide

TWO = ("pencil sketch", "zombie")
SHORT = mistakes.Rounds(
    rounds=1, steps=2, snapshots=(1, 2), people=2, pool=16, tune=2, fresh=3, made=3, rate=1e-3
)
SMALL = {
    "clip-a": ClipRecipe("resnet", (8, 8), (1, 1), "silu", 1, steps=2, people=3, attack=3.0),
    "clip-b": ClipRecipe("resnet", (8, 12), (1, 1), "gelu", 2, steps=2, people=3, attack=3.0),
}


class Here:
    """Carries jobs out in this process, which knows the small sizes."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, what: Any, *given: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(what(*given))
        return done


def short(number: int, domain: str, out: Path) -> AdaptConfig:
    """The adaptation of a round, with a first stage of two steps."""
    return configure(
        PLAIN(number, domain, out), mapper={"steps": 2, "batch": 4, "pictures": 4}, train={"batch": 2}
    )


PLAIN = mistakes.adaptation


@dataclasses.dataclass(frozen=True)
class Trained:
    """A whole training of one round."""

    data: Path
    work: Path
    last: Path
    world: mistakes.Known


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Small guides, short rounds, two domains, 48 people."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD", 6)
        patch.setattr(mistakes, "ROUNDS", SHORT)
        patch.setattr(mistakes, "TUNING", TWO)
        patch.setattr(lengths, "TUNING", TWO)
        patch.setattr(mistakes, "adaptation", short)
        patch.setattr(mistakes, "ProcessPoolExecutor", Here)
        for name, recipe in SMALL.items():
            patch.setitem(guides.RECIPES, name, recipe)
        yield


@pytest.fixture(scope="module")
def trained(small: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Both guides, trained."""
    data, work = (tmp_path_factory.mktemp(name) for name in ("data", "work"))
    for index in range(8):
        dataset.make_shard(data, index, with_domains=True, people=6)
    return Trained(data, work, mistakes.train(data, work), mistakes._known(data))


def record_of(folder: Path, domain: str) -> dict[str, Any]:
    return json.loads((folder / f"{domain}.json").read_text())


def kept_of(folder: Path, domain: str) -> dict[str, Tensor]:
    return torch.load(folder / f"{domain}.pt", weights_only=True)


def test_every_adaptation_leaves_its_pictures_and_a_record(trained: Trained) -> None:
    assert trained.last == trained.work / "mistakes" / "01"
    for number in (0, 1):
        folder = trained.work / "mistakes" / f"{number:02d}"
        for domain in TWO:
            kept, record = kept_of(folder, domain), record_of(folder, domain)
            # Two snapshots and the averaged generator, of two people each, all different.
            assert kept["way"].shape == (6, 3, 64, 64) and kept["way"].dtype == torch.uint8
            assert len(set(kept["rows"].tolist())) == 6 and max(kept["rows"]) < SHORT.pool
            assert (record["round"], record["domain"]) == (number, domain)
            assert len(record["truth_above"]) == 2 and all(0 <= each <= 1 for each in record["truth_above"])
            assert record["ratio"] > 0 and record["grain"] > 0
            wanted = short(number, domain, folder / "x")
            assert (record["method"], record["rate"]) == (wanted.method, wanted.train.lr)


def test_kept_pictures_are_those_of_the_generator_on_its_way(trained: Trained) -> None:
    world = trained.world
    source = load_generator("portraits", torch.device("cpu"))[0]
    target = source.clone()
    target.load_state_dict(torch.load(trained.last / "zombie.target.pt", weights_only=True))
    kept = kept_of(trained.last, "zombie")
    # In parts as they were drawn, for equal rounding.
    parts = world.people.z[kept["rows"]].split(SHORT.people)
    moved = torch.cat([((mistakes.drawn(source, target, z) + 1) * 127.5).round().byte() for z in parts])
    # The second snapshot is that of the last step; the first lies before it, and so does the average.
    assert torch.equal(kept["way"][2:4], moved[2:4])
    assert not torch.equal(kept["way"][:2], moved[:2]) and not torch.equal(kept["way"][4:], moved[4:])


def test_an_adaptation_goes_on_where_it_stood_until_its_life_is_over(trained: Trained) -> None:
    first, last = trained.work / "mistakes" / "00", trained.last
    for domain in TWO:
        place = DOMAINS.index(domain)
        assert record_of(first, domain)["goes_on"] is False
        assert record_of(last, domain)["goes_on"] == ((1 + place) % SHORT.life != 0)
        # Only the newest weights are kept.
        assert not (first / f"{domain}.target.pt").exists() and (last / f"{domain}.target.pt").exists()
    assert {record_of(last, domain)["goes_on"] for domain in TWO} == {True, False}


def test_what_is_finished_is_not_made_again(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[Path, bytes]:
        return {each: each.read_bytes() for each in trained.work.rglob("*") if each.is_file()}

    before = files()
    monkeypatch.setattr(Guide, "step", None)
    monkeypatch.setattr(ipl, "train", None)
    assert mistakes.train(trained.data, trained.work) == trained.last
    assert files() == before


def test_an_adaptation_that_was_cut_off_is_made_again_to_the_bit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_round(name: str) -> Path:
        """A round behind the last one, in a folder of its own."""
        shutil.copytree(trained.last, tmp_path / name / "01")
        for guide in mistakes.NAMES:
            shutil.copytree(trained.last / guide, tmp_path / name / "02" / guide)
        return tmp_path / name / "02"

    def killed(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    whole, parts = next_round("whole"), next_round("parts")
    mistakes.collect(whole, trained.world, 2, "pencil sketch")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mistakes, "grain", killed)
        mistakes.collect(parts, trained.world, 2, "pencil sketch")
    assert not (parts / "pencil sketch.json").exists()
    mistakes.collect(parts, trained.world, 2, "pencil sketch")
    assert record_of(parts, "pencil sketch") == record_of(whole, "pencil sketch")
    assert record_of(whole, "pencil sketch")["goes_on"]
    for name, other in kept_of(whole, "pencil sketch").items():
        assert torch.equal(kept_of(parts, "pencil sketch")[name], other)


def test_a_tuning_that_was_cut_off_is_made_again_to_the_bit(trained: Trained) -> None:
    saved = trained.last / "clip-a.pt"
    before = torch.load(saved, weights_only=True)
    saved.unlink()
    mistakes.train(trained.data, trained.work)
    again = torch.load(saved, weights_only=True)
    assert all(torch.equal(value, before["student"][name]) for name, value in again["student"].items())
    assert torch.equal(again["reach"], before["reach"])


def test_guides_change_from_round_to_round_and_lie_there_as_clips(trained: Trained) -> None:
    for name in mistakes.NAMES:
        found = [load_clip_folder(trained.work / "mistakes" / number / name) for number in ("00", "01")]
        weights = [each.model.visual_projection.weight for each in found]
        assert not torch.equal(weights[0], weights[1])
        assert found[1].name == f"portraits-{name}"
        seconds = [
            torch.load(trained.work / "mistakes" / number / f"{name}.pt", weights_only=True)["seconds"]
            for number in ("00", "01")
        ]
        assert 0 < seconds[0] < seconds[1]


def test_the_pool_holds_the_mistakes_of_all_rounds(trained: Trained) -> None:
    rounds = trained.work / "mistakes"
    for number in (0, 1):
        pool = mistakes.mistakes_until(rounds, number)
        parts = [(each, domain) for each in range(number + 1) for domain in TWO]
        ways = torch.cat([kept_of(rounds / f"{each:02d}", domain)["way"] for each, domain in parts])
        places = torch.tensor([DOMAINS.index(domain) for _, domain in parts]).repeat_interleave(6)
        assert torch.equal(pool["way"], ways) and torch.equal(pool["domain"], places)
        assert len(pool["rows"]) == len(ways) == 12 * (number + 1)


def test_mistakes_are_labelled_by_the_truth(trained: Trained) -> None:
    world = trained.world
    pool = mistakes.mistakes_until(trained.work / "mistakes", 1)
    found = mistakes.examples(world, pool, 5, torch.Generator().manual_seed(3))
    picked = torch.randint(len(pool["way"]), (5,), generator=torch.Generator().manual_seed(3))
    for k, place in enumerate(picked.tolist()):
        row, domain = int(pool["rows"][place]), int(pool["domain"][place])
        assert torch.equal(found.start[k], world.starts[row])
        assert torch.equal(found.truth[k], dataset.to_float(world.people.domains[row, domain - 1]))
        assert torch.equal(found.way[k], dataset.to_float(pool["way"][place]))
        wanted = guides.soft_labels(
            found.way[k : k + 1], found.truth[k : k + 1], found.start[k : k + 1], torch.tensor([domain]),
            torch.tensor([0]),
        )  # fmt: skip
        assert torch.allclose(found.labels[k], wanted[0]) and int(found.domain[k]) == domain
    assert not found.pure.any() and not found.readable.any()


def test_starts_are_the_source_generator_s_pictures_of_the_people(trained: Trained) -> None:
    world = trained.world
    assert world.starts.shape == (SHORT.pool, 3, 64, 64) and float(world.starts.abs().max()) <= 1
    photos = dataset.to_float(world.people.photo[: SHORT.pool])
    same, other = ((world.starts - each).abs().mean() for each in (photos, photos.roll(1, 0)))
    assert float(same) < 0.5 * float(other)


def test_tuning_mixes_renders_and_mistakes_and_its_rate_falls_in_the_last_two_rounds(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mistakes, "ROUNDS", dataclasses.replace(SHORT, rounds=4))
    rates: list[float] = []
    seen: list[Examples] = []

    class Watched(Guide):
        def step(self, examples: Examples, number: int, rate: float, radius: float) -> dict[str, Tensor]:
            rates.append(rate)
            seen.append(examples)
            return {}

    pool = mistakes.mistakes_until(trained.work / "mistakes", 1)
    monkeypatch.setattr(mistakes, "mistakes_until", lambda *_: pool)
    for number in range(4):
        mistakes.tune("clip-a", Watched(SMALL["clip-a"]), trained.world, trained.work, number)
    assert rates == pytest.approx([SHORT.rate * min(1.0, 0.1 + 0.9 * left / 4) for left in range(8, 0, -1)])
    assert all(len(each) == SHORT.fresh + SHORT.made for each in seen)
    assert not any(each.pure[SHORT.fresh :].any() for each in seen)
    assert len({float(each.way.sum()) for each in seen}) == len(seen)


def mean_label(clip: ClipModel, label: str) -> Tensor:
    """Mean of the unit features of a label's sentences."""
    texts = [clip.encode_text([each])[0].double() for each in clip.templates.sentences(label)]
    return torch.stack([each / each.norm() for each in texts]).mean(0)


def unit_pictures(clip: ClipModel, pictures: Tensor) -> Tensor:
    return torch.stack([each / each.norm() for each in clip.encode_image(pictures).double()])


@torch.no_grad()
def test_lengths_are_calibrated_on_true_pictures_of_domains_that_are_not_held_out(trained: Trained) -> None:
    clip = load_clip_folder(trained.last / "clip-b")
    photos = unit_pictures(clip, dataset.to_float(trained.world.people.photo[:48]))
    of_labels, of_pictures = [], []
    for domain in TWO:
        place = DOMAINS.index(domain) - 1
        truth = unit_pictures(clip, dataset.to_float(trained.world.people.domains[:48, place]))
        ways = [math.dist(a.tolist(), b.tolist()) for a, b in zip(photos, truth, strict=True)]
        apart = math.dist(mean_label(clip, "photo").tolist(), mean_label(clip, domain).tolist())
        of_labels.append(math.log(apart))
        of_pictures.append(math.log(sum(ways) / len(ways)))
    # Through two points there is one line; a CLIP of two steps may have them the wrong way round.
    power = max((of_pictures[1] - of_pictures[0]) / (of_labels[1] - of_labels[0]), 0.1)
    scale = math.exp(sum(of_pictures) / 2 - power * sum(of_labels) / 2)
    assert (clip.lengths.scale, clip.lengths.power) == pytest.approx((scale, power), rel=5e-3)
    again = load_clip_folder(trained.last / "clip-b")
    lengths.calibrate(again, trained.world.people)
    assert again.lengths == clip.lengths


@torch.no_grad()
def test_the_truth_is_above_where_its_step_along_the_labels_is_nearer_to_their_length(
    trained: Trained,
) -> None:
    clip, world = load_clip_folder(trained.last / "clip-a"), trained.world
    rows = torch.arange(12)
    start, truth = world.starts[rows], world.truth(rows, DOMAINS.index("zombie"))
    made = (start + 0.6 * (truth - start) + 0.3 * torch.randn_like(start)).clamp(-1, 1)
    apart = mean_label(clip, "zombie") - mean_label(clip, "photo")
    floor = clip.lengths.of(float(apart.norm()))
    features = [unit_pictures(clip, each) for each in (start, made, truth)]
    wins = 0
    for before, *after in zip(*features, strict=True):
        scores = []
        for each in after:
            step = each - before
            along = sum(a * b for a, b in zip(step.tolist(), (apart / apart.norm()).tolist(), strict=True))
            scores.append(along / max(float(step.norm()), floor))
        wins += scores[1] > scores[0]
    assert mistakes.above(clip, "zombie", start, made, truth) == pytest.approx(wins / 12)
    assert mistakes.above(clip, "zombie", start, truth, truth) == 0.0


def test_adaptations_differ_in_methods_rates_and_views_and_never_go_to_what_is_held_out(
    tmp_path: Path,
) -> None:
    every = []
    for domain in TUNING:
        configs = [PLAIN(number, domain, tmp_path) for number in range(12)]
        assert {each.method for each in configs} == {"ipl", "nada"}
        assert {each.train.views.count > 1 for each in configs} == {True, False}
        assert {each.target for each in configs} == {domain}
        assert len({each.run.seed for each in configs}) == len(configs)
        every += configs
    assert len({each.train.lr for each in every}) > 1
    assert len({each.losses.relation for each in every}) > 1
    assert not set(TUNING) & set(HELD_OUT)


def test_cards_of_the_guides_tell_how_often_the_truth_was_above(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "TUNING", TWO)
    monkeypatch.setattr(pretrain, "TEST_SEEDS", range(2))
    monkeypatch.setattr(clips, "measure", lambda clip, photos, domains, z: {"people": len(z)})
    cards = pretrain.make_guides(trained.data, trained.work, tmp_path, 1)
    for place, name in enumerate(mistakes.NAMES):
        card = json.loads((tmp_path / name / "card.json").read_text())
        assert card == cards[name] and card["model"] == f"portraits-{name}"
        above = {domain: record_of(trained.last, domain)["truth_above"][place] for domain in TWO}
        mean = card["truth_above"].pop("mean")
        assert card["truth_above"] == above and mean == pytest.approx(sum(above.values()) / 2, abs=1e-3)
        assert (card["rounds"], card["steps"], card["quality"]) == (1, 2, {"people": 2})
        assert card["pictures_seen"] == 2 * (2 * 3 + 1 * 2 * (3 + 3))
        shipped, last = load_clip_folder(tmp_path / name), load_clip_folder(trained.last / name)
        assert shipped.lengths == last.lengths != Lengths()
        assert (card["length_scale"], card["length_power"]) == (last.lengths.scale, last.lengths.power)
        assert all(torch.equal(each, last.state_dict()[key]) for key, each in shipped.state_dict().items())
