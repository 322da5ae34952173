"""The folder of a run: what was asked, where it ran, how it went, and the weights, safe against a kill at any
moment.

    config.json               resolved config and schema version, written first
    environment.json          versions, platform, threads, hashes of all models that the run began with
    status.json               running | stopped | failed | finished, stage and step
    metrics.jsonl             one line per logged step
    monitor.jsonl             one line per record of the collapse monitor
    checkpoint.safetensors    all models and optimiser states of one step; replaced as a whole
    mapper.safetensors        and other files of the method, written when a stage ends
    best.safetensors          the generator (EMA) of the monitor's best record so far
    generator.safetensors     the adapted generator (EMA), written last
    delta.safetensors         and best-delta.safetensors: where few parameters move, only these
    evaluation.json           what `zeroshift evaluate` measured
    tensorboard/              scalars, where asked for
    lock                      held by the process at work; the system releases it when that process ends

Every file but the appended metrics is written beside its place and moved there, so a reader sees the old or
the new one. The pictures (`samples/`, `before_after.png`) and `report.html` are written by those who draw
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from zeroshift import __version__
from zeroshift.config.schema import AdaptConfig, configure, differences, from_dict, placeless
from zeroshift.errors import InputError, MissingExtra, RunError
from zeroshift.files.checkpoints import DIFFUSION_FORMAT
from zeroshift.files.writing import write_bytes, write_json, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zeroshift.files.checkpoints import AnyGenerator
    from zeroshift.files.registry import SourceInfo

SCHEMA = 1
"""Version of the folder's layout; a folder of another version is refused."""


MODELS = {"source": "source generator", "clips": "CLIP", "discriminator": "discriminator"}
"""Entries of environment.json that are models with their hashes, and what messages call one."""


@dataclass(frozen=True)
class Status:
    """Where a run stands: `state` is running, stopped, failed or finished; `step` counts finished steps of
    `stage`."""

    state: str
    stage: int
    step: int
    message: str = ""


