"""Runs of CDC: their steps equal a plain loop, they survive kills, and patches teach no more than they
see."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tiny
from zeroshift.methods import cdc
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.methods.backend import Given
from zeroshift.methods.few_shot import real_pictures
from zeroshift.models.seeds import draw_noise, draw_z, rng
from zeroshift.training.run_folder import RunFolder

FREE = {"mixing": 0.0, "augment": {"kind": "none"}}
"""Nothing by chance in what is judged but latents, noise and mirrors."""


def run(out: Path, hook: Any = None, state: Given | None = None, **overrides: Any) -> AdaptRun:
    options = {"cdc": {"every": 2}} | overrides
    return adapt(tiny.learn(out, "cdc", **options), hook=hook, state=state or tiny.given_few_shot())


def opened(out: Path, state: Given | None = None, **overrides: Any) -> cdc.CdcRun:
    return cdc.open_run(tiny.learn(out, "cdc", **overrides), state or tiny.given_few_shot())


def saved(out: Path) -> dict[str, Tensor]:
    found = RunFolder.load(out).load_checkpoint()
    assert found is not None
    return found[0]


class Plain:
    """The published steps, written down once more in float64: whole pictures around anchors in odd steps,
    patches of random ones in even steps, R1 every third step, distances in all, no path lengths."""

    def __init__(self, made: cdc.CdcRun) -> None:
        self.made = made
        state = tiny.given_few_shot(dtype=torch.float64)
        assert state.discriminator is not None
        self.source, self.g = tiny.generator().double(), state.generator.double()
        self.d, self.head = state.discriminator.double(), made.networks["patches"]
        judges = [*self.d.parameters(), *self.head.parameters()]
        for each in judges:
            each.requires_grad_()
        self.adam_g = torch.optim.Adam(self.g.parameters(), lr=0.01, betas=(0.0, 0.99))
        self.adam_d = torch.optim.Adam(judges, lr=0.002 * 3 / 4, betas=(0.0, 0.99**0.75))
        self.anchors = torch.stack(
            [torch.randn(12, generator=rng("z", 0, "anchors", 0, i)) for i in range(5)]
        )

    def z(self, label: str, step: int) -> Tensor:
        if step % 2 == 0:
            return draw_z(12, 4, 0, f"few-shot {label}", step)
        rows = []
        for i in range(4):
            draw = rng("around anchors", 0, label, step, i)
            centre = self.anchors[torch.randint(5, (1,), generator=draw)[0]]
            rows.append(centre + 0.1 * torch.randn(12, generator=draw))
        return torch.stack(rows)

    def made_of(self, network: Any, z: Tensor, label: str, step: int) -> tuple[Tensor, list[Tensor]]:
        maps = [each.double() for each in draw_noise(self.g.noise_shapes(), len(z), 0, label, step)]
        return network.synthesize(network.map(z.double()), maps, features=True)

    def judged(self, pictures: Tensor, step: int) -> Tensor:
        if step % 2 == 1:
            return self.d(pictures)
        # The only map of 16 px: the first convolution of the first block.
        first: Any = next(self.head.heads.children())
        return first(self.d(pictures, features=True)[1][0])

    def update(self, adam: torch.optim.Optimizer, loss: Tensor) -> None:
        for each in (self.adam_g, self.adam_d):
            each.zero_grad()
        loss.backward()
        adam.step()

    def step(self, step: int) -> None:
        fake = self.made_of(self.g, self.z("discriminator", step), "discriminator", step)[0].detach()
        real = real_pictures(self.made, step)
        loss = F.softplus(self.judged(fake, step)).mean() + F.softplus(-self.judged(real, step)).mean()
        self.update(self.adam_d, loss)
        if step % 3 == 1:
            real = real_pictures(self.made, step).requires_grad_()
            per_picture = self.judged(real, step).flatten(1).mean(dim=1)
            (slope,) = torch.autograd.grad(per_picture.sum(), real, create_graph=True)
            self.update(self.adam_d, 10 / 2 * 3 * slope.square().sum() / 4)
        fake = self.made_of(self.g, self.z("generator", step), "generator", step)[0]
        loss = F.softplus(-self.judged(fake, step)).mean()
        z = draw_z(12, 4, 0, "distances", step)
        with torch.no_grad():
            source = self.made_of(self.source, z, "distances", step)[1]
        target = self.made_of(self.g, z, "distances", step)[1]
        layers = torch.randint(1, 5, (4,), generator=rng("layers", 0, step)).tolist()
        total: list[Tensor] = []
        for i, layer in enumerate(layers):
            others = [j for j in range(4) if j != i]
            before, after = (
                torch.stack([F.cosine_similarity(x[i].flatten(), x[j].flatten(), dim=0) for j in others])
                for x in (source[layer], target[layer])
            )
            total.append(F.kl_div(after.log_softmax(0), before.softmax(0), reduction="sum") / 3)
        self.update(self.adam_g, loss + 1000 * torch.stack(total).mean())


def test_a_run_does_the_published_steps(tmp_path: Path) -> None:
    options = {"adversarial": FREE | {"path": 0.0}, "train": {"steps": 4, "ema": 0.0}}
    made = opened(tmp_path / "probe", tiny.given_few_shot(dtype=torch.float64), **options)
    plain = Plain(made)
    found = run(tmp_path / "run", state=tiny.given_few_shot(dtype=torch.float64), **options)
    for step in range(1, 5):
        plain.step(step)
    moved = dict(found.trained.named_parameters())
    for name, expected in plain.g.named_parameters():
        torch.testing.assert_close(moved[name], expected.detach(), rtol=0, atol=1e-8)
    tensors = saved(tmp_path / "run")
    for prefix, network in (("discriminator", plain.d), ("patches", plain.head)):
        for name, expected in network.state_dict().items():
            torch.testing.assert_close(tensors[f"{prefix}/{name}"], expected, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    return run(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("step", [1, 4])
def test_a_killed_run_equals_one_that_never_stopped(whole: AdaptRun, tmp_path: Path, step: int) -> None:
    child = os.fork()
    if child == 0:
        run(tmp_path / "run", hook=tiny.Stop((2, step), None))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    run(tmp_path / "run")
    ends = [saved(tmp_path / "run"), saved(whole.folder.path)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    for network in ("target/conv1", "ema/conv1", "discriminator/convs", "patches/heads"):
        assert any(name.startswith(network) for name in ends[0]), network
    assert any(name.startswith("adam/discriminator/patches.heads.0") for name in ends[0])


def test_steps_around_anchors_move_no_head_and_others_no_layer_behind_the_patches(tmp_path: Path) -> None:
    before = opened(tmp_path / "probe")
    start = {f"discriminator/{name}": each for name, each in before.discriminator.state_dict().items()}
    start |= {f"patches/{name}": each for name, each in before.networks["patches"].state_dict().items()}
    moved: dict[int, set[str]] = {}
    for steps in (1, 2):
        run(tmp_path / str(steps), train={"steps": steps}, adversarial={"r1": 0.0, "path": 0.0})
        end = saved(tmp_path / str(steps))
        moved[steps] = {name for name in start if not torch.equal(start[name], end[name])}
        start = {name: end[name] for name in start}
    assert not any(name.startswith("patches") for name in moved[1])
    assert {"discriminator/final_linear.1.weight", "discriminator/convs.2.conv1.0.weight"} <= moved[1]
    heads = {"patches/heads.0.0.weight", "patches/heads.0.1.bias"}
    trunk = {"convs.0.0.weight", "convs.0.1.bias", "convs.1.conv1.0.weight", "convs.1.conv1.1.bias"}
    assert moved[2] == heads | {f"discriminator/{name}" for name in trunk}


def test_anchors_are_as_many_as_the_pictures_unless_another_number_is_asked_for(tmp_path: Path) -> None:
    assert len(opened(tmp_path / "run").anchors) == len(opened(tmp_path / "run").shots) == 5
    assert len(opened(tmp_path / "run", cdc={"anchors": 3}).anchors) == 3
