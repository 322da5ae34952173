"""Options given in any way: the same names and values yield the same config, or the same complaint, from
Python, the command line and `compare`."""

from __future__ import annotations

import json
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zeroshift as zs
from zeroshift.app import cli
from zeroshift.app.commands import Adapt, Compare, Evaluate
from zeroshift.comparison.variants import FIXED, parse_variant, variant_config
from zeroshift.config.measuring import CompareConfig, EvaluateConfig, NetworksConfig
from zeroshift.config.options import is_config_class
from zeroshift.config.overrides import find, from_texts, override, paths
from zeroshift.config.recipes import RECIPES, resolve
from zeroshift.config.schema import AdaptConfig, FinetuneConfig, TrainConfig, to_dict
from zeroshift.errors import InputError

CLASSES = (AdaptConfig, EvaluateConfig, CompareConfig)
OPTIONS = {path: kind for path, kind in paths(AdaptConfig).items() if not is_config_class(kind)}
FREE = [path for path in OPTIONS if path not in FIXED and path != ("run", "recipe")]
"""Options that a method of a comparison may have for itself."""

WORDS = st.text("abcxyz/_-.0123456789", min_size=1, max_size=8).filter(
    lambda text: not text.startswith("-") and text.strip(".") == text
)


def values(path: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values of an option's type, within its limits."""
    owner: Any = AdaptConfig if len(path) == 1 else paths(AdaptConfig)[path[:-1]]
    field = owner.__pydantic_fields__[path[-1]]
    kind: Any = OPTIONS[path]
    if type(None) in typing.get_args(kind):
        (inner,) = (each for each in typing.get_args(kind) if each is not type(None))
        return st.none() | _of(inner, field.metadata)
    return _of(kind, field.metadata)


def _of(kind: Any, limits: list[Any]) -> st.SearchStrategy[Any]:
    if kind is Path:
        return WORDS.map(Path)
    if kind is str:
        return WORDS
    if typing.get_origin(kind) is tuple:
        return st.lists(_of(typing.get_args(kind)[0], []), min_size=1, max_size=3).map(tuple)
    if kind in (int, float):
        numbers: Any = st.integers(0, 1000) if kind is int else st.floats(0, 1)
        return numbers.filter(lambda number: all(_within(number, limit) for limit in limits))
    return st.from_type(kind)


def _within(number: float, limit: Any) -> bool:
    tests = {"ge": number.__ge__, "gt": number.__gt__, "le": number.__le__, "lt": number.__lt__}
    return all(test(getattr(limit, name)) for name, test in tests.items() if hasattr(limit, name))


def as_flag(path: tuple[str, ...], value: Any) -> list[str]:
    """An option as the command line takes it."""
    *section, name = (part.replace("_", "-") for part in path if part not in ("run", "own"))
    if isinstance(value, bool):
        name = name if value else f"no-{name}"
        return ["--" + ".".join([*section, name])]
    texts = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
    return ["--" + ".".join([*section, name]), *texts]


def as_text(value: Any) -> str:
    """A value as an option of a method of `compare`."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def outcome(make: Any) -> AdaptConfig | str:
    """The config, or the complaint."""
    try:
        return make()
    except InputError as error:
        return str(error).removeprefix("method 'm': ")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_way_of_giving_options_yields_the_same(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(FREE), min_size=1, max_size=8, unique=True))
    asked = {path: data.draw(values(path), ".".join(path)) for path in chosen}
    full = {".".join(path): value for path, value in asked.items()}
    nested: dict[str, Any] = {}
    for *sections, name, value in ((*path, value) for path, value in asked.items()):
        place = nested
        for part in sections:
            place = place.setdefault(part, {})
        place[name] = value
    flags = [word for path, value in asked.items() for word in as_flag(path, value)]
    texts = ",".join(f"{name}={as_text(value)}" for name, value in full.items())
    fixed = {"out": Path("o"), "seed": 3, "method": "ipl"}

    python = outcome(lambda: zs.recipe("portraits", "neon", **nested, **fixed))
    assert outcome(lambda: zs.recipe("portraits", "neon", **full, **fixed)) == python
    line = ["adapt", "--target", "neon", "--out", "o", "--seed", "3", *flags]
    assert outcome(lambda: typing.cast(Any, cli.parse(line)).config) == python
    variant = parse_variant(f"m=ipl:{texts}")
    assert outcome(lambda: variant_config(variant, {}, "neon", 3, Path("o"))) == python
    shared = outcome(lambda: variant_config(parse_variant("ipl"), full, "neon", 3, Path("o")))
    assert shared == python


@pytest.mark.parametrize(
    "made, text, value",
    [
        ("train.adaptive.top_k", "None", None),
        ("train.adaptive.top_k", "4", 4),
        ("train.free_rgb", "false", False),
        ("train.lr", "1e-3", 0.001),
        ("clip", "a b", ("a", "b")),
        ("clip", '["a b", "c"]', ("a b", "c")),
        ("clip_weights", "1 0.5", (1.0, 0.5)),
        ("clip_weights", "", ()),
        ("out", "runs/x", Path("runs/x")),
        ("mapper.context", "5", "5"),
        ("quirks.noise", "off", "off"),
        ("train.diffusion.t0", "300", 300),
        ("t0", "300", 300),
    ],
)
def test_a_text_is_read_as_the_type_of_its_field_says(made: str, text: str, value: Any) -> None:
    assert from_texts(AdaptConfig, {made: text}) == {made: value}


@pytest.mark.parametrize("made", CLASSES)
def test_every_option_is_found_by_its_full_name_and_by_an_end_that_is_its_own(made: type) -> None:
    known = list(paths(made))
    for path in known:
        assert find(made, ".".join(path)) == path
        alone = [each for each in known if each[-1] == path[-1]] == [path]
        assert not alone or find(made, path[-1]) == path


def test_a_name_of_several_options_is_refused_with_the_choices() -> None:
    choices = (
        r"write mapper\.steps or train\.steps or own\.rssa\.steps or own\.svl\.steps or own\.adam\.steps "
        r"\(from Python mapper=\{'steps'"
    )
    with pytest.raises(InputError, match=choices):
        override(AdaptConfig, {"target": "x", "steps": 3})
    with pytest.raises(InputError, match=r"losses\.identity or quirks\.identity"):
        override(AdaptConfig, {"target": "x", "identity": 1})


@pytest.mark.parametrize(
    "name, choice",
    [
        ("stepz", "there are target, source"),
        ("mapper.stepz", "mapper has steps, batch"),
        ("train.diffusion.t", "train.diffusion has t0"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name: str, choice: str) -> None:
    with pytest.raises(InputError, match=f"unknown option '{name}'; .*{choice}"):
        override(AdaptConfig, {"target": "x", name: 3})


def test_wrong_names_and_wrong_values_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        override(AdaptConfig, {"target": "x", "stepz": 1, "lr": 1}, {"train": 3, "seed": -1})
    text = str(caught.value)
    assert text.startswith("4 problems:\n")
    for part in ("'stepz'", "'lr' is an option of several", "train is a section, got 3", "run.seed must be"):
        assert part in text


def test_a_later_layer_wins_and_a_section_in_a_layer_keeps_the_rest() -> None:
    layers = (
        {"train.steps": 5, "t0": 3},
        {"train": {"batch": 6, "diffusion": {"train_steps": 7}}},
        {"t0": 4},
    )
    made = override(AdaptConfig(target="x"), *layers)
    assert made.train == TrainConfig(steps=5, batch=6, diffusion=FinetuneConfig(t0=4, train_steps=7))


def test_the_config_that_one_starts_from_is_left_as_it_was() -> None:
    start = AdaptConfig(target="x")
    before = to_dict(start)
    override(start, {"train": {"diffusion": {"t0": 4}}, "seed": 9})
    assert to_dict(start) == before


def test_a_network_of_evaluate_and_compare_goes_by_its_own_name_and_may_be_a_path() -> None:
    networks = NetworksConfig(judge="somewhere/clip")
    assert override(EvaluateConfig, {"judge": Path("somewhere/clip")}).networks == networks
    assert override(CompareConfig(), {"networks.judge": "somewhere/clip"}).networks == networks


def test_options_of_evaluate_and_compare_are_the_same_from_python_and_the_command_line() -> None:
    line = "evaluate x --metrics fid kid --size None --judge j --truncation 0.5 --labels photo neon"
    evaluated = cli.parse(line.split())
    asked: dict[str, Any] = {"metrics": ("fid", "kid"), "size": None, "judge": "j", "truncation": 0.5}
    assert isinstance(evaluated, Evaluate)
    assert evaluated.config == override(EvaluateConfig, asked | {"labels": ("photo", "neon")})
    compared = cli.parse("compare --targets neon --seeds 4 5 --page-only --lpips vgg --votes a.json".split())
    asked = {"targets": ("neon",), "seeds": (4, 5), "page_only": True, "lpips": "vgg"}
    assert isinstance(compared, Compare)
    assert compared.config == override(CompareConfig, asked | {"votes": (Path("a.json"),)})


# A wrong value is told with the value to go back to.


def complaint(make: Any) -> str:
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


def test_a_wrong_value_is_told_with_the_default_of_the_recipe_wherever_it_was_given(tmp_path: Path) -> None:
    usual = "; the default of recipe portraits is 0.005."
    assert zs.recipe("portraits", "x").train.lr == 0.005 != TrainConfig().lr
    wanted = f"train.lr must be greater than 0, got -1{usual}"
    assert complaint(lambda: zs.recipe("portraits", "x", train={"lr": -1})) == wanted
    assert complaint(lambda: zs.plan(target="x", train={"lr": -1})) == wanted
    line = ["adapt", "--target", "x", "--train.lr", "-1"]
    assert complaint(lambda: cli.parse(line)) == wanted.replace("-1", "-1.0")
    shared = ["compare", "--targets", "x", "--lr", "-1"]
    assert complaint(lambda: cli.parse(shared)) == wanted.replace("-1", "-1.0")
    own = complaint(lambda: zs.compare(methods=["ipl:train.lr=-1"], targets=["x"], out=tmp_path / "x"))
    assert own == "method 'ipl:train.lr=-1': " + wanted.replace("-1", "-1.0")


def test_a_wrong_value_of_any_recipe_is_told_with_its_own_default() -> None:
    for name in RECIPES:
        usual = zs.recipe(name, "x").train.steps
        assert f"the default of recipe {name} is {usual}." in complaint(
            lambda name=name: zs.recipe(name, "x", train={"steps": 0})
        )


def test_a_wrong_value_over_a_config_of_ones_own_is_told_with_what_it_was() -> None:
    mine = AdaptConfig(target="x", train=TrainConfig(lr=0.7))
    assert (
        complaint(lambda: resolve(mine, train={"lr": 0}))
        == "train.lr must be greater than 0, got 0; it was 0.7."
    )


def test_options_that_are_wrong_for_every_method_are_not_blamed_on_one(tmp_path: Path) -> None:
    text = complaint(lambda: zs.compare(methods=["ipl:words=3"], targets=["x"], out=tmp_path / "x", ema=2))
    assert text.startswith("train.ema must be less than 1, got 2")


# Where one starts.


def test_a_call_starts_from_the_recipe_it_names_or_the_one_that_suits() -> None:
    assert resolve(None, target="x").run.recipe == "portraits"
    assert resolve(None, target="x", generator="mine.pt").run.recipe == "ipl-paper"
    assert (
        resolve(None, {"generator": "mine.pt"}, target="x", method="diffusionclip").run.recipe
        == "diffusionclip"
    )
    assert resolve(None, {"recipe": "far"}, {"recipe": "style"}, target="x").run.recipe == "style"
    assert resolve(None, run={"recipe": "far"}, target="x") == zs.recipe("far", "x")


def test_a_recipe_beside_a_config_is_refused_instead_of_only_named() -> None:
    config = zs.recipe("portraits", "x")
    assert "start from zs.recipe('far', ...)" in complaint(lambda: resolve(config, recipe="far"))
    assert resolve(config, recipe="portraits") == config


def test_a_missing_target_is_told_together_with_all_that_is_wrong_besides() -> None:
    text = complaint(lambda: resolve(None, clip=(), device="gpu"))
    assert text.startswith("3 problems:\n") and "target is empty" in text


def test_compat_is_one_bundle_from_everywhere() -> None:
    python = zs.recipe("portraits", "x", compat="official", noise="off", out="o", method="ipl")
    line = "adapt --target x --compat official --quirks.noise off --out o".split()
    parsed = cli.parse(line)
    assert isinstance(parsed, Adapt) and parsed.config == python
    variant = parse_variant("ipl:noise=off,compat=official")
    assert variant_config(variant, {}, "x", 0, Path("o")) == python
    shared = {"compat": "official", "noise": "off"}
    assert variant_config(parse_variant("ipl"), shared, "x", 0, Path("o")) == python
    with pytest.raises(InputError, match="compat must be 'corrected' or 'official', got 'none'"):
        override(AdaptConfig, {"target": "x", "compat": "none"})


@pytest.mark.parametrize("words", (["--recipe", "far"], ["--recipe=far"]))
@pytest.mark.parametrize("place", ("first", "last"))
def test_the_recipe_of_a_command_line_may_stand_anywhere(words: list[str], place: str) -> None:
    rest = ["--target", "x", "--clip", "a", "b"]
    parsed = cli.parse(["adapt", *words, *rest] if place == "first" else ["adapt", *rest, *words])
    assert isinstance(parsed, Adapt) and parsed.config == zs.recipe("far", "x", clip=("a", "b"))


def test_a_value_that_reads_like_an_option_does_not_choose_the_recipe() -> None:
    parsed = cli.parse(["adapt", "--target", "x", "--mapper.context=--recipe=far"])
    assert isinstance(parsed, Adapt)
    assert (parsed.config.run.recipe, parsed.config.mapper.context) == ("portraits", "--recipe=far")


@pytest.mark.parametrize(
    "made", [*CLASSES, *(kind for kind in paths(AdaptConfig).values() if is_config_class(kind))]
)
def test_a_config_has_at_most_twelve_options_each_with_its_help(made: Any) -> None:
    described = {name: field.description for name, field in made.__pydantic_fields__.items()}
    assert 0 < len(described) <= 12
    assert all(text and text.endswith(".") for text in described.values()), described


def test_help_has_no_broken_lines_where_docstrings_wrap(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("adapt", "sample", "compare", "translate"):
        assert cli.main([verb, "--help"]) == 0
        said = capsys.readouterr().out
        # Boxes are drawn where the encoding of the output has them.
        lines = [line.strip("│").rstrip() for line in said.splitlines()]
        helps = [line for line in lines if line.startswith("      ")]
        assert len(helps) > 10
        for line, following in pairwise(lines):
            if line.startswith("      ") and following.startswith("      "):
                assert len(line) + 1 + len(following.split()[0]) > 77, (line, following)


def test_json_tells_why_options_could_not_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapt", "--target", "x", "--learning-speed", "1", "--json"]) == 2
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert "--learning-speed" in told["error"] and "--learning-speed" in said.err
    assert "│" not in told["error"] and "---" not in told["error"]
