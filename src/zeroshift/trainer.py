"""The machinery behind `adapt`: loading, draws, optimisers, layer selection, averaging, checkpoints and the record."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zeroshift import directions, losses, trainable
from zeroshift.checkpoints import save_generator
from zeroshift.clip import ClipModel
from zeroshift.config import AdaptConfig, to_dict
from zeroshift.devices import device_name, out_of_memory, resolve_device
from zeroshift.errors import InputError, RunError
from zeroshift.generators import Generator, Noise, noise_of
from zeroshift.guidance import PATCH_PX, Guide, Texture, unknown_words
from zeroshift.latent import draw_noise, draw_z, rng
from zeroshift.monitor import Monitor
from zeroshift.prompts import PromptMapper, prompt_mapper
from zeroshift.record import RunFolder, environment, fingerprint, save_mapper
from zeroshift.registry import load_clip, load_styled
from zeroshift.sample import draw, grid, write_png

Hook = Callable[[dict[str, Any]], None]
"""Called after every step with everything the step computed. An attribute `wants_gradients = True` adds gradient norms."""
Progress = Callable[[dict[str, Any]], None]
"""Called with small plain events: kind start, step, grid, checkpoint, monitor, warning or finish."""

PART_PIXELS = {"cpu": 4 * 256**2}
"""Pixels drawn at a time without gradient, by kind of device: activations stay small, and in a CPU's cache."""

LEGACY = 4 / 5
"""The published optimiser keeps a factor of lazy regularisation that it does not use: rate * 4/5, betas (0, 0.99 ** 4/5)."""


@dataclass(kw_only=True)
class Injected:
    """What a caller gives instead of having it drawn or loaded; every part is optional.

    Latents are (steps, B, Z). Weights are state dicts. Given CLIPs are moved to the device and type of the run.
    """

    generator: Generator | None = None
    clips: Sequence[ClipModel] | None = None
    stage1_z: Tensor | None = None
    stage2_z: Tensor | None = None
    select_z: Tensor | None = None
    mapper: Mapping[str, Tensor] | None = None
    target: Mapping[str, Tensor] | None = None
    ema: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.float32


