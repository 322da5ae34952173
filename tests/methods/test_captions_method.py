"""The bound of captions: true sentences of each person in place of learned words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.methods.adapt import adapt
from zeroshift.models.seeds import draw_z, z_from_seeds
from zeroshift.portraits.captions import HIDDEN, SYNONYMS
from zeroshift.portraits.scene import sample_scene
from zeroshift.worlds.portraits import Portraits
from zeroshift.worlds.world import World

Event = dict[str, Any]


def n(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


class Watch(list[Event]):
    """Keeps every step."""

    def __call__(self, event: Event) -> None:
        self.append(event)


def caption(z: Tensor, label: str) -> str:
    return f"a {label} of a person {'in style' if z[0] > 0 else 'face'}"


@pytest.mark.parametrize("target", ["zombie", "zombie:0.75 + sketch:0.25"])
def test_every_picture_goes_in_the_direction_between_its_own_captions(tmp_path: Path, target: str) -> None:
    shares = {"zombie": 1.0} if target == "zombie" else {"zombie": 0.75, "sketch": 0.25}
    watch = Watch()
    made = tiny.config(tmp_path / "run", method="captions", target=target, train={"batch": 4})
    run = adapt(made, hook=watch, state=tiny.given(world=tiny.described()))
    assert run.mapper is None and {line["stage"] for line in run.folder.metrics()} == {2}
    for event in watch:
        people = draw_z(12, 4, 0, "stage2", event["step"])
        assert len({bool(one[0] > 0) for one in people}) == 2 or event["step"] > 1
        for clip, found in zip(tiny.clips(), event["text_directions"], strict=True):
            for one, direction in zip(people, found, strict=True):
                before = n(clip.encode_text([caption(one, "photo")])[0])
                ways = [
                    share * n(n(clip.encode_text([caption(one, label)])[0]) - before)
                    for label, share in shares.items()
                ]
                torch.testing.assert_close(direction, n(torch.stack(ways).sum(dim=0)))


def test_views_see_the_same_captions(tmp_path: Path) -> None:
    watch = Watch()
    train = {"batch": 3, "steps": 1, "views": {"count": 2}}
    made = tiny.config(tmp_path / "run", method="captions", train=train)
    adapt(made, hook=watch, state=tiny.given(world=tiny.described()))
    for found in watch[0]["text_directions"]:
        assert len(found) == 6
        torch.testing.assert_close(found[:3], found[3:], rtol=0, atol=0)


def test_the_monitor_compares_with_the_captions_of_its_own_people(tmp_path: Path) -> None:
    from zeroshift.methods import captions

    made = tiny.config(tmp_path / "run", method="captions")
    run = captions.open_run(made, tiny.given(world=tiny.described()))
    codes = run.monitor_codes(5)
    people = draw_z(12, 5, 0, "monitor", 0)
    for texts in run.words(codes):
        assert texts.source == [caption(one, "photo") for one in people]
        assert texts.targets == [[caption(one, "zombie") for one in people]]
    run.backend.codes(1)
    assert run.words(codes)[0].source == [caption(one, "photo") for one in people]


def test_people_of_the_built_in_world_have_captions_of_their_own_that_never_change() -> None:
    world = Portraits()
    z = z_from_seeds(range(6), world.latent_dim)
    photos = world.captions(z, "photo")
    assert photos is not None and len(set(photos)) == 6
    assert photos == world.captions(z, "photo")
    assert photos[2:4] == world.captions(z[2:4], "photo"), "a caption belongs to the person, not to the batch"
    scene = sample_scene(z)
    for row, text in enumerate(photos):
        assert text.startswith("a photo of a person")
        assert scene.words(row)["clothes"] in text.split()


@pytest.mark.parametrize("domain", list(SYNONYMS))
def test_the_caption_of_a_domain_is_the_photos_but_for_its_name_and_what_it_does_not_show(
    domain: str,
) -> None:
    world = Portraits()
    z = z_from_seeds(range(5), world.latent_dim)
    label = SYNONYMS[domain][-1]
    photos, others = world.captions(z, "photo"), world.captions(z, label)
    assert photos is not None and others is not None
    for photo, other in zip(photos, others, strict=True):
        assert other.startswith(f"a {label} of a person")
        rest = other.removeprefix(f"a {label} ").split()
        if domain not in HIDDEN:
            assert photo.removeprefix("a photo ").split() == rest
        else:
            assert set(rest) < set(photo.split())


def test_a_world_without_words_says_so() -> None:
    class Silent(World):
        name = "silent"
        latent_dim = 3
        domains = ("photo", "negative")

        def truth(self, z: Tensor, label: str, size: int) -> Tensor:
            return torch.zeros(len(z), 3, size, size)

    world = Silent()
    assert world.captions(world.latents([0, 1]), "photo") is None
    assert not world.describes(["photo", "negative"])
    assert Portraits().describes(["photo", "roman mosaic"]) and not Portraits().describes(["photo", "disney"])
