"""Hybrid targets: directions mixed by shares against slow formulas, in every method, and no truth for
them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from zeroshift.clip.features import mixed, target_direction, target_feature
from zeroshift.config.measuring import EvaluateConfig
from zeroshift.config.methods import METHODS
from zeroshift.devices import Precision
from zeroshift.measure.picture_sets import open_inputs
from zeroshift.methods.adapt import adapt
from zeroshift.methods.guidance import ClipObjective, clip_objective
from zeroshift.worlds.portraits import Portraits

HYBRID = "zombie:0.6 + sketch:0.4"
SHARES = {"zombie": 0.6, "sketch": 0.4}


def n(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def slow_template_mean(clip: Any, label: str) -> Tensor:
    texts = [template.replace("{}", label) for template in clip.templates.templates]
    return torch.stack([n(clip.encode_text([text])[0]) for text in texts]).mean(dim=0)


def total(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(dim=0)


def slow_label_direction(clip: Any, label: str) -> Tensor:
    return n(slow_template_mean(clip, label) - slow_template_mean(clip, "photo"))


def objective(path: Path, **options: Any) -> ClipObjective:
    config = tiny.config(path, target=HYBRID, **options)
    return clip_objective(tiny.clip(1), 1.0, config, Precision("fp32", torch.device("cpu")))


def test_the_label_direction_is_the_weighted_sum_of_unit_directions(tmp_path: Path) -> None:
    made = objective(tmp_path)
    wanted = n(total(share * slow_label_direction(made.clip, label) for label, share in SHARES.items()))
    torch.testing.assert_close(made.direction[0], wanted)
    torch.testing.assert_close(target_direction(made.clip, "photo", HYBRID)[0], wanted)
    features = n(total(share * n(slow_template_mean(made.clip, label)) for label, share in SHARES.items()))
    torch.testing.assert_close(target_feature(made.clip, HYBRID)[0], features)
    alone = slow_label_direction(made.clip, "zombie")
    assert float(made.direction[0] @ alone) < 0.999


def test_the_features_of_other_losses_are_mixed_too(tmp_path: Path) -> None:
    made = objective(tmp_path, losses={"patch": 1.0})
    for found, template in ((made.target_feature, "{}"), (made.target_sentence_feature, "a {}")):
        texts = {label: template.replace("{}", label) for label in SHARES}
        wanted = n(
            total(SHARES[label] * n(made.clip.encode_text([text])[0]) for label, text in texts.items())
        )
        torch.testing.assert_close(found[0], wanted)
    means = {label: slow_template_mean(made.clip, label) for label in SHARES}
    torch.testing.assert_close(made.target_mean, 0.6 * means["zombie"] + 0.4 * means["sketch"])
    assert made.part_directions is not None
    noses = {text: slow_template_mean(made.clip, f"the nose of a {text}.") for text in ("photo", *SHARES)}
    ways = [share * n(noses[label] - noses["photo"]) for label, share in SHARES.items()]
    torch.testing.assert_close(made.part_directions[1], n(torch.stack(ways).sum(dim=0)))


def test_learned_words_go_with_every_label_and_their_directions_are_mixed(tmp_path: Path) -> None:
    made = objective(tmp_path)
    clip = made.clip
    words = 0.1 * torch.randn(3, 4, clip.text_width, generator=torch.Generator().manual_seed(0))
    found = made.text_direction(words)

    def prompt(row: Tensor, label: str) -> Tensor:
        text = f"a photo of a {label}"
        return n(clip.encode_prompts(row[None], text)[0] + clip.encode_text([f"{text}."])[0])

    for row, direction in zip(words, found, strict=True):
        each = {label: n(prompt(row, label) - prompt(row, "photo")) for label in SHARES}
        torch.testing.assert_close(direction, n(0.6 * each["zombie"] + 0.4 * each["sketch"]))


def test_one_vector_is_mixed_into_itself_bit_by_bit() -> None:
    only = torch.randn(3, 5)
    assert mixed([only], [1.0]) is only


def test_equal_labels_mix_into_their_own_direction_whatever_the_shares(tmp_path: Path) -> None:
    x = torch.nn.functional.normalize(torch.randn(2, 7), dim=1)
    torch.testing.assert_close(mixed([x, x], [0.3, 0.7]), x)


@pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if "styles" in row.on and not row.adversarial]
)
def test_every_method_moves_a_generator_to_a_hybrid_and_elsewhere_than_to_its_parts(
    tmp_path: Path, method: str
) -> None:
    runs = [
        tiny.run(
            tmp_path / str(number),
            method=method,
            target=target,
            mapper={"steps": 1},
            train={"steps": 2},
            own={
                "svl": {"steps": 2, "elastic_pictures": 1},
                "air": {"offset_pictures": 2, "prompt_steps": 2},
            },
            state=tiny.given(world=tiny.described()),
        )
        for number, target in enumerate((HYBRID, "zombie", "sketch"))
    ]
    weights = [run.generator.state_dict()["convs.0.conv.weight"] for run in runs]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert HYBRID in (runs[0].folder.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["diffusionclip", "ipl"])
def test_diffusion_models_take_hybrids(tmp_path: Path, method: str) -> None:
    config = tiny.tune(tmp_path / "run", method=method, target=HYBRID, mapper={"steps": 1, "batch": 2})
    assert adapt(config, state=tiny.given_diffusion()).finished


def test_a_hybrid_has_no_truth_and_evaluate_says_why(tmp_path: Path) -> None:
    assert Portraits().domain_of("pencil sketch:0.6 + zombie:0.4") is None
    config = EvaluateConfig(labels=("photo", "zombie:1 + pencil sketch:1"), seeds="0-1")
    inputs = open_inputs("portraits", config)
    assert "truth" not in inputs.sets
    assert inputs.missing_reasons["truth"] == (
        "a hybrid of domains (zombie:1 + pencil sketch:1) has no true pictures"
    )
