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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeroshift import __version__
from zeroshift.comparison.engines import Engine, LocalEngine, SerialEngine, Tell
from zeroshift.comparison.jobs import SCHEMA, Eta, RunJob, measurement_key
from zeroshift.comparison.page import write_pages
from zeroshift.comparison.tables import ComparisonTables, csv_text
from zeroshift.comparison.variants import parse_variants, run_name, target_names, twice, variant_config
from zeroshift.comparison.voting import read_votes
from zeroshift.config.measuring import CompareConfig
from zeroshift.config.methods import METHODS
from zeroshift.config.overrides import find, override
from zeroshift.config.schema import to_dict
from zeroshift.errors import InputError
from zeroshift.files.writing import write_bytes, write_json
from zeroshift.measure.evaluate import metric_named
from zeroshift.methods.adapt import open_run
from zeroshift.methods.backend import Given
from zeroshift.methods.guidance import unknown_words
from zeroshift.pictures.sample import parse_seeds
from zeroshift.training.run_folder import RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame

FILES = {
    "page": "compare.html",
    "vote": "vote.html",
    "runs": "runs.csv",
    "summary": "summary.csv",
    "wins": "wins.csv",
}
"""What there is to look at in the folder of a comparison."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to: files in its folder, tables, and why runs failed."""

    folder: Path
    tables: ComparisonTables
    failed: dict[str, str]
    """Name of a run without measurements -> why."""
    missing: int = 0
    """Runs that were asked for and not begun yet."""

    @property
    def table(self) -> DataFrame:
        """One row per run that there is: label, method, target, group, seed, state, error, cost, and one
        column per metric, as in runs.csv."""
        return self.tables.runs

    @property
    def summary(self) -> DataFrame:
        """One row per method and target: mean and spread over seeds of every metric, as in summary.csv."""
        return self.tables.summary

    @property
    def wins(self) -> DataFrame:
        """One row per pair of methods, kind of targets and metric: win rates with intervals, as in
        wins.csv."""
        return self.tables.wins

    @property
    def files(self) -> dict[str, Path]:
        """What is there to look at, by its name in FILES."""
        paths = {what: self.folder / name for what, name in FILES.items()}
        return {what: path for what, path in paths.items() if path.is_file()}


def compare(
    config: CompareConfig | None = None,
    *,
    shared: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    progress: Tell | None = None,
    **overrides: Any,
) -> Comparison:
    """Every method on every target with every seed, measured; tables and page in the folder.

    Options come from `config` and from `overrides`: compare(methods=["nada", "ipl"], targets=["zombie"],
    out="runs/compare"). What is no option of CompareConfig goes to every run, and `shared` too, which may
    have full names: {"train.steps": 100}. `engine` carries out the runs; without one it is this process, or,
    with `jobs` above 1, as many processes. `progress` is called with small plain events: those of `adapt`,
    and kind compare, run, evaluate, done, failed or warning. A run that fails is recorded and does not stop
    the others. InputError before the first run where an option is wrong.
    """
    config, common = _configured(config, overrides)
    common |= shared or {}
    tell = progress or (lambda event: None)
    jobs = plan_jobs(config, common)
    if not config.page_only:
        check(config, jobs, tell)
    read_votes(config.votes, config.out)
    unfinished = [job for job in jobs if not job.is_done]
    finished = len(jobs) - len(unfinished)
    tell({"kind": "compare", "runs": len(jobs), "finished": finished, "out": str(config.out)})
    _make_folder(config.out)
    asked = json.loads(json.dumps(to_dict(config) | {"shared": common}, default=str))
    write_json(config.out / "compare.json", {"schema": SCHEMA, "version": __version__, "asked": asked})
    due = [] if config.page_only else unfinished
    eta = Eta(jobs, due, config.jobs, tell)
    engine = engine or (LocalEngine(config.jobs) if config.jobs > 1 else SerialEngine())
    try:
        engine.carry_out(due, eta)
    except KeyboardInterrupt:
        write_results(config, jobs, common)
        raise KeyboardInterrupt(
            f"stopped with {len(eta.unfinished)} of {len(jobs)} runs to do; tables and page in "
            f"{config.out} show what there is. The same command goes on:"
        ) from None
    return write_results(config, jobs, common)


