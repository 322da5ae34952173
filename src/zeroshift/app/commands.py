"""The options of every verb of the command line, as tyro reads them; the docstring under a field is its help
text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from zeroshift.config.measuring import SHOT_SEEDS, CompareConfig, EvaluateConfig
from zeroshift.config.schema import AdaptConfig

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Move a generator into a domain given in words. The same command again resumes."""

    config: Annotated[AdaptConfig, tyro.conf.arg(name="")]
    compat: Literal["corrected", "official"] = "corrected"
    """Start from the repaired method, or from every quirk of the authors' code (the --quirks.* options)."""
    dry_run: Flag = False
    """Print the resolved config, what would move and the memory it needs, and stop."""
    json: Flag = False
    """Print one JSON object on standard output; progress goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw pictures of a run or a generator by seed: grid.png and one PNG per seed."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run; or a generator: a file (delta.safetensors too), a built-in name or a hub reference
    (hf:owner/name)."""
    seeds: str = "0-15"
    """Seeds as numbers and ranges: 0-15 or 1,4,7-9. The same seed is always the same picture."""
    truncation: float | None = None
    """1 is the full variety, 0 the average picture; unset: as in the run, 1 for a generator."""
    strength: float = 1.0
    """0 is the source generator, 1 the adapted one, between them a blend (of weights, of predictions of
    diffusion models), up to 2 beyond."""
    generator: str | None = None
    """Where the source generator is now, if not where the run found it. Needed for a strength other than 1
    and for a delta.safetensors."""
    steps: int | None = None
    """Diffusion models: steps from noise to picture; unset: as in the run, 50 for a generator."""
    eta: float | None = None
    """Diffusion models: fresh noise in every step, 0 none (DDIM, the default) to 1 (as DDPM)."""
    out: Path | None = None
    """Folder for the pictures; unset: RUN/pictures, or pictures here for a generator."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; auto is a GPU where there is one."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Translate:
    """Change your own pictures with a run of a diffusion model: into noise with the source, back with the
    adapted one."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Picture files, or folders of them. The middle square is taken; what is transparent is white."""
    strength: Annotated[float, tyro.conf.arg(aliases=("--ratio",))] = 1.0
    """0 is the source model, 1 the adapted one, between them a mixture of their predictions, up to 2
    beyond."""
    t0: int | None = None
    """Time to which pictures are made noisy, 1 to 999: larger changes more and keeps less; unset: as in the
    run."""
    steps: int | None = None
    """Steps from noise to picture; unset: as in the run."""
    mix: tuple[str, ...] = ()
    """Folders of further runs of the same source: their changes together with the first run's."""
    schedule: tuple[str, ...] = ()
    """With --mix: TIME:RATIO,RATIO,... for the first run and the others, from that time up; the last time is
    0, as in 300:1,0 0:0.2,0.8. Unset: equal parts."""
    unseen: int = 0
    """Times that pictures of another kind (strokes, paintings) are first drawn into the source's domain; 8 to
    10 are usual."""
    seed: int = 0
    """Seed of the noise of --unseen."""
    out: Path | None = None
    """Folder for the pictures; unset: RUN/translated."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; auto is a GPU where there is one."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a generator in the layout of other programs, or as a network that runs without this package."""

    generator: Annotated[str, tyro.conf.Positional]
    """A file, a run folder, a built-in name or a hub reference (hf:owner/name)."""
    out: Annotated[Path, tyro.conf.Positional]
    """File to write."""
    to: Literal[
        "safetensors", "rosinality", "nvidia-state", "ddpm", "guided-diffusion", "onnx", "torchscript"
    ]
    """Weights in a layout (of diffusion models ddpm, guided-diffusion), or a network (onnx, torchscript)."""
    label: int | None = None
    """Class to choose of a generator with classes; what is written then has none."""
    part: Literal["synthesis", "full"] = "synthesis"
    """Network: synthesis takes styles `w`; full takes noise `z` and `truncation`."""
    batch: int | None = None
    """Network: pictures per call; unset: any number."""
    noise: Literal["buffers", "off"] = "buffers"
    """Network: the generator's own noise maps, or none."""
    modulation: Literal["scale", "grouped"] = "scale"
    """Network: styles scale the activations, or the weights of one group per picture (needs --batch)."""
    check: bool = True
    """Network: compare its pictures with ours before it is put in its place."""
    overwrite: Flag = False
    """Replace a file that is there."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload the adapted generator of a finished run to the Hugging Face hub, with a model card."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    repository: Annotated[str, tyro.conf.Positional]
    """Name on the hub: owner/name. Made where it is not there yet."""
    private: Flag = False
    """Make the repository private."""
    rosinality: Flag = False
    """Add generator.pt in the layout of other programs."""
    dry_run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write what would be uploaded to this folder, and upload nothing."""
    overwrite: Flag = False
    """Replace files of these names that are there."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a run, a generator or a folder of pictures: every metric for which there is what it needs."""

    what: Annotated[str, tyro.conf.Positional]
    """Folder of a run or of pictures; or a generator: a file, a built-in name or a hub reference
    (hf:owner/name)."""
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = EvaluateConfig()
    csv: Path | None = None
    """Write a table with one line per metric to this file too."""
    json: Flag = False
    """Print the record as one JSON object on standard output; progress goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Methods side by side on the same targets and seeds. Every option of `zeroshift adapt` may be added, for
    all runs."""

    config: Annotated[CompareConfig, tyro.conf.arg(name="")]
    shared: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)
    json: Flag = False
    """Print one JSON object on standard output; progress goes to standard error."""


@dataclass(frozen=True, kw_only=True)
class Portraits:
    """Write true pictures of the built-in people in one of their domains, to learn from or to look at."""

    what: Annotated[Literal["render"], tyro.conf.Positional]
    """render: grid.png and one PNG per seed, named after it (seed04000.png)."""
    domain: str
    """Domain of the built-in world, such as "pencil sketch"; held-out ones too."""
    seeds: str = SHOT_SEEDS
    """People, as numbers and ranges. A seed is the same person in every domain, and in the pictures of every
    generator with styles of this world. `zeroshift evaluate` measures 2000-2255: learn from others."""
    size: int = 64
    """Side in pixels, 16 to 1024."""
    out: Path | None = None
    """Folder for the pictures, without others in it; unset: one named after the domain, here."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a weights file or folder is, its architecture, and what cannot be used and why. Nothing in it
    is executed."""

    file: Annotated[str, tyro.conf.Positional]
    """A file, a folder, a built-in name or a hub reference (hf:owner/name)."""
    json: Flag = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show versions, devices and built-in models, and say what is missing."""

    json: Flag = False
    """Print one JSON object on standard output."""


Command = Adapt | Sample | Translate | Convert | Push | Evaluate | Compare | Portraits | Inspect | Doctor

COMMANDS: tuple[type[Command], ...] = get_args(Command)
"""Options of every verb; the verb is the class's name in small letters."""