class Trainer:
    """The moving parts of one run: models, optimisers, the place in the schedule, and the record of it."""

    def __init__(self, config: AdaptConfig, given: Injected, hook: Hook | None = None, progress: Progress | None = None) -> None:
        self.config, self.given, self.hook = config, given, hook
        self.progress = progress or (lambda event: None)
        self.folder = RunFolder.check(config)
        self.device, self.dtype = resolve_device(config.run.device), given.dtype
        self.totals = {1: config.mapper.steps if config.learns_words else 0, 2: config.train.steps}
        self.stage, self.done, self.steps_done = 1, 0, 0
        self.chosen: tuple[int, ...] = ()
        self.layers: tuple[str, ...] = ()
        self.facts: dict[str, Any] = {}
        self.noise: tuple[tuple[str, int], list[Tensor]] = ("", 0), []
        self.album: dict[int, tuple[Tensor, list[Tensor]]] = {}

    # 1. Before the first step.

    def load(self) -> None:
        """Loads and checks everything; nothing is written yet."""
        config, given = self.config, self.given
        # Generators are modules too, which the protocol does not say.
        source: Any
        if given.generator is not None:
            source, origin = given.generator.clone(), {"name": "given", "sha256": fingerprint(given.generator.state())}
        else:
            source, info = load_styled(config.generator, f"method {config.method}", self.device)
            origin = {"name": info.name, "sha256": info.sha256}
        self.source = source.to(self.device, self.dtype).requires_grad_(False)
        clips = [clip.to(self.device, self.dtype) for clip in given.clips or map(self._load_clip, config.clip)]
        for name, given_z, steps in (("stage1_z", given.stage1_z, self.totals[1]), ("stage2_z", given.stage2_z, self.totals[2])):
            if given_z is not None and len(given_z) < steps:
                raise InputError(f"{name} holds latents for {len(given_z)} steps, the run has {steps}; give one batch per step.")
        if len(clips) != len(config.weights):
            raise InputError(f"{len(clips)} CLIPs were given for {len(config.weights)} weights; give one weight each.")
        # CLIPs of one vocabulary need one warning.
        for clip in {tuple(getattr(clip.tokenizer, "vocab", [clip.name])): clip for clip in reversed(clips)}.values():
            if text := unknown_words(clip, (config.source, config.target)):
                warnings.warn(text, stacklevel=3)
                self.progress({"kind": "warning", "message": text})
        if config.losses.patch and self.source.image_size <= PATCH_PX:
            raise InputError(
                f"losses.patch needs pictures above {PATCH_PX} px, the generator's have {self.source.image_size}; set it to 0."
            )
        self.guides = [Guide.of(clip, weight, config) for clip, weight in zip(clips, config.weights, strict=True)]
        self.texture = Texture.of(config, self.guides, self._load_clip)
        clips += [self.texture.clip] if self.texture and self.texture.clip not in clips else []
        self.clips = clips
        prints = [{"name": clip.name, "sha256": fingerprint(clip.state_dict())} for clip in clips]
        self.environment = environment(device_name(self.device), origin, prints)
        self._build()

    def _load_clip(self, name: str) -> ClipModel:
        return load_clip(name, resize=self.config.quirks.resize).to(self.device, self.dtype)

    def _build(self) -> None:
        """Mapper, target, average and optimisers at their start."""
        config, given = self.config, self.given
        self.target, self.ema = self.source.clone(), self.source.clone()
        for model, state in ((self.target, given.target), (self.ema, given.ema)):
            if state is not None:
                model.load_state_dict(state)
        heads = [
            prompt_mapper(
                [guide.clip],
                guide.context,
                self.source.style_dim,
                start=config.mapper.prompt_init,
                shared=config.method == "coop",
                words=config.mapper.words,
                hidden=config.mapper.hidden or None,
                depth=config.mapper.depth,
                seed=rng("mapper", config.run.seed, index).initial_seed(),
            ).heads[0]
            for index, guide in enumerate(self.guides if config.learns_words else ())
        ]
        self.mapper = PromptMapper(cast(Any, heads)).to(self.device, self.dtype)
        if given.mapper is not None:
            self.mapper.load_state_dict(given.mapper)
        named = dict(self.target.named_parameters())
        self.weights = {name: named[name] for name in self.movable()}
        self.optimisers: dict[int, torch.optim.Adam] = {
            2: torch.optim.Adam(self.weights.values(), lr=config.train.lr * LEGACY, betas=(0.0, 0.99**LEGACY))
        }
        if config.learns_words:
            self.optimisers[1] = torch.optim.Adam(self.mapper.parameters(), lr=config.mapper.lr)
        origin = self.environment["source"]["name"], {each["sha256"] for each in self.environment["clips"]}
        self.monitor = Monitor(config, self.folder, self.source, self.guides, self.mapper, origin, self._part())
        start, mean = self.target.state_dict(), self.ema.state_dict()
        # A tensor that is equal at the start and never moves stays equal, so it needs no averaging.
        self.averaged = [
            (mean[name], start[name])
            for name in start
            if start[name].is_floating_point() and (name in self.weights or not torch.equal(mean[name], start[name]))
        ]

    # 2. Parts of a step.

    def styles(self, step: int) -> Tensor:
        """Styles BS of the latents of a step."""
        given = self.given.stage1_z if self.stage == 1 else self.given.stage2_z
        batch = self.config.mapper.batch if self.stage == 1 else self.config.train.batch
        return self._map(given, batch, f"stage{self.stage}", step)

    @torch.no_grad()
    def _map(self, given: Tensor | None, batch: int, label: str, step: int) -> Tensor:
        z_BZ = given[step - 1] if given is not None else draw_z(self.source.latent_dim, batch, self.config.run.seed, label, step)
        return self.source.map(z_BZ.to(self.device, self.dtype))

    @torch.no_grad()
    def seen(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Styles BS of a step of stage 1, and the unit features BE of their source pictures for every CLIP.

        With `mapper.pictures`, the first steps draw that many and the later ones show them again, shuffled anew every round.
        """
        batch, seed = self.config.mapper.batch, self.config.run.seed
        pages = self.config.mapper.pictures // batch
        if not pages or step <= pages:
            return self._look(step)
        # A resumed run looks again at the same pages, so that roundings are the same.
        album = [self._look(page) for page in range(1, pages + 1)]
        order = torch.randperm(pages * batch, generator=rng("stage1 order", seed, (step - 1) // pages))
        rows = order.to(self.device)[(step - 1) % pages * batch :][:batch]
        features = [torch.cat(each)[rows] for each in zip(*(page[1] for page in album), strict=True)]
        return torch.cat([page[0] for page in album])[rows], features

    def _look(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Fresh styles and features of a step, kept where they will be shown again."""
        if step in self.album:
            return self.album[step]
        w_BS = self.styles(step)
        pictures = self.pictures(self.source, w_BS, step)
        found = w_BS, [directions.normalize(guide.see(pictures)) for guide in self.guides]
        if self.config.mapper.pictures:
            self.album[step] = found
        return found

    def pictures(self, generator: Generator, w: Tensor, step: int, label: str = "") -> Tensor:
        """Pictures of styles BS or BKS, with the noise of a step."""
        label = label or f"stage{self.stage}"
        if self.config.quirks.noise == "independent" and generator is self.target:
            label += " target"
        noise = self._noise(label, step, len(w))
        size = len(w) if torch.is_grad_enabled() else self._part()
        parts = [slice(first, first + size) for first in range(0, len(w), size)]
        with self.guides[0].mixed(self.device):
            drawn = [generator.synthesize(w[part], noise_of(noise, part)).to(self.dtype) for part in parts]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    def most_at_once(self) -> int:
        """Pictures of the target that stage 2 differentiates at a time: a batch, or a part of those that select the layers."""
        train = self.config.train
        part = min(train.select_batch, self._part()) if train.layers == "adaptive" else 1
        return max(train.batch, part)

    def _part(self) -> int:
        """Pictures to draw at a time where no gradient is kept."""
        return max(1, PART_PIXELS.get(self.device.type, 16 * 256**2) // self.source.image_size**2)

    def _noise(self, label: str, step: int, batch: int) -> Noise:
        kind = self.config.quirks.noise
        if kind == "buffers" or kind == "off":
            return kind
        if self.noise[0] != (label, step):
            maps = draw_noise(self.source.noise_shapes(), batch, self.config.run.seed, label, step)
            self.noise = (label, step), [each.to(self.device, self.dtype) for each in maps]
        return self.noise[1]

    def free_layers(self, step: int) -> None:
        """Lets those weights move that this step may move, after selecting them anew where that is due."""
        train, quirks = self.config.train, self.config.quirks
        if train.layers != "adaptive":
            names = list(self.weights)
        else:
            if not self.chosen or (step - 1) % train.select_every == 0:
                self.chosen = self._select(step)
            names = trainable.select_latents(self.target, self.chosen, layer_map=quirks.layer_map, free_rgb=train.free_rgb)
        trainable.free(self.target, names)
        moving = set(names)
        self.layers = tuple(each.name for each in self.target.layers() if moving.issuperset(each.parameters))

    def _select(self, step: int) -> tuple[int, ...]:
        """The latents whose layers matter most to the target label, most first."""
        trainable.free(self.target, ())
        w_BS = self._map(self.given.select_z, self.config.train.select_batch, "select", step)

        def loss(pictures: Tensor) -> Tensor:
            return torch.stack([guide.weight * guide.label_loss(pictures.to(self.dtype)) for guide in self.guides]).sum()

        noise = self._noise("select", step, len(w_BS))
        with self.guides[0].mixed(self.device):
            scores, value = trainable.score_layers(self.target, w_BS, loss, noise=noise, part=self.most_at_once())
        self._require_finite(value, step)
        self.facts |= {"scores": scores, "selection_loss": value}
        return trainable.top_latents(scores, self.config.train.top_k or trainable.default_top_k(self.target))

    def movable(self) -> list[str]:
        """Names of all weights that may move at any step of stage 2."""
        train, layer_map = self.config.train, self.config.quirks.layer_map
        if train.layers != "adaptive":
            return trainable.select(self.target, train.layers, free_rgb=train.free_rgb)
        count = self.target.num_latents
        if train.top_k is not None and train.top_k > count:
            raise InputError(f"train.top_k is {train.top_k}, this generator has {count} latents to choose from.")
        return trainable.select_latents(self.target, range(count), layer_map=layer_map, free_rgb=train.free_rgb)

    def compare(self, guide: Guide, before: Tensor, after: Tensor, text_direction: Tensor, step: int) -> dict[str, Tensor]:
        """Loss terms of one CLIP for pictures of source and target."""
        with torch.no_grad():
            source_BE = guide.see(before)
        terms, image_direction = guide.pair_losses(source_BE, guide.see(after), text_direction)
        if self.config.losses.patch:
            size, draw = self.source.image_size, rng("patch", self.config.run.seed, step)
            centers = torch.randint(PATCH_PX // 2, size - PATCH_PX // 2, (len(after), 2), generator=draw)
            with torch.no_grad():
                source_BE = guide.see(losses.crop_patches(before, centers, PATCH_PX))
            terms["patch"] = guide.patch_loss(source_BE, guide.see(losses.crop_patches(after, centers, PATCH_PX)))
        if self.texture is not None:
            with guide.mixed(self.device):
                terms["texture"] = self.texture.loss(step, before, after)
        self.facts.setdefault("image_directions", []).append(image_direction.detach())
        self.facts.setdefault("text_directions", []).append(text_direction)
        self.facts["pictures"] = (before, after.detach())
        return terms

    def update(self, step: int, terms: Sequence[dict[str, Tensor]]) -> None:
        """One step of the stage's optimiser on the weighted sum of all CLIPs' terms."""
        per_clip = [guide.total(each) for guide, each in zip(self.guides, terms, strict=True)]
        loss = torch.stack([guide.weight * each for guide, each in zip(self.guides, per_clip, strict=True)]).sum()
        self._require_finite(loss, step)
        optimiser = self.optimisers[self.stage]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        named = self.weights if self.stage == 2 else dict(self.mapper.named_parameters())
        if getattr(self.hook, "wants_gradients", False):
            self.facts["gradients"] = {name: each.grad.norm() for name, each in named.items() if each.grad is not None}
        if self.stage == 2 and self.config.quirks.frozen_adam == "decay":
            for each in named.values():
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        optimiser.step()
        names = dict.fromkeys(name for each in terms for name in each)
        sums = {
            name: sum(guide.weight * each[name].detach() for guide, each in zip(self.guides, terms, strict=True))
            for name in names
        }
        self.facts |= {"losses": {"loss": loss.detach(), **sums}, "per_clip": [each.detach() for each in per_clip]}

    def _require_finite(self, loss: Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {loss.item()} in stage {self.stage} at step {step}; the last checkpoint is intact. "
                f"Try a lower {'mapper' if self.stage == 1 else 'train'}.lr, or precision fp32."
            )

    @torch.no_grad()
    def average(self) -> None:
        """Moves the averaged weights towards the target's, over everything that can differ; no bias correction."""
        for mean, now in self.averaged:
            mean.lerp_(now, 1 - self.config.train.ema)

    # 3. Schedule and record.

    def steps(self, stage: int) -> Iterator[int]:
        """Steps of a stage that are still to do; after each, the step is told, and saved where a checkpoint is due."""
        if self.stage > stage:
            return
        self.stage, self.done, total = stage, self.done if self.stage == stage else 0, self.totals[stage]
        if total:
            self.progress({"kind": "start", "stage": stage, "step": self.done, "steps": total})
        for step in range(self.done + 1, total + 1):
            if stage == 2 and self.monitor.stops:
                break
            self.facts, began = {}, time.perf_counter()
            yield step
            self.done, self.steps_done = step, self.steps_done + 1
            self.tell(step, total, time.perf_counter() - began)
            if stage == 2:
                self.monitor.after(step, step == total, self.ema, self.save, self.progress)
            if step == total or step % self.config.run.checkpoint_every == 0 or (stage == 2 and self.monitor.stops):
                self.checkpoint()
        if stage == 1 and total:
            save_mapper(self.folder.mapper_file, self.mapper)

    def tell(self, step: int, total: int, seconds: float) -> None:
        """Reports a step to the log, the progress and the hook, and draws the grid that is due."""
        base = {"stage": self.stage, "step": step}
        numbers = {name: float(value) for name, value in self.facts["losses"].items()}
        layers = self.layers if self.stage == 2 else ()
        line = {**base, **numbers, **({"layers": list(layers)} if layers else {}), "seconds": round(seconds, 4)}
        if step % self.config.run.log_every == 0 or step == total:
            self.folder.log(line)
        self.progress({"kind": "step", **line, "steps": total})
        every = self.config.run.grid_every
        if self.stage == 2 and every and step % every == 0:
            path = self.folder.path / "samples" / f"step_{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            pictures = draw(self.ema, range(self.config.run.samples), self.config.run.truncation)
            write_png(path, grid(pictures), {"step": str(step), "seeds": f"0-{self.config.run.samples - 1}"})
            self.progress({"kind": "grid", **base, "path": str(path)})
        if self.hook is not None:
            self.hook({"kind": "step", **base, "steps": total, **self.facts, "layers": layers, "chosen": self.chosen})

    def checkpoint(self) -> None:
        """Saves all that the next step needs; latents and noise need nothing, they are drawn by step."""
        tensors = {f"mapper/{name}": each for name, each in self.mapper.state_dict().items()}
        if self.stage == 2:
            tensors |= {f"target/{name}": each for name, each in self.target.state().items()}
            tensors |= {f"ema/{name}": each for name, each in self.ema.state().items()}
        for name, weight in self._optimised():
            for key, value in self.optimisers[self.stage].state.get(weight, {}).items():
                tensors[f"adam/{name}/{key}"] = value
        self.folder.save_checkpoint(tensors, {"stage": self.stage, "step": self.done, "chosen": self.chosen})
        self.folder.set_status("running", self.stage, self.done)
        self.progress({"kind": "checkpoint", "stage": self.stage, "step": self.done})

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to the last complete checkpoint, where there is one."""
        found = self.folder.load_checkpoint()
        if found is None:
            return
        tensors, facts = found
        self.stage, self.done, self.chosen = facts["stage"], facts["step"], tuple(facts["chosen"])
        models = {"mapper": self.mapper, "target": self.target, "ema": self.ema} if self.stage == 2 else {"mapper": self.mapper}
        for prefix, model in models.items():
            model.load_state_dict(
                {name[len(prefix) + 1 :]: each for name, each in tensors.items() if name.startswith(prefix + "/")}
            )
        for name, weight in self._optimised():
            if f"adam/{name}/step" in tensors:
                moments = {key: tensors[f"adam/{name}/{key}"].to(self.device) for key in ("exp_avg", "exp_avg_sq")}
                self.optimisers[self.stage].state[weight] = {"step": tensors[f"adam/{name}/step"], **moments}

    def _optimised(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.weights.items() if self.stage == 2 else self.mapper.named_parameters())

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Holds the run folder, resumes from it, and records how the work ended."""
        self.folder.begin(self.config, self.environment)
        try:
            self.restore()
            self.folder.open_metrics(self.stage, self.done, self.config.run.tensorboard)
            self.monitor.restore()
            self.folder.set_status("running", self.stage, self.done)
            yield
            self.finish()
        except KeyboardInterrupt:
            saved = self._failed("stopped", "stopped by the keyboard")
            raise KeyboardInterrupt(f"stopped in stage {self.stage} after step {self.done}; {saved}") from None
        except Exception as error:
            if not out_of_memory(error):
                self._failed("failed", str(error))
                raise
            self._failed("failed", "out of memory")
            raise RunError(self._smaller()) from error
        finally:
            self.folder.close()

    def _failed(self, state: str, message: str) -> str:
        """Records a bad end, if the disk lets it, and says where the run will go on."""
        with contextlib.suppress(OSError, RunError):
            self.folder.set_status(state, self.stage, self.done, message)
        found = self.folder.checkpoint_file.is_file()
        return f"the same command goes on from the last checkpoint in {self.folder.path}." if found else "nothing was saved yet."

    def _smaller(self) -> str:
        """What to try when memory ran out."""
        name, batch = ("mapper.batch", self.config.mapper.batch) if self.stage == 1 else ("train.batch", self.config.train.batch)
        tip = f"try {name} {batch // 2}" if batch > 1 + (self.stage == 1) else "try precision bf16 or a smaller generator"
        if self.stage == 2 and self.most_at_once() > batch:
            tip = f"try train.select_batch {max(1, self.config.train.select_batch // 2)}, or {tip[4:]}"
        return f"out of memory in stage {self.stage} at step {self.done + 1} with {name} {batch}; {tip}."

    def finish(self) -> None:
        """Writes the adapted generator: that of the last step, or of the best look where the run went on until it converged."""
        if (best := self.monitor.result()) is not None:
            cast(Any, self.ema).load_state_dict(cast(Any, best).state_dict())
        self.save(self.folder.generator_file)
        message = self.monitor.stops if self.done < self.totals[2] else ""
        self.folder.set_status("finished", 2, self.done, message)
        self.progress({"kind": "finish", "path": str(self.folder.path), "message": message})

    def save(self, path: Path, **facts: str) -> None:
        """Writes the averaged generator, with all that made it in its metadata."""
        config, source = self.config, self.environment["source"]
        made = {"method": config.method, "source": config.source, "target": config.target, "seed": str(config.run.seed)}
        made |= {"run": json.dumps(to_dict(config) | {"out": None})}
        save_generator(path, self.ema, made | {f"source_{key}": source[key] for key in ("name", "sha256")} | facts)
