"""The runs of a comparison as jobs: what is recorded of them, their worlds, their engines, their cost."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tinycompare import METHODS, compared, planned
from torch import Tensor

import tiny
import zeroshift
from zeroshift.app.display import CompareProgress
from zeroshift.comparison.engines import J, Watcher
from zeroshift.comparison.jobs import Eta, RunJob
from zeroshift.config.measuring import EvaluateConfig
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.images import read_picture
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import register, world_named
from zeroshift.worlds.world import World


class Tints(World):
    """A second world: plain pictures, as bright as their latent, in two colours."""

    name = "tints-of-jobs"
    latent_dim = tiny.generator().latent_dim
    domains = ("grey", "zombie", "sketch")
    held_out = ("sketch",)

    def truth(self, z: Tensor, label: str, size: int) -> Tensor:
        brightness = z[:, :1].tanh()[..., None, None].expand(-1, 3, size, size).clone()
        brightness[:, 0 if label == "zombie" else 1] = 1.0
        return brightness


register(Tints())


def test_a_run_is_a_value_that_any_process_can_be_given(home: Path) -> None:
    jobs = planned(home, home / "compare")
    assert pickle.loads(pickle.dumps(jobs)) == jobs
    assert all(job.is_done for job in jobs)


def test_what_was_measured_in_another_way_or_lost_its_run_is_not_done(home: Path, copied: Path) -> None:
    job, other, *_ = planned(home, copied)
    again = RunJob(job.label, job.config, EvaluateConfig(seeds="0-8"), job.record_file)
    shutil.rmtree(other.folder.path)
    assert job.is_done and not again.is_done and not other.is_done


def test_a_damaged_record_is_as_good_as_none(home: Path, copied: Path) -> None:
    job = planned(home, copied)[0]
    for text in ("", "{", '{"schema": 0}'):
        job.record_file.write_text(text)
        assert job.record is None and not job.is_done


def test_a_death_is_recorded_with_what_is_known_of_the_run(home: Path, copied: Path) -> None:
    job = planned(home, copied)[0]
    before = job.record
    job.died("its process was killed (signal 9)")
    after = job.record
    assert before is not None and after is not None
    assert (after["state"], after["error"]) == ("failed", "its process was killed (signal 9)")
    kept = ("label", "method", "target", "group", "seed", "minutes", "steps", "threads", "device")
    assert [after[name] for name in kept] == [before[name] for name in kept]


def test_a_run_that_never_began_is_recorded_too(home: Path, tmp_path: Path) -> None:
    job = planned(home, tmp_path / "new")[0]
    job.died("no process")
    assert job.record is not None
    assert (job.record["group"], job.record["minutes"], job.record["steps"]) == ("other", 0, [0, 0])


# Worlds.


def test_the_world_of_a_run_is_told_by_its_generator_before_it_begins(home: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(home / "guide", tmp_path / "models" / "guide")
    for metadata, name in (({"world": Tints.name}, Tints.name), ({}, None), ({"world": "unheard of"}, None)):
        save_generator(tmp_path / "models" / "generator.safetensors", tiny.generator(), metadata)
        job = planned(tmp_path / "models", tmp_path / "out")[0]
        assert job.world() is world_named(name)
    (tmp_path / "models" / "generator.safetensors").unlink()
    assert planned(tmp_path / "models", tmp_path / "out")[0].world() is None


def test_a_second_world_has_its_groups_and_its_truth_on_the_page(home: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(home, models, ignore=shutil.ignore_patterns("compare"))
    save_generator(models / "generator.safetensors", tiny.generator(), {"world": Tints.name})
    out = tmp_path / "out"
    done = compared(models, out, methods=("nada",), seeds=(0,))
    assert done.failed == {}
    groups = dict(zip(done.table["target"], done.table["group"], strict=True))
    assert groups == {"zombie": "tuning", "sketch": "held-out"}
    page = (out / "compare.html").read_text("utf-8")
    assert page.count("<span>truth</span>") == 2 and "truncation 1" in page
    assert "Tuning domains" in page and "Held-out domains" in page
    shown = read_picture(out / "pictures" / "truth--zombie.png")
    true = Tints().truth_of_seeds(range(3), "zombie", tiny.generator().image_size)
    assert true is not None
    side = shown.shape[-2] // 2
    for number, picture in enumerate(true):
        column = (2 * number + 1) * shown.shape[-1] // 6
        assert (shown[..., :, side, column] - picture[:, 0, 0]).abs().max() < 0.01


def test_without_a_world_no_truth_is_shown(home: Path) -> None:
    page = (home / "compare" / "compare.html").read_text("utf-8")
    assert "<span>source</span>" in page and "<span>truth</span>" not in page


# Engines.


class Backwards:
    """An engine that begins with the last job."""

    def carry_out(self, jobs: Any, watcher: Watcher[J]) -> None:
        for job in reversed(jobs):
            watcher.begins(job)
            watcher.ends(job, 1.0, job.run(lambda event: None))


def test_a_comparison_is_carried_out_by_the_engine_that_it_is_given(home: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    few: dict[str, Any] = {"targets": ("zombie",), "seeds": (0,), "progress": events.append}
    done = compared(home, tmp_path / "out", engine=Backwards(), **few)
    assert [event["label"] for event in events if event["kind"] == "run"] == ["few", "nada"]
    assert done.failed == {} and done.missing == 0 and len(done.table) == 2


def command(home: Path, out: Path, *more: str) -> list[str]:
    """The command line of a comparison of two runs side by side that takes minutes."""
    words = ["-m", "zeroshift", "compare", "--methods", *METHODS, "--targets", "zombie", "--seeds", "0"]
    models = {"generator": "generator.safetensors", "clip": "guide", "judge": "judge"}
    for name, file in models.items():
        words += [f"--{name}", str(home / file)]
    words += ["--metrics", "clip_score", "--eval-seeds", "0-7", "--jobs", "2", "--device", "cpu"]
    return [sys.executable, *words, "--steps", "200000", "--out", str(out), *more]


def test_ctrl_c_stops_runs_side_by_side_and_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A shell starts what runs in its background deaf to Ctrl-C; a person's command hears it.
    hearing = (
        "import os, sys, signal as s; s.signal(s.SIGINT, s.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hearing, *command(home, out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs = [out / "runs" / f"{label}--zombie--seed0" for label in ("nada", "few")]
    end = time.monotonic() + 120
    while time.monotonic() < end and not all((run / "metrics.jsonl").is_file() for run in runs):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped with 2 of 2 runs to do" in said and "The same command goes on" in said
    assert "0 of 2" in (out / "compare.html").read_text("utf-8")
    assert all(RunFolder(run).status.state != "finished" for run in runs)
    locked = [RunFolder(run) for run in runs]
    for folder in locked:  # nobody holds them any more
        folder.begin(folder.config, folder.environment)
        folder.close()


# Cost.


def test_the_peak_of_memory_is_that_of_the_run_or_a_bound() -> None:
    code = """
