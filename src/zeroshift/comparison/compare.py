"""Methods side by side: every method, target and seed adapted and measured, then tables and one page to look
at.

    OUT/compare.json        what was asked
    OUT/runs/NAME/          the run folders, as `zeroshift adapt` writes them
    OUT/records/NAME.json   what came of each run: cost, measurements, or why it failed
    OUT/compare.html        the page
    OUT/pictures/           what the page shows
    OUT/vote.html           pairs of pictures to vote on, blind; vote-key.json says whose they are
    OUT/runs.csv            one line per run
    OUT/summary.csv         one line per method and target
    OUT/wins.csv            one line per pair of methods and metric

What is there is kept: the same call goes on, and more methods, targets or seeds add to it. Delete a record to
measure its run again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zeroshift import __version__
from zeroshift.comparison.jobs import (
    SCHEMA,
    Clock,
    Progress,
    Task,
    is_done,
    key_of,
    one_by_one,
    read_record,
    side_by_side,
)
from zeroshift.comparison.page import write_pages
from zeroshift.comparison.tables import Standings, runs_csv, summary_csv, wins_csv
from zeroshift.comparison.variants import CompareConfig, parse_variants, run_name, twice, variant_config
from zeroshift.comparison.voting import read_votes
from zeroshift.config.schema import NetworksConfig, to_dict
from zeroshift.errors import InputError
from zeroshift.files.writing import write_bytes, write_json
from zeroshift.measure.evaluate import metric_named
from zeroshift.methods.adapt import open_run
from zeroshift.methods.backend import Given
from zeroshift.methods.guidance import unknown_words
from zeroshift.pictures.sample import parse_seeds
from zeroshift.training.run_folder import RunFolder


@dataclass(frozen=True)
class Comparison:
    """The result, in files and as records, one per run that there is."""

    folder: Path
    records: list[dict[str, Any]]
    standings: Standings
    """The records as tables."""
    failed: dict[str, str]
    """Name of a run without measurements -> why."""
    missing: int = 0
    """Runs that were asked for and not begun yet."""

    @property
    def files(self) -> dict[str, Path]:
        """What is there to look at."""
        names = {
            "page": "compare.html",
            "vote": "vote.html",
            "runs": "runs.csv",
            "summary": "summary.csv",
            "wins": "wins.csv",
        }
        return {what: self.folder / name for what, name in names.items() if (self.folder / name).is_file()}


def compare(
    config: CompareConfig | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Comparison:
    """Every method on every target with every seed, measured; tables and page in the folder.

    Options come from `config` and from `overrides`: compare(methods=["nada", "ipl"], targets=["zombie"],
    out="runs/compare"). What is no option of CompareConfig goes to every run, and `shared` too, which may
    have full names: {"train.steps": 100}. A run that fails is recorded and does not stop the others.
    InputError before the first run where an option is wrong.
    """
    config, common = _configured(config, overrides)
    common |= shared or {}
    tell = progress or (lambda event: None)
    tasks = plan_tasks(config, common)
    if not config.page_only:
        check(config, tasks, tell)
    read_votes(config.votes, config.out)
    missing = [task for task in tasks if not is_done(task, config.evaluation)]
    todo = [] if config.page_only else missing
    tell(
        {"kind": "compare", "runs": len(tasks), "finished": len(tasks) - len(missing), "out": str(config.out)}
    )
    _made(config.out)
    write_json(
        config.out / "compare.json",
        {"schema": SCHEMA, "version": __version__, "asked": _asked(config, common)},
    )
    clock = Clock(tasks, todo, config.jobs, tell)
    try:
        if config.jobs > 1:
            side_by_side(todo, config.evaluation, clock)
        else:
            one_by_one(todo, config.evaluation, clock)
    except KeyboardInterrupt:
        write_results(config, tasks, common)
        ended = (
            f"stopped with {len(clock.waiting)} of {len(tasks)} runs to do; tables and page in "
            f"{config.out} show what there is."
        )
        raise KeyboardInterrupt(f"{ended} The same command goes on:") from None
    return write_results(config, tasks, common)


def _made(folder: Path) -> None:
    """Makes the folder of a comparison; InputError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out.") from error


