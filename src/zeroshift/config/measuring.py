"""Every option of `evaluate` and `compare`."""

from pathlib import Path
from typing import Annotated

import pydantic
import tyro
from pydantic import Field

from zeroshift.config.options import ModelName, config_class
from zeroshift.config.targets import canonical_target

SHOT_SEEDS = "4000-4009"
"""People of a world whose pictures are there to learn from: no evaluation, page or sample grid shows them
unless it is asked to."""


@config_class(section="networks")
class NetworksConfig:
    """What metrics look through. The built-in world brings its own; elsewhere a metric without its network is
    left out."""

    judge: ModelName = ""
    """CLIP that judges, one that did not guide: a built-in name, a folder, a file or a hub id."""
    inception: ModelName = ""
    """Published Inception, of IS, FID, KID, SIFID, precision and recall: a file, or `fidelity` for the
    extra's download."""
    lpips: ModelName = ""
    """VGG16 or AlexNet of LPIPS: a file of torchvision, or `vgg` or `alex` for the extra's download."""
    lpips_layers: ModelName = ""
    """Linear layers of LPIPS, as its authors publish them (vgg.pth, alex.pth); empty: those of LPIPS 0.1,
    which are shipped."""
    identity: ModelName = ""
    """Face network: model_ir_se50.pth."""
    edges: ModelName = ""
    """Edge network HED, of structural consistency: network-bsds500.pytorch."""


@config_class
class EvaluateConfig:
    """What is measured, on which pictures, against what."""

    metrics: tuple[str, ...] = ()
    """Metrics to compute, such as fid kid truth.distance; empty: all for which there is what they need."""
    seeds: str = "2000-2255"
    """Seeds of the pictures of a run or generator: numbers and ranges. The same for source, target and
    truth."""
    truncation: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1 is the full variety, 0 the average picture. The truth of the built-in world belongs to 1."""
    source: ModelName | None = None
    """Pictures before the change: a generator, or a folder with the same file names; unset: the source of the
    run."""
    reference: Path | None = None
    """Folder of real pictures of the target domain; unset: the rendered truth, where it is known."""
    shots: Path | None = None
    """Folder of the few pictures that few-shot Intra-LPIPS assigns to; unset: without it."""
    labels: tuple[Annotated[str, pydantic.BeforeValidator(canonical_target)], ...] = ()
    """Source and target label, two texts; empty: those of the run."""
    size: Annotated[int | None, Field(ge=8)] = None
    """Side in pixels at which all pictures are compared; unset: that of the evaluated pictures."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Pictures seen at a time."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1`, `mps`."""
    networks: Annotated[NetworksConfig, tyro.conf.OmitArgPrefixes] = NetworksConfig()
    """What the metrics look through."""

    @pydantic.model_validator(mode="after")
    def _agree(self) -> "EvaluateConfig":
        if len(self.labels) not in (0, 2) or any(not label.strip() for label in self.labels):
            raise ValueError(f"labels must be two texts, source and target, got {list(self.labels)}.")
        return self


@config_class
class CompareConfig:
    """Which methods are compared on which targets, and how they are measured."""

    methods: tuple[str, ...] = ("nada", "ipl")
    """Methods, each METHOD, METHOD:FIELD=VALUE,FIELD=VALUE or NAME=METHOD:FIELD=VALUE, such as
    ipl:lambda_domain=10."""
    targets: tuple[Annotated[str, pydantic.BeforeValidator(canonical_target)], ...] = ()
    """Labels of the domains to move to; a hybrid is one text, "pencil sketch:0.6 + zombie:0.4". With pictures
    of the target (--pictures FOLDER; of several targets --pictures "shots/{target}") it may be empty."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    """Seeds of the runs: every method is run on every target once per seed."""
    out: Path = Path("runs/compare")
    """Folder for everything. The same command again goes on; more methods, targets or seeds add to what is
    there."""
    jobs: Annotated[int, Field(ge=1)] = 1
    """Runs side by side, each in a process with one thread. 1: one after the other, in this process, with all
    threads."""
    metrics: tuple[str, ...] = ()
    """Metrics to compute, as for `zeroshift evaluate`; empty: all for which there is what they need."""
    eval_seeds: str = "2000-2255"
    """Seeds of the pictures that are measured: numbers and ranges."""
    people: Annotated[int, Field(ge=1)] = 6
    """People shown on the page, of the seeds 0, 1, 2, ..."""
    page_only: bool = False
    """Write tables and page from the runs that are there, and run nothing."""
    votes: tuple[Path, ...] = ()
    """Files of votes that vote.html gave to download; the page then shows who was preferred."""
    networks: Annotated[NetworksConfig, tyro.conf.OmitArgPrefixes] = NetworksConfig()
    """What the metrics look through."""

    @property
    def evaluation(self) -> EvaluateConfig:
        """What is measured on every run."""
        return EvaluateConfig(metrics=self.metrics, seeds=self.eval_seeds, networks=self.networks)
