"""AdAM: what its stages move, which filters it keeps, and that its result is an ordinary generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from zeroshift.config.schema import AdaptConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import load_generator_file
from zeroshift.methods import adam, adversarial
from zeroshift.methods.adapt import AdaptRun, adapt, plan
from zeroshift.methods.few_shot import made_pictures, random_latents, real_pictures
from zeroshift.models.parameters import original_name, small_parameters

OWN: dict[str, Any] = {"steps": 3, "batches": 2}
KERNEL, AFFINE, JUDGED = "convs.1.conv.weight", "convs.0.conv.modulation.weight", "convs.1.conv2.1.weight"


def config(out: Path, own: Mapping[str, Any] | None = None, **overrides: Any) -> AdaptConfig:
    train = {"batch": 2, "steps": 3} | overrides.pop("train", {})
    lazy = {"r1_every": 2, "mixing": 0.5, "augment": {"kind": "none"}}
    adam_options = {"adam": OWN | dict(own or {})}
    watch = {"every": 0} | overrides.pop("monitor", {})
    return tiny.learn(
        out, "adam", train=train, adversarial=lazy, own=adam_options, monitor=watch, **overrides
    )


def opened(out: Path, own: Mapping[str, Any] | None = None, **overrides: Any) -> adam.AdamRun:
    return adam.open_run(config(out, own, **overrides), tiny.given_few_shot())


def states(run: adam.AdamRun) -> dict[str, dict[str, Tensor]]:
    networks = {"target": run.target, "ema": run.average, "discriminator": run.discriminator}
    return {
        part: {name: each.clone() for name, each in network.state_dict().items()}
        for part, network in networks.items()
    }


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def result(run: AdaptRun) -> dict[str, Tensor]:
    return run.generator.state_dict()


def test_probing_moves_modulation_and_the_biases_beside_it_alone(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    before = states(run)
    with run.loop.recorded():
        adam.probe(run)
        after = states(run)
    assert moved(before["ema"], after["ema"]) == set()
    for part in ("target", "discriminator"):
        names = moved(before[part], after[part])
        assert names and all(
            name.endswith((".0.v", ".0.u", "modulation.bias")) or name.startswith("final_linear")
            for name in names
        )
        assert not any(name.endswith(("original", "noise.weight", "activate.bias")) for name in names)
    assert "convs.1.conv.modulation.bias" in moved(before["target"], after["target"])
    assert not any(
        name.startswith("convs.0.") for name in moved(before["discriminator"], after["discriminator"])
    )


def test_the_importance_of_a_filter_is_that_of_its_modulation_over_batches(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    with run.loop.recorded():
        adam.probe(run)
        found = adam.probed_importance(run)
        assert set(found) == {"convolutions", "affines", "discriminator"}
        assert len(found["convolutions"]) == len(found["affines"]) == 4
        for group, part, name in (
            ("convolutions", run.target, KERNEL),
            ("affines", run.target, AFFINE),
            ("discriminator", run.discriminator, JUDGED),
        ):
            place, _, attribute = name.rpartition(".")
            layer: Any = part.get_submodule(place)
            computed = layer.parametrizations[attribute][0]
            weights = [computed.v, computed.u]
            weights += [layer.bias] if group == "affines" else []
            squares = [torch.zeros_like(each) for each in weights]
            for each in weights:
                each.requires_grad_(True)
            for number in (1, 2):
                made = made_pictures(run, run.target, random_latents(run, "importance", step=number))
                logits = run.discriminator(made)
                loss = torch.nn.functional.softplus(-logits).mean()
                if group == "discriminator":
                    real = run.discriminator(real_pictures(run, number))
                    made_logits = run.discriminator(made.detach())
                    loss = adversarial.discriminator_loss(real, made_logits)
                for square, gradient in zip(squares, torch.autograd.grad(loss, weights), strict=True):
                    square += gradient**2 / 2
            slow = squares[0] + squares[1].mean()
            slow = slow if group != "affines" else (slow + squares[2]) / 2
            torch.testing.assert_close(found[group][name], slow, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
def test_filters_above_the_quantile_are_only_modulated_and_all_others_move(
    tmp_path: Path, quantile: float
) -> None:
    run = opened(tmp_path / "run", {"quantile": quantile})
    before = states(run)
    with run.loop.recorded():
        adam.probe(run)
        adam.choose_filters(run)
        chosen = states(run)
        adam.adapt(run)
    for part in ("target", "discriminator"):
        changed = {name for name in moved(before[part], chosen[part]) if not name.endswith(".kept")}
        assert changed == set(), "stage 2 starts from the source"
    record = load_file(str(tmp_path / "run" / adam.IMPORTANCE_FILE))
    for group, names in run.groups.items():
        kept = {name: record[f"{group}/{name}/kept"] for name in names}
        importance = torch.cat([record[f"{group}/{name}/importance"] for name in names])
        every = torch.cat(list(kept.values()))
        assert int(every.sum()) == len(every) - int(quantile * len(every))
        if quantile == 0.5:
            assert importance[every].min() >= importance[~every].max()
    network: Any = run.target
    for name in run.kernels:
        group = "affines" if ".modulation." in name else "convolutions"
        kept = record[f"{group}/{name}/kept"]
        old = before["target"][original_name(name)].reshape(len(kept), -1)
        new = network.get_parameter(original_name(name)).detach().reshape(len(kept), -1)
        rows = (new != old).any(dim=1)
        assert not rows[kept].any() and rows[~kept].all()
        place, _, attribute = name.rpartition(".")
        weight = getattr(network.get_submodule(place), attribute).detach().reshape(len(kept), -1)
        small = small_parameters(network)
        factor = torch.outer(small[f"{name}.v"], small[f"{name}.u"]).detach()
        torch.testing.assert_close(weight[kept], (old * (1 + factor))[kept])
        torch.testing.assert_close(weight[~kept], new[~kept])


def test_the_result_is_an_ordinary_generator_of_which_only_convolutions_moved(tmp_path: Path) -> None:
    done = adapt(config(tmp_path / "run"), state=tiny.given_few_shot())
    source = tiny.generator()
    assert result(done).keys() == source.state_dict().keys()
    changed = moved(source.state_dict(), result(done))
    assert changed and all(name.startswith("convs.") for name in changed)
    assert {KERNEL, AFFINE, "convs.1.activate.bias", "convs.1.noise.weight"} <= changed
    read = load_generator_file(done.folder.generator_file)[0]
    z = torch.randn(3, 12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(tiny.styled(read)(z), done.generator(z))
    with_rgb = adapt(config(tmp_path / "rgb", train={"free_rgb": True}), state=tiny.given_few_shot())
    others = {name for name in moved(source.state_dict(), result(with_rgb)) if not name.startswith("convs.")}
    assert others and all(name.startswith("to_rgb") for name in others)


def test_the_average_of_the_modulation_is_what_is_folded(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    with run.loop.recorded():
        adam.train(run)
    z = torch.randn(3, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (run.folded(run.average)(z) - run.average(z)).abs().max() <= 1e-6
        assert not torch.equal(run.average(z), run.target(z))


@pytest.mark.parametrize("at", [(1, 2), (1, 3), (2, 1), (2, 2)])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, at: tuple[int, int]) -> None:
    options: dict[str, Any] = {"run": {"checkpoint_every": 1}, "train": {"steps": 4}}
    whole = adapt(config(tmp_path / "whole", **options), state=tiny.given_few_shot())
    stop = tiny.Stop(at, RuntimeError("pulled"))
    with pytest.raises(RuntimeError, match="pulled"):
        adapt(config(tmp_path / "parts", **options), state=tiny.given_few_shot(), hook=stop)
    parts = adapt(config(tmp_path / "parts", **options), state=tiny.given_few_shot())
    assert 0 < parts.steps_done < whole.steps_done
    assert moved(result(whole), result(parts)) == set()
    first, second = (load_file(str(tmp_path / each / adam.IMPORTANCE_FILE)) for each in ("whole", "parts"))
    assert first.keys() == second.keys() and moved(first, second) == set()


def test_a_run_until_it_converges_leaves_its_best_generator(tmp_path: Path) -> None:
    watch = {"every": 1, "count": 4, "patience": 1, "least_gain": 2.0, "least_diversity": 0.0}
    done = adapt(
        config(tmp_path / "run", train={"until": "converged", "steps": 4}, monitor=watch),
        state=tiny.given_few_shot(),
    )
    best = load_generator_file(done.folder.best_file)[0]
    assert moved(tiny.styled(best).state_dict(), result(done)) == set()


def test_the_published_modulation_is_another_one(tmp_path: Path) -> None:
    runs = [
        adapt(config(tmp_path / str(each), {"scrambled": each}), state=tiny.given_few_shot())
        for each in (False, True)
    ]
    assert KERNEL in moved(*map(result, runs))


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for train, part in (
        ({"layers": "conv1"}, "train.layers 'conv1' has none"),
        ({"parameters": {"kind": "lowrank"}}, "train.parameters.kind lowrank does not fit"),
    ):
        with pytest.raises(InputError, match=part):
            opened(tmp_path / "run", train=train)


def test_where_only_what_judges_may_move_the_discriminator_has_no_filters_to_choose(tmp_path: Path) -> None:
    run = adam.open_run(
        tiny.learn(tmp_path / "run", "adam", own={"adam": OWN}, adversarial={"freeze": 3}),
        tiny.given_few_shot(),
    )
    before = states(run)["discriminator"]
    with run.loop.recorded():
        adam.train(run)
    assert run.groups["discriminator"] == []
    after = states(run)["discriminator"]
    assert all(name.startswith("final_") for name in moved(before, after))


def test_a_plan_names_what_stage_2_may_move(tmp_path: Path) -> None:
    planned = plan(config(tmp_path / "run"), state=tiny.given_few_shot())
    assert planned.layers == ("convs.0", "convs.1", "convs.2", "convs.3")
    assert planned.memory_bytes > 0 and planned.parameters["movable"] > 0
