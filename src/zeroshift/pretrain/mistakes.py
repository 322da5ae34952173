"""Rounds in which the guides learn from their own mistakes: adapt under them, label what comes out by the
truth, tune, and again. An adaptation goes on over several rounds, so that guides learn from what comes late
too.

Only domains that are not held out are adapted to; people are those of training shards. Round r is three kinds
of files below `work/mistakes`: the guides that it starts from, the pictures that adaptation made under them
(DOMAIN.pt), and the record of them (DOMAIN.json). Finished files are never made again, so the same command
goes on after a kill.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.clip.model import ClipModel
from zeroshift.config.recipes import recipe
from zeroshift.config.schema import AdaptConfig, configure
from zeroshift.files.clips import load_clip_folder, save_clip
from zeroshift.files.registry import load_generator
from zeroshift.measure.metrics import grain
from zeroshift.methods import ipl
from zeroshift.methods.backend import Given
from zeroshift.methods.directions import image_direction
from zeroshift.portraits.scene import sample_scene
from zeroshift.portraits.shading import DOMAINS, TUNING
from zeroshift.pretrain import dataset, guides
from zeroshift.pretrain.guides import Examples, Guide
from zeroshift.pretrain.lengths import calibrate, label_step
from zeroshift.pretrain.resumable import save_atomically
from zeroshift.shapes import Picture

NAMES = ("clip-a", "clip-b")
"""The guides, which are followed together."""


@dataclass(frozen=True)
class Rounds:
    """How often, and how long."""

    rounds: int = 27
    steps: int = 60
    """Steps that an adaptation goes on in a round."""
    life: int = 5
    """Rounds after which an adaptation begins anew from the source."""
    snapshots: tuple[int, ...] = (15, 40, 60)
    people: int = 24
    """People whose pictures are kept at each snapshot, and once more from the averaged generator."""
    pool: int = 512
    """People among whom they are."""
    tune: int = 150
    """Steps of tuning in a round."""
    fresh: int = 32
    """Examples from renders in a step of tuning."""
    made: int = 16
    """Examples from mistakes in a step of tuning, of all rounds so far."""
    rate: float = 6e-4


ROUNDS = Rounds()


def adaptation(number: int, domain: str, out: Path) -> AdaptConfig:
    """The run of a round towards a domain: methods, rates, views and the pairwise term change from round to
    round and from domain to domain."""
    place = DOMAINS.index(domain)
    method = ("nada", "ipl")[(number + place) % 2]
    rate = (0.005, 0.003, 0.0075)[(number + 2 * place) % 3]
    views = (4, 4, 1)[(number + place // 2) % 3]
    relation = (0.0, 0.2)[(number // 2 + place) % 2]
    mean = ("words", "label", "label")[(number + place) // 3 % 3]
    return configure(
        recipe("portraits", domain),
        method=method,
        out=out,
        mapper={"steps": 80, "lr": 0.3, "pictures": 64, "mean": mean, "lambda_domain": 0.1},
        train={"steps": ROUNDS.steps, "lr": rate, "views": {"count": views}, "monitor": {"every": 0}},
        losses={"relation": relation},
        quirks={"length": "point", "across": (0.25, 1.0, 0.1)[(number + place) % 3], "residual": "none"},
        run={"seed": 50_000 + number, "grid_every": 0, "checkpoint_every": 10_000},
    )


@dataclass(frozen=True)
class Known:
    """People of the training shards as the generator makes them."""

    people: dataset.People
    starts: Tensor
    """Pictures (pool, 3, 64, 64) by the source generator."""

    @staticmethod
    @torch.no_grad()
    def load(data: Path) -> Known:
        """The people of the leading shards."""
        people = dataset.load(data, 8, 8)
        generator: Any = load_generator("portraits", torch.device("cpu"))[0]
        parts = people.z[: ROUNDS.pool].split(32)
        return Known(people, torch.cat([drawn(generator, generator, part) for part in parts]))

    def truth(self, rows: Tensor, domain: int | Tensor) -> Picture:
        """True pictures of people in domains, numbered as in DOMAINS."""
        return dataset.to_float(self.people.domains[rows, domain - 1])


@torch.no_grad()
def drawn(source: Any, generator: Any, z: Tensor) -> Picture:
    """Pictures of latents by a generator, their styles by the source."""
    return generator.synthesize(source.map(z), "buffers").clamp(-1, 1)


@torch.no_grad()
def above(clip: ClipModel, domain: str, source: Picture, made: Picture, truth: Picture) -> float:
    """The share of people whose true picture a guide scores above the adapted one: by the step along the
    labels' direction over the larger of its length and that of the labels. It is no measure of the loss that
    a run followed, see benchmarks/guides.py."""
    apart = label_step(clip, domain)
    floor = clip.lengths.of(float(apart.norm()))
    seen = [clip.encode_image(each) for each in (source, made, truth)]
    scores = [(image_direction(seen[0], each, floor) * normalize(apart)).sum(dim=1) for each in seen[1:]]
    return float((scores[1] > scores[0]).float().mean())


def collect(folder: Path, known: Known, number: int, domain: str) -> dict[str, Any]:
    """Adapts towards a domain under the guides of a round, keeps pictures from along the way, and tells how
    it went."""
    done = folder / f"{domain}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    place = DOMAINS.index(domain)
    clips = [load_clip_folder(folder / name) for name in NAMES]
    begun = folder.parent / f"{number - 1:02d}" / f"{domain}.target.pt"
    goes_on = (number + place) % ROUNDS.life != 0 and begun.exists()
    state = torch.load(begun, weights_only=True) if goes_on else None
    order = torch.randperm(ROUNDS.pool, generator=torch.Generator().manual_seed(1000 * number + place))
    rows = list(order.split(ROUNDS.people))
    found: list[tuple[Tensor, Tensor]] = []
    with tempfile.TemporaryDirectory() as place_of_run:
        config = adaptation(number, domain, Path(place_of_run) / "run")

        def keep(generator: Any) -> None:
            people = rows[len(found)]
            pictures = drawn(run.source, generator, known.people.z[people])
            found.append((((pictures + 1) * 127.5).round().byte(), people))

        def hook(event: dict[str, Any]) -> None:
            if event["stage"] == 2 and event["step"] in ROUNDS.snapshots:
                keep(run.target)

        run = ipl.open_run(config, Given(clips=clips, target=state, ema=state), hook)
        with run.loop.recorded():
            ipl.train(run)
        keep(run.average)
        others = torch.cat(rows[-4:])
        made = torch.cat([drawn(run.source, run.average, z) for z in known.people.z[others].split(32)])
    truth, start = known.truth(others, place), known.starts[others]
    save_atomically(run.target.state_dict(), folder / f"{domain}.target.pt")
    record = {
        "round": number,
        "goes_on": goes_on,
        "domain": domain,
        "method": config.method,
        "rate": config.train.lr,
        "views": config.train.views.count,
        "relation": config.losses.relation,
        "mean": config.mapper.mean,
        "across": config.quirks.across,
        "ratio": round(float(guides.distance(made, truth).mean() / guides.distance(start, truth).mean()), 3),
        "grain": round(float(grain(made).mean() / grain(truth).mean()), 3),
        "truth_above": [round(above(clip, domain, start, made, truth), 3) for clip in clips],
    }
    kept = {"way": torch.cat([way for way, _ in found]), "rows": torch.cat([people for _, people in found])}
    save_atomically(kept, folder / f"{domain}.pt")
    done.write_text(json.dumps(record) + "\n", encoding="utf-8")
    # Not before: an adaptation that a kill ended has to go on from the same weights again.
    begun.unlink(missing_ok=True)
    print(json.dumps(record), flush=True)
    return record


def examples(known: Known, pool: dict[str, Tensor], n: int, draw: torch.Generator) -> Examples:
    """Mistakes as examples: starts are the generator's own pictures, labels come from the truth."""
    picked = torch.randint(len(pool["way"]), (n,), generator=draw)
    rows, domain = pool["rows"][picked], pool["domain"][picked]
    way = dataset.to_float(pool["way"][picked])
    start, truth = known.starts[rows], known.truth(rows, domain)
    none = torch.zeros(n)
    return Examples(
        start,
        way,
        truth,
        domain,
        sample_scene(known.people.z[rows]),
        guides.soft_labels(way, truth, start, domain, torch.zeros_like(domain)),
        readable=none,
        pure=none,
        mirrored=[False] * n,
    )


