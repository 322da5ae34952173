"""Engines: jobs are carried out, a death is blamed on the job that died, and nothing outlives its caller."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zeroshift.comparison.engines import Engine, LocalEngine, SerialEngine, Tell

PATIENCE = 60
"""Seconds after which something that should have happened will not happen."""


@dataclass(frozen=True)
class Chore:
    """A job that does one small thing and leaves files that tell of it."""

    folder: Path
    name: str
    act: str = "work"

    def run(self, tell: Tell) -> str:
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "exit":
            sys.exit("the disk is gone")
        if self.act == "raise":
            raise ValueError("seven is no prime")
        if self.act == "crash":
            print("out of paper", flush=True)
            os._exit(5)
        if self.act == "wait":
            self._wait()
        tell({"kind": "worked"})
        self.note("done", f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
        return "it never works" if self.act == "fail" else ""

    def _wait(self) -> None:
        self.note("waits", str(os.getpid()))
        try:
            time.sleep(10 * PATIENCE)
        except KeyboardInterrupt:
            self.note("stopped", "")
            raise

    def died(self, reason: str) -> None:
        self.note("died", reason)

    def note(self, what: str, text: str) -> None:
        (self.folder / f"{self.name}.part").write_text(text)
        (self.folder / f"{self.name}.part").rename(self.folder / f"{self.name}.{what}")

    def noted(self, what: str) -> str | None:
        path = self.folder / f"{self.name}.{what}"
        return path.read_text() if path.is_file() else None


@dataclass
class Diary:
    """A watcher that remembers."""

    begun: list[str] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def begins(self, job: Chore) -> None:
        self.begun.append(job.name)

    def ends(self, job: Chore, seconds: float, error: str) -> None:
        assert 0 < seconds < 10 * PATIENCE
        self.ended[job.name] = error

    def tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def carried_out(engine: Engine, folder: Path, *acts: str) -> tuple[list[Chore], Diary]:
    """The jobs of these acts, named by letters, after an engine carried them out, and what was told."""
    chores = [Chore(folder, name, act) for name, act in zip("abcdef", acts, strict=False)]
    diary = Diary()
    engine.carry_out(chores, diary)
    return chores, diary


@pytest.mark.parametrize("engine", [SerialEngine(), LocalEngine(2)], ids=["serial", "local"])
def test_every_job_is_carried_out_in_order_and_told_with_its_reason_where_it_failed(
    engine: Engine, tmp_path: Path
) -> None:
    chores, diary = carried_out(engine, tmp_path, "work", "fail", "work")
    assert diary.begun == ["a", "b", "c"]
    assert diary.ended == {"a": "", "b": "it never works", "c": ""}
    assert all(chore.noted("done") for chore in chores)


def test_no_jobs_are_no_work(tmp_path: Path) -> None:
    for engine in (SerialEngine(), LocalEngine(3)):
        assert carried_out(engine, tmp_path)[1] == Diary()


def test_only_this_process_tells_what_happens_within_a_job(tmp_path: Path) -> None:
    assert carried_out(SerialEngine(), tmp_path, "work")[1].events == [{"kind": "worked"}]
    assert carried_out(LocalEngine(1), tmp_path, "work")[1].events == []


def test_side_by_side_every_job_has_a_process_of_its_own_with_one_thread(tmp_path: Path) -> None:
    chores, _ = carried_out(LocalEngine(2), tmp_path, "work", "work", "work")
    told = [(chore.noted("done") or "").split() for chore in chores]
    assert len({process for process, _ in told} | {str(os.getpid())}) == 4
    assert [threads for _, threads in told] == ["1", "1", "1"]


def test_a_job_whose_process_dies_is_blamed_and_the_others_go_on(tmp_path: Path) -> None:
    acts = ("work", "kill", "crash", "exit", "raise", "work")
    chores, diary = carried_out(LocalEngine(3), tmp_path, *acts)
    reasons = {chore.name: chore.noted("died") for chore in chores}
    assert reasons["a"] is None and reasons["f"] is None
    assert {name: reason or "" for name, reason in reasons.items()} == diary.ended
    assert reasons["b"] == "its process was killed (signal 9); memory may have run out"
    assert reasons["c"] == "its process ended: out of paper"
    assert "the disk is gone" in (reasons["d"] or "") and "seven is no prime" in (reasons["e"] or "")


SCRIPT = """
import signal
from pathlib import Path
from test_engines import Chore, Diary
from zeroshift.comparison.engines import LocalEngine

signal.signal(signal.SIGINT, signal.default_int_handler)
Path("begun").touch(exist_ok=False)
jobs = [Chore(Path.cwd(), name, "wait") for name in "abc"]
try:
    LocalEngine(2).carry_out(jobs, Diary())
except KeyboardInterrupt:
    Path("interrupted").touch()
"""
"""Without `if __name__ == "__main__"`, as people write scripts: its processes must not begin it again."""


def begun_script(folder: Path) -> tuple[subprocess.Popen[bytes], list[Chore]]:
    """A process with two jobs that wait, in processes of their own."""
    (folder / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=folder, env=os.environ | {"PYTHONPATH": paths}
    )
    chores = [Chore(folder, name, "wait") for name in "abc"]
    assert happens(lambda: all(chore.noted("waits") for chore in chores[:2])), process.poll()
    return process, chores


def happens(condition: Callable[[], bool]) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def lives(process: str | None) -> bool:
    """Whether a process is there."""
    try:
        os.kill(int(process or ""), 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_stops_the_jobs_that_run_and_begins_no_other(tmp_path: Path) -> None:
    process, chores = begun_script(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0 and (tmp_path / "interrupted").is_file()
    assert [chore.noted("stopped") for chore in chores] == ["", "", None]
    assert [chore.noted("waits") is None for chore in chores] == [False, False, True]
    assert [chore.noted("died") for chore in chores] == [None, None, None]
    assert happens(lambda: not any(lives(chore.noted("waits")) for chore in chores[:2]))


def test_jobs_stop_when_their_caller_is_killed(tmp_path: Path) -> None:
    process, chores = begun_script(tmp_path)
    process.kill()
    process.wait(PATIENCE)
    assert happens(lambda: not any(lives(chore.noted("waits")) for chore in chores[:2]))
    assert [chore.noted("stopped") for chore in chores] == ["", "", None]
    assert not (tmp_path / "interrupted").exists()


def test_a_new_process_is_prepared_before_any_library_with_threads_is_loaded() -> None:
    code = (
        "import zeroshift.comparison.engines, sys; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_a_job_is_a_value_that_survives_a_journey() -> None:
    chore = Chore(Path("x"), "a", "fail")
    assert pickle.loads(pickle.dumps(chore)) == chore
