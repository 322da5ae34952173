"""The loop knows no method: an adversarial pair with two optimisers runs on it, is saved, killed, and goes on
bit for bit."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
import zeroshift
from zeroshift.config.schema import AdaptConfig
from zeroshift.devices import Precision
from zeroshift.errors import RunError
from zeroshift.files.writing import write_tensors
from zeroshift.models.seeds import rng
from zeroshift.training.loop import Average, Loop, Stage, Trained
from zeroshift.training.run_folder import environment
from zeroshift.training.terms import Terms

Event = dict[str, Any]


class Pair:
    """A generator of points and a discriminator of them, each with an optimiser of its own, and a number that
    goes on."""

    def __init__(self, config: AdaptConfig, hook: Any = None) -> None:
        draw = torch.Generator().manual_seed(1)
        self.generator = nn.Linear(3, 2)
        self.discriminator = nn.Linear(2, 1)
        for network in (self.generator, self.discriminator):
            for weight in network.parameters():
                weight.data = torch.randn(weight.shape, generator=draw)
        self.average = nn.Linear(3, 2)
        self.average.load_state_dict(self.generator.state_dict())
        self.config = config
        self.count = torch.zeros(1)
        self.stop_at = 0
        self.asked: list[str] = []
        weights = dict(self.generator.named_parameters())
        trains = {
            "generator": Trained(weights, torch.optim.Adam(self.generator.parameters(), 0.1)),
            "discriminator": Trained(
                dict(self.discriminator.named_parameters()),
                torch.optim.Adam(self.discriminator.parameters(), 0.2),
            ),
        }
        models = {"generator": self.generator, "discriminator": self.discriminator, "ema": self.average}
        averages = (Average(self.average, self.generator, weights, 0.9),)
        stage = Stage(2, config.train.steps, trains, models, "train", 4, averages)
        record = environment("cpu", {"name": "points", "sha256": "0"}, [])
        precision = Precision("fp32", torch.device("cpu"))
        self.loop = Loop(config, record, (stage,), self, precision, step_log={}, hook=hook)

    def run(self) -> None:
        with self.loop.recorded():
            for step in self.loop.steps(2):
                draw = rng("points", 0, step)
                real = torch.randn(4, 2, generator=draw) + 3
                fake = self.generator(torch.randn(4, 3, generator=draw))
                terms = Terms()
                told = terms.group()
                told.add("fooled", F.softplus(self.discriminator(fake.detach())).mean())
                told.add("doubted", F.softplus(-self.discriminator(real)).mean())
                self.loop.update("discriminator", terms)
                terms = Terms()
                terms.group().add("adversarial", F.softplus(-self.discriminator(fake)).mean())
                self.loop.update("generator", terms, lr=0.1 / (1 + float(self.count)))
                self.loop.average()
                self.count = self.count + 1

    def prepare(self) -> None:
        self.asked.append("prepare")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"count": self.count}, {"note": "kept"}

    def resume(self, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        assert facts["note"] == "kept"
        self.count = tensors["count"]

    def moving_layers(self, stage: int) -> tuple[str, ...]:
        return ()

    def after_step(self, stage: int, step: int, last: bool) -> None:
        self.asked.append(f"after {step}{' last' if last else ''}")

    def stop_reason(self, stage: int) -> str:
        return "stopped early" if self.stop_at and self.loop.place.step >= self.stop_at else ""

    def end_stage(self, stage: int) -> None:
        self.asked.append(f"end {stage}")

    def sample_grid(self) -> Tensor | None:
        return None

    def save_result(self, path: Path) -> None:
        write_tensors(path, self.average.state_dict(), {})

    def memory_tip(self, stage: int) -> str:
        return "try fewer points"


def weights(pair: Pair) -> list[Tensor]:
    networks = (pair.generator, pair.discriminator, pair.average)
    return [each.detach().clone() for network in networks for each in network.state_dict().values()]


def configured(out: Path, steps: int = 7, **run: Any) -> AdaptConfig:
    return tiny.config(
        out, method="nada", train={"steps": steps}, run={"checkpoint_every": 3, "grid_every": 2, **run}
    )


def test_two_optimisers_take_turns_and_the_first_part_has_the_loss_that_progress_shows(
    tmp_path: Path,
) -> None:
    pair = Pair(configured(tmp_path / "run"))
    start = weights(pair)
    pair.run()
    assert not any(torch.equal(a, b) for a, b in zip(start, weights(pair), strict=True))
    lines = pair.loop.folder.metrics()
    assert [line["step"] for line in lines] == list(range(1, 8))
    for line in lines:
        assert line["loss"] == pytest.approx(line["adversarial"])
        assert line["discriminator_loss"] == pytest.approx(line["fooled"] + line["doubted"], rel=1e-6)
    assert pair.asked == ["prepare", *(f"after {step}" for step in range(1, 7)), "after 7 last", "end 2"]
    assert pair.loop.folder.status.state == "finished" and pair.loop.folder.generator_file.is_file()


@pytest.mark.parametrize("killed_after", [1, 3, 4, 6])
def test_a_killed_pair_goes_on_bit_for_bit_with_both_optimisers(tmp_path: Path, killed_after: int) -> None:
    whole = Pair(configured(tmp_path / "whole"))
    whole.run()

    def kill(event: Event) -> None:
        if event["step"] == killed_after:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Pair(configured(tmp_path / "run"), hook=kill).run()
    resumed = Pair(configured(tmp_path / "run"))
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert [line["loss"] for line in whole.loop.folder.metrics()] == [
        line["loss"] for line in resumed.loop.folder.metrics()
    ]


def test_a_checkpoint_holds_both_networks_and_the_moments_of_both_optimisers(tmp_path: Path) -> None:
    pair = Pair(configured(tmp_path / "run"))
    pair.run()
    with safe_open(pair.loop.folder.checkpoint_file, "pt") as file:
        names = set(file.keys())
        facts = json.loads(file.metadata()["facts"])
    assert {"generator/weight", "discriminator/weight", "ema/weight", "carried/count"} <= names
    assert {f"adam/{part}/weight/exp_avg_sq" for part in ("generator", "discriminator")} <= names
    assert facts == {"stage": 2, "step": 7, "note": "kept"}


def test_a_stage_ends_early_for_a_reason_which_is_told(tmp_path: Path) -> None:
    pair = Pair(configured(tmp_path / "run"))
    pair.stop_at = 4
    pair.run()
    status = pair.loop.folder.status
    assert (status.state, status.step, status.message) == ("finished", 4, "stopped early")


def test_a_loss_that_is_no_number_ends_the_run_and_says_which_rate_to_lower(tmp_path: Path) -> None:
    pair = Pair(configured(tmp_path / "run"))
    pair.generator.weight.data.fill_(float("nan"))
    with pytest.raises(RunError, match=r"became nan in stage 2 at step 1; .* Try a lower train.lr"):
        pair.run()
    assert pair.loop.folder.status.state == "failed"


def test_memory_that_runs_out_is_told_with_the_tip_of_the_task(tmp_path: Path) -> None:
    def full(event: Event) -> None:  # called behind step 1
        raise MemoryError

    with pytest.raises(
        RunError, match="out of memory in stage 2 at step 2 with train.batch 4; try fewer points"
    ):
        Pair(configured(tmp_path / "run"), hook=full).run()


def test_the_total_is_the_weighted_sum_over_groups_and_terms() -> None:
    terms = Terms()
    values = [torch.tensor(value, requires_grad=True) for value in (1.0, 2.0, 3.0, 4.0)]
    first = terms.group(0.5)
    first.add("a", values[0], 2.0)
    first.add("b", values[1], 0.0)
    second = terms.group(3.0)
    second.add("a", values[2])
    terms.group().add("c", values[3], 0.1)
    terms.group(7.0)
    total = terms.total()
    assert float(total.detach()) == pytest.approx(0.5 * (2 * 1) + 3 * 3 + 0.1 * 4)
    total.backward()
    assert [each.grad if each.grad is None else float(each.grad) for each in values] == [
        1.0,
        None,
        3.0,
        pytest.approx(0.1),
    ]
    named = {name: float(value) for name, value in terms.named().items()}
    assert named == pytest.approx({"a": 0.5 * 1 + 3 * 3, "b": 0.5 * 2, "c": 4.0})
    assert [float(each) for each in terms.per_group()] == pytest.approx([2.0, 3.0, 0.4])


def test_averages_move_what_can_differ_and_nothing_else() -> None:
    now = nn.BatchNorm1d(2)
    mean = nn.BatchNorm1d(2)
    mean.running_mean = torch.ones(2)
    average = Average(mean, now, {"weight"}, 0.75)
    now.weight.data.fill_(5.0)
    now.bias.data.fill_(5.0)
    average.update()
    assert torch.equal(mean.weight, torch.full((2,), 0.75 * 1 + 0.25 * 5))
    assert torch.equal(mean.bias, torch.zeros(2))
    assert torch.equal(mean.running_mean, torch.full((2,), 0.75))


def attributes(body: ast.AST) -> set[str]:
    """Names that a piece of code assigns on `self`."""
    return {
        node.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize(
    "name",
    [
        "training.loop",
        "methods.zero_shot",
        "methods.style_backend",
        "methods.diffusion_backend",
        "measure.monitor",
    ],
)
def test_no_attribute_of_a_run_first_appears_outside_a_constructor(name: str) -> None:
    path = Path(zeroshift.__file__).parent / f"{name.replace('.', '/')}.py"
    backend = path.parent / "backend.py"
    trees = [ast.parse(each.read_text("utf-8")) for each in (path, backend) if each.is_file()]
    inherited: set[str] = set()
    late: set[str] = set()
    for tree in reversed(trees):
        for made in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            methods = [node for node in made.body if isinstance(node, ast.FunctionDef)]
            declared = {ast.unparse(node.target) for node in made.body if isinstance(node, ast.AnnAssign)}
            first = [attributes(each) for each in methods if each.name == "__init__"]
            known = inherited | declared | set().union(*first)
            inherited |= known if made.name == "Backend" else set()
            late |= set().union(*(attributes(each) for each in methods)) - known
    assert late == set()


def test_an_attribute_that_appears_late_is_found() -> None:
    assert attributes(ast.parse("self.a = 1\nself.b.c = 2\nx.d = 3")) == {"a"}


@pytest.mark.parametrize("several", [False, True])
def test_several_terms_are_one_step_on_their_sum_each_on_its_way_back_before_the_next(
    tmp_path: Path, several: bool
) -> None:
    told: dict[str, float] = {}
    config = configured(tmp_path / "run", steps=1)
    pair = Pair(config, hook=lambda event: told.update(event["losses"]))
    weight, bias = pair.discriminator.weight, pair.discriminator.bias
    logits = float(5 * weight.detach().sum() + 2 * bias.detach())
    expected = float(13 * weight.detach().sum() + 5 * bias.detach())
    had_gradient: list[bool] = []

    def parts() -> Iterator[Terms]:
        for place in (2.0, 3.0):
            had_gradient.append(weight.grad is not None)
            terms = Terms()
            terms.group().add("logit", pair.discriminator(torch.full((2,), place)).sum(), place)
            yield terms

    def together() -> Terms:
        terms = Terms()
        terms.groups = [group for part in parts() for group in part.groups]
        return terms

    with pair.loop.recorded():
        for _ in pair.loop.steps(2):
            pair.loop.update("discriminator", parts() if several else together())
    assert had_gradient == [False, several]
    assert weight.grad is not None and weight.grad.tolist() == [[13, 13]]
    assert bias.grad is not None and bias.grad.tolist() == [5]
    assert told == {"discriminator_loss": pytest.approx(expected), "logit": pytest.approx(logits)}
