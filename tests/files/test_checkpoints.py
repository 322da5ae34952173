"""Generator files: round trips in both layouts, and one clear sentence for every kind of wrong file."""

from __future__ import annotations

import argparse
import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import goldenlib
import tiny
from zeroshift.errors import InputError, RunError
from zeroshift.files import checkpoints, registry
from zeroshift.files.registry import load_discriminator
from zeroshift.files.writing import atomic_path, file_sha256
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.seeds import average_style, rng
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator
from zeroshift.worlds.portraits import Portraits

CONFIG = StyleGAN2Config(
    size=32, latent_dim=6, style_dim=10, mapping_depth=3, channel_base=128, channel_max=12
)


@pytest.fixture
def generator() -> StyleGAN2Generator:
    made = StyleGAN2Generator(CONFIG, seed=4)
    made.latent_avg.copy_(average_style(made, 64))
    return made


@pytest.fixture
def ours(generator: StyleGAN2Generator, tmp_path: Path) -> Path:
    checkpoints.save_generator(tmp_path / "ours.safetensors", generator, {"target": "pencil sketch"})
    return tmp_path / "ours.safetensors"


@pytest.fixture
def foreign(generator: StyleGAN2Generator, tmp_path: Path) -> Path:
    checkpoints.export_pt(tmp_path / "foreign.pt", generator)
    return tmp_path / "foreign.pt"


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_equal_states(one: StyleGAN2Generator, other: StyleGAN2Generator) -> None:
    first, second = one.state(), other.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_our_file_gives_back_weights_architecture_and_metadata(
    generator: StyleGAN2Generator, ours: Path
) -> None:
    found, metadata = checkpoints.load_generator_file(ours)
    loaded = tiny.styled(found)
    assert_equal_states(loaded, generator)
    assert loaded.config == CONFIG
    assert metadata["target"] == "pencil sketch"


def test_foreign_layout_gives_back_equal_weights_and_channels(
    generator: StyleGAN2Generator, foreign: Path
) -> None:
    loaded = tiny.styled(checkpoints.load_generator_file(foreign)[0])
    assert_equal_states(loaded, generator)
    assert [loaded.config.channels(side) for side in (4, 8, 16, 32)] == [
        CONFIG.channels(side) for side in (4, 8, 16, 32)
    ]


def test_discriminators_round_trip_in_both_layouts(tmp_path: Path) -> None:
    made = StyleGAN2Discriminator(CONFIG, seed=2)
    checkpoints.save_discriminator(tmp_path / "d.safetensors", made)
    torch.save({"g": {}, "d": made.state_dict()}, tmp_path / "d.pt")
    for name in ("d.safetensors", "d.pt"):
        loaded = load_discriminator(tmp_path / name)
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in made.state_dict().items())


def test_the_discriminator_of_the_built_in_world_knows_its_photos_and_can_be_trained() -> None:
    critic = load_discriminator("portraits")
    photos = Portraits().truth_of_seeds(range(16), "photo", critic.config.size)
    assert photos is not None
    upside_down = photos.flip(-2)
    assert critic(photos).mean() > critic(upside_down).mean() + 0.2
    critic(photos).mean().backward()
    assert all(each.grad is not None for each in critic.parameters())
    with pytest.raises(InputError, match="not a discriminator"):
        load_discriminator("portraits-ddpm")
    with pytest.raises(InputError, match="no generator"):
        load_discriminator("nobody")


@pytest.mark.parametrize("run", goldenlib.runs("stylegan2_rosinality"), ids=goldenlib.run_name)
def test_exported_keys_and_shapes_are_those_of_the_official_network(run: Path, tmp_path: Path) -> None:
    meta, _ = goldenlib.load(run)
    config = StyleGAN2Config(
        size=meta["config"]["size"],
        channel_multiplier=meta["config"]["channel_multiplier"],
        mapping_depth=meta["config"].get("n_mlp", 8),
    )
    if "n_latent" not in meta:
        state: dict[str, Any] = StyleGAN2Discriminator(config).state_dict()
        official = {key: entry for key, entry in meta["keys"].items() if not key.endswith("kernel")}
    else:
        made = StyleGAN2Generator(config)
        checkpoints.export_pt(tmp_path / "g.pt", made)
        state = content(tmp_path / "g.pt")["g_ema"]
        official = meta["keys"]
    assert {key: list(value.shape) for key, value in state.items()} == {
        key: entry["shape"] for key, entry in official.items()
    }


