"""`adapt` as a whole: it learns, moves only what it may, stops and resumes without a trace, and refuses
in words."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.model import ClipModel, build_dual_encoder
from zeroshift.clip.text import BytePairTokenizer
from zeroshift.devices import resolve_device
from zeroshift.errors import InputError, RunError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.clips import save_clip
from zeroshift.methods import style_backend
from zeroshift.methods.adapt import AdaptRun, adapt, open_run, plan
from zeroshift.methods.guidance import ClipObjective
from zeroshift.methods.prompts import load_mapper
from zeroshift.methods.zero_shot import MAPPER_FILE
from zeroshift.models.seeds import draw_noise, draw_z
from zeroshift.training.run_folder import RunFolder

Event = dict[str, Any]


def same(first: Any, second: Any) -> bool:
    """Whether two models are equal in every bit."""
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def moved(before: Any, after: Any) -> set[str]:
    """Names of the tensors in which two models differ."""
    a, b = before.state_dict(), after.state_dict()
    return {name for name in a if not torch.equal(a[name], b[name])}


def lines(run: AdaptRun) -> list[Event]:
    """The log without the times, which differ from run to run."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in run.folder.metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """An uninterrupted run with live noise and selection every third step."""
    return tiny.run(tmp_path_factory.mktemp("whole") / "run", train={"adaptive": {"every": 3}})


def test_a_run_leaves_config_log_weights_and_status(whole: AdaptRun) -> None:
    folder = RunFolder.load(whole.folder.path)
    assert whole.finished and folder.finished and whole.steps_done == 9
    assert [(line["stage"], line["step"]) for line in folder.metrics()] == [(1, i) for i in range(1, 5)] + [
        (2, i) for i in range(1, 6)
    ]
    assert same(load_mapper(folder.path / MAPPER_FILE), whole.mapper)
    assert (folder.path / "before_after.png").is_file() and (folder.path / "report.html").is_file()
    from safetensors import safe_open

    with safe_open(folder.generator_file, "pt") as file:
        facts = file.metadata()
    assert (facts["method"], facts["source"], facts["target"], facts["seed"]) == (
        "ipl",
        "photo",
        "zombie",
        "0",
    )
    assert facts["source_sha256"] == folder.environment["source"]["sha256"]
    assert json.loads(facts["run"])["train"]["steps"] == 5


def test_a_finished_run_is_returned_at_once(whole: AdaptRun) -> None:
    events: list[Event] = []
    again = tiny.run(whole.folder.path, hook=events.append, train={"adaptive": {"every": 3}})
    assert again.finished and again.steps_done == 0 and events == []
    assert (
        same(again.generator, whole.generator)
        and same(again.mapper, whole.mapper)
        and same(again.source, whole.source)
    )


@pytest.mark.parametrize(
    "stops", [[(1, 1)], [(1, 3)], [(1, 4)], [(2, 1)], [(2, 3)], [(2, 5)], [(1, 2), (2, 2), (2, 4)]], ids=str
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    whole: AdaptRun, tmp_path: Path, stops: list[Any]
) -> None:
    for at in stops:
        with pytest.raises(ZeroDivisionError):
            tiny.run(
                tmp_path / "run", hook=tiny.Stop(at, ZeroDivisionError()), train={"adaptive": {"every": 3}}
            )
        assert RunFolder.load(tmp_path / "run").status.state == "failed"
    resumed = tiny.run(tmp_path / "run", train={"adaptive": {"every": 3}})
    assert (
        same(resumed.generator, whole.generator)
        and same(resumed.trained, whole.trained)
        and same(resumed.mapper, whole.mapper)
    )
    assert lines(resumed) == lines(whole)


def test_a_run_begun_by_an_earlier_version_goes_on(whole: AdaptRun, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        tiny.run(
            tmp_path / "run", hook=tiny.Stop((2, 3), ZeroDivisionError()), train={"adaptive": {"every": 3}}
        )
    file = tmp_path / "run" / "config.json"
    tree = json.loads(file.read_text())
    train = tree["config"]["train"]
    chosen = train.pop("adaptive")
    train |= {"top_k": None, "select_every": chosen["every"], "select_batch": chosen["batch"]}
    file.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"train\.adaptive\.every: 3 -> 2"):
        adapt(tiny.config(tmp_path / "run", train={"adaptive": {"every": 2}}))
    assert same(tiny.run(tmp_path / "run", train={"adaptive": {"every": 3}}).generator, whole.generator)


@pytest.mark.parametrize("at", [(1, 3), (2, 4)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    whole: AdaptRun, tmp_path: Path, at: tuple[int, int]
) -> None:
    child = os.fork()
    if child == 0:  # ends by its own SIGKILL, without any clean-up
        tiny.run(tmp_path / "run", hook=tiny.Stop(at, None), train={"adaptive": {"every": 3}})
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and RunFolder.load(tmp_path / "run").status.state == "running"
    resumed = tiny.run(tmp_path / "run", train={"adaptive": {"every": 3}})
    assert same(resumed.generator, whole.generator) and lines(resumed) == lines(whole)
    assert 0 < resumed.steps_done < 9


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(whole: AdaptRun, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"stopped in stage 2 after step 3; the same command goes on"):
        tiny.run(
            tmp_path / "run", hook=tiny.Stop((2, 3), KeyboardInterrupt()), train={"adaptive": {"every": 3}}
        )
    assert RunFolder.load(tmp_path / "run").status.state == "stopped"
    assert same(tiny.run(tmp_path / "run", train={"adaptive": {"every": 3}}).generator, whole.generator)


def test_another_seed_gives_other_weights(whole: AdaptRun, tmp_path: Path) -> None:
    other = tiny.run(tmp_path / "run", train={"adaptive": {"every": 3}}, run={"seed": 1})
    assert not same(other.generator, whole.generator) and not same(other.mapper, whole.mapper)


def test_other_options_in_the_same_folder_are_refused_before_anything_is_loaded(whole: AdaptRun) -> None:
    before = whole.folder.generator_file.read_bytes()
    with pytest.raises(InputError, match=r"train\.lr: 0\.01 -> 0\.5"):
        adapt(tiny.config(whole.folder.path, train={"adaptive": {"every": 3}, "lr": 0.5}))
    assert whole.folder.generator_file.read_bytes() == before


def test_stage_1_lowers_its_loss(tmp_path: Path) -> None:
    z = draw_z(12, 4, 0, "fixed", 0).expand(40, -1, -1)
    losses: list[float] = []

    def keep(event: Event) -> None:
        losses.extend([float(event["losses"]["loss"])] if event["stage"] == 1 else [])

    tiny.run(
        tmp_path / "run",
        hook=keep,
        state=tiny.given(stage1_z=z),
        mapper={"steps": 40, "lr": 0.2},
        train={"steps": 1},
        noise="off",
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def fifty_steps(out: Path, floor: float) -> tuple[AdaptRun, float]:
    """A run of 50 steps from target = source without noise, and how far its pictures moved, relative to their
    contrast."""
    run = tiny.run(
        out,
        method="nada",
        noise="off",
        image_floor=floor,
        train={"steps": 50, "layers": "convolutions", "lr": 0.01},
    )
    assert run.trained is not None
    with torch.no_grad():
        w_BS = run.source.map(draw_z(12, 8, 0, "look", 0))
        before, after = run.source.synthesize(w_BS, "off"), run.trained.synthesize(w_BS, "off")
    return run, float((after - before).std() / before.std())


def test_fifty_steps_from_equal_pictures_move_weights_and_pictures(tmp_path: Path) -> None:
    run, distance = fifty_steps(tmp_path / "bounded", floor=0.05)
    losses = [line["loss"] for line in run.folder.metrics()]
    assert losses[0] == 2.0, "every first row is zero: two CLIPs, each 1 - 0"
    assert run.trained is not None
    start, end = (each.state()["convs.1.conv.weight"] for each in (run.source, run.trained))
    assert (end - start).norm() > 0.02 * start.norm()
    _, poisoned = fifty_steps(tmp_path / "tiny", floor=1e-8)
    assert sum(losses[-10:]) / 10 < 1.6
    assert distance > 0.2 and distance > 2 * poisoned


def test_adaptive_selection_moves_the_chosen_layers_alone(tmp_path: Path) -> None:
    events: list[Event] = []
    run = tiny.run(
        tmp_path / "run", method="nada", hook=events.append, train={"steps": 1, "adaptive": {"top_k": 2}}
    )
    (event,) = events
    assert len(event["chosen"]) == 2 and set(event["chosen"]) == set(event["scores"].topk(2).indices.tolist())
    allowed = {
        name for layer in run.source.layers() if layer.latent in event["chosen"] for name in layer.parameters
    }
    assert moved(run.source, run.trained) and moved(run.source, run.trained) <= allowed
    assert event["layers"] == tuple(
        layer.name for layer in run.source.layers() if layer.latent in event["chosen"]
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": "convs.0,to_rgb1"}, {"convs.0", "to_rgb1"}),
        ({"layers": "shape"}, {"input", "conv1", "convs.0", "convs.1"}),
        ({"layers": "convs.3", "free_rgb": True}, {"convs.3", "to_rgb1", "to_rgbs.0", "to_rgbs.1"}),
    ],
)
def test_named_layers_and_phases_move_alone(
    tmp_path: Path, options: dict[str, Any], expected: set[str]
) -> None:
    run = tiny.run(tmp_path / "run", method="nada", train={"steps": 2} | options)
    owners = {name: layer.name for layer in run.source.layers() for name in layer.parameters}
    assert {owners[name] for name in moved(run.source, run.trained)} == expected
    assert moved(run.source, run.generator) == moved(run.source, run.trained)


def test_the_result_is_the_running_average(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", method="nada", train={"steps": 1, "layers": "all", "ema": 0.9})
    assert run.trained is not None
    for name, start in run.source.state().items():
        expected = 0.9 * start + 0.1 * run.trained.state()[name]
        assert torch.allclose(run.generator.state()[name], expected, atol=1e-7)


def test_frozen_tensors_are_skipped_or_decayed_by_adam(tmp_path: Path) -> None:
    counts = {}
    for kind in ("skip", "decay"):
        run = tiny.run(
            tmp_path / kind,
            method="nada",
            frozen_adam=kind,
            train={"steps": 4, "adaptive": {"top_k": 2}},
            noise="off",
        )
        tensors, _ = run.folder.load_checkpoint() or ({}, {})
        counts[kind] = [int(value) for name, value in tensors.items() if name.endswith("/step")]
    assert set(counts["decay"]) == {4} and len(counts["decay"]) > len(counts["skip"])
    chosen = [line["layers"] for line in RunFolder.load(tmp_path / "skip").metrics()]
    assert max(counts["skip"]) == max(sum(name in names for names in chosen) for name in sum(chosen, []))


def test_live_noise_is_shared_by_source_and_target_unless_independent(tmp_path: Path) -> None:
    for kind, shared in (("live", True), ("independent", False)):
        events: list[Event] = []
        tiny.run(tmp_path / kind, method="nada", noise=kind, hook=events.append, train={"steps": 1})
        before, after = events[0]["pictures"]
        assert torch.equal(before, after) is shared
        source = tiny.generator()
        maps = draw_noise(source.noise_shapes(), 2, 0, "stage2", 1)
        assert torch.equal(before, source.synthesize(source.map(draw_z(12, 2, 0, "stage2", 1)), maps))


def test_selection_may_hold_for_several_steps(whole: AdaptRun) -> None:
    chosen = [line["layers"] for line in whole.folder.metrics() if line["stage"] == 2]
    assert chosen[0] == chosen[1] == chosen[2] and chosen[3] == chosen[4]


def test_the_hook_sees_directions_and_gradients_where_it_asks(tmp_path: Path) -> None:
    class Curious(list[Event]):
        wants_gradients = True

        def __call__(self, event: Event) -> None:
            self.append(event)

    curious, plain = Curious(), []
    tiny.run(tmp_path / "a", hook=curious, train={"steps": 1})
    tiny.run(tmp_path / "b", hook=plain.append, train={"steps": 1})
    last = curious[-1]
    assert [tuple(each.shape) for each in last["text_directions"]] == [(2, 24), (2, 20)]
    assert [tuple(each.shape) for each in last["image_directions"]] == [(2, 24), (2, 20)]
    assert all(torch.allclose(each.norm(dim=1), torch.ones(2), atol=1e-5) for each in last["text_directions"])
    assert "gradients" not in plain[-1] and set(last["losses"]) == {"loss", "direction"}
    assert {name.rpartition(".")[0].split(".conv")[0] for name in last["gradients"]} >= {"conv1"}
    assert all(float(value) >= 0 for value in last["gradients"].values()) and len(curious) == 5


@pytest.mark.parametrize("broken", ["stage2_z", "select_z"])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(
    tmp_path: Path, broken: str
) -> None:
    z = torch.stack([draw_z(12, 2, 0, "given", step) for step in range(5)])
    bad = z.clone()
    bad[3] = float("nan")
    with pytest.raises(RunError, match=r"became nan in stage 2 at step 4; .* lower train\.lr"):
        tiny.run(tmp_path / "run", state=tiny.given(**{"stage2_z": z, "select_z": z, broken: bad}))
    found = RunFolder.load(tmp_path / "run").load_checkpoint()
    assert found is not None and found[1]["step"] == 2
    assert tiny.run(tmp_path / "run", state=tiny.given(stage2_z=z, select_z=z)).steps_done == 3


def test_out_of_memory_names_the_batch_to_try(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"out of memory in stage 1 at step 2 with mapper.batch 4; try mapper.batch 2"
    ):
        tiny.run(tmp_path / "a", hook=tiny.Stop((1, 1), torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(RunError, match=r"with train.batch 2; try train.adaptive.batch 4, or train.batch 1"):
        tiny.run(
            tmp_path / "b",
            hook=tiny.Stop((2, 1), RuntimeError("can't allocate memory")),
            train={"adaptive": {"batch": 8}},
        )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"train": {"layers": "convs.99"}}, 'unknown layer "convs.99"'),
        ({"train": {"adaptive": {"top_k": 40}}}, "train.adaptive.top_k is 40, this generator has 6"),
        ({"losses": {"patch": 1.0}}, "losses.patch needs pictures above 510 px"),
        ({"clip_weights": (1.0, 1.0, 1.0), "clip": ("a", "b", "c")}, "2 CLIPs were given for 3 weights"),
    ],
)
def test_what_cannot_work_is_refused_before_the_folder_is_made(
    tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(InputError, match=part):
        tiny.run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_too_few_given_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage1_z holds latents for 2 steps, the run has 4"):
        tiny.run(tmp_path / "run", state=tiny.given(stage1_z=torch.zeros(2, 4, 12)))


def test_an_unknown_generator_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no generator .*nowhere"):
        adapt(target="zombie", generator=str(tmp_path / "nowhere.pt"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_word_that_clips_never_learned_is_named_once_for_their_vocabulary(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"tiny-1 never learned 'stone', 'gargoyle'.* it knows a, photo"
    ) as told:
        tiny.run(tmp_path / "run", target="stone gargoyle", method="nada", train={"steps": 1})
    assert sum("never learned" in str(each.message) for each in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.run(tmp_path / "known", target="sketch", method="nada", train={"steps": 1})


def test_a_clip_with_byte_pairs_guides_too(tmp_path: Path) -> None:
    tokenizer = BytePairTokenizer()
    model = build_dual_encoder(
        tokenizer.vocab_size,
        widths=(8, 8),
        depths=(1, 1),
        text_width=8,
        text_layers=1,
        text_heads=1,
        resolution=16,
    )
    clips = [
        tiny.clip(1),
        ClipModel(model, tokenizer, resolution=16, name="byte-pairs", templates=tiny.TEMPLATES),
    ]
    run = tiny.run(tmp_path / "run", state=tiny.given(clips=clips), mapper={"steps": 1}, train={"steps": 1})
    assert run.mapper is not None and not same(run.generator, run.source)
    assert [each.shape[-1] for each in run.mapper(run.source.map(draw_z(12, 2, 0, "look", 0)))] == [16, 8]


def test_a_plan_says_what_would_happen_and_writes_nothing(tmp_path: Path) -> None:
    planned = plan(tiny.config(tmp_path / "run"), state=tiny.given())
    source = tiny.generator()
    assert planned.parameters["generator"] == sum(each.numel() for each in source.parameters())
    assert planned.parameters["movable"] == sum(
        parameter.numel()
        for name, parameter in source.named_parameters()
        if not name.startswith(("style.", "input."))
    )
    assert planned.select == 4 and planned.layers[0] == "conv1" and planned.resumes_at is None
    assert planned.memory_bytes > 4 * 3 * planned.parameters["generator"]
    assert list(tmp_path.iterdir()) == []
    larger = plan(tiny.config(tmp_path / "run", train={"batch": 64}), state=tiny.given())
    assert larger.memory_bytes > 2 * planned.memory_bytes


def test_a_plan_knows_where_a_stopped_run_would_go_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        tiny.run(tmp_path / "run", hook=tiny.Stop((2, 3), ZeroDivisionError()))
    assert plan(tiny.config(tmp_path / "run"), state=tiny.given()).resumes_at == (2, 2)


def test_models_given_by_name_are_loaded_recorded_and_found_again(tmp_path: Path) -> None:
    save_generator(tmp_path / "g.safetensors", tiny.generator())
    for index, each in enumerate(tiny.clips()):
        save_clip(each, tmp_path / f"clip{index}")
    names = {
        "generator": str(tmp_path / "g.safetensors"),
        "clip": (str(tmp_path / "clip0"), str(tmp_path / "clip1")),
    }
    config = tiny.config(tmp_path / "run", **names, train={"steps": 1})
    by_name, by_hand = adapt(config), tiny.run(tmp_path / "hand", train={"steps": 1})
    assert same(by_name.generator, by_hand.generator)
    assert same(adapt(config).source, tiny.generator())


def test_learned_words_may_start_at_the_context(tmp_path: Path) -> None:
    run = tiny.run(
        tmp_path / "run", prompt_init="tokens", mapper={"steps": 1, "lr": 1e-9}, train={"steps": 1}
    )
    assert run.mapper is not None
    words: list[Tensor] = run.mapper(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    tokens = tiny.clip(1).embed_tokens("a photo of a")
    assert words[0].shape == (3, 4, 16) and (words[0] - tokens).abs().max() < 0.6
    assert same(load_mapper(run.folder.path / MAPPER_FILE), run.mapper)


def test_shared_words_learn_one_direction_for_all_pictures_and_come_back_from_the_folder(
    tmp_path: Path,
) -> None:
    directions: list[Tensor] = []

    def hook(event: Event) -> None:
        directions.extend(event["text_directions"] if event["stage"] == 2 else ())

    run = tiny.run(tmp_path / "run", hook=hook, method="coop", mapper={"steps": 6, "lr": 0.5, "words": 6})
    assert directions and all(torch.equal(each[0], each[1]) for each in directions)
    nada = [clip.direction for clip in _clips(tmp_path / "other")]
    assert max(float(each[:1] @ fixed.T) for each, fixed in zip(directions[:2], nada, strict=True)) < 0.9999
    first = [line["classification"] for line in run.folder.metrics() if line["stage"] == 1]
    assert first[-1] < first[0]
    assert run.mapper is not None and same(load_mapper(run.folder.path / MAPPER_FILE), run.mapper)
    again = adapt(run.config, state=tiny.given())
    assert again.steps_done == 0 and same(again.generator, run.generator)


def _clips(out: Path) -> Sequence[ClipObjective]:
    return open_run(tiny.config(out, method="nada"), tiny.given()).clips


def test_bf16_runs_stay_near_fp32(tmp_path: Path) -> None:
    runs = [tiny.run(tmp_path / kind, run={"precision": kind}, noise="off") for kind in ("fp32", "bf16")]
    first = [[line["loss"] for line in run.folder.metrics()][0] for run in runs]
    assert abs(first[0] - first[1]) < 0.05 * first[0] and first[0] != first[1]
    assert all(
        torch.isfinite(each).all() and each.dtype == torch.float32
        for each in runs[1].generator.state().values()
    )


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="there is no device cuda:63 here"):
        resolve_device("cuda:63")


def test_stage_1_can_show_the_same_pictures_again_in_new_orders(tmp_path: Path) -> None:
    fresh = open_run(tiny.config(tmp_path / "a"), tiny.given())
    again = open_run(tiny.config(tmp_path / "b", mapper={"pictures": 8, "steps": 8}), tiny.given())

    def shown_at(step: int) -> Any:
        return again.backend.source_features(step, again.clips)

    first = [shown_at(step) for step in (1, 2)]
    for step, (w, features) in enumerate(first, start=1):
        expected_w, expected = fresh.backend.source_features(step, fresh.clips)
        assert torch.equal(w, expected_w) and all(
            torch.equal(a, b) for a, b in zip(features, expected, strict=True)
        )
    album_w, rounds = torch.cat([w for w, _ in first]), []
    for steps in ((3, 4), (5, 6)):
        shown = [shown_at(step) for step in steps]
        w, features = torch.cat([page[0] for page in shown]), torch.cat([page[1][1] for page in shown])
        order = [int((album_w == row).all(dim=1).nonzero()) for row in w]
        assert sorted(order) == list(range(8)) and torch.equal(
            features, torch.cat([page[1][1] for page in first])[order]
        )
        rounds.append(order)
    assert rounds[0] != rounds[1] != list(range(8))


def test_a_stopped_run_that_shows_pictures_again_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    mapper = {"pictures": 9, "steps": 7}
    whole = tiny.run(tmp_path / "whole", mapper=mapper)
    with pytest.raises(ZeroDivisionError):
        tiny.run(tmp_path / "run", hook=tiny.Stop((1, 5), ZeroDivisionError()), mapper=mapper)
    assert same(tiny.run(tmp_path / "run", mapper=mapper).mapper, whole.mapper)
    with pytest.raises(InputError, match="mapper.pictures is 3"):
        tiny.config(tmp_path / "x", mapper={"pictures": 3})


def test_pictures_drawn_in_parts_equal_those_drawn_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tiny.config(tmp_path / "run"), tiny.given(dtype=torch.float64))
    w = run.backend.codes(1)
    with torch.no_grad():
        whole = run.backend.pictures(run.source, w, 1)
        monkeypatch.setitem(style_backend.PART_PIXELS, "cpu", 3 * 16**2)
        in_parts = run.backend.pictures(run.source, w, 1)
    torch.testing.assert_close(in_parts, whole, rtol=1e-12, atol=1e-12)
