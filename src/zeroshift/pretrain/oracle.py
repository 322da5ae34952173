"""How near to the truth a built-in generator comes that is trained on the truth itself.

Everything is as in the generator's own recipe (steps, batch, rate, optimiser, layers, noise, the averaged
weights as result; of a diffusion model the pictures, their inversion and the steps back, too), but for the
loss, which is the mean absolute difference to the true pictures, and for the people, who come from the stream
of the training shards, so that their true pictures are known. What is left of the source's distance is the
ratio on the generator's card, by which `truth.way` of an evaluation is scaled (ADR 0032).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshift.config.measuring import EvaluateConfig
from zeroshift.config.recipes import recipe, recipe_for
from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import Precision, resolve_device
from zeroshift.files.images import eight_bit
from zeroshift.files.registry import load_generator
from zeroshift.files.writing import write_json
from zeroshift.measure import metrics
from zeroshift.measure.picture_sets import Drawn, PictureSet, Translated, TruePictures
from zeroshift.methods.adaptation import BACKENDS
from zeroshift.methods.backend import Given, Surroundings
from zeroshift.pictures.inversion import Route
from zeroshift.pictures.sample import parse_seeds
from zeroshift.pretrain import dataset
from zeroshift.training.loop import Average
from zeroshift.worlds.portraits import Portraits
from zeroshift.worlds.world import World

SEEDS = EvaluateConfig().seeds
"""Seeds of the people on whom the ratio is measured: those of an evaluation."""
PART = 64
"""Pictures measured at a time."""

Rows = Callable[[Any, int], Tensor]
"""True pictures BCHW of a step of a backend."""


def people(count: int) -> Tensor:
    """Latents (count, Z) of the first people of the training shards."""
    shards = -(-count // dataset.SHARD)
    return torch.cat([dataset.shard_latents(index, dataset.SHARD) for index in range(shards)])[:count]


def _lessons(config: AdaptConfig, source: Any, world: World) -> tuple[Given, Rows]:
    """What a backend gets in place of draws of its own, and the true pictures that belong to a step."""
    train, size = config.train, source.image_size
    if source.kind == "styles":
        z = people(train.steps * train.batch).unflatten(0, (train.steps, train.batch))
        return Given(stage2_z=z), lambda _, step: world.truth(z[step - 1], config.target, size)
    z = people(train.diffusion.num_pictures)
    truth = world.truth(z, config.target, size)
    photos = eight_bit(world.truth(z, world.source, size))
    return Given(pictures=photos), lambda backend, step: truth[backend.visit(step).rows]


def trained_on_truth(config: AdaptConfig, source: Any, world: World) -> Any:
    """The averaged generator after the steps of a config towards the true pictures of its target, on the
    device of the run. `source` is left as it is.

    Eq. per step: the mean of |G(z) - truth(z)| over pictures, channels and pixels; in mode per-step of a
    diffusion model of the clean picture that it predicts.
    """
    device = resolve_device(config.run.device)
    source = source.clone().to(device).requires_grad_(False)
    target, average = source.clone(), source.clone()
    given, truth = _lessons(config, source, world)
    surroundings = Surroundings(
        config, given, device, Precision("fp32", device), {}, lambda event: None, lambda loss: None
    )
    backend = BACKENDS[source.kind](surroundings, source, target, average)
    backend.prepare(())
    named = dict(target.named_parameters())
    weights = {name: named[name] for name in backend.movable}
    optimiser = backend.optimiser(list(weights.values()))
    mean = Average(average, target, weights, config.train.ema)
    for step in range(1, config.train.steps + 1):
        backend.free_layers(step, ())
        made = backend.pictures(target, backend.codes(step), step)
        loss = (made - truth(backend, step).to(made)).abs().mean()
        if (rate := backend.learning_rate(step)) is not None:
            for group in optimiser.param_groups:
                group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        mean.update()
    return average.eval()


def distances(
    config: AdaptConfig, source: Any, target: Any, world: World, seeds: str = SEEDS
) -> tuple[float, float]:
    """Mean distance to the truth of the pictures of the source and of the target, as `truth.distance` of an
    evaluation measures a run of the config."""
    numbers, size = parse_seeds(seeds), source.image_size
    before: PictureSet
    after: PictureSet
    if source.kind == "styles":
        before, after = (Drawn(each, numbers, 1.0, size, "") for each in (source, target))
    else:
        before = TruePictures(world, numbers, world.source, size)
        after = Translated(before, source, target, Route.of(config.train.diffusion), size, "")
    truth = TruePictures(world, numbers, config.target, size)
    found: list[Tensor] = []
    for start in range(0, len(numbers), PART):
        rows = slice(start, start + PART)
        true = truth.part(rows)
        pairs = [metrics.pixel_distances(each.part(rows), true) for each in (before, after)]
        found.append(torch.stack(pairs))
    of_source, of_target = torch.cat(found, dim=1).double().mean(dim=1).tolist()
    return of_source, of_target


def settings(config: AdaptConfig, kind: str, sha256: str, seeds: str = SEEDS) -> dict[str, Any]:
    """What the ratios of a kind of generator depend on, as the card says it."""
    train = config.train
    made = {
        "sha256": sha256,
        "recipe": config.run.recipe,
        "loss": "mean absolute difference to the true picture",
        "steps": train.steps,
        "batch": train.batch,
        "lr": train.lr,
        "layers": train.layers,
        "free_rgb": train.free_rgb,
        "weights": f"averaged, decay {train.ema:g}",
        "people": "the first of the training shards",
        "seeds": seeds,
    }
    if kind == "styles":
        return made
    tuning = train.diffusion
    names = ("mode", "t0", "invert_steps", "train_steps", "sample_steps", "num_pictures")
    return made | {name: getattr(tuning, name) for name in names}


def measure(generator: str, work: Path, device: str = "cpu") -> dict[str, Any]:
    """The entry `oracle` of the card of a built-in generator: settings, minutes, and by domain the ratio and
    the distance. The same call goes on after the domains that a killed one had finished, unless the settings
    have changed."""
    world = Portraits()
    source, info = load_generator(generator, device)
    configs = {
        domain: recipe(recipe_for(generator), domain, generator=generator, run={"device": device})
        for domain in world.domains[1:]
    }
    asked = settings(next(iter(configs.values())), source.kind, info.sha256)
    place = work / f"oracle-{generator}.json"
    kept = json.loads(place.read_text("utf-8")) if place.is_file() else {}
    done = kept["domains"] if kept.get("settings") == asked else {}
    work.mkdir(parents=True, exist_ok=True)
    for domain, config in configs.items():
        if domain not in done:
            began = time.perf_counter()
            before, after = distances(config, source, trained_on_truth(config, source, world), world)
            done[domain] = {
                "ratio": round(after / before, 4),
                "distance": round(after, 4),
                "source_distance": round(before, 4),
                "seconds": round(time.perf_counter() - began, 1),
            }
            write_json(place, {"settings": asked, "domains": done})
        print(f"oracle {generator}, {domain}: {json.dumps(done[domain])}", flush=True)
    columns = ("ratio", "distance", "source_distance")
    by_name = {name: {domain: row[name] for domain, row in done.items()} for name in columns}
    return {**asked, "minutes": round(sum(row["seconds"] for row in done.values()) / 60, 1), **by_name}
