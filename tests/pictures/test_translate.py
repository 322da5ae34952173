"""One's own pictures through runs of diffusion models: strength, mixtures, unseen kinds, evaluation on true
people, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
import zeroshift as zs
from zeroshift.app.cli import main
from zeroshift.config.schema import EvaluateConfig
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.images import write_png
from zeroshift.files.registry import GENERATORS
from zeroshift.measure.evaluate import evaluate
from zeroshift.measure.picture_sets import open_inputs
from zeroshift.methods.adapt import AdaptRun, adapt
from zeroshift.models.diffusion import DiffusionGenerator
from zeroshift.models.mixing import mixture
from zeroshift.models.seeds import rng, z_from_seeds
from zeroshift.pictures.inversion import Route, brought_into_domain, translated
from zeroshift.pictures.translate import read_pictures, translate, translate_mixed
from zeroshift.portraits import render


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache that the tests of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSHIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[AdaptRun]:
    """Two runs of one source, of which the first names a file as its source, as a person's would."""
    folder = tmp_path_factory.mktemp("runs")
    save_generator(folder / "source.safetensors", tiny.diffusion())
    made = []
    for target in ("zombie", "sketch"):
        config = tiny.tune(
            folder / target, target=target, generator=str(folder / "source.safetensors"), train={"lr": 0.01}
        )
        made.append(adapt(config, state=tiny.given_diffusion(generator=None)))
    return made


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return tiny.diffusion(5).sample(range(3), 5)


@torch.no_grad()
def there_and_back(source: DiffusionGenerator, target: DiffusionGenerator, picture: Tensor) -> Tensor:
    """One picture, with the steps of a tiny run written out."""
    x = picture[None]
    for t, t_next in ((0, 100), (100, 200), (200, 300)):
        x = source.step(x, t, t_next, source.predict_noise(x, t))
    for t, t_next in ((300, 240), (240, 180), (180, 120), (120, 60), (60, 0), (0, -1)):
        x = source.step(x, t, t_next, target.predict_noise(x, t))
    return x[0].clamp(-1, 1)


def test_a_picture_goes_to_noise_with_the_source_and_back_with_the_adapted_model(
    runs: list[AdaptRun], pictures: Tensor
) -> None:
    run = runs[0]
    made = translate(run, pictures)
    slow = torch.stack([there_and_back(run.source, run.generator, picture) for picture in pictures])
    torch.testing.assert_close(made, slow, atol=1e-4, rtol=0)
    alone = translate(run.folder.path, pictures[1:2])
    torch.testing.assert_close(alone, made[1:2], atol=1e-5, rtol=0)
    assert float((made - translate(run, pictures, strength=0.0)).abs().max()) > 1e-3


def test_strength_mixes_the_predictions(runs: list[AdaptRun], pictures: Tensor) -> None:
    run = runs[0]
    source = torch.stack([there_and_back(run.source, run.source, picture) for picture in pictures])
    torch.testing.assert_close(translate(run, pictures, strength=0.0), source, atol=1e-4, rtol=0)
    made = translate(run, pictures, strength=0.3)
    ways = translate_mixed([run, runs[1]], pictures, {0: [1.0, 0.0]}), translate(run, pictures)
    torch.testing.assert_close(*ways, atol=1e-5, rtol=0)

    def mixed(x: Tensor, t: int) -> Tensor:
        return 0.3 * run.generator.predict_noise(x, t) + 0.7 * run.source.predict_noise(x, t)

    torch.testing.assert_close(
        made, translated(run.source, pictures, Route(300, 4, 6), mixed), atol=1e-5, rtol=0
    )
    with pytest.raises(InputError, match="strength must be between 0"):
        translate(run, pictures, strength=3.0)


def test_several_changes_are_mixed_by_a_schedule(runs: list[AdaptRun], pictures: Tensor) -> None:
    first, second = (run.generator for run in runs)
    predict = mixture([first, second], {0: [1, 3], 200: [1, 0]})
    x = pictures[:1]
    with torch.no_grad():
        assert torch.equal(predict(x, 200), first.predict_noise(x, 200))
        slow = 0.25 * first.predict_noise(x, 199) + 0.75 * second.predict_noise(x, 199)
        torch.testing.assert_close(predict(x, 199), slow)
    made = translate_mixed(runs, pictures, {0: [1, 3], 200: [1, 0]})
    torch.testing.assert_close(made, translated(runs[0].source, pictures, Route(300, 4, 6), predict))
    with pytest.raises(InputError, match="do not fit 2 models"):
        mixture([first, second], {0: [1, 2, 3]})
    with pytest.raises(InputError, match="0 is one of them"):
        mixture([first, second], {300: [1, 1]})


