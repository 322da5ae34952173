"""The command line: one thin function per verb, options read off the configs. Heavy libraries load when the verb runs."""

from __future__ import annotations

import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from . import __version__
from .config import OFFICIAL_QUIRKS, AdaptConfig, EvaluateConfig, configure, to_dict
from .display import Display, Meter, Tour, plan_text, plan_tree
from .errors import InputError, RunError
from .hub import megabytes
from .recipes import recipe, recipe_for
from .variants import CompareConfig, changes

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Move a generator into a domain given in words. The same command again resumes."""

    config: Annotated[AdaptConfig, tyro.conf.arg(name="")]
    compat: Literal["corrected", "official"] = "corrected"
    """Start from the repaired method, or from every quirk of the authors' code (the --quirks.* options)."""
    dry_run: Flag = False
    """Print the resolved config, what would move and the memory it needs, and stop."""
    json: Flag = False
    """Print one JSON object on standard output; progress goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw pictures of a run or a generator by seed: grid.png and one PNG per seed."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run; or a generator: a file, a built-in name or a hub reference (hf:owner/name)."""
    seeds: str = "0-15"
    """Seeds as numbers and ranges: 0-15 or 1,4,7-9. The same seed is always the same picture."""
    truncation: float | None = None
    """1 is the full variety, 0 the average picture; unset: as in the run, 1 for a generator."""
    strength: float = 1.0
    """0 is the source generator, 1 the adapted one, between them a blend of weights, up to 2 beyond."""
    generator: str | None = None
    """Where the source generator is now, if not where the run found it. Needed only for a strength other than 1."""
    steps: int | None = None
    """Diffusion models: steps from noise to picture; unset: 50."""
    eta: float | None = None
    """Diffusion models: fresh noise in every step, 0 none (DDIM, the default) to 1 (as DDPM)."""
    out: Path | None = None
    """Folder for the pictures; unset: RUN/pictures, or pictures here for a generator."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Translate:
    """Change pictures of one's own with a run of a diffusion model: into noise with the source, back with the adapted one."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Picture files, or folders of them. The middle square is taken."""
    strength: Annotated[float, tyro.conf.arg(aliases=("--ratio",))] = 1.0
    """0 is the source model, 1 the adapted one, between them a mixture of their predictions, up to 2 beyond."""
    t0: int | None = None
    """Time to which pictures are made noisy, 1 to 999: larger changes more and keeps less; unset: as in the run."""
    steps: int | None = None
    """Steps from noise to picture; unset: as in the run."""
    unseen: int = 0
    """Times that pictures of another kind (strokes, paintings) are first drawn into the source's domain; 8 to 10 are usual."""
    seed: int = 0
    """Seed of the noise of --unseen."""
    out: Path | None = None
    """Folder for the pictures; unset: RUN/translated."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a generator in the layout of other programs, or as a network that runs without this package."""

    generator: Annotated[str, tyro.conf.Positional]
    """A file, a run folder, a built-in name or a hub reference (hf:owner/name)."""
    out: Annotated[Path, tyro.conf.Positional]
    """File to write."""
    to: Literal["safetensors", "rosinality", "nvidia-state", "ddpm", "guided-diffusion", "onnx", "torchscript"]
    """Weights in a layout (of diffusion models ddpm, guided-diffusion), or a network (onnx, torchscript)."""
    label: int | None = None
    """Class to choose of a generator with classes; what is written then has none."""
    part: Literal["synthesis", "full"] = "synthesis"
    """Network: synthesis takes styles `w`; full takes noise `z` and `truncation`."""
    batch: int | None = None
    """Network: pictures per call; unset: any number."""
    noise: Literal["buffers", "off"] = "buffers"
    """Network: the generator's own noise maps, or none."""
    modulation: Literal["scale", "grouped"] = "scale"
    """Network: styles scale the activations, or the weights of one group per picture (needs --batch)."""
    check: bool = True
    """Network: compare its pictures with ours before it is put in its place."""
    overwrite: Flag = False
    """Replace a file that is there."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload the adapted generator of a finished run to the Hugging Face hub, with a model card."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    repository: Annotated[str, tyro.conf.Positional]
    """Name on the hub: owner/name. Made where it is not there yet."""
    private: Flag = False
    """Make the repository private."""
    rosinality: Flag = False
    """Add generator.pt in the layout of other programs."""
    dry_run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write what would be uploaded to this folder, and upload nothing."""
    overwrite: Flag = False
    """Replace files of these names that are there."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a run, a generator or a folder of pictures: every metric for which there is what it needs."""

    what: Annotated[str, tyro.conf.Positional]
    """Folder of a run or of pictures; or a generator: a file, a built-in name or a hub reference (hf:owner/name)."""
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = EvaluateConfig()
    csv: Path | None = None
    """Write a table with one line per metric to this file too."""
    json: Flag = False
    """Print the record as one JSON object on standard output; progress goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Methods side by side on the same targets and seeds. Every option of `zeroshift adapt` may be added, for all runs."""

    config: Annotated[CompareConfig, tyro.conf.arg(name="")]
    shared: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)
    json: Flag = False
    """Print one JSON object on standard output; progress goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a weights file or folder is, its architecture, and what cannot be used and why. Nothing in it is executed."""

    file: Annotated[str, tyro.conf.Positional]
    """A file, a folder, a built-in name or a hub reference (hf:owner/name)."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show versions, devices and built-in models, and say what is missing."""

    json: Flag = False
    """Print one JSON object on standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command line: 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"zeroshift {__version__}")
        return 0
    try:
        with plain_warnings():
            command = parse(words)
            return VERBS[type(command)](command)
    except SystemExit as stop:
        if stop.code and "--json" in words:
            print(json.dumps({"error": "the options could not be read; standard error says why", "exit_code": 2}))
        return 2 if stop.code else 0
    except InputError as error:
        return _fail(error, 2, "--json" in words)
    except RunError as error:
        return _fail(error, 1, "--json" in words)
    except KeyboardInterrupt as stop:
        return _fail(f"{str(stop) or 'stopped.'}\n  zeroshift {shlex.join(words)}", 130, "--json" in words)


def parse(words: list[str]) -> Adapt | Sample | Translate | Convert | Push | Evaluate | Compare | Inspect | Doctor:
    """The command with its options; leaves with exit code 2 and a message where they cannot be read."""
    verbs = {made.__name__.lower(): made for made in VERBS}
    if not words or words[0] not in verbs:
        listed = [Annotated[made, tyro.conf.subcommand(name)] for name, made in verbs.items()]
        every: Any = Union[tuple(listed)]  # noqa: UP007  # built from a list
        summary = "Move a pretrained image generator into a domain that exists only as words."
        return tyro.cli(every, args=words or ["--help"], prog="zeroshift", description=summary)
    options: dict[str, Any] = {}
    if words[0] == "compare":
        config, rest = tyro.cli(Compare, args=words[1:], prog="zeroshift compare", return_unknown_args=True)
        return replace(config, shared=_shared(rest))
    if words[0] == "adapt":
        compat = _value_of("--compat", words)
        start = _start(_value_of("--recipe", words), _value_of("--generator", words), compat, _value_of("--method", words))
        options["default"] = Adapt(config=start, compat="official" if compat == "official" else "corrected")
    command: Any = tyro.cli(verbs[words[0]], args=words[1:], prog=f"zeroshift {words[0]}", **options)
    return command


def _start(name: str | None, generator: str | None, compat: str | None, method: str | None = None) -> AdaptConfig:
    """Config of the chosen recipe, with the target still to be given."""
    generator = generator or "portraits"
    config = recipe(name or recipe_for(generator, method or ""), target="unset", generator=generator)
    if compat == "official":
        config = configure(config, quirks=OFFICIAL_QUIRKS)
    object.__setattr__(config, "target", tyro.MISSING)
    return config


def _shared(words: list[str]) -> dict[str, Any]:
    """Options for every run of a comparison, by their full names."""
    given = parse(["adapt", "--target", "unset", *words])
    if not isinstance(given, Adapt) or given.dry_run:
        raise InputError("compare has no --dry-run; --page-only runs nothing and shows what is there.")
    name, compat, generator = _value_of("--recipe", words), given.compat, given.config.generator
    start = _start(name, generator, compat)
    object.__setattr__(start, "target", "unset")
    return {"recipe": name or "", "compat": compat, "generator": generator} | changes(to_dict(start), to_dict(given.config))


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """The value that follows a flag, before the options are parsed; None where it is absent."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def adapt(command: Adapt) -> int:
    """Adapts, or says what it would do."""
    from .adapt import adapt as run_adapt
    from .adapt import plan
    from .report import duration

    if command.dry_run:
        planned = plan(command.config)
        print(json.dumps(plan_tree(planned)) if command.json else plan_text(planned))
        return 0
    began = time.monotonic()
    with Display(sys.stderr if command.json else sys.stdout) as display:
        run = run_adapt(command.config, progress=display)
    names = {"picture": "before_after.png", "weights": run.folder.generator_file.name, "report": "report.html"}
    files = {what: str(run.folder.path / name) for what, name in names.items()}
    if command.json:
        print(json.dumps({"run": str(run.folder.path), "finished": run.finished, "steps_done": run.steps_done, **files}))
        return 0
    took = f"Done in {duration(time.monotonic() - began)}."
    print(took if run.steps_done else f"The run in {run.folder.path} is finished; there was nothing to do.")
    print("\n".join(f"  {name:8} {path}" for name, path in files.items()))
    return 0