@dataclass
class RunFolder:
    """One run folder, for reading; between `begin` and `close` also for writing, by one process alone."""

    path: Path
    _lock: FileLock | None = field(default=None, repr=False)
    _metrics: IO[str] | None = field(default=None, repr=False)
    _scalars: Any = field(default=None, repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The run at `path`, for reading."""
        folder = cls(Path(path))
        if not folder.config_file.is_file():
            raise InputError(
                f"{path} is not a run folder: it has no config.json. `zeroshift adapt --out {path}` makes "
                "one."
            )
        _ = folder.config
        return folder

    @classmethod
    def check(cls, config: AdaptConfig) -> Self:
        """The folder that a config asks for, not yet touched; InputError where the run could not begin or
        resume there."""
        if config.run.tensorboard:
            _summary_writer()
        folder = cls(config.folder)
        if folder.path.exists() and not folder.path.is_dir():
            raise InputError(f"the run folder {folder.path} is a file; choose another --out.")
        parent = next(each for each in (folder.path, *folder.path.absolute().parents) if each.exists())
        if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
            raise InputError(
                f"cannot write to the run folder {folder.path}: no permission in {parent}; choose another "
                "--out."
            )
        if not folder.config_file.is_file():
            # A kill before config.json was in place leaves these.
            begun = {"lock", "environment.json", *(each.name for each in folder.path.glob(".*.part"))}
            if foreign := sorted(each.name for each in folder.path.glob("*") if each.name not in begun):
                raise InputError(
                    f"{folder.path} holds other files ({foreign[0]}, ...) and no run; choose an empty --out."
                )
            return folder
        if changed := _changed(folder.read_json("config.json")["config"], config):
            raise InputError(
                f"{folder.path} holds a run with other options:\n"
                + "\n".join(f"- {line}" for line in changed)
                + "\nRepeat its own options to resume it, or choose another --out."
            )
        return folder

    # Reading.

    @property
    def config_file(self) -> Path:
        """config.json; a folder with it is a run."""
        return self.path / "config.json"

    @property
    def generator_file(self) -> Path:
        """The adapted generator (EMA weights)."""
        return self.path / "generator.safetensors"

    @property
    def diffuses(self) -> bool:
        """Whether the adapted generator is there, and a diffusion model."""
        from safetensors import safe_open

        if not self.generator_file.is_file():
            return False
        with safe_open(self.generator_file, "pt") as file:  # pyright: ignore[reportArgumentType]
            return (file.metadata() or {}).get("format") == DIFFUSION_FORMAT

    @property
    def best_file(self) -> Path:
        """The generator (EMA weights) of the monitor's best record."""
        return self.path / "best.safetensors"

    def delta_file(self, of: Path | None = None) -> Path:
        """The small parameters of the adapted generator, or of the one of the best record where that is the
        file that is given; only runs that move small parameters have them."""
        return self.path / ("best-delta.safetensors" if of == self.best_file else "delta.safetensors")

    @property
    def checkpoint_file(self) -> Path:
        """State from which the run resumes."""
        return self.path / "checkpoint.safetensors"

    @property
    def config(self) -> AdaptConfig:
        """The resolved config; InputError where the folder is of another schema."""
        return configure(from_dict(self.read_json("config.json")["config"]), out=self.path)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, platform, threads and hashes."""
        return self.read_json("environment.json")

    @property
    def status(self) -> Status:
        """Where the run stands; a run that was killed still says "running"."""
        return (
            Status(**self.read_json("status.json"))
            if (self.path / "status.json").is_file()
            else Status("running", 0, 0)
        )

    @property
    def finished(self) -> bool:
        """Whether the run came to its end and its generator is there."""
        return (
            self.config_file.is_file() and self.status.state == "finished" and self.generator_file.is_file()
        )

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The record of `zeroshift evaluate`; None before the first."""
        return self.read_json("evaluation.json") if (self.path / "evaluation.json").is_file() else None

    @property
    def agreement(self) -> list[dict[str, Any]]:
        """How well text directions agree with the true ones, a row per CLIP; empty where the truth is not
        known."""
        return self.read_json("directions.json") if (self.path / "directions.json").is_file() else []

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first. A half-written last line, left by a kill, is passed over."""
        return self._lines("metrics.jsonl")

    def monitor_records(self) -> list[dict[str, Any]]:
        """What the collapse monitor saw, oldest first; empty where it was off."""
        return self._lines("monitor.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        return (
            [line for line in map(_parse, path.read_text("utf-8").splitlines()) if line]
            if path.is_file()
            else []
        )

    def read_json(self, name: str) -> Any:
        """What a json file of the folder holds; InputError where it is damaged or of another schema."""
        try:
            tree = json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read {self.path / name}: {error}. Move the folder away and run again."
            ) from error
        if name == "config.json" and tree.get("schema") != SCHEMA:
            raise InputError(
                f"{self.path} was written with schema {tree.get('schema')}, this version ({__version__}) "
                f"reads {SCHEMA}; "
                "use the version of the package named in its environment.json, or another --out."
            )
        return tree

    def find_source(
        self, generator: str | None = None, device: str | torch.device = "cpu"
    ) -> tuple[AnyGenerator, SourceInfo]:
        """The source generator of the run, found by its recorded name or by `generator` and verified by its
        recorded hash."""
        from zeroshift.files.registry import load_generator

        spec = generator or self.config.generator
        expected = self.environment["source"]["sha256"]
        try:
            source, info = load_generator(spec, device)
        except InputError as error:
            raise InputError(
                f"the source generator of {self.path} was not found: {error} Give it with --generator PATH."
            ) from error
        if info.sha256 != expected:
            raise InputError(
                f"{spec} is not the source generator of {self.path}: its sha256 is {info.sha256[:12]}..., "
                "the run began from "
                f"{expected[:12]}...; give the right file with --generator PATH."
            )
        return source, info

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the last complete checkpoint; None before the first."""
        if not self.checkpoint_file.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.checkpoint_file, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(
                    file.metadata()["facts"]
                )
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise InputError(
                f"{self.checkpoint_file} is damaged ({error}); delete it to begin the run anew."
            ) from error

    # Writing.

    def begin(self, config: AdaptConfig, environment: Mapping[str, Any]) -> None:
        """Makes the folder, or goes on with it, and holds it against other processes until `close`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / "lock")
            type(self).check(config)
            for part in self.path.glob(".*.part"):
                part.unlink()
            if self.config_file.is_file():
                self._require_same(environment)
            else:
                write_json(self.path / "environment.json", environment)
                resolved = placeless(config) | {"clip_weights": list(config.weights)}
                write_json(self.config_file, {"schema": SCHEMA, "version": __version__, "config": resolved})
        except OSError as error:
            self.close()
            raise InputError(
                f"cannot write to the run folder {self.path}: {error.strerror}; choose another --out."
            ) from error
        except BaseException:
            self.close()
            raise

    def other_shots(self, name: str) -> InputError:
        """What is told where a picture of the target is not as it was when the run began."""
        return InputError(
            f"the pictures of the target are not those that {self.path} began with ({name} differs); put "
            "them back, or choose another --out."
        )

    def open_metrics(self, stage: int, step: int, tensorboard: bool) -> None:
        """Opens the logs behind the lines of `step` of `stage`; lines of later steps, which will be done
        again, are dropped."""
        for name in ("metrics.jsonl", "monitor.jsonl"):
            kept = [line for line in self._lines(name) if (line["stage"], line["step"]) <= (stage, step)]
            if name == "metrics.jsonl" or (self.path / name).is_file():
                write_bytes(self.path / name, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")
        if tensorboard:
            self._scalars = _summary_writer()(str(self.path / "tensorboard"))

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends one step to metrics.jsonl and, where asked for, its numbers to TensorBoard."""
        assert self._metrics is not None
        with self._told("metrics.jsonl"):
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        self._show(f"stage{line['stage']}", line)

    def log_monitor(self, line: Mapping[str, Any]) -> None:
        """Appends one record of the monitor to monitor.jsonl and, where asked for, its numbers to
        TensorBoard."""
        with self._told("monitor.jsonl"), open(self.path / "monitor.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._show("monitor", line)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}/{name}: {error.strerror}. What was saved before is intact."
            ) from error

    def _show(self, group: str, line: Mapping[str, Any]) -> None:
        if self._scalars is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._scalars.add_scalar(f"{group}/{name}", value, line["step"])

    def save_checkpoint(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replaces the checkpoint as a whole. RunError, and the old one stays, where the disk is full or a
        weight not finite."""
        bad = [
            key
            for key, tensor in tensors.items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        ]
        if bad:
            raise RunError(
                f"{bad[0]} is no longer finite at step {facts['step']}; the last good checkpoint is kept. "
                "Lower the rate."
            )
        write_tensors(self.checkpoint_file, tensors, {"facts": json.dumps(facts), "version": __version__})

    def set_status(self, state: str, stage: int, step: int, message: str = "") -> None:
        """Records where the run stands."""
        write_json(
            self.path / "status.json", {"state": state, "stage": stage, "step": step, "message": message}
        )

    def close(self) -> None:
        """Closes the logs and gives the folder free."""
        for each in (self._metrics, self._scalars):
            if each is not None:
                each.close()
        if self._lock is not None:
            self._lock.release()
        self._metrics = None
        self._scalars = None
        self._lock = None

    def _require_same(self, environment: Mapping[str, Any]) -> None:
        """Refuses other weights than the run began with; warns where only the last digits may differ."""
        before = self.environment
        for items, kind in MODELS.items():
            for old, new in zip(_models(before, items), _models(environment, items), strict=True):
                if old["sha256"] != new["sha256"]:
                    raise InputError(
                        f"the {kind} {new['name']} is not the one that {self.path} began with (other hash); "
                        "choose another --out."
                    )
        if before.get("pictures") != environment.get("pictures"):
            raise InputError(
                f"the pictures to learn from are not those that {self.path} began with; put them back, or "
                "choose another --out."
            )
        old_shots, new_shots = (
            {each["name"]: each["sha256"] for each in made.get("shots", [])} for made in (before, environment)
        )
        if old_shots != new_shots:
            raise self.other_shots(min(name for name, _ in old_shots.items() ^ new_shots.items()))
        names = [name for name in ("torch", "device", "threads") if before.get(name) != environment.get(name)]
        if names:
            what = ", ".join(f"{name} {before.get(name)} -> {environment.get(name)}" for name in names)
            warnings.warn(
                f"resuming with {what}: the result may differ from an uninterrupted run in the last digits",
                stacklevel=2,
            )


def environment(device: str, source: Mapping[str, str], clips: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What a run depends on besides its config. `source` and each of `clips` have `name` and `sha256`;
    `source` may have the `world` that it belongs to."""
    from importlib.metadata import version

    import torch

    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")}
    return {
        "zeroshift": __version__,
        "python": platform.python_version(),
        **packages,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "source": dict(source),
        "clips": [dict(clip) for clip in clips],
    }


def _models(environment: Mapping[str, Any], items: str) -> list[Mapping[str, str]]:
    """Names and hashes of one kind of model."""
    found = environment.get(items, [])
    return found if isinstance(found, list) else [found]


def _summary_writer() -> Any:
    """TensorBoard's writer of scalars; MissingExtra where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            f"--tensorboard needs the extra `tensorboard`, which is not installed ({error}): "
            'pip install "zeroshift[tensorboard]", or leave it out; metrics.jsonl holds the same numbers.'
        ) from error
    return SummaryWriter


def _changed(old: Mapping[str, Any], config: AdaptConfig) -> list[str]:
    """Options in which a config differs from the recorded one, wherever the folder now lies; an option that
    is newer than the record had its default."""
    before, after = (
        placeless(each) | {"clip_weights": list(each.weights)} for each in (from_dict(old), config)
    )
    return differences(before, after)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _locked(path: Path) -> FileLock:
    """The lock of a run folder, held by this process alone. The system frees it when the process ends,
    however it ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process is working in {path.parent}; wait for it, or choose another --out."
        ) from None
    return lock
