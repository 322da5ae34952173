"""Diffusion models in and out of files and folders of every program, told by content, and drawn from
seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import hubserver
import tiny
import zeroshift as zs
from hubserver import Repository
from zeroshift.app import cli
from zeroshift.config.schema import EvaluateConfig
from zeroshift.errors import InputError
from zeroshift.files import checkpoints, formats, registry, unets
from zeroshift.files.writing import file_sha256
from zeroshift.measure.picture_sets import open_inputs
from zeroshift.models.diffusion import DiffusionGenerator, build_unet, linear_betas
from zeroshift.pictures.runs import is_run

State = dict[str, Tensor]


def ddpm_network(widths: tuple[int, ...] = (32, 64), seed: int = 1, **options: Any) -> DiffusionGenerator:
    """A network of DDPM's kind with attention on its second level, for pictures of the usual size for as many
    levels."""
    kinds = ["attention" if level == 1 else "plain" for level in range(len(widths))]
    fixed = {
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    }
    shape = {
        "block_out_channels": widths,
        "layers_per_block": 1,
        "sample_size": 4 << len(widths),
        "norm_num_groups": 32,
    }
    down, up = ([unets.BLOCKS[way][kind] for kind in kinds] for way in ("down", "up"))
    unet = build_unet(
        {**fixed, **shape, "down_block_types": down, "up_block_types": up[::-1], **options}, seed
    )
    return DiffusionGenerator(unet, image_size=4 << len(widths)).eval()


def guided_network(resized: bool = True, seed: int = 2, **options: Any) -> DiffusionGenerator:
    """A network of guided-diffusion's kind with learned variance; with `resized` False of its
    forerunner's."""
    kinds = ["resnet" if resized else "plain", "attention"]
    down, up = ([unets.BLOCKS[way][kind] for kind in kinds] for way in ("down", "up"))
    fixed = {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    turn = {"downsample_type": "resnet", "upsample_type": "resnet"} if resized else {}
    heads = {"attention_head_dim": 64} if resized else {"attention_head_dim": None, "num_heads": 4}
    shape = {
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_eps": 1e-5,
    }
    made = {
        **fixed,
        **turn,
        **heads,
        **shape,
        "down_block_types": down,
        "up_block_types": up[::-1],
        **options,
    }
    return DiffusionGenerator(build_unet(made, seed), image_size=16, variance="learned").eval()


@pytest.fixture(scope="module")
def ddpm() -> DiffusionGenerator:
    return ddpm_network()


@pytest.fixture(scope="module")
def guided() -> DiffusionGenerator:
    return guided_network()


def same(one: Any, other: DiffusionGenerator) -> bool:
    """Whether two generators are equal in weights, schedule and picture size, and draw the same."""
    assert isinstance(one, DiffusionGenerator)
    states = one.state(), other.state()
    equal = set(states[0]) == set(states[1]) and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )
    facts = ("image_size", "patch", "variance", "prediction")
    equal &= torch.equal(one.betas, other.betas) and all(
        getattr(one, name) == getattr(other, name) for name in facts
    )
    return equal and torch.equal(one.eval().sample([4], steps=2), other.sample([4], steps=2))


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


WRAPPED = {
    "flat": lambda state: state,
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "training": lambda state: [
        {f"module.{name}": value * 0 for name, value in state.items()},
        {"state": {}},
        7,
        100,
        state,
    ],
    "training without averages": lambda state: [
        {f"module.{name}": value for name, value in state.items()},
        {"state": {}},
        7,
        100,
    ],
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
}


@pytest.mark.parametrize("form", list(WRAPPED))
def test_files_of_ddpm_are_read_in_every_form(form: str, ddpm: DiffusionGenerator, tmp_path: Path) -> None:
    state = unets.to_ddpm(ddpm)
    path = written(tmp_path / "any.name", WRAPPED[form](state))
    loaded, info = registry.load_generator(path)
    assert same(loaded, ddpm) and info.sha256 == file_sha256(path)
    found = zs.inspect(path)
    assert (found.kind, found.usable, found.what) == ("ddpm", True, formats.DIFFUSION["ddpm"])
    assert found.architecture["channels"] == {"16": 32, "8": 64} and found.architecture["attention"] == "8 px"
    assert found.parameters == sum(value.numel() for value in state.values())


