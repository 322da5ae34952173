"""Sentences and token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zeroshift.clip.text import (
    IMAGENET,
    PARTS,
    PORTRAITS,
    BytePairTokenizer,
    TemplateBank,
    WordTokenizer,
    bank,
    clean,
    context_sentence,
    sentence,
    without_punctuation,
)
from zeroshift.errors import InputError


@pytest.fixture(scope="module")
def pairs() -> BytePairTokenizer:
    return BytePairTokenizer()


def test_the_banks_have_the_published_number_of_sentences_and_the_portraits_few() -> None:
    assert (len(IMAGENET.templates), len(PARTS.templates)) == (79, 15)
    assert len(set(IMAGENET.templates)) == 79
    assert 2 <= len(PORTRAITS.templates) < 20


def test_a_bank_is_found_by_name_or_made_of_a_list() -> None:
    assert bank("imagenet") is IMAGENET and bank(IMAGENET) is IMAGENET
    assert bank(["my {}", "{} of mine"]).sentences("dog") == ["my dog", "dog of mine"]


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",)])
def test_a_bank_without_exactly_one_place_per_sentence_is_refused(templates: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="empty|exactly once"):
        TemplateBank("broken", templates)


def test_an_unknown_bank_is_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match="imagenet"):
        bank("imagnet")


def test_braces_in_a_label_stay() -> None:
    assert sentence("a {} face", "{odd} {}") == "a {odd} {} face"


def test_the_context_stands_before_the_label() -> None:
    assert context_sentence("a_photo_of a", "dog", period=False) == "a photo of a dog"
    assert context_sentence("a photo of a", "dog", period=True) == "a photo of a dog."
    assert context_sentence("", "dog", period=False) == "dog"


def test_cleaning_repairs_unescapes_collapses_and_lowers() -> None:
    assert clean("  Caf\u00c3\u00a9 &amp;amp;\n\t Bar ") == "caf\u00e9 & bar"


def test_siglips_texts_lose_case_and_punctuation() -> None:
    assert without_punctuation(" A  photo\nof: it's (a) CAT. ") == "a photo of its a cat"
    assert without_punctuation("Élan – naïve") == "élan – naïve"


def test_words_become_ids_between_start_and_end_with_zeros_after() -> None:
    words = WordTokenizer(["a photo of a cat", "close-up , ."])
    assert words.vocab == ("a", "photo", "of", "cat", "close-up", ",", ".")
    assert words(["A photo, of a Zebra!"], 12).tolist() == [[3, 5, 6, 10, 7, 5, 1, 4, 0, 0, 0, 0]]
    assert words.vocab_size == 12


def test_no_word_has_an_id_that_transformers_treats_apart() -> None:
    words = WordTokenizer(["one two three"])
    ids = words(["one two three four"], 8)
    assert 2 not in ids.tolist()[0] and words.end_id != 2


def test_unknown_words_are_named_once_in_order() -> None:
    words = WordTokenizer(["a photo"])
    assert words.unknown("a zebra photo: zebra, gnu") == ["zebra", "gnu"]
    assert words.unknown("A Photo") == []


def test_a_saved_vocabulary_gives_the_same_ids(tmp_path: Path) -> None:
    words = WordTokenizer(["caf\u00e9 'n' bar", "3-d"])
    words.save(tmp_path)
    again = WordTokenizer.load(tmp_path)
    texts = ["3-d bar", "'n' caf\u00e9"]
    assert again.vocab == words.vocab and torch.equal(again(texts, 9), words(texts, 9))


def test_a_vocabulary_that_is_no_list_of_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="list of words"):
        WordTokenizer.load(tmp_path)


@pytest.mark.parametrize("tokenizer", [WordTokenizer(["word"]), BytePairTokenizer()])
def test_a_text_longer_than_the_context_is_refused(tokenizer: WordTokenizer | BytePairTokenizer) -> None:
    assert int((tokenizer(["word " * 6], 8) == tokenizer.end_id).int().argmax()) == 7
    with pytest.raises(InputError, match="at most 6"):
        tokenizer(["word " * 7], 8)


def test_byte_pairs_have_the_published_ids(pairs: BytePairTokenizer) -> None:
    # Ids that appear throughout the literature: "a photo of a dog" and the two markers.
    assert pairs(["a photo of a dog"], 8).tolist() == [[49406, 320, 1125, 539, 320, 1929, 49407, 0]]
    assert pairs.vocab_size == 49408


def test_a_run_of_punctuation_is_one_unit(pairs: BytePairTokenizer) -> None:
    once, twice = pairs(["dog.", "dog.."], 6)
    assert int((once > 0).sum()) == int((twice > 0).sum()) == 4


def test_byte_pairs_give_back_every_text(pairs: BytePairTokenizer) -> None:
    text = "\u00e9lan \u2014 \u65e5\u672c 42 \U0001f600!"
    names = {number: token for token, number in pairs.vocab.items()}
    ids = pairs([text], 40)[0]
    joined = "".join(names[number] for number in ids[1 : int((ids == pairs.end_id).int().argmax())].tolist())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(rest)
    }
    decoded = bytes(bytes_of[letter] for letter in joined.replace("</w>", "")).decode()
    assert decoded == text.replace(" ", "")
    assert pairs.unknown(text) == []