def sample(command: Sample) -> int:
    """Draws pictures and writes them."""
    from .sample import denoising_of, facts_of, is_run, load, parse_seeds, save_pictures
    from .sample import sample as draw

    seeds, how = parse_seeds(command.seeds), denoising_of(command.steps, command.eta)
    run = load(command.run, generator=command.generator, device=command.device)
    with Meter(sys.stderr if command.json else sys.stdout) as meter:
        pictures = draw(run, seeds, command.truncation, command.strength, how, meter)
    folder = command.out or (Path(command.run) if is_run(command.run) else Path()) / "pictures"
    try:
        paths = save_pictures(pictures, seeds, folder, facts_of(command.run, run, command.truncation, command.strength, how))
    except OSError as error:
        raise InputError(f"cannot write pictures to {folder}: {error.strerror}; choose another --out.") from error
    if command.json:
        print(json.dumps({"grid": str(paths[0]), "pictures": [str(path) for path in paths[1:]], "seeds": seeds}))
    else:
        print(f"{len(seeds)} pictures in {folder}\n  grid     {paths[0]}")
    return 0


def translate(command: Translate) -> int:
    """Changes pictures and writes them."""
    from .sample import load
    from .translate import save_translated
    from .translate import translate as run_translate

    run = load(Path(command.run), device=command.device)
    options = {"strength": command.strength, "t0": command.t0, "steps": command.steps}
    with Meter(sys.stderr if command.json else sys.stdout) as meter:
        made = run_translate(run, command.pictures, unseen=command.unseen, seed=command.seed, progress=meter, **options)
    paths = save_translated(run, command.pictures, made, command.out or Path(command.run) / "translated", options)
    if command.json:
        print(json.dumps({"sheet": str(paths[0]), "pictures": [str(path) for path in paths[1:]]}))
    else:
        print(f"{len(paths) - 1} pictures in {paths[0].parent}\n  before and after  {paths[0]}")
    return 0


