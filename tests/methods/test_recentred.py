"""Directions about the label's: stage 2 of IPL with the mean direction of the words replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny
from zeroshift.methods.backend import Given
from zeroshift.methods.zero_shot import MEAN_CODES
from zeroshift.models.seeds import draw_z


def texts(run: Any, z: Tensor) -> Tensor:
    """Text directions of the first CLIP that stage 2 used, step by step."""
    seen: list[Tensor] = []

    def hook(event: dict[str, Any]) -> None:
        if event["stage"] == 2:
            seen.append(event["text_directions"][0])

    tiny.run(**run, hook=hook, state=Given(generator=tiny.generator(), clips=tiny.clips(), stage2_z=z))
    return torch.cat(seen)


def test_directions_about_the_label_have_its_mean_and_those_of_the_words_have_not(tmp_path: Path) -> None:
    # All codes that the mean is taken over, in one step, so that the mean of what is used is known.
    z = draw_z(12, MEAN_CODES, 0, "monitor", 0)[None]
    own, about, nada = (
        texts(
            {
                "out": tmp_path / name,
                "mapper": {"lr": 0.5, **mapper},
                "train": {"steps": 1, "batch": MEAN_CODES},
                **more,
            },
            z,
        )
        for name, mapper, more in (
            ("own", {}, {}),
            ("about", {"mean": "label"}, {}),
            ("nada", {}, {"method": "nada"}),
        )
    )
    label = nada[:1]
    slow = torch.stack([row + label[0] - own.mean(dim=0) for row in own])
    torch.testing.assert_close(about, slow / slow.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert float((own - about).abs().max()) > 1e-2 and float(about.std(dim=0).max()) > 1e-3
