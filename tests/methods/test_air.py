"""AIR: its equations by slow formulas, anchors that are the target of their time, and runs that resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.features import normalize
from zeroshift.config.schema import AdaptConfig
from zeroshift.methods import air
from zeroshift.methods.adapt import adapt
from zeroshift.methods.backend import Given
from zeroshift.methods.views import draw_views, seen
from zeroshift.models.seeds import draw_z

OWN = {"air": {"offset_pictures": 5, "prompt_steps": 3, "interval": 0.25}}
Event = dict[str, Any]


def n(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def units(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def config(out: Path, **overrides: Any) -> AdaptConfig:
    train = {"steps": 8} | overrides.pop("train", {})
    return tiny.config(out, method="air", train=train, own=OWN, **overrides)


# The equations.


def test_the_first_anchor_stands_half_way_and_one_every_tenth_of_the_steps() -> None:
    assert air.anchor_steps(300, 0.5, 0.1) == {151: 0.5, 181: 0.6, 211: 0.7, 241: 0.8, 271: 0.9}
    assert list(air.anchor_steps(200, 0.25, 0.25)) == [51, 101, 151]
    assert air.anchor_steps(7, 0.5, 0.1) == {4: 3 / 7, 5: 4 / 7, 6: 5 / 7, 7: 6 / 7}
    assert air.anchor_steps(1, 0.5, 0.1) == {}, "nothing has moved before the first step"


def test_an_offset_is_the_unit_difference_of_mean_unit_features() -> None:
    now, before = units(7, 5, seed=1), units(7, 5, seed=2)
    means = [each.mean(dim=0, keepdim=True) for each in (now, before)]
    slow = n(sum(a - b for a, b in zip(now, before, strict=True)) / 7)  # pyright: ignore
    torch.testing.assert_close(air.offset(*means)[0], slow)
    assert air.offset(means[0], means[0]).norm() == 0


def test_words_start_between_the_tokens_of_source_and_target() -> None:
    source, long, short = units(2, 4, seed=1), units(3, 4, seed=2), units(1, 4, seed=3)
    found = air.start_words(source, [long, short], [0.75, 0.25], 0.6)
    for row in range(3):
        there = 0.75 * long[row] + 0.25 * short[0]
        torch.testing.assert_close(found[row], 0.4 * source[min(row, 1)] + 0.6 * there)
    torch.testing.assert_close(air.start_words(source, [short], [1.0], 0.0), source)
    torch.testing.assert_close(air.start_words(short, [long], [1.0], 1.0), long)


def test_a_prompt_is_asked_to_differ_from_the_last_one_as_pictures_do() -> None:
    wanted, prompt, templates = units(1, 6, seed=1), units(1, 6, seed=2), units(4, 6, seed=3)
    change = n(sum(prompt[0] - each for each in templates) / 4)  # pyright: ignore
    assert math.isclose(air.prompt_loss(wanted, prompt, templates), 1 - wanted[0] @ change)
    mean = templates.mean(dim=0, keepdim=True)
    assert math.isclose(air.prompt_loss(wanted, prompt, templates), air.prompt_loss(wanted, prompt, mean))
    assert math.isclose(air.prompt_loss(normalize(prompt - mean), prompt, mean), 0, abs_tol=1e-12)


def test_the_adaptive_direction_leads_from_the_anchor_to_the_target() -> None:
    templates, prompt = units(4, 6, seed=1), units(1, 6, seed=2)
    slow = n(sum(each - prompt[0] for each in templates) / 4)  # pyright: ignore
    torch.testing.assert_close(air.adaptive_direction(templates, prompt)[0], slow)
    mean = templates.mean(dim=0, keepdim=True)
    torch.testing.assert_close(air.adaptive_direction(mean, prompt)[0], slow)


def test_learned_words_bring_the_prompt_where_the_pictures_went(tmp_path: Path) -> None:
    wanted = normalize(torch.randn(1, 24, generator=torch.Generator().manual_seed(0)))

    def loss(steps: int) -> float:
        made = tiny.config(tmp_path / "run", own={"air": {"prompt_steps": steps, "prompt_lr": 0.03}})
        run = air.open_run(made, tiny.given())
        previous = run.clips[0].source.template_mean[None]
        learned = air.learned_prompt(run, run.clips[0], wanted, previous, 0.5)
        return float(air.prompt_loss(wanted, learned, previous))

    assert loss(25) < loss(1) - 0.1


# A run.


class Watch(list[Event]):
    """Keeps every step, with the target's weights after it and the anchor's term by slow formulas."""

    run: air.AirRun

    def __call__(self, event: Event) -> None:
        self.append(event | {"after": self.run.target.state(), "slow": self._slow(event)})

    def _slow(self, event: Event) -> float | None:
        run, step = self.run, event["step"]
        if run.anchor is None:
            return None
        w = run.source.map(draw_z(12, 2, 0, "stage2", step))
        self.anchor_weights = run.anchor.generator.state()
        shown = run.backend.pictures(run.anchor.generator, w, step)
        views = draw_views(run.config.train.views, shown, 0, "stage2", step)
        told = 0.0
        for clip, weight, prompt in zip(run.clips, (1.0, 1.0), run.anchor.prompts, strict=True):
            templates = [
                n(clip.clip.encode_text([t.replace("{}", "zombie")])[0]) for t in tiny.TEMPLATES.templates
            ]
            wanted = n(sum(each - prompt[0] for each in templates))  # pyright: ignore
            terms = []
            for before, after in zip(seen(shown, views), seen(event["pictures"][1], views), strict=True):
                change = n(clip.clip.encode_image(after[None])[0]) - n(
                    clip.clip.encode_image(before[None])[0]
                )
                terms.append(1 - change @ wanted / max(float(change.norm()), air.FLOOR))
            told += weight * float(torch.stack(terms).mean())
        return told


def watched(made: AdaptConfig, state: Given | None = None) -> Watch:
    watch = Watch()
    watch.run = air.open_run(made, state or tiny.given(), watch)
    with watch.run.loop.recorded():
        air.train(watch.run)
    return watch


@pytest.mark.parametrize("views", [1, 2])
def test_the_loss_of_a_step_is_nadas_and_that_from_the_anchor(tmp_path: Path, views: int) -> None:
    made = config(tmp_path / "run", train={"views": {"count": views}})
    steps = watched(made)
    assert ["anchor" in event["losses"] for event in steps] == [False] * 4 + [True] * 4
    for event in steps[4:]:
        losses = event["losses"]
        assert math.isclose(losses["anchor"], event["slow"], rel_tol=1e-4, abs_tol=1e-4)
        assert math.isclose(losses["loss"], losses["direction"] + losses["anchor"], rel_tol=1e-5)
    assert steps[4]["losses"]["anchor"] == 2 != steps[5]["losses"]["anchor"], "it has left its anchor"


def test_an_anchor_is_the_target_as_it_was_and_does_not_move(tmp_path: Path) -> None:
    weights: list[dict[str, Tensor]] = []

    class Anchors(Watch):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if self.run.anchor is not None:
                weights.append(self.run.anchor.generator.state())

    watch = Anchors()
    watch.run = air.open_run(config(tmp_path / "run"), tiny.given(), watch)
    with watch.run.loop.recorded():
        air.train(watch.run)
    for number, anchor in enumerate(weights):
        made_after = 4 + number // 2 * 2
        torch.testing.assert_close(anchor, watch[made_after - 1]["after"], rtol=0, atol=0)


def test_without_weight_and_before_its_first_anchor_it_is_nada(tmp_path: Path) -> None:
    own = {"air": OWN["air"] | {"weight": 0.0}}
    train = {"steps": 8}
    silent = adapt(tiny.config(tmp_path / "a", method="air", train=train, own=own), state=tiny.given())
    nada = tiny.run(tmp_path / "b", method="nada", train=train)
    torch.testing.assert_close(silent.generator.state(), nada.generator.state(), rtol=0, atol=0)
    spoken = adapt(config(tmp_path / "c"), state=tiny.given())
    first = [[line["loss"] for line in run.folder.metrics()][:4] for run in (spoken, nada)]
    assert first[0] == first[1]
    assert not torch.equal(
        spoken.generator.state()["convs.0.conv.weight"], nada.generator.state()["convs.0.conv.weight"]
    )


@pytest.mark.parametrize("mode", ["through", "per-step"])
def test_a_diffusion_models_own_path_does_not_notice_the_anchors_pictures(tmp_path: Path, mode: str) -> None:
    own = {"air": OWN["air"] | {"weight": 0.0}}
    runs = [
        adapt(
            tiny.tune(tmp_path / method, method=method, diffusion={"mode": mode}, own=own),
            state=tiny.given_diffusion(),
        )
        for method in ("air", "diffusionclip")
    ]
    first, second = (run.trained.state() for run in runs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert all("anchor" in line for line in runs[0].folder.metrics()[3:])


@pytest.mark.parametrize(("step", "kind"), [(4, "weights"), (7, "weights"), (7, "lowrank")])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, step: int, kind: str) -> None:
    # Checkpoints behind steps 2, 4, 6: before the first anchor, at it, and between two.
    train = {"parameters": {"kind": kind}, "layers": "all"}
    whole = adapt(config(tmp_path / "whole", train=train), state=tiny.given())
    parted = config(tmp_path / "parted", train=train)
    with pytest.raises(KeyboardInterrupt):
        adapt(parted, state=tiny.given(), hook=tiny.Stop((2, step), KeyboardInterrupt()))
    again = adapt(parted, state=tiny.given())
    assert again.steps_done == 8 - step // 2 * 2 + (2 if step % 2 == 0 else 0)
    torch.testing.assert_close(again.generator.state(), whole.generator.state(), rtol=0, atol=0)
    lines = [[{**line, "seconds": 0} for line in run.folder.metrics()] for run in (again, whole)]
    assert lines[0] == lines[1]
