"""Who a picture shows and what it shows of them: the identity encoder and the attribute reader, trained tiny
and as shipped."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tiny
from zeroshift import portraits
from zeroshift.config.schema import NetworksConfig
from zeroshift.errors import InputError
from zeroshift.files.faces import IrSe, IrSeConfig, load_ir_se, save_ir_se
from zeroshift.files.registry import load_generator
from zeroshift.files.writing import file_sha256
from zeroshift.measure.evaluate import Evaluation, evaluate
from zeroshift.measure.networks import open_networks
from zeroshift.models import seeds as latent
from zeroshift.portraits.reader import encoder_features, load_reader, save_reader, split_choices
from zeroshift.portraits.scene import CHOICES, LATENT_DIM, sample_scene
from zeroshift.pretrain import dataset
from zeroshift.pretrain import identity as train_identity
from zeroshift.pretrain import reader as train_reader
from zeroshift.pretrain.__main__ import ASSETS
from zeroshift.worlds.portraits import IDENTITY, READER, Portraits

TINY = train_identity.IdentityRecipe(
    IrSeConfig((4, 6), (1, 1), first=3, squeeze=2, embed_dim=8, size=16),
    people=6,
    pairs=2,
    steps=2,
    peak_lr=1e-2,
)
Z = latent.z_from_seeds(range(900, 924), LATENT_DIM)
DOMAINS = ("photo", "pencil sketch", "mosaic")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one shard of twelve people."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD", 12)
        dataset.make_shard(folder, 0, True)
    return folder


@pytest.fixture(scope="module")
def shown() -> dict[str, torch.Tensor]:
    """The true pictures of new people in three domains."""
    return {domain: portraits.render(Z, domain) for domain in DOMAINS}


# Training.


def test_the_contrast_is_the_mean_over_pictures_of_how_hard_the_partner_is_to_find() -> None:
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for i in range(6):
        others = {
            j: math.exp(float(F.cosine_similarity(features[i], features[j], dim=0)) / 0.3)
            for j in range(6)
            if j != i
        }
        total -= math.log(others[(i + 3) % 6] / sum(others.values()))
    assert float(train_identity.contrast(features, 0.3)) == pytest.approx(total / 6, rel=1e-9)
    paired = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    assert (
        train_identity.contrast(paired, 0.05)
        < 1e-6
        < train_identity.contrast(paired.roll(1, 0)[[0, 1, 2, 5, 3, 4]], 0.05)
    )


def test_a_batch_shows_each_person_in_two_domains_and_depends_on_its_step_alone(data: Path) -> None:
    people = dataset.load(data, 1, 1)
    pictures, scene = train_identity.draw_batch(people, TINY, 4)
    again, _ = train_identity.draw_batch(people, TINY, 4)
    other, _ = train_identity.draw_batch(people, TINY, 5)
    assert torch.equal(pictures, again) and not torch.equal(pictures, other)
    assert pictures.shape == (12, 3, 64, 64) and float(pictures.abs().max()) <= 1 and len(scene) == 6
    every = torch.cat([people.photo[:, None], people.domains], dim=1)

    def nearest(picture: torch.Tensor) -> tuple[int, int]:
        errors = (dataset.to_float(every) - picture).abs().mean(dim=(2, 3, 4))
        return divmod(int(errors.argmin()), len(portraits.DOMAINS))

    first, second = [nearest(each) for each in pictures[:6]], [nearest(each) for each in pictures[6:]]
    assert (
        sum(a[0] == b[0] for a, b in zip(first, second, strict=True)) >= 5
    )  # worn ones may be nearer to somebody else
    assert sum(a[1] != b[1] for a, b in zip(first, second, strict=True)) >= 5


def test_the_encoder_s_training_goes_on_where_it_was_and_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    recipe = dataclasses.replace(TINY, steps=4)
    whole, _ = train_identity.train(data, tmp_path / "whole", 1, recipe)
    monkeypatch.setattr("zeroshift.pretrain.resumable.CHECKPOINT_SECONDS", -1)
    draw = train_identity.draw_batch

    def killed(people: dataset.People, recipe: train_identity.IdentityRecipe, step: int):
        if step == 2:
            raise KeyboardInterrupt
        return draw(people, recipe, step)

    monkeypatch.setattr(train_identity, "draw_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_identity.train(data, tmp_path / "parts", 1, recipe)
    monkeypatch.setattr(train_identity, "draw_batch", draw)
    parts, _ = train_identity.train(data, tmp_path / "parts", 1, recipe)
    start = train_identity.Student(recipe).network.state_dict()
    assert all(torch.equal(parts.state_dict()[name], value) for name, value in whole.state_dict().items())
    assert not torch.equal(start["output_layer.3.weight"], whole.state_dict()["output_layer.3.weight"])


def test_heads_are_at_the_least_of_their_loss() -> None:
    draw = torch.Generator().manual_seed(3)
    scene = sample_scene(torch.randn(60, LATENT_DIM, generator=draw))
    features = torch.randn(60, 4, generator=draw) * torch.tensor([1.0, 5.0, 0.2, 1.0]) + 3
    weights, biases = train_reader.fit(features, scene, train_reader.ReaderRecipe(decay=0.05, iterations=150))

    def loss(weights: torch.Tensor, biases: torch.Tensor) -> float:
        total, start = 0.0, 0
        for name, (choices, _) in CHOICES.items():
            rows = features @ weights[start : start + len(choices)].T + biases[start : start + len(choices)]
            total += float((rows.logsumexp(1) - rows[torch.arange(60), scene.choice[name]]).mean())
            start += len(choices)
        return (total + 0.05 * float((weights * features.std(0)).square().sum())) / len(CHOICES)

    least = loss(weights, biases)
    for row, column in ((0, 0), (7, 1), (20, 2), (30, 3)):
        for step in (-0.05, 0.05):
            moved = weights.clone()
            moved[row, column] += step / float(features.std(0)[column])
            assert loss(moved, biases) > least


def test_the_reader_reads_what_it_was_trained_on_in_every_domain_and_keeps_it_in_a_file(
    data: Path, tmp_path: Path
) -> None:
    encoder = IrSe(TINY.network, crop=False).eval()
    save_ir_se(tmp_path / "encoder.safetensors", encoder)
    free = train_reader.ReaderRecipe(decay=1e-5, iterations=25)
    heads, _ = train_reader.train(encoder, data, tmp_path, 1, free)
    assert tuple(heads) == portraits.DOMAINS
    rows = [json.loads(line) for line in (tmp_path / "reader.jsonl").read_text().splitlines()]
    assert rows[-1]["accuracy"] > 0.95
    save_reader(tmp_path / "reader.safetensors", heads, file_sha256(tmp_path / "encoder.safetensors"))
    kept = load_reader(tmp_path / "reader.safetensors", tmp_path / "encoder.safetensors")
    weights, biases = kept.heads["neon"]
    assert torch.allclose(weights, heads["neon"][0], rtol=1e-3, atol=1e-4) and torch.allclose(
        biases, heads["neon"][1], rtol=1e-3
    )
    save_ir_se(
        tmp_path / "other.safetensors",
        IrSe(dataclasses.replace(TINY.network, embed_dim=9), crop=False).eval(),
    )
    with pytest.raises(InputError, match="features of another encoder"):
        load_reader(tmp_path / "reader.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no attribute reader"):
        load_reader(tmp_path / "encoder.safetensors", tmp_path / "encoder.safetensors")
    with pytest.raises(InputError, match="does not know 'clay'"):
        kept.read(kept.features(torch.zeros(1, 3, 16, 16)), "clay")


def test_choices_are_read_in_the_order_of_the_attributes() -> None:
    said = split_choices(torch.arange(float(sum(len(choices) for choices, _ in CHOICES.values())))[None])
    assert [*said] == [*CHOICES] and [each.shape[1] for each in said.values()] == [
        len(each) for each, _ in CHOICES.values()
    ]
    assert torch.cat([*said.values()], dim=1)[0].diff().eq(1).all()


# As shipped.


def test_shipped_files_stay_small_and_meet_their_cards() -> None:
    assert IDENTITY.stat().st_size < 5e6 and READER.stat().st_size < 1e6
    identity, reader = (
        json.loads((ASSETS / f"{name}.card.json").read_text()) for name in ("identity", "reader")
    )
    assert identity["sha256"] == reader["encoder_sha256"] == file_sha256(IDENTITY)
    assert reader["sha256"] == file_sha256(READER) and set(identity["domains_seen"]) == set(portraits.DOMAINS)
    found = identity["quality"]["renders"]
    assert set(found) == set(portraits.DOMAINS) - {"photo"}
    assert all(row["cosine_same"] > row["cosine_different"] + 0.3 for row in found.values())


def test_the_shipped_encoder_finds_people_in_other_domains_as_its_card_says(
    shown: dict[str, torch.Tensor],
) -> None:
    network, _ = load_ir_se(IDENTITY)
    card = json.loads((ASSETS / "identity.card.json").read_text())["quality"]["renders"]
    eight_bit = {domain: ((pictures + 1) * 127.5).round().byte() for domain, pictures in shown.items()}
    found = train_identity.measure(
        network, eight_bit["photo"], {name: eight_bit[name] for name in DOMAINS[1:]}
    )
    for domain, row in found.items():
        assert row["rank_1"] >= card[domain]["rank_1"] - 0.1, (
            domain
        )  # of 24 people, which is easier than of 512
        assert row["cosine_same"] == pytest.approx(card[domain]["cosine_same"], abs=0.1)
        assert row["cosine_different"] == pytest.approx(card[domain]["cosine_different"], abs=0.1)


def test_a_person_agrees_with_themselves_in_two_domains_and_not_with_others(
    shown: dict[str, torch.Tensor],
) -> None:
    network, _ = load_ir_se(IDENTITY)
    features = {domain: network.embed(pictures) for domain, pictures in shown.items()}
    cosines = features["pencil sketch"] @ features["mosaic"].T
    others = cosines[~torch.eye(len(Z), dtype=torch.bool)]
    assert torch.allclose(network.embed(shown["photo"]), features["photo"]) and float(others.mean()) < 0.3
    assert float(cosines.diagonal().mean()) > float(others.mean()) + 3 * float(others.std())


def test_the_shipped_reader_reads_new_people_as_its_card_says(shown: dict[str, torch.Tensor]) -> None:
    card = json.loads((ASSETS / "reader.card.json").read_text())["quality"]
    scene = sample_scene(Z)
    reader = load_reader(READER, IDENTITY)
    for domain, pictures in shown.items():
        read = reader.read(reader.features(pictures), domain)
        shares = {name: float(read[name].eq(scene.choice[name]).double().mean()) for name in CHOICES}
        assert sum(shares.values()) / len(shares) == pytest.approx(card["mean_by_domain"][domain], abs=0.1)
    assert (
        sum(card["share_of_the_commonest_choice"].values()) / len(CHOICES)
        < min(card["mean_by_domain"].values()) - 0.2
    )
    features = reader.features(shown["photo"])
    assert torch.allclose(features, encoder_features(load_ir_se(IDENTITY)[0], shown["photo"]))


def test_half_the_numbers_of_a_file_change_no_face(tmp_path: Path) -> None:
    network, _ = load_ir_se(IDENTITY)
    save_ir_se(tmp_path / "a.safetensors", network, half=True)
    save_ir_se(tmp_path / "b.safetensors", network)
    assert (tmp_path / "a.safetensors").stat().st_size < 0.6 * (tmp_path / "b.safetensors").stat().st_size
    halves, wholes = (load_ir_se(tmp_path / name)[0] for name in ("a.safetensors", "b.safetensors"))
    pictures = portraits.render(Z[:2])
    assert torch.equal(wholes.embed(pictures), network.embed(pictures))
    assert torch.allclose(halves.embed(pictures), network.embed(pictures), atol=1e-3)


# In an evaluation.


@pytest.fixture(scope="module")
def photos() -> Evaluation:
    """The built-in generator's photos as if they were mosaics, which they are not."""
    return evaluate(
        "portraits",
        labels=("photo", "roman mosaic"),
        source="portraits",
        seeds="0-7",
        metrics=NAMES,
        device="cpu",
    )