def test_half_precision_is_widened(ddpm: DiffusionGenerator, tmp_path: Path) -> None:
    state = {name: value.half() for name, value in unets.to_ddpm(ddpm).items()}
    loaded = zs.load_generator(written(tmp_path / "half.ckpt", state))[0]
    assert all(value.dtype == torch.float32 for value in loaded.state().values())
    assert torch.allclose(
        loaded.state()["unet.conv_in.weight"], ddpm.state()["unet.conv_in.weight"], atol=1e-3
    )


@pytest.mark.parametrize("resized", [True, False])
def test_files_of_guided_diffusion_and_its_forerunner_are_read(resized: bool, tmp_path: Path) -> None:
    made = guided_network(resized)
    state = unets.to_guided(made)
    assert ("input_blocks.2.0.op.weight" in state) != resized and state[
        "middle_block.1.qkv.weight"
    ].shape == (192, 64, 1)
    path = written(tmp_path / "ema.pt", state | {"label_emb.weight": torch.ones(10, 128)})
    assert same(zs.load_generator(path)[0], made)
    found = zs.inspect(path)
    assert (found.kind, found.usable, found.architecture["variance"]) == ("guided diffusion", True, "learned")
    assert "without a label" in found.problems[0]
    assert found.architecture["heads"] == ("of 64 channels" if resized else 4)


def test_wider_sinusoids_than_the_first_block_are_kept() -> None:
    made = guided_network(time_width=64, time_embedding_dim=256)
    state = unets.to_guided(made)
    assert state["time_embed.0.weight"].shape == (256, 64)
    assert same(unets.guided_generator(state), made)


def test_sizes_of_published_models_are_known_by_their_levels() -> None:
    def usual(widths: tuple[int, ...]) -> int:
        state = {
            "conv_in.weight": torch.empty(widths[0], 3, 3, 3),
            "temb.dense.0.weight": torch.empty(512, 128),
        }
        state |= {
            f"down.{level}.block.0.conv1.weight": torch.empty(width, 1, 1, 1)
            for level, width in enumerate(widths)
        }
        found = unets.ddpm_options({**state, "down.0.downsample.conv.weight": torch.empty(1)})
        return unets.usual_size(found["block_out_channels"])

    assert usual((128, 128, 256, 256, 512, 512)) == 256  # CelebA-HQ, LSUN, AFHQ
    assert usual((128, 256, 256, 256)) == 32  # CIFAR10
    assert usual((128, 256, 256, 512, 512, 1024, 1024)) == 512  # ImageNet


def test_what_a_file_does_not_say_can_be_written_behind_its_name(
    guided: DiffusionGenerator, tmp_path: Path
) -> None:
    path = written(tmp_path / "ema.pt", unets.to_guided(guided))
    told = zs.load_generator(f"{path}:size=32,head_channels=32,schedule=cosine")[0]
    assert (
        isinstance(told, DiffusionGenerator)
        and told.image_size == 32
        and told.config.unet["attention_head_dim"] == 32
    )
    # Nichol and Dhariwal: abar(t) = cos^2((t/T + 0.008) / 1.008 pi/2), over its value at 0.
    when = (torch.tensor([1.0, 501.0]) / 1000 + 0.008) / 1.008 * torch.pi / 2
    expected = when.cos().square() / torch.tensor(0.008 / 1.008 * torch.pi / 2).cos().square()
    assert torch.allclose(told.alphas_bar[[0, 500]], expected, atol=1e-5)
    assert not torch.allclose(
        told.predict_noise(told.latents([0]), 5), guided.predict_noise(told.latents([0]), 5), atol=1e-4
    )
    for wrong in ("size=none", "head_channels=0", "schedule=wavy", "head_channels=7"):
        with pytest.raises(InputError):
            zs.load_generator(f"{path}:{wrong}")


