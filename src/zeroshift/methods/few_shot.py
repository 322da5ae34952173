"""A run that learns from a few pictures, the shots, against a discriminator; and the parts of its steps.

The contract. A method is a file with `open_run` and `train`, like `tgan.py`, the plainest; its `train` writes
the step down with the functions of section 3, in the order of its paper:

    for step in run.loop.steps(2):
        run.free("discriminator")
        ...logits of `real_pictures` and of `made_pictures`, terms...
        run.loop.update("discriminator", terms)
        regularise_discriminator(run, step)
        run.free("target")
        ...
        run.loop.update("target", terms)
        regularise_generator(run, step)
        run.loop.average()

What a method may change, by a subclass of `FewShotRun`:

- terms of either loss: `terms.group().add(name, value, weight)` in its own step; a term of weight 0 is only
  told.
- other latents (anchors): a `Latents` of its own in place of `random_latents`. The same latents by
  `run.source` and `run.target` are a pair, with the same noise.
- what judges pictures in a step: `logits`.
- further networks (heads), trained like the discriminator and with it: `heads()`, later `run.networks`. Adam
  treats every weight on its own, so one optimiser for all is the same as one for each. A head that a step
  does not use is skipped.
- other weights of the target that move: `movable()`, their names, once what computes them is in place in
  `run.target` and `run.average` alike.
- a stage before this one: `stages()`, with the number 1, and `for step in run.loop.steps(1)` in `train`.
- what goes on from step to step: `state` and `resume`, beside what they give here.

Every draw is keyed by (seed, what for, step, sample), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.files.registry import load_discriminator
from zeroshift.files.writing import fingerprint
from zeroshift.measure.networks import Judge
from zeroshift.measure.watching import ShotWatcher, map_features
from zeroshift.methods import adversarial
from zeroshift.methods.adaptation import AdaptationRun
from zeroshift.methods.augmentation import Augmentation
from zeroshift.methods.backend import Given
from zeroshift.methods.style_backend import StyleBackend
from zeroshift.models import layers
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.seeds import draw_z, mix, rng
from zeroshift.shapes import Feature, Latent, Picture
from zeroshift.training.loop import Average, Hook, Progress, Stage, Trained
from zeroshift.training.terms import Terms

PATH_SHRINK = 2
"""How many times smaller than a batch that of path length regularisation is, as published."""

FINEST = 16
"""Side, in pixels, from which on down FreezeD trains the discriminator's blocks, where no number is given."""


# 1. The discriminator.


@dataclass(frozen=True)
class Found:
    """A discriminator, and what records say of it."""

    network: StyleGAN2Discriminator
    name: str
    """What it was found by; "new" for one that knows nothing yet."""


def open_discriminator(config: AdaptConfig, given: Given, source: Any) -> Found:
    """The discriminator that a run begins with: the one that is asked for, or the one that belongs to the
    source generator, or a new one, drawn from the seed of the run. InputError where one is asked for and is
    not there, or sees pictures of another size."""
    if given.discriminator is not None:
        return _fitting(copy.deepcopy(given.discriminator), "given", source)
    name = config.own.adversarial.discriminator
    if not name and given.generator is None:
        try:
            return _fitting(load_discriminator(config.generator), config.generator, source)
        except InputError:
            # Most files of generators hold no discriminator.
            pass
    if name:
        return _fitting(load_discriminator(name), name, source)
    seed = rng("discriminator", config.run.seed).initial_seed()
    return Found(StyleGAN2Discriminator(source.config, seed=seed), "new")


def _fitting(network: StyleGAN2Discriminator, name: str, source: Any) -> Found:
    size = network.config.size
    if size != source.image_size:
        raise InputError(
            f"the discriminator {name} judges pictures of {size} px, the generator makes them with "
            f"{source.image_size}; give adversarial.discriminator another one, or leave it out."
        )
    return Found(network, name)


def frozen_blocks(config: AdaptConfig, discriminator: StyleGAN2Discriminator) -> int:
    """How many blocks of the discriminator are frozen, counted from the picture's side. InputError where
    nothing would be left to learn."""
    wanted = config.own.adversarial.freeze
    if wanted is None:
        above = discriminator.config.size // FINEST
        # From colours to features, and one block per halving down to FINEST.
        return {"freezed": above.bit_length(), "adam": 1}.get(config.method, 0)
    most = len(discriminator.blocks()) - 1
    if wanted > most:
        raise InputError(
            f"adversarial.freeze is {wanted}, this discriminator has {most} blocks above the last one, which "
            f"judges; give at most {most}."
        )
    return wanted


