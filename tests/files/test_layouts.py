"""The same weights in every program's layout: equal after every round trip, refused with a reason where they
cannot be ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import foreign
import tiny
from zeroshift.errors import InputError
from zeroshift.files import checkpoints, layouts
from zeroshift.files.registry import load_discriminator
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator

CLASSES = dataclasses.replace(foreign.CONFIG, num_classes=3)
BOUNDED = dataclasses.replace(foreign.CONFIG, conv_clamp=0.25)
SHAPES = [
    foreign.CONFIG,
    CLASSES,
    StyleGAN2Config(size=32, latent_dim=10, style_dim=4, mapping_depth=1, channel_base=128, channel_max=6),
    StyleGAN2Config(size=128, latent_dim=4, style_dim=4, channel_max=3),
]


def assert_equal(one: StyleGAN2Generator, other: StyleGAN2Generator) -> None:
    first, second = one.state(), other.state()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def loaded(path: Path) -> StyleGAN2Generator:
    return tiny.styled(checkpoints.load_generator_file(path)[0])


@pytest.mark.parametrize("config", SHAPES)
def test_the_table_of_shapes_is_that_of_the_networks(config: StyleGAN2Config) -> None:
    built = {name: tuple(value.shape) for name, value in StyleGAN2Generator(config).state_dict().items()}
    judge = {name: tuple(value.shape) for name, value in StyleGAN2Discriminator(config).state_dict().items()}
    assert layouts.generator_shapes(config) == built
    assert layouts.discriminator_shapes(config) == judge


@pytest.mark.parametrize(
    "layout", ["rosinality", "rosinality legacy", "nvidia", "nvidia state", "tensorflow", "ours"]
)
def test_every_layout_gives_the_same_weights_average_and_pictures(layout: str, tmp_path: Path) -> None:
    made = foreign.generator()
    other = loaded(foreign.every_layout(tmp_path, made)[layout])
    assert_equal(other, made)
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other(z), made(z))


def test_rosinality_to_ours_to_nvidia_and_back_changes_no_bit(tmp_path: Path) -> None:
    made = foreign.generator(5)
    first = loaded(foreign.rosinality_file(tmp_path / "a.pt", made))
    checkpoints.save_generator(tmp_path / "b.safetensors", first)
    second = loaded(foreign.nvidia_pickle(tmp_path / "c.pkl", loaded(tmp_path / "b.safetensors")))
    checkpoints.export_pt(tmp_path / "d.pt", second)
    assert_equal(loaded(tmp_path / "d.pt"), made)
    start, end = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "d.pt"))
    assert start["g_ema"].keys() == end["g_ema"].keys()
    assert torch.equal(start["latent_avg"], end["latent_avg"])


def test_other_weights_give_other_pictures(tmp_path: Path) -> None:
    one, other = (
        loaded(foreign.nvidia_pickle(tmp_path / f"{seed}.pkl", foreign.generator(seed))) for seed in (1, 2)
    )
    z = torch.zeros(1, 6) + 1
    assert not torch.allclose(one(z), other(z), atol=0.1)


def test_classes_and_the_bound_of_layers_are_read_from_nvidias_pickle(tmp_path: Path) -> None:
    for config in (CLASSES, BOUNDED):
        made = foreign.generator(config=config)
        other = loaded(foreign.nvidia_pickle(tmp_path / "g.pkl", made))
        assert other.config.num_classes == config.num_classes and other.config.conv_clamp == config.conv_clamp
        assert_equal(other, made)
    picture = made(torch.ones(1, 6))
    free = foreign.generator()(torch.ones(1, 6))
    assert not torch.allclose(picture, free, atol=1e-3)


def test_the_rate_of_the_mapping_network_is_read_from_nvidias_pickle(tmp_path: Path) -> None:
    made = foreign.generator(config=dataclasses.replace(foreign.CONFIG, lr_mlp=0.02))
    assert loaded(foreign.nvidia_pickle(tmp_path / "g.pkl", made)).config.lr_mlp == 0.02


def test_a_generator_with_classes_asks_for_one() -> None:
    made = foreign.generator(config=CLASSES)
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    by_number, by_row = made.map(z, torch.tensor([2, 0])), made.map(z, torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    assert torch.equal(by_number, by_row) and not torch.allclose(by_number, made.map(z, torch.tensor([1, 1])))
    for labels in (None, torch.tensor([3, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        with pytest.raises(InputError, match="3 classes|0 to 2"):
            made.map(z, labels)
    with pytest.raises(InputError, match="without classes"):
        foreign.generator().map(z, torch.tensor([0, 0]))


def test_one_class_alone_draws_the_same_pictures() -> None:
    made = foreign.generator(config=CLASSES)
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    for label in range(3):
        alone = made.for_class(label)
        assert alone.config == foreign.CONFIG
        torch.testing.assert_close(
            alone(z), made.synthesize(made.map(z, torch.full((4,), label))), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(alone.latent_avg, made.latent_avg)


def test_a_generator_with_classes_and_without_an_average_gets_that_of_all_classes(tmp_path: Path) -> None:
    made = foreign.generator(config=CLASSES)
    state = layouts.to_nvidia(made.state())
    del state["mapping.w_avg"]
    torch.save(state, tmp_path / "g.pt")
    z = torch.randn(30000, 6, generator=torch.Generator().manual_seed(3))
    expected = made.map(z, torch.arange(30000) % 3).mean(dim=0)
    torch.testing.assert_close(loaded(tmp_path / "g.pt").latent_avg, expected, rtol=0, atol=0.05)


def test_the_layers_of_a_generator_with_classes_name_every_parameter_once() -> None:
    made = foreign.generator(config=CLASSES)
    names = [name for layer in made.layers() for name in layer.parameters]
    assert sorted(names) == sorted(name for name, _ in made.named_parameters())


def test_discriminators_of_both_programs_are_read(tmp_path: Path) -> None:
    config = StyleGAN2Config(size=16, channel_base=64, channel_max=8)
    made = StyleGAN2Discriminator(config, seed=1)
    state = made.state_dict()
    foreign.nvidia_pickle(tmp_path / "n.pkl", foreign.generator())
    variables = {}
    for name, theirs in layouts.nvidia_discriminator_names(2).items():
        side, layer, part = theirs.split(".")
        value = state[name].numpy()
        place = f"{side[1:]}x{side[1:]}/" + {
            "fromrgb": "FromRGB",
            "conv0": "Conv0",
            "conv1": "Conv1_down",
        }.get(layer, layer.title())
        place = {"4x4/Fc": "4x4/Dense0", "4x4/Out": "Output"}.get(place, place)
        variables[f"{place}/{part}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    foreign.tensorflow_pickle(tmp_path / "t.pkl", {"": variables})
    for name in ("n.pkl", "t.pkl"):
        other = load_discriminator(tmp_path / name).state_dict()
        assert all(torch.equal(other[key], value) for key, value in state.items())


def nvidia(change: dict[str, Any] | None = None, drop: str = "") -> dict[str, Any]:
    state = layouts.to_nvidia(foreign.generator().state())
    return {key: value for key, value in state.items() if key != drop} | (change or {})


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            lambda: nvidia({"synthesis.b8.conv0.resample_filter": torch.ones(4, 4) / 16}),
            "another filter synthesis.b8.conv0",
        ),
        (lambda: nvidia({"synthesis.b8.skip.weight": torch.ones(4, 4)}), "synthesis.b8.skip.weight"),
        (lambda: nvidia(drop="synthesis.b16.torgb.bias"), "lacks 1 of .* first to_rgbs.1.bias"),
        (lambda: nvidia({"synthesis.b8.conv1.bias": torch.ones(3)}), "convs.1.activate.bias"),
        (lambda: nvidia({"synthesis.b4.torgb.weight": torch.ones(1, 8, 1, 1)}), "pictures of 1 channels"),
        (lambda: nvidia({"mapping.w_avg": torch.full((8,), torch.inf)}), "not finite in latent_avg"),
        (
            lambda: nvidia({"mapping.embed.weight": torch.ones(8, 3), "mapping.embed.bias": torch.ones(8)}),
            "do not fit",
        ),
        (
            lambda: {"synthesis.input.freqs": torch.ones(4, 2), "mapping.fc0.weight": torch.ones(4, 4)},
            "StyleGAN3",
        ),
        (
            lambda: {"conv1.conv.weight": torch.ones(1, 1, 1, 1, 1), "style.1.weight": torch.ones(4, 4)},
            "input.input is missing",
        ),
    ],
)
def test_weights_that_contradict_their_layout_are_refused_with_the_reason(
    tree: Any, says: str, tmp_path: Path
) -> None:
    torch.save(tree(), tmp_path / "wrong.pt")
    with pytest.raises(InputError, match=says):
        checkpoints.load_generator_file(tmp_path / "wrong.pt")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"synthesis.b8": {"architecture": "resnet"}}, "architecture resnet"),
        ({"synthesis.b8.conv0": {"activation": "relu"}}, "activation relu"),
        ({"synthesis.b8.conv1": {"conv_clamp": 256}}, "bounds its layers differently"),
        ({"synthesis.b8.conv1": {"conv_clamp": -1}}, "no number above 0"),
    ],
)
def test_options_in_nvidias_modules_that_are_not_supported_are_refused(
    facts: Any, says: str, tmp_path: Path
) -> None:
    foreign.nvidia_pickle(tmp_path / "g.pkl", foreign.generator(), facts)
    with pytest.raises(InputError, match=says):
        checkpoints.load_generator_file(tmp_path / "g.pkl")


@pytest.mark.parametrize(
    ("extra", "version", "says"),
    [
        ({"synthesis": {"ToRGB_lod0/weight": torch.ones(2)}}, 4, "progressively grown"),
        ({"mapping": {"LabelConcat/weight": torch.ones(2)}}, 4, "classes of the first StyleGAN2"),
        ({"synthesis": {"8x8/Skip/weight": torch.ones(2)}}, 4, "synthesis/8x8/Skip/weight"),
        ({}, 3, "older than StyleGAN2"),
    ],
)
def test_tensorflow_networks_of_another_kind_are_refused(
    extra: Any, version: int, says: str, tmp_path: Path
) -> None:
    variables = foreign.tensorflow_variables(foreign.generator())
    for name, more in extra.items():
        variables[name] |= {key: value.numpy() for key, value in more.items()}
    foreign.tensorflow_pickle(tmp_path / "g.pkl", variables, version)
    with pytest.raises(InputError, match=says):
        checkpoints.load_generator_file(tmp_path / "g.pkl")


def test_options_of_tensorflow_networks_are_read_and_those_not_supported_refused(tmp_path: Path) -> None:
    variables = foreign.tensorflow_variables(foreign.generator())
    path = tmp_path / "g.pkl"
    config = loaded(foreign.tensorflow_pickle(path, variables, conv_clamp=256, mapping_lrmul=0.02)).config
    assert (config.conv_clamp, config.lr_mlp) == (256.0, 0.02)
    wrong: list[dict[str, Any]] = [
        {"architecture": "resnet"},
        {"nonlinearity": "relu"},
        {"resample_kernel": [1, 2, 1]},
    ]
    for options in wrong:
        foreign.tensorflow_pickle(path, variables, **options)
        with pytest.raises(InputError, match="resnet|relu|filter"):
            loaded(path)


def test_a_generator_with_classes_cannot_become_rosinalitys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="for_class"):
        checkpoints.export_pt(tmp_path / "g.pt", foreign.generator(config=CLASSES))


def test_a_discriminator_of_a_generator_with_classes_is_refused() -> None:
    with pytest.raises(InputError, match="classes"):
        layouts.from_nvidia_discriminator(
            {"b4.fc.weight": torch.ones(1), "mapping.embed.weight": torch.ones(1)}
        )


def test_a_network_larger_than_any_known_is_refused_before_it_is_built() -> None:
    with pytest.raises(InputError, match="no known StyleGAN2"):
        layouts.check_shapes({}, {"a": (20_000, 20_000)})
