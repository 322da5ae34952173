"""Networks of metrics: their arithmetic against written-out formulas, their files, and what is said where one
is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchmetrics
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from zeroshift.config.schema import NetworksConfig
from zeroshift.errors import InputError, MissingExtra
from zeroshift.files.clips import save_clip
from zeroshift.files.faces import IrSe, IrSeConfig, load_ir_se, save_ir_se
from zeroshift.files.writing import file_sha256, fingerprint
from zeroshift.measure import backbones, networks
from zeroshift.measure.metrics import perceptual_vectors
from zeroshift.portraits import sample_scene
from zeroshift.portraits.scene import CHOICES
from zeroshift.worlds.portraits import Portraits
from zeroshift.worlds.roles import SobelEdges


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def shaken(network: nn.Module, seed: int = 0) -> Any:
    """The network in evaluation mode with random weights and batch statistics."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                fan = max(1, value[0].numel()) if value.dim() > 1 else 1
                value.copy_(
                    torch.randn(value.shape, generator=draw)
                    * (1.5 / fan) ** 0.5
                    * (0.2 if value.dim() == 1 else 1)
                )
                if name.endswith(("running_var", "bn.weight")):
                    value.abs_().add_(0.8)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inception() -> backbones.Inception:
    with torch.device("meta"):
        made = backbones.Inception()
    return shaken(made.to_empty(device="cpu"), 1)


# Inception.


def test_inception_has_the_numbers_of_weights_that_are_published(inception: backbones.Inception) -> None:
    convolutions = [module for module in inception.modules() if isinstance(module, nn.Conv2d)]
    # 23,851,784 weights of Keras's v3, without its 1000 classes and without bias and two statistics of each
    # of 17,216 channels.
    assert sum(each.weight.numel() for each in convolutions) == 23_851_784 - 2_049_000 - 3 * 17_216
    assert sum(each.out_channels for each in convolutions) == 17_216 and len(convolutions) == 94
    assert tuple(inception.fc.weight.shape) == (1008, 2048)


