"""Configs: published defaults, checks at birth that name every problem, overrides that find their section."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pydantic
import pytest

from zeroshift.config.methods import METHODS
from zeroshift.config.schema import (
    OFFICIAL_QUIRKS,
    SECTIONS,
    AdaptConfig,
    AdaptiveConfig,
    FinetuneConfig,
    MapperConfig,
    TrainConfig,
    ViewsConfig,
    configure,
    differences,
    from_dict,
    to_dict,
)
from zeroshift.errors import InputError

NAMES = ", ".join(map(repr, METHODS)).replace(f", {list(METHODS)[-1]!r}", f" or {list(METHODS)[-1]!r}")
"""The methods, as messages list them."""


def message(**values: Any) -> str:
    with pytest.raises(InputError) as caught:
        configure(**({"target": "zombie"} | values))
    return str(caught.value)


def test_the_defaults_are_the_published_settings() -> None:
    config = AdaptConfig(target="disney")
    assert (config.mapper.steps, config.mapper.batch, config.mapper.lr) == (300, 32, 0.05)
    assert (config.train.steps, config.train.batch, config.train.lr, config.train.ema) == (
        300,
        2,
        0.002,
        0.99,
    )
    assert (config.mapper.lambda_domain, config.mapper.lambda_source) == (1.0, 0.0)
    assert config.train.layers == "adaptive" and config.train.adaptive == AdaptiveConfig(every=1, batch=8)


@pytest.mark.parametrize("made", [AdaptConfig, *SECTIONS.values()])
def test_every_field_has_its_help_text(made: Any) -> None:
    described = {name: field.description for name, field in made.__pydantic_fields__.items()}
    assert set(described) == {field.name for field in dataclasses.fields(made)}
    assert all(text and text.endswith(".") for text in described.values()), described


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(AdaptConfig(target="zombie"), "target", "sketch")  # noqa: B010 -- the assignment itself would not type-check


def test_positional_values_are_refused() -> None:
    with pytest.raises(InputError, match="given by name, got 'zombie'"):
        AdaptConfig("zombie")  # pyright: ignore[reportCallIssue]  # the wrong call is the point


def test_all_problems_are_reported_at_once() -> None:
    text = message(train={"steps": 0, "batch": "many"}, mapper={"speed": 1}, seed=-1)
    assert text.startswith("4 problems:\n")
    for part in ("train.steps", "train.batch", "unknown option mapper.speed", "run.seed"):
        assert part in text


def test_conflicts_are_reported_at_once() -> None:
    text = message(target="photo", clip=(), device="gpu", losses={"direction": 0})
    assert text.startswith("4 problems:\n")
    for part in ("source and target are both 'photo'", "at least one CLIP", "device", "losses"):
        assert part in text


def test_a_problem_names_option_value_and_default() -> None:
    assert (
        message(train={"steps": -3})
        == "train.steps must be greater than or equal to 1, got -3; the default is 300."
    )


def test_a_section_alone_names_its_problems_too() -> None:
    with pytest.raises(
        InputError, match=r"mapper\.batch must be greater than or equal to 2, got 1; the default is 32"
    ):
        MapperConfig(batch=1)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"target": " "}, "target is empty"),
        ({"source": ""}, "source is empty"),
        ({"generator": ""}, "generator is empty"),
        ({"clip": ("a", "")}, "no empty name"),
        ({"clip": ("a", "b"), "clip_weights": (1.0,)}, "1 for 2 CLIPs"),
        ({"clip": ("a",), "clip_weights": (0.0,)}, "not all 0"),
        ({"clip": ("a", "b"), "clip_weights": (2.0, -1.0)}, "must not be negative"),
        ({"layers": ""}, "train.layers is empty"),
        ({"layers": "shape", "top_k": 3}, "needs 'adaptive'"),
        ({"train": {"batch": 1}, "relation": 0.2}, "losses.relation compares the pictures of a batch"),
        ({"zoom": 0.5, "strength": 2.0}, "train.views.zoom times strength is 1"),
        ({"views": {"count": 0}}, "train.views.count"),
        ({"length": "words"}, "quirks.length must be 'floor', 'labels' or 'point', got 'words'"),
        ({"truncation": 1.5}, "run.truncation"),
        ({"ema": 1.0}, "train.ema"),
        ({"method": "gan"}, f"method must be {NAMES}, got 'gan'"),
        ({"lambda_domain": float("nan")}, "mapper.lambda_domain"),
        ({"precision": "fp16"}, "run.precision"),
    ],
)
def test_each_impossible_value_has_its_sentence(values: dict[str, Any], part: str) -> None:
    assert part in message(**values)


def test_a_missing_target_is_named() -> None:
    with pytest.raises(InputError, match="target is empty; give the domain in words"):
        AdaptConfig()


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"method": "nada"}, "or pictures of it (--pictures FOLDER)."),
        ({"method": "ipl", "shots": {"folder": "x"}}, "method ipl takes pictures beside words of the target"),
        ({"method": "air", "shots": {"folder": "x"}}, "method air takes no pictures of the target"),
    ],
)
def test_a_target_of_pictures_is_refused_where_the_method_needs_words(
    values: dict[str, Any], part: str
) -> None:
    assert part in message(target="", **values)


def test_pictures_alone_are_a_target_which_is_named_after_their_folder() -> None:
    alone = configure(method="nada", shots={"folder": "my pictures/Old Sketches"})
    assert (alone.target, alone.target_name) == ("", "Old Sketches")
    assert alone.folder == Path("runs/nada-old-sketches-seed0")
    both = configure(alone, target="zombie", share=0.25)
    assert (both.target_name, both.shots.share) == ("zombie", 0.25)


def test_an_override_finds_the_one_section_that_has_it() -> None:
    config = configure(target="zombie", seed=3, residual="published", top_k=4)
    assert (config.run.seed, config.quirks.residual, config.train.adaptive.top_k) == (3, "published", 4)


def test_an_option_of_several_sections_must_name_one() -> None:
    assert "mapper={'steps': ...} or train={'steps': ...}" in message(steps=3)


def test_an_unknown_option_is_refused() -> None:
    assert "unknown option 'stepz'" in message(stepz=3)


def test_a_section_override_keeps_the_rest_of_the_section() -> None:
    base = configure(target="zombie", train={"steps": 7, "batch": 3})
    assert configure(base, train={"batch": 5}).train == TrainConfig(steps=7, batch=5)
    assert configure(base, train=TrainConfig(steps=9)).train == TrainConfig(steps=9)


def test_a_section_within_a_section_keeps_what_is_not_overridden() -> None:
    base = configure(target="zombie", train={"steps": 7, "diffusion": {"t0": 300, "mode": "per-step"}})
    tuned = configure(base, train={"diffusion": {"t0": 200}})
    assert tuned.train == TrainConfig(steps=7, diffusion=FinetuneConfig(t0=200, mode="per-step"))
    assert configure(base, diffusion={"t0": 200}) == tuned
    assert configure(base, train={"diffusion": FinetuneConfig(t0=9)}).train.diffusion == FinetuneConfig(t0=9)


def test_views_are_off_by_default_and_a_section_within_train() -> None:
    assert configure(target="zombie").train.views.count == 1
    assert configure(target="zombie", views={"count": 4}).train.views == ViewsConfig(count=4)


def test_compat_official_is_only_a_bundle_of_quirks() -> None:
    plain, official = configure(target="zombie"), configure(target="zombie", compat="official")
    assert official.quirks == OFFICIAL_QUIRKS
    assert configure(official, quirks=plain.quirks, own=plain.own) == plain
    changed = differences(to_dict(plain), to_dict(official))
    assert len(changed) == 9 and all(line.startswith(("quirks.", "own.adam.scrambled")) for line in changed)
    assert configure(target="zombie", compat="official", noise="off").quirks.noise == "off"


def test_a_config_survives_json() -> None:
    config = configure(target="zombie", clip=("a", "b"), clip_weights=(1.0, 0.5), out=Path("runs/x"), top_k=2)
    assert from_dict(to_dict(config)) == config


def test_a_config_of_an_earlier_version_is_read_by_its_old_names() -> None:
    tree = to_dict(configure(target="zombie", train={"steps": 7}))
    del tree["train"]["adaptive"]
    tree["train"] |= {"top_k": 3, "select_every": 10, "select_batch": 4}
    expected = TrainConfig(steps=7, adaptive=AdaptiveConfig(top_k=3, every=10, batch=4))
    assert from_dict(tree).train == expected
    assert tree["train"]["top_k"] == 3, "the values that were read stay as they are"
    with pytest.raises(InputError, match="unknown option train.select_pictures"):
        from_dict(tree | {"train": {"select_pictures": 4}})


def test_differences_name_option_old_and_new() -> None:
    old, new = configure(target="zombie"), configure(target="sketch", seed=2)
    assert differences(to_dict(old), to_dict(new)) == ['target: "zombie" -> "sketch"', "run.seed: 0 -> 2"]
    assert differences(to_dict(old), to_dict(old)) == []


def test_the_default_folder_names_method_target_and_seed() -> None:
    assert configure(target="Pencil  Sketch!", seed=4).folder == Path("runs/ipl-pencil-sketch-seed4")
    assert configure(target="zombie", out=Path("here")).folder == Path("here")


def test_pydantic_errors_never_reach_a_person() -> None:
    with pytest.raises(InputError) as caught:
        AdaptConfig(target=3)  # pyright: ignore[reportArgumentType]  # the wrong type is the point
    assert not isinstance(caught.value, pydantic.ValidationError) and "got 3" in str(caught.value)