def convert(command: Convert) -> int:
    """Writes a generator in another form and says what was written."""
    from .export import NetworkOptions
    from .export import convert as run_convert

    options = NetworkOptions(part=command.part, batch=command.batch, noise=command.noise, modulation=command.modulation)
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
        print(json.dumps({"path": str(done.path), "to": done.to, "bytes": done.size, "difference": done.difference}))
        return 0
    print(f"{done.path}  {done.to}, {megabytes(done.size)}")
    if done.difference is not None:
        print(f"  compared with ours: the largest difference of two pixels is {done.difference:.1e}")
    elif command.to == "onnx" and command.check:
        print("  not compared with ours: that needs onnxruntime (pip install 'zeroshift[onnx]')")
    return 0


def push(command: Push) -> int:
    """Uploads the generator of a run and says where it is."""
    from .publish import CARD, push_to_hub

    chosen = {"private": command.private, "rosinality": command.rosinality, "overwrite": command.overwrite}
    done = push_to_hub(command.run, command.repository, dry_run=command.dry_run, **chosen)
    if command.json:
        place = None if done.folder is None else str(done.folder)
        print(json.dumps({"repository": done.repository, "url": done.url, "folder": place, "files": done.files}))
        return 0
    print(done.url or f"Would upload to {done.repository}. Nothing was uploaded; the files are in {done.folder}")
    print("\n".join(f"  {name:22} {megabytes(size):>9}" for name, size in done.files.items()))
    if done.licence_open:
        print(f"Fill in the licence of the source weights in {CARD} before others use them.")
    return 0


def evaluate(command: Evaluate) -> int:
    """Measures and prints the table."""
    from .evaluate import evaluate as run_evaluate
    from .record import write_bytes

    with Meter(sys.stderr if command.json else sys.stdout) as meter:
        done = run_evaluate(command.what, command.config, progress=meter)
    if command.csv is not None:
        write_bytes(command.csv, done.csv().encode())
    print(json.dumps(done.record) if command.json else done.text())
    if done.path is not None and not command.json:
        print(f"\n  record   {done.path}")
    return 0


def compare(command: Compare) -> int:
    """Compares, and says what there is to look at; exit code 1 where a run failed."""
    from .compare import compare as run_compare

    with Tour(sys.stderr if command.json else sys.stdout) as tour:
        done = run_compare(command.config, shared=command.shared, progress=tour)
    files = {what: str(path) for what, path in done.files.items()}
    if command.json:
        print(json.dumps({"done": len(done.standings.done), "failed": done.failed, "missing": done.missing, **files}))
    else:
        print("\n".join([*(f"failed: {name}: {why}" for name, why in done.failed.items())]), end="\n" if done.failed else "")
        print("\n".join(f"  {what:8} {path}" for what, path in files.items()))
    return 1 if done.failed else 0


def inspect(command: Inspect) -> int:
    """Prints what a file is."""
    from .describe import inspect as describe

    found = describe(command.file)
    print(json.dumps(found.tree()) if command.json else found.text())
    return 0


def doctor(command: Doctor) -> int:
    """Prints what this installation has; exit code 1 where a built-in model is missing."""
    from .describe import examine

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
    Inspect: inspect,
    Doctor: doctor,
}
"""Options of a verb -> what carries it out; the verb is the class's name in small letters."""


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

        def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
            if "zeroshift" in filename or category is UserWarning:
                print(f"warning: {message}", file=sys.stderr)
            else:
                shown(message, category, filename, lineno, *rest)

        warnings.showwarning = show
        yield
