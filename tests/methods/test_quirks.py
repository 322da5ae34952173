"""Every choice of the authors' code is an option of its own: changed alone, it changes what it is about and
nothing before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.config.schema import OFFICIAL_QUIRKS, QuirkConfig, configure, to_dict
from zeroshift.files.clips import save_clip
from zeroshift.methods.adapt import AdaptRun, adapt

Event = dict[str, Any]


@dataclass
class Seen:
    """A finished run and its steps."""

    run: AdaptRun
    events: list[Event]

    def of(self, stage: int) -> list[Event]:
        return [event for event in self.events if event["stage"] == stage]

    def losses(self, stage: int) -> list[float]:
        return [float(event["losses"]["loss"]) for event in self.of(stage)]

    def moved(self) -> set[str]:
        """Names of the tensors that stage 2 moved."""
        assert self.run.trained is not None
        start, end = shifted(), self.run.trained.state()
        return {name for name, value in end.items() if not torch.equal(value, start[name])}


def shifted() -> dict[str, Tensor]:
    """Weights near those of the source, whose pictures differ a little."""
    draw = torch.Generator().manual_seed(4)
    return {
        name: each + 0.05 * torch.randn(each.shape, generator=draw) if name.endswith("conv.weight") else each
        for name, each in tiny.generator(size=32).state().items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """CLIPs of 16 px as folders, so that the run opens them itself; the generator has 32 px, so that pictures
    are resized."""
    folders = [tmp_path_factory.mktemp("clips") / name for name in ("one", "two")]
    for each, folder in zip(tiny.clips(), folders, strict=True):
        save_clip(each, folder)
    return tuple(map(str, folders))


class Runs:
    """Runs of five steps in all from the same start, each carried out once."""

    def __init__(self, folder: Path, clips: tuple[str, ...]) -> None:
        self.folder, self.clips, self.known = folder, clips, dict[str, Seen]()

    def __call__(self, **changes: Any) -> Seen:
        name = str(sorted(changes.items()))
        if name not in self.known:
            quirks = {"noise": "off", "image_floor": 0.0, **changes.pop("quirks", {})}
            train = {"steps": 3, "adaptive": {"top_k": 2}, "lr": 0.05, **changes.pop("train", {})}
            config = tiny.config(
                self.folder / str(len(self.known)),
                **{"clip": self.clips, "mapper": {"steps": 2}, "losses": {"global_clip": 0.5}, **changes},
                train=train,
                quirks=quirks,
            )
            events: list[Event] = []
            state = tiny.Given(generator=tiny.generator(size=32), target=shifted())
            self.known[name] = Seen(adapt(config, hook=events.append, state=state), events)
        return self.known[name]


@pytest.fixture(scope="module")
def carry_out(tmp_path_factory: pytest.TempPathFactory, files: tuple[str, ...]) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), files)


def test_the_published_residual_changes_the_text_directions_of_stage_2_alone(carry_out: Runs) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"residual": "published"})
    assert quirky.losses(1) == plain.losses(1)
    for a, b in zip(plain.of(2)[0]["text_directions"], quirky.of(2)[0]["text_directions"], strict=True):
        assert (a - b).abs().max() > 1e-3
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.of(2)[0]["pictures"], quirky.of(2)[0]["pictures"], strict=True)
    )
    assert quirky.losses(2)[0] != plain.losses(2)[0]


def test_the_published_layer_map_frees_other_layers_for_the_same_scores(carry_out: Runs) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"layer_map": "published"})
    a, b = plain.of(2)[0], quirky.of(2)[0]
    assert torch.equal(a["scores"], b["scores"]) and a["chosen"] == b["chosen"] and a["layers"] != b["layers"]
    assert plain.losses(1) == quirky.losses(1) and plain.losses(2)[0] == quirky.losses(2)[0]
    assert plain.losses(2)[1:] != quirky.losses(2)[1:] and plain.moved() != quirky.moved()


@pytest.mark.parametrize("noise", ["live", "independent", "buffers"])
def test_every_kind_of_noise_gives_other_pictures(carry_out: Runs, noise: str) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"noise": noise})
    before, after = quirky.of(2)[0]["pictures"]
    assert not torch.equal(before, plain.of(2)[0]["pictures"][0]) and not torch.equal(
        after, plain.of(2)[0]["pictures"][1]
    )
    assert quirky.losses(1)[0] != plain.losses(1)[0] and quirky.losses(2)[0] != plain.losses(2)[0]


def test_independent_noise_changes_the_target_pictures_alone(carry_out: Runs) -> None:
    live, quirky = (carry_out(quirks={"noise": noise}) for noise in ("live", "independent"))
    a, b = live.of(2)[0]["pictures"], quirky.of(2)[0]["pictures"]
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1]) and live.losses(1) == quirky.losses(1)


def test_decay_moves_tensors_in_steps_in_which_they_are_frozen(carry_out: Runs) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"frozen_adam": "decay"})
    assert plain.losses(2)[0] == quirky.losses(2)[0]
    assert plain.of(2)[0]["layers"] == quirky.of(2)[0]["layers"]
    assert quirky.run.trained is not None and plain.run.trained is not None
    ends = quirky.run.trained.state(), plain.run.trained.state()
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_resize_filter_changes_what_clips_see_of_the_same_pictures(carry_out: Runs) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"resize": "noantialias"})
    a, b = plain.of(2)[0], quirky.of(2)[0]
    assert all(torch.equal(x, y) for x, y in zip(a["pictures"], b["pictures"], strict=True))
    assert not torch.equal(a["image_directions"][0], b["image_directions"][0])
    assert plain.losses(1)[0] != quirky.losses(1)[0] and plain.losses(2)[0] != quirky.losses(2)[0]


def test_the_image_floor_shortens_image_directions_alone(carry_out: Runs) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"image_floor": 10.0})
    a, b = plain.of(2)[0], quirky.of(2)[0]
    for unit, short in zip(a["image_directions"], b["image_directions"], strict=True):
        torch.testing.assert_close(short / short.norm(dim=1, keepdim=True), unit)
        assert (unit.norm(dim=1) - 1).abs().max() < 1e-5 and short.norm(dim=1).max() < 0.2
    assert plain.losses(1) == quirky.losses(1) and b["losses"]["direction"] > a["losses"]["direction"]


def test_the_logit_scale_scales_the_distance_of_the_global_loss(carry_out: Runs) -> None:
    plain, quirky = carry_out(), carry_out(quirks={"logit_scale_over_100": True})
    scale = tiny.clip().logit_scale / 100
    a, b = plain.of(2)[0], quirky.of(2)[0]
    assert plain.losses(1) == quirky.losses(1) and a["losses"]["direction"] == b["losses"]["direction"]
    # Two CLIPs: 2 - sum of cosines, against 2 - scale times it.
    for got, cosine in (
        (b["losses"]["global_clip"], a["losses"]["global_clip"]),
        (b["selection_loss"], a["selection_loss"]),
    ):
        assert float(got) == pytest.approx(2 - scale * (2 - float(cosine)), abs=1e-5)
    assert scale != 1


def test_the_weight_of_a_clip_weighs_its_losses_and_its_say_in_selection(carry_out: Runs) -> None:
    plain, weighed = carry_out(), carry_out(clip_weights=(1.0, 0.25))
    a, b = plain.of(2)[0], weighed.of(2)[0]
    for first, second in ((plain.of(1)[0], weighed.of(1)[0]), (a, weighed.of(2)[0])):
        one, two = (float(each) for each in second["per_clip"])
        assert float(second["losses"]["loss"]) == pytest.approx(one + 0.25 * two, rel=1e-6)
        assert float(first["losses"]["loss"]) != float(second["losses"]["loss"])
    assert not torch.equal(a["scores"], b["scores"])


def test_the_official_bundle_is_a_run_with_every_quirk_named(
    carry_out: Runs, tmp_path: Path, files: tuple[str, ...]
) -> None:
    named = carry_out(quirks=to_dict(OFFICIAL_QUIRKS))
    events: list[Event] = []
    config = configure(named.run.config, out=tmp_path / "run", compat="official")
    bundle = adapt(
        config, hook=events.append, state=tiny.Given(generator=tiny.generator(size=32), target=shifted())
    )
    assert [event["losses"] for event in events] == [event["losses"] for event in named.events]
    assert all(
        torch.equal(value, named.run.generator.state()[name])
        for name, value in bundle.generator.state().items()
    )
    # The length by one bound is the published form and the default too; across has no part in it.
    defaults = to_dict(QuirkConfig()) | {"length": None, "across": None}
    assert all(value != defaults[name] for name, value in to_dict(OFFICIAL_QUIRKS).items())
