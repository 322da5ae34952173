"""Sentences and token ids: the only place where a sentence is built.

A label ("pencil sketch") becomes sentences through a template bank, and a sentence becomes token ids through
one of the tokenizers here. All tokenizers share one call: `tokenizer(texts, context_length) -> LongTensor
B,T`, zero padded, with `start_id`, `end_id` and `unknown(text)`.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zeroshift.errors import InputError

# ImageNet and part sentences: published with OpenAI CLIP and StyleGAN-NADA (both MIT licence).
_IMAGENET = (
    "a bad photo of a {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
_PARTS = (
    "the paw of a {}.",
    "the nose of a {}.",
    "the eye of the {}.",
    "the ears of a {}.",
    "an eye of a {}.",
    "the tongue of a {}.",
    "the fur of the {}.",
    "colorful {} fur.",
    "a snout of a {}.",
    "the teeth of the {}.",
    "the {}s fangs.",
    "a claw of the {}.",
    "the face of the {}",
    "a neck of a {}",
    "the head of the {}",
)

# The built-in CLIPs know few words: ImageNet's sentences would be noise to them.
_PORTRAITS = (
    "{}",
    "a {}",
    "a {} of a person",
    "a {} of a face",
    "a {} portrait",
    "a picture of a {}",
    "a person in the style of a {}",
    "the {} of a person",
)


@dataclass(frozen=True)
class TemplateBank:
    """Sentences with one "{}" each, over which a label's text feature is averaged. Raises InputError on a
    malformed one."""

    name: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.templates:
            raise InputError(
                f'template bank "{self.name}" is empty. Give at least one sentence, such as "a photo of a '
                f'{{}}".'
            )
        for template in self.templates:
            if template.count("{}") != 1:
                raise InputError(
                    f'template "{template}" must hold "{{}}" exactly once. Write it like "a photo of a {{}}".'
                )

    def sentences(self, label: str) -> list[str]:
        """The label in every template, in order."""
        return [sentence(template, label) for template in self.templates]


IMAGENET = TemplateBank("imagenet", _IMAGENET)
PARTS = TemplateBank("parts", _PARTS)
PORTRAITS = TemplateBank("portraits", _PORTRAITS)
BANKS = {each.name: each for each in (IMAGENET, PARTS, PORTRAITS)}


def bank(which: str | Sequence[str] | TemplateBank) -> TemplateBank:
    """A template bank from its name, from a list of templates, or itself. Raises InputError on an unknown
    name."""
    if isinstance(which, TemplateBank):
        return which
    if isinstance(which, str):
        if which not in BANKS:
            raise InputError(
                f'unknown template bank "{which}". Use {", ".join(BANKS)}, or a list of sentences with '
                f'"{{}}".'
            )
        return BANKS[which]
    return TemplateBank("custom", tuple(which))


def sentence(template: str, label: str) -> str:
    """The template with the label in place of "{}"; braces inside the label stay as they are."""
    return template.replace("{}", label)


def context_sentence(context: str, label: str, period: bool) -> str:
    """ "{context} {label}", with a full stop if `period`; the label alone where the context is empty."""
    text = f"{context.replace('_', ' ').strip()} {label}".strip()
    return text + "." if period else text


def clean(text: str) -> str:
    """Text as CLIP was trained on it: mojibake repaired, html entities undone twice, white space collapsed,
    lower case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


class Tokenizer(Protocol):
    """What a CLIP asks of its tokenizer; ids start with `start_id`, unless it is negative, and end with
    `end_id` and padding."""

    start_id: int
    end_id: int

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor: ...

    def unknown(self, text: str) -> list[str]: ...


def _pad(
    rows: Sequence[Sequence[int]],
    texts: Sequence[str],
    start: int,
    end: int,
    context_length: int,
    fill: int = 0,
) -> Tensor:
    """Start if it is not negative, ids, end, padding: LongTensor B,T. Raises InputError where a text does not
    fit."""
    ids_BT = torch.full((len(rows), context_length), fill)
    begin = [start] if start >= 0 else []
    for row_T, ids, text in zip(ids_BT, rows, texts, strict=True):
        whole = [*begin, *ids, end]
        if len(whole) > context_length:
            most = context_length - len(whole) + len(ids)
            raise InputError(
                f'"{text}" has {len(ids)} tokens, this CLIP reads at most {most}. Use a shorter text.'
            )
        row_T[: len(whole)] = torch.tensor(whole)
    return ids_BT


