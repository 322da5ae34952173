"""Adapted generators put on the Hugging Face hub, with a model card that says what they are and where they
came from."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zeroshift import __version__
from zeroshift.config.schema import placeless
from zeroshift.errors import InputError
from zeroshift.files.checkpoints import export_pt, load_generator_file, save_generator, with_styles
from zeroshift.files.deltas import load_delta, save_delta
from zeroshift.files.hub import (
    Reference,
    endpoint,
    explained,
    is_hub_id,
    is_reference,
    megabytes,
    parse_reference,
    say,
)
from zeroshift.files.registry import CLIPS, is_built_in
from zeroshift.files.writing import write_bytes
from zeroshift.measure.report import CURVES, duration, evaluation_rows, evaluation_settings, truth_of_run
from zeroshift.training.run_folder import RunFolder

if TYPE_CHECKING:
    from jinja2 import Template

CARD = "README.md"
WEIGHTS = "generator.safetensors"
OTHER_WEIGHTS = "generator.pt"
SMALL_WEIGHTS = "delta.safetensors"
PICTURE = "before_after.png"
CONFIG = "config.json"

WORDS = ("source", "target", "context", "layers")
"""Options whose values are words of people, which may look like paths and are none."""


class HasFolder(Protocol):
    """A run: finished just now, or loaded from its folder."""

    @property
    def folder(self) -> RunFolder: ...


@dataclass(frozen=True)
class Published:
    """What was uploaded, or would be: sizes in bytes by file name. `url` is None for a dry run."""

    repository: str
    files: dict[str, int]
    licence_open: bool
    """Whether the licence of the source weights is still to be filled in."""
    folder: Path | None = None
    url: str | None = None


def push_to_hub(
    run: HasFolder | str | Path,
    repository: str,
    *,
    private: bool = False,
    rosinality: bool = False,
    dry_run: str | Path | None = None,
    overwrite: bool = False,
) -> Published:
    """Uploads the adapted generator of a finished run as "owner/name", with a model card, in one commit.

    `rosinality` adds the layout that other programs read. `dry_run` names a folder that gets the files
    instead. Folders of this computer are named nowhere. InputError where the run is not finished, there is no
    token, the name is not one of the hub, or the repository holds such files already and `overwrite` is not
    set.
    """
    folder = RunFolder.load(run) if isinstance(run, (str, Path)) else run.folder
    reference = _named(repository)
    if not folder.finished:
        raise InputError(
            f"the run in {folder.path} is not finished ({folder.status.state}); run the command that began "
            "it again."
        )
    licence_open = not is_built_in(folder.environment["source"]["name"])
    if dry_run is not None:
        place = Path(dry_run)
        if place.exists() and (not place.is_dir() or any(place.iterdir())) and not overwrite:
            raise InputError(
                f"{place} is there and not an empty folder; choose another one, or allow it with --overwrite."
            )
        return Published(repository, write_folder(folder, repository, place, rosinality), licence_open, place)
    token = _token(reference)
    with tempfile.TemporaryDirectory() as place:
        sizes = write_folder(folder, repository, Path(place), rosinality)
        return Published(
            repository,
            sizes,
            licence_open,
            None,
            _upload(reference, Path(place), sizes, token, private, overwrite),
        )


def write_folder(run: RunFolder, repository: str, place: Path, rosinality: bool = False) -> dict[str, int]:
    """Sizes by name of the files written to a folder: weights, card, config and picture of a finished run."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {place}: {error.strerror}; choose another folder.") from error
    generator, metadata = load_generator_file(run.generator_file)
    told = {
        "source_name": public_name(metadata.get("source_name", "")),
        "run": json.dumps(public_config(run)),
    }
    save_generator(place / WEIGHTS, generator, metadata | told)
    names = [CARD, CONFIG, WEIGHTS]
    if rosinality:
        export_pt(place / OTHER_WEIGHTS, with_styles(generator, str(run.path), "the layout rosinality"))
        names.append(OTHER_WEIGHTS)
    if run.delta_file().is_file():
        delta = load_delta(run.delta_file())
        save_delta(place / SMALL_WEIGHTS, delta.kind, delta.tensors, delta.metadata | told)
        names.append(SMALL_WEIGHTS)
    if (run.path / PICTURE).is_file():
        write_bytes(place / PICTURE, (run.path / PICTURE).read_bytes())
        names.append(PICTURE)
    write_bytes(
        place / CONFIG,
        (json.dumps({"version": __version__, "config": public_config(run)}, indent=2) + "\n").encode(),
    )
    write_bytes(
        place / CARD,
        card(run, repository, generator.image_size, names, generator.kind == "styles").encode(),
    )
    return {name: (place / name).stat().st_size for name in names}


def card(run: RunFolder, repository: str, size: int, names: Sequence[str], styles: bool = True) -> str:
    """The model card: README.md of the repository, with the metadata that the hub reads in front. `styles`:
    the generator has some."""
    config = run.config
    origin = run.environment["source"]
    world = truth_of_run(run)
    return _template().render(
        metadata=_hub_metadata(run),
        source=plain(config.source),
        target=plain(config.target_name),
        shots=len(run.environment.get("shots", [])),
        worded=bool(config.target),
        size=size,
        version=__version__,
        method=config.method.upper(),
        picture=PICTURE if PICTURE in names else "",
        truth=world is not None,
        truncation=f"{1.0 if world else config.run.truncation:g}",
        repository=repository,
        rosinality=OTHER_WEIGHTS in names,
        small=SMALL_WEIGHTS in names,
        styles=styles,
        built_in=is_built_in(origin["name"]),
        source_name=plain(public_name(origin["name"])),
        origin=_origin(run),
        numbers=_loss_rows(run.metrics(), hidden=() if config.mapper.lambda_source else ("domain_source",)),
        evaluation=[tuple(map(plain, row)) for row in evaluation_rows(run.evaluation)]
        if run.evaluation
        else [],
        evaluation_text=plain(evaluation_settings(run.evaluation)) if run.evaluation else "",
        config=json.dumps(public_config(run), indent=2),
    )


