"""Pictures from seeds: the same whatever stands beside them, between source and target, in files that know
their seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
import zeroshift as zs
from zeroshift.app.cli import main
from zeroshift.config.schema import FinetuneConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.images import grid, labelled_rows, save_pictures, write_png
from zeroshift.models.mixing import blend
from zeroshift.models.seeds import z_from_seeds
from zeroshift.pictures.sample import draw, parse_seeds
from zeroshift.pictures.sample import sample as sampling_function
from zeroshift.pictures.sheets import before_after, pair
from zeroshift.worlds.world import World


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny finished run whose source generator is a file."""
    folder = tmp_path_factory.mktemp("runs")
    save_generator(folder / "source.safetensors", tiny.generator(), {})
    state = tiny.Given(clips=tiny.clips())
    tiny.run(
        folder / "run",
        state=state,
        generator=str(folder / "source.safetensors"),
        method="nada",
        train={"lr": 0.05},
    )
    return folder / "run"


def test_seeds_are_read_as_numbers_and_ranges() -> None:
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("1, 4,7-9") == [1, 4, 7, 8, 9]


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "''"), ("1,,2", "''"), ("a-b", "'a-b'"), ("-1", "'-1'"), ("5-2", "2-5"), ("0-99999999", "10000")],
)
def test_seeds_that_cannot_be_read_are_named(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        parse_seeds(text)


def test_a_seed_gives_the_same_picture_alone_and_in_any_batch() -> None:
    generator = tiny.generator()
    together = draw(generator, range(5), batch=5)
    alone = torch.cat([draw(generator, [seed]) for seed in range(5)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, draw(generator, range(5), batch=2), atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_pictures_are_in_range_and_truncation_zero_shows_the_average() -> None:
    generator = tiny.generator()
    pictures = draw(generator, range(4), truncation=0.0)
    average = generator.synthesize(generator.latent_avg[None]).clamp(-1, 1)
    assert torch.allclose(pictures, average.expand_as(pictures), atol=1e-5)
    assert draw(generator, range(4)).abs().max() <= 1


def test_a_truncation_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="1.5"):
        draw(tiny.generator(), [0], truncation=1.5)


def test_strength_goes_from_source_over_half_way_to_target() -> None:
    source, target = tiny.generator(0), tiny.generator(1)
    half = blend(source, target, 0.5)
    start, end, middle = source.state(), target.state(), half.state()
    assert all(torch.equal(blend(source, target, 0.0).state()[name], start[name]) for name in start)
    assert all(torch.allclose(middle[name], (start[name] + end[name]) / 2, atol=1e-6) for name in start)
    assert all(torch.equal(target.state()[name], end[name]) for name in end)


def test_strength_between_generators_of_other_sizes_is_refused() -> None:
    with pytest.raises(InputError, match="differ"):
        blend(tiny.generator(size=32), tiny.generator(size=16), 0.5)


def test_a_strength_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="2.5"):
        blend(tiny.generator(0), tiny.generator(1), 2.5)


def test_a_loaded_run_draws_its_generator_and_at_strength_zero_its_source(run: Path) -> None:
    loaded = zs.load(run)
    assert torch.equal(loaded.sample(range(3), truncation=1.0), draw(loaded.generator, range(3)))
    assert torch.allclose(
        loaded.sample(range(3), truncation=1.0, strength=0.0), draw(tiny.generator(), range(3)), atol=1e-6
    )
    assert not torch.allclose(loaded.sample(range(3)), loaded.sample(range(3), strength=0.0), atol=1e-3)
    assert loaded.config.target == "zombie"


def test_a_run_its_folder_and_its_result_draw_the_same_pictures(run: Path) -> None:
    expected = zs.load(run).sample(range(2))
    assert torch.equal(sampling_function(run, range(2)), expected)
    assert torch.equal(sampling_function(str(run), range(2)), expected)
    again = tiny.run(
        run,
        state=tiny.Given(),
        generator=str(run.parent / "source.safetensors"),
        method="nada",
        train={"lr": 0.05},
    )
    assert torch.equal(sampling_function(again, range(2), strength=1.0), expected)
    assert not torch.equal(sampling_function(again, range(2), strength=0.5), expected)


def test_a_bare_generator_has_no_strength() -> None:
    with pytest.raises(InputError, match="run"):
        sampling_function(tiny.generator(), [0], strength=0.5)


def test_a_run_without_weights_is_refused(tmp_path: Path, run: Path) -> None:
    for name in ("config.json", "environment.json", "status.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(InputError, match="no adapted generator"):
        zs.load(tmp_path)


def test_a_written_picture_has_its_pixels_and_its_facts(tmp_path: Path) -> None:
    picture = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 4, 4)
    write_png(tmp_path / "one.png", picture, {"seed": "7"})
    with Image.open(tmp_path / "one.png") as image:
        facts: Any = image
        assert image.getpixel((0, 0)) == (0, 128, 255)
        assert facts.text == {"seed": "7"}
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_saved_pictures_are_a_grid_and_one_file_per_seed(tmp_path: Path) -> None:
    paths = save_pictures(draw(tiny.generator(), [3, 11]), [3, 11], tmp_path / "new", {"method": "nada"})
    assert [path.name for path in paths] == ["grid.png", "seed00003.png", "seed00011.png"]
    with Image.open(paths[0]) as image:
        facts: Any = image
        assert facts.text == {"seeds": "3,11", "method": "nada"}


def test_a_grid_keeps_every_picture_in_its_place() -> None:
    pictures = torch.arange(5.0).div(4).mul(2).sub(1)[:, None, None, None].expand(5, 3, 128, 128)
    sheet = grid(pictures, columns=3)
    cells = [
        sheet[0, 4 + row * 132 + 5, 4 + column * 132 + 5].item()
        for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    assert cells == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert sheet.shape == (3, 2 * 132 + 4, 3 * 132 + 4)


def test_labels_stand_beside_their_rows() -> None:
    sheet = labelled_rows(
        [("photo", -torch.ones(2, 3, 64, 64)), ("pencil sketch", -torch.ones(1, 3, 64, 64))]
    )
    margin = sheet.shape[-1] - 2 * 132 - 4
    assert margin > 30
    assert (sheet[:, :132, :margin] < 0).any() and (sheet[:, 136:264, :margin] < 0).any()


class Shades(World):
    """A world of even pictures: the brightness of a photo, or of its negative, is its seed's first number."""

    name = "shades"
    latent_dim = 2
    domains = ("photo", "negative")

    def truth(self, z: Tensor, label: str, size: int) -> Tensor:
        shade = z[:, 0].tanh() * (1 if label == "photo" else -1)
        return shade[:, None, None, None].expand(-1, 3, size, size)


def test_before_and_after_holds_source_target_and_truth_untruncated() -> None:
    source = tiny.generator(0)
    target = tiny.generator(1)
    two = before_after(source, target, ("photo", "zombie"), range(2), 0.5, Shades())
    three = before_after(source, target, ("photo", "Negative"), range(2), 0.5, Shades())
    assert three.shape[-2] - two.shape[-2] == 132
    first = draw(source, [0])[0, :, 0, 0]
    assert torch.allclose(three[:, 4, -264], first, atol=1e-6)
    assert not torch.allclose(two[:, 4, -264], first, atol=1e-3)
    shades = -z_from_seeds(range(2), 2)[:, 0].tanh()
    assert torch.allclose(three[0, -100, [-200, -50]], shades)


def test_a_diffusion_model_is_given_the_source_pictures_of_a_world() -> None:
    source = tiny.diffusion(0)
    target = tiny.diffusion(1)
    tuning = FinetuneConfig(t0=300, invert_steps=4, sample_steps=6)
    given, made = pair(source, target, tuning, range(2), world=Shades())
    truth = Shades().truth_of_seeds(range(2), "photo", 8)
    assert truth is not None and torch.equal(given, truth)
    noisy = source.invert(given, 300, 4)
    assert torch.allclose(made, target.generate(noisy, 300, 6).clamp(-1, 1), atol=1e-4)
    before, after = pair(source, target, tuning, range(2))
    assert torch.equal(before, source.sample(range(2), 6))
    assert torch.equal(after, target.sample_adapted(source, range(2), t0=300, steps=6))


def test_a_run_and_a_generator_by_name_are_drawn_where_there_is_a_gpu(run: Path) -> None:
    place = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert zs.load(run).device.type == place
    assert zs.load("portraits").latent_avg.device.type == place
    assert zs.load(run, device="cpu").generator.latent_avg.device.type == "cpu"
    with pytest.raises(InputError, match="no device cuda:99"):
        zs.load(run, device="cuda:99")


def test_a_bare_generator_is_sampled_by_name_and_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.bin"
    save_generator(file, tiny.generator())
    assert (
        main(
            [
                "sample",
                str(file),
                "--seeds",
                "3,1",
                "--truncation",
                "0.5",
                "--out",
                str(tmp_path / "p"),
                "--json",
            ]
        )
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    with Image.open(shown["pictures"][0]) as picture:
        assert [picture.info[key] for key in ("seed", "generator", "truncation")] == ["3", "mine.bin", "0.5"]
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    expected = draw(tiny.generator(), [3], 0.5)[0]
    assert (pixels - expected).abs().max() <= 1 / 127.5
    assert main(["sample", str(file), "--strength", "0.5"]) == 2
    assert "needs a run" in capsys.readouterr().err
    assert torch.equal(zs.sample("portraits", [1]), draw(zs.load("portraits"), [1]))
