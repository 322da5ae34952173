"""CLIPs from files and folders: every format, and one sentence for what cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from clips import TEXTS, WORDS, draw, openai_state, small, vit, write_archive
from zeroshift.clip.model import OPENAI_MEAN, ClipModel
from zeroshift.clip.resnet import ResNetClip, ResNetClipConfig
from zeroshift.clip.text import BytePairTokenizer, HubTokenizer, TemplateBank, WordTokenizer
from zeroshift.errors import InputError
from zeroshift.files.clip_layouts import from_openai_state, openai_sizes
from zeroshift.files.clips import load_clip_file, load_clip_folder, save_clip, split_activation
from zeroshift.files.registry import load_clip

SIZES = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(77),
    "vocab_size": torch.tensor(49408),
}


def same(ours: ClipModel, other: ClipModel) -> bool:
    """Whether two CLIPs see and read alike, bit for bit."""
    images = draw(2, 3, other.resolution, other.resolution, dtype=torch.float32)
    seen = torch.equal(ours.encode_image(images), other.encode_image(images))
    read = ours.encode_text(TEXTS)
    return seen and torch.equal(read, other.encode_text(TEXTS))


@pytest.mark.parametrize("vision", ["resnet", "convnext", "regnet"])
def test_a_saved_built_in_clip_comes_back_whole(
    vision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bank = TemplateBank("faces", ("{}", "a {} of a face"))
    clip = small(vision, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), templates=bank, context="a face")
    save_clip(clip, tmp_path)
    again = load_clip_folder(tmp_path)
    assert (again.mean, again.std, again.context, again.name) == (clip.mean, clip.std, "a face", "small")
    assert again.templates.templates == bank.templates and again.resolution == 64
    assert isinstance(again.tokenizer, WordTokenizer) and again.tokenizer.vocab == WORDS.vocab
    images = draw(1, 3, 64, 64, dtype=torch.float32)
    assert torch.equal(again.encode_image(images), clip.encode_image(images))
    assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))
    assert capfd.readouterr().err == ""


def test_a_transformers_clip_with_openais_vocabulary_is_read_with_its_processor(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 32})
    )
    clip = load_clip_folder(tmp_path, name="mine")
    assert (clip.name, clip.mean, clip.std, clip.resolution) == ("mine", (0.5,) * 3, (0.25,) * 3, 32)
    assert isinstance(clip.tokenizer, BytePairTokenizer) and (clip.text_width, clip.embed_dim) == (16, 12)
    pixels = clip.preprocess(draw(1, 3, 48, 40, dtype=torch.float32))
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(pooled)
    torch.testing.assert_close(clip.encode_pixels(pixels), expected)


def test_without_a_processor_file_openais_constants_are_taken(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    assert load_clip_folder(tmp_path).mean == OPENAI_MEAN


def test_a_foreign_vocabulary_is_read_with_the_tokenizer_of_its_folder(tmp_path: Path) -> None:
    letters = "abcdefgh"
    vocabulary = {
        token: number for number, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])
    }
    vocabulary |= {"ab</w>": 16, "<|startoftext|>": 17, "<|endoftext|>": 18}
    files = tmp_path / "words"
    files.mkdir()
    (files / "vocab.json").write_text(json.dumps(vocabulary))
    (files / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    transformers.CLIPTokenizer.from_pretrained(files).save_pretrained(tmp_path)
    vit(vocab_size=19, bos_token_id=17, eos_token_id=18).save_pretrained(tmp_path)
    clip = load_clip_folder(tmp_path)
    assert isinstance(clip.tokenizer, HubTokenizer)
    assert clip.tokenize(["ab cab", "d"])[:, :5].tolist() == [[17, 16, 2, 16, 18], [17, 11, 18, 0, 0]]
    save_clip(clip, tmp_path / "again")
    assert torch.equal(
        load_clip_folder(tmp_path / "again").encode_text(["ab cab"]), clip.encode_text(["ab cab"])
    )


@pytest.mark.parametrize("resnet", [False, True], ids=["vit", "resnet"])
def test_openais_archive_is_read_as_tensors_and_widened(
    resnet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {key: value.half() for key, value in openai_state(resnet).items()}
    write_archive(tmp_path / "model.pt", half | SIZES)
    monkeypatch.setattr(torch.jit, "load", None)
    clip = load_clip_file(tmp_path / "model.pt")
    assert (
        clip.name == "model"
        and clip.dtype == torch.float32
        and clip.model.config.text_config.hidden_act == "quick_gelu"
    )
    assert (
        clip.convolutional == resnet
        and clip.resolution == (64 if resnet else 32)
        and isinstance(clip.tokenizer, BytePairTokenizer)
    )
    assert same(clip, from_openai_state({key: value.float() for key, value in half.items()}))


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "state dict of a script": lambda state: state | SIZES,
    "checkpoint": lambda state: {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    },
    "text apart": lambda state: {
        key if key.startswith("visual.") or key == "logit_scale" else f"text.{key}": state[key]
        for key in state
    },
    "with a bias of the sigmoid loss": lambda state: state | {"logit_bias": torch.tensor(-10.0)},
}


@pytest.mark.parametrize("resnet", [False, True], ids=["vit", "resnet"])
@pytest.mark.parametrize("how", WRAPPERS)
def test_state_dicts_are_found_in_whatever_wraps_them(how: str, resnet: bool, tmp_path: Path) -> None:
    state = openai_state(resnet)
    wrapped = WRAPPERS[how](state)
    torch.save(wrapped, tmp_path / "weights.bin")
    assert same(load_clip_file(tmp_path / "weights.bin", activation="quick_gelu"), from_openai_state(state))
    if how in ("bare", "text apart"):
        save_file(
            {key: value.contiguous() for key, value in wrapped.items()}, tmp_path / "weights.safetensors"
        )
        assert same(
            load_clip_file(tmp_path / "weights.safetensors", activation="quick_gelu"),
            from_openai_state(state),
        )


def slow_text(
    state: dict[str, Tensor], text: str, heads: int, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Feature of one text by the formulas of a pre-norm transformer, one head and one position at a time."""
    (ids,) = BytePairTokenizer()([text], 77)
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    for block in ("transformer.resblocks.0.", "transformer.resblocks.1."):
        part = {key.removeprefix(block): value for key, value in state.items() if key.startswith(block)}
        y = F.layer_norm(x, (16,), part["ln_1.weight"], part["ln_1.bias"])
        q, k, v = (y @ part["attn.in_proj_weight"].T + part["attn.in_proj_bias"]).split(16, dim=1)
        rows = []
        for place in range(len(ids)):
            found = []
            for head in range(heads):
                own = slice(head * 16 // heads, (head + 1) * 16 // heads)
                scores = (k[: place + 1, own] @ q[place, own]) / (16 / heads) ** 0.5
                found.append(scores.softmax(dim=0) @ v[: place + 1, own])
            rows.append(torch.cat(found))
        x = x + torch.stack(rows) @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
        y = F.layer_norm(x, (16,), part["ln_2.weight"], part["ln_2.bias"])
        y = activation(y @ part["mlp.c_fc.weight"].T + part["mlp.c_fc.bias"])
        x = x + y @ part["mlp.c_proj.weight"].T + part["mlp.c_proj.bias"]
    x = F.layer_norm(x, (16,), state["ln_final.weight"], state["ln_final.bias"])
    return x[int(ids.argmax())] @ state["text_projection"]


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
@pytest.mark.parametrize("heads", [1, 4])
def test_both_activations_follow_their_formula(activation: Any, formula: Any, heads: int) -> None:
    state = {key: value.double() for key, value in openai_state().items()}
    clip = from_openai_state(state, text_heads=heads, activation=activation).double()
    # The entries went through float32.
    exact = slow_text({key: value.float().double() for key, value in state.items()}, TEXTS[0], heads, formula)
    torch.testing.assert_close(clip.encode_text(TEXTS[:1])[0], exact)


def test_an_activation_that_nothing_states_is_asked_for(tmp_path: Path) -> None:
    state = openai_state()
    plain = tmp_path / "weights.pt"
    named = tmp_path / "ViT-B-32-QuickGELU.pt"
    torch.save(state, plain)
    torch.save(state, named)
    with pytest.raises(InputError, match=r"weights\.pt:quick_gelu.*weights\.pt:gelu"):
        load_clip(plain)
    quick, gelu = load_clip(f"{plain}:quick_gelu"), load_clip(f"{plain}:gelu")
    assert (
        same(load_clip(named), quick)
        and not same(gelu, quick)
        and same(gelu, from_openai_state(state, activation="gelu"))
    )


@pytest.mark.parametrize("spec", ["a.pt", "C:\\a.pt", "hf:owner/name", "a:b", ":gelu", "gelu"])
def test_only_an_activation_behind_a_name_is_split_off(spec: str) -> None:
    assert split_activation(spec) == (spec, None) and split_activation(f"{spec}:gelu") == (spec, "gelu")


def write_open_clip(folder: Path, state: dict[str, Tensor], **config: Any) -> Path:
    """A folder as open_clip puts it on the hub."""
    folder.mkdir(exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors"
    )
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    vision = {"image_size": 32, "layers": 2, "width": 16, "patch_size": 8} | config.pop("vision_cfg", {})
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2} | config.pop(
        "text_cfg", {}
    )
    settings = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, **config}
    processor = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": settings, "preprocess_cfg": processor})
    )
    return folder


