"""What a target text names: ordinary labels stay what they are, hybrids are read in every spelling, mistakes
are told."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from zeroshift.app.parsing import parse
from zeroshift.config.schema import AdaptConfig, configure, from_dict, to_dict
from zeroshift.config.targets import TargetPart, canonical_target, is_hybrid, spoken_target, target_parts
from zeroshift.errors import InputError


@pytest.mark.parametrize(
    "label",
    [
        "zombie",
        "Star Wars: A New Hope",
        "man + dog",
        "C++ art",
        "ratio 4:3 picture",
        "a:b",
        "sketch:",
        ":)",
        "x:0.4.1",
    ],
)
def test_an_ordinary_label_is_one_domain_letter_by_letter(label: str) -> None:
    assert target_parts(label) == (TargetPart(label, 1.0, 1.0),)
    assert canonical_target(label) == label and spoken_target(label) == label
    assert not is_hybrid(label)


@pytest.mark.parametrize(
    "text",
    [
        "pencil sketch:0.6 + zombie:0.4",
        "pencil sketch:0.6+zombie:.4",
        " pencil sketch : 6e-1 + zombie: .4 ",
        ["pencil sketch:0.6", "zombie:0.40"],
    ],
)
def test_a_hybrid_is_read_in_every_spelling_and_has_one_canonical_text(text: object) -> None:
    canonical = canonical_target(text)
    assert canonical == "pencil sketch:0.6 + zombie:0.4"
    assert target_parts(canonical) == (
        TargetPart("pencil sketch", 0.6, 0.6),
        TargetPart("zombie", 0.4, 0.4),
    )
    assert is_hybrid(canonical) and spoken_target(canonical) == "pencil sketch and zombie"


def test_one_label_with_a_weight_is_the_label_alone() -> None:
    assert canonical_target("zombie:0.4") == "zombie"
    assert configure(target="zombie:0.4") == configure(target="zombie")


def test_shares_are_weights_over_their_sum_and_the_canonical_text_is_its_own() -> None:
    draw = random.Random(0)
    for _ in range(50):
        weights = [draw.uniform(0.01, 50) for _ in range(draw.randint(2, 5))]
        text = " + ".join(f"label {number}:{weight}" for number, weight in enumerate(weights))
        shares = [part.share for part in target_parts(text)]
        assert shares == [weight / sum(weights) for weight in weights]
        canonical = canonical_target(text)
        assert canonical_target(canonical) == canonical
        again = [part.share for part in target_parts(canonical)]
        assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(shares, again, strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zombie:0 + neon:1", "'zombie'.* must be above 0, got 0"),
        ("zombie:-1 + neon:2", "'zombie'.* must be above 0, got -1"),
        ("zombie:0.5 + neon", "gives 'neon' no weight.*LABEL:WEIGHT"),
        ("zombie:1 + Zombie:2", "names 'zombie' twice"),
        (":0.5 + neon:1", "a weight without a label"),
        (["pencil", "sketch"], "quotes around a label of several words .'pencil sketch'"),
        (["neon:1", ""], "gives '' no weight"),
        ("zombie:1e999 + neon:1", "must be above 0, got inf"),
    ],
)
def test_a_mistake_in_a_hybrid_is_told_with_its_place(text: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        configure(target=text)


def test_a_hybrid_may_not_name_the_source() -> None:
    with pytest.raises(InputError, match="source and target are both 'Photo'"):
        configure(target="zombie:0.5 + Photo:0.5", source="photo")


def test_the_command_line_joins_several_words_into_one_target() -> None:
    given = parse(["adapt", "--target", "pencil sketch:0.6", "zombie:0.4", "--seed", "3"])
    config: AdaptConfig = given.config  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
    assert (config.target, config.run.seed) == ("pencil sketch:0.6 + zombie:0.4", 3)
    assert config.folder.name == "ipl-pencil-sketch-0-6-zombie-0-4-seed3"
    assert from_dict(to_dict(config)) == config
    with pytest.raises(InputError, match="without weights"):
        parse(["adapt", "--target", "pencil", "sketch"])


def test_targets_of_a_comparison_have_canonical_texts() -> None:
    given: Any = parse(["compare", "--targets", "neon:3+zombie:1", "zombie"])
    assert given.config.targets == ("neon:3 + zombie:1", "zombie")
