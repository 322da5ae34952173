"""Generators in other forms: the same weights in every layout, the same pictures from every exported
network."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

import tiny
import zeroshift
from zeroshift.app import cli
from zeroshift.errors import InputError, MissingExtra, RunError
from zeroshift.files import checkpoints, export
from zeroshift.files.export import NetworkOptions
from zeroshift.files.writing import file_sha256
from zeroshift.models.seeds import truncate
from zeroshift.models.stylegan2 import StyleGAN2Generator


@pytest.fixture(scope="module")
def generator() -> StyleGAN2Generator:
    made = tiny.generator(3)
    made.latent_avg.copy_(torch.linspace(-1, 1, made.style_dim))
    return made


@pytest.fixture(scope="module")
def source(generator: StyleGAN2Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of a run, with the generator in it."""
    folder = tmp_path_factory.mktemp("source")
    checkpoints.save_generator(folder / "generator.safetensors", generator, {"target": "pencil sketch"})
    return folder


def styles(generator: StyleGAN2Generator, batch: int) -> Tensor:
    """Styles BKS, other ones for every picture and latent."""
    return torch.randn(
        batch, generator.num_latents, generator.style_dim, generator=torch.Generator().manual_seed(batch)
    )


def onnx_images(path: Path, **inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(image)


def torchscript(path: Path) -> Any:
    with export.quiet():
        return torch.jit.load(str(path))


@pytest.mark.parametrize("layout", ["rosinality", "nvidia-state", "safetensors"])
def test_a_layout_holds_the_same_weights_and_the_average_style(
    layout: Any, generator: StyleGAN2Generator, source: Path, tmp_path: Path
) -> None:
    zeroshift.convert(source, tmp_path / "there", layout)
    zeroshift.convert(tmp_path / "there", tmp_path / "back", "safetensors")
    for path in (tmp_path / "there", tmp_path / "back"):
        state = checkpoints.load_generator_file(path)[0].state()
        assert state.keys() == generator.state().keys()
        assert all(torch.equal(value, state[name]) for name, value in generator.state().items())


def test_the_layouts_are_those_of_the_programs_they_are_for(source: Path, tmp_path: Path) -> None:
    for layout in ("rosinality", "nvidia-state"):
        zeroshift.convert(source, tmp_path / layout, layout)
    rosinality, nvidia = (
        torch.load(tmp_path / name, weights_only=True) for name in ("rosinality", "nvidia-state")
    )
    assert set(rosinality) == {"g_ema", "latent_avg"} and "convs.0.conv.blur.kernel" in rosinality["g_ema"]
    assert torch.equal(nvidia["mapping.w_avg"], rosinality["latent_avg"])
    assert torch.equal(nvidia["synthesis.b8.conv0.weight"], rosinality["g_ema"]["convs.0.conv.weight"][0])


@torch.no_grad()
def test_a_mapping_of_another_factor_is_scaled_to_the_usual_one_and_draws_the_same(tmp_path: Path) -> None:
    made = StyleGAN2Generator(replace(tiny.generator().config, lr_mlp=0.1), seed=2)
    checkpoints.save_generator(tmp_path / "g", made)
    z = torch.randn(3, made.latent_dim, generator=torch.Generator().manual_seed(1))
    for layout in ("rosinality", "nvidia-state"):
        zeroshift.convert(tmp_path / "g", tmp_path / layout, layout)
        loaded = tiny.styled(checkpoints.load_generator_file(tmp_path / layout)[0])
        assert loaded.config.lr_mlp == 0.01
        torch.testing.assert_close(loaded(z), made(z), rtol=0, atol=1e-5)


@pytest.fixture
def with_classes(tmp_path: Path) -> tuple[StyleGAN2Generator, Path]:
    """A generator of three classes whose activations are bounded, and its file."""
    made = StyleGAN2Generator(replace(tiny.generator().config, num_classes=3, conv_clamp=0.5), seed=2).eval()
    checkpoints.save_generator(tmp_path / "classes", made)
    return made, tmp_path / "classes"


@torch.no_grad()
def test_one_class_is_written_where_a_form_has_none_and_a_bound_goes_along(
    with_classes: tuple[StyleGAN2Generator, Path], tmp_path: Path
) -> None:
    made, source = with_classes
    z = torch.randn(2, made.latent_dim, generator=torch.Generator().manual_seed(1))
    expected = made.synthesize(made.map(z, torch.tensor([1, 1])))
    zeroshift.convert(source, tmp_path / "net", "torchscript", label=1, options=NetworkOptions(part="full"))
    torch.testing.assert_close(torchscript(tmp_path / "net")(z, torch.ones(1)), expected, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match=r"bounded at 0.5 \(conv_clamp\)"):
        zeroshift.convert(source, tmp_path / "pt", "rosinality", label=1)
    loaded = tiny.styled(checkpoints.load_generator_file(tmp_path / "pt")[0])
    torch.testing.assert_close(loaded.map(z), made.map(z, torch.tensor([1, 1])), rtol=0, atol=1e-5)
    zeroshift.convert(source, tmp_path / "synthesis", "torchscript")
    torch.testing.assert_close(
        torchscript(tmp_path / "synthesis")(made.map(z, torch.tensor([1, 1]))[:, None].repeat(1, 6, 1)),
        expected,
    )


@pytest.mark.parametrize(
    ("form", "label", "says"),
    [("rosinality", None, "classes"), ("torchscript", None, "--label"), ("onnx", 3, "0 to 2")],
)
def test_classes_that_a_form_cannot_hold_are_refused(
    form: Any, label: int | None, says: str, with_classes: tuple[StyleGAN2Generator, Path], tmp_path: Path
) -> None:
    options = None if form == "rosinality" else NetworkOptions(part="full")
    with pytest.raises(InputError, match=says):
        zeroshift.convert(with_classes[1], tmp_path / "g", form, options=options, label=label)
    assert not (tmp_path / "g").exists()


def test_a_label_of_a_generator_without_classes_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no classes"):
        zeroshift.convert(source, tmp_path / "g", "rosinality", label=0)


def test_our_own_file_keeps_what_it_said_and_names_the_file_it_came_from(
    source: Path, tmp_path: Path
) -> None:
    zeroshift.convert(source, tmp_path / "copy", "safetensors")
    metadata = checkpoints.load_generator_file(tmp_path / "copy")[1]
    assert metadata["target"] == "pencil sketch" and metadata["converted_from"] == "generator.safetensors"
    assert metadata["converted_sha256"] == file_sha256(source / "generator.safetensors")


@torch.no_grad()
def test_onnx_of_any_batch_makes_our_pictures_and_says_nothing_on_the_screen(
    generator: StyleGAN2Generator, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = zeroshift.convert(source, tmp_path / "g.onnx", "onnx")
    assert capfd.readouterr() == ("", "")
    assert (
        done.difference is not None
        and done.difference < 1e-4
        and done.size == (tmp_path / "g.onnx").stat().st_size
    )
    for batch in (1, 2, 5):
        w = styles(generator, batch)
        torch.testing.assert_close(
            onnx_images(tmp_path / "g.onnx", w=w), generator.synthesize(w), rtol=0, atol=1e-4
        )
    content = (tmp_path / "g.onnx").read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content and b"pencil sketch" in content


@torch.no_grad()
def test_onnx_of_a_fixed_batch_by_groups_makes_our_pictures_and_refuses_another_batch(
    generator: StyleGAN2Generator, source: Path, tmp_path: Path
) -> None:
    options = NetworkOptions(batch=2, modulation="grouped", noise="off")
    zeroshift.convert(source, tmp_path / "g.onnx", "onnx", options=options)
    w = styles(generator, 2)
    image = onnx_images(tmp_path / "g.onnx", w=w)
    torch.testing.assert_close(image, generator.synthesize(w, "off"), rtol=0, atol=1e-4)
    assert (image - generator.synthesize(w)).abs().max() > 1e-2
    with pytest.raises(Exception, match="Expected: 2"):
        onnx_images(tmp_path / "g.onnx", w=styles(generator, 3))


@torch.no_grad()
def test_the_whole_network_maps_and_truncates_too(
    generator: StyleGAN2Generator, source: Path, tmp_path: Path
) -> None:
    options = NetworkOptions(part="full")
    for form in ("onnx", "torchscript"):
        zeroshift.convert(source, tmp_path / form, form, options=options)
    for batch, psi in ((1, 0.5), (3, 1.0)):
        z = torch.randn(batch, generator.latent_dim, generator=torch.Generator().manual_seed(7))
        expected = generator.synthesize(truncate(generator.map(z), generator.latent_avg, psi))
        images = onnx_images(tmp_path / "onnx", z=z, truncation=torch.tensor([psi]))
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            torchscript(tmp_path / "torchscript")(z, torch.tensor([psi])), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("modulation", ["scale", "grouped"])
@torch.no_grad()
def test_torchscript_makes_our_pictures_by_both_ways_of_modulation(
    modulation: Any,
    generator: StyleGAN2Generator,
    source: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fixed = 2 if modulation == "grouped" else None
    done = zeroshift.convert(
        source, tmp_path / "g", "torchscript", options=NetworkOptions(batch=fixed, modulation=modulation)
    )
    assert capfd.readouterr() == ("", "")
    assert done.difference is not None
    network = torchscript(tmp_path / "g")
    for batch in (1, 2, 5):
        w = styles(generator, batch)
        if fixed in (None, batch):
            torch.testing.assert_close(network(w), generator.synthesize(w), rtol=0, atol=1e-5)
        else:
            with pytest.raises(RuntimeError, match="invalid for input"):
                network(w)


def test_a_torchscript_file_says_what_it_is(source: Path, tmp_path: Path) -> None:
    zeroshift.convert(source, tmp_path / "g", "torchscript", check=False)
    told = {"zeroshift.json": ""}
    with export.quiet():
        torch.jit.load(str(tmp_path / "g"), _extra_files=told)
    facts = json.loads(told["zeroshift.json"])
    assert facts["target"] == "pencil sketch" and facts["format"] == "zeroshift.torchscript"


def test_a_network_that_differs_from_ours_is_refused_and_an_equal_one_is_not(
    generator: StyleGAN2Generator,
) -> None:
    network = export.ExportedNetwork(generator.clone(), NetworkOptions())
    other = generator.clone()
    with torch.no_grad():
        other.convs[2].get_parameter("activate.bias")[0] += 1e-3
    assert export.difference_from_ours(network, generator.synthesize, Path("out")) < 1e-5
    with pytest.raises(RunError, match="differs from ours by 0.00"):
        export.difference_from_ours(network, other.synthesize, Path("out"))
    with pytest.raises(RunError, match="nan"):
        export.difference_from_ours(network, lambda w: generator.synthesize(w) * float("nan"), Path("out"))


def test_a_file_that_is_there_is_replaced_only_when_allowed(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "g"
    place.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        zeroshift.convert(source, place, "rosinality")
    assert place.read_text() == "mine"
    zeroshift.convert(source, place, "rosinality", overwrite=True)
    assert place.stat().st_size > 1000 and [path.name for path in tmp_path.iterdir()] == ["g"]


@pytest.mark.parametrize(
    ("form", "options", "says"),
    [
        ("tflite", None, "the forms are safetensors"),
        ("rosinality", NetworkOptions(), "options of onnx and torchscript"),
        ("torchscript", NetworkOptions(batch=0), "at least 1"),
        ("torchscript", NetworkOptions(modulation="grouped"), "fixed batch"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_sentence(
    form: Any, options: NetworkOptions | None, says: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        zeroshift.convert(source, tmp_path / "g", form, options=options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        zeroshift.convert(source, tmp_path, "rosinality")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_the_extra_is_named_where_it_is_missing(
    package: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"zeroshift\[onnx\]"):
        zeroshift.convert(source, tmp_path / "g", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_a_runtime_a_network_is_written_and_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.onnx_runner(tmp_path / "g") is None


def test_the_command_says_what_it_wrote_and_how_large_it_is(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(source), str(tmp_path / "g.pt"), "--to"]
    assert cli.main([*words, "torchscript", "--part", "full"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "g.pt") in said and "kB" in said and "largest difference" in said
    assert cli.main([*words, "rosinality"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*words, "rosinality", "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["to"] == "rosinality" and told["bytes"] == (tmp_path / "g.pt").stat().st_size


FULL = """
import resource, sys
from zeroshift.app.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["convert", "portraits", sys.argv[1], "--to", sys.argv[2]]))
"""


@pytest.mark.parametrize("to", ["rosinality", "nvidia-state", "torchscript"])
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(to: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "x.bin"), to], capture_output=True, text=True
    )
    assert done.returncode == 1 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