class WordTokenizer:
    """Whole words of a small vocabulary: the tokenizer of the built-in CLIPs.

    Ids: 0 padding, 1 unknown word, 2 never used (transformers reads an end-of-text id of 2 as a legacy case
    and pools at a random word), 3 start, 4 end, then the words. A word is a run of a-z, 0-9, ' and -; any
    other mark is a word of its own. Punctuation that the vocabulary lacks is passed over: a full stop must
    not look like a word never learned.
    """

    start_id = 3
    end_id = 4
    unknown_id = 1
    first_word_id = 5
    file_name = "vocab.json"

    def __init__(self, words: Sequence[str]) -> None:
        self.vocab = tuple(dict.fromkeys(word for entry in words for word in self.split(entry)))
        self._ids = {word: number for number, word in enumerate(self.vocab, self.first_word_id)}

    @staticmethod
    def split(text: str) -> list[str]:
        """The words and marks of a text, cleaned."""
        return re.findall(r"[a-z0-9'-]+|[^\sa-z0-9'-]", clean(text))

    @property
    def vocab_size(self) -> int:
        """Number of ids, the reserved ones included."""
        return self.first_word_id + len(self.vocab)

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Ids, LongTensor B,T, padded to `context_length`. InputError where a text is longer."""
        rows = [[self._ids.get(word, self.unknown_id) for word in self._words_of(text)] for text in texts]
        return _pad(rows, texts, self.start_id, self.end_id, context_length)

    def unknown(self, text: str) -> list[str]:
        """Words of the text that the vocabulary lacks, in order, each once."""
        return [word for word in dict.fromkeys(self._words_of(text)) if word not in self._ids]

    def _words_of(self, text: str) -> list[str]:
        """The words of a text, and those marks that the vocabulary has."""
        return [word for word in self.split(text) if word in self._ids or re.match(r"\w", word)]

    def save(self, folder: str | Path) -> None:
        """Writes vocab.json, a list of words, into the folder."""
        Path(folder, self.file_name).write_text(
            json.dumps(list(self.vocab), indent=0) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: str | Path) -> WordTokenizer:
        """The tokenizer saved in a folder. Raises InputError if vocab.json is no list of words."""
        path = Path(folder, cls.file_name)
        words = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{path} is not a list of words. Save it with WordTokenizer.save.")
        return cls(words)


@lru_cache(maxsize=1)
def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary: printable bytes stay, the rest
    follow 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + number) for number, byte in enumerate(rest)}


@lru_cache(maxsize=1)
def _openai_vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Token -> id and merge -> rank of the vocabulary published with OpenAI CLIP."""
    path = Path(__file__).parent / "assets" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    # The file holds more merges than CLIP uses; its first line is a version.
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(_byte_letters().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(merges)}
    return {token: number for number, token in enumerate(tokens)}, ranks


class BytePairTokenizer:
    """Byte pairs of OpenAI CLIP, 49408 ids, with the official cleaning. Every text is known."""

    # A run of punctuation is one unit, so ".." is a single token.
    _units = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

    def __init__(self) -> None:
        import regex

        self.vocab, self._ranks = _openai_vocabulary()
        self.start_id = self.vocab["<|startoftext|>"]
        self.end_id = self.vocab["<|endoftext|>"]
        self.vocab_size = len(self.vocab)
        self._pattern = regex.compile(self._units, regex.IGNORECASE)
        self._known: dict[str, list[int]] = {
            name: [self.vocab[name]] for name in ("<|startoftext|>", "<|endoftext|>")
        }

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Ids, LongTensor B,T, padded to `context_length`. InputError where a text is longer."""
        rows = [
            [number for unit in self._pattern.findall(clean(text)) for number in self._encode(unit)]
            for text in texts
        ]
        return _pad(rows, texts, self.start_id, self.end_id, context_length)

    def unknown(self, text: str) -> list[str]:
        """Always empty: bytes cover every text."""
        return []

    def _encode(self, unit: str) -> list[int]:
        if unit not in self._known:
            letters = [_byte_letters()[byte] for byte in unit.encode("utf-8")]
            letters[-1] += "</w>"
            self._known[unit] = [self.vocab[part] for part in self._merge(letters)]
        return self._known[unit]

    def _merge(self, parts: list[str]) -> list[str]:
        """Joins neighbours, the pair of lowest rank first and all its occurrences at once, until no pair is
        in the list."""
        while len(parts) > 1:
            best = min(
                zip(parts, parts[1:], strict=False), key=lambda pair: self._ranks.get(pair, len(self._ranks))
            )
            if best not in self._ranks:
                break
            joined: list[str] = []
            position = 0
            while position < len(parts):
                whole = tuple(parts[position : position + 2]) == best
                joined.append("".join(best) if whole else parts[position])
                position += 2 if whole else 1
            parts = joined
        return parts


def without_punctuation(text: str) -> str:
    """Text as SigLIP was trained on it: lower case, ASCII punctuation removed, white space collapsed."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


class HubTokenizer:
    """A transformers tokenizer behind our call, for CLIPs whose vocabulary is not OpenAI's.

    SigLIP's has no start (a negative id), fills with a padding token, and was trained on texts that `prepare`
    made plain.
    """

    def __init__(
        self,
        tokenizer: Any,
        start_id: int,
        end_id: int,
        fill_id: int = 0,
        prepare: Callable[[str], str] = str,
    ) -> None:
        self._tokenizer = tokenizer
        self.start_id = start_id
        self.end_id = end_id
        self._fill_id = fill_id
        self._prepare = prepare
        self.vocab_size = len(tokenizer)

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Ids, LongTensor B,T, padded to `context_length`. InputError where a text is longer."""
        return _pad(
            [self._ids(text) for text in texts],
            texts,
            self.start_id,
            self.end_id,
            context_length,
            self._fill_id,
        )

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(self._prepare(text), add_special_tokens=False)["input_ids"]

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's own files into the folder."""
        self._tokenizer.save_pretrained(folder)

    def unknown(self, text: str) -> list[str]:
        """Words that the tokenizer maps to its unknown token."""
        missing = self._tokenizer.unk_token_id
        # Byte-level vocabularies name the end token as the unknown one but never produce it.
        if missing is None or missing == self.end_id:
            return []
        return [word for word in text.split() if missing in self._ids(word)]
