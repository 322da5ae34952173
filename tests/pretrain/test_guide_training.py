"""How the guides learn: every loss is the slow formula's, attacks go uphill, and a training that was stopped
ends as one that was not."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zeroshift.clip.features import normalize
from zeroshift.portraits import captions
from zeroshift.portraits.scene import CHOICES
from zeroshift.portraits.shading import DOMAINS
from zeroshift.pretrain import dataset, guides
from zeroshift.pretrain.clips import ATTRIBUTES, CLASSES, EMPHASIS, ClipRecipe
from zeroshift.pretrain.guides import Examples, Guide, Seen, TextFeatures

N = 24
SMALL = ClipRecipe("resnet", (8, 8), (1, 1), "silu", seed=5, steps=4, people=4, attack=3.0)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Losses.


def seen_of(examples: Examples, width: int = 6) -> Seen:
    """Random features of examples, with steps from caption to caption for half of them."""
    noise, n = draw(7), len(examples)

    def unit(rows: int) -> Tensor:
        return normalize(torch.randn(rows, width, generator=noise))

    named, source, target = unit(guides.NAMED), unit(n), unit(n)
    by_label = torch.arange(n) % 2 == 0
    steps = (named[examples.domain] - named[:1]).where(by_label[:, None], target - source)
    reach = (0.3 + torch.rand(n, generator=noise)).where(by_label, torch.ones(()))
    start, way = unit(n), unit(n)
    heads = torch.randn(2 * n, guides.NAMED, generator=noise)
    return Seen(start, way, heads, TextFeatures(named, source, target, steps, reach), torch.tensor(14.0))


def rows_of(tensor: Tensor) -> list[list[float]]:
    return tensor.double().tolist()


def smooth(x: float, beta: float = 0.2) -> float:
    """A parabola that goes on as a line."""
    return x * x / (2 * beta) if abs(x) < beta else abs(x) - beta / 2


def test_scores_and_misses_are_those_of_the_slow_formulas(examples: Examples) -> None:
    seen = seen_of(examples)
    scores, misses_ = guides.score(seen), guides.miss(seen)
    for k in range(N):
        moved = [b - a for a, b in zip(rows_of(seen.start)[k], rows_of(seen.way)[k], strict=True)]
        step = rows_of(seen.texts.steps)[k]
        along = sum(a * b for a, b in zip(moved, step, strict=True))
        wanted = along / (sum(a * a for a in step) + 0.02) / float(seen.texts.reach[k])
        assert float(scores[k]) == pytest.approx(wanted, abs=1e-4)
        told = [
            b - a for a, b in zip(rows_of(seen.texts.source)[k], rows_of(seen.texts.target)[k], strict=True)
        ]
        wanted = math.dist(moved, told) / (math.hypot(*told) + 0.1)
        assert float(misses_[k]) == pytest.approx(wanted, abs=1e-4)


def test_a_picture_at_the_start_scores_0_and_one_that_moved_as_its_captions_misses_nothing(
    examples: Examples,
) -> None:
    seen = seen_of(examples)
    assert torch.equal(guides.score(dataclasses.replace(seen, way=seen.start)), torch.zeros(N))
    told = seen.texts.target - seen.texts.source
    there = dataclasses.replace(seen, way=seen.start + told)
    assert torch.allclose(guides.miss(there), torch.zeros(N), atol=1e-5)
    by_captions = torch.arange(N) % 2 == 1
    length = told.square().sum(1)
    assert torch.allclose(
        guides.score(there)[by_captions], (length / (length + 0.02))[by_captions], atol=1e-5
    )


def test_the_loss_on_progress_wants_scores_at_the_progress_and_misses_at_what_is_left(
    examples: Examples,
) -> None:
    seen = seen_of(examples)
    wanted = guides.progress(examples.way, examples.truth, examples.start).tolist()
    total = 0.0
    for score, miss, done in zip(
        guides.score(seen).tolist(), guides.miss(seen).tolist(), wanted, strict=True
    ):
        total += (smooth(score - done) + smooth(miss - (1 - done))) / N
    assert float(guides.progress_loss(seen, examples)) == pytest.approx(total, rel=1e-4)


def test_steps_of_captions_and_of_labels_are_held_to_those_of_true_pictures(examples: Examples) -> None:
    seen = seen_of(examples)
    start, way, source, target, named = (
        rows_of(each)
        for each in (seen.start, seen.way, seen.texts.source, seen.texts.target, seen.texts.named)
    )
    for loss, before, after in (
        (guides.step_loss, source, target),
        (guides.label_loss, [named[0]] * N, [named[int(each)] for each in examples.domain]),
    ):
        off = []
        for k in range(N):
            if examples.pure[k]:
                moved = [b - a for a, b in zip(start[k], way[k], strict=True)]
                told = [b - a for a, b in zip(before[k], after[k], strict=True)]
                lengths = math.hypot(*moved) * math.hypot(*told)
                off.append(math.dist(moved, told) ** 2 / max(0.05, lengths))
        assert float(loss(seen, examples)) == pytest.approx(sum(off) / len(off), rel=1e-4)


def test_labels_learn_from_pictures_and_no_picture_from_labels(examples: Examples) -> None:
    seen = seen_of(examples)
    named, way = seen.texts.named.requires_grad_(), seen.way.requires_grad_()
    of_labels, of_captions = guides.label_loss(seen, examples), guides.step_loss(seen, examples)
    to_named, to_way = torch.autograd.grad(of_labels, (named, way), allow_unused=True)
    assert to_way is None and to_named is not None and float(to_named.abs().sum()) > 0
    to_named, to_way = torch.autograd.grad(of_captions, (named, way), allow_unused=True)
    assert to_named is None and to_way is not None and float(to_way.abs().sum()) > 0


def entropy(logits: list[float], wanted: list[float]) -> float:
    """Cross-entropy of logits with wanted shares."""
    whole = math.log(sum(math.exp(each) for each in logits))
    return sum(share * (whole - each) for each, share in zip(logits, wanted, strict=True))


def test_names_are_soft_and_attributes_count_where_they_can_be_seen(examples: Examples) -> None:
    logits = seen_of(examples).heads
    found = guides.naming_loss(logits, examples, 1.5)
    photo = [1.0, *[0.0] * (len(CLASSES) - 1)]
    labels = [photo] * N + rows_of(examples.labels)
    rows = rows_of(logits)
    # A photo counts a little, a true picture most.
    counts = [0.15] * N + [5.0 if each else 1.0 for each in examples.pure]
    wanted = sum(
        count * entropy(row[: len(CLASSES)], label)
        for count, row, label in zip(counts, rows, labels, strict=True)
    ) / sum(counts)
    first = len(CLASSES)
    for attribute in ATTRIBUTES:
        choices = len(CHOICES[attribute][0])
        losses = []
        for k in range(2 * N):
            person = k % N
            hidden = captions.HIDDEN.get(DOMAINS[int(examples.domain[person])], frozenset())
            if k < N or (examples.readable[person] and attribute not in hidden):
                right = int(examples.scene.choice[attribute][person])
                losses.append(entropy(rows[k][first : first + choices], np.eye(choices)[right].tolist()))
        assert N < len(losses) < 2 * N
        wanted += 1.5 * EMPHASIS.get(attribute, 1.0) * sum(losses) / len(losses) / len(ATTRIBUTES)
        first += choices
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_captions_are_matched_with_starts_or_with_true_pictures(examples: Examples) -> None:
    seen, again = seen_of(examples), random.Random(4)
    found = float(guides.caption_loss(seen, examples, random.Random(4)))
    pictures, texts = [], []
    for k in range(N):
        second = bool(examples.pure[k]) and again.random() < 0.6
        pictures.append(rows_of(seen.way if second else seen.start)[k])
        texts.append(rows_of(seen.texts.target if second else seen.texts.source)[k])
    cosines = [[14.0 * sum(a * b for a, b in zip(p, t, strict=True)) for t in texts] for p in pictures]
    both = cosines + [list(each) for each in zip(*cosines, strict=True)]
    wanted = sum(entropy(row, np.eye(N)[k % N].tolist()) for k, row in enumerate(both)) / (2 * N)
    assert found == pytest.approx(wanted, rel=1e-4)


# Steps.


def guide_after(people: dataset.People, steps: range, guide: Guide | None = None) -> Guide:
    """A small guide after some steps."""
    made = guide or Guide(SMALL)
    made.student.train()
    for number in steps:
        made.step(guides.draw_examples(people, 4, SMALL.seed, number, hard=True), number, 1e-3, 2.0)
    return made


def state_of(guide: Guide) -> dict[str, Any]:
    """Everything that training goes on from."""
    state = {"student": guide.student.state_dict(), "optimizer": guide.optimizer.state_dict()}
    return state | {"reach": guide.reach, "seconds": 12.0}


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of tensors are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_a_step_moves_all_weights_and_the_same_step_moves_them_alike(people: dataset.People) -> None:
    start, once, again = Guide(SMALL), guide_after(people, range(1)), guide_after(people, range(1))
    assert equal(state_of(once), state_of(again)) and not equal(state_of(once), state_of(start))
    before = dict(start.student.named_parameters())
    still = {name for name, each in once.student.named_parameters() if torch.equal(each, before[name])}
    assert not still, still
    other = Guide(dataclasses.replace(SMALL, seed=6))
    assert not equal(other.student.state_dict(), start.student.state_dict())


def test_a_restored_guide_goes_on_bit_equal(people: dataset.People, tmp_path: Path) -> None:
    whole = guide_after(people, range(3))
    torch.save(state_of(guide_after(people, range(2))), tmp_path / "guide.pt")
    restored = Guide(SMALL)
    assert restored.restore(tmp_path / "guide.pt") == 12.0
    assert equal(state_of(guide_after(people, range(2, 3), restored)), state_of(whole))


def test_attacks_move_every_second_example_uphill_within_their_radius(people: dataset.People) -> None:
    guide = guide_after(people, range(1))
    examples = guides.draw_examples(people, 6, 5, 1, hard=True)
    texts, _ = guide.encoded(guides.sentences(random.Random(0), examples), examples, draw())
    moved = guide.attacked(examples, texts, 3.0, draw())
    for before, after in ((examples.start, moved.start), (examples.way, moved.way)):
        lengths = (after - before).flatten(1).norm(dim=1)
        assert torch.equal(lengths[1::2], torch.zeros(3)) and bool((lengths[::2] > 0).all())
        assert float(lengths.max()) <= 3.0 + 1e-4
    assert torch.equal(moved.truth, examples.truth)


def test_reach_follows_how_far_true_pictures_lie_along_the_labels(examples: Examples) -> None:
    guide, seen = Guide(SMALL), seen_of(examples)
    guide._follow(seen, examples)
    wanted = [0.6] * len(DOMAINS)
    for k in range(N):
        if examples.pure[k]:
            domain = int(examples.domain[k])
            label = (seen.texts.named[domain] - seen.texts.named[0]).double()
            along = float(
                ((seen.way[k] - seen.start[k]).double() * label).sum() / (label.square().sum() + 0.02)
            )
            wanted[domain] = min(max(0.9 * wanted[domain] + 0.1 * along, 0.2), 1.5)
    assert guide.reach.tolist() == pytest.approx(wanted, abs=1e-5) and len(set(wanted)) > 2


def test_a_training_that_was_stopped_ends_bit_equal_to_one_that_was_not(
    renders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guides.RECIPES, "clip-a", dataclasses.replace(SMALL, steps=3))
    monkeypatch.setattr("zeroshift.pretrain.resumable.CHECKPOINT_SECONDS", -1.0)
    whole, _ = guides.train("clip-a", renders, tmp_path / "whole", shards=1)
    plain = Guide.step

    def killed(self: Guide, examples: Examples, number: int, *rest: float) -> dict[str, Tensor]:
        if number == 2:
            raise KeyboardInterrupt
        return plain(self, examples, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Guide, "step", killed)
        guides.train("clip-a", renders, tmp_path / "parts", shards=1)
    parts, _ = guides.train("clip-a", renders, tmp_path / "parts", shards=1)
    assert equal(state_of(parts), state_of(whole))


def test_a_finished_guide_is_frozen_and_its_scale_bounded(people: dataset.People) -> None:
    guide = guide_after(people, range(1))
    with torch.no_grad():
        guide.clip.model.logit_scale.fill_(9.0)
    clip = guide.finished()
    assert clip.frozen and not clip.training and not any(each.requires_grad for each in clip.parameters())
    assert clip.logit_scale == pytest.approx(math.exp(4.6), rel=1e-5)