@pytest.mark.parametrize("layout", ["ddpm", "guided-diffusion"])
def test_a_model_goes_through_our_format_and_back_bit_for_bit(
    layout: Any, tmp_path: Path, request: Any
) -> None:
    made = request.getfixturevalue(layout.split("-")[0])
    state = unets.to_ddpm(made) if layout == "ddpm" else unets.to_guided(made)
    first = written(tmp_path / "first.ckpt", state)
    zs.convert(first, tmp_path / "ours.safetensors", "safetensors")
    zs.convert(tmp_path / "ours.safetensors", tmp_path / "last.ckpt", layout)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(last) == set(state)
    assert all(
        torch.equal(last[name], value) and last[name].shape == value.shape for name, value in state.items()
    )
    found = zs.inspect(tmp_path / "ours.safetensors")
    assert found.kind == "diffusion" and found.metadata["converted_from"] == "first.ckpt"


def test_our_format_keeps_what_other_layouts_cannot_say(tmp_path: Path) -> None:
    options: Any = {"patch": 2, "prediction": "v_prediction", "betas": linear_betas(200)}
    made = tiny.diffusion(size=16, channels=12, **options)
    checkpoints.save_generator(tmp_path / "g.safetensors", made, {"world": "portraits"})
    loaded, told = checkpoints.load_generator_file(tmp_path / "g.safetensors")
    assert same(loaded, made) and loaded.config == made.config and told["world"] == "portraits"
    assert set(load_file(tmp_path / "g.safetensors")) == set(made.unet.state_dict())
    for layout in ("ddpm", "guided-diffusion"):
        with pytest.raises(InputError, match="safetensors"):
            zs.convert(tmp_path / "g.safetensors", tmp_path / "x", layout)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "x").exists()


def test_a_model_of_the_other_kind_has_no_words_in_a_layout(
    ddpm: DiffusionGenerator, guided: DiffusionGenerator
) -> None:
    for write, made in ((unets.to_guided, ddpm), (unets.to_ddpm, guided)):
        with pytest.raises(InputError, match="no words"):
            write(made)


def folder_of(made: DiffusionGenerator, path: Path, settings: dict[str, Any] | None = None) -> Path:
    """The network as diffusers writes it, with other settings or those of a scheduler."""
    unet: Any = made.unet
    unet.save_pretrained(path)
    if settings is not None:
        (path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler", **settings}))
    return path


def test_folders_of_diffusers_are_read_with_their_scheduler(ddpm: DiffusionGenerator, tmp_path: Path) -> None:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    alone = folder_of(ddpm, tmp_path / "alone")
    assert same(zs.load_generator(alone)[0], ddpm) and same(zs.load(str(alone)), ddpm) and not is_run(alone)
    assert same(zs.load_generator(alone / "diffusion_pytorch_model.safetensors")[0], ddpm)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", variance_type="fixed_large"
    )
    unet: Any = ddpm.unet
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "whole")
    loaded, info = zs.load_generator(tmp_path / "whole")
    assert isinstance(loaded, DiffusionGenerator)
    assert (loaded.prediction, loaded.variance) == ("v_prediction", "fixedlarge")
    assert torch.equal(loaded.betas, scheduler.betas)
    assert info.sha256 == file_sha256(tmp_path / "whole" / "unet" / "diffusion_pytorch_model.safetensors")
    found = zs.inspect(tmp_path / "whole")
    assert (found.kind, found.usable, found.architecture["predicts"]) == ("diffusers", True, "velocity")


def test_old_names_of_attention_are_known(ddpm: DiffusionGenerator, tmp_path: Path) -> None:
    path = folder_of(ddpm, tmp_path / "old")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path / "diffusion_pytorch_model.safetensors")
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    (path / "diffusion_pytorch_model.safetensors").unlink()
    written(path / "diffusion_pytorch_model.bin", state)
    assert same(zs.load_generator(path)[0], ddpm)


