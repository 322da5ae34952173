"""The collapse monitor: what a run looks like from outside while stage 2 moves the generator, and when it is
best or done.

Every `train.monitor.every` steps, and at the last one, the same few pictures are drawn by the source and by
the average of the target (keyed by the run's seed; of a generator with styles with its own noise maps).
Nothing here touches what is trained.

The rule. The score of a look is what the judge says, where there is one (the built-in world in one of its own
domains, unless the judge guides): the mean probability that it gives the target among all domains. Elsewhere
it is the agreement of directions. A look with less than `least_diversity` of the source's diversity has no
score. A look becomes the best if its score is more than `least_gain` above that of the best so far: a late
gain too small to see does not outweigh the diversity that it costs. With `train.until converged`, stage 2
ends when `patience` looks in a row have not become the best.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zeroshift.clip.features import normalize, template_features
from zeroshift.config.schema import AdaptConfig, MonitorConfig
from zeroshift.files.checkpoints import AnyGenerator, load_generator_file
from zeroshift.files.registry import world_name
from zeroshift.measure.metrics import diversity_ratio, pairwise_diversity
from zeroshift.measure.networks import Judge
from zeroshift.methods.guidance import Guide
from zeroshift.methods.prompts import PromptMapper
from zeroshift.shapes import Picture, UnitFeature
from zeroshift.training.run_folder import RunFolder
from zeroshift.worlds.known import world_named

Look = Mapping[str, Any]
"""A line of monitor.jsonl: step, agreement, alike, diversity, judge (where there is one), score, best (a
step), seconds."""


def rating(look: Look, config: MonitorConfig) -> float:
    """Score of a look; minus infinity where the pictures are too much alike."""
    collapsed = look["diversity"] is not None and look["diversity"] < config.least_diversity
    return -math.inf if collapsed else look["score"]


def best_look(looks: Sequence[Look], config: MonitorConfig) -> Look | None:
    """The best of these looks by the rule; None where none has a score."""
    best, highest = None, -math.inf
    for look in looks:
        if (found := rating(look, config)) > highest + config.least_gain:
            best, highest = look, found
    return best


def converged(looks: Sequence[Look], config: MonitorConfig) -> bool:
    """Whether the score has stopped rising, by the rule: none of the last `patience` looks became the
    best."""
    recent = looks[-config.patience :]
    if len(recent) < config.patience:
        return False
    best = best_look(looks, config)
    return all(look is not best for look in recent)


@dataclass(frozen=True)
class _Fixed:
    """What does not change over stage 2: codes, what is seen in the source's pictures, and the text
    directions per CLIP."""

    codes: Any
    seen: list[UnitFeature]
    texts: list[UnitFeature]
    judged: UnitFeature | None


class Views(Protocol):
    """What a run shows its monitor."""

    source: Any

    def watched(self, count: int) -> Any:
        """Codes of as many pictures, the same whenever it is asked."""
        ...

    def view(self, generator: Any, codes: Any) -> Picture:
        """Pictures of the codes by a generator; by the source those that the others are compared with."""
        ...


class Monitor:
    """Looks at a run at fixed steps, keeps the best generator, and says when to stop. Its state is
    monitor.jsonl alone."""

    def __init__(
        self,
        config: AdaptConfig,
        folder: RunFolder,
        views: Views,
        guides: Sequence[Guide],
        mapper: PromptMapper,
        origin: tuple[str, Collection[str]],
    ) -> None:
        """`origin`: name of the source generator and hashes of the guiding CLIPs."""
        self.config, self.folder, self.views = config, folder, views
        self.guides, self.mapper = guides, mapper
        self.origin = origin
        self.looks: list[Look] = []
        self.judge: Judge | None = None
        self.asked: tuple[Tensor, int] | None = None
        self.fixed: _Fixed | None = None

    def restore(self) -> None:
        """Goes on behind the looks that the folder holds."""
        self.looks = list(self.folder.looks()) if self.config.train.monitor.every else []

    @property
    def best(self) -> Look | None:
        """The best look so far."""
        return best_look(self.looks, self.config.train.monitor)

    @property
    def stops(self) -> str:
        """Why stage 2 ends here, in words; empty where it goes on."""
        watch = self.config.train.monitor
        if self.config.train.until != "converged" or not converged(self.looks, watch):
            return ""
        best = self.best
        found = (
            f"the best score is {best['score']:.4f} at step {best['step']}"
            if best
            else "no look was diverse enough"
        )
        return (
            f"stopped early at step {self.looks[-1]['step']}: {found}, and the last {watch.patience} looks "
            "were not better by "
            f"more than {watch.least_gain:g}"
        )

    def result(self) -> AnyGenerator | None:
        """The generator of the best look, where that is what the run is for; None: that of the last step."""
        best = self.best if self.config.train.until == "converged" else None
        if best is None:
            return None
        kept, facts = load_generator_file(self.folder.best_file)
        if int(facts["step"]) == best["step"]:
            return kept
        # Only where a resumed run is not bit-equal: then the file may be of a step that was done again with
        # other digits.
        warnings.warn(
            f"{self.folder.best_file} is of step {facts['step']}, the best is {best['step']}: the last is "
            "taken",
            stacklevel=4,
        )
        return None

    def after(
        self,
        step: int,
        last: bool,
        average: Any,
        save: Callable[..., None],
        progress: Callable[[dict[str, Any]], None],
    ) -> None:
        """Looks where a look is due: logs it, saves it if it is the best so far, and warns once of
        collapse."""
        watch = self.config.train.monitor
        if not watch.every or (step % watch.every and not last):
            return
        began = time.perf_counter()
        numbers = self.measure(average)
        warned = any(rating(each, watch) == -math.inf for each in self.looks)
        look = {"kind": "monitor", "stage": 2, "step": step, **numbers}
        self.looks.append(look)
        best = self.best
        look["best"] = best["step"] if best else None
        if best is look:
            save(self.folder.best_file, step=str(step), score=repr(look["score"]))
        look["seconds"] = round(time.perf_counter() - began, 4)
        self.folder.log_look(look)
        progress(look)
        if not warned and rating(look, watch) == -math.inf:
            message = self._warning(look)
            warnings.warn(message, stacklevel=4)
            progress({"kind": "warning", "message": message})

    @torch.no_grad()
    def measure(self, generator: Any) -> dict[str, Any]:
        """Numbers of a generator on the watched pictures.

        agreement: mean cosine of the pictures' directions and the texts', over CLIPs by their weights, in
        [-1, 1]. alike: mean cosine of all pairs of picture directions, 1 where every picture changes in the
        same way. diversity: `diversity_ratio` to the source, in the judge's features or else as the mean over
        the guiding CLIPs; None where the source has none.
        """
        fixed = self.fixed = self.fixed or self._fix()
        pictures = self.views.view(generator, fixed.codes)
        seen = [normalize(guide.see(pictures)) for guide in self.guides]
        agreement, alike, diversity, total = 0.0, 0.0, 0.0, sum(guide.weight for guide in self.guides)
        for guide, source, target, text in zip(self.guides, fixed.seen, seen, fixed.texts, strict=True):
            change = normalize(target.double() - source.double())
            agreement += guide.weight / total * float((change * text.double()).sum(dim=1).mean())
            alike += guide.weight / total * (1 - pairwise_diversity(change))
            diversity += diversity_ratio(target, source) / len(self.guides)
        judged: dict[str, float] = {}
        if self.judge is not None and fixed.judged is not None:
            features = self._judged(pictures)
            diversity, judged["judge"] = diversity_ratio(features, fixed.judged), self._probability(features)
        return {
            "agreement": agreement,
            "alike": alike,
            "diversity": None if math.isnan(diversity) else diversity,
            **judged,
            "score": judged.get("judge", agreement),
        }

    def _fix(self) -> _Fixed:
        """Draws the source's pictures once; the words of stage 1 are final by now."""
        codes = self.views.watched(self.config.train.monitor.count)
        pictures = self.views.view(self.views.source, codes)
        words = self.mapper(codes) if self.config.learns_words else [None] * len(self.guides)
        self.judge = self._judge(pictures.device)
        return _Fixed(
            codes=codes,
            seen=[normalize(guide.see(pictures)) for guide in self.guides],
            texts=[guide.direction_of(each) for guide, each in zip(self.guides, words, strict=True)],
            judged=self._judged(pictures) if self.judge is not None else None,
        )

    def _judge(self, device: torch.device) -> Judge | None:
        """The built-in judge, where it knows the domain and does not guide."""
        name, guiding = self.origin
        world = world_named(world_name({"name": name}))
        domain = world.domain_of(self.config.target) if world else None
        clip = world.open_judge(device) if world else None
        if world is None or domain is None or clip is None:
            return None
        judge = Judge(clip)
        if judge.record.sha256 in guiding:
            return None
        words = [template_features(judge.clip, each).mean(dim=0) for each in world.domains]
        self.asked = judge.clip.logit_scale * normalize(torch.stack(words)), list(world.domains).index(domain)
        return judge

    def _judged(self, pictures: Picture) -> UnitFeature:
        assert self.judge is not None
        return self.judge.features(pictures.float())

    def _probability(self, features: UnitFeature) -> float:
        """Mean probability of the target among the domains, each by the mean over the judge's templates."""
        assert self.asked is not None
        words, wanted = self.asked
        return float((features @ words.T).softmax(dim=1)[:, wanted].double().mean())

    def _warning(self, look: Look) -> str:
        kept = "; best.safetensors is from before" if self.best else ""
        share, least = look["diversity"], self.config.train.monitor.least_diversity
        return (
            f"the pictures grow alike: at step {look['step']} they have {share:.2f} of the source's "
            "diversity, less than "
            f"train.monitor.least_diversity {least:g}{kept}. Try method ipl, fewer steps, a lower train.lr, "
            "or fewer layers."
        )
