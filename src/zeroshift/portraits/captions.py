"""Words for the built-in world: labels of domains, partial and attribute-complete captions, prompts of every
attribute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from zeroshift.clip.text import PORTRAITS
from zeroshift.portraits.scene import CHOICES, Scene
from zeroshift.portraits.shading import DOMAINS, HELD_OUT

TEMPLATES = PORTRAITS.templates
CONTEXT = "a picture of a"
DISTORTED = "distorted picture"
# Other ways people name a domain; the first spelling is the label of shading.SHADERS.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "photo": ("photo", "photograph", "realistic photo"),
    "pencil sketch": ("pencil sketch", "sketch", "pencil drawing", "drawing"),
    "cartoon": ("cartoon", "cel shaded cartoon", "comic"),
    "marble statue": ("marble statue", "marble sculpture", "stone statue", "white statue"),
    "zombie": ("zombie", "green zombie", "undead zombie"),
    "neon": ("neon", "neon sign", "neon light"),
    "watercolor": ("watercolor", "watercolor painting", "watercolour"),
    "pixel art": ("pixel art", "8-bit game", "pixel picture"),
    "oil painting": ("oil painting", "painting", "oil on canvas"),
    "charcoal": ("charcoal", "charcoal drawing", "charcoal sketch"),
    "blueprint": ("blueprint", "blueprint drawing", "technical drawing"),
    "ukiyo-e": ("ukiyo-e", "ukiyo-e print", "japanese woodblock print"),
    "mosaic": ("mosaic", "roman mosaic", "tile mosaic"),
    "bronze statue": ("bronze statue", "bronze sculpture", "bronze"),
}
assert tuple(SYNONYMS) == DOMAINS

# attribute -> choice -> phrases that follow "a person"; the first is the one that quality is measured with.
PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "hair": {
        "short": ("with short hair",),
        "long": ("with long hair",),
        "curly": ("with curly hair", "with an afro"),
        "bun": ("with a bun", "with hair in a bun"),
        "bald": ("with a bald head", "who is bald"),
    },
    "hair_color": {c: (f"with {c} hair",) for c in CHOICES["hair_color"][0]},
    "glasses": {
        "none": ("without glasses", "with no glasses"),
        "glasses": ("with glasses", "wearing round glasses"),
        "sunglasses": ("with sunglasses", "wearing dark sunglasses"),
    },
    "beard": {
        "none": ("without a beard", "with a shaved face"),
        "beard": ("with a beard", "with a full beard"),
        "mustache": ("with a mustache",),
    },
    "hat": {
        "none": ("without a hat", "with no hat"),
        "beanie": ("with a beanie", "wearing a beanie"),
        "hat": ("with a hat", "wearing a hat"),
    },
    "clothes": {
        c: (f"in {c} clothes", f"in a {c} shirt", f"wearing a {c} sweater") for c in CHOICES["clothes"][0]
    },
    "background": {c: (f"on a {c} background", f"before a {c} wall") for c in CHOICES["background"][0]},
}
COLOURS = frozenset({"hair_color", "clothes", "background", "skin"})
HIDDEN: dict[str, frozenset[str]] = {
    "pencil sketch": COLOURS,
    "charcoal": COLOURS,
    "blueprint": COLOURS,
    "marble statue": COLOURS,
    "bronze statue": COLOURS,
    "neon": frozenset({"skin"}),
}
"""Domain -> attributes that its pictures do not show, or only as a tone that other choices share."""

Form = Literal["first", "last", "bare"]
"""Where a caption names the domain."""

NAMED = ("glasses", "beard", "hat", "clothes", "background", "hair", "hair_color", "mood", "skin", "side")
"""All that a caption can name."""

_EXTRA = (
    "man woman girl boy human smiling sad serious happy frowning looking left right light dark skin "
    "big small nose eyes image style art"
).split()


def domain_of(label: str) -> str | None:
    """The built-in domain that a label names in any of its spellings ("roman mosaic", whatever case and
    spaces), or None."""
    wanted = " ".join(label.lower().split())
    return next((domain for domain, names in SYNONYMS.items() if wanted in names), None)


def is_held_out(label: str) -> bool:
    """Whether a label names a domain of the built-in world that nothing may be tuned on."""
    return domain_of(label) in HELD_OUT


def attribute_prompts(attribute: str, prefix: str = "a photo of a person") -> list[str]:
    """One prompt per choice, in the order of scene.CHOICES."""
    return [f"{prefix} {PHRASES[attribute][choice][0]}" for choice in CHOICES[attribute][0]]


def _hair(words: dict[str, str], rng: random.Random, coloured: bool) -> str:
    colour = f"{words['hair_color']} " if coloured else ""
    if words["hair"] in ("short", "long", "curly"):
        return f"with {words['hair']} {colour}hair"
    phrase = rng.choice(PHRASES["hair"][words["hair"]])
    return f"{phrase} and {colour}hair" if words["hair"] == "bun" and coloured else phrase


def _mood(scene: Scene, index: int) -> str:
    smile = float(scene.slider["smile"][index])
    return "smiling" if smile > 0.65 else "frowning" if smile < 0.3 else "serious"


def full_caption(
    scene: Scene,
    index: int,
    domain: str,
    rng: random.Random,
    *,
    form: Form = "first",
    hidden: frozenset[str] = frozenset(),
    mirrored: bool = False,
    name: str = "",
) -> str:
    """A caption that names every attribute of one person, the domain before them, after them, or after them
    as a bare word.

    Attributes that are `hidden` are left out (`HIDDEN`: what a domain does not show); equal draws name the
    others in the same order. `mirrored`: the picture is seen in a mirror. `name` is what the domain is
    called; where none is given, it is drawn.
    """
    words = scene.words(index)
    name = name or rng.choice(SYNONYMS[domain])
    tone = "light" if float(scene.slider["skin"][index]) > 0.5 else "dark"
    side = "right" if (float(scene.slider["yaw"][index]) > 0.5) != mirrored else "left"
    named = ("glasses", "beard", "hat", "clothes", "background")
    phrases = {each: rng.choice(PHRASES[each][words[each]]) for each in named}
    phrases["hair"] = _hair(words, rng, "hair_color" not in hidden)
    phrases |= {"mood": _mood(scene, index), "skin": f"with {tone} skin", "side": f"looking {side}"}
    order = list(phrases)
    rng.shuffle(order)
    described = " ".join(["person", *(phrases[each] for each in order if each not in hidden)])
    if form == "bare":
        return f"{described} {name}"
    return f"a {described} in the style of a {name}" if form == "last" else f"a {name} of a {described}"


def vocabulary() -> list[str]:
    """Every word that captions can contain, sorted."""
    texts: list[str] = [*TEMPLATES, CONTEXT, DISTORTED, "a photo of a", "with and hair painting", *_EXTRA]
    texts += [name for names in SYNONYMS.values() for name in names]
    texts += [phrase for choices in PHRASES.values() for phrases in choices.values() for phrase in phrases]
    return sorted({word for text in texts for word in text.replace("{}", " ").lower().split()})


def label_prompts(labels: Sequence[str], rng: random.Random) -> list[str]:
    """One sentence per domain label, with a random spelling and a random template."""
    return [rng.choice(TEMPLATES).format(rng.choice(SYNONYMS.get(label, (label,)))) for label in labels]
