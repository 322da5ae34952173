"""`inspect`: every kind of file is told by its content, and what cannot be used is said with the reason."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import foreign
import zeroshift as zs
from zeroshift.app import cli
from zeroshift.errors import InputError
from zeroshift.files import checkpoints, formats, layouts
from zeroshift.files.describe import inspect
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.stylegan2 import StyleGAN2Config


def tensors(*names: str, shape: tuple[int, ...] = (2, 2)) -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name in names}


def domain() -> dict[str, Any]:
    vectors = {
        f"heads.conv_{index}.params_in": torch.zeros(1, 1, 8 * (index + 1), 1, 1) for index in range(3)
    }
    return {
        "model_type": "parameterization",
        "da_type": "td",
        "patch_key": "s_delta",
        "sg2_params": {},
        "state_dict": vectors,
    }


def encoder() -> dict[str, Any]:
    names = [f"encoder.styles.{index}.convs.0.weight" for index in range(5)]
    state = tensors(*names) | {"encoder.input_layer.0.weight": torch.ones(64, 6, 3, 3)}
    return {
        "state_dict": state,
        "opts": argparse.Namespace(encoder_type="Encoder4Editing"),
        "latent_avg": torch.ones(18, 512),
    }


def mapper() -> dict[str, Any]:
    weights = {f"mapping.mapping.{index}.weight": torch.ones(4, 4) for index in range(1, 5)}
    return {"m": weights, "m_optim": {"state": {0: {"exp_avg": torch.ones(4, 4)}}}}


FOREIGN: list[tuple[str, Any, dict[str, Any]]] = [
    (
        "stylegan3",
        lambda: tensors("synthesis.input.freqs", "synthesis.L0_36_512.weight", "mapping.fc0.weight"),
        {},
    ),
    ("ipl mapper", mapper, {"layers": 4}),
    ("hyperdomainnet", domain, {"vectors": 3, "numbers": 48, "model_type": "parameterization"}),
    (
        "styleclip mapper",
        lambda: {"state_dict": tensors("mapper.course_mapping.mapping.1.weight"), "opts": {}},
        {},
    ),
    ("encoder", encoder, {"styles": 5, "input channels": 6}),
    (
        "identity",
        lambda: tensors("input_layer.0.weight", "body.0.res_layer.0.weight", "output_layer.3.weight"),
        {},
    ),
    ("clip", lambda: tensors("visual.conv1.weight", "token_embedding.weight"), {}),
    ("coop", lambda: {"state_dict": tensors("ctx", "token_prefix"), "epoch": 5}, {}),
    ("lpips", lambda: tensors("lin0.model.1.weight"), {}),
    ("latents", lambda: torch.ones(18, 512), {}),
    ("latents", lambda: {"smile": torch.ones(1, 512)}, {}),
    (
        "discriminator",
        lambda: {"d": StyleGAN2Discriminator(StyleGAN2Config(size=16, channel_max=2)).state_dict()},
        {"size": 16},
    ),
]


def test_every_kind_of_file_that_is_named_has_an_example() -> None:
    assert {kind for kind, _, _ in FOREIGN} == set(formats.FOREIGN)


@pytest.mark.parametrize(("kind", "make", "details"), FOREIGN)
def test_files_of_other_kinds_are_named_and_not_taken_for_generators(
    kind: str, make: Any, details: Any, tmp_path: Path
) -> None:
    path = tmp_path / "file.bin"
    torch.save(make(), path)
    found = inspect(path)
    what, _, why = formats.FOREIGN[kind].partition("; ")
    assert found.kind == kind and (kind == "discriminator" or found.what == what)
    assert found.architecture | details == found.architecture
    # What a CLIP lacks is known once it is loaded; these have no activation and hardly any weights.
    assert found.usable or why in found.problems or (kind == "clip" and found.problems)
    with pytest.raises(InputError, match="holds") as caught:
        checkpoints.load_generator_file(path)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "layout", ["rosinality", "rosinality legacy", "nvidia", "nvidia state", "tensorflow", "ours"]
)
def test_generators_of_every_layout_are_described_alike(layout: str, tmp_path: Path) -> None:
    made = foreign.generator()
    found = inspect(foreign.every_layout(tmp_path, made)[layout])
    assert (found.kind, found.usable, found.problems) == ("generator", True, [])
    assert found.what.endswith(formats.LAYOUTS[{"ours": "zeroshift"}.get(layout, layout.split()[0])])  # pyright: ignore[reportArgumentType]
    sizes = {
        "size": 16,
        "latent_dim": 6,
        "style_dim": 8,
        "mapping_depth": 2,
        "channels": {"4": 8, "8": 8, "16": 4},
    }
    assert found.architecture | sizes == found.architecture
    assert found.parameters == sum(weight.numel() for weight in made.parameters())
    assert found.average_style == {
        "present": True,
        "norm": pytest.approx(made.latent_avg.norm().item(), rel=1e-6),
    }


def test_what_shapes_do_not_show_is_described_too(tmp_path: Path) -> None:
    config = dataclasses.replace(foreign.CONFIG, num_classes=3, conv_clamp=256.0)
    found = inspect(foreign.nvidia_pickle(tmp_path / "g.pkl", foreign.generator(config=config)))
    assert (found.architecture["num_classes"], found.architecture["conv_clamp"]) == (3, 256.0)
    assert found.parts["G_ema"].endswith("used") and found.parts["D"].endswith("its discriminator")
    assert any("for_class" in problem for problem in found.problems)


def test_labels_and_settings_of_our_own_files_are_shown(tmp_path: Path) -> None:
    checkpoints.save_generator(
        tmp_path / "g", foreign.generator(), {"target": "pencil\x1b[2Jsketch", "method": "ipl"}
    )
    found = inspect(tmp_path / "g")
    assert found.metadata["target"] == "pencil\\x1b[2Jsketch" and found.metadata["method"] == "ipl"
    assert "config" not in found.metadata


def test_a_generator_without_an_average_or_noise_says_so(tmp_path: Path) -> None:
    state = {
        name: value
        for name, value in foreign.generator().state().items()
        if not name.startswith(("latent", "noises"))
    }
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "g.pt")
    found = inspect(tmp_path / "g.pt")
    assert (
        found.average_style == {"present": False, "norm": None}
        and "absent" in found.architecture["noise_maps"]
    )
    assert found.usable and "absent" in found.text()


def test_a_generator_that_does_not_fit_together_is_described_as_not_usable(tmp_path: Path) -> None:
    state = layouts.to_rosinality(foreign.generator().state())
    torch.save({"g_ema": state | {"conv1.noise.weight": torch.full((1,), torch.nan)}}, tmp_path / "g.pt")
    found = inspect(tmp_path / "g.pt")
    assert (found.kind, found.usable) == ("generator", False)
    assert "not finite" in found.problems[0] and "cannot be used" in found.text()


def test_an_encoder_beside_a_generator_is_mentioned(tmp_path: Path) -> None:
    inner = {
        f"decoder.{name}": value for name, value in layouts.to_rosinality(foreign.generator().state()).items()
    }
    torch.save(
        {"state_dict": inner | tensors("encoder.input_layer.0.weight"), "opts": {}}, tmp_path / "e4e.pt"
    )
    found = inspect(tmp_path / "e4e.pt")
    assert found.usable and "encoder" in found.problems[0]


def test_parts_of_a_training_checkpoint_are_listed_with_their_use(tmp_path: Path) -> None:
    made = foreign.generator()
    extra = {
        "g": made.state(),
        "g_optim": {"state": {}},
        "args": argparse.Namespace(size=16),
        "ada_aug_p": 0.5,
    }
    parts = inspect(foreign.rosinality_file(tmp_path / "g.pt", made, **extra)).parts
    assert parts["g_ema"].endswith("used") and "not used" in parts["g"] and "not used" in parts["g_optim"]
    assert parts["args"].startswith("Namespace")


def test_unknown_weights_are_counted_and_refused_as_a_generator(tmp_path: Path) -> None:
    save_file({"linear": torch.ones(3, 4)}, tmp_path / "w")
    found = inspect(tmp_path / "w")
    assert (found.kind, found.usable, found.parameters) == ("unknown", False, 12)


def folder(path: Path, settings: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    return path


def test_folders_of_transformers_are_told_by_their_settings(tmp_path: Path) -> None:
    empty = inspect(folder(tmp_path / "clip", {"model_type": "clip"}))
    assert empty.kind == "clip" and not empty.usable and "cannot load a CLIP" in empty.problems[0]
    other = inspect(folder(tmp_path / "bert", {"model_type": "bert"}))
    assert not other.usable and "bert" in other.what


def test_a_run_folder_is_described_by_its_generator(tmp_path: Path) -> None:
    checkpoints.save_generator(tmp_path / "generator.safetensors", foreign.generator(), {"target": "zombie"})
    found = inspect(tmp_path)
    assert found.metadata["target"] == "zombie" and found.path.endswith("generator.safetensors")


def test_built_in_models_are_described_by_name() -> None:
    assert zs.inspect("portraits").architecture["size"] == 64
    judge = zs.inspect("portraits-judge")
    loaded = zs.load_clip("portraits-judge")
    assert judge.kind == "clip" and judge.usable and judge.architecture["features"] == loaded.embed_dim
    assert judge.parameters == sum(each.numel() for each in loaded.parameters())


@pytest.mark.parametrize(
    ("name", "says"), [("nothing", "no generator"), ("empty", "holds no model"), ("broken", "cannot read")]
)
def test_what_cannot_be_read_is_bad_input(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{" * 1000)
    with pytest.raises(InputError, match=says):
        inspect(tmp_path / name)


def test_the_command_prints_words_or_json_and_leaves_with_2_on_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(foreign.nvidia_pickle(tmp_path / "g.pkl", foreign.generator()))
    assert cli.main(["inspect", path]) == 0
    assert "NVIDIA's PyTorch layout" in capsys.readouterr().out
    assert cli.main(["inspect", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "generator" and found["architecture"]["channels"] == {"4": 8, "8": 8, "16": 4}
    (tmp_path / "cut").write_bytes(b"\x80\x04}")
    assert cli.main(["inspect", str(tmp_path / "cut")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