def plain(text: str) -> str:
    """Words that Markdown shows as they are."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def public_name(spec: str) -> str:
    """A model's name without the folders of this computer."""
    known = (
        is_built_in(spec)
        or spec in CLIPS
        or is_reference(spec)
        or (is_hub_id(spec) and not Path(spec).exists())
    )
    return spec if known else Path(spec).name


def public_config(run: RunFolder) -> dict[str, Any]:
    """The config of a run as plain values, without the folders of this computer."""
    return _without_folders(placeless(run.config))


def _without_folders(tree: Any, name: str = "") -> Any:
    if isinstance(tree, dict):
        return {key: _without_folders(value, key) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(value, name) for value in tree]
    return public_name(tree) if isinstance(tree, str) and name not in WORDS else tree


def _hub_metadata(run: RunFolder) -> str:
    """What the hub itself reads of a card."""
    from huggingface_hub import ModelCardData

    origin = run.environment["source"]["name"]
    config = run.config
    built_in = is_built_in(origin)
    metadata = ModelCardData(
        library_name="zeroshift",
        license="mit" if built_in else "other",
        license_name=None if built_in else "to-be-filled-in",
        base_model=parse_reference(origin).repository if is_reference(origin) else None,
        pipeline_tag="unconditional-image-generation",
        tags=["zeroshift", "stylegan2", "domain-adaptation", "zero-shot", config.method],
    )
    return metadata.to_yaml()


def _origin(run: RunFolder) -> list[tuple[str, str]]:
    """Rows that say what made the weights."""
    config = run.config
    made = run.environment
    steps = [f"{config.mapper.steps} of words"] if config.learns_words else []
    rows = [
        ("method", config.method.upper()),
        ("source label", plain(config.source)),
        *([("target label", plain(config.target))] if config.target else []),
        *([("pictures of the target", str(len(made["shots"])))] if made.get("shots") else []),
        ("source generator", plain(public_name(made["source"]["name"]))),
        ("its sha256", f"`{made['source']['sha256']}`"),
    ]
    for clip in made["clips"]:
        rows.append(("guiding CLIP", f"{plain(public_name(clip['name']))}, sha256 `{clip['sha256']}`"))
    rows += [
        ("steps", " and ".join([*steps, f"{config.train.steps} of the generator"])),
        ("seed", str(config.run.seed)),
    ]
    if seconds := sum(float(line.get("seconds", 0.0)) for line in run.metrics()):
        rows.append(
            ("training time", f"{duration(seconds)} on {plain(str(made.get('device', 'a computer')))}")
        )
    return [*rows, ("versions", f"zeroshift {made['zeroshift']}, torch {made['torch']}")]


def _loss_rows(lines: Sequence[Mapping[str, Any]], hidden: Sequence[str]) -> list[tuple[int, str, str, str]]:
    """Stage, series, and its means over the first and the last tenth of the steps; a term that is the whole
    loss is left out."""
    rows: list[tuple[int, str, str, str]] = []
    for stage in (1, 2):
        total: list[float] = []
        for name in (each for each in CURVES if each not in hidden):
            values = [
                float(line[name])
                for line in lines
                if line["stage"] == stage and isinstance(line.get(name), int | float)
            ]
            tenth = max(1, len(values) // 10)
            if values and values != total:
                first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
                rows.append((stage, CURVES[name].lower(), f"{first:.4f}", f"{last:.4f}"))
            total = total or values
    return rows


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    text = files("zeroshift").joinpath("app", "assets", "model_card.md.j2").read_text("utf-8")
    # The card is Markdown: words of people are made plain by `plain`.
    return Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    ).from_string(text)


def _named(repository: str) -> Reference:
    """The repository to push to."""
    reference = parse_reference(repository)
    if is_reference(repository) or reference.file or reference.revision:
        raise InputError(
            f'"{repository}" must be the plain name of a repository, owner/name; new weights go to its main '
            "branch."
        )
    return reference


def _token(reference: Reference) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise InputError(
            "offline mode is on (HF_HUB_OFFLINE), so nothing can be uploaded; unset it, or use --dry-run DIR."
        )
    token = get_token()
    if token is None:
        raise InputError(
            f"no access token for {endpoint()} was found, so {reference.repository} cannot be written; log "
            "in with "
            "`hf auth login` or set HF_TOKEN to a token that may write, or use --dry-run DIR."
        )
    return token


def _upload(
    reference: Reference, place: Path, sizes: Mapping[str, int], token: str, private: bool, overwrite: bool
) -> str:
    """Address of the repository, which holds the files now."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    name = reference.repository
    api = HfApi(token=token)
    with explained(reference, "did not accept"):
        try:
            there = api.model_info(name)
            taken = sorted({each.rfilename for each in there.siblings or ()} & set(sizes))
            if taken and not overwrite:
                raise InputError(
                    f"{name} holds {', '.join(taken)} already; --overwrite puts a new commit on top of them."
                )
            if private and not there.private:
                raise InputError(
                    f"{name} is there and public; make it private in its settings first, or leave out "
                    "--private."
                )
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            api.create_repo(name, private=private, exist_ok=True)
        say(f"uploading {len(sizes)} files ({megabytes(sum(sizes.values()))}) to {endpoint()}/{name}")
        additions = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=place / file) for file in sizes]
        api.create_commit(
            name, additions, commit_message=f"Upload a generator adapted with zeroshift {__version__}"
        )
    return f"{endpoint()}/{name}"
