"""Engines carry out jobs: one after the other in this process, or side by side in processes of their own.

A job is a plain value that can be pickled, so that any process on any machine can be given it. What it does
is idempotent and resumable: carried out again, it goes on where it stopped, and does nothing where it is
done. An engine for a cluster is one more class with `carry_out`.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

Tell = Callable[[dict[str, Any]], None]
"""Called with small plain events: a dict with a `kind`, and what belongs to it."""

STOPPED = 130
"""Exit code of a process that was asked to stop, as of a shell command that Ctrl-C ended."""

ONE_THREAD: dict[str, str] = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)
"""What keeps the libraries of a process to one thread; read when they are loaded."""


class Job(Protocol):
    """A unit of work: a value that can be pickled."""

    def run(self, tell: Tell) -> str:
        """Does what is left of the work and records what came of it; the reason where it failed, "" where it
        did not. KeyboardInterrupt stops it soon, in a state from which it goes on."""
        ...

    def died(self, reason: str) -> None:
        """Records that the process that carried the job out ended before the job did."""
        ...


J = TypeVar("J", bound=Job)
J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class Watcher(Protocol[J_contra]):
    """Told how an engine gets on, in the thread that called it."""

    def begins(self, job: J_contra) -> None:
        """A job is about to begin."""
        ...

    def ends(self, job: J_contra, seconds: float, error: str) -> None:
        """A job ended after so many seconds; `error` says why it failed, "" where it did not."""
        ...

    def tell(self, event: dict[str, Any], /) -> None:
        """Something happened within a job. Engines of several processes tell nothing of that."""
        ...


class Engine(Protocol):
    """What `compare` hands its runs to: this process, processes side by side, later a cluster."""

    def carry_out(self, jobs: Sequence[J], watcher: Watcher[J]) -> None:
        """Carries out all jobs, begun in their order. One that fails, or whose process dies, stops no other.

        KeyboardInterrupt stops those that run, waits until they have stopped, and is raised again.
        """
        ...


class SerialEngine:
    """Carries out one job after the other in this process, with all its threads, and tells what happens
    within them."""

    def carry_out(self, jobs: Sequence[J], watcher: Watcher[J]) -> None:
        """As `Engine.carry_out`; but a death of this process ends everything."""
        for job in jobs:
            watcher.begins(job)
            began = time.monotonic()
            error = job.run(watcher.tell)
            watcher.ends(job, time.monotonic() - began, error)


class LocalEngine:
    """Carries out jobs side by side on this computer, each in a new process with one thread, so that one that
    dies leaves the others alone and is known by its job."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def carry_out(self, jobs: Sequence[J], watcher: Watcher[J]) -> None:
        """As `Engine.carry_out`. All processes end when this one does, however it ends."""
        waiting = deque(jobs)
        running: dict[Future[str], _Worker[J]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.processes:
                    job = waiting.popleft()
                    watcher.begins(job)
                    worker = _Worker(job)
                    running[worker.future] = worker
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker = running.pop(future)
                    error = worker.outcome()
                    watcher.ends(worker.job, time.monotonic() - worker.began, error)
        finally:
            for worker in running.values():
                worker.lifeline.close()
            for worker in running.values():
                worker.close()


class _Worker(Generic[J]):
    """A process that carries out one job: a pool of its own, because a pool in which one process dies loses
    all of them and does not say which died."""

    def __init__(self, job: J) -> None:
        self.job = job
        self.began = time.monotonic()
        descriptor, name = tempfile.mkstemp(prefix="zeroshift-job-")
        os.close(descriptor)
        self.output = Path(name)
        context = multiprocessing.get_context("spawn")
        # The process stops when the other end of its pipe closes, which a kill of this process does too.
        ending, self.lifeline = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_begin_process, initargs=(ending, self.output)
        )
        before = set(multiprocessing.active_children())
        with _without_main():
            self.future = self.pool.submit(_carry_out, job)
        self.processes = set(multiprocessing.active_children()) - before
        ending.close()

    def outcome(self) -> str:
        """Why the finished job failed; "" where it did not. A death of the process is recorded."""
        error = self.future.exception()
        self.pool.shutdown()  # until then the exit code is not known
        reason = self.future.result() if error is None else self._cause_of_death(error)
        self.close()
        if error is not None:
            self.job.died(reason)
        return reason

    def _cause_of_death(self, error: BaseException) -> str:
        """Why the process ended before its job did: by an exception, a signal, or of itself."""
        if not isinstance(error, BrokenProcessPool):
            return f"its process ended: {type(error).__name__}: {error}"
        code = next((process.exitcode for process in self.processes), None) or 0
        if code < 0:
            return f"its process was killed (signal {-code}); memory may have run out"
        lines = self.output.read_text("utf-8", errors="replace").strip().splitlines()
        return f"its process ended: {lines[-1] if lines else f'exit code {code}'}"

    def close(self) -> None:
        """Waits for the end of the process, which its job or its lifeline brings, and removes what it
        wrote."""
        self.pool.shutdown()
        self.lifeline.close()
        self.output.unlink(missing_ok=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keeps a new process from importing the caller's script, of which it needs nothing: a script without
    `if __name__ == "__main__"` would carry out all its jobs again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# In the new process.

_stopping = threading.Event()


def _begin_process(ending: Connection, output: Path) -> None:
    """Prepares a new process, before it loads any library that has threads."""
    if sys.platform != "win32":
        os.setsid()  # Ctrl-C at a terminal then reaches only the process that waits for this one
    os.environ.update(ONE_THREAD)
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_at_end, args=(ending, output), daemon=True).start()


def _stop_at_end(ending: Connection, output: Path) -> None:
    """Stops this process as by Ctrl-C when the other end of the pipe closes."""
    with contextlib.suppress(EOFError, OSError):
        ending.recv()
    output.unlink(missing_ok=True)
    _stopping.set()
    main = threading.main_thread().ident
    if sys.platform == "win32" or main is None:
        _thread.interrupt_main()
    else:
        signal.pthread_kill(main, signal.SIGINT)  # which wakes it up, too


def _carry_out(job: Job) -> str:
    try:
        return job.run(lambda event: None)
    finally:
        if _stopping.is_set():
            os._exit(STOPPED)  # a process of a pool would wait for its next job, even when its parent is gone
