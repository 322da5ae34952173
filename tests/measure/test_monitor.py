"""The collapse monitor: its numbers equal slow formulas, it never changes a run, it survives kills, and it
stops by its rule."""

from __future__ import annotations

import io
import json
import math
import os
import re
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.app.display import AdaptProgress
from zeroshift.clip.features import template_features
from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import MonitorConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.files.registry import load_clip
from zeroshift.measure.monitor import best_record, converged
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.directions import prompt_direction, prompt_features, residual_feature
from zeroshift.models.seeds import draw_z
from zeroshift.portraits import DOMAINS
from zeroshift.training.run_folder import RunFolder

Look = dict[str, Any]
WATCH = {"every": 2, "count": 5}
FAST = {"steps": 8, "batch": 2, "lr": 0.05, "layers": "convolutions", "ema": 0.5}


def plain(folder: RunFolder) -> list[Look]:
    """The looks without their times, which differ from run to run."""
    return [
        {name: value for name, value in look.items() if name != "seconds"}
        for look in folder.monitor_records()
    ]


def same(first: Any, second: Any) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """An uninterrupted ipl run, looked at every second step and at the last."""
    return tiny.run(tmp_path_factory.mktemp("whole") / "run", monitor=WATCH)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def alike(rows: Tensor) -> float:
    """Mean cosine over all pairs of rows, one by one."""
    pairs = [cosine(rows[i], rows[j]) for i, j in combinations(range(len(rows)), 2)]
    return sum(pairs) / len(pairs)


def see(clip: ClipModel, generator: Any, w: Tensor) -> Tensor:
    with torch.no_grad():
        rows = [clip.encode_image(generator.synthesize(each[None], "buffers"))[0].double() for each in w]
    return torch.stack([row / row.norm() for row in rows])


@torch.no_grad()
def text_directions(run: AdaptRun, clip: ClipModel, number: int, w: Tensor) -> Tensor:
    assert run.mapper is not None
    words, ends = run.mapper(w)[number], []
    for label in (run.config.source, run.config.target):
        residual = residual_feature(clip, clip.context, label, "corrected")
        ends.append(prompt_features(clip, words, clip.context, label, residual))
    return prompt_direction(*ends).double()


def test_the_numbers_of_a_look_are_those_of_slow_formulas_on_the_saved_generators(whole: AdaptRun) -> None:
    looks, last = whole.folder.monitor_records(), load_generator_file(whole.folder.generator_file)[0]
    assert [look["step"] for look in looks] == [2, 4, 5] and all(look["kind"] == "monitor" for look in looks)
    source = tiny.generator()
    w = source.map(draw_z(12, 5, 0, "monitor", 0))
    best, _ = load_generator_file(whole.folder.best_file)
    for look, generator in (
        (looks[-1], last),
        (next(each for each in looks if each["step"] == each["best"]), best),
    ):
        agreement, similar, diversity = [], [], []
        for number, clip in enumerate(tiny.clips()):
            before, after = see(clip, source, w), see(clip, generator, w)
            text = text_directions(whole, clip, number, w)
            agreement.append(
                sum(cosine(row, words) for row, words in zip(after - before, text, strict=True)) / 5
            )
            similar.append(alike(after - before))
            diversity.append((1 - alike(after)) / (1 - alike(before)))
        for name, values in (("agreement", agreement), ("alike", similar), ("diversity", diversity)):
            assert look[name] == pytest.approx(sum(values) / 2, abs=2e-3), name
        assert look["score"] == look["agreement"]


