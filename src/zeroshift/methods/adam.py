"""AdAM: the filters that matter to the target are kept and modulated, all others move.

AdAM, Adaptation-Aware kernel Modulation (Zhao et al., NeurIPS 2022). Stage 1 probes: all weights rest, and
kernel modulation alone learns the shots; its Fisher information says how much each filter matters to that.
Stage 2 starts again from the source: of every group of weights the filters above a quantile are kept, and
only modulated, and the others move. What is left is an ordinary generator. Where the authors' code is not
followed: docs/adr/0040.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroshift.errors import InputError
from zeroshift.files.writing import write_tensors
from zeroshift.methods import adversarial
from zeroshift.methods.backend import Given
from zeroshift.methods.few_shot import (
    FewShotRun,
    frozen_blocks,
    made_pictures,
    random_latents,
    real_pictures,
)
from zeroshift.methods.importance import filter_importance, fisher, most_important
from zeroshift.methods.tgan import plain_step
from zeroshift.models.parameters import keep_filters, modulate, modulation_of, original_name
from zeroshift.shapes import Scalar
from zeroshift.training.loop import Hook, Progress, Stage, Trained

IMPORTANCE_FILE = "importance.safetensors"
"""Importance of every filter, and whether it is kept, in a run folder; written when stage 1 ends."""

KERNEL = re.compile(r"convs\.\d+\.conv\.(modulation\.)?weight")
"""Weights of a generator that are modulated: convolutions behind the first, and what makes their styles."""


# 1. The run.


class AdamRun(FewShotRun):
    """A run whose networks are modulated, and whose first stage finds which filters are kept."""

    kernels: list[str]
    """Weights of the target that are modulated, by their full names before."""
    judge_kernels: list[str]
    """Weights of the discriminator that are modulated."""
    start: dict[str, dict[str, Tensor]]
    """States of target and discriminator before anything has moved."""

    def movable(self) -> list[str]:
        """Convolutions behind the first, of the layers that may move, their weights modulated from now on;
        with `train.free_rgb` the to-RGB layers too. InputError where nothing is left to move."""
        train = self.config.train
        if train.parameters.kind != "weights":
            raise InputError(
                f"method adam has small parameters of its own, so train.parameters.kind "
                f"{train.parameters.kind} does not fit; leave it 'weights'."
            )
        wanted = ("convs.", "to_rgb") if train.free_rgb else ("convs.",)
        names = [name for name in self.backend.movable if name.startswith(wanted)]
        self.kernels = [name for name in names if KERNEL.fullmatch(name)]
        if not self.kernels:
            raise InputError(
                f"method adam moves convolutions behind the first, and train.layers {train.layers!r} has "
                "none; set it to 'all', or name some of convs.0, convs.1, ..."
            )
        for network in (self.target, self.average):
            self._modulate(network, self.kernels)
        rest = [name for name in names if name not in self.kernels]
        return [part for name in self.kernels for part in (original_name(name), *modulation_of(name))] + rest

    def stages(self) -> tuple[Stage, ...]:
        """A stage in which modulation alone moves, before the one in which all may."""
        free = self.discriminator.blocks()[frozen_blocks(self.config, self.discriminator) :]
        named = dict(self.discriminator.named_parameters())
        self.judge_kernels = [name for block in free for name in block if named[name].dim() > 1]
        self._modulate(self.discriminator, self.judge_kernels)
        networks = {"target": self.target, "discriminator": self.discriminator}
        self.start = {
            part: {name: each.detach().clone() for name, each in network.state_dict().items()}
            for part, network in networks.items()
        }
        (adapting,) = super().stages()
        kernels = {"target": self.kernels, "discriminator": self.judge_kernels}
        probed = {part: _probed(adapting.trains[part], kernels[part]) for part in networks}
        steps = self.config.own.adam.steps
        return Stage(1, steps, probed, networks, "train", self.config.train.batch), adapting

    @property
    def groups(self) -> dict[str, list[str]]:
        """Modulated weights by what their filters are compared with. What judges 4 x 4 positions, and colours
        where they may move, are in none: they are modulated in stage 1 and move in stage 2."""
        affine = [name for name in self.kernels if ".modulation." in name]
        return {
            "convolutions": [name for name in self.kernels if name not in affine],
            "affines": affine,
            "discriminator": [
                name for name in self.judge_kernels if not name.startswith(("convs.0.", "final_"))
            ],
        }

    def _modulate(self, network: nn.Module, names: Sequence[str]) -> None:
        modulate(network, names, self.config.run.seed, scrambled=self.config.own.adam.scrambled)
        network.requires_grad_(False)

    def save_result(self, path: Path) -> None:
        """Writes the averaged generator, of the best record where the run went on until it converged."""
        best = self.monitor.result()
        if best is not None:
            # It was folded when it was saved.
            self.average = best.to(self.device, self.dtype)
        self._save_average(path)


def open_run(
    config: Any, given: Given, hook: Hook | None = None, progress: Progress | None = None
) -> AdamRun:
    """A run of AdAM, loaded and checked; nothing is written."""
    return AdamRun(config, given, hook, progress)


def bias_of(name: str) -> str:
    """Full name of the bias beside a weight, where its layer has one."""
    return f"{name.rpartition('.')[0]}.bias"


def _probed(adapting: Trained, kernels: Sequence[str]) -> Trained:
    """Of all that moves in stage 2, the modulation of the named weights and the biases beside them, at the
    same rates."""
    names = [part for name in kernels for part in (*modulation_of(name), bias_of(name))]
    weights = {name: adapting.weights[name] for name in names if name in adapting.weights}
    same = {name: adapting.optimiser.defaults[name] for name in ("lr", "betas")}
    return Trained(weights, torch.optim.Adam(weights.values(), **same))


# 2. How much filters matter.


def probed_importance(run: AdamRun) -> dict[str, dict[str, Tensor]]:
    """Importance (out,) of every filter of each group, as stage 1 leaves the networks: by the Fisher
    information of their modulation, over batches of pictures, of the generator's loss and of the
    discriminator's."""
    batches = range(1, run.config.own.adam.batches + 1)

    def of_target(number: int) -> list[tuple[float, Scalar]]:
        made = made_pictures(run, run.target, random_latents(run, "importance", step=number))
        return [(1.0, adversarial.generator_loss(run.judge(made, "importance", number)))]

    def of_discriminator(number: int) -> list[tuple[float, Scalar]]:
        with torch.no_grad():
            made = made_pictures(run, run.target, random_latents(run, "importance", step=number))
        logits = run.judge(real_pictures(run, number), "importance real", number)
        loss = adversarial.discriminator_loss(logits, run.judge(made, "importance", number))
        return [(1.0, loss)]

    information: dict[str, Tensor] = {}
    for part, losses in (("target", of_target), ("discriminator", of_discriminator)):
        run.free(part)
        found = fisher(map(losses, batches), run.loop.stage.trains[part].weights)
        information |= {f"{part}/{name}": each for name, each in found.items()}

    def importance(part: str, name: str) -> Tensor:
        v, u = (information[f"{part}/{each}"] for each in modulation_of(name))
        return filter_importance(v, u, information.get(f"{part}/{bias_of(name)}"))

    return {
        group: {
            name: importance("discriminator" if group == "discriminator" else "target", name)
            for name in names
        }
        for group, names in run.groups.items()
    }


