"""Runs against a discriminator: their steps equal a plain loop, they survive kills, and what moves is what
was asked for."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import foreign
import tiny
from zeroshift.app import cli
from zeroshift.config.recipes import recipe, recipe_for
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.methods.backend import Given
from zeroshift.methods.few_shot import (
    FewShotRun,
    frozen_blocks,
    open_discriminator,
    open_run,
    random_latents,
    real_pictures,
    styles,
)
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.seeds import draw_noise, draw_z, rng
from zeroshift.models.stylegan2 import StyleGAN2Config
from zeroshift.training.run_folder import RunFolder


def run(out: Path, hook: Any = None, state: Given | None = None, **overrides: Any) -> AdaptRun:
    return adapt(tiny.learn(out, **overrides), hook=hook, state=state or tiny.given_few_shot())


def opened(out: Path, state: Given | None = None, **overrides: Any) -> FewShotRun:
    return open_run(tiny.learn(out, **overrides), state or tiny.given_few_shot())


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """The uninterrupted run of 5 steps: R1 in steps 1 and 4, path lengths in 1, 3 and 5."""
    return run(tmp_path_factory.mktemp("whole") / "run")


# The step.


class Plain:
    """The published step, written down once more: everything in one place, without the parts of the
    package."""

    def __init__(self, state: Given, shots: Tensor, mixing: float) -> None:
        self.shots, self.mixing = shots.double(), mixing
        assert state.discriminator is not None
        self.g, self.d = state.generator.double(), state.discriminator.double()
        self.ema = {name: each.detach().clone() for name, each in self.g.named_parameters()}
        ratios = {self.g: (0.01, 2 / 3), self.d: (0.002, 3 / 4)}
        self.adam = {
            network: torch.optim.Adam(network.parameters(), lr=lr * c, betas=(0.0, 0.99**c))
            for network, (lr, c) in ratios.items()
        }
        self.mean = torch.zeros((), dtype=torch.float64)

    def w(self, label: str, step: int, batch: int) -> Tensor:
        first, second = (
            self.g.map(draw_z(12, batch, 0, name, step).double())
            for name in (f"few-shot {label}", f"few-shot {label} mixed")
        )
        draw, rows = rng("mixing", 0, label, step), [first] * 6
        if torch.rand((), generator=draw) < self.mixing:
            cut = int(torch.randint(1, 6, (), generator=draw))
            rows = [first] * cut + [second] * (6 - cut)
        return torch.stack(rows, dim=1)

    def pictures(self, w: Tensor, label: str, step: int) -> Tensor:
        maps = draw_noise(self.g.noise_shapes(), len(w), 0, label, step)
        return self.g.synthesize(w, [each.double() for each in maps])

    def real(self, step: int) -> Tensor:
        rows = []
        for i in range(4):
            place = 4 * (step - 1) + i
            order = torch.randperm(5, generator=rng("shots", 0, place // 5))
            picture = self.shots[order[place % 5]]
            rows.append(
                picture.flip(2) if torch.rand((), generator=rng("flip", 0, step, i)) < 0.5 else picture
            )
        return torch.stack(rows)

    def update(self, network: nn.Module, loss: Tensor) -> None:
        for each in (self.g, self.d):
            each.zero_grad()
        loss.backward()
        self.adam[network].step()

    def step(self, step: int) -> None:
        made = self.pictures(self.w("discriminator", step, 4), "discriminator", step).detach()
        real = self.real(step)
        self.update(self.d, F.softplus(self.d(made)).mean() + F.softplus(-self.d(real)).mean())
        if step % 3 == 1:
            real.requires_grad_()
            (slope,) = torch.autograd.grad(self.d(real).sum(), real, create_graph=True)
            self.update(self.d, 10 / 2 * 3 * slope.square().sum() / 4)
        made = self.pictures(self.w("generator", step, 4), "generator", step)
        self.update(self.g, F.softplus(-self.d(made)).mean())
        if step % 2 == 1:
            w = self.w("path", step, 2)
            made = self.pictures(w, "path", step)
            y = torch.stack(
                [torch.randn(3, 16, 16, generator=rng("path noise", 0, step, i)).double() for i in range(2)]
            )
            (slope,) = torch.autograd.grad((made * y).sum() / 16, w, create_graph=True)
            lengths = slope.square().sum(2).mean(1).sqrt()
            mean = 0.99 * self.mean + 0.01 * lengths.mean()
            self.update(self.g, 2 * 2 * (lengths - mean).square().mean())
            self.mean = mean.detach()
        for name, each in self.g.named_parameters():
            self.ema[name] = 0.5 * self.ema[name] + 0.5 * each.detach()


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_a_run_does_the_published_steps(tmp_path: Path, mixing: float) -> None:
    pictures = {"adversarial": {"mixing": mixing}}
    double = tiny.given_few_shot(dtype=torch.float64)
    made = opened(tmp_path / "probe", double, **pictures)
    found = run(tmp_path / "run", state=double, **pictures)
    plain = Plain(tiny.given_few_shot(), made.shots, mixing)
    for step in range(1, 6):
        plain.step(step)
    moved = dict(found.generator.named_parameters())
    for name, expected in plain.ema.items():
        torch.testing.assert_close(moved[name].double(), expected, rtol=0, atol=2e-6)
    saved = RunFolder.load(tmp_path / "run").load_checkpoint()
    assert saved is not None
    for name, expected in plain.d.state_dict().items():
        torch.testing.assert_close(saved[0][f"discriminator/{name}"], expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(saved[0]["carried/path_mean"], plain.mean)


def test_every_shot_is_shown_equally_often_and_half_of_them_mirrored(tmp_path: Path) -> None:
    made = opened(tmp_path / "run")
    numbers: list[tuple[int, bool]] = []
    for step in range(1, 26):
        for picture in real_pictures(made, step):
            plain = [torch.equal(picture, each) for each in made.shots]
            mirrored = [torch.equal(picture.flip(2), each) for each in made.shots]
            numbers.append(((plain + mirrored).index(True) % 5, any(mirrored)))
    assert Counter(number for number, _ in numbers) == dict.fromkeys(range(5), 20)
    rounds = [tuple(number for number, _ in numbers[start : start + 5]) for start in range(0, 100, 5)]
    assert all(sorted(each) == list(range(5)) for each in rounds) and len(set(rounds)) > 10
    assert 35 <= sum(flipped for _, flipped in numbers) <= 65


def test_styles_are_mixed_as_often_as_asked_from_every_layer_on(tmp_path: Path) -> None:
    made = opened(tmp_path / "run", adversarial={"mixing": 0.75})
    drawn = [random_latents(made, "generator", step=step) for step in range(1, 201)]
    mixed = [each for each in drawn if each.second is not None]
    assert 130 <= len(mixed) <= 170 and {each.cut for each in mixed} == set(range(1, 6))
    one = mixed[0]
    w = styles(made, made.source, one)
    assert one.second is not None
    first, second = made.source.map(one.z), made.source.map(one.second)
    for layer in range(6):
        assert torch.equal(w[:, layer], first if layer < one.cut else second)


# What moves.


def test_the_blocks_that_freezed_freezes_are_those_of_a_hand_written_list(tmp_path: Path) -> None:
    frozen = {
        64: ["64 from colours", "64 -> 32", "32 -> 16"],
        256: ["256 from colours", "256 -> 128", "128 -> 64", "64 -> 32", "32 -> 16"],
        1024: [
            "1024 from colours",
            "1024 -> 512",
            "512 -> 256",
            "256 -> 128",
            "128 -> 64",
            "64 -> 32",
            "32 -> 16",
        ],
    }
    plain, freezed = (tiny.learn(tmp_path / "run", method) for method in ("tgan", "freezed"))
    for size, names in frozen.items():
        narrow = StyleGAN2Config(size=size, channel_base=size, channel_max=2)
        discriminator = StyleGAN2Discriminator(narrow)
        count = frozen_blocks(freezed, discriminator)
        assert count == len(names) and frozen_blocks(plain, discriminator) == 0
        left = [block[0].split(".")[:2] for block in discriminator.blocks()[count:]]
        assert left == [["convs", str(len(names))], ["convs", str(len(names) + 1)], ["final_conv", "0"]]


@pytest.mark.parametrize(("method", "options"), [("freezed", {}), ("tgan", {"freeze": 2}), ("tgan", {})])
def test_exactly_the_named_tensors_of_the_discriminator_move(
    tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    run(tmp_path / "run", method=method, adversarial=options, train={"steps": 1})
    saved = RunFolder.load(tmp_path / "run").load_checkpoint()
    assert saved is not None
    before = tiny.discriminator().state_dict()
    still = {name for name, each in before.items() if torch.equal(saved[0][f"discriminator/{name}"], each)}
    colours = {"convs.0.0.weight", "convs.0.1.bias"}
    block = {
        f"convs.1.{name}" for name in ("conv1.0.weight", "conv1.1.bias", "conv2.1.weight", "conv2.2.bias")
    }
    block |= {"convs.1.skip.1.weight"}
    expected = {"freezed": colours, "tgan": colours | block if options else set[str]()}
    assert still == expected[method]


def test_layers_of_the_generator_that_were_not_asked_for_stay_as_they_are(tmp_path: Path) -> None:
    found = run(tmp_path / "run", train={"steps": 3, "layers": "convs.1,to_rgb1"})
    before, after = tiny.generator().state_dict(), found.generator.state_dict()
    moved = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert {name for name in moved if name.startswith("convs")} == {"convs.1"}
    assert all(name.startswith(("convs.1", "to_rgb1")) for name in moved)


def test_small_parameters_are_learned_too(tmp_path: Path) -> None:
    found = run(tmp_path / "run", train={"parameters": {"kind": "lowrank", "rank": 2}})
    assert (tmp_path / "run" / "delta.safetensors").is_file()
    assert not same(found.generator, tiny.generator())


# Resuming.


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_killed_run_equals_one_that_never_stopped(whole: AdaptRun, tmp_path: Path, step: int) -> None:
    child = os.fork()
    if child == 0:
        run(tmp_path / "run", hook=tiny.Stop((2, step), None))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    resumed = run(tmp_path / "run")
    assert same(resumed.generator, whole.generator) and same(resumed.trained, whole.trained)
    for name in ("metrics.jsonl", "monitor.jsonl"):
        lines = [
            [
                {**json.loads(line), "seconds": 0}
                for line in (each.folder.path / name).read_text().splitlines()
            ]
            for each in (resumed, whole)
        ]
        assert lines[0] == lines[1]
    ends = [each.folder.load_checkpoint() for each in (resumed, whole)]
    assert ends[0] is not None and ends[1] is not None
    assert ends[0][0].keys() == ends[1][0].keys() and len(ends[0][0]) > 100
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])


def test_the_result_is_the_running_average_and_is_found_again(whole: AdaptRun) -> None:
    kept, facts = load_generator_file(whole.folder.generator_file)
    assert same(kept, whole.generator) and facts["method"] == "tgan"
    again = run(whole.folder.path)
    assert again.steps_done == 0 and same(again.generator, whole.generator)


def test_another_seed_gives_another_generator(whole: AdaptRun, tmp_path: Path) -> None:
    other = run(tmp_path / "run", run={"seed": 1})
    assert not same(other.generator, whole.generator)


# The discriminator.


def test_the_built_in_world_brings_its_discriminator() -> None:
    config = recipe("few-shot", "", method="tgan", shots={"folder": "."})
    found = open_discriminator(config, Given(), _Sized(64))
    assert found.name == "portraits" and found.network.config.size == 64


class _Sized:
    """A generator of which only the size matters."""

    def __init__(self, size: int) -> None:
        self.image_size = size
        self.config = StyleGAN2Config(size=size, channel_base=16 * size, channel_max=16)


def test_a_checkpoint_of_a_training_brings_generator_and_discriminator(tmp_path: Path) -> None:
    wanted = tiny.discriminator(seed=5)
    path = foreign.rosinality_file(tmp_path / "both.pt", tiny.generator(), d=wanted.state_dict())
    made = opened(tmp_path / "run", Given(), generator=str(path))
    assert same(made.discriminator, wanted)
    record = made.loop.environment["discriminator"]
    assert record["name"] == str(path) and len(record["sha256"]) == 64
    # one that is asked for goes before
    other = tiny.discriminator(seed=6)
    torch.save({"d": other.state_dict()}, tmp_path / "other.pt")
    asked = {"discriminator": str(tmp_path / "other.pt")}
    assert same(opened(tmp_path / "2", Given(), generator=str(path), adversarial=asked).discriminator, other)


def test_without_one_a_new_one_begins_with_a_warning_and_depends_on_the_seed(tmp_path: Path) -> None:
    path = foreign.rosinality_file(tmp_path / "alone.pt", tiny.generator())
    made: list[FewShotRun] = []
    for number, seed in enumerate((0, 0, 1)):
        with pytest.warns(UserWarning, match="no discriminator belongs to .*alone.pt, so a new one begins"):
            made.append(opened(tmp_path / str(number), Given(), generator=str(path), run={"seed": seed}))
    assert same(made[0].discriminator, made[1].discriminator)
    assert not same(made[0].discriminator, made[2].discriminator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(tmp_path / "given")


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    torch.save({"d": tiny.discriminator(size=32).state_dict()}, tmp_path / "32.pt")
    refused: list[tuple[dict[str, Any], str]] = [
        (
            {"adversarial": {"discriminator": str(tmp_path / "32.pt")}},
            "32 px, the generator makes them with 16",
        ),
        ({"adversarial": {"discriminator": "nobody"}}, "nobody"),
        ({"adversarial": {"freeze": 9}}, "adversarial.freeze is 9, this discriminator has 3 blocks"),
        ({"train": {"layers": "adaptive"}}, "method tgan has none; set it to 'all'"),
        ({"pictures": tmp_path / "none"}, "no folder of pictures"),
    ]
    for options, text in refused:
        with pytest.raises(InputError, match=text), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened(tmp_path / "run", Given(generator=tiny.generator()), **options)
    with pytest.raises(InputError, match="give a folder of them"):
        tiny.config(tmp_path / "run", method="tgan")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_refuses_other_shots_and_another_discriminator(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", hook=tiny.Stop((2, 3), ZeroDivisionError()))
    with pytest.raises(InputError, match="the discriminator given is not the one"):
        run(tmp_path / "run", state=tiny.given_few_shot(discriminator=tiny.discriminator(seed=1)))
    (tmp_path / "shots" / "0.png").unlink()
    with pytest.raises(InputError, match=r"pictures of the target are not those .*0\.png differs"):
        run(tmp_path / "run")


# Around it.


def test_the_plan_counts_both_networks_and_its_memory_grows_with_the_batch(tmp_path: Path) -> None:
    small = plan(tiny.learn(tmp_path / "run"), state=tiny.given_few_shot())
    large = plan(tiny.learn(tmp_path / "run", train={"batch": 32}), state=tiny.given_few_shot())
    counts = {
        name: sum(each.numel() for each in network.parameters()) for name, network in _networks().items()
    }
    assert small.parameters == counts | {"movable": counts["generator"]}
    assert large.memory_bytes > 4 * small.memory_bytes > 16 * 6 * counts["generator"]
    assert small.select is None and "style.1" in small.layers and not (tmp_path / "run").exists()


def _networks() -> dict[str, nn.Module]:
    return {"generator": tiny.generator(), "discriminator": tiny.discriminator()}


def test_a_run_from_the_command_line_leaves_what_every_run_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign.rosinality_file(tmp_path / "g.pt", tiny.generator(), d=tiny.discriminator().state_dict())
    words = f"adapt --pictures {tiny.shots(tmp_path / 'shots')} --method freezed --generator {path} --steps 2"
    words += f" --out {tmp_path / 'run'} --samples 2 --shots.copy"
    assert cli.main([*words.split(), "--dry-run"]) == 0 and not (tmp_path / "run").exists()
    assert "discriminator" in capsys.readouterr().out
    assert cli.main(words.split()) == 0
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "from 5 pictures, against a discriminator" in text and "photo to shots" in text
    assert "How sure the discriminator is of the shots" in text
    assert len(list((tmp_path / "run" / "shots").iterdir())) == 5
    made = RunFolder.load(tmp_path / "run")
    assert made.finished and made.environment["clips"] == [] and len(made.environment["shots"]) == 5
    assert cli.main(words.split()) == 0 and "nothing to do" in capsys.readouterr().out


def test_methods_against_a_discriminator_take_the_recipe_few_shot() -> None:
    assert {recipe_for(each, "tgan") for each in ("portraits", "faces.pt")} == {"few-shot"}
    published, own = (recipe("few-shot", "x", generator=each) for each in ("faces.pt", "portraits"))
    train, against = published.train, published.own.adversarial
    assert (train.batch, train.lr, train.layers) == (4, 0.002, "all")
    assert train.ema == pytest.approx(0.5 ** (32 / 10000), abs=1e-5)
    assert (against.lr, against.r1, against.r1_every, against.path, against.path_every) == (
        0.002,
        10,
        16,
        2,
        4,
    )
    assert (against.mixing, against.freeze) == (0.9, None)
    assert own.train.layers == "all" and own.train.steps < train.steps
