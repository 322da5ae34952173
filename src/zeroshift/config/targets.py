"""What a target text names: one domain, or a hybrid of several ("pencil sketch:0.6 + zombie:0.4").

The one place that reads hybrids. Everything else asks for `target_parts`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from tyro.constructors import PrimitiveConstructorSpec

from zeroshift.errors import InputError

_PLUS = re.compile(r"(?<=[\d.])\s*\+\s*|\s+\+\s+")
_WEIGHTED = re.compile(r"(.*?)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)


@dataclass(frozen=True)
class TargetPart:
    """One domain of a target."""

    label: str
    weight: float
    """As it was given; 1 where none was."""
    share: float
    """Its part of the direction: the weight over the sum of all."""


def target_parts(target: str) -> tuple[TargetPart, ...]:
    """The domains that a target text names, with shares that sum to 1; an ordinary label is the only one.

    A hybrid is LABEL:WEIGHT + LABEL:WEIGHT with any positive weights. A colon without a number behind it
    belongs to the label, and so does a plus where nothing has a weight. InputError where only some have one,
    a weight is not positive, or a label is empty or named twice.
    """
    pieces = [piece.strip() for piece in _PLUS.split(target.strip())]
    read = [_WEIGHTED.fullmatch(piece) for piece in pieces]
    if not any(read):
        return (TargetPart(target, 1.0, 1.0),)
    for piece, found in zip(pieces, read, strict=True):
        if found is None:
            raise InputError(
                f"target {target!r} gives {piece!r} no weight; a hybrid is LABEL:WEIGHT + LABEL:WEIGHT, such "
                "as 'pencil sketch:0.6 + zombie:0.4'."
            )
    weighted = [(found[1].strip(), float(found[2])) for found in read if found]
    for label, weight in weighted:
        if not label:
            raise InputError(f"target {target!r} has a weight without a label before it; write LABEL:WEIGHT.")
        if not 0 < weight < float("inf"):
            raise InputError(
                f"the weight of {label!r} in target {target!r} must be above 0, got {weight:g}; leave the "
                "label out instead."
            )
    twice = [name for name, count in Counter(label.lower() for label, _ in weighted).items() if count > 1]
    if twice:
        raise InputError(
            f"target {target!r} names {twice[0]!r} twice; give it once, with the sum of the weights."
        )
    total = sum(weight for _, weight in weighted)
    return tuple(TargetPart(label, weight, weight / total) for label, weight in weighted)


def is_hybrid(target: str) -> bool:
    """Whether a target text names several domains."""
    return len(target_parts(target)) > 1


def spoken_target(target: str) -> str:
    """A target as a sentence can hold it: "pencil sketch and zombie"."""
    return " and ".join(part.label for part in target_parts(target))


def canonical_target(target: Any) -> Any:
    """The text of a target as configs hold it: several texts joined, a label alone without a weight. What is
    no text comes back as it is, for the config to refuse.

    InputError as `target_parts`, and for several texts without weights, which may be one label without
    quotes.
    """
    texts = [target] if isinstance(target, str) else target
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(each, str) for each in texts):
        return target
    if len(texts) > 1 and not any(_WEIGHTED.fullmatch(each.strip()) for each in texts):
        raise InputError(
            f"several targets were given without weights ({', '.join(map(repr, texts))}); put quotes around "
            f"a label of several words ({' '.join(texts)!r}), or mix domains by LABEL:WEIGHT, such as "
            f"'{texts[0]}:0.5' '{texts[1]}:0.5'."
        )
    parts = target_parts(" + ".join(texts))
    if len(parts) == 1:
        return parts[0].label
    return " + ".join(f"{part.label}:{part.weight:.12g}" for part in parts)


def _as_words(text: Any) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


Target = Annotated[
    str,
    pydantic.BeforeValidator(canonical_target),
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="LABEL|LABEL:WEIGHT...",
        instance_from_str=lambda words: words,
        is_instance=lambda value: isinstance(value, str | list),
        str_from_instance=_as_words,
    ),
]
"""Type of a config's target: text, or from a command line several texts, each with a weight."""
