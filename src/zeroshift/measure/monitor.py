"""The collapse monitor: how a run looks from outside while stage 2 moves the generator, and when it is best
or done.

Every `train.monitor.every` steps, and at the last one, the same few pictures are drawn by the source and by
the average of the target (keyed by the run's seed; of a generator with styles with its own noise maps), and a
record is made of them. Nothing here touches what is trained.

The rule. The score of a record is what the judge says, where there is one (that of the source generator's
world, in one of its domains, unless it guides): the mean probability that it gives the target among all
domains. Elsewhere it is the agreement of directions, or the way to the shots. A record with less than
`least_diversity` of the source's diversity has no score, and none with pictures nearer to shots than
`least_nearest`. A record becomes the best if its score is more than `least_gain` above that
of the best so far: a late gain too small to see does not outweigh the diversity that it costs. With
`train.until converged`, stage 2 ends when `patience` records in a row have not become the best.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from zeroshift.clip.features import normalize, template_features
from zeroshift.config.schema import AdaptConfig, MonitorConfig
from zeroshift.files.checkpoints import AnyGenerator, load_generator_file
from zeroshift.measure.metrics import diversity_ratio
from zeroshift.measure.networks import Judge
from zeroshift.shapes import Picture, UnitFeature
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.world import World

Record = Mapping[str, Any]
"""A line of monitor.jsonl: step, what the watcher saw (see `watching`), diversity among it, judge (where
there is one), score, best (a step), seconds."""


def flaw(record: Record, config: MonitorConfig) -> str:
    """What is wrong with the pictures of a record, in words; empty where nothing is."""
    diversity, nearest = record["diversity"], record.get("nearest")
    if diversity is not None and diversity < config.least_diversity:
        return (
            f"the pictures grow alike: at step {record['step']} they have {diversity:.2f} of the source's "
            f"diversity, less than train.monitor.least_diversity {config.least_diversity:g}"
        )
    if nearest is not None and nearest < config.least_nearest:
        return (
            f"the pictures repeat the shots: at step {record['step']} they lie {nearest:.2f} times as far "
            "from the nearest shot as shots from each other, less than train.monitor.least_nearest "
            f"{config.least_nearest:g}"
        )
    return ""


def rating(record: Record, config: MonitorConfig) -> float:
    """Score of a record; minus infinity where the pictures are too much alike, or repeat the shots."""
    return -math.inf if flaw(record, config) else record["score"]


def best_record(records: Sequence[Record], config: MonitorConfig) -> Record | None:
    """The best of these records by the rule; None where none has a score."""
    best = None
    highest = -math.inf
    for record in records:
        found = rating(record, config)
        if found > highest + config.least_gain:
            best = record
            highest = found
    return best


def converged(records: Sequence[Record], config: MonitorConfig) -> bool:
    """Whether the score has stopped rising, by the rule: none of the last `patience` records became the
    best."""
    recent = records[-config.patience :]
    if len(recent) < config.patience:
        return False
    best = best_record(records, config)
    return all(record is not best for record in recent)


class Watcher(Protocol):
    """What looks at watched pictures, beside the judge."""

    @property
    def remedy(self) -> str:
        """What to try where pictures grow alike."""
        ...

    def numbers(self, pictures: Picture) -> dict[str, float]:
        """Numbers of watched pictures BCHW by name, `diversity` (NaN where the source has none) and `score`
        among them."""
        ...


class Watched(Protocol):
    """What a run shows its monitor."""

    source: Any

    def monitor_codes(self, count: int) -> Any:
        """Codes of as many pictures, the same whenever it is asked."""
        ...

    def monitor_pictures(self, generator: Any, codes: Any) -> Picture:
        """Pictures of the codes by a generator; by the source those that the others are compared with."""
        ...

    def watcher(self, codes: Any, pictures: Picture, judge: Callable[[], Judge | None]) -> Watcher:
        """What looks at watched pictures of the codes, of which the source has made these; once it is asked,
        the judge of the source's world, if there is one that does not guide."""
        ...


@dataclass(frozen=True)
class _Reference:
    """What does not change over stage 2."""

    codes: Any
    watcher: Watcher
    judge_features: UnitFeature | None
    """The judge's unit features of the source's pictures; None where it is not asked."""


@dataclass(frozen=True)
class _Question:
    """What the judge is asked: which of the domains does a picture show."""

    judge: Judge
    texts: UnitFeature
    """Domains' features, by the mean over the judge's templates, times its logit scale."""
    target: int
    """Row of the target."""

    def probability(self, features: UnitFeature) -> float:
        """Mean probability of the target among the domains."""
        return float((features @ self.texts.T).softmax(dim=1)[:, self.target].double().mean())