from zeroshift.comparison.jobs import PeakMemory
import json
own = PeakMemory()
block = bytearray(b"1") * (own.before + (200 << 20))
told = [own.before >> 20, own.read()]
del block
print(json.dumps([*told, PeakMemory().read()]))
"""
    before, own, later = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert own["memory"] >= before + 200 and own["memory_is_upper_bound"] is False
    assert later == {"memory": own["memory"], "memory_is_upper_bound": True}


def test_the_package_asks_no_file_of_one_operating_system() -> None:
    sources = Path(zeroshift.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "/proc" in path.read_text("utf-8")] == []


def test_the_time_left_is_that_of_the_usual_run_of_every_method(home: Path, tmp_path: Path) -> None:
    jobs = planned(home, tmp_path / "new")
    assert [job.label for job in jobs[:3]] == ["nada", "few", "nada"]
    events: list[dict[str, Any]] = []
    eta = Eta(jobs, jobs, 2, events.append)
    eta.begins(jobs[0])
    eta.begins(jobs[1])
    eta.ends(jobs[0], 10.0, "")
    eta.begins(jobs[2])
    eta.ends(jobs[1], 40.0, "")
    eta.ends(jobs[2], 99.0, "it fell over")
    nada, few = 2 * 10.0, 3 * 40.0
    assert [event["left"] for event in events] == [
        *(None, None),
        (3 * 10.0 + 4 * 10.0) / 2,
        (3 * 10.0 + 4 * 10.0) / 2,
        (3 * 10.0 + few) / 2,
        (nada + few) / 2,
    ]
    assert [event["kind"] for event in events] == ["run", "run", "done", "run", "done", "failed"]
    assert (events[3]["number"], events[3]["runs"], len(eta.unfinished)) == (3, 8, 5)


def test_progress_is_told_in_lines(home: Path, tmp_path: Path) -> None:
    jobs = planned(home, tmp_path / "new")
    out = io.StringIO()
    with CompareProgress(out) as progress:
        progress({"kind": "compare", "runs": 8, "finished": 0, "out": "runs/x"})
        eta = Eta(jobs, jobs, 1, progress)
        eta.begins(jobs[0])
        progress({"kind": "step", "stage": 2, "step": 1, "steps": 3})
        progress({"kind": "evaluate"})
        eta.ends(jobs[0], 10.0, "")
        eta.begins(jobs[1])
        eta.ends(jobs[1], 5.0, "it fell over")
    assert out.getvalue().splitlines() == [
        "8 runs, 0 of them finished; everything is in runs/x",
        "run 1 of 8: nada, zombie, seed 0",
        "  nada, zombie, seed 0: done in 10 s, about 1 min 10 s left",
        "run 2 of 8: few, zombie, seed 0, about 1 min 10 s left",
        "  few, zombie, seed 0: failed. it fell over",
    ]


def test_no_run_is_carried_out_for_a_page_alone(home: Path, tmp_path: Path) -> None:
    done = compared(home, tmp_path / "out", page_only=True)
    assert (done.missing, len(done.table), done.failed) == (8, 0, {})
    assert "0 of 8" in (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_generator_that_cannot_be_read_is_left_off_the_pictures(home: Path, copied: Path) -> None:
    (copied / "runs" / "nada--zombie--seed0" / "generator.safetensors").write_bytes(b"no weights")
    shutil.rmtree(copied / "pictures")
    compared(home, copied, page_only=True)
    page = (copied / "compare.html").read_text("utf-8")
    zombie, sketch = page[page.index("<h3>zombie</h3>") :].split("<h3>sketch</h3>")
    assert (zombie.count("<img"), sketch.count("<img")) == (2, 3)