@pytest.mark.parametrize("prefix", ["module.", "generator.", "decoder."])
def test_prefixes_of_wrappers_are_dropped(prefix: str, generator: StyleGAN2Generator, foreign: Path) -> None:
    inner = {prefix + key: value for key, value in content(foreign)["g_ema"].items()}
    torch.save(
        {"g_ema": inner, "latent_avg": generator.latent_avg, "args": argparse.Namespace(size=32)}, foreign
    )
    assert_equal_states(tiny.styled(checkpoints.load_generator_file(foreign)[0]), generator)


def test_encoder_files_with_one_average_per_layer_are_read(
    generator: StyleGAN2Generator, foreign: Path
) -> None:
    inner = {"decoder." + key: value for key, value in content(foreign)["g_ema"].items()}
    inner["encoder.input_layer.0.weight"] = torch.zeros(2)
    torch.save({"state_dict": inner, "opts": {}, "latent_avg": generator.latent_avg.repeat(8, 1)}, foreign)
    loaded = tiny.styled(checkpoints.load_generator_file(foreign)[0])
    torch.testing.assert_close(loaded.latent_avg, generator.latent_avg)


def test_a_missing_average_style_is_computed_the_same_way_every_time(
    generator: StyleGAN2Generator, foreign: Path
) -> None:
    torch.save(content(foreign)["g_ema"], foreign)
    first, second = (tiny.styled(checkpoints.load_generator_file(foreign)[0]).latent_avg for _ in range(2))
    z = torch.randn(20000, 6, generator=rng("check"))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, generator.map(z).mean(dim=0).detach(), rtol=0, atol=0.05)


def test_half_precision_weights_become_float32(foreign: Path) -> None:
    inner = {key: value.half() for key, value in content(foreign)["g_ema"].items()}
    torch.save({"g_ema": inner}, foreign)
    assert tiny.styled(checkpoints.load_generator_file(foreign)[0]).input.input.dtype == torch.float32


