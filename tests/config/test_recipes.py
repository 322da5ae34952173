"""Every recipe is a complete config that can be overridden."""

from __future__ import annotations

import pytest

from zeroshift.config.recipes import HOMES, RECIPES, Home, recipe, recipe_for
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.errors import InputError


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_config_that_knows_its_name_and_target(name: str) -> None:
    config = recipe(name, "pencil sketch")
    assert isinstance(config, AdaptConfig)
    assert config.target == "pencil sketch" and config.run.recipe == name


def test_overrides_win_over_the_recipe() -> None:
    config = recipe("portraits", "neon", train={"steps": 7}, seed=3)
    assert config.train.steps == 7 and config.run.seed == 3
    assert config.train.lr == recipe("portraits", "neon").train.lr


def test_the_published_recipe_has_the_published_numbers() -> None:
    config = recipe("ipl-paper", "disney")
    mapper, train = config.mapper, config.train
    assert (mapper.steps, mapper.batch, mapper.lr, mapper.lambda_domain, mapper.context) == (
        300,
        32,
        0.05,
        1.0,
        "a photo of a",
    )
    assert (train.steps, train.batch, train.lr, train.ema, train.layers) == (300, 2, 0.002, 0.99, "adaptive")


def test_the_recipe_of_the_built_in_world_takes_at_most_500_steps() -> None:
    assert recipe("portraits", "neon").train.steps <= 500


def test_an_unknown_recipe_is_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match="portraits, ipl-paper"):
        recipe("quick", "neon")


def test_a_generator_of_ones_own_takes_the_published_settings() -> None:
    assert recipe_for("portraits") == "portraits"
    assert recipe_for("ffhq.pt") == "ipl-paper"
    assert (
        recipe_for("celebahq", "diffusionclip") == "diffusionclip"
        and recipe_for("portraits-ddpm", "ipl") == "portraits-ddpm"
    )


def test_the_recipe_of_diffusion_models_has_the_published_numbers() -> None:
    config = recipe("diffusionclip", "zombie", generator="celebahq")
    train, way = config.train, config.train.diffusion
    assert (train.steps, train.batch, train.lr, train.ema, train.layers) == (
        5 * way.num_pictures,
        1,
        8e-6,
        0.0,
        "all",
    )
    assert (way.t0, way.invert_steps, way.train_steps, way.num_pictures, way.lr_growth) == (
        500,
        40,
        6,
        50,
        1.3,
    )
    assert (config.losses.direction, config.losses.pixel, config.losses.identity) == (3.0, 1.0, 0.0)


@pytest.mark.parametrize("name", ["style", "identity", "in-domain", "far"])
def test_a_recipe_builds_on_what_suits_the_generator(name: str) -> None:
    own, other = recipe(name, "zombie"), recipe(name, "zombie", generator="ffhq.pt")
    assert own.clip == recipe("portraits", "zombie").clip and own.train.batch == 4
    assert (
        other.clip == recipe("ipl-paper", "zombie").clip
        and other.mapper.context == "a photo of a"
        and other.train.batch == 2
    )


def test_the_named_recipes_differ_in_what_they_are_for() -> None:
    names = ("style", "identity", "in-domain", "far")
    plain, identity, within, far = (recipe(name, "zombie", generator="ffhq.pt") for name in names)
    assert (plain.source, identity.source, within.source) == ("photo", "human", "human")
    assert within.train.steps < identity.train.steps < plain.train.steps < far.train.steps
    assert plain == recipe("ipl-paper", "zombie", generator="ffhq.pt", recipe="style")


@pytest.mark.parametrize("generator", ["portraits", "portraits-ddpm"])
def test_far_looks_ask_for_nothing_that_the_built_in_world_does_not_do_already(generator: str) -> None:
    names = ("far", "identity", "style")
    far, identity, plain = (recipe(name, "pencil sketch", generator=generator) for name in names)
    assert far == configure(plain, run={"recipe": "far"}) and far.mapper.mean == "label"
    # The way there has an end, so fewer steps would only stop before it.
    assert identity == configure(plain, run={"recipe": "identity"})


def test_another_built_in_generator_is_one_more_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Home("portraits", identity_source="robot", in_domain_source="robots", far={"mapper": {"words": 3}})
    monkeypatch.setitem(HOMES, "toys", row)
    assert recipe_for("toys") == "portraits"
    made = {
        name: recipe(name, "clay", generator="toys") for name in ("style", "identity", "in-domain", "far")
    }
    assert all(config.generator == "toys" for config in made.values())
    assert made["identity"].source == "robot" and made["in-domain"].source == "robots"
    assert made["far"].mapper.words == 3 and made["far"].train == made["style"].train