def test_a_folder_of_open_clip_is_read_by_its_config(tmp_path: Path) -> None:
    state = openai_state()
    folder = write_open_clip(tmp_path / "mine", state, vision_cfg={"head_width": 4, "mlp_ratio": 4.0})
    clip, quick = (
        load_clip(folder),
        load_clip(write_open_clip(tmp_path / "quick", state, quick_gelu=True, text_cfg={"heads": 1})),
    )
    vision, text = clip.model.config.vision_config, clip.model.config.text_config
    assert (clip.name, clip.mean, clip.std) == ("mine", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (vision.num_attention_heads, text.num_attention_heads, vision.hidden_act, text.hidden_act) == (
        4,
        2,
        "gelu",
        "gelu",
    )
    assert quick.model.config.text_config.hidden_act == "quick_gelu" and not same(clip, quick)
    clip.mean = OPENAI_MEAN
    clip.std = (0.26862954, 0.26130258, 0.27577711)
    assert same(clip, from_openai_state(state, vision_heads=4, text_heads=2, activation="gelu"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "timm_model_name 'vit_base'"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name 'roberta-base'"),
        ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask"),
        ({"text_cfg": {"pool_type": "last"}}, "pool_type 'last'"),
        ({"multimodal_cfg": {"heads": 8}}, "multimodal_cfg"),
        ({"vision_cfg": {"width": 32}}, "another model: width 32, not 16"),
        ({"vision_cfg": {"head_width": 0}}, "open_clip_config.json"),
        ({"text_cfg": {"heads": 3}}, "3 heads do not divide"),
        ({"text_cfg": []}, "open_clip_config.json"),
    ],
)
def test_options_of_open_clip_that_change_the_sums_are_refused_by_name(
    config: Any, said: str, tmp_path: Path
) -> None:
    folder = write_open_clip(
        tmp_path / "other", openai_state(), **{key: value for key, value in config.items() if value}
    )
    if not all(config.values()):
        facts = json.loads((folder / "open_clip_config.json").read_text())
        facts["model_cfg"] |= config
        (folder / "open_clip_config.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=said):
        load_clip(folder)


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: without(state, "ln_final.weight"), "ln_final.weight"),
        (
            lambda state: without(state, "visual.ln_pre.bias"),
            "lack 1 tensors, as vision_model.pre_layrnorm.bias",
        ),
        (
            lambda state: state | {"text_decoder.ln.weight": torch.zeros(2)},
            "unknown architecture, as text_decoder.ln.weight",
        ),
        (lambda state: state | {"visual.proj": torch.zeros(3, 12)}, "is .12, 3. where .12, 16. is expected"),
        (lambda state: state | {"token_embedding.weight": torch.zeros(100, 16)}, "knows 100 tokens"),
        (lambda state: {"visual.trunk.blocks.0.w": torch.zeros(1)}, "picture tower is of timm"),
        (lambda state: {"visual.patch_embed.proj.weight": torch.zeros(1)}, "EVA-CLIP"),
        (lambda state: vit().state_dict(), "transformers' names: give its folder"),
        (lambda state: {"g_ema": {"style.1.weight": torch.zeros(1)}}, "no CLIP .g_ema.style.1.weight"),
        (lambda state: {}, "no CLIP .no tensors"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(change: Any, said: str, tmp_path: Path) -> None:
    torch.save(change(openai_state()), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=said) as caught:
        load_clip(f"{tmp_path / 'weights.pt'}:gelu")
    assert "\n" not in str(caught.value)


def test_code_in_a_file_of_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"visual.conv1.weight": Hostile()}, tmp_path / "weights.pt")
    vit().save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").unlink()
    torch.save({"logit_scale": Hostile()}, tmp_path / "hub" / "pytorch_model.bin")
    for place in (tmp_path / "weights.pt", tmp_path / "hub"):
        with pytest.raises(InputError, match="mkdir"):
            load_clip(place)
    assert not (tmp_path / "run").exists()