def test_unseen_pictures_are_brought_into_domain_the_domain_of_the_source(pictures: Tensor) -> None:
    source = tiny.diffusion()
    x = pictures
    with torch.no_grad():
        for repeat in range(2):
            noise = torch.stack(
                [torch.randn(3, 8, 8, generator=rng("unseen", 4, repeat, i)) for i in range(3)]
            )
            # The time that is gone down from, not the one before it.
            share = source.alphas_bar[200]
            x = share.sqrt() * x + (1 - share).sqrt() * noise
            for t, t_next in ((200, 100), (100, 0), (0, -1)):
                x = source.step(x, t, t_next, source.predict_noise(x, t))
    made = brought_into_domain(source, pictures, 4, t0=200, steps=3, repeats=2)
    torch.testing.assert_close(made, x.clamp(-1, 1), atol=1e-4, rtol=0)
    assert not torch.equal(made, brought_into_domain(source, pictures, 5, t0=200, steps=3, repeats=2))


def test_the_command_writes_a_picture_for_each_and_a_sheet(
    runs: list[AdaptRun], pictures: Tensor, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "mine"
    for number, picture in enumerate(pictures):
        write_png(folder / f"me{number}.png", picture)
    words = [
        "translate",
        str(runs[0].folder.path),
        str(folder),
        "--ratio",
        "0.5",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in told["pictures"]] == ["me0.png", "me1.png", "me2.png"]
    made = read_pictures([Path(path) for path in told["pictures"]], 8)[0]
    expected = zs.translate(runs[0], folder, strength=0.5)
    torch.testing.assert_close(made, expected, atol=0.51 / 127.5, rtol=0)
    assert Path(told["sheet"]).is_file()
    assert (
        main(
            [
                *words[:2],
                str(folder / "me0.png"),
                "--unseen",
                "1",
                "--t0",
                "200",
                "--out",
                str(tmp_path / "other"),
            ]
        )
        == 0
    )
    assert (tmp_path / "other" / "me0.png").is_file()
    assert main([*words[:2], str(tmp_path / "nothing.png")]) == 2


def test_the_command_mixes_runs_by_a_schedule(
    runs: list[AdaptRun], pictures: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "me.png", pictures[0])
    first, second = (str(run.folder.path) for run in runs)
    words = ["translate", first, str(tmp_path / "me.png"), "--out", str(tmp_path / "out")]
    for schedule, meant in (
        (["--schedule", "200:1,0", "0:1,3"], {200: [1, 0], 0: [1, 3]}),
        ([], {0: [0.5, 0.5]}),
    ):
        assert main([*words, "--mix", second, *schedule]) == 0
        made = read_pictures(tmp_path / "out" / "me.png", 8)[0]
        torch.testing.assert_close(
            made, translate_mixed(runs, tmp_path / "me.png", meant), atol=0.51 / 127.5, rtol=0
        )
        assert not torch.equal(made, translate(runs[0], tmp_path / "me.png"))
    assert Image.open(tmp_path / "out" / "me.png").info["target"] == "zombie + sketch"
    capsys.readouterr()
    for more, why in (
        (["--mix", second, "--schedule", "0:1"], "do not fit 2 models"),
        (["--mix", second, "--schedule", "300:1,0"], "0 is one of them"),
        (["--mix", second, "--schedule", "2000:1,0", "0:1,1"], "lie between 0 and 999"),
        (["--mix", second, "--schedule", "0:nan,1"], "ratios must be numbers from 0 up"),
        (["--mix", second, "--schedule", "0:inf,1"], "ratios must be numbers from 0 up"),
        (["--mix", second, "--schedule", "0:-1,2"], "ratios must be numbers from 0 up"),
        (["--mix", second, "--schedule", "often:1,0"], "no part of a schedule"),
        (["--mix", second, "--schedule", "0:1,0", "0:0,1"], "names time 0 twice"),
        (["--mix", second, "--strength", "0.5"], "strength is of one run"),
        (["--schedule", "0:1,0"], "give the others with --mix"),
    ):
        assert main([*words, *more]) == 2
        assert why in capsys.readouterr().err


def test_the_report_of_a_run_says_how_to_translate_and_that_of_a_gan_does_not(
    runs: list[AdaptRun], tmp_path: Path
) -> None:
    folder = runs[0].folder
    assert folder.diffuses and f"zeroshift translate {folder.path} me.png" in (
        folder.path / "report.html"
    ).read_text("utf-8")
    gan = tiny.run(tmp_path / "gan", method="nada", train={"steps": 1}, monitor={"every": 0}).folder
    assert not gan.diffuses and "zeroshift translate" not in (gan.path / "report.html").read_text("utf-8")


def test_what_is_transparent_in_a_picture_counts_as_white(tmp_path: Path) -> None:
    from PIL import Image

    layers = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    layers.putpixel((1, 2), (0, 255, 0, 255))
    layers.save(tmp_path / "hole.png")
    seen = read_pictures(tmp_path / "hole.png", 4)[0][0]
    wanted = torch.ones(3, 4, 4)
    wanted[:, 2, 1] = torch.tensor([-1.0, 1.0, -1.0])
    assert torch.equal(seen, wanted)


def test_what_cannot_be_translated_is_said_in_words(
    runs: list[AdaptRun], pictures: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="translate needs runs of diffusion models"):
        translate(
            tiny.run(tmp_path / "gan", method="nada", train={"steps": 1}, monitor={"every": 0}), pictures
        )
    with pytest.raises(InputError, match="t0 must be a time between 1 and 999"):
        translate(runs[0], pictures, t0=1000)
    with pytest.raises(InputError, match="steps must be between 2 and the 1000 times"):
        translate(runs[0], pictures, steps=1001)
    with pytest.raises(InputError, match="unseen must be 0 or more, got -1"):
        translate(runs[0], pictures, unseen=-1)
    with pytest.raises(InputError, match="portraits-ddpm is a model that was not adapted"):
        translate("portraits-ddpm", pictures)
    with pytest.raises(InputError, match="there is no picture .*nobody.png"):
        translate(runs[0], tmp_path / "nobody.png")
    with pytest.raises(InputError, match=r"BCHW in \[-1, 1\]"):
        translate(runs[0], pictures * 100)
    with pytest.raises(InputError, match="no pictures to translate"):
        translate(runs[0], [])


def test_a_run_is_measured_on_the_source_s_pictures_or_on_a_folder(
    runs: list[AdaptRun], pictures: Tensor, tmp_path: Path
) -> None:
    run = runs[0]
    inputs = open_inputs(run, EvaluateConfig(seeds="3-5"))
    assert len(inputs.target) == 3 and "truth" not in inputs.sets
    source = run.source.sample([3, 4, 5], 50)
    torch.testing.assert_close(inputs.sets["source"].part(slice(0, 3)), source, atol=0.51 / 127.5, rtol=0)
    made = translate(run, inputs.sets["source"].part(slice(0, 3)))
    torch.testing.assert_close(inputs.target.part(slice(1, 3)), made[1:], atol=1.1 / 127.5, rtol=0)
    for number, picture in enumerate(pictures):
        write_png(tmp_path / "mine" / f"{number}.png", picture)
    done = evaluate(run.folder.path, source=str(tmp_path / "mine"), seeds="0-1")
    assert (
        done.record["settings"]["pictures"] == 3
        and "inverted to time 300 on 4 points" in done.record["settings"]["route"]
    )
    assert "inverted to time 300" in done.text() and (run.folder.path / "evaluation.json").is_file()


def test_people_of_the_built_in_world_are_measured_against_their_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GENERATORS, "given", "none")
    run = adapt(
        tiny.tune(tmp_path / "run", target="cartoon", monitor={"every": 0}), state=tiny.given_diffusion()
    )
    inputs = open_inputs(run, EvaluateConfig(seeds="7,9"))
    z = z_from_seeds([7, 9], 64)
    torch.testing.assert_close(
        inputs.sets["source"].part(slice(0, 2)), render(z, "photo", 8), atol=0.51 / 127.5, rtol=0
    )
    torch.testing.assert_close(
        inputs.sets["truth"].part(slice(0, 2)), render(z, "cartoon", 8), atol=0.51 / 127.5, rtol=0
    )
    assert inputs.latents_known and len(inputs.target) == 2
    bare = open_inputs(run.source, EvaluateConfig(seeds="7,9", labels=("photo", "cartoon")))
    assert "truth" not in bare.sets and not bare.latents_known


def test_the_card_of_a_run_says_nothing_of_styles(runs: list[AdaptRun], tmp_path: Path) -> None:
    zs.push_to_hub(runs[0].folder.path, "owner/zombie", dry_run=tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text("utf-8")
    assert "range(16))" in card and "rosinality" not in card and "Truncation" not in card
    again = zs.load(str(tmp_path / "card" / "generator.safetensors"))
    assert torch.equal(again.sample([1], 3), runs[0].generator.sample([1], 3))
