"""The table of methods: every combination that it allows runs, and every other is refused by it, in words
that help."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from zeroshift.config.methods import BUILT_IN, KINDS, METHODS, Kind, procedure
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.files.registry import load_generator
from zeroshift.methods.adapt import adapt

PAIRS: list[tuple[str, Kind]] = [(method, kind) for method in METHODS for kind in KINDS]


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_a_method_runs_on_the_kinds_of_generator_that_its_row_names_and_on_no_other(
    tmp_path: Path, method: str, kind: Kind
) -> None:
    diffusion = kind == "diffusion"
    if METHODS[method].adversarial:
        short = {"adam": {"steps": 1, "batches": 1}, "ewc": {"pictures": 1}}
        config = tiny.learn(tmp_path / "run", method, train={"steps": 1}, own=short)
    else:
        make = tiny.tune if diffusion else tiny.config
        few = {"mapper": {"steps": 1, "batch": 2}, "train": {"steps": 1}, "own": {"svl": {"steps": 2}}}
        config = make(tmp_path / "run", method=method, **few)
    state = tiny.given_diffusion() if diffusion else tiny.given(world=tiny.described())
    state.discriminator = tiny.discriminator()
    if kind in METHODS[method].on:
        assert adapt(config, state=state).finished
        return
    with pytest.raises(InputError, match=f"method {method} moves"):
        adapt(config, state=state)
    assert not (tmp_path / "run").exists()


def test_a_refusal_names_the_generator_what_the_method_is_for_and_the_methods_that_would_work() -> None:
    with pytest.raises(InputError) as caught:
        procedure("diffusionclip", "styles", "faces.pkl")
    text = str(caught.value)
    assert "faces.pkl is a generator with styles" in text
    assert "a diffusion model such as portraits-ddpm" in text
    assert "ipl, coop, nada, air, svl," in text


def test_the_built_in_generators_that_refusals_name_are_of_their_kind() -> None:
    assert {kind: load_generator(name)[0].kind for kind, name in BUILT_IN.items()} == {
        kind: kind for kind in KINDS
    }


def test_the_help_text_of_method_explains_every_row() -> None:
    from pydantic import TypeAdapter

    schema = TypeAdapter(AdaptConfig).json_schema()
    method = schema["properties"]["method"]
    assert method["enum"] == list(METHODS)
    text = " ".join(method["description"].split())
    missing = [name for name, row in METHODS.items() if f"`{name}`: {row.summary}" not in text]
    assert missing == []


def test_only_methods_that_learn_words_have_a_first_stage(tmp_path: Path) -> None:
    learning = {name for name, row in METHODS.items() if row.learns_words}
    configs = {name: tiny.config(tmp_path / "x", method=name) for name in ("ipl", "coop", "nada")}
    assert [each.learns_words for each in configs.values()] == [True, True, False]
    assert learning == {"ipl", "coop"}


def test_the_bound_of_captions_is_refused_where_no_world_has_them_and_others_are_named(
    tmp_path: Path,
) -> None:
    described = {"world": tiny.described()}
    for number, (world, labels) in enumerate(
        (({}, {}), (described, {"target": "statue"}), (described, {"source": "person"}))
    ):
        config = tiny.config(tmp_path / str(number), method="captions", **labels)
        with pytest.raises(InputError, match="has none for these labels.*are ipl, coop, nada, air, svl"):
            adapt(config, state=tiny.given(**world))
        assert not (tmp_path / str(number)).exists()
