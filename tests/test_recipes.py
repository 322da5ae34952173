"""Every recipe is a complete config that can be overridden."""

from __future__ import annotations

import pytest

from zeroshift.config import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.recipes import RECIPES, recipe, recipe_for


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
    assert (mapper.steps, mapper.batch, mapper.lr, mapper.lambda_domain, mapper.context) == (300, 32, 0.05, 1.0, "a photo of a")
    assert (train.steps, train.batch, train.lr, train.ema, train.layers) == (300, 2, 0.002, 0.99, "adaptive")


def test_the_recipe_of_the_built_in_world_takes_at_most_500_steps() -> None:
    assert recipe("portraits", "neon").train.steps <= 500


def test_an_unknown_recipe_is_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match="portraits, ipl-paper"):
        recipe("quick", "neon")


def test_a_generator_of_ones_own_takes_the_published_settings() -> None:
    assert recipe_for("portraits") == "portraits"
    assert recipe_for("ffhq.pt") == "ipl-paper"
