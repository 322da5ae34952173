"""Run folders: what they hold, whom they refuse, and that no kill or full disk can spoil them."""

from __future__ import annotations

import json
import os
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.errors import InputError, RunError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.registry import load_generator
from zeroshift.files.writing import fingerprint, write_bytes, write_tensors
from zeroshift.training.run_folder import SCHEMA, RunFolder, Status, environment

SOURCE = {"name": "tiny", "sha256": "a" * 64}
CLIPS = [{"name": "tiny-1", "sha256": "b" * 64}, {"name": "tiny-2", "sha256": "c" * 64}]


def begun(config: AdaptConfig, **changes: Any) -> RunFolder:
    """A run folder at work."""
    folder = RunFolder.check(config)
    folder.begin(config, environment("cpu", SOURCE, CLIPS) | changes)
    return folder


def left(config: AdaptConfig, **changes: Any) -> RunFolder:
    """A run folder that was begun and left."""
    folder = begun(config, **changes)
    folder.close()
    return folder


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_folder_holds_its_config_and_environment(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run")
    left(config)
    folder = RunFolder.load(tmp_path / "run")
    assert folder.config == configure(config, clip_weights=(1.0, 1.0))
    assert folder.environment["source"] == SOURCE and folder.environment["clips"] == CLIPS
    assert (
        folder.environment["torch"] == torch.__version__
        and folder.environment["threads"] == torch.get_num_threads()
    )
    assert folder.read_json("config.json")["schema"] == SCHEMA
    assert not folder.finished


def test_a_moved_run_folder_is_still_the_run(tmp_path: Path) -> None:
    left(tiny.config(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    assert RunFolder.load(tmp_path / "moved").config.run.out == tmp_path / "moved"
    assert RunFolder.check(tiny.config(tmp_path / "moved")).config_file.is_file()


def test_the_same_folder_with_other_options_is_refused_with_the_differences_named(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run")
    left(config)
    with pytest.raises(InputError) as caught:
        RunFolder.check(configure(config, target="sketch", seed=5, train={"batch": 7}))
    for line in ('target: "zombie" -> "sketch"', "run.seed: 0 -> 5", "train.batch: 2 -> 7"):
        assert line in str(caught.value)


def test_weights_written_out_are_the_same_options(tmp_path: Path) -> None:
    left(tiny.config(tmp_path / "run"))
    assert RunFolder.check(tiny.config(tmp_path / "run", clip_weights=(1.0, 1.0))).path == tmp_path / "run"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds other files \(holiday.jpg"):
        RunFolder.check(tiny.config(tmp_path))
    with pytest.raises(InputError, match="is a file"):
        RunFolder.check(tiny.config(tmp_path / "holiday.jpg"))
    with pytest.raises(InputError, match="cannot write"):
        RunFolder.check(tiny.config(tmp_path / "holiday.jpg" / "run"))
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.load(tmp_path)


def test_checking_touches_nothing(tmp_path: Path) -> None:
    RunFolder.check(tiny.config(tmp_path / "deep" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_the_config_was_written_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / ".config.json.77.part").write_text('{"sch')
    folder = left(tiny.config(tmp_path))
    assert folder.environment["source"] == SOURCE
    assert not list(tmp_path.glob(".*.part"))


def test_another_schema_is_refused(tmp_path: Path) -> None:
    folder = left(tiny.config(tmp_path / "run"))
    tree = folder.read_json("config.json")
    folder.config_file.write_text(json.dumps(tree | {"schema": SCHEMA + 1}))
    for attempt in (lambda: RunFolder.load(folder.path), lambda: RunFolder.check(tiny.config(folder.path))):
        with pytest.raises(InputError, match=rf"schema {SCHEMA + 1}, this version .* reads {SCHEMA}"):
            attempt()


def test_a_damaged_config_is_answered_by_one_sentence(tmp_path: Path) -> None:
    folder = left(tiny.config(tmp_path / "run"))
    folder.config_file.write_text('{"schema": 1, "con')
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        RunFolder.load(folder.path)


def test_two_at_once_are_refused_and_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # holds the folder until it is killed
        folder = begun(config)
        os.write(write, bytes(folder.path.is_dir()))
        signal.pause()
    try:
        assert os.read(read, 1)
        with pytest.raises(InputError, match="another process is working in"):
            begun(config)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert left(config).config_file.is_file()


def test_the_log_goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run")
    folder = begun(config)
    folder.open_metrics(1, 0, tensorboard=False)
    steps = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    for stage, step in steps:
        folder.log({"stage": stage, "step": step, "loss": 0.5})
    folder.close()
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"stage": 2, "step": 4, "lo')
    assert [(line["stage"], line["step"]) for line in folder.metrics()] == steps
    again = begun(config)
    again.open_metrics(2, 1, tensorboard=False)
    again.log({"stage": 2, "step": 2, "loss": 0.25})
    again.close()
    assert [(line["stage"], line["step"]) for line in folder.metrics()] == [*steps[:3], (2, 2)]
    assert folder.metrics()[-1]["loss"] == 0.25


def test_scalars_go_to_tensorboard_where_asked_for(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = begun(tiny.config(tmp_path / "run"))
    folder.open_metrics(1, 0, tensorboard=True)
    folder.log({"stage": 1, "step": 1, "loss": 0.5, "layers": ["conv1"]})
    folder.close()
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in events.Scalars("stage1/loss")] == [(1, 0.5)]


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    folder = begun(tiny.config(tmp_path / "run"))
    assert folder.load_checkpoint() is None
    tensors = {
        "a/x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "a/step": torch.tensor(7.0),
    }
    folder.save_checkpoint(tensors, {"stage": 2, "step": 7, "chosen": [3, 1]})
    found = folder.load_checkpoint()
    folder.close()
    assert found is not None and found[1] == {"stage": 2, "step": 7, "chosen": [3, 1]}
    assert all(torch.equal(found[0][key], tensor) for key, tensor in tensors.items())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    folder = begun(tiny.config(tmp_path / "run"))
    folder.save_checkpoint({"x": torch.ones(10)}, {"stage": 1, "step": 1})
    with largest_file(20_000), pytest.raises(RunError, match="disk is full"):
        folder.save_checkpoint({"x": torch.zeros(100_000)}, {"stage": 1, "step": 2})
    found = folder.load_checkpoint()
    folder.close()
    assert found is not None and found[1]["step"] == 1 and torch.equal(found[0]["x"], torch.ones(10))
    assert not [path for path in folder.path.iterdir() if "part" in path.name]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    folder = begun(tiny.config(tmp_path / "run"))
    folder.save_checkpoint({"x": torch.ones(2)}, {"stage": 1, "step": 1})
    with pytest.raises(RunError, match="x is no longer finite at step 2"):
        folder.save_checkpoint({"x": torch.tensor([1.0, float("nan")])}, {"stage": 1, "step": 2})
    found = folder.load_checkpoint()
    folder.close()
    assert found is not None and found[1]["step"] == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = left(tiny.config(tmp_path / "run"))
    folder.checkpoint_file.write_bytes(b"\x10\x00")
    with pytest.raises(InputError, match=r"checkpoint\.safetensors is damaged"):
        folder.load_checkpoint()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"source": SOURCE | {"sha256": "f" * 64}}, "source generator tiny is not the one"),
        ({"clips": [CLIPS[0], CLIPS[1] | {"sha256": "f" * 64}]}, "CLIP tiny-2 is not the one"),
    ],
)
def test_other_weights_under_the_same_name_are_refused(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    left(tiny.config(tmp_path / "run"))
    with pytest.raises(InputError, match=part):
        begun(tiny.config(tmp_path / "run"), **changes)


def test_resuming_elsewhere_warns_that_digits_may_differ(tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "run")
    left(config, threads=64)
    with pytest.warns(UserWarning, match=r"threads 64 -> \d+"):
        left(config)
    left(tiny.config(tmp_path / "same"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left(tiny.config(tmp_path / "same"))


def test_the_source_is_found_again_by_name_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "source.safetensors"
    save_generator(path, tiny.generator())
    config = tiny.config(tmp_path / "run", generator=str(path))
    folder = left(config, source={"name": str(path), "sha256": load_generator(path)[1].sha256})
    assert torch.equal(
        folder.find_source()[0].state()["input.input"], tiny.generator().state()["input.input"]
    )
    path.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="was not found: .* --generator PATH"):
        folder.find_source()
    assert folder.find_source(str(tmp_path / "elsewhere.safetensors"))[1].name.endswith(
        "elsewhere.safetensors"
    )
    save_generator(path, tiny.generator(seed=9))
    with pytest.raises(InputError, match="is not the source generator"):
        folder.find_source()


def test_a_status_is_read_back(tmp_path: Path) -> None:
    folder = left(tiny.config(tmp_path / "run"))
    assert folder.status == Status("running", 0, 0)
    folder.set_status("stopped", 2, 17, "by the keyboard")
    assert folder.status == Status("stopped", 2, 17, "by the keyboard")


def test_a_fingerprint_knows_every_bit_name_and_shape() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    flipped = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0 + 2**-23)}
    others = [
        flipped,
        {"a": torch.zeros(3, 2), "b": state["b"]},
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"]},
    ]
    prints = [fingerprint(each) for each in [state, *others]]
    assert len(set(prints)) == 5
    assert fingerprint(dict(reversed(state.items()))) == prints[0]


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"old")
    with largest_file(1_000), pytest.raises(RunError, match="disk is full"):
        write_bytes(path, b"n" * 50_000)
    with largest_file(1_000), pytest.raises(RunError, match="disk is full"):
        write_tensors(path, {"x": torch.zeros(50_000)}, {})
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["x"]