class Monitor:
    """Records a run at fixed steps, keeps the best generator, and says when to stop. Its state is
    monitor.jsonl alone."""

    def __init__(
        self,
        config: AdaptConfig,
        folder: RunFolder,
        watched: Watched,
        *,
        world: World | None,
        guiding: Collection[str],
        save: Callable[..., None],
        progress: Callable[[dict[str, Any]], None],
    ) -> None:
        """`world`: that of the source generator. `guiding`: hashes of the guiding CLIPs, among which no judge
        may be. `save` writes the averaged generator to a path, with facts for its metadata."""
        self.config = config
        self.folder = folder
        self.watched = watched
        self.world = world
        self.guiding = guiding
        self.save = save
        self.progress = progress
        self.records: list[Record] = []
        self.judge: Judge | None = None
        self.question: _Question | None = None
        self.reference: _Reference | None = None

    def restore(self) -> None:
        """Goes on behind the records that the folder holds."""
        self.records = list(self.folder.monitor_records()) if self.config.train.monitor.every else []

    @property
    def best(self) -> Record | None:
        """The best record so far."""
        return best_record(self.records, self.config.train.monitor)

    @property
    def stop_reason(self) -> str:
        """Why stage 2 ends here, in words; empty where it goes on."""
        watch = self.config.train.monitor
        if self.config.train.until != "converged" or not converged(self.records, watch):
            return ""
        best = self.best
        found = (
            f"the best score is {best['score']:.4f} at step {best['step']}"
            if best
            else "no record was diverse enough"
        )
        return (
            f"stopped early at step {self.records[-1]['step']}: {found}, and the last {watch.patience} "
            "records were "
            f"not better by more than {watch.least_gain:g}"
        )

    def result(self) -> AnyGenerator | None:
        """The generator of the best record, where that is what the run is for; None: that of the last
        step."""
        best = self.best if self.config.train.until == "converged" else None
        if best is None:
            return None
        generator, facts = load_generator_file(self.folder.best_file)
        if int(facts["step"]) == best["step"]:
            return generator
        # Only where a resumed run is not bit-equal: then the file may be of a step that was done again with
        # other digits.
        warnings.warn(
            f"{self.folder.best_file} is of step {facts['step']}, the best is {best['step']}: the last is "
            "taken",
            stacklevel=4,
        )
        return None

    def after(self, step: int, last: bool, average: Any) -> None:
        """Makes a record where one is due: logs it, keeps the generator of the best so far, and warns once of
        collapse."""
        watch = self.config.train.monitor
        if not watch.every or (step % watch.every and not last):
            return
        began = time.perf_counter()
        numbers = self.measure(average)
        warned = any(rating(each, watch) == -math.inf for each in self.records)
        record = {"kind": "monitor", "stage": 2, "step": step, **numbers}
        self.records.append(record)
        best = self.best
        record["best"] = best["step"] if best else None
        if best is record:
            self.save(self.folder.best_file, step=str(step), score=repr(record["score"]))
        record["seconds"] = round(time.perf_counter() - began, 4)
        self.folder.log_monitor(record)
        self.progress(record)
        if not warned and rating(record, watch) == -math.inf:
            message = self._warning(record)
            warnings.warn(message, stacklevel=4)
            self.progress({"kind": "warning", "message": message})

    @torch.no_grad()
    def measure(self, generator: Any) -> dict[str, Any]:
        """Numbers of a generator on the watched pictures: those of the run's watcher, and where the judge
        knows the target, `judge` and the diversity in its features. What is not defined is None."""
        if self.reference is None:
            self.reference = self._reference()
        reference = self.reference
        pictures = self.watched.monitor_pictures(generator, reference.codes)
        numbers: dict[str, Any] = reference.watcher.numbers(pictures)
        score = numbers.pop("score")
        if self.question is not None and reference.judge_features is not None:
            features = self.question.judge.features(pictures.float())
            numbers["diversity"] = diversity_ratio(features, reference.judge_features)
            numbers["judge"] = score = self.question.probability(features)
        known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return known | {"score": score}

    def _reference(self) -> _Reference:
        """Draws the source's pictures once; the words of stage 1 are final by now."""
        codes = self.watched.monitor_codes(self.config.train.monitor.count)
        pictures = self.watched.monitor_pictures(self.watched.source, codes)
        self.question = self._question(pictures.device)
        watcher = self.watched.watcher(codes, pictures, lambda: self._open_judge(pictures.device))
        asked = self.question
        return _Reference(codes, watcher, None if asked is None else asked.judge.features(pictures.float()))

    def _open_judge(self, device: torch.device) -> Judge | None:
        """The judge of the source's world, unless it guides."""
        if self.judge is None and self.world is not None:
            clip = self.world.open_judge(device)
            self.judge = None if clip is None else Judge(clip)
        guides = self.judge is not None and self.judge.record.sha256 in self.guiding
        return None if guides else self.judge

    def _question(self, device: torch.device) -> _Question | None:
        """What the world's judge is asked, where it knows the target and does not guide."""
        world = self.world
        domain = None if world is None else world.domain_of(self.config.target)
        judge = None if domain is None else self._open_judge(device)
        if world is None or domain is None or judge is None:
            return None
        means = [template_features(judge.clip, each).mean(dim=0) for each in world.domains]
        texts = judge.clip.logit_scale * normalize(torch.stack(means))
        return _Question(judge, texts, world.domains.index(domain))

    def _warning(self, record: Record) -> str:
        kept = "; best.safetensors is from before" if self.best else ""
        assert self.reference is not None
        remedy = self.reference.watcher.remedy
        return f"{flaw(record, self.config.train.monitor)}{kept}. Try {remedy}."