NAMES = ("identity", "truth.attributes", *(f"truth.{name}" for name in CHOICES))


def test_the_record_names_encoder_and_reader_with_their_hashes(photos: Evaluation) -> None:
    networks = photos.record["networks"]
    assert networks["identity"]["name"] == "portraits-identity" and networks["identity"][
        "sha256"
    ] == file_sha256(IDENTITY)
    assert networks["reader"]["name"] == "portraits-reader (mosaic)"
    assert networks["reader"]["sha256"] == f"{file_sha256(READER)}+{file_sha256(IDENTITY)}"
    assert photos.record["metrics"]["truth.hair"]["role"] == "reader" and photos.record["held_out"] is True
    assert photos.value("identity") == pytest.approx(1.0, abs=1e-6)


def test_attributes_kept_are_those_that_the_reader_of_the_target_finds(photos: Evaluation) -> None:
    z = latent.z_from_seeds(range(8), LATENT_DIM)
    generator = tiny.styled(load_generator("portraits")[0])
    made = generator.synthesize(generator.map(z)).clamp(-1, 1)
    reader = load_reader(READER, IDENTITY)
    scene = sample_scene(z)
    right = [0.0, 0.0]
    for name in CHOICES:
        shares = []
        for pictures in (made, portraits.render(z, "mosaic")):
            pictures = ((pictures + 1) * 127.5).round() / 127.5 - 1
            read = reader.read(reader.features(pictures), "mosaic")[name]
            shares.append(sum(int(a == b) for a, b in zip(read, scene.choice[name], strict=True)) / 8)
        row = photos.record["metrics"][f"truth.{name}"]
        assert (
            row["value"] == pytest.approx(shares[0])
            and f"{shares[1]:.3f} on the true pictures" in row["note"]
        )
        right = [total + share for total, share in zip(right, shares, strict=True)]
    assert photos.value("truth.attributes") == pytest.approx(right[0] / right[1])


