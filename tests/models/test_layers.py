"""What may move: the exact map against perturbed latents, the published list, phases, and the scores against
one SGD step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zeroshift.errors import InputError
from zeroshift.models.layers import (
    default_top_k,
    free,
    layer_list,
    score_layers,
    select,
    select_latents,
    top_latents,
)
from zeroshift.models.seeds import draw_noise, rng, z_from_seeds
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator


def small(size: int = 32) -> StyleGAN2Generator:
    config = StyleGAN2Config(size=size, latent_dim=8, style_dim=12, mapping_depth=2, channel_max=6)
    return StyleGAN2Generator(config, seed=3)


def layer_outputs(generator: StyleGAN2Generator, rows: Tensor) -> dict[str, Tensor]:
    """Output of every style-driven layer when each gets its own input fixed to the unperturbed run."""
    fixed = z_from_seeds([5], 12).unsqueeze(1).expand(-1, generator.num_latents, -1)
    inputs: dict[str, tuple[object, ...]] = {}
    modules = {
        name: generator.get_submodule(name)
        for name in (layer.name for layer in generator.layers() if layer.latent is not None)
    }
    hooks = [
        m.register_forward_hook(lambda _, args, __, name=name: inputs.__setitem__(name, args))
        for name, m in modules.items()
    ]
    generator.synthesize(fixed)
    clean = dict(inputs)
    generator.synthesize(rows)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        return {name: m(clean[name][0], inputs[name][1], *clean[name][2:]) for name, m in modules.items()}


@pytest.mark.parametrize("size", [16, 32, 64])
def test_exact_map_names_the_layers_that_change_when_a_latent_is_perturbed(size: int) -> None:
    generator = small(size)
    rows = z_from_seeds([5], 12).unsqueeze(1).repeat(1, generator.num_latents, 1)
    before = layer_outputs(generator, rows)
    for index, entry in enumerate(layer_list(generator, "exact")):
        perturbed = rows.clone()
        perturbed[:, index] += 1.0
        after = layer_outputs(generator, perturbed)
        assert {layer.name for layer in entry} == {
            name for name in before if not torch.equal(before[name], after[name])
        }


def test_exact_map_covers_every_style_driven_layer_once() -> None:
    generator = small()
    names = [layer.name for entry in layer_list(generator) for layer in entry]
    assert sorted(names) == sorted(layer.name for layer in generator.layers() if layer.latent is not None)


def test_published_list_is_conv1_to_rgb1_and_the_convolutions_in_order() -> None:
    names = [entry[0].name for entry in layer_list(small(), "published")]
    assert names == ["conv1", "to_rgb1", "convs.0", "convs.1", "convs.2", "convs.3", "convs.4", "convs.5"]


def test_layers_hold_every_parameter_exactly_once() -> None:
    generator = small()
    names = [name for layer in generator.layers() for name in layer.parameters]
    assert names == [name for name in names if names.count(name) == 1]
    assert set(names) == {name for name, _ in generator.named_parameters()}


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("shape", ["input", "conv1", "convs.0", "convs.1"]),
        ("shape_expanded", ["input", "conv1", "convs.0", "convs.1", "convs.2"]),
        ("texture", ["input", "conv1", "convs.2", "convs.3", "convs.4", "convs.5"]),
        ("convolutions", ["input", "conv1", *(f"convs.{i}" for i in range(6))]),
    ],
)
def test_phases_free_the_published_layers(phase: str, expected: list[str]) -> None:
    generator = small()
    parameters = select(generator, phase)
    assert parameters == [
        n for n, _ in generator.named_parameters() if any(n.startswith(name + ".") for name in expected)
    ]


def test_no_fine_stops_at_the_tenth_convolution() -> None:
    config = StyleGAN2Config(size=256, latent_dim=4, style_dim=4, mapping_depth=1, channel_max=2)
    parameters = select(StyleGAN2Generator(config), "no_fine")
    assert any(name.startswith("convs.9.") for name in parameters)
    assert not any(name.startswith("convs.10.") for name in parameters)


def test_phase_all_frees_everything() -> None:
    generator = small()
    assert set(select(generator, "all")) == {name for name, _ in generator.named_parameters()}


def test_free_rgb_adds_every_to_rgb_layer_to_a_choice() -> None:
    generator = small()
    added = set(select_latents(generator, [0], free_rgb=True)) - set(select_latents(generator, [0]))
    assert added == {name for name, _ in generator.named_parameters() if name.startswith("to_rgb")}


def test_layers_by_name_come_in_the_order_of_computation() -> None:
    generator = small()
    assert select(generator, "convs.1, conv1") == select(generator, ["conv1", "convs.1"])


@pytest.mark.parametrize("layers", ["convs.99", "conv1,", "adaptiv", ""])
def test_unknown_layers_are_refused_by_name(layers: str) -> None:
    with pytest.raises(InputError, match="unknown layer"):
        select(small(), layers)


def test_freeing_leaves_gradients_to_the_named_parameters_only() -> None:
    generator = small()
    chosen = select_latents(generator, [1, 4])
    generator(z_from_seeds([0], 8)).sum().backward()
    free(generator, chosen)
    generator(z_from_seeds([0], 8)).sum().backward()
    assert {name for name, p in generator.named_parameters() if p.grad is not None} == set(chosen)


def test_scores_equal_the_change_of_one_sgd_step_on_the_styles() -> None:
    generator = small().double()
    w = generator.map(z_from_seeds(range(3), 8).double()).detach()

    def loss(image: Tensor) -> Tensor:
        return (image[:, 0] - 0.3).square().mean() + image[:, 1].mean()

    rows = torch.nn.Parameter(w.unsqueeze(1).repeat(1, generator.num_latents, 1))
    optimizer = torch.optim.SGD([rows], lr=0.01)
    start = rows.detach().clone()
    expected_loss = loss(generator.synthesize(rows))
    expected_loss.backward()
    optimizer.step()
    expected = torch.stack([(rows.detach() - start)[:, k].abs().mean() for k in range(generator.num_latents)])

    for rounded in (False, True):
        scores, value = score_layers(generator, w, loss, rounded=rounded)
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(value, expected_loss.detach())


@pytest.mark.parametrize("noise", ["buffers", "maps"])
def test_scoring_a_batch_in_parts_changes_nothing(noise: str) -> None:
    generator = small().double()
    w = generator.map(z_from_seeds(range(5), 8).double())
    maps: Any = draw_noise(generator.noise_shapes(), 5, 0, "select", 1) if noise == "maps" else noise
    maps = maps if noise == "buffers" else [each.double() for each in maps]

    def loss(image: Tensor) -> Tensor:
        return (image - 0.2).square().mean()

    whole, in_parts = (score_layers(generator, w, loss, noise=maps, part=part) for part in (None, 2))
    torch.testing.assert_close(in_parts, whole, rtol=1e-12, atol=0)


def test_scoring_leaves_no_gradient_in_the_generator() -> None:
    generator = small()
    score_layers(generator, generator.map(z_from_seeds([1], 8)), lambda image: image.mean())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_scoring_works_inside_no_grad() -> None:
    generator = small()
    with torch.no_grad():
        scores, _ = score_layers(generator, generator.map(z_from_seeds([1], 8)), lambda image: image.mean())
    assert scores.shape == (8,) and bool((scores > 0).all())


def test_top_latents_are_the_largest_scores_in_order() -> None:
    assert top_latents(torch.tensor([0.1, 0.5, 0.2, 0.5]), 3) == (1, 3, 2)


@pytest.mark.parametrize("count", [0, 5])
def test_an_impossible_number_of_layers_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=str(count)):
        top_latents(torch.rand(4, generator=rng("scores")), count)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        top_latents(torch.tensor([1.0, float("nan")]), 1)


def test_default_number_of_layers_is_the_published_one() -> None:
    counts = {}
    for size in (256, 512, 1024):
        config = StyleGAN2Config(size=size, latent_dim=2, style_dim=2, mapping_depth=1, channel_max=1)
        counts[size] = default_top_k(StyleGAN2Generator(config))
    assert counts == {256: 9, 512: 10, 1024: 12}
