"""SigLIP against transformers' own towers, with learned words, from its folder and in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from clips import draw
from zeroshift.clip.text import HubTokenizer
from zeroshift.errors import InputError, MissingExtra
from zeroshift.files.clips import load_clip_folder, save_clip

WORDS = "a photo of the zombie sketch statue person face in style".split()
TEXTS = ["a photo of a zombie", "Sketch", "a face, in the  style of a 'statue'; a photo."]


def write_siglip(folder: Path) -> Path:
    """A folder of a tiny SigLIP: end token 1, padding 0 and a word list as its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: number for number, word in enumerate(WORDS, 3)}
    words: Any = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": 40,
        "max_position_embeddings": 20,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = transformers.SiglipConfig(
        vision_config=tower | {"image_size": 16, "patch_size": 4}, text_config=text
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.SiglipModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_features_are_those_of_transformers(tmp_path: Path) -> None:
    clip = load_clip_folder(write_siglip(tmp_path / "siglip")).double()
    hub: Any = transformers.SiglipModel.from_pretrained(tmp_path / "siglip", dtype=torch.float64)
    ids = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "siglip")(
        [
            f"{text} </s>"
            for text in ("a photo of a zombie", "sketch", "a face in the style of a statue a photo")
        ],
        padding="max_length",
        max_length=20,
        return_tensors="pt",
    )["input_ids"]
    images = draw(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(clip.tokenize(TEXTS), torch.as_tensor(ids))
        torch.testing.assert_close(clip.encode_text(TEXTS), hub.get_text_features(ids).pooler_output)
        torch.testing.assert_close(clip.encode_pixels(images), hub.get_image_features(images).pooler_output)
    assert clip.logit_scale == pytest.approx(float(hub.logit_scale.detach().exp()))
    assert (clip.embed_dim, clip.text_width, clip.context_length, clip.resolution) == (16, 16, 20, 16)


def test_the_feature_is_read_behind_the_padding_which_attends_to_the_words(tmp_path: Path) -> None:
    clip = load_clip_folder(write_siglip(tmp_path)).double()
    ids = clip.tokenize(TEXTS[:1])
    other_end = ids.clone()
    other_end[0, -1] = 5
    assert (clip.encode_text(ids) - clip.encode_text(other_end)).abs().max() > 1e-3
    assert (clip.encode_text(TEXTS[:1]) - clip.encode_text(["a photo of a statue"])).abs().max() > 1e-3


def test_learned_words_replace_the_first_words(tmp_path: Path) -> None:
    clip = load_clip_folder(write_siglip(tmp_path)).double()
    known = clip.embed_tokens("a photo of a")
    assert known.shape == (4, 16)
    torch.testing.assert_close(clip.encode_prompts(known[None], TEXTS[0]), clip.encode_text(TEXTS[:1]))
    words = draw(3, 4, 16).requires_grad_()
    together = clip.encode_prompts(words, TEXTS[0])
    alone = torch.cat([clip.encode_prompts(row[None], TEXTS[0]) for row in words])
    torch.testing.assert_close(together, alone)
    together.square().sum().backward()
    assert words.grad is not None and bool((words.grad.abs().amax(dim=(1, 2)) > 0).all())
    assert clip.encode_prompts(clip.embed_tokens(TEXTS[0])[None], TEXTS[0]).shape == (1, 16)
    with pytest.raises(InputError, match="has 5 tokens, fewer than 6"):
        clip.encode_prompts(draw(1, 6, 16), TEXTS[0])


def test_texts_that_do_not_fit_and_words_never_learned_are_named(tmp_path: Path) -> None:
    clip = load_clip_folder(write_siglip(tmp_path))
    assert clip.encode_text(["a " * 19]).shape == (1, 16)
    with pytest.raises(InputError, match="has 20 tokens, this CLIP reads at most 19"):
        clip.encode_text(["a " * 20])
    assert clip.tokenizer.unknown("A zombie mermaid") == ["mermaid"]


def test_a_saved_siglip_comes_back_whole(tmp_path: Path) -> None:
    clip = load_clip_folder(write_siglip(tmp_path / "siglip"))
    clip.context = "a face"
    save_clip(clip, tmp_path / "again")
    again = load_clip_folder(tmp_path / "again")
    assert isinstance(again.tokenizer, HubTokenizer) and again.context == "a face" and not again.convolutional
    images = draw(2, 3, 16, 16, dtype=torch.float32)
    assert torch.equal(again.encode_image(images), clip.encode_image(images))
    assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))


def test_a_tokenizer_with_more_ids_than_the_tower_is_refused(tmp_path: Path) -> None:
    folder = write_siglip(tmp_path)
    words = tmp_path / "tokenizer.json"
    more = ", ".join(f'"w{number}": {50 + number}' for number in range(40))
    words.write_text(words.read_text().replace('"zombie"', f'{more}, "zombie"', 1))
    with pytest.raises(InputError, match="ids, config.json 40"):
        load_clip_folder(folder)


def test_a_folder_without_a_readable_tokenizer_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_siglip(tmp_path)
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    monkeypatch.setattr("zeroshift.files.clips.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install sentencepiece"):
        load_clip_folder(folder)


def test_siglip_guides_both_stages(tmp_path: Path) -> None:
    clip = load_clip_folder(write_siglip(tmp_path / "siglip"), name="siglip")
    config = tiny.config(tmp_path / "run", clip=("siglip",), mapper={"steps": 2}, train={"steps": 2})
    losses: list[float] = []
    run = tiny.adapt(
        config,
        state=tiny.given(clips=[clip]),
        hook=lambda event: losses.append(float(event["losses"]["loss"])),
    )
    assert len(losses) == 4 and all(0 < each < 100 for each in losses)
    start = tiny.generator().state()
    assert any(not torch.equal(start[name], each) for name, each in run.generator.state().items())