def test_attributes_in_a_domain_outside_the_world_are_read_by_the_judge_s_words_and_the_record_says_so() -> (
    None
):
    done = evaluate(
        "portraits",
        labels=("photo", "comic strip"),
        seeds="0-15",
        metrics=("truth.hair", "truth.hat"),
        device="cpu",
    )
    row = done.record["metrics"]["truth.hat"]
    assert (
        row["role"] == "judge"
        and "reader" not in done.record["networks"]
        and "by the judge's words" in row["note"]
    )
    assert "true pictures are not known" in row["note"] and done.value("truth.hat") > 0.7
    assert done.record["held_out"] is False and done.record["networks"]["judge"]["name"] == "portraits-judge"
    with pytest.raises(InputError, match="does not draw this target"):
        evaluate(
            "portraits",
            labels=("photo", "comic strip"),
            seeds="0-3",
            metrics=("truth.attributes",),
            device="cpu",
        )


def test_a_held_out_target_is_flagged_by_any_of_its_names_and_without_its_truth() -> None:
    assert portraits.is_held_out("Roman  mosaic") and portraits.is_held_out("bronze statue")
    assert not any(portraits.is_held_out(name) for name in (*portraits.TUNING, "photo", "clay figure"))
    done = evaluate(
        "portraits",
        labels=("photo", "bronze"),
        seeds="0-1",
        truncation=0.5,
        metrics=("clip_score",),
        device="cpu",
    )
    assert done.record["held_out"] is True and done.record["domain"] == ""


def test_the_roles_of_the_world_are_taken_on_the_world_alone() -> None:
    opened = open_networks(NetworksConfig(), Portraits(), target="zombie")
    assert (
        {"identity", "reader"} <= set(opened.records())
        and opened.reader is not None
        and opened.reader.record.name == "portraits-reader (zombie)"
    )
    assert open_networks(NetworksConfig(), Portraits(), target="clay figure").reader is None
    assert open_networks(NetworksConfig(), None, target="zombie").records() == {}