def test_the_best_look_so_far_is_kept_with_its_step_and_score(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", method="nada", monitor=WATCH, train=FAST)
    looks, bests = run.folder.monitor_records(), []
    for now in looks:
        previous = next((each for each in looks if bests and each["step"] == bests[-1]), None)
        bests.append(
            now["step"] if previous is None or now["score"] - previous["score"] > 0.01 else bests[-1]
        )
    assert [each["best"] for each in looks] == bests
    top, score = bests[-1], next(each["score"] for each in looks if each["step"] == bests[-1])
    kept, facts = load_generator_file(run.folder.best_file)
    assert (facts["step"], facts["score"], facts["target"]) == (str(top), repr(score), "zombie")
    again = tiny.run(tmp_path / "short", method="nada", monitor={"every": 0}, train=FAST | {"steps": top})
    assert same(kept, again.generator), "a run that ends at that step has the same average"


def test_a_watched_run_has_the_weights_of_one_that_is_not_watched(whole: AdaptRun, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    alone = tiny.run(tmp_path / "run", monitor={"every": 0})
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(alone.generator, whole.generator) and same(alone.trained, whole.trained)
    assert not (tmp_path / "run" / "monitor.jsonl").exists() and not alone.folder.best_file.exists()
    assert "looked from outside" not in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert [line["loss"] for line in alone.folder.metrics()] == [
        line["loss"] for line in whole.folder.metrics()
    ]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stopped_run_looks_once_at_every_step(whole: AdaptRun, tmp_path: Path, step: int) -> None:
    with pytest.raises(ZeroDivisionError):
        tiny.run(
            tmp_path / "run",
            hook=tiny.Stop((2, step), ZeroDivisionError()),
            monitor=WATCH,
            run={"checkpoint_every": 3},
        )
    resumed = tiny.run(tmp_path / "run", monitor=WATCH, run={"checkpoint_every": 3})
    assert plain(resumed.folder) == plain(whole.folder)
    assert same(resumed.generator, whole.generator)
    kept, expected = (load_generator_file(run.folder.best_file) for run in (resumed, whole))
    assert same(kept[0], expected[0]) and kept[1]["step"] == expected[1]["step"]


def test_time_of_preparing_is_no_part_of_the_rate_and_long_silence_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, now = io.StringIO(), [0.0]
    monkeypatch.setattr("zeroshift.app.display.time.monotonic", lambda: now[0])
    display = AdaptProgress(told)
    seen: list[tuple[float, dict[str, Any]]] = [(0.0, {"kind": "start", "stage": 2, "step": 0, "steps": 100})]
    seen += [(float(step), {"kind": "step", "step": step, "steps": 100, "loss": 1.0}) for step in range(1, 6)]
    seen += [(60.0, {"kind": "prepare", "what": "making pictures", "done": 16, "total": 16})]
    seen += [(61.0, {"kind": "step", "step": 6, "steps": 100, "loss": 1.0})]
    for at, event in seen:
        now[0] = at
        display(event)
    lines = told.getvalue().splitlines()
    assert lines[0].startswith("stage 2") and "step   5/100" in lines[1] and lines[2] == "making pictures: 16"
    assert lines[3:] == ["  step   6/100  loss 1.0000  1.0 steps/s, 1 min 34 s left"]


def test_a_killed_run_that_stops_early_decides_the_same(tmp_path: Path) -> None:
    options: Look = {
        "method": "nada",
        "until": "converged",
        "monitor": WATCH | {"patience": 2, "least_gain": 0.05},
        "train": FAST | {"steps": 40},
        "run": {"checkpoint_every": 3},
    }
    told = io.StringIO()
    with AdaptProgress(told) as display:
        run = tiny.run(tmp_path / "run", progress=display, **options)
    looks = run.folder.monitor_records()
    scores, best = [look["score"] for look in looks], 0
    for index, score in enumerate(scores):
        best = index if score - scores[best] > 0.05 else best
        if index - best == 2:
            assert index == len(scores) - 1 and looks[index]["step"] == 2 * (index + 1) < 40
    assert len(scores) - 1 - best == 2
    status = run.folder.status
    assert (status.state, status.step) == ("finished", looks[-1]["step"]) and status.message.startswith(
        f"stopped early at step {looks[-1]['step']}: the best score is {scores[best]:.4f} at step "
        f"{looks[best]['step']},"
    )
    assert told.getvalue().splitlines()[-1] == status.message
    assert same(run.generator, load_generator_file(run.folder.best_file)[0])
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "The run stopped early at step" in text
    for kill in (looks[-1]["step"] - 1, looks[-1]["step"]):
        child = os.fork()
        if child == 0:
            tiny.run(tmp_path / f"{kill}", hook=tiny.Stop((2, kill), None), **options)
            os._exit(3)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        resumed = tiny.run(tmp_path / f"{kill}", **options)
        assert plain(resumed.folder) == plain(run.folder) and same(resumed.generator, run.generator)
        assert resumed.folder.status == status


def test_a_run_that_had_decided_to_stop_does_no_further_step(tmp_path: Path) -> None:
    options: Look = {
        "method": "nada",
        "monitor": WATCH | {"patience": 1, "least_gain": 2.0},
        "train": FAST,
        "until": "converged",
    }

    def fail(event: Look) -> None:
        if event["kind"] == "checkpoint" and event["step"] == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tiny.run(tmp_path / "run", progress=fail, **options)
    resumed = tiny.run(tmp_path / "run", **options)
    assert resumed.steps_done == 0 and resumed.folder.status.step == 4
    assert [look["step"] for look in resumed.folder.monitor_records()] == [2, 4]


def test_collapse_is_said_once_and_a_mild_run_stays_silent(tmp_path: Path) -> None:
    events: list[Look] = []
    wild = FAST | {"lr": 1.0, "ema": 0.0, "steps": 4}
    with pytest.warns(
        UserWarning, match=r"grow alike: at step \d+ they have 0\.\d\d of the source's.*lower train\.lr"
    ) as told:
        run = tiny.run(tmp_path / "wild", method="nada", progress=events.append, monitor=WATCH, train=wild)
    low = [look["step"] for look in run.folder.monitor_records() if look["diversity"] < 0.15]
    said = [str(each.message) for each in told if "grow alike" in str(each.message)]
    assert len(low) > 1 and len(said) == 1 and f"at step {low[0]} " in said[0]
    assert [event["message"] for event in events if event["kind"] == "warning"] == said
    assert run.folder.monitor_records()[-1]["best"] is None and not run.folder.best_file.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mild = tiny.run(tmp_path / "mild", method="nada", monitor=WATCH, train=FAST | {"lr": 0.001})
    assert min(look["diversity"] for look in mild.folder.monitor_records()) > 0.8


def look(step: int, score: float, diversity: float | None = 1.0) -> Look:
    return {"step": step, "score": score, "diversity": diversity}


def test_the_rule_passes_over_looks_without_diversity() -> None:
    watch = MonitorConfig(patience=2, least_gain=0.1, least_diversity=0.3)
    looks = [look(1, 0.2), look(2, 0.9, 0.1), look(3, 0.5), look(4, 0.6, None), look(5, 0.55), look(6, 0.65)]
    bests = [best_record(looks[:count], watch) for count in range(7)]
    assert [best and best["step"] for best in bests] == [None, 1, 1, 3, 3, 3, 6]
    assert [converged(looks[:count], watch) for count in range(7)] == [False] * 5 + [True, False]
    dead = [look(step, 0.5, 0.0) for step in range(3)]
    assert best_record(dead, watch) is None and best_record([], watch) is None
    assert [converged(dead[:count], watch) for count in range(4)] == [False, False, True, True]


def test_stopping_needs_looks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train.until is 'converged' but train.monitor.every is 0"):
        tiny.config(tmp_path / "run", monitor={"every": 0}, until="converged")


def test_looks_go_to_tensorboard_and_the_report(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", method="nada", monitor=WATCH, run={"tensorboard": True})
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    for title in ("Agreement with the direction", "How alike the changes", "Diversity, as a share"):
        assert len(re.findall(rf"<svg[^>]*aria-label=\"{title}", text)) == 1
    best = run.folder.monitor_records()[-1]["best"]
    assert (
        f"Best at step {best} with" in text
        and "<script" not in text
        and "Probability that the judge" not in text
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    written.Reload()
    values = [(each.step, each.value) for each in written.Scalars("monitor/diversity")]
    assert values == [
        (each["step"], pytest.approx(each["diversity"], rel=1e-6)) for each in run.folder.monitor_records()
    ]


def test_the_judge_scores_built_in_portraits_in_their_own_domains_alone(tmp_path: Path) -> None:
    def watched(name: str, **options: Any) -> AdaptRun:
        train = {"steps": 1, "batch": 1, "layers": "convs.3"}
        return adapt(
            tiny.config(
                tmp_path / name,
                method="nada",
                clip=("portraits-clip-a",),
                train=train,
                monitor={"count": 3},
                **options,
            )
        )

    run = watched("sketch", target="pencil sketch")
    judge, source = load_clip("portraits-judge"), run.source
    w = source.map(draw_z(64, 3, 0, "monitor", 0))
    before, after = see(judge, source, w), see(judge, run.generator, w)
    texts = torch.stack([template_features(judge, domain).mean(dim=0) for domain in DOMAINS]).double()
    logits = [[judge.logit_scale * cosine(row, text) for text in texts] for row in after]
    wanted = list(DOMAINS).index("pencil sketch")
    chances = [math.exp(row[wanted]) / sum(map(math.exp, row)) for row in logits]
    (seen,) = run.folder.monitor_records()
    assert seen["score"] == seen["judge"] == pytest.approx(sum(chances) / 3, rel=1e-3)
    assert seen["diversity"] == pytest.approx((1 - alike(after)) / (1 - alike(before)), rel=1e-3)
    (other,) = watched("other", target="smiling person").folder.monitor_records()
    assert "judge" not in other and other["score"] == other["agreement"]
    assert json.loads((tmp_path / "other" / "monitor.jsonl").read_text("utf-8")) == other
