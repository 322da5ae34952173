"""What watches a run that learns from a few pictures: its numbers equal slow formulas, collapse is told, and
the best record is kept."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.config.schema import MonitorConfig
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.files.images import write_png
from zeroshift.measure.monitor import best_record
from zeroshift.measure.watching import (
    ShotWatcher,
    distances,
    energy_distance,
    map_features,
    neighbour_distance,
)
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.few_shot import open_run
from zeroshift.models.seeds import draw_z
from zeroshift.worlds.portraits import Portraits


def units(count: int, seed: int, width: int = 6) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum().sqrt())


def mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def energy(first: Tensor, second: Tensor) -> float:
    """The energy distance, pair by pair."""
    between = mean(apart(a, b) for a, b in product(first, second))
    within = [
        mean(apart(a, b) for a, b in combinations(each, 2)) if len(each) > 1 else 0.0
        for each in (first, second)
    ]
    return 2 * between - sum(within)


def test_the_energy_distance_is_that_of_a_slow_formula_and_sees_what_means_do_not() -> None:
    first, second = units(7, 1), units(5, 2)
    assert energy_distance(first, second) == pytest.approx(energy(first, second))
    assert energy_distance(first, second[:1]) == pytest.approx(energy(first, second[:1]))
    spread = torch.stack([units(1, seed)[0] * sign for seed in range(20) for sign in (1, -1)])
    alike = torch.zeros_like(spread)
    assert torch.allclose(spread.mean(dim=0), alike.mean(dim=0))
    assert energy_distance(spread, alike) > 0.5
    halves = energy_distance(units(400, 3), units(400, 4))
    assert abs(halves) < 0.02


def test_neighbours_are_those_of_all_pairs() -> None:
    rows = units(6, 1)
    nearest = [min(apart(a, b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    assert neighbour_distance(rows) == pytest.approx(mean(nearest))
    assert neighbour_distance(rows[:1]) == 0.0
    torch.testing.assert_close(distances(rows, rows)[2, 4].item(), apart(rows[2], rows[4]))


def watcher(source: Tensor, shots: Tensor) -> ShotWatcher:
    return ShotWatcher(lambda pictures: pictures, source, shots, lambda: 0.25)


def test_pictures_that_repeat_shots_new_pictures_and_the_source_are_told_apart() -> None:
    aside = torch.tensor([1.5, 0, 0, 0, 0, 0])
    shots, source = units(10, 1) + aside, units(40, 2) - aside
    made = {
        "repeated": shots[[0, 3, 5, 9] * 5],
        "one": shots[[4] * 20],
        "new": units(40, 3) + aside,
        "source": source,
    }
    found = {name: watcher(source, shots).numbers(each) for name, each in made.items()}
    assert found["source"]["approach"] == pytest.approx(0, abs=0.05)
    assert found["new"]["approach"] > 0.9 > found["one"]["approach"]
    assert found["repeated"]["nearest"] == pytest.approx(0, abs=1e-6)
    assert 0.7 < found["new"]["nearest"] < 1.2 < found["source"]["nearest"]
    assert found["one"]["diversity"] == pytest.approx(0, abs=1e-6) and found["source"]["diversity"] == 1
    assert all(each["overfitting"] == 0.25 and each["score"] == each["approach"] for each in found.values())
    assert math.isnan(watcher(source, shots[:1]).numbers(source)["nearest"])


def test_features_of_maps_are_means_and_deviations_of_channels() -> None:
    maps = [torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 5, 2, 2, dtype=torch.float64)]
    found = map_features(maps)
    for row in range(2):
        parts = []
        for each in maps:
            channels = [each[row, c].flatten().tolist() for c in range(each.shape[1])]
            middle = [mean(values) for values in channels]
            spread = [
                math.sqrt(mean((v - m) ** 2 for v in values))
                for values, m in zip(channels, middle, strict=True)
            ]
            length = math.sqrt(sum(v * v for v in middle + spread))
            parts += [v / length for v in middle + spread]
        assert found[row].tolist() == pytest.approx(parts)


def run(out: Path, **overrides: Any) -> AdaptRun:
    state = overrides.pop("state", None) or tiny.given_few_shot()
    return adapt(tiny.learn(out, **overrides), state=state, progress=overrides.pop("progress", None))


def test_the_record_of_a_run_is_that_of_its_saved_generator_and_of_the_discriminator_as_it_began(
    tmp_path: Path,
) -> None:
    made = run(tmp_path / "run", monitor={"every": 2, "count": 5})
    record = made.folder.monitor_records()[-1]
    assert record["step"] == 5 and "judge" not in record and record["score"] == record["approach"]
    shots = open_run(tiny.learn(tmp_path / "probe"), tiny.given_few_shot()).shots
    source, generator = tiny.generator(), load_generator_file(made.folder.generator_file)[0]
    w = source.map(draw_z(12, 5, 0, "monitor", 0))
    began = tiny.discriminator()
    with torch.no_grad():
        pictures = [source.synthesize(w, "buffers"), tiny.styled(generator).synthesize(w, "buffers"), shots]
        rows = [map_features(began(each, features=True)[1]) for each in pictures]
    before, after, wanted = (each / each.norm(dim=1, keepdim=True) for each in rows)
    assert record["approach"] == pytest.approx(1 - energy(after, wanted) / energy(before, wanted), abs=1e-5)
    nearest = mean(min(apart(a, b) for b in wanted) for a in after)
    between = mean(min(apart(a, b) for j, b in enumerate(wanted) if j != i) for i, a in enumerate(wanted))
    assert record["nearest"] == pytest.approx(nearest / between, abs=1e-5)
    saved = made.folder.load_checkpoint()
    assert saved is not None
    now = tiny.discriminator()
    now.load_state_dict({name: saved[0][f"discriminator/{name}"] for name in now.state_dict()})
    with torch.no_grad():
        signs = torch.cat([now(shots[:4]), now(shots[4:])]).sign()
    assert record["overfitting"] == pytest.approx(float(signs.mean()))


def test_a_watched_run_has_the_weights_of_one_that_is_not_watched(tmp_path: Path) -> None:
    watched, alone = run(tmp_path / "watched"), run(tmp_path / "alone", monitor={"every": 0})
    states = [each.trained.state_dict() for each in (watched, alone)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert alone.folder.monitor_records() == []


def test_collapse_is_told_once_and_what_to_try(tmp_path: Path) -> None:
    wild: dict[str, Any] = {"lr": 0.5, "ema": 0.0, "steps": 6}
    with pytest.warns(UserWarning, match="grow alike: at step .* Try fewer steps, a lower train.lr") as told:
        made = run(tmp_path / "run", train=wild, monitor={"every": 1, "least_diversity": 0.9})
    assert sum("grow alike" in str(each.message) for each in told) == 1
    assert min(each["diversity"] for each in made.folder.monitor_records()) < 0.9


def test_a_run_goes_on_until_it_converges_and_ends_with_its_best_record(tmp_path: Path) -> None:
    made = run(
        tmp_path / "run",
        train={"steps": 40, "until": "converged"},
        monitor={"every": 1, "patience": 2, "least_gain": 0.05, "least_diversity": 0.0},
    )
    status, records = made.folder.status, made.folder.monitor_records()
    assert status.state == "finished" and status.step < 40 and "stopped early" in status.message
    best, facts = load_generator_file(made.folder.best_file)
    assert int(facts["step"]) == records[-1]["best"] == status.step - 2
    states = [each.state_dict() for each in (best, made.generator)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "way to the shots" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_the_judge_of_the_built_in_world_watches_with_a_named_target_and_without(tmp_path: Path) -> None:
    truth = Portraits().truth_of_seeds(range(4), "watercolor", 64)
    assert truth is not None
    (tmp_path / "shots").mkdir()
    for number, picture in enumerate(truth):
        write_png(tmp_path / "shots" / f"{number}.png", picture)
    for name, target in (("named", "watercolor"), ("unnamed", "")):
        config = tiny.learn(
            tmp_path / name,
            generator="portraits",
            target=target,
            train={"steps": 1, "batch": 1},
            monitor={"count": 3},
            adversarial={"path": 0.0},
        )
        (record,) = adapt(config).folder.monitor_records()
        assert ("judge" in record) == bool(target)
        assert record["score"] == record["judge" if target else "approach"]


def test_pictures_that_repeat_the_shots_are_told_and_are_not_the_best(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="repeat the shots: at step 3 they lie .*least_nearest 100"):
        made = run(tmp_path / "run", monitor={"least_nearest": 100.0})
    assert [each["best"] for each in made.folder.monitor_records()] == [None, None]
    watch = MonitorConfig(least_nearest=0.5, least_gain=0.0)
    looks = [{"step": n, "score": s, "diversity": 1.0, "nearest": near} for n, s, near in RECORDS]
    best = best_record(looks, watch)
    assert best is not None and best["step"] == 3


RECORDS = [(1, 0.2, 1.3), (2, 0.9, 0.4), (3, 0.6, 0.6), (4, 0.5, None)]
"""Step, score and distance to the nearest shot; of a single shot there is none."""