def _configured(
    config: CompareConfig | None, overrides: dict[str, Any]
) -> tuple[CompareConfig, dict[str, Any]]:
    """The config with overrides, and the overrides that go to every run."""
    config = config or CompareConfig()
    own = {
        name: overrides.pop(name) for name in list(overrides) if name in CompareConfig.__dataclass_fields__
    }
    inner = {
        name: str(overrides.pop(name))
        for name in list(overrides)
        if name in NetworksConfig.__dataclass_fields__
    }
    tree = {name: getattr(config, name) for name in CompareConfig.__dataclass_fields__} | own
    tree["networks"] = NetworksConfig(**(asdict(tree["networks"]) | inner))
    return CompareConfig(**tree), overrides


def _asked(config: CompareConfig, common: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(to_dict(config) | {"shared": dict(common)}, default=str))


# Before the first run.


def plan_tasks(config: CompareConfig, common: Mapping[str, Any]) -> list[Task]:
    """Every run, seed by seed, so that an interrupted comparison has all methods and targets early."""
    if not config.methods or not config.targets or not config.seeds:
        raise InputError("a comparison needs --methods, --targets and --seeds, at least one of each.")
    parse_seeds(config.eval_seeds)
    for name in config.metrics:
        metric_named(name)
    if fixed := [name for name in ("target", "method", "seed", "run.seed") if name in common]:
        raise InputError(f"{fixed[0]} cannot be given for a comparison; use methods, targets and seeds.")
    variants = parse_variants(config.methods)
    twice(("target", config.targets), ("seed", config.seeds))
    tasks = []
    for seed in config.seeds:
        for target in config.targets:
            for variant in variants:
                name = run_name(variant.label, target, seed)
                cfg = variant_config(variant, common, target, seed, config.out / "runs" / name)
                tasks.append(Task(variant.label, cfg, config.out / "records" / f"{name}.json"))
    return tasks


def check(config: CompareConfig, tasks: Sequence[Task], tell: Progress) -> None:
    """Everything that can be known to go wrong, found before the first run; unknown words of labels only
    warn."""
    for task in tasks:
        RunFolder.check(task.config)
    steps = {task.config.train.steps for task in tasks}
    if len(steps) > 1:
        _warn(
            f"the methods differ in steps of stage 2 ({', '.join(map(str, sorted(steps)))}), so none is "
            "compared fairly.",
            tell,
        )
    fresh, told = [task for task in tasks if not task.folder.finished], set[str]()
    for task in {task.label: task for task in fresh}.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = open_run(task.config, Given())
        labels = tuple(dict.fromkeys((task.config.source, *config.targets)))
        told |= set(list(filter(None, (unknown_words(clip, labels) for clip in run.all_clips)))[:1])
    for text in sorted(told):
        _warn(text, tell)


def _warn(text: str, tell: Progress) -> None:
    warnings.warn(text, stacklevel=4)
    tell({"kind": "warning", "message": text})


# The results.


def write_results(config: CompareConfig, tasks: Sequence[Task], common: Mapping[str, Any]) -> Comparison:
    """Tables and page of the runs that there are."""
    records = [record for task in tasks if (record := read_record(task)) is not None]
    for record in records:
        if record["state"] == "done" and record["asked"] != key_of(config.evaluation):
            record |= {
                "state": "outdated",
                "error": "it was measured in another way; the command without --page-only does it anew",
            }
    labels = list(dict.fromkeys(task.label for task in tasks))
    standings = Standings(records, labels, config.targets)
    for name, table in (("runs", runs_csv), ("summary", summary_csv), ("wins", wins_csv)):
        write_bytes(config.out / f"{name}.csv", table(standings).encode())
    write_pages(config, tasks, standings, common)
    bad = [record for record in records if record["state"] != "done"]
    failed = {run_name(record["label"], record["target"], record["seed"]): record["error"] for record in bad}
    return Comparison(config.out, records, standings, failed, len(tasks) - len(records))