# 2. The run.


class FewShotRun(AdaptationRun):
    """A run with shots and a discriminator."""

    backend: StyleBackend

    def __init__(
        self, config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
    ) -> None:
        """InputError where an option does not fit the generator, a file is missing, or there are too few
        pictures."""
        super().__init__(config, given, progress)
        if config.train.layers == "adaptive":
            raise InputError(
                f"train.layers 'adaptive' asks CLIPs which layers matter, and method {config.method} has "
                "none; set it to 'all', a phase or layer names."
            )
        assert self.found_shots is not None, "the table of methods asks for them"
        self.shots = self.found_shots.pictures.to(self.device, self.dtype)
        """Pictures NCHW of the target, in [-1, 1]."""
        opened = self._open_discriminator()
        self.discriminator = opened.network
        if opened.name == "new":
            text = (
                f"no discriminator belongs to {config.generator}, so a new one begins, which knows nothing "
                "yet; give adversarial.discriminator where you have one."
            )
            warnings.warn(text, stacklevel=4)
            self.progress({"kind": "warning", "message": text})
        self.networks = nn.ModuleDict(self.heads())
        """What `heads` gave, by name."""
        self.networks.to(self.device, self.dtype)
        self.augmentation = Augmentation(config, len(self.shots))
        """What changes the pictures that are judged."""
        self.path_mean = torch.zeros((), device=self.device, dtype=self.dtype)
        """Running mean of path lengths."""
        self.moving = self.movable()
        """Names of the parameters of the target that move."""
        self.backend.moving = layers.moving_layers(self.target, self.moving)
        for each in (self.target, self.average, self.discriminator, self.networks):
            each.requires_grad_(False)
        sha256 = fingerprint(self.discriminator.state_dict())
        record = {"discriminator": {"name": opened.name, "sha256": sha256}}
        self._begin(record, [], hook)

    def _open_discriminator(self) -> Found:
        found = open_discriminator(self.config, self.given, self.source)
        found.network.to(self.device, self.dtype)
        return found

    # What a method may change.

    def heads(self) -> dict[str, nn.Module]:
        """Further networks by name, which are trained and saved beside the discriminator."""
        return {}

    def movable(self) -> list[str]:
        """Names of the parameters of the target that move."""
        return self.backend.movable

    def logits(self, pictures: Picture, label: str, step: int) -> Tensor:
        """Logits B1 of pictures by the discriminator; of other shapes by a head that judges parts of them."""
        return self.discriminator(pictures)

    def stages(self) -> tuple[Stage, ...]:
        """The one stage in which target and discriminator learn from each other."""
        train = self.config.train
        networks = dict(self.networks.items())
        return (
            Stage(
                2,
                train.steps,
                {"target": self.trained_target(), "discriminator": self.trained_discriminator()},
                {"target": self.target, "ema": self.average, "discriminator": self.discriminator} | networks,
                "train",
                train.batch,
                (Average(self.average, self.target, self.moving, train.ema),),
            ),
        )

    def trained_target(self) -> Trained:
        """What moves in the target."""
        named = dict(self.target.named_parameters())
        weights = {name: named[name] for name in self.moving}
        options = self.config.own.adversarial
        lr, betas = adversarial.lazy_adam(self.config.train.lr, options.path_every if options.path else 0)
        return Trained(weights, torch.optim.Adam(weights.values(), lr=lr, betas=betas))

    def trained_discriminator(self) -> Trained:
        """The blocks that are not frozen, and all of the heads."""
        options = self.config.own.adversarial
        named = dict(self.discriminator.named_parameters())
        free = self.discriminator.blocks()[frozen_blocks(self.config, self.discriminator) :]
        weights = {name: named[name] for block in free for name in block}
        weights |= dict(self.networks.named_parameters())
        lr, betas = adversarial.lazy_adam(options.lr, options.r1_every if options.r1 else 0)
        return Trained(weights, torch.optim.Adam(weights.values(), lr=lr, betas=betas))

    # What a step uses.

    @property
    def trains(self) -> Mapping[str, Trained]:
        """What learns in the stage in which target and discriminator learn from each other."""
        return self.loop.stages[2].trains

    def free(self, part: str) -> None:
        """Lets gradients reach the weights of one part, and no others."""
        for name, trained in self.trains.items():
            for weight in trained.weights.values():
                weight.requires_grad_(name == part)

    def judge(self, pictures: Picture, label: str, step: int, *, precise: bool = False) -> Tensor:
        """The `logits` of pictures, as networks are shown them (`augmented`); in full precision where
        penalties differentiate them twice. `label` and `step` are what all that is random in it is keyed
        by."""
        shown = self.augmented(pictures, label, step)
        if precise:
            return self.logits(shown, label, step)
        with self.precision.autocast():
            return self.logits(shown, label, step).to(self.dtype)

    def all_logits(self, pictures: Picture, label: str, step: int) -> Any:
        """All logits of pictures in a step, by which the memory of a run is estimated: those of `judge`."""
        return self.judge(pictures, label, step)

    def augmented(self, pictures: Picture, label: str, step: int) -> Picture:
        """Pictures as every network that judges is shown them, real and made alike: differentiable, twice
        too, and alike for equal `label` and `step`."""
        if self.augmentation.adaptive is not None:
            told = torch.tensor(self.augmentation.p)
            self.step_log.setdefault("losses", {})["augment_p"] = told
        return self.augmentation(pictures, label, step)

    def after_step(self, stage: int, step: int, last: bool) -> None:
        """Lets an adaptive augmentation see r_t, and shows the run to its monitor."""
        sign = self.step_log.get("losses", {}).get("overfitting")
        if sign is not None:
            self.augmentation.see(float(sign), self.config.train.batch)
        super().after_step(stage, step, last)

    # What goes on from step to step.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the backend and the augmentation carry, and the mean of path lengths."""
        tensors, facts = super().state()
        return tensors | self.augmentation.state() | {"path_mean": self.path_mean}, facts

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on with what `state` gave."""
        super().resume(tensors, facts)
        self.augmentation.resume(tensors)
        self.path_mean = tensors["path_mean"].to(self.device)

    # What the monitor asks.

    def watcher(self, codes: Any, pictures: Picture, judge: Callable[[], Judge | None]) -> ShotWatcher:
        """The judge of the source's world, whose features tell its pictures apart; elsewhere the
        discriminator as it began, which no step has changed."""
        judging = judge()
        if judging is not None:
            return ShotWatcher(judging.features, pictures.float(), self.shots.float(), self.overfitting)
        began = self._open_discriminator().network.requires_grad_(False)

        def encode(shown: Picture) -> Feature:
            return torch.cat([map_features(began(part, features=True)[1]) for part in shown.split(16)])

        return ShotWatcher(encode, pictures, self.shots, self.overfitting)

    @torch.no_grad()
    def overfitting(self) -> float:
        """r_t of the discriminator on all shots, as they are."""
        parts = self.shots.split(self.config.train.batch)
        return float(adversarial.overfitting(torch.cat([self.discriminator(part) for part in parts])))

    def memory_tip(self, stage: int) -> str:
        """What to try where memory ran out."""
        batch = self.config.train.batch
        return f"try train.batch {batch // 2}" if batch > 1 else "try precision bf16 or a smaller generator"


# 3. Parts of a step.


@dataclass(frozen=True)
class Latents:
    """What pictures of a step are drawn from."""

    z: Latent
    """Noise BZ."""
    label: str
    """What the pictures are for: with the step, the key of their noise maps."""
    step: int
    second: Latent | None = None
    """Noise BZ of the style from layer `cut` on, where two are mixed."""
    cut: int = 0


def random_latents(run: FewShotRun, label: str, count: int | None = None, *, step: int) -> Latents:
    """Latents of a batch, or of `count` pictures; at random mixed with others, all from the same layer on."""
    seed = run.config.run.seed
    size = run.source.latent_dim, run.config.train.batch if count is None else count
    z = draw_z(*size, seed, f"few-shot {label}", step)
    draw = rng("mixing", seed, label, step)
    if float(torch.rand((), generator=draw)) >= run.config.own.adversarial.mixing:
        return Latents(z, label, step)
    second = draw_z(*size, seed, f"few-shot {label} mixed", step)
    cut = int(torch.randint(1, run.source.num_latents, (), generator=draw))
    return Latents(z, label, step, second, cut)


def styles(run: FewShotRun, generator: Any, latents: Latents) -> Tensor:
    """Styles BKS of latents by a generator's own mapping."""
    w_BS = generator.map(latents.z.to(run.device, run.dtype))
    count = generator.num_latents
    if latents.second is None:
        return w_BS[:, None].expand(-1, count, -1)
    return mix(w_BS, generator.map(latents.second.to(run.device, run.dtype)), latents.cut, count)


