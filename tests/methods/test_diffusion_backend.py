"""Runs of diffusion models: the same loop, method by method; resumed without a trace, in both modes; refused
in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.features import normalize
from zeroshift.errors import InputError
from zeroshift.files.cache import cached
from zeroshift.files.faces import IrSe, IrSeConfig, save_ir_se
from zeroshift.files.images import write_png
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.models.diffusion import generation_times
from zeroshift.models.seeds import rng
from zeroshift.pictures.inversion import Route, inverted, model_key, sampled
from zeroshift.pictures.runs import load
from zeroshift.pictures.sample import sample

Event = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache that the tests of this file share."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSHIFT_CACHE", str(folder))
        yield folder


def run(
    out: Path, method: str = "diffusionclip", hook: Any = None, parts: Any = None, **overrides: Any
) -> AdaptRun:
    return adapt(tiny.tune(out, method, **overrides), hook=hook, state=tiny.given_diffusion(**(parts or {})))


def events(out: Path, method: str = "diffusionclip", stage: int = 2, **overrides: Any) -> list[Event]:
    """What each step of a stage computed."""
    found: list[Event] = []
    run(out, method, found.append, **overrides)
    return [event for event in found if event["stage"] == stage]


def same(first: Any, second: Any) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def logged(run: AdaptRun) -> list[Event]:
    """The record of a run, without what tells the time."""
    lines = [*run.folder.metrics(), *run.folder.monitor_records()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize(("method", "mode"), [("ipl", "through"), ("diffusionclip", "per-step")])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(method: str, mode: str, tmp_path: Path) -> None:
    tuning = {"mode": mode}
    whole = run(tmp_path / "whole", method, diffusion=tuning)
    # A checkpoint every second step: in mode per-step in the middle of a picture.
    for stage, step in ((1, 3), (2, 3), (2, 5)):
        if stage == 2 or method != "diffusionclip":
            with pytest.raises(ZeroDivisionError):
                run(tmp_path / "run", method, tiny.Stop((stage, step), ZeroDivisionError()), diffusion=tuning)
    again = run(tmp_path / "run", method, diffusion=tuning)
    assert same(again.generator, whole.generator) and logged(again) == logged(whole)
    assert not same(whole.generator, tiny.diffusion()) and same(whole.source, tiny.diffusion())
    assert (whole.mapper is None) == (method == "diffusionclip") and [
        look["step"] for look in whole.folder.monitor_records()
    ] == [3, 6]


def test_a_finished_run_is_all_there_and_samples_from_its_folder(tmp_path: Path) -> None:
    done = run(tmp_path / "run", run={"grid_every": 3})
    names = {path.name for path in done.folder.path.iterdir()}
    assert {
        "generator.safetensors",
        "before_after.png",
        "report.html",
        "metrics.jsonl",
        "best.safetensors",
    } <= names
    assert sorted(path.name for path in (done.folder.path / "samples").iterdir()) == [
        "step_000003.png",
        "step_000006.png",
    ]
    assert run(tmp_path / "run", run={"grid_every": 3}).steps_done == 0
    source, target = tiny.diffusion(), done.generator
    assert torch.equal(sample(done, range(2), strength=0.0), source.sample(range(2), 6))
    x = source.latents(range(2))
    with torch.no_grad():
        # The slow way down: the source above t0, the adapted one from there on.
        for t, t_next in generation_times(999, 6):
            x = source.step(x, t, t_next, (source if t > 300 else target).predict_noise(x, t))
    torch.testing.assert_close(sample(done, range(2)), x.clamp(-1, 1))
    half = sample(done, range(2), strength=0.5)
    assert not torch.equal(half, sample(done, range(2))) and not torch.equal(half, source.sample(range(2), 6))
    opened = load(tmp_path / "run")
    assert same(opened.generator, target)
    with pytest.raises(InputError, match="truncation 0.5 needs styles"):
        sample(done, range(2), truncation=0.5)


def test_codes_are_what_each_clip_sees_and_directions_are_of_each_picture(tmp_path: Path) -> None:
    own = events(tmp_path / "ipl", "ipl")
    fixed, shared = (
        events(tmp_path / "fixed", train={"steps": 1}),
        events(tmp_path / "shared", "coop", train={"steps": 1}),
    )
    assert torch.equal(*shared[0]["text_directions"][0]) and not torch.equal(*own[0]["text_directions"][0])
    assert all(len(event["text_directions"][0]) == 2 for event in own)
    assert all(len(event["text_directions"][0]) == 1 for event in fixed)
    first, second = own[0]["text_directions"][0]
    assert float((first - second).abs().max()) > 1e-4
    # The words of a picture, from its features alone.
    again = run(tmp_path / "ipl", "ipl")
    assert again.mapper is not None
    seeds = torch.randint(2**31, (4,), generator=rng("pictures", 0, "train")).tolist()
    pictures = sampled(tiny.diffusion(), seeds, 6)
    codes = [normalize(clip.encode_image(pictures[:2])) for clip in tiny.clips()]
    assert torch.equal(own[0]["pictures"][0], pictures[:2]) and torch.equal(
        own[1]["pictures"][0], pictures[2:]
    )
    for head, code, width in zip(again.mapper.heads, codes, (24, 20), strict=True):
        assert code.shape == (2, width) and head(code).shape[0] == 2
    heads: list[Any] = list(again.mapper.heads)
    assert [head.layers[0].weight.shape[1] for head in heads] == [24, 20]


def test_a_run_with_learned_words_sees_every_picture_in_stage_1(tmp_path: Path) -> None:
    lines = [
        line
        for line in run(tmp_path / "run", "ipl", mapper={"batch": 2}).folder.metrics()
        if line["stage"] == 1
    ]
    assert len(lines) == 4 and all({"contrastive", "domain"} <= set(line) for line in lines)
    with pytest.raises(InputError, match="mapper.batch is 9, but there are 4 pictures"):
        run(tmp_path / "x", "ipl", mapper={"batch": 9})
    assert not (tmp_path / "x").exists()


def test_the_loss_is_the_published_one_written_out(tmp_path: Path) -> None:
    first = events(tmp_path / "run", losses={"direction": 3.0, "pixel": 0.5}, quirks={"image_floor": 0.0})[0]
    before, after = first["pictures"]
    total = 0.0
    for clip, words in zip(tiny.clips(), first["text_directions"], strict=True):
        cosines = []
        for x0, x in zip(before, after, strict=True):
            change = [
                row / row.norm() for row in (clip.encode_image(x0[None])[0], clip.encode_image(x[None])[0])
            ]
            change = change[1] - change[0]
            cosines.append(float(change @ words[0] / change.norm()))
        direction = 1 - sum(cosines) / 2
        total += 3 * -float(torch.tensor((2 - direction) / 2).log())
    # A picture loss has its own weight in a step, however many CLIPs guide.
    total += 0.5 * float((before - after).abs().mean())
    assert float(first["losses"]["loss"]) == pytest.approx(total, rel=1e-4)


def test_nada_takes_the_same_direction_without_the_logarithm(tmp_path: Path) -> None:
    published = events(tmp_path / "published", train={"steps": 1})[0]
    plain = events(tmp_path / "plain", "nada", train={"steps": 1})[0]
    for theirs, ours in zip(published["text_directions"], plain["text_directions"], strict=True):
        assert torch.equal(theirs, ours)
    assert torch.equal(published["pictures"][1], plain["pictures"][1])
    direction = float(plain["losses"]["direction"])
    assert "log_direction" not in plain["losses"]
    assert float(plain["losses"]["loss"]) == pytest.approx(direction, rel=1e-6)
    assert float(published["losses"]["direction"]) == pytest.approx(direction, rel=1e-6)
    assert not math.isclose(float(published["losses"]["loss"]), direction, rel_tol=1e-3)


def test_the_rate_grows_with_every_round_and_pictures_come_in_order(tmp_path: Path) -> None:
    seen = events(tmp_path / "a", train={"steps": 5}, diffusion={"lr_growth": 2.0})
    assert [event["lr"] for event in seen] == [1e-3, 1e-3, 2e-3, 2e-3, 4e-3]
    assert torch.equal(seen[0]["pictures"][0], seen[2]["pictures"][0])
    seen = events(tmp_path / "b", train={"steps": 5, "batch": 3}, diffusion={"mode": "per-step"})
    assert [len(event["pictures"][0]) for event in seen] == [3, 3, 3, 1, 1]
    assert len(seen[0]["path"]) == 1 and torch.equal(seen[0]["pictures"][0], seen[2]["pictures"][0])


def test_checkpointing_changes_no_number_and_shorter_back_propagation_does(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", train={"steps": 2})
    assert same(
        plain.generator, run(tmp_path / "b", train={"steps": 2}, diffusion={"checkpointing": True}).generator
    )
    assert same(
        plain.generator, run(tmp_path / "c", train={"steps": 2}, diffusion={"backprop_steps": 3}).generator
    )
    assert not same(
        plain.generator, run(tmp_path / "d", train={"steps": 2}, diffusion={"backprop_steps": 1}).generator
    )
    with pytest.raises(InputError, match="backprop_steps is for train.diffusion.mode 'through'"):
        tiny.tune(tmp_path / "e", diffusion={"backprop_steps": 1, "mode": "per-step"})


@pytest.mark.parametrize("mode", ["through", "per-step"])
def test_bf16_computes_about_the_same(mode: str, tmp_path: Path) -> None:
    plain = events(tmp_path / "a", train={"steps": 1}, diffusion={"mode": mode})[0]
    tuning = {"mode": mode, "checkpointing": True}
    rough = events(tmp_path / "b", train={"steps": 1}, diffusion=tuning, run={"precision": "bf16"})[0]
    assert rough["pictures"][1].dtype == torch.float32 and not torch.equal(
        plain["pictures"][1], rough["pictures"][1]
    )
    assert float((plain["pictures"][1] - rough["pictures"][1]).abs().max()) < 0.1
    assert float(rough["losses"]["loss"]) == pytest.approx(float(plain["losses"]["loss"]), rel=0.1)


def test_the_identity_loss_teaches_unless_it_is_detached_as_published(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = IrSe(
        IrSeConfig(widths=(4, 6), units=(1, 1), first=4, squeeze=2, embed_dim=8, size=8), crop=False
    )
    save_ir_se(tmp_path / "face.safetensors", network)
    face = {"identity": 2.0, "identity_network": str(tmp_path / "face.safetensors")}
    options: Any = {"train": {"steps": 2}, "diffusion": {"mode": "per-step"}}
    plain = run(tmp_path / "plain", **options)
    seen: list[Event] = []
    taught = run(tmp_path / "taught", hook=seen.append, losses=face, **options)
    idle = run(tmp_path / "idle", losses=face, quirks={"identity": "detached"}, **options)
    assert same(plain.generator, idle.generator) and not same(plain.generator, taught.generator)
    with torch.no_grad():
        before, after = (network.eval().embed(each) for each in seen[0]["pictures"])
    expected = float(1 - (before * after).sum(dim=1).mean())
    assert float(seen[0]["losses"]["identity"]) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match="losses.identity needs a face network"):
        run(tmp_path / "none", losses={"identity": 1.0})


def test_pictures_of_a_folder_are_learned_from_and_must_stay_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    pictures = tiny.diffusion(3).sample(range(4), 5)
    for number, picture in enumerate(pictures):
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{number}.png", picture)
    options: Any = {
        "diffusion": {"picture_folder": folder, "num_pictures": 3},
        "train": {"steps": 3, "batch": 3},
    }
    seen: list[Event] = []

    def hook(event: Event) -> None:
        seen.append(event)
        if len(seen) == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", hook=hook, **options)
    torch.testing.assert_close(seen[0]["pictures"][0], pictures[:3], atol=0.5 / 127.5 + 1e-5, rtol=0)
    write_png(folder / "1.png", -pictures[1])
    with pytest.raises(InputError, match="pictures to learn from are not those"):
        run(tmp_path / "run", **options)
    with pytest.raises(InputError, match="is no folder of pictures"):
        run(tmp_path / "x", diffusion={"picture_folder": tmp_path / "nothing"})


def test_what_a_generator_cannot_do_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--recipe diffusionclip"):
        run(tmp_path / "a", train={"layers": "adaptive"})
    with pytest.raises(InputError, match="t0 must be a time between 1 and 999, got 1000"):
        run(tmp_path / "a", diffusion={"t0": 1000})
    with pytest.raises(
        InputError, match="method diffusionclip moves a diffusion model such as portraits-ddpm"
    ):
        adapt(tiny.tune(tmp_path / "a"), state=tiny.given())
    assert not (tmp_path / "a").exists()


def test_a_plan_makes_no_picture_and_writes_nothing(tmp_path: Path, cache: Path) -> None:
    kept_before = sorted(cache.rglob("*.safetensors"))
    options = {"train": {"batch": 1}, "diffusion": {"t0": 123}}
    through, per_step = (
        plan(
            tiny.tune(tmp_path / "a", "ipl", **options | {"diffusion": {"t0": 123, "mode": mode}}),
            state=tiny.given_diffusion(),
        )
        for mode in ("through", "per-step")
    )
    weights = sum(weight.numel() for weight in tiny.diffusion().parameters())
    assert through.parameters["movable"] == through.parameters["generator"] == weights
    assert through.memory_bytes > per_step.memory_bytes and through.select is None
    assert sorted(cache.rglob("*.safetensors")) == kept_before and not (tmp_path / "a").exists()


def test_inversions_are_kept_by_model_picture_time_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROSHIFT_CACHE", str(tmp_path / "cache"))
    model, pictures = tiny.diffusion(), tiny.diffusion(1).sample(range(2), 4)
    files: list[int] = []

    def invert(model: Any, pictures: Tensor, *route: int) -> Tensor:
        found = inverted(model, pictures, Route(*route))
        files.append(len(list((tmp_path / "cache" / "inversions").rglob("*.safetensors"))))
        return found

    first = invert(model, pictures, 300, 4)
    with torch.no_grad():
        assert torch.equal(first, torch.cat([model.invert(row[None], 300, 4) for row in pictures]))
    assert torch.equal(invert(model, pictures.flip(0), 300, 4).flip(0), first)
    invert(model, pictures[:1], 200, 4)
    invert(model, pictures[:1], 300, 5)
    invert(tiny.diffusion(1), pictures[:1], 300, 4)
    invert(model, pictures[:1] + 1e-3, 300, 4)
    assert files == [2, 2, 3, 4, 5, 6] and model_key(model) != model_key(
        tiny.diffusion(betas=model.betas * 0.9)
    )
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    assert torch.equal(invert(model, pictures, 300, 4), first)
    monkeypatch.setenv("ZEROSHIFT_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    assert torch.equal(cached("x", "abcd", (2,), lambda: torch.ones(2)), torch.ones(2))
