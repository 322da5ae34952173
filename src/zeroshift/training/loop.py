"""The machinery behind `adapt`, for every kind of generator: loading, losses, optimisers, averaging,
checkpoints, the record."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import AdaptConfig, to_dict
from zeroshift.devices import device_name, out_of_memory, resolve_device
from zeroshift.errors import InputError, RunError
from zeroshift.files.checkpoints import AnyGenerator, save_generator
from zeroshift.files.images import grid, write_png
from zeroshift.files.registry import load_clip, load_generator
from zeroshift.files.writing import fingerprint
from zeroshift.measure.monitor import Monitor
from zeroshift.measure.networks import IdentityNetwork, open_identity
from zeroshift.methods import losses
from zeroshift.methods.guidance import PATCH_PX, Guide, Texture, unknown_words
from zeroshift.methods.prompts import PromptMapper, prompt_mapper, save_mapper
from zeroshift.models.protocol import Generator
from zeroshift.models.seeds import rng
from zeroshift.training.run_folder import RunFolder, environment
from zeroshift.worlds.known import world_of

Hook = Callable[[dict[str, Any]], None]
"""Called after every step with everything the step computed. An attribute `wants_gradients = True` adds
gradient norms."""
Progress = Callable[[dict[str, Any]], None]
"""Called with small plain events: kind start, step, grid, checkpoint, monitor, warning or finish."""


@dataclass(kw_only=True)
class Injected:
    """What a caller gives instead of having it drawn or loaded; every part is optional.

    Latents are (steps, B, Z); `pictures` are those that a diffusion model learns from. Weights are state
    dicts. Given CLIPs are moved to the device and type of the run.
    """

    generator: AnyGenerator | Generator | None = None
    clips: Sequence[ClipModel] | None = None
    stage1_z: Tensor | None = None
    stage2_z: Tensor | None = None
    select_z: Tensor | None = None
    pictures: Tensor | None = None
    mapper: Mapping[str, Tensor] | None = None
    target: Mapping[str, Tensor] | None = None
    ema: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.float32


Source = tuple[Any, dict[str, str]]
"""A source generator, and its name and hash."""


def open_source(config: AdaptConfig, given: Injected) -> Source:
    """The source generator of a run, on the device where it was given or on that of the run."""
    if given.generator is not None:
        return given.generator.clone(), {"name": "given", "sha256": fingerprint(given.generator.state())}
    source, info = load_generator(config.generator, resolve_device(config.run.device))
    return source, {"name": info.name, "sha256": info.sha256, "world": info.world}


class Trainer(ABC):
    """The moving parts of one run: models, optimisers, the place in the schedule, and the record of it.

    A picture has a code, from which its words are learned: its style, or where the generator has none another
    vector.
    """

    def __init__(
        self,
        config: AdaptConfig,
        given: Injected,
        hook: Hook | None = None,
        progress: Progress | None = None,
        opened: Source | None = None,
    ) -> None:
        """`opened`: the source generator, where it is there already."""
        self.config, self.given, self.hook = config, given, hook
        self.progress = progress or (lambda event: None)
        self.folder = RunFolder.check(config)
        self.device, self.dtype = resolve_device(config.run.device), given.dtype
        self.totals = {1: config.mapper.steps if config.learns_words else 0, 2: config.train.steps}
        self.stage, self.done, self.steps_done = 1, 0, 0
        self.chosen: tuple[int, ...] = ()
        self.layers: tuple[str, ...] = ()
        self.facts: dict[str, Any] = {}
        self.opened = opened

    # 1. Before the first step.

    def load(self) -> None:
        """Loads and checks everything; nothing is written yet."""
        config, given = self.config, self.given
        source, origin = self.opened or open_source(config, given)
        self.source = source.to(self.device, self.dtype).requires_grad_(False)
        clips = [
            clip.to(self.device, self.dtype) for clip in given.clips or map(self._load_clip, config.clip)
        ]
        self.check()
        if len(clips) != len(config.weights):
            raise InputError(
                f"{len(clips)} CLIPs were given for {len(config.weights)} weights; give one weight each."
            )
        # CLIPs of one vocabulary need one warning.
        for clip in {
            tuple(getattr(clip.tokenizer, "vocab", [clip.name])): clip for clip in reversed(clips)
        }.values():
            if text := unknown_words(clip, (config.source, config.target)):
                warnings.warn(text, stacklevel=3)
                self.progress({"kind": "warning", "message": text})
        if config.losses.patch and self.source.image_size <= PATCH_PX:
            raise InputError(
                f"losses.patch needs pictures above {PATCH_PX} px, the generator's have "
                f"{self.source.image_size}; set it to 0."
            )
        self.identity = self._identity(origin) if config.losses.identity else None
        self.guides = [
            Guide.of(clip, weight, config) for clip, weight in zip(clips, config.weights, strict=True)
        ]
        self.texture = Texture.of(config, self.guides, self._load_clip)
        clips += [self.texture.clip] if self.texture and self.texture.clip not in clips else []
        self.clips = clips
        prints = [{"name": clip.name, "sha256": fingerprint(clip.state_dict())} for clip in clips]
        self.environment = environment(device_name(self.device), origin, prints)
        self._build()

    def _load_clip(self, name: str) -> ClipModel:
        return load_clip(name, resize=self.config.quirks.resize).to(self.device, self.dtype)

    def _identity(self, origin: dict[str, str]) -> IdentityNetwork:
        """The face network of the identity loss."""
        found = open_identity(self.config.losses.identity_network, world_of(origin), self.device)
        if found is None:
            raise InputError(
                "losses.identity needs a face network: give losses.identity_network, a file "
                "model_ir_se50.pth."
            )
        return found

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
                self.code_width(guide),
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
        self.optimisers = {2: self.optimiser(list(self.weights.values()))}
        if config.learns_words:
            self.optimisers[1] = torch.optim.Adam(self.mapper.parameters(), lr=config.mapper.lr)
        origin = self.environment["source"]["name"], {each["sha256"] for each in self.environment["clips"]}
        self.monitor = Monitor(config, self.folder, self, self.guides, self.mapper, origin)
        start, mean = self.target.state_dict(), self.ema.state_dict()
        # A tensor that is equal at the start and never moves stays equal, so it needs no averaging.
        self.averaged = [
            (mean[name], start[name])
            for name in start
            if start[name].is_floating_point()
            and (name in self.weights or not torch.equal(mean[name], start[name]))
        ]

    # 2. What depends on the kind of generator.

    @abstractmethod
    def check(self) -> None:
        """Refuses, in words, options that do not fit the generator."""

    @abstractmethod
    def code_width(self, guide: Guide) -> int:
        """Width of the codes that the mapper's head for a CLIP takes."""

    @abstractmethod
    def optimiser(self, weights: list[nn.Parameter]) -> torch.optim.Adam:
        """That of stage 2."""

    @abstractmethod
    def movable(self) -> list[str]:
        """Names of all weights that may move at any step of stage 2."""

    @abstractmethod
    def codes(self, step: int) -> Any:
        """Codes of the pictures of a step."""

    @abstractmethod
    def seen(self, step: int) -> tuple[Any, list[Tensor]]:
        """Codes of a step of stage 1, and the unit features BE of their source pictures for every CLIP."""

    @abstractmethod
    def pictures(self, generator: Any, codes: Any, step: int) -> Tensor:
        """Pictures BCHW of the codes of a step, by source or target."""

    @abstractmethod
    def free_layers(self, step: int) -> None:
        """Lets those weights move that this step may move."""

    @abstractmethod
    def most_at_once(self) -> int:
        """Pictures of the target that stage 2 differentiates at a time."""

    @abstractmethod
    def watched(self, count: int) -> Any:
        """Codes of the pictures that the monitor watches."""

    @abstractmethod
    def view(self, generator: Any, codes: Any) -> Tensor:
        """Watched pictures BCHW, by the source or by another generator."""

    @abstractmethod
    def shown(self) -> Tensor:
        """Pictures BCHW of a sample grid, by the averaged generator."""

    @abstractmethod
    def trial(self) -> Any:
        """Codes of one picture, by which the memory of a step is measured before a run."""

    def many_codes(self, count: int) -> Any:
        """Codes of about as many pictures, for means over pictures."""
        return self.watched(count)

    def prepare(self) -> None:
        """What is to be done before the first step, once the run folder is held."""
        return None

    def carried(self) -> dict[str, Tensor]:
        """What goes on from one step to the next beside weights and optimiser."""
        return {}

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Goes on with what was carried when a checkpoint was written."""
        return None

    def face(self, after: Tensor) -> Tensor:
        """The target's pictures as the identity loss takes them."""
        return after

    # 3. Parts of a step.

    @torch.no_grad()
    def before(self, guide: Guide, pictures: Tensor, step: int) -> Tensor:
        """What a CLIP sees in the source's pictures of a step, B,E."""
        return guide.see(pictures)

    def compare(
        self, guide: Guide, before: Tensor, after: Tensor, text_direction: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Loss terms of one CLIP for pictures of source and target."""
        terms, image_direction = guide.pair_losses(
            self.before(guide, before, step), guide.see(after), text_direction
        )
        if self.config.losses.patch:
            size, draw = self.source.image_size, rng("patch", self.config.run.seed, step)
            centers = torch.randint(PATCH_PX // 2, size - PATCH_PX // 2, (len(after), 2), generator=draw)
            with torch.no_grad():
                source_BE = guide.see(losses.crop_patches(before, centers, PATCH_PX))
            terms["patch"] = guide.patch_loss(
                source_BE, guide.see(losses.crop_patches(after, centers, PATCH_PX))
            )
        if self.texture is not None:
            with guide.mixed(self.device):
                terms["texture"] = self.texture.loss(step, before, after)
        if self.config.losses.pixel:
            terms["pixel"] = losses.pixel(before, after)
        if self.config.losses.raster:
            terms["raster"] = losses.raster(before, after)
        if self.identity is not None:
            with torch.no_grad():
                source_BE = self.identity.embed(before.float())
            terms["identity"] = losses.identity(source_BE, self.identity.embed(self.face(after).float()))
        self.facts.setdefault("image_directions", []).append(image_direction.detach())
        self.facts.setdefault("text_directions", []).append(text_direction)
        self.facts["pictures"] = (before, after.detach())
        return terms

    def update(self, step: int, terms: Sequence[dict[str, Tensor]]) -> None:
        """One step of the stage's optimiser on the weighted sum of all CLIPs' terms."""
        pairs = list(zip(self.guides, terms, strict=True))
        per_clip = [guide.total(each) for guide, each in pairs]
        loss = torch.stack(
            [guide.weight * each for guide, each in zip(self.guides, per_clip, strict=True)]
        ).sum()
        self._require_finite(loss, step)
        optimiser = self.optimisers[self.stage]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        named = self.weights if self.stage == 2 else dict(self.mapper.named_parameters())
        if getattr(self.hook, "wants_gradients", False):
            self.facts["gradients"] = {
                name: each.grad.norm() for name, each in named.items() if each.grad is not None
            }
        if self.stage == 2 and self.config.quirks.frozen_adam == "decay":
            for each in named.values():
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        optimiser.step()
        names = dict.fromkeys(name for each in terms for name in each)
        sums = {name: sum(guide.weight * each[name].detach() for guide, each in pairs) for name in names}
        self.facts |= {
            "losses": {"loss": loss.detach(), **sums},
            "per_clip": [each.detach() for each in per_clip],
        }

    def _require_finite(self, loss: Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise RunError(
                f"the loss became {loss.item()} in stage {self.stage} at step {step}; the last checkpoint "
                "is intact. "
                f"Try a lower {'mapper' if self.stage == 1 else 'train'}.lr, or precision fp32."
            )

    @torch.no_grad()
    def average(self) -> None:
        """Moves the averaged weights towards the target's, over everything that can differ; no bias
        correction."""
        for mean, now in self.averaged:
            mean.lerp_(now, 1 - self.config.train.ema)

    # 4. Schedule and record.

    def steps(self, stage: int) -> Iterator[int]:
        """Steps of a stage that are still to do; after each, the step is told, and saved where a checkpoint
        is due."""
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
            if (
                step == total
                or step % self.config.run.checkpoint_every == 0
                or (stage == 2 and self.monitor.stops)
            ):
                self.checkpoint()
        if stage == 1 and total:
            save_mapper(self.folder.mapper_file, self.mapper)

    def tell(self, step: int, total: int, seconds: float) -> None:
        """Reports a step to the log, the progress and the hook, and draws the grid that is due."""
        base = {"stage": self.stage, "step": step}
        numbers = {name: float(value) for name, value in self.facts["losses"].items()}
        layers = self.layers if self.stage == 2 else ()
        line = {
            **base,
            **numbers,
            **({"layers": list(layers)} if layers else {}),
            "seconds": round(seconds, 4),
        }
        if step % self.config.run.log_every == 0 or step == total:
            self.folder.log(line)
        self.progress({"kind": "step", **line, "steps": total})
        every = self.config.run.grid_every
        if self.stage == 2 and every and step % every == 0:
            path = self.folder.path / "samples" / f"step_{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            write_png(
                path, grid(self.shown()), {"step": str(step), "seeds": f"0-{self.config.run.samples - 1}"}
            )
            self.progress({"kind": "grid", **base, "path": str(path)})
        if self.hook is not None:
            self.hook(
                {
                    "kind": "step",
                    **base,
                    "steps": total,
                    **self.facts,
                    "layers": layers,
                    "chosen": self.chosen,
                }
            )

    def checkpoint(self) -> None:
        """Saves all that the next step needs; latents and noise need nothing, they are drawn by step."""
        tensors = {f"mapper/{name}": each for name, each in self.mapper.state_dict().items()}
        if self.stage == 2:
            tensors |= {f"target/{name}": each for name, each in self.target.state().items()}
            tensors |= {f"ema/{name}": each for name, each in self.ema.state().items()}
        for name, weight in self._optimised():
            for key, value in self.optimisers[self.stage].state.get(weight, {}).items():
                tensors[f"adam/{name}/{key}"] = value
        tensors |= {f"carried/{name}": each for name, each in self.carried().items()}
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
        models = (
            {"mapper": self.mapper, "target": self.target, "ema": self.ema}
            if self.stage == 2
            else {"mapper": self.mapper}
        )
        for prefix, model in models.items():
            model.load_state_dict(
                {
                    name[len(prefix) + 1 :]: each
                    for name, each in tensors.items()
                    if name.startswith(prefix + "/")
                }
            )
        self.carry(
            {
                name.removeprefix("carried/"): each
                for name, each in tensors.items()
                if name.startswith("carried/")
            }
        )
        for name, weight in self._optimised():
            if f"adam/{name}/step" in tensors:
                moments = {
                    key: tensors[f"adam/{name}/{key}"].to(self.device) for key in ("exp_avg", "exp_avg_sq")
                }
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
            self.prepare()
            yield
            self.finish()
        except KeyboardInterrupt:
            saved = self._failed("stopped", "stopped by the keyboard")
            raise KeyboardInterrupt(
                f"stopped in stage {self.stage} after step {self.done}; {saved}"
            ) from None
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
        return (
            f"the same command goes on from the last checkpoint in {self.folder.path}."
            if found
            else "nothing was saved yet."
        )

    def _smaller(self) -> str:
        """That memory ran out, and what to try."""
        name, batch = (
            ("mapper.batch", self.config.mapper.batch)
            if self.stage == 1
            else ("train.batch", self.config.train.batch)
        )
        return (
            f"out of memory in stage {self.stage} at step {self.done + 1} with {name} {batch}; "
            f"{self.smaller()}."
        )

    def smaller(self) -> str:
        """What to try when memory ran out."""
        name, batch = (
            ("mapper.batch", self.config.mapper.batch)
            if self.stage == 1
            else ("train.batch", self.config.train.batch)
        )
        tip = (
            f"try {name} {batch // 2}"
            if batch > 1 + (self.stage == 1)
            else "try precision bf16 or a smaller generator"
        )
        if self.stage == 2 and self.most_at_once() > batch:
            tip = f"try train.select_batch {max(1, self.config.train.select_batch // 2)}, or {tip[4:]}"
        return tip

    def finish(self) -> None:
        """Writes the adapted generator: that of the last step, or of the best look where the run went on
        until it converged."""
        if (best := self.monitor.result()) is not None:
            cast(Any, self.ema).load_state_dict(cast(Any, best).state_dict())
        self.save(self.folder.generator_file)
        message = self.monitor.stops if self.done < self.totals[2] else ""
        self.folder.set_status("finished", 2, self.done, message)
        self.progress({"kind": "finish", "path": str(self.folder.path), "message": message})

    def save(self, path: Path, **facts: str) -> None:
        """Writes the averaged generator, with all that made it in its metadata."""
        config, source = self.config, self.environment["source"]
        made = {
            "method": config.method,
            "source": config.source,
            "target": config.target,
            "seed": str(config.run.seed),
        }
        made |= {"run": json.dumps(to_dict(config) | {"out": None})}
        save_generator(
            path, self.ema, made | {f"source_{key}": source[key] for key in ("name", "sha256")} | facts
        )