def test_inception_has_the_published_names(inception: backbones.Inception) -> None:
    shapes = {name: tuple(value.shape) for name, value in inception.state_dict().items()}
    assert shapes["Conv2d_4a_3x3.conv.weight"] == (192, 80, 3, 3)
    assert shapes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert shapes["Mixed_6a.branch3x3.conv.weight"] == (384, 288, 3, 3)
    assert shapes["Mixed_6c.branch7x7dbl_2.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)


def conv(block: nn.Module, name: str, x: Tensor, stride: int = 1, padding: Any = 0) -> Tensor:
    state = {
        key.removeprefix(f"{name}."): value
        for key, value in block.state_dict().items()
        if key.startswith(f"{name}.")
    }
    y = F.conv2d(x, state["conv.weight"], stride=stride, padding=padding)
    mean, var, gain, bias = (
        state[f"bn.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return ((y - mean) / (var + 1e-3).sqrt() * gain + bias).clamp_min(0)


def average(x: Tensor) -> Tensor:
    """Mean over the 3x3 neighbours that exist."""
    ones = torch.ones_like(x[:, :1])
    box = torch.ones(1, 1, 3, 3)
    summed = F.conv2d(x, box.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
    return summed / F.conv2d(ones, box, padding=1)


def block_5b(b: nn.Module, x: Tensor) -> Tensor:
    five = conv(b, "branch5x5_2", conv(b, "branch5x5_1", x), padding=2)
    three = conv(b, "branch3x3dbl_2", conv(b, "branch3x3dbl_1", x), padding=1)
    three = conv(b, "branch3x3dbl_3", three, padding=1)
    return torch.cat([conv(b, "branch1x1", x), five, three, conv(b, "branch_pool", average(x))], dim=1)


def block_6a(b: nn.Module, x: Tensor) -> Tensor:
    three = conv(b, "branch3x3dbl_2", conv(b, "branch3x3dbl_1", x), padding=1)
    three = conv(b, "branch3x3dbl_3", three, stride=2)
    return torch.cat([conv(b, "branch3x3", x, stride=2), three, F.max_pool2d(x, 3, 2)], dim=1)


def block_6b(b: nn.Module, x: Tensor) -> Tensor:
    row, column = (0, 3), (3, 0)
    seven = conv(b, "branch7x7_2", conv(b, "branch7x7_1", x), padding=row)
    seven = conv(b, "branch7x7_3", seven, padding=column)
    double = conv(b, "branch7x7dbl_1", x)
    for number, padding in ((2, column), (3, row), (4, column), (5, row)):
        double = conv(b, f"branch7x7dbl_{number}", double, padding=padding)
    return torch.cat([conv(b, "branch1x1", x), seven, double, conv(b, "branch_pool", average(x))], dim=1)


def block_7a(b: nn.Module, x: Tensor) -> Tensor:
    three = conv(b, "branch3x3_2", conv(b, "branch3x3_1", x), stride=2)
    cross = conv(b, "branch7x7x3_2", conv(b, "branch7x7x3_1", x), padding=(0, 3))
    cross = conv(b, "branch7x7x3_4", conv(b, "branch7x7x3_3", cross, padding=(3, 0)), stride=2)
    return torch.cat([three, cross, F.max_pool2d(x, 3, 2)], dim=1)


def block_7c(
    b: nn.Module, x: Tensor, pool: Callable[[Tensor], Tensor] = lambda x: F.max_pool2d(x, 3, 1, 1)
) -> Tensor:
    row, column = (0, 1), (1, 0)
    three = conv(b, "branch3x3_1", x)
    double = conv(b, "branch3x3dbl_2", conv(b, "branch3x3dbl_1", x), padding=1)
    three = torch.cat(
        [conv(b, "branch3x3_2a", three, padding=row), conv(b, "branch3x3_2b", three, padding=column)], dim=1
    )
    double = torch.cat(
        [conv(b, "branch3x3dbl_3a", double, padding=row), conv(b, "branch3x3dbl_3b", double, padding=column)],
        dim=1,
    )
    return torch.cat([conv(b, "branch1x1", x), three, double, conv(b, "branch_pool", pool(x))], dim=1)


BLOCKS: dict[str, tuple[int, Callable[[nn.Module, Tensor], Tensor]]] = {
    "Mixed_5b": (192, block_5b),
    "Mixed_6a": (288, block_6a),
    "Mixed_6b": (768, block_6b),
    "Mixed_7a": (768, block_7a),
    "Mixed_7b": (1280, lambda b, x: block_7c(b, x, average)),
    "Mixed_7c": (2048, block_7c),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_inception_equal_the_written_out_ones(inception: backbones.Inception, name: str) -> None:
    width, slow = BLOCKS[name]
    x = torch.randn(1, width, 5, 5, generator=torch.Generator().manual_seed(2))
    block = inception.get_submodule(name)
    assert torch.allclose(block(x), slow(block, x), rtol=1e-4, atol=1e-5)


def test_inception_gives_pooled_features_and_logits_without_bias(inception: backbones.Inception) -> None:
    features, logits = inception(pictures(1, 299))
    assert features.shape == (1, 2048) and torch.equal(logits, features @ inception.fc.weight.T)
    assert inception.early(pictures(1, 64)).shape == (1, 64, 29, 29)


@pytest.mark.parametrize(("length", "side"), [(2, 4), (5, 7), (9, 4), (6, 6)])
def test_pictures_are_resized_as_tensorflow_1_did(length: int, side: int) -> None:
    x = pictures(1, length).double()
    found = backbones.resize_tensorflow(x, side)
    for row in range(side):
        for column in range(side):
            y, z = row * length / side, column * length / side
            top, left = int(y), int(z)
            low, right = min(top + 1, length - 1), min(left + 1, length - 1)
            upper = x[..., top, left] * (1 - z + left) + x[..., top, right] * (z - left)
            lower = x[..., low, left] * (1 - z + left) + x[..., low, right] * (z - left)
            assert torch.allclose(found[..., row, column], upper * (1 - y + top) + lower * (y - top))


def test_the_inception_of_a_file_sees_eight_bit_pictures_around_128(
    inception: backbones.Inception, tmp_path: Path
) -> None:
    torch.save(inception.state_dict(), tmp_path / "inception.pth")
    loaded = networks.load_inception(str(tmp_path / "inception.pth"))
    assert loaded.record.sha256 == file_sha256(tmp_path / "inception.pth") and "299" in loaded.record.resize
    given = pictures(1, 40)
    levels = ((given + 1) * 127.5).round()
    output = loaded.encode(given)
    features, logits = inception((backbones.resize_tensorflow(levels, 299) - 128) / 128)
    assert torch.allclose(output.features, features, atol=1e-5)
    assert torch.allclose(output.classes[0], logits.softmax(dim=1), atol=1e-6)
    assert torch.allclose(output.early_map, inception.early((levels - 128) / 128), atol=1e-5)


# LPIPS.


def written_out(kind: str) -> nn.Sequential:
    """The convolutions as torchvision lays them out, maximum layers and ReLUs in their places."""
    layers: list[nn.Module] = []
    if kind == "vgg":
        width = 3
        for what in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
            if isinstance(what, int):
                layers += [nn.Conv2d(width, what, 3, padding=1), nn.ReLU()]
                width = what
            else:
                layers.append(nn.MaxPool2d(2, 2))
        return nn.Sequential(*layers)
    layers = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
    ]
    layers += [
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))


READ = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}


@pytest.fixture(scope="module", params=["vgg", "alex"])
def backbone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, nn.Sequential, Path]:
    """Name, the network written out, and a file as torchvision publishes it, with a classifier."""
    network = shaken(written_out(request.param), 3)
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("lpips") / "weights.pth"
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return request.param, network, path


def test_the_backbones_have_the_published_numbers_of_weights(backbone: Any) -> None:
    kind, network, _ = backbone
    count = sum(weight.numel() for weight in backbones.TappedNet(kind).parameters())
    assert (
        count
        == sum(weight.numel() for weight in network.parameters())
        == {"vgg": 14_714_688, "alex": 2_469_696}[kind]
    )


def test_lpips_equals_the_written_out_formula(backbone: Any) -> None:
    kind, network, path = backbone
    lpips = networks.load_lpips(str(path))
    given = pictures(2, 64)
    linear = networks.LPIPS_LAYERS / f"lpips_{kind}.safetensors"
    assert (
        lpips.record.sha256 == f"{file_sha256(path)}+{file_sha256(linear)}"
        and kind in lpips.record.name.lower()
    )
    layers = load_file(linear)
    x = (given - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor(
        [0.458, 0.448, 0.450]
    ).view(1, 3, 1, 1)
    total = torch.zeros(())
    for number, place in enumerate(READ[kind]):
        y = network[: place + 1](x)
        y = y / (y.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
        weighted = F.conv2d((y[:1] - y[1:]).square(), layers[f"lin{number}.model.1.weight"])
        total = total + weighted.mean()
    vectors = perceptual_vectors(lpips.maps(given), lpips.weights)
    assert torch.allclose((vectors[0] - vectors[1]).square().sum(), total, rtol=1e-4)
    assert float(total) > 0


@pytest.mark.parametrize("kind", ["vgg", "alex"])
def test_the_shipped_layers_are_those_of_the_authors_with_their_licence(kind: str) -> None:
    shipped = networks.LPIPS_LAYERS / f"lpips_{kind}.safetensors"
    published = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{kind}.pth"
    expected = torch.load(published, map_location="cpu", weights_only=True)
    found = load_file(shipped)
    assert found.keys() == expected.keys() and len(found) == 5
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with safe_open(shipped, "pt") as file:  # pyright: ignore[reportArgumentType]
        assert file.metadata()["licence"].startswith("BSD-2-Clause, Copyright (c) 2018, Richard Zhang")


def test_other_linear_layers_are_taken_from_a_path(backbone: Any, tmp_path: Path) -> None:
    kind, _, path = backbone
    usual = load_file(networks.LPIPS_LAYERS / f"lpips_{kind}.safetensors")
    torch.save({name: 2 * value for name, value in usual.items()}, tmp_path / "mine.pth")
    given = pictures(2, 64)

    def distance(config: NetworksConfig) -> Tensor:
        network: Any = networks.open_networks(config).perceptual
        vectors = perceptual_vectors(network.maps(given), network.weights)
        return (vectors[0] - vectors[1]).square().sum()

    shipped = NetworksConfig(lpips=str(path))
    mine = NetworksConfig(lpips=str(path), lpips_layers=str(tmp_path / "mine.pth"))
    assert torch.allclose(distance(mine), 2 * distance(shipped), rtol=1e-4)
    record = networks.open_networks(mine).records()["perceptual"]
    assert record.name.endswith("layers of mine.pth")
    assert record.sha256.endswith(file_sha256(tmp_path / "mine.pth"))


def test_linear_layers_of_another_backbone_or_of_nothing_are_refused(backbone: Any, tmp_path: Path) -> None:
    kind, _, path = backbone
    other = networks.LPIPS_LAYERS / f"lpips_{'alex' if kind == 'vgg' else 'vgg'}.safetensors"
    with pytest.raises(InputError, match=f"no linear layers of LPIPS for {kind}: lin1.* it has (128|192)"):
        networks.load_lpips(str(path), layers=str(other))
    with pytest.raises(InputError, match="without --lpips-layers"):
        networks.load_lpips(str(path), layers=str(tmp_path / "none.pth"))


# HED.


def test_hed_equals_the_written_out_network_and_reads_both_generations_of_names(tmp_path: Path) -> None:
    network = shaken(backbones.Hed(), 4)
    given = pictures(1, 32)
    torch.save(
        {name.replace("net", "module", 1): value for name, value in network.state_dict().items()},
        tmp_path / "hed",
    )
    edges = networks.load_hed(str(tmp_path / "hed")).edges(given)
    bgr = (given[:, [2, 1, 0]] + 1) / 2 * 255 - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(
        1, 3, 1, 1
    )
    vgg = written_out("vgg")
    state = network.state_dict()
    sides = []
    place = 0
    names = [f"netVgg{stage[0]}" for stage in backbones.Hed.STAGES]
    own = [value for name in names for key, value in state.items() if key.startswith(name)]
    vgg.load_state_dict(dict(zip(vgg.state_dict(), own, strict=True)))
    for stage, end in zip(backbones.Hed.STAGES, READ["vgg"], strict=True):
        bgr, place = vgg[place : end + 1](bgr), end + 1
        side = F.conv2d(bgr, state[f"netScore{stage[0]}.weight"], state[f"netScore{stage[0]}.bias"])
        sides.append(F.interpolate(side, (32, 32), mode="bilinear", align_corners=False))
    mixed = F.conv2d(torch.cat(sides, 1), state["netCombine.0.weight"], state["netCombine.0.bias"]).sigmoid()
    assert edges.shape == (1, 1, 32, 32) and torch.allclose(edges, mixed, atol=1e-5)


def test_sobel_edges_are_the_length_of_the_gradient_and_nothing_on_flat_ground() -> None:
    given = pictures(1, 6)
    grey = (given[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    found = SobelEdges().edges(given)
    for y in range(1, 5):
        for x in range(1, 5):
            part = grey[y - 1 : y + 2, x - 1 : x + 2]
            across = float((part[:, 2] - part[:, 0]) @ torch.tensor([1.0, 2, 1]))
            down = float(torch.tensor([1.0, 2, 1]) @ (part[2] - part[0]))
            assert float(found[0, 0, y, x]) == pytest.approx((across**2 + down**2) ** 0.5, abs=1e-5)
    assert SobelEdges().edges(torch.full((1, 3, 5, 5), 0.3)).abs().max() < 1e-6


# Faces.

SMALL = IrSeConfig(widths=(8, 12), units=(2, 1), first=6, squeeze=4, embed_dim=10, size=16)


def test_a_small_face_network_is_written_and_read_with_its_sizes(tmp_path: Path) -> None:
    network = shaken(IrSe(SMALL, crop=False), 5)
    given = pictures(3, 32)
    save_ir_se(tmp_path / "identity.safetensors", network, {"data": "renders"})
    loaded, sha256 = load_ir_se(tmp_path / "identity.safetensors")
    assert (
        loaded.config == SMALL
        and not loaded.crop
        and sha256 == file_sha256(tmp_path / "identity.safetensors")
    )
    assert torch.equal(loaded.embed(given), network.embed(given))
    assert torch.allclose(network.embed(given), network(F.avg_pool2d(given, 2)), atol=1e-6)


def test_a_face_network_of_another_program_gets_the_published_crop(tmp_path: Path) -> None:
    network = shaken(IrSe(SMALL), 5)
    torch.save(
        {f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "faces.pth"
    )
    loaded, _ = load_ir_se(tmp_path / "faces.pth")
    big = pictures(1, 256)
    assert loaded.crop and "35:223" in loaded.resize
    cut = F.adaptive_avg_pool2d(big[..., 35:223, 32:220], 16)
    assert torch.allclose(loaded.embed(big), network(cut), atol=1e-6)
    doubled = big.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(loaded.embed(doubled), loaded.embed(big), atol=1e-5)


def test_a_file_without_a_face_network_is_refused(tmp_path: Path) -> None:
    save_file({"output_layer.3.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no IR-SE network"):
        load_ir_se(tmp_path / "x.safetensors")
    state = IrSe(SMALL).state_dict()
    del state["body.1.res_layer.4.bias"]
    torch.save(state, tmp_path / "y.pth")
    with pytest.raises(InputError, match="lacks 1 of .* body.1.res_layer.4.bias"):
        load_ir_se(tmp_path / "y.pth")


# Roles.


def test_the_built_in_world_is_seen_by_its_own_judge_alone() -> None:
    opened = networks.open_networks(NetworksConfig(), Portraits(), "cartoon")
    judge = opened.judge
    assert isinstance(judge, networks.WorldJudge) and opened.features is judge and opened.perceptual is judge
    assert judge.record.name == "portraits-judge" and judge.record.sha256 == fingerprint(
        judge.clip.state_dict()
    )
    assert isinstance(opened.edges, SobelEdges)
    given = pictures(3, 64)
    output = judge.encode(given)
    assert torch.allclose(output.features, judge.features(given), atol=1e-6)
    assert len(output.classes) == len(CHOICES) and all(
        torch.allclose(each.sum(1), torch.ones(3)) for each in output.classes
    )
    assert [each.shape[1] for each in output.classes] == [len(choices) for choices, _ in CHOICES.values()]
    maps = judge.maps(given)
    assert len(maps) == 4 and torch.equal(output.early_map, maps[0]) and output.early_map.shape[-1] == 16


def test_the_judge_reads_the_attributes_of_true_pictures() -> None:
    from zeroshift.measure.features import read_attributes
    from zeroshift.models.seeds import z_from_seeds
    from zeroshift.portraits import LATENT_DIM, render

    judge = networks.open_networks(NetworksConfig(), Portraits()).judge
    assert judge is not None
    z = z_from_seeds(range(24), LATENT_DIM)
    people = sample_scene(z).choice
    read = read_attributes(judge.clip, judge.features(render(z)), Portraits(), people)
    assert min(read.values()) > 0.75 and sum(read.values()) / len(read) > 0.9
    others = read_attributes(judge.clip, judge.features(render(z.flip(0))), Portraits(), people)
    assert sum(others.values()) < 0.6 * sum(read.values())


def test_elsewhere_no_role_is_taken_unasked(tmp_path: Path) -> None:
    assert networks.open_networks(NetworksConfig()) == networks.Networks()
    save_clip(tiny.clip(1), tmp_path / "clip")
    opened = networks.open_networks(NetworksConfig(judge=str(tmp_path / "clip")))
    assert list(opened.records()) == ["judge"] and type(opened.judge) is networks.Judge


def test_asked_for_networks_win_over_those_of_the_built_in_world(backbone: Any) -> None:
    opened = networks.open_networks(NetworksConfig(lpips=str(backbone[2])), Portraits())
    assert isinstance(opened.perceptual, networks.Lpips) and opened.features is opened.judge


# What is missing or wrong.

LOADERS: dict[str, Callable[[str], Any]] = {
    "weights-inception": networks.load_inception,
    "vgg16-397923af.pth": networks.load_lpips,
    "network-bsds500": networks.load_hed,
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_file_is_answered_with_what_is_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=name):
        LOADERS[name](str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match="model_ir_se50.pth"):
        networks.open_networks(NetworksConfig(identity=str(tmp_path / "weights.pth")))


@pytest.mark.parametrize("name", LOADERS)
def test_another_network_is_refused_and_named(name: str, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"weights.safetensors is not a \w+ network: it lacks"):
        LOADERS[name](str(tmp_path / "weights.safetensors"))


def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    path = str(tmp_path / "inception-2015-12-05.pt")
    traced: Any = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    traced.save(path)
    with pytest.raises(InputError, match="TorchScript program, which is not run here"):
        networks.load_inception(path)


@pytest.mark.parametrize(
    ("load", "word"), [(networks.load_inception, "fidelity"), (networks.load_lpips, "vgg")]
)
def test_without_the_extra_its_name_is_told(load: Any, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "torch_fidelity",
        "torch_fidelity.feature_extractor_inceptionv3",
        "torchvision",
        "torchvision.models",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"zeroshift\[fidelity\]"):
        load(word)


def test_weights_that_the_extra_downloads_go_into_the_same_network(
    inception: backbones.Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = lambda name, features: inception
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loaded = networks.load_inception("fidelity")
    assert loaded.record.sha256 == fingerprint(inception.state_dict())
    assert torch.equal(loaded.network.fc.weight, inception.fc.weight)

    def offline(name: str, features: list[str]) -> None:
        raise OSError("no route to host")

    module.FeatureExtractorInceptionV3 = offline
    with pytest.raises(InputError, match="could not be downloaded .no route to host.; give them as a file"):
        networks.load_inception("fidelity")