def wrong(kind: str, folder: Path, ours: Path, foreign: Path) -> Path:
    """A file that is wrong in the named way."""
    path = folder / "wrong"
    state = content(foreign)["g_ema"]
    tensors = load_file(ours)
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    if kind == "torch data":
        torch.save(torch.zeros(3), path)
    elif kind == "code":
        path.write_bytes(pickle.dumps({"g_ema": Path("x")}, protocol=2))
    elif kind == "mapper":
        torch.save({"m": {}, "m_optim": {}}, path)
    elif kind == "discriminator":
        torch.save(StyleGAN2Discriminator(CONFIG).state_dict(), path)
    elif kind == "our discriminator":
        checkpoints.save_discriminator(path, StyleGAN2Discriminator(CONFIG))
    elif kind == "other weights":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "incomplete":
        torch.save({key: value for key, value in state.items() if key != "convs.1.activate.bias"}, path)
    elif kind == "surplus":
        torch.save({**state, "convs.9.strange": torch.zeros(1)}, path)
    elif kind == "style width":
        torch.save({**state, "conv1.conv.modulation.weight": torch.zeros(12, 11)}, path)
    elif kind == "kernel":
        torch.save({**state, "to_rgbs.0.upsample.kernel": torch.ones(4, 4)}, path)
    elif kind == "channels":
        torch.save({**state, "convs.0.conv.weight": torch.zeros(1, 5, 12, 3, 3)}, path)
    elif kind == "rank":
        torch.save({**state, "input.input": torch.zeros(3)}, path)
    elif kind == "not finite":
        torch.save({**state, "conv1.noise.weight": torch.tensor([float("nan")])}, path)
    elif kind == "size":
        facts = {"format": checkpoints.GENERATOR_FORMAT, "config": json.dumps({"size": 24})}
        save_file(tensors, path, facts)
    elif kind == "other size":
        facts = {"format": checkpoints.GENERATOR_FORMAT, "config": json.dumps({"size": 64})}
        save_file(tensors, path, facts)
    else:
        whole = {"truncated ours": ours, "truncated torch": foreign, "empty": ours, "text": ours}[
            kind
        ].read_bytes()
        path.write_bytes({"empty": b"", "text": b"not weights at all"}.get(kind, whole[: len(whole) // 2]))
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "No such file"),
        ("folder", "directory"),
        ("empty", "is empty"),
        ("text", "neither a safetensors file, a torch file nor a pickle"),
        ("truncated ours", "truncated"),
        ("truncated torch", "truncated"),
        ("torch data", "holds a Tensor"),
        ("code", "run code|not read"),
        ("mapper", "IPL mapper"),
        ("discriminator", "discriminator, not a generator"),
        ("our discriminator", "discriminator, not a generator"),
        ("other weights", "no StyleGAN2 generator"),
        ("incomplete", "lacks 1 of"),
        ("surplus", "convs.9.strange"),
        ("style width", "conv1.conv.modulation.weight"),
        ("kernel", "to_rgbs.0.upsample.kernel"),
        ("channels", "follow neither"),
        ("rank", "gives input.input the shape"),
        ("not finite", "not finite"),
        ("size", "got 24"),
        ("other size", "lacks"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(
    kind: str, says: str, tmp_path: Path, ours: Path, foreign: Path
) -> None:
    path = wrong(kind, tmp_path, ours, foreign)
    with pytest.raises(InputError, match=says) as caught:
        checkpoints.load_generator_file(path)
    assert str(path) in str(caught.value)


def test_files_that_would_run_code_are_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"g_ema": Trap()}, protocol=2))
    with pytest.raises(InputError):
        checkpoints.load_generator_file(tmp_path / "trap.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("stop"), KeyboardInterrupt()]
)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    failure: BaseException, tmp_path: Path
) -> None:
    place = tmp_path / "weights"
    place.write_text("old")
    expected = RunError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), atomic_path(place) as part:
        part.write_text("half of the ne")
        raise failure
    assert place.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_writing_into_a_folder_that_does_not_exist_is_bad_input(
    generator: StyleGAN2Generator, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot write in"):
        checkpoints.save_generator(tmp_path / "nowhere" / "g.safetensors", generator)


def test_a_generator_is_found_by_file_and_by_folder_with_the_hash_of_its_file(
    ours: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "generator.safetensors").write_bytes(ours.read_bytes())
    by_file = registry.load_generator(ours)[1]
    by_folder = registry.load_generator(folder)[1]
    assert by_file.sha256 == by_folder.sha256 == file_sha256(ours)
    assert by_folder.path == folder / "generator.safetensors" and not by_file.world


def test_a_generator_of_the_built_in_world_is_known_by_its_metadata(
    generator: StyleGAN2Generator, tmp_path: Path
) -> None:
    checkpoints.save_generator(tmp_path / "g", generator, {"world": "portraits"})
    assert registry.load_generator(tmp_path / "g")[1].world == "portraits"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nothing", "portraits"),
        ("folder/file.pt", "no generator"),
        ("", "no generator"),
        ("portraits-judge", "is a CLIP"),
    ],
)
def test_an_unknown_generator_is_refused_with_the_names_there_are(
    spec: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        registry.load_generator(spec or tmp_path / "gone.pt")


@pytest.mark.parametrize(("spec", "says"), [("nothing", "portraits-clip-a"), ("portraits", "is a generator")])
def test_an_unknown_clip_is_refused_with_the_names_there_are(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        registry.load_clip(spec)


def test_a_folder_without_a_generator_names_the_files_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generator.safetensors"):
        registry.load_generator(tmp_path)