def mistakes_until(work: Path, number: int) -> dict[str, Tensor]:
    """The pictures of all rounds up to a number."""
    parts = [
        (torch.load(work / f"{each:02d}" / f"{domain}.pt", weights_only=True), DOMAINS.index(domain))
        for each in range(number + 1)
        for domain in TUNING
    ]
    pool = {key: torch.cat([part[key] for part, _ in parts]) for key in ("way", "rows")}
    return pool | {"domain": torch.cat([torch.full_like(part["rows"], place) for part, place in parts])}


def tune(name: str, guide: Guide, known: Known, work: Path, number: int) -> float:
    """One round of tuning of a guide, on renders and on the mistakes of all rounds so far; the seconds
    spent."""
    began = time.monotonic()
    pool = mistakes_until(work, number)
    guide.student.train()
    for step in range(ROUNDS.tune):
        key = 100_000 * (number + 1) + step
        seed = guide.recipe.seed
        draw = torch.Generator().manual_seed(seed * 9973 + key)
        batch = Examples.joined(
            [
                guides.draw_examples(known.people, ROUNDS.fresh, seed, key, hard=True),
                examples(known, pool, ROUNDS.made, draw),
            ]
        )
        # The last two rounds end at a tenth of the rate.
        left = (ROUNDS.rounds - number) * ROUNDS.tune - step
        rate = ROUNDS.rate * min(1.0, 0.1 + 0.9 * left / (2 * ROUNDS.tune))
        scalars = guide.step(batch, key, rate, guide.recipe.attack)
        if step % 40 == 0 or step == ROUNDS.tune - 1:
            told = {each: round(float(value.detach()), 3) for each, value in scalars.items()}
            print(name, json.dumps({"round": number, "step": step} | told), flush=True)
    return time.monotonic() - began


