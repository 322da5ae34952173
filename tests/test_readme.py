"""The README keeps what it says: its commands run, its make targets and public names exist.

Commands are carried out as they stand, but on tiny models: files that they read are made under the names that
they have there, and options that cost time get small values. What cannot be run stands in `NOT_RUN`.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from zeroshift.app import cli
from zeroshift.files.checkpoints import save_generator
from zeroshift.files.clips import save_clip

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

NOT_RUN = {
    r"push (?!.*--dry-run)": "it uploads to the hub",
    r"serve\b": "it does not end",
    r".*--engine ray\b": "it needs a cluster",
}
"""Commands that cannot be run here, by the beginning of their words, and why."""

LEFT_OUT = {
    "--inception": "there is no small Inception network",
    "--vgg": "there is no small VGG",
    "--alexnet": "there is no small AlexNet",
    "--identity": "there is no small face network",
}
"""Options that are left out of a command, and why."""

WRITTEN = ("--out", "--csv", "--dry-run")
"""Options whose values are files and folders that a command makes."""

SMALL = {
    "adapt": "--steps 2 --batch 1 --mapper.steps 2 --mapper.batch 2 --samples 2 --device cpu"
    " --train.monitor.count 2 --train.adaptive.batch 1 --train.diffusion.t0 300"
    " --train.diffusion.invert-steps 3 --train.diffusion.train-steps 2"
    " --train.diffusion.sample-steps 3 --train.diffusion.num-pictures 2",
    "sample": "",
    "translate": "--steps 3 --t0 300",
    "evaluate": "--seeds 0-3 --device cpu",
}
SMALL["compare"] = SMALL["adapt"] + " --eval-seeds 0-3 --people 2 --seeds 0 --jobs 1"
"""Options that keep a command of a verb short."""

ALSO = {"--steps": "--train.steps", "--batch": "--train.batch"}
"""Options with a second name."""


def commands(of: str) -> list[list[str]]:
    """Commands of a program in the README, split into words."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{of} ")]


def without(words: list[str], *flags: str) -> list[str]:
    """Words without some options and what follows them."""
    kept, dropping = list[str](), False
    for word in words:
        if word.startswith("--"):
            dropping = word.partition("=")[0] in flags
        if not dropping:
            kept.append(word)
    return kept


def laid_over(words: list[str], options: str) -> list[str]:
    """Words with these options in place of what they say there."""
    pairs = [part.split() for part in options.split("--") if part]
    flags = {f"--{pair[0]}" for pair in pairs}
    left = without(words, *flags, *(ALSO[flag] for flag in flags if flag in ALSO))
    return [*left, *(word for flag, *values in pairs for word in (f"--{flag}", *values))]


class World:
    """A folder with tiny models, in which commands of the README run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_generator(folder / "tiny-gan.safetensors", tiny.generator(), {})
        save_generator(folder / "tiny-ddpm.safetensors", tiny.diffusion(size=16), {})
        save_clip(tiny.clip(1), folder / "tiny-clip")
        self.picture(folder / "tiny.png", 0)

    def picture(self, path: Path, seed: int) -> None:
        """Writes a picture of 16 px."""
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    def command(self, words: list[str]) -> list[str]:
        """A command of the README with its stand-ins and short options."""
        verb, *rest = without(words, *LEFT_OUT)
        diffusion = verb == "translate" or any("ddpm" in word or "ckpt" in word for word in rest)
        place, written, made = "", 0, [verb]
        for word in rest:
            place = word.partition("=")[0] if word.startswith("--") else place
            if place in WRITTEN or (verb == "convert" and written == 1 and not place):
                made.append(word)
            elif place in ("--clip", "--judge") and not word.startswith("--"):
                made.append("tiny-clip")
            else:
                made.append(self.stand_in(word, diffusion))
            written += not word.startswith("--")
        if verb in ("adapt", "compare"):
            # Other commands may have left runs of other options there.
            shutil.rmtree(self.folder / "runs", ignore_errors=True)
            made = self.adapting(made, diffusion)
        return laid_over(made, SMALL.get(verb, ""))

    def adapting(self, words: list[str], diffusion: bool) -> list[str]:
        """A command that adapts, with the models that it does not name."""
        if "--generator" not in words:
            words = [*words, "--generator", "tiny-gan.safetensors"]
        if diffusion and "--recipe" not in words:
            # Told by the names of the built-in model, which a file does not have.
            words = [*words, "--recipe", "diffusionclip"]
        return laid_over(words, "--clip tiny-clip")

    def stand_in(self, word: str, diffusion: bool) -> str:
        """What stands in for a word: models by name, and files and folders made under the names they have."""
        model = f"tiny-{'ddpm' if diffusion else 'gan'}.safetensors"
        if word in ("portraits", "portraits-ddpm", "FILE") or word.startswith("hf:"):
            return model
        path = self.folder / word
        if word == "RUN" or word.startswith("runs/"):
            self.run(path, model, diffusion)
        elif word.endswith("/"):
            path.mkdir(exist_ok=True)
            for seed in range(4):
                self.picture(path / f"{seed}.png", seed)
        elif path.suffix in (".pkl", ".pt", ".safetensors", ".ckpt") and not path.exists():
            shutil.copyfile(self.folder / model, path)
        elif path.suffix in (".png", ".jpg", ".jpeg"):
            self.picture(path, 0)
        return word

    def run(self, path: Path, model: str, diffusion: bool) -> None:
        """Makes a finished run, where no command has made it yet."""
        if not (path / "generator.safetensors").exists():
            words = ["adapt", "--target", "zombie", "--generator", model, "--out", str(path)]
            assert cli.main(laid_over(self.adapting(words, diffusion), SMALL["adapt"])) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ZEROSHIFT_CACHE", str(folder / "cache"))
        yield World(folder)


def reason_not_to_run(words: list[str]) -> str:
    """Why a command cannot be run; empty where it can."""
    return next((why for start, why in NOT_RUN.items() if re.match(start, " ".join(words))), "")


@pytest.mark.parametrize("words", commands("zeroshift"), ids=" ".join)
def test_a_command_of_the_readme_can_be_read(words: list[str]) -> None:
    assert cli.parse(list(words)) is not None


@pytest.mark.parametrize(
    "words", [words for words in commands("zeroshift") if not reason_not_to_run(words)], ids=" ".join
)
def test_a_command_of_the_readme_runs(
    world: World, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = world.command(words)
    assert cli.main(command) == 0, f"{shlex.join(command)}\n{capsys.readouterr().err}"


def test_options_are_laid_over_those_of_a_command() -> None:
    words = ["compare", "--seeds", "0", "1", "--train.steps=90", "--out", "runs/x"]
    assert laid_over(words, "--steps 2 --seeds 0") == [
        *("compare", "--out", "runs/x"),
        *("--steps", "2", "--seeds", "0"),
    ]


def test_there_are_commands_and_make_targets_in_the_readme_and_they_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert len(commands("zeroshift")) >= 6
    assert {"demo", "test"} <= {words[0] for words in commands("make")} <= targets
    assert {"setup", "demo", "test", "test-fast", "lint", "bench", "golden"} <= targets


def test_the_python_examples_of_the_readme_name_only_what_exists() -> None:
    import zeroshift as zs

    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    used = {
        node.attr
        for example in examples
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "zs"
    }
    assert used and used <= set(zs.__all__)