def _make_folder(folder: Path) -> None:
    """Makes the folder of a comparison; InputError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out.") from error


def _configured(
    config: CompareConfig | None, overrides: dict[str, Any]
) -> tuple[CompareConfig, dict[str, Any]]:
    """The config with overrides, and the overrides that go to every run."""
    own = {name: value for name, value in overrides.items() if find(CompareConfig, name) is not None}
    common = {name: value for name, value in overrides.items() if name not in own}
    return override(config or CompareConfig, own), common


# Before the first run.


def plan_jobs(config: CompareConfig, common: Mapping[str, Any]) -> list[RunJob]:
    """Every run, seed by seed, so that an interrupted comparison has all methods and targets early.

    `common` are the options of every run. InputError where an option is wrong, or belongs elsewhere.
    """
    targets = target_names(config.targets, common)
    if not config.methods or not targets or not config.seeds:
        raise InputError(
            "a comparison needs --methods, --targets (or --pictures of one) and --seeds, at least one of "
            "each."
        )
    parse_seeds(config.eval_seeds)
    for name in config.metrics:
        metric_named(name)
    if fixed := [name for name in ("target", "method", "seed", "run.seed") if name in common]:
        raise InputError(f"{fixed[0]} cannot be given for a comparison; use methods, targets and seeds.")
    variants = parse_variants(config.methods)
    twice(("target", config.targets), ("seed", config.seeds))
    jobs = []
    for seed in config.seeds:
        for target, called in targets.items():
            for variant in variants:
                name = run_name(variant.label, called, seed)
                run = variant_config(variant, common, target, seed, config.out / "runs" / name)
                record_file = config.out / "records" / f"{name}.json"
                jobs.append(RunJob(variant.label, run, config.evaluation, record_file))
    return jobs


def check(config: CompareConfig, jobs: Sequence[RunJob], tell: Tell) -> None:
    """Everything that can be known to go wrong, found before the first run; InputError says what. Methods
    that differ in steps or take no pictures where others do, and words of labels that a CLIP never learned,
    only warn."""
    for job in jobs:
        RunFolder.check(job.config)
    steps = {job.config.train.steps for job in jobs}
    if len(steps) > 1:
        _warn(
            f"the methods differ in steps of stage 2 ({', '.join(map(str, sorted(steps)))}), so none is "
            "compared fairly.",
            tell,
        )
    for label, method in {job.label: job.config.method for job in jobs}.items():
        if any(job.config.shots.folder for job in jobs) and METHODS[method].shots == "none":
            _warn(f"method {label} takes no pictures of the target, so it learns from words alone.", tell)
    unlearned: set[str] = set()
    for job in {job.label: job for job in jobs if not job.folder.finished}.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = open_run(job.config, Given())
        labels = tuple(dict.fromkeys((job.config.source, *config.targets)))
        told = (text for clip in run.all_clips if (text := unknown_words(clip, labels)) is not None)
        unlearned |= set(islice(told, 1))
    for text in sorted(unlearned):
        _warn(text, tell)


def _warn(text: str, tell: Tell) -> None:
    warnings.warn(text, stacklevel=4)
    tell({"kind": "warning", "message": text})


# The results.


def write_results(config: CompareConfig, jobs: Sequence[RunJob], common: Mapping[str, Any]) -> Comparison:
    """Writes tables and page of the runs that there are."""
    records = [record for job in jobs if (record := job.record) is not None]
    for record in records:
        if record["state"] == "done" and record["asked"] != measurement_key(config.evaluation):
            record["state"] = "outdated"
            record["error"] = "it was measured in another way; the command without --page-only does it anew"
    labels = list(dict.fromkeys(job.label for job in jobs))
    targets = list(dict.fromkeys(job.config.target_name for job in jobs))
    tables = ComparisonTables(records, labels, targets)
    for what, table in (("runs", tables.runs), ("summary", tables.summary), ("wins", tables.wins)):
        write_bytes(config.out / FILES[what], csv_text(table).encode())
    write_pages(config, jobs, tables, common)
    failed = {
        run_name(record["label"], record["target"], record["seed"]): record["error"]
        for record in records
        if record["state"] != "done"
    }
    return Comparison(config.out, tables, failed, len(jobs) - len(records))
