"""The command line: one thin function per verb, options read off the configs. Heavy libraries load when the
verb runs."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from zeroshift import __version__
from zeroshift.app.commands import (
    Adapt,
    Compare,
    Convert,
    Doctor,
    Evaluate,
    Inspect,
    Portraits,
    Push,
    Sample,
    Translate,
)
from zeroshift.app.display import AdaptProgress, CompareProgress, TaskProgress, plan_text, plan_tree
from zeroshift.app.parsing import parse as parse
from zeroshift.errors import InputError, RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command line: 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"zeroshift {__version__}")
        return 0
    as_json = "--json" in words
    said = io.StringIO()
    try:
        with redirect_stderr(said) if as_json else nullcontext():
            command = parse(words)
        with plain_warnings():
            return VERBS[type(command)](command)
    except SystemExit as stop:
        if stop.code and as_json:
            print(said.getvalue(), end="", file=sys.stderr)
            print(json.dumps({"error": unboxed(said.getvalue()), "exit_code": 2}))
        return 2 if stop.code else 0
    except InputError as error:
        return _fail(error, 2, as_json)
    except RunError as error:
        return _fail(error, 1, as_json)
    except KeyboardInterrupt as stop:
        return _fail(f"{str(stop) or 'stopped.'}\n  zeroshift {shlex.join(words)}", 130, as_json)


def adapt(command: Adapt) -> int:
    """Adapts, or says what it would do."""
    from zeroshift.measure.report import duration
    from zeroshift.methods.adapt import adapt as run_adapt
    from zeroshift.methods.adapt import plan

    if command.dry_run:
        planned = plan(command.config)
        print(json.dumps(plan_tree(planned)) if command.json else plan_text(planned))
        return 0
    began = time.monotonic()
    with AdaptProgress(sys.stderr if command.json else sys.stdout) as progress:
        run = run_adapt(command.config, progress=progress)
    names = {
        "picture": "before_after.png",
        "weights": run.folder.generator_file.name,
        "report": "report.html",
    }
    files = {what: str(run.folder.path / name) for what, name in names.items()}
    if command.json:
        print(
            json.dumps(
                {"run": str(run.folder.path), "finished": run.finished, "steps_done": run.steps_done, **files}
            )
        )
        return 0
    took = f"Done in {duration(time.monotonic() - began)}."
    print(took if run.steps_done else f"The run in {run.folder.path} is finished; there was nothing to do.")
    print("\n".join(f"  {name:8} {path}" for name, path in files.items()))
    return 0


def sample(command: Sample) -> int:
    """Draws pictures and writes them."""
    from zeroshift.files.images import save_pictures
    from zeroshift.pictures.runs import is_run, load
    from zeroshift.pictures.sample import metadata_of, parse_seeds
    from zeroshift.pictures.sample import sample as draw

    seeds = parse_seeds(command.seeds)
    how: dict[str, Any] = {"truncation": command.truncation, "strength": command.strength}
    how |= {"steps": command.steps, "eta": command.eta}
    run = load(command.run, generator=command.generator, device=command.device)
    with TaskProgress(sys.stderr if command.json else sys.stdout) as progress:
        pictures = draw(run, seeds, **how, progress=progress)
    folder = command.out or (Path(command.run) if is_run(command.run) else Path()) / "pictures"
    try:
        paths = save_pictures(pictures, seeds, folder, metadata_of(command.run, run, **how))
    except OSError as error:
        raise InputError(
            f"cannot write pictures to {folder}: {error.strerror}; choose another --out."
        ) from error
    if command.json:
        print(
            json.dumps({"grid": str(paths[0]), "pictures": [str(path) for path in paths[1:]], "seeds": seeds})
        )
    else:
        print(f"{len(seeds)} picture{'s' * (len(seeds) != 1)} in {folder}\n  grid     {paths[0]}")
    return 0


def translate(command: Translate) -> int:
    """Changes pictures and writes them."""
    from zeroshift.pictures.runs import load
    from zeroshift.pictures.translate import parse_schedule, save_translated, translate_mixed
    from zeroshift.pictures.translate import translate as run_translate

    if command.mix and command.strength != 1:
        raise InputError(
            "strength is of one run; with --mix the ratios of --schedule say how much of each run is taken."
        )
    if command.schedule and not command.mix:
        raise InputError("--schedule mixes several runs; give the others with --mix.")
    schedule = parse_schedule(command.schedule, 1 + len(command.mix)) if command.mix else None
    runs = [load(Path(folder), device=command.device) for folder in (command.run, *command.mix)]
    options = {"t0": command.t0, "steps": command.steps, "unseen": command.unseen, "seed": command.seed}
    with TaskProgress(sys.stderr if command.json else sys.stdout) as progress:
        if schedule:
            made = translate_mixed(runs, command.pictures, schedule, progress=progress, **options)
        else:
            made = run_translate(
                runs[0], command.pictures, strength=command.strength, progress=progress, **options
            )
    facts = {**options, "schedule": " ".join(command.schedule) or None, "strength": command.strength}
    paths = save_translated(
        runs, command.pictures, made, command.out or Path(command.run) / "translated", facts
    )
    if command.json:
        print(json.dumps({"sheet": str(paths[0]), "pictures": [str(path) for path in paths[1:]]}))
    else:
        count = len(paths) - 1
        print(f"{count} picture{'s' * (count != 1)} in {paths[0].parent}\n  before and after  {paths[0]}")
    return 0


def convert(command: Convert) -> int:
    """Writes a generator in another form and says what was written."""
    from zeroshift.files.export import NetworkOptions
    from zeroshift.files.export import convert as run_convert
    from zeroshift.files.hub import megabytes

    options = NetworkOptions(
        part=command.part, batch=command.batch, noise=command.noise, modulation=command.modulation
    )
    done = run_convert(
        command.generator,
        command.out,
        command.to,
        options=None if options == NetworkOptions() else options,
        label=command.label,
        check=command.check,
        overwrite=command.overwrite,
    )
    if command.json:
        print(
            json.dumps(
                {"path": str(done.path), "to": done.to, "bytes": done.size, "difference": done.difference}
            )
        )
        return 0
    print(f"{done.path}  {done.to}, {megabytes(done.size)}")
    if done.difference is not None:
        print(f"  compared with ours: the largest difference of two pixels is {done.difference:.1e}")
    elif command.to == "onnx" and command.check:
        print("  not compared with ours: that needs onnxruntime (pip install 'zeroshift[onnx]')")
    return 0


def push(command: Push) -> int:
    """Uploads the generator of a run and says where it is."""
    from zeroshift.app.publish import CARD, push_to_hub
    from zeroshift.files.hub import megabytes

    chosen = {"private": command.private, "rosinality": command.rosinality, "overwrite": command.overwrite}
    done = push_to_hub(command.run, command.repository, dry_run=command.dry_run, **chosen)
    if command.json:
        place = None if done.folder is None else str(done.folder)
        print(
            json.dumps({"repository": done.repository, "url": done.url, "folder": place, "files": done.files})
        )
        return 0
    print(
        done.url or f"Would upload to {done.repository}. Nothing was uploaded; the files are in {done.folder}"
    )
    print("\n".join(f"  {name:22} {megabytes(size):>9}" for name, size in done.files.items()))
    if done.licence_open:
        print(f"Fill in the licence of the source weights in {CARD} before others use them.")
    return 0


def evaluate(command: Evaluate) -> int:
    """Measures and prints the table."""
    from zeroshift.files.writing import write_bytes
    from zeroshift.measure.evaluate import evaluate as run_evaluate

    if command.csv is not None and not command.csv.parent.is_dir():
        raise InputError(
            f"the folder of --csv {command.csv} is not there; make it first, or choose another place."
        )
    with TaskProgress(sys.stderr if command.json else sys.stdout) as progress:
        done = run_evaluate(command.what, command.config, progress=progress)
    if command.csv is not None:
        write_bytes(command.csv, done.csv().encode())
    print(json.dumps(done.record) if command.json else done.text())
    if done.path is not None and not command.json:
        print(f"\n  record   {done.path}")
    return 0


def compare(command: Compare) -> int:
    """Compares, and says what there is to look at; exit code 1 where a run failed."""
    from zeroshift.comparison.compare import compare as run_compare

    with CompareProgress(sys.stderr if command.json else sys.stdout) as progress:
        done = run_compare(command.config, shared=command.shared, progress=progress)
    files = {what: str(path) for what, path in done.files.items()}
    if command.json:
        print(
            json.dumps(
                {
                    "done": len(done.tables.measured_records),
                    "failed": done.failed,
                    "missing": done.missing,
                    **files,
                }
            )
        )
    else:
        print(
            "\n".join([*(f"failed: {name}: {why}" for name, why in done.failed.items())]),
            end="\n" if done.failed else "",
        )
        print("\n".join(f"  {what:8} {path}" for what, path in files.items()))
    return 1 if done.failed else 0


def portraits(command: Portraits) -> int:
    """Writes true pictures, and warns of people whom evaluations measure."""
    from zeroshift.pictures.truths import measured_seeds, write_truths
    from zeroshift.worlds.known import world_named

    world = world_named("portraits")
    assert world is not None  # the built-in one
    if measured := measured_seeds(command.seeds):
        warnings.warn(
            f"{len(measured)} of these people, first seed {measured[0]}, are measured by zeroshift evaluate "
            "unless it is given other --seeds; what learns from them would be flattered.",
            stacklevel=2,
        )
    paths = write_truths(world, command.domain, command.seeds, command.size, command.out)
    count = len(paths) - 1
    if command.json:
        print(json.dumps({"grid": str(paths[0]), "pictures": [str(path) for path in paths[1:]]}))
    else:
        print(f"{count} picture{'s' * (count != 1)} in {paths[0].parent}\n  grid     {paths[0]}")
    return 0


def inspect(command: Inspect) -> int:
    """Prints what a file is."""
    from zeroshift.files.describe import inspect as describe

    found = describe(command.file)
    print(json.dumps(found.tree()) if command.json else found.text())
    return 0


def doctor(command: Doctor) -> int:
    """Prints what this installation has; exit code 1 where a built-in model is missing."""
    from zeroshift.files.describe import examine

    found = examine()
    if command.json:
        print(json.dumps(found))
    else:
        for heading, rows in found.items():
            print(heading)
            print("\n".join(f"  {name:22} {value}" for name, value in rows.items()))
    return 1 if "missing" in found["built-in models"].values() else 0


VERBS: dict[type, Callable[[Any], int]] = {
    Adapt: adapt,
    Sample: sample,
    Translate: translate,
    Convert: convert,
    Push: push,
    Evaluate: evaluate,
    Compare: compare,
    Portraits: portraits,
    Inspect: inspect,
    Doctor: doctor,
}
"""Options of a verb -> what carries it out; the verb is the class's name in small letters."""


def unboxed(text: str) -> str:
    """The words of a message that tyro drew in a box, or between rules, in one line."""
    return " ".join(re.sub("[\u2500-\u257f]|-{5,}", " ", text).split())


def _fail(message: object, code: int, as_json: bool) -> int:
    """The exit code, after the message went to standard error and, for programs, to standard output too."""
    print(message if code == 130 else f"error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": str(message), "exit_code": code}))
    return code


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows warnings of this package as one line, without file and line number."""
    with warnings.catch_warnings():
        shown: Callable[..., None] = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
        ) -> None:
            if "zeroshift" in filename or category is UserWarning:
                print(f"warning: {message}", file=sys.stderr)
            else:
                shown(message, category, filename, lineno, *rest)

        warnings.showwarning = show
        yield
