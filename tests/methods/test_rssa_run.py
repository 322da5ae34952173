"""Runs of RSSA: codes of the shots are found, styles are drawn near to them everywhere, and correlations are
kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from zeroshift.config.own import FACES
from zeroshift.errors import InputError
from zeroshift.files.export import convert
from zeroshift.files.images import write_png
from zeroshift.methods import rssa
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.methods.backend import Given
from zeroshift.models.compression import LatentCompression, stretched
from zeroshift.models.seeds import draw_noise, draw_z
from zeroshift.models.stylegan2 import StyleGAN2Generator
from zeroshift.pictures.runs import load
from zeroshift.pictures.sample import sample
from zeroshift.training.run_folder import RunFolder

SHORT = {"steps": 4, "codes": 3, "disturbance_every": 2}


def learn(out: Path, **overrides: Any) -> Any:
    options = SHORT | overrides.pop("rssa", {})
    return tiny.learn(out, "rssa", **({"rssa": options, "cdc": {"every": 2}} | overrides))


def run(out: Path, hook: Any = None, state: Given | None = None, **overrides: Any) -> AdaptRun:
    return adapt(learn(out, **overrides), hook=hook, state=state or tiny.given_few_shot())


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def saved(out: Path) -> dict[str, Tensor]:
    found = RunFolder.load(out).load_checkpoint()
    assert found is not None
    return found[0]


def lines(made: AdaptRun) -> list[dict[str, Any]]:
    text = (made.folder.path / "metrics.jsonl").read_text()
    return [{**json.loads(line), "seconds": 0} for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """The uninterrupted run: 4 steps for the codes, 5 of training."""
    return run(tmp_path_factory.mktemp("whole") / "run")


def test_styles_of_a_run_are_drawn_near_to_the_codes_in_its_folder(whole: AdaptRun) -> None:
    codes = load_file(whole.folder.path / "codes.safetensors")["codes"]
    assert codes.shape == (3, 6, 16)
    # The mapping of the target, its pictures of the compressed styles by a generator without a compression.
    plain = tiny.generator()
    kept = {name: each for name, each in whole.generator.state_dict().items() if "compression" not in name}
    plain.load_state_dict(kept)
    w = plain.map(draw_z(12, 4, 9, "drawn", 0))
    near = LatentCompression.of(codes, stretched(FACES, 6))(w)
    assert torch.allclose(whole.generator.synthesize(w), plain.synthesize(near), atol=1e-5)
    assert not torch.allclose(near, w[:, None].expand_as(near), atol=1e-2)


def test_a_loaded_run_its_file_and_what_is_converted_draw_what_the_training_drew(
    whole: AdaptRun, tmp_path: Path
) -> None:
    drawn = whole.generator.sample([0, 1], truncation=0.7)
    again = load(whole.folder.path)
    assert torch.equal(again.generator.sample([0, 1], truncation=0.7), drawn)
    assert torch.equal(again.sample([0, 1], truncation=0.7), drawn)
    file = whole.folder.generator_file
    assert torch.equal(sample(file, [0, 1], truncation=0.7), drawn)
    convert(file, tmp_path / "copy.safetensors", "safetensors")
    assert torch.equal(sample(tmp_path / "copy.safetensors", [0, 1], truncation=0.7), drawn)
    with pytest.raises(InputError, match=r"latent compression .* adapt without \(--rssa.compression 0\)"):
        convert(file, tmp_path / "other.pt", "rosinality")


def test_the_sample_grid_of_the_last_step_is_that_of_the_run(tmp_path: Path) -> None:
    made = rssa.open_run(learn(tmp_path / "run"), tiny.given_few_shot())
    with made.loop.recorded():
        rssa.train(made)
        grid = made.sample_grid()
    psi = made.config.run.truncation
    assert torch.equal(sample(made.loop.folder.generator_file, [0, 1], truncation=psi), grid)


@pytest.mark.parametrize("at", [(1, 2), (1, 4), (2, 1), (2, 4)])
def test_a_killed_run_equals_one_that_never_stopped(
    whole: AdaptRun, tmp_path: Path, at: tuple[int, int]
) -> None:
    child = os.fork()
    if child == 0:
        run(tmp_path / "run", hook=tiny.Stop(at, None))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    resumed = run(tmp_path / "run")
    assert same(resumed.generator, whole.generator) and lines(resumed) == lines(whole)
    ends = [saved(each.folder.path) for each in (resumed, whole)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert {"codes/codes", "target/compression.basis", "ema/compression.alpha"} <= set(ends[0])


def test_codes_of_pictures_that_the_source_can_make_are_found(tmp_path: Path) -> None:
    source = tiny.generator()
    made = source.synthesize(source.map(draw_z(12, 3, 5, "shots", 0))).detach().clamp(-1, 1)
    for number, picture in enumerate(made):
        write_png(tmp_path / "made" / f"{number}.png", picture, {})
    found = run(
        tmp_path / "run", pictures=tmp_path / "made", rssa={"steps": 80}, train={"steps": 1}, cdc={"every": 1}
    )
    pixels = [line["pixel"] for line in lines(found) if line["stage"] == 1]
    assert len(pixels) == 80 and pixels[-1] < 0.25 * pixels[0]
    codes = load_file(tmp_path / "run" / "codes.safetensors")["codes"]
    again = float((source.synthesize(codes) - made).square().mean().detach())
    assert again == pytest.approx(pixels[-1], rel=0.2)


def test_without_a_compression_there_is_no_first_stage_and_the_generator_is_an_ordinary_one(
    tmp_path: Path,
) -> None:
    found = run(tmp_path / "run", rssa={"compression": 0.0})
    assert {line["stage"] for line in lines(found)} == {2}
    assert not (tmp_path / "run" / "codes.safetensors").exists()
    assert found.generator.state_dict().keys() == tiny.generator().state_dict().keys()
    convert(found.folder.generator_file, tmp_path / "other.pt", "rosinality")
    assert (tmp_path / "other.pt").is_file()


# The step.


class Seen:
    """Hook that keeps the losses of every step."""

    def __init__(self) -> None:
        self.losses: dict[tuple[int, int], dict[str, float]] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        named = {name: float(value) for name, value in event["losses"].items()}
        self.losses[event["stage"], event["step"]] = named


def maps_of(network: StyleGAN2Generator, z: Tensor, label: str, step: int, near: Any = None) -> list[Tensor]:
    noise = draw_noise(network.noise_shapes(), len(z), 0, label, step)
    w = network.map(z)
    return network.synthesize(w if near is None else near(w), noise, features=True)[1]


def steps_of(out: Path, state: Given, **overrides: Any) -> Iterator[dict[str, float]]:
    seen = Seen()
    run(out, hook=seen, state=state, **overrides)
    return (seen.losses[2, step] for step in (1, 2, 3))


def test_consistency_of_a_step_is_that_of_pictures_drawn_by_hand(tmp_path: Path) -> None:
    moved = tiny.generator(seed=3)
    state = tiny.given_few_shot(target=moved.state())
    first, second, third = steps_of(tmp_path / "run", state, train={"steps": 3})
    codes = load_file(tmp_path / "run" / "codes.safetensors")["codes"]
    near = LatentCompression.of(codes, stretched(FACES, 6))
    with torch.no_grad():
        z = draw_z(12, 4, 0, "within", 1)
        source, target = (maps_of(each, z, "within", 1, near) for each in (tiny.generator(), moved))
        within = rssa.self_correlation(source, target, (4, 8, 16))
        z = draw_z(12, 4, 0, "between", 1)
        z = torch.stack([z[0], *(0.85 * z[0] + 0.15 * each for each in z[1:])])
        source, target = (maps_of(each, z, "between", 1, near) for each in (tiny.generator(), moved))
        between = rssa.disturbance_correlation(source, target)
    assert first["self_correlation"] == pytest.approx(float(within), rel=1e-4)
    assert first["disturbance_correlation"] == pytest.approx(float(between), rel=1e-4)
    adversarial = first["generator"] + 0.8 * float(within) + 0.4 * float(between)
    assert first["loss"] == pytest.approx(adversarial, rel=1e-4)
    assert "disturbance_correlation" not in second and "disturbance_correlation" in third


def test_before_anything_has_moved_nothing_is_lost(tmp_path: Path) -> None:
    first, *_ = steps_of(tmp_path / "run", tiny.given_few_shot(), train={"steps": 3})
    # Of the compressed styles source and target are still the same network.
    assert first["self_correlation"] == 0 and first["disturbance_correlation"] == 0


def test_neighbours_differ_by_the_share_asked_for() -> None:
    z = draw_z(12, 4, 0, "x", 0)
    near = rssa.neighbours(z, 0.15)
    assert torch.allclose(near[0], z[0]) and torch.allclose(
        near[2] - near[0], 0.15 * (z[2] - z[0]), atol=1e-6
    )
    assert torch.equal(rssa.neighbours(z, 1.0), z)


def test_published_sides_are_the_three_largest_up_to_256() -> None:
    found = {size: rssa.published_sides(size) for size in (16, 64, 256, 1024)}
    assert found == {16: (4, 8, 16), 64: (16, 32, 64), 256: (64, 128, 256), 1024: (64, 128, 256)}


# Around it.


def test_what_does_not_go_together_is_refused_in_one_sentence(tmp_path: Path) -> None:
    compressed = tiny.generator()
    compressed.compress(torch.randn(2, 6, 16), torch.ones(6))
    refused: list[tuple[dict[str, Any], Given, str]] = [
        ({"rssa": {"sides": (12,)}}, tiny.given_few_shot(), r"rssa.sides names 12, .*maps of 16, 8, 4 px"),
        ({"rssa": {"sides": (32,)}}, tiny.given_few_shot(), "rssa.sides names 32"),
        (
            {"train": {"parameters": {"kind": "lowrank"}}},
            tiny.given_few_shot(),
            "set train.parameters.kind to weights, or rssa.compression to 0",
        ),
        ({}, tiny.given_few_shot(generator=compressed), "draws through a latent compression already"),
    ]
    for options, state, text in refused:
        with pytest.raises(InputError, match=text):
            run(tmp_path / "run", state=state, **options)
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_what_a_run_trains(tmp_path: Path) -> None:
    made = plan(learn(tmp_path / "run"), state=tiny.given_few_shot())
    heads = sum(each.numel() for each in rssa_heads().parameters())
    assert made.parameters["patches"] == heads and made.memory_bytes > 0
    assert not (tmp_path / "run").exists()


def rssa_heads() -> nn.Module:
    from zeroshift.models.patch_heads import PatchHeads

    return PatchHeads(tiny.generator().config)


def test_between_source_and_target_of_a_run_lie_pictures_of_both(whole: AdaptRun) -> None:
    again = load(whole.folder.path)
    ends = [
        whole.generator.sample_adapted(whole.source, [3], strength, truncation=1.0)
        for strength in (0.0, 0.5, 1.0)
    ]
    assert torch.equal(ends[0], tiny.generator().sample([3]))
    assert torch.equal(ends[2], again.generator.sample([3]))
    assert not torch.allclose(ends[1], ends[0], atol=1e-3)