# 3. The training.


def train(run: AdamRun) -> None:
    """Both stages, from where the run stands."""
    probe(run)
    if run.loop.place.stage == 1:
        choose_filters(run)
    adapt(run)


def probe(run: AdamRun) -> None:
    """Stage 1: modulation alone learns the shots."""
    for step in run.loop.steps(1):
        plain_step(run, step)


def choose_filters(run: AdamRun) -> None:
    """Between the stages: which filters are kept; all else goes back to the start."""
    importance = probed_importance(run)
    quantile = run.config.own.adam.quantile
    kept = {group: most_important(filters, quantile) for group, filters in importance.items()}
    run.target.load_state_dict(run.start["target"])
    run.discriminator.load_state_dict(run.start["discriminator"])
    none = torch.tensor(False)
    for network in (run.target, run.average):
        keep_filters(network, kept["convolutions"] | kept["affines"])
    keep_filters(run.discriminator, dict.fromkeys(run.judge_kernels, none) | kept["discriminator"])
    run.path_mean = torch.zeros_like(run.path_mean)
    tensors = {
        f"{group}/{name}/{what}": each
        for what, found in (("importance", importance), ("kept", kept))
        for group, filters in found.items()
        for name, each in filters.items()
    }
    write_tensors(run.loop.folder.path / IMPORTANCE_FILE, tensors, {"quantile": str(quantile)})


def adapt(run: AdamRun) -> None:
    """Stage 2: filters that are kept are modulated, the others move. Its draws go on where those of stage 1
    end."""
    for step in run.loop.steps(2):
        plain_step(run, run.config.own.adam.steps + step)