def made_pictures(run: FewShotRun, generator: Any, latents: Latents) -> Picture:
    """Pictures BCHW of latents by a generator, with the noise of their label and step."""
    return run.backend.draw(generator, styles(run, generator, latents), latents.label, latents.step)


def real_pictures(run: FewShotRun, step: int) -> Picture:
    """Shots BCHW of a step, some of them mirrored: all are shown equally often, in a new order every
    round."""
    seed, count, batch = run.config.run.seed, len(run.shots), run.config.train.batch
    places = range((step - 1) * batch, step * batch)
    orders = {
        number: torch.randperm(count, generator=rng("shots", seed, number))
        for number in {place // count for place in places}
    }
    real = run.shots[[int(orders[place // count][place % count]) for place in places]]
    chances = torch.stack([torch.rand((), generator=rng("flip", seed, step, i)) for i in range(batch)])
    flipped = (chances < run.config.own.adversarial.flip).to(run.device)
    return torch.where(flipped[:, None, None, None], real.flip(3), real)


def learn_to_judge(run: FewShotRun, step: int, latents: Latents) -> None:
    """The discriminator's turn: a step on how well it tells shots from pictures of the target, and one on R1
    where that is due."""
    run.free("discriminator")
    with torch.no_grad():
        made = made_pictures(run, run.target, latents)
    terms = Terms()
    real = run.judge(real_pictures(run, step), "real", step)
    discriminator_terms(terms, real, run.judge(made, "made", step))
    run.loop.update("discriminator", terms)
    regularise_discriminator(run, step)


def discriminator_terms(terms: Terms, real: Tensor, fake: Tensor) -> None:
    """Adds the logistic loss of logits, and tells r_t."""
    added = terms.group()
    added.add("discriminator", adversarial.discriminator_loss(real, fake))
    added.add("overfitting", adversarial.overfitting(real), 0.0)


def regularise_discriminator(
    run: FewShotRun, step: int, judge: Callable[[Picture], Tensor] | None = None
) -> None:
    """Where R1 is due, a step of the discriminator on it alone, on the shots of the step. `judge`: logits of
    pictures, where not the discriminator's own are meant."""
    options = run.config.own.adversarial
    weight = adversarial.lazy(options.r1 / 2, options.r1_every, step)
    if not weight:
        return
    real = real_pictures(run, step).requires_grad_()
    logits = run.judge(real, "r1", step, precise=True) if judge is None else judge(real)
    terms = Terms()
    terms.group().add("r1", adversarial.r1_penalty(logits, real), weight)
    run.loop.update("discriminator", terms)


def regularise_generator(run: FewShotRun, step: int) -> None:
    """Where path length regularisation is due, a step of the target on it alone, on pictures of its own."""
    options = run.config.own.adversarial
    weight = adversarial.lazy(options.path, options.path_every, step)
    if not weight:
        return
    lengths = target_path_lengths(run, step)
    penalty, run.path_mean = adversarial.path_regularisation(lengths, run.path_mean)
    terms = Terms()
    terms.group().add("path", penalty, weight)
    run.loop.update("target", terms)


def target_path_lengths(run: FewShotRun, step: int, latents: Latents | None = None) -> Tensor:
    """Path lengths B of the target in full precision, of latents or of a small batch of random ones."""
    count = max(1, run.config.train.batch // PATH_SHRINK)
    drawn = latents or random_latents(run, "path", count, step=step)
    w_BKS = styles(run, run.target, drawn)
    if not w_BKS.requires_grad:  # where the mapping does not move
        w_BKS = w_BKS.detach().requires_grad_()
    pictures = run.target.synthesize(w_BKS, run.backend.noise("path", step, len(w_BKS)))
    shape, seed = pictures.shape[1:], run.config.run.seed
    noise = torch.stack(
        [torch.randn(shape, generator=rng("path noise", seed, step, i)) for i in range(len(pictures))]
    )
    return adversarial.path_lengths(pictures, w_BKS, noise.to(pictures))


def open_run(
    config: AdaptConfig, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> FewShotRun:
    """A run of a method that changes nothing of a few-shot run, loaded and checked; nothing is written."""
    return FewShotRun(config, given, hook, progress)
