"""What every generator says of itself through the protocol, and refuses instead of faking it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from zeroshift.errors import InputError
from zeroshift.models.mixing import blend
from zeroshift.models.protocol import Generator, PictureGenerator
from zeroshift.models.seeds import z_from_seeds

PACKAGE = Path(__file__).parents[2] / "src" / "zeroshift"


def test_both_kinds_meet_the_protocol_and_only_one_has_styles() -> None:
    styled = tiny.generator()
    diffusion = tiny.diffusion()
    assert isinstance(styled, PictureGenerator) and isinstance(diffusion, PictureGenerator)
    assert isinstance(styled, Generator) and not isinstance(diffusion, Generator)
    assert [styled.kind, diffusion.kind] == ["styles", "diffusion"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 5}, "draws in one step"),
        ({"eta": 0.0}, "draws in one step"),
        ({"truncation": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_a_generator_with_styles_refuses_the_options_of_diffusion_models(
    options: dict[str, Any], says: str
) -> None:
    source = tiny.generator(0)
    target = tiny.generator(1)
    with pytest.raises(InputError, match=says):
        target.sample([0], **options)
    with pytest.raises(InputError, match=says):
        target.sample_adapted(source, [0], 0.5, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"truncation": 0.5}, "truncation 0.5 needs styles"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"eta": 1.5}, "eta must be between 0 and 1"),
    ],
)
def test_a_diffusion_model_refuses_what_it_has_not(options: dict[str, Any], says: str) -> None:
    source = tiny.diffusion(0)
    target = tiny.diffusion(1)
    with pytest.raises(InputError, match=says):
        target.sample([0], **options)
    with pytest.raises(InputError, match=says):
        target.sample_adapted(source, [0], 0.5, t0=300, **options)


def test_a_generator_with_styles_draws_seeds_and_tells_its_progress() -> None:
    generator = tiny.generator()
    told: list[tuple[int, int]] = []
    made = generator.sample([3, 1, 2], batch=2, progress=lambda done, total: told.append((done, total)))
    with torch.no_grad():
        expected = generator(z_from_seeds([3, 1, 2], generator.latent_dim)).clamp(-1, 1)
    assert torch.allclose(made, expected, atol=1e-5)
    assert told == [(2, 3), (3, 3)]


def test_an_adapted_generator_draws_what_lies_between_it_and_its_source() -> None:
    source = tiny.generator(0)
    target = tiny.generator(1)
    half = target.sample_adapted(source, range(2), 0.5, truncation=0.7)
    assert torch.equal(half, blend(source, target, 0.5).sample(range(2), 0.7))
    assert torch.equal(target.sample_adapted(source, range(2)), target.sample(range(2)))
    first = tiny.diffusion(0)
    second = tiny.diffusion(1)
    assert torch.equal(
        second.sample_adapted(first, range(2), 0.0, t0=300, steps=5), first.sample(range(2), 5)
    )
    assert torch.equal(
        second.sample_adapted(first, range(2), 1.0, t0=999, steps=5), second.sample(range(2), 5)
    )
    for draw in (
        lambda: target.sample_adapted(source, [0], 2.5),
        lambda: second.sample_adapted(first, [0], 2.5, t0=300),
    ):
        with pytest.raises(InputError, match=r"got 2\.5; 1 is the target"):
            draw()


ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "models")


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_but_models_tells_kinds_of_generators_by_their_classes(room: str) -> None:
    kinds = {"StyleGAN2Generator", "DiffusionGenerator", "Generator"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted((PACKAGE / room).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
        if kinds & {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
    ]
    assert found == []