# Sizes: Radford et al. 2021, appendix F. Parameters: counted in the released archives.
@pytest.mark.parametrize(
    ("layers", "width", "side", "text_width", "embed_dim", "parameters"),
    [
        ((3, 4, 6, 3), 64, 224, 512, 1024, 102_007_137),
        ((3, 4, 23, 3), 64, 224, 512, 512, 119_688_033),
        ((4, 6, 10, 6), 80, 288, 640, 640, 178_300_601),
    ],
    ids=["RN50", "RN101", "RN50x4"],
)
def test_the_released_resnets_have_their_published_size(
    layers: tuple[int, ...], width: int, side: int, text_width: int, embed_dim: int, parameters: int
) -> None:
    text = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_attention_heads=text_width // 64,
    )
    with torch.device("meta"):
        model = ResNetClip(ResNetClipConfig(text, layers, width, side, width // 2, embed_dim))
    assert sum(each.numel() for each in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("width", "heads"), [(64, 1), (768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16)]
)
def test_heads_of_the_known_widths_are_the_published_ones(width: int, heads: int) -> None:
    state = openai_state()
    state["visual.conv1.weight"] = torch.zeros(width, 3, 2, 2)
    assert openai_sizes(state)["vision_heads"] == heads


def edit_config(folder: Path, tower: str = "", **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[tower] if tower else config).update(values)
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:1000]),
        "cannot load",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot load"),
    "no config": (lambda f: (f / "config.json").unlink(), "transformers' names"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is no json file"),
    "a list for a config": (lambda f: (f / "config.json").write_text("[]"), "config.json is no table"),
    "broken processor": (
        lambda f: (f / "preprocessor_config.json").write_text("{"),
        "preprocessor_config.json is no json",
    ),
    "broken words": (lambda f: (f / "vocab.json").write_text("{"), "vocab.json is no json file"),
    "words of another model": (
        lambda f: (f / "vocab.json").write_text('["a"]'),
        "vocab.json gives 6 ids, config.json",
    ),
    "bad templates": (lambda f: (f / "zeroshift.json").write_text('{"templates": 3}'), "cannot load"),
    "two colours": (
        lambda f: (f / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}'),
        "cannot load",
    ),
    "incomplete": (
        lambda f: edit_weights(f, lambda t: t.pop("text_projection.weight")),
        "lack 1 tensors, as text_projection.weight",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({"text_projection.weight": torch.zeros(3, 3)})),
        r"text_projection.weight of .* is \(3, 3\) in the weights and \(12, 16\)",
    ),
    "fewer layers": (
        lambda f: edit_config(f, "text_config", num_hidden_layers=1),
        "does not know, as text_model.encoder.layers.1",
    ),
    "another picture size": (
        lambda f: edit_config(f, "vision_config", image_size=32),
        "32 px in config.json and of 64 px",
    ),
    "a word for a number": (
        lambda f: edit_config(f, "text_config", hidden_size="x"),
        "expected int, got str",
    ),
    "another architecture": (lambda f: edit_config(f, model_type="bert"), "is a bert model"),
    "an unknown architecture": (
        lambda f: edit_config(f, model_type="not_yet_known"),
        "is a not_yet_known model",
    ),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_folders_are_refused_in_one_sentence(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_clip(small(), tmp_path)
    change, said = DAMAGES[how]
    change(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        load_clip_folder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_pictures_that_patches_do_not_fill_are_refused(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    edit_config(tmp_path, "vision_config", image_size=33)
    with pytest.raises(InputError, match="patches of 8 px do not fill the 33 px"):
        load_clip_folder(tmp_path)


def test_pickled_weights_of_transformers_are_read(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    expected = load_clip_folder(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert same(load_clip_folder(tmp_path), expected)


def test_a_folder_that_does_not_exist_and_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_clip_folder(tmp_path / "nowhere")
    transformers.CLIPTextConfig(vocab_size=20).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="clip_text_model"):
        load_clip_folder(tmp_path)
    with pytest.raises(InputError, match="states the activation"):
        load_clip("portraits-clip-a:gelu")


def test_openais_resnets_are_not_written_as_what_they_are_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keep the file"):
        save_clip(from_openai_state(openai_state(resnet=True)), tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize(
    ("files", "says"),
    [({}, "has no tokenizer"), ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "cannot load")],
)
def test_a_folder_whose_words_are_missing_or_damaged_is_refused(
    files: dict[str, str], says: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 1000}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(
        tmp_path
    )
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        load_clip_folder(tmp_path)
