"""What the guides learn from: the truth is at 1 and the start at 0, near misses are near, texts name what is
shown."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from zeroshift.models.seeds import z_from_seeds
from zeroshift.portraits import captions
from zeroshift.portraits.scene import CHOICES, LATENT_DIM, sample_scene
from zeroshift.portraits.shading import DOMAINS
from zeroshift.pretrain import dataset, guides
from zeroshift.pretrain.clips import ATTRIBUTES, CLASSES
from zeroshift.pretrain.guides import Examples

N = 24


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(picture: np.ndarray, size: int) -> np.ndarray:
    """Means of the blocks of one picture CHW."""
    channels, height, width = picture.shape
    found = np.zeros((channels, height // size, width // size))
    for c, row, column in np.ndindex(found.shape):
        found[c, row, column] = np.mean(
            picture[c, row * size : (row + 1) * size, column * size : (column + 1) * size]
        )
    return found


def lines(picture: np.ndarray) -> np.ndarray:
    """One picture CHW less the mean of the 3 x 3 px about every pixel, those at the border repeated."""
    found = np.zeros_like(picture)
    _, height, width = picture.shape
    for c, row, column in np.ndindex(picture.shape):
        about = [
            picture[c, min(max(row + i, 0), height - 1), min(max(column + j, 0), width - 1)]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        found[c, row, column] = picture[c, row, column] - sum(about) / 9
    return found


def triples(size: int = 8, n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Random pictures on the way, in truth, and at the start."""
    noise = draw()
    start, truth = (torch.rand(n, 3, size, size, generator=noise) * 2 - 1 for _ in range(2))
    share = torch.linspace(-0.5, 1.2, n)[:, None, None, None]
    way = start + share * (truth - start) + 0.2 * torch.randn(n, 3, size, size, generator=noise)
    return way, truth, start


# Labels.


def test_progress_is_the_mean_of_what_is_left_of_pixels_blocks_and_lines() -> None:
    pictures = triples()
    found = guides.progress(*pictures)
    for k in range(len(found)):
        way, truth, start = (each[k].double().numpy() for each in pictures)
        views = (lambda x: x, lambda x: blocks(x, 4), lines)
        left = [
            np.abs(view(way) - view(truth)).mean() / np.abs(view(start) - view(truth)).mean()
            for view in views
        ]
        assert float(found[k]) == pytest.approx(min(max(1 - sum(left) / 3, -1), 1), abs=1e-4)
    assert len({round(float(each), 3) for each in found}) > 3


def test_progress_is_1_in_truth_0_at_the_start_and_at_least_minus_1() -> None:
    _, truth, start = triples()
    assert torch.allclose(guides.progress(truth, truth, start), torch.ones(len(truth)))
    assert torch.allclose(guides.progress(start, truth, start), torch.zeros(len(truth)), atol=1e-6)
    assert torch.equal(guides.progress(start + 9, truth, start), -torch.ones(len(truth)))


def test_soft_labels_are_shares_of_truth_and_start_by_distance_and_the_rest_is_distorted() -> None:
    pictures = triples()
    domain, base = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 0, 7, 0, 9])
    found = guides.soft_labels(*pictures, domain, base)
    assert torch.allclose(found.sum(1), torch.ones(5)) and float(found.min()) > -1e-6
    for k in range(5):
        way, truth, start = (blocks(each[k].double().numpy(), 2) for each in pictures)
        whole = np.abs(start - truth).mean()
        shares = [max(0.0, 1 - np.abs(way - each).mean() / whole) for each in (truth, start)]
        shares = [each / max(1.0, sum(shares)) for each in shares]
        wanted = np.zeros(len(CLASSES))
        wanted[int(domain[k])], wanted[int(base[k])] = shares
        wanted[-1] = 1 - sum(shares)
        assert np.allclose(found[k].numpy(), wanted, atol=1e-4)