# One process each, so that two cores carry two runs.


def _begin() -> None:
    torch.set_num_threads(1)


_KNOWN: dict[Path, Known] = {}


def _known(data: Path) -> Known:
    """The people, loaded once per process."""
    if data not in _KNOWN:
        _KNOWN[data] = Known.load(data)
    return _KNOWN[data]


def _base(name: str, data: Path, work: Path) -> None:
    """Trains a guide on renders, and lays it down as that of round 0."""
    if (work / "mistakes" / "00" / f"{name}.pt").exists():
        return
    guide, seconds = guides.train(name, data, work)
    _lay_down(name, guide, _known(data), work / "mistakes" / "00", seconds)


def _lay_down(name: str, guide: Guide, known: Known, folder: Path, seconds: float) -> None:
    """Writes a guide as its CLIP, calibrated, and as what training goes on from, which is written last."""
    clip = guide.finished()
    clip.name = f"portraits-{name}"
    calibrate(clip, known.people)
    save_clip(clip, folder / name)
    state = {"student": guide.student.state_dict(), "optimizer": guide.optimizer.state_dict()}
    state |= {"reach": guide.reach}
    save_atomically(state | {"seconds": seconds}, folder / f"{name}.pt")


def _collect(domain: str, data: Path, work: Path, number: int) -> dict[str, Any]:
    folder = work / "mistakes" / f"{number:02d}"
    return collect(folder, _known(data), number, domain)


def _tune(name: str, data: Path, work: Path, number: int) -> None:
    rounds = work / "mistakes"
    after = rounds / f"{number + 1:02d}"
    if (after / f"{name}.pt").exists():
        return
    guide = Guide(guides.RECIPES[name])
    seconds = guide.restore(rounds / f"{number:02d}" / f"{name}.pt")
    known = _known(data)
    seconds += tune(name, guide, known, rounds, number)
    _lay_down(name, guide, known, after, seconds)


def train(data: Path, work: Path, jobs: int = 2) -> Path:
    """Trains both guides, or goes on; the folder of the last round, in which they lie with what adaptation
    under them made."""
    # Made here, so that the processes do not all make them.
    dataset.load(data, 8, 8)
    rounds = work / "mistakes"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin) as pool:

        def everywhere(what: Callable[..., Any], names: Iterable[str], *given: Any) -> list[Any]:
            return [each.result() for each in [pool.submit(what, name, data, work, *given) for name in names]]

        everywhere(_base, NAMES)
        for number in range(ROUNDS.rounds + 1):
            records = everywhere(_collect, TUNING, number)
            shares = torch.tensor([record["truth_above"] for record in records])
            print(
                f"round {number}: truth above the adapted picture for {shares.mean():.3f} of people",
                flush=True,
            )
            if number < ROUNDS.rounds:
                everywhere(_tune, NAMES, number)
    return rounds / f"{ROUNDS.rounds:02d}"