def test_a_repository_of_diffusers_is_downloaded_with_its_settings(
    ddpm: DiffusionGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(ddpm, tmp_path / "model", {"beta_end": 0.01})
    files = {file.name: file.read_bytes() for file in path.iterdir()} | {
        "README.md": b"x",
        "other.bin": b"x" * 1000,
    }
    with hubserver.running(monkeypatch, tmp_path / "cache") as server:
        server.repositories["ann/ddpm"] = Repository(files)
        loaded, info = zs.load_generator("hf:ann/ddpm")
        assert isinstance(loaded, DiffusionGenerator) and loaded.betas[-1].item() == pytest.approx(0.01)
        assert all(torch.equal(value, loaded.state()[name]) for name, value in ddpm.state().items())
        assert info.name == "hf:ann/ddpm" and not server.asked("GET", "other.bin")


def changed(state: State, **more: Tensor) -> State:
    return {**state, **more}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: {name: value for name, value in state.items() if name != "mid.block_1.conv1.bias"},
            "lacks 1 of",
        ),
        (lambda state: changed(state, more=torch.ones(1)), "do not belong, first more"),
        (lambda state: changed(state, **{"norm_out.bias": torch.ones(7)}), "the shape"),
        (lambda state: changed(state, **{"norm_out.bias": torch.full((32,), torch.nan)}), "not finite"),
        (
            lambda state: {name: value for name, value in state.items() if not name.startswith("down.")},
            "lacks the blocks",
        ),
        (
            lambda state: {name: value for name, value in state.items() if "downsample" not in name},
            "no convolutions",
        ),
        (
            lambda state: changed(state, **{"down.999.block.0.conv1.weight": torch.ones(32, 1, 1, 1)}),
            "lacks the blocks",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence_and_described(
    change: Any, says: str, ddpm: DiffusionGenerator, tmp_path: Path
) -> None:
    path = written(tmp_path / "x.ckpt", change(unets.to_ddpm(ddpm)))
    with pytest.raises(InputError, match=says) as caught:
        zs.load_generator(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    found = zs.inspect(path)
    assert found.kind == "ddpm" and not found.usable and says in found.problems[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_class_embeds": 10}, "classes"),
        ({"time_embedding_type": "fourier"}, "fourier"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": [7, None]}, "kind 7"),
        ({"layers_per_block": 10**9}, "more layers"),
        ({"layers_per_block": "many"}, "cannot be built"),
        ({"block_out_channels": [31, 64]}, "cannot be built"),
        ({"block_out_channels": [32, 10**12]}, "shape|cannot be built"),
        ({"act_fn": "__import__"}, "cannot be built"),
        ({"evil": 1}, "option evil"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(
    settings: dict[str, Any], says: str, ddpm: DiffusionGenerator, tmp_path: Path
) -> None:
    path = folder_of(ddpm, tmp_path / "model")
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known | settings))
    with pytest.raises(InputError, match=says) as caught:
        zs.load_generator(path)
    assert "\n" not in str(caught.value) and not zs.inspect(path).usable


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prediction_type": "sample"}, "predicts sample"),
        ({"beta_schedule": "wavy"}, "wavy"),
        ({"num_train_timesteps": 10**9}, "schedule of"),
    ],
)
def test_schedulers_that_cannot_be_used_are_refused_by_name(
    settings: dict[str, Any], says: str, ddpm: DiffusionGenerator, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        zs.load_generator(folder_of(ddpm, tmp_path / "model", settings))


def test_pipelines_with_more_than_a_network_and_weights_without_settings_are_refused(
    ddpm: DiffusionGenerator, tmp_path: Path
) -> None:
    folder_of(ddpm, tmp_path / "latent" / "unet")
    (tmp_path / "latent" / "model_index.json").write_text(
        json.dumps({"_class_name": "LDMPipeline", "unet": [], "vqvae": []})
    )
    with pytest.raises(InputError, match="vqvae"):
        zs.load_generator(tmp_path / "latent")
    save_file(ddpm.unet.state_dict(), tmp_path / "alone.safetensors")
    with pytest.raises(InputError, match="config.json"):
        zs.load_generator(tmp_path / "alone.safetensors")
    (tmp_path / "latent" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        zs.load_generator(tmp_path / "latent" / "unet")


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", '{"unet": {}}', '{"unet": {"x": 1}, "betas": [], "image_size": 8}', '{"evil": 1}'],
)
def test_our_own_file_with_a_broken_architecture_is_refused(config: str, tmp_path: Path) -> None:
    facts = {"format": checkpoints.DIFFUSION_FORMAT, "version": "0", "config": config}
    save_file({"x": torch.ones(1)}, tmp_path / "g", facts)
    with pytest.raises(InputError, match="no readable architecture|cannot be built|more layers"):
        zs.load_generator(tmp_path / "g")


def test_the_command_draws_a_seed_alike_and_writes_how(
    ddpm: DiffusionGenerator, tmp_path: Path, capsys: Any
) -> None:
    path = written(tmp_path / "faces.ckpt", unets.to_ddpm(ddpm))
    assert (
        cli.main(
            ["sample", str(path), "--seeds", "3,5", "--steps", "4", "--out", str(tmp_path / "p"), "--json"]
        )
        == 0
    )
    said = capsys.readouterr()
    assert json.loads(said.out)["seeds"] == [3, 5] and "drawing: 4" in said.err
    with Image.open(tmp_path / "p" / "seed00005.png") as picture:
        assert (
            picture.size == (16, 16)
            and picture.info["steps"] == "4"
            and picture.info["generator"] == "faces.ckpt"
        )
        pixels = torch.tensor(list(picture.tobytes())).view(16, 16, 3).permute(2, 0, 1)
    expected = (ddpm.sample([5], steps=4)[0] + 1) * 127.5
    assert (pixels - expected).abs().max() < 0.51


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--truncation", "0.5"], "truncation 0.5 needs styles"),
        (["--strength", "0.5"], "needs a run"),
        (["--steps", "1"], "steps must be at least 2"),
        (["--eta", "2"], "eta must be between 0 and 1"),
    ],
)
def test_the_command_refuses_what_a_diffusion_model_has_not(
    words: list[str], says: str, ddpm: DiffusionGenerator, tmp_path: Path, capsys: Any
) -> None:
    path = written(tmp_path / "faces.ckpt", unets.to_ddpm(ddpm))
    assert cli.main(["sample", str(path), "--seeds", "0", *words, "--out", str(tmp_path / "p")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "p").exists()


def test_steps_mean_nothing_to_a_generator_that_draws_in_one() -> None:
    with pytest.raises(InputError, match="one step"):
        zs.sample("portraits", [0], steps=5)


def test_what_needs_styles_names_the_kind(ddpm: DiffusionGenerator, tmp_path: Path) -> None:
    path = written(tmp_path / "faces.ckpt", unets.to_ddpm(ddpm))
    with pytest.raises(InputError, match="is a diffusion model, which has no styles; method ipl takes"):
        checkpoints.with_styles(ddpm, str(path), "method ipl")
    for form in ("onnx", "rosinality"):
        with pytest.raises(InputError, match="diffusion model cannot be written"):
            zs.convert(path, tmp_path / "x", form)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="is a StyleGAN2"):
        zs.convert("portraits", tmp_path / "x", "ddpm")
    assert not (tmp_path / "x").exists()


def test_a_diffusion_model_can_be_measured(ddpm: DiffusionGenerator, tmp_path: Path) -> None:
    path = folder_of(ddpm, tmp_path / "model")
    inputs = open_inputs(str(path), EvaluateConfig(seeds="0", size=16))
    expected = (ddpm.sample([0]) + 1) * 127.5
    assert inputs.kind == "generator" and inputs.hashes["generator"]
    assert ((inputs.target.part(slice(0, 1)) + 1) * 127.5 - expected).abs().max() < 0.51