def test_soft_labels_name_the_truth_the_start_and_both_by_halves_between() -> None:
    _, truth, start = triples()
    domain, base = torch.tensor([1, 2, 3, 4, 5]), torch.zeros(5, dtype=torch.long)
    one_hot = torch.eye(len(CLASSES))
    for way, wanted in (
        (truth, one_hot[domain]),
        (start, one_hot[base]),
        ((start + truth) / 2, (one_hot[domain] + one_hot[base]) / 2),
        (start + 9, one_hot[torch.full((5,), len(DOMAINS))]),
    ):
        assert torch.allclose(guides.soft_labels(way, truth, start, domain, base), wanted, atol=1e-5)


# Pictures.


def luma(pictures: Tensor) -> Tensor:
    """Weighted sum of red, green and blue, as of television."""
    return (0.299 * pictures[:, 0] + 0.587 * pictures[:, 1] + 0.114 * pictures[:, 2])[:, None]


def misses(people: dataset.People, share: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Base, truth, and the near misses of every kind of four people."""
    base, truth = dataset.to_float(people.photo[:4]), dataset.to_float(people.domains[:4, 2])
    made = [
        guides.near_misses(base, truth, torch.full((4,), share), torch.full((4,), kind), draw())
        for kind in range(guides.MISSES)
    ]
    return base, truth, made


def test_near_misses_with_nothing_left_are_the_truth(people: dataset.People) -> None:
    _, truth, made = misses(people, 1.0)
    assert all(torch.allclose(each, truth, atol=1e-6) for each in made)


def test_near_misses_have_of_the_base_what_their_kind_says(people: dataset.People) -> None:
    base, truth, made = misses(people, 0.0)
    colours, light, shapes, lines_, patches, grain, blots, blurred = made
    for found, hue, tone in ((colours, base, truth), (light, truth, base)):
        assert torch.allclose(found - luma(found), hue - luma(hue), atol=1e-5)
        assert torch.allclose(luma(found), luma(tone), atol=1e-5)
    between = torch.nn.functional.avg_pool2d(base - truth, 8)
    assert torch.allclose(
        shapes, truth + torch.nn.functional.interpolate(between, size=64, mode="bilinear"), atol=1e-5
    )
    assert torch.allclose(shapes + lines_, base + truth, atol=1e-5)
    assert torch.allclose(patches, base, atol=1e-5)
    for found, fine in ((grain, True), (blots, False)):
        noise = found - truth
        steps = (noise[..., 1:] - noise[..., :-1]).abs().mean() / noise.abs().mean()
        assert float(noise.std()) > 0.3 and (float(steps) > 1.2) == fine
    wanted = truth[0].numpy() - lines(truth[0].numpy())
    assert np.allclose(blurred[0].numpy(), wanted, atol=1e-5)


def test_patches_are_whole_squares_of_the_base_and_others_of_the_truth(people: dataset.People) -> None:
    base, truth, made = misses(people, 0.5)
    squares = [
        (each[..., row : row + 8, column : column + 8], row, column)
        for each in made[4][:, None].unbind(0)
        for row in range(0, 64, 8)
        for column in range(0, 64, 8)
    ]
    kinds = {"base": 0, "truth": 0}
    for number, (square, row, column) in enumerate(squares):
        person = number // 64
        for name, picture in (("base", base), ("truth", truth)):
            whole = picture[person, :, row : row + 8, column : column + 8]
            kinds[name] += bool(torch.allclose(square[0], whole, atol=1e-5))
    assert sum(kinds.values()) >= len(squares) and min(kinds.values()) > 64


def test_pictures_on_the_way_are_what_their_labels_say(examples: Examples) -> None:
    pure = examples.pure.bool()
    assert torch.equal(examples.way[pure], examples.truth[pure])
    assert not any(torch.equal(a, b) for a, b in zip(examples.way[~pure], examples.truth[~pure], strict=True))
    assert torch.allclose(examples.labels.sum(1), torch.ones(N))
    assert torch.equal(examples.labels[pure].argmax(1), examples.domain[pure])
    assert bool((examples.readable[pure] == 1).all()) and examples.mirrored == [False] * N


def test_easy_examples_are_the_truth_and_draws_are_keyed_by_seed_and_step(people: dataset.People) -> None:
    easy = guides.draw_examples(people, N, 1, 3, hard=False)
    assert torch.equal(easy.way, easy.truth) and bool(easy.pure.all()) and bool(easy.readable.all())
    again = guides.draw_examples(people, N, 1, 3, hard=False)
    assert torch.equal(easy.way, again.way) and torch.equal(easy.domain, again.domain)
    for seed, step in ((1, 4), (2, 3)):
        assert not torch.equal(easy.way, guides.draw_examples(people, N, seed, step, hard=False).way)


def test_start_way_and_truth_are_seen_askew_alike(examples: Examples) -> None:
    same = dataclasses.replace(examples, start=examples.truth, way=examples.truth)
    askew = guides.seen_askew(same, draw())
    assert torch.equal(askew.start, askew.truth) and torch.equal(askew.way, askew.truth)
    moved = [not torch.equal(a, b) for a, b in zip(askew.truth, examples.truth, strict=True)]
    assert 0.2 < sum(moved) / N < 0.8 and 0 < sum(askew.mirrored) < sum(moved)
    assert not any(mirror for mirror, other in zip(askew.mirrored, moved, strict=True) if not other)
    other = guides.seen_askew(examples, draw())
    assert torch.equal(other.truth, askew.truth) and other.mirrored == askew.mirrored


def test_what_is_called_mirrored_is_mirrored(examples: Examples) -> None:
    ramp = torch.linspace(-1, 1, 64).expand(N, 3, 64, 64).contiguous()
    askew = guides.seen_askew(dataclasses.replace(examples, truth=ramp), draw())
    middle = askew.truth[:, 0, 20:44, 20:44]
    falls = (middle[..., -1] - middle[..., 0]).mean(1) < 0
    assert falls.tolist() == askew.mirrored


def test_joined_examples_are_all_of_them_and_a_part_is_some(examples: Examples) -> None:
    both = Examples.joined([guides.part(examples, slice(0, 10)), guides.part(examples, slice(10, None))])
    for name in ("start", "way", "truth", "domain", "labels", "readable", "pure"):
        assert torch.equal(getattr(both, name), getattr(examples, name))
    assert all(torch.equal(both.scene.choice[a], examples.scene.choice[a]) for a in ATTRIBUTES)
    assert len(both) == N and both.mirrored == examples.mirrored


# Texts.

COLOURS_OF_HAIR = CHOICES["hair_color"][0]


def names(caption: str, attribute: str) -> bool:
    """Whether a caption names an attribute."""
    if attribute == "skin":
        return " skin" in caption
    if attribute == "hair_color":
        return any(re.search(rf"\b{colour} hair\b", caption) for colour in COLOURS_OF_HAIR)
    return any(phrase in caption for choices in captions.PHRASES[attribute].values() for phrase in choices)


@pytest.mark.parametrize("domain", DOMAINS[1:])
def test_captions_name_what_a_domain_shows_and_nothing_that_it_hides(domain: str) -> None:
    scene = sample_scene(z_from_seeds(range(60), LATENT_DIM))
    hidden = captions.HIDDEN.get(domain, frozenset())
    everything = ("glasses", "beard", "hat", "clothes", "background", "skin", "hair_color")
    for row in range(len(scene)):
        told, full = (
            captions.full_caption(scene, row, domain, random.Random(row), hidden=each)
            for each in (hidden, frozenset())
        )
        has_colour = scene.words(row)["hair"] != "bald"
        for attribute in everything:
            if attribute == "hair_color" and not has_colour:
                continue
            assert names(full, attribute), (full, attribute)
            assert names(told, attribute) == (attribute not in hidden), (told, attribute)


def test_attributes_are_asked_for_where_a_domain_shows_them() -> None:
    for place, domain in enumerate(DOMAINS):
        for column, attribute in enumerate(ATTRIBUTES):
            hides = attribute in captions.HIDDEN.get(domain, ())
            assert float(guides.SHOWN[place, column]) == (0.0 if hides else 1.0)
    assert guides.SHOWN.shape == (len(DOMAINS), len(ATTRIBUTES)) and bool((guides.SHOWN[0] == 1).all())


def test_a_mirrored_caption_swaps_the_sides_and_nothing_else() -> None:
    scene = sample_scene(z_from_seeds(range(20), LATENT_DIM))
    swapped = {"left": "right", "right": "left"}
    sides = set()
    for row in range(20):
        plain, mirrored = (
            captions.full_caption(scene, row, "cartoon", random.Random(row), mirrored=each)
            for each in (False, True)
        )
        assert mirrored.split() == [swapped.get(word, word) for word in plain.split()]
        sides.add("looking left" in plain)
    assert sides == {True, False}


EVERY_NAME = sorted((name for names in captions.SYNONYMS.values() for name in names), key=len, reverse=True)


def described(caption: str) -> list[str]:
    """The words about the person, without the label."""
    about = re.sub(r" in the style of a .*", "", caption[caption.index("person") :])
    if caption.startswith("person"):
        about = about.removesuffix(next(name for name in EVERY_NAME if about.endswith(name)))
    return about.split()


def within(some: list[str], all_: list[str]) -> bool:
    """Whether words stand in others in their order."""
    rest = iter(all_)
    return all(word in rest for word in some)


def test_sentences_of_a_step_name_classes_choices_and_each_person_twice(examples: Examples) -> None:
    texts = guides.sentences(random.Random(0), examples)
    assert len(texts.named) == guides.NAMED == len(CLASSES) + sum(len(CHOICES[a][0]) for a in ATTRIBUTES)
    assert len(texts.source) == len(texts.target) == N
    assert texts.all == [*texts.named, *texts.source, *texts.target, *texts.talkative]
    for place, attribute in enumerate(ATTRIBUTES):
        first = len(CLASSES) + sum(len(CHOICES[a][0]) for a in ATTRIBUTES[:place])
        for number, choice in enumerate(CHOICES[attribute][0]):
            asked = texts.named[first + number]
            assert any(asked.endswith(each) for each in captions.PHRASES[attribute][choice])
    for row in range(N):
        domain = DOMAINS[int(examples.domain[row])]
        assert any(name in texts.target[row] for name in captions.SYNONYMS[domain])
        assert any(name in texts.source[row] for name in captions.SYNONYMS["photo"])
        assert within(described(texts.target[row]), described(texts.source[row]))
        hidden = captions.HIDDEN.get(domain, frozenset())
        assert not any(names(texts.target[row], each) for each in hidden)
        assert hidden or described(texts.target[row]) == described(texts.source[row])


def test_talkative_captions_say_more_where_a_domain_hides_something(examples: Examples) -> None:
    more = 0
    for key in range(3):
        texts = guides.sentences(random.Random(key), examples)
        hides = [row for row in range(N) if DOMAINS[int(examples.domain[row])] in captions.HIDDEN]
        assert texts.talkative_rows == hides and len(texts.talkative) == len(hides) > 0
        for row, talkative in zip(hides, texts.talkative, strict=True):
            assert described(talkative) == described(texts.source[row])
            assert within(texts.target[row].split(), talkative.split())
            more += talkative != texts.target[row]
    assert more


def test_captions_of_mirrored_pictures_are_mirrored(examples: Examples) -> None:
    mirrored = dataclasses.replace(examples, mirrored=[True] * N)
    texts = [guides.sentences(random.Random(1), each) for each in (examples, mirrored)]
    swapped = {"left": "right", "right": "left"}
    for plain, other in zip(texts[0].all, texts[1].all, strict=True):
        if plain not in texts[0].named:
            assert other.split() == [swapped.get(word, word) for word in plain.split()]
    assert texts[0].named == texts[1].named and texts[0].target != texts[1].target
