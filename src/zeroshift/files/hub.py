"""Models on the Hugging Face hub, by reference: hf:owner/name, hf:owner/name/file,
hf:owner/name@revision/file.

What lies in the hub's cache is used; what does not is downloaded, announced on standard error with its size
and shown with its progress. In offline mode (HF_HUB_OFFLINE) and without a connection the cache alone
answers. Heavy imports happen when needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from zeroshift.errors import InputError

PREFIX = "hf:"
WEIGHTS = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin")
"""Endings of files that may hold a model. What a file holds is decided by its content."""

HEAD_BYTES = 1 << 18
"""Length of the beginning that tells what a file holds: names of tensors come before tensors in every
format."""

MARKS = (
    b"zeroshift.stylegan2.generator",
    b"to_rgb1.conv.weight",
    b"synthesis.b4.const",
    b"SynthesisNetwork",
    b"dnnlib.tflib.network",
    b"zeroshift.diffusion.generator",
    b"temb.dense.0.weight",
    b"time_embed.0.weight",
)
"""What is written in the beginning of a file with a generator: StyleGAN2 of ours, rosinality's and NVIDIA's;
diffusion of ours, DDPM's and guided-diffusion's."""

MAX_PEEKS = 16
"""Files of one repository whose beginnings are looked at."""

_PART = r"[A-Za-z0-9][\w.-]*"
_PLAIN = re.compile(rf"{_PART}/{_PART}(@.+)?")
_FORM = re.compile(rf"({_PART}/{_PART})(?:@(refs/\w+/[^/@]+|[^/@]+))?(?:/([^@]+))?(?:@(.+))?")


@dataclass(frozen=True)
class Reference:
    """A repository of the hub, one file of it if `file` is given, at a branch, tag or commit if `revision` is
    given."""

    repository: str
    file: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{self.file and '/' + self.file}"


def is_reference(spec: str | Path) -> bool:
    """Whether a model is named as one of the hub."""
    return isinstance(spec, str) and spec.startswith(PREFIX)


def is_hub_id(name: str) -> bool:
    """Whether a name has the plain form owner/name of the hub, ends in no suffix of weights, and owner is no
    folder here."""
    return (
        _PLAIN.fullmatch(name) is not None and not name.endswith(WEIGHTS) and not Path(name).parent.is_dir()
    )


def parse_reference(text: str) -> Reference:
    """The reference of "hf:owner/name[/file]" or "owner/name[/file]", with "@revision" behind the name or at
    the end."""
    match = _FORM.fullmatch(text.removeprefix(PREFIX).removeprefix("//"))
    if match is None or (match[2] and match[4]):
        raise InputError(
            f'"{text}" is no reference to the hub; write hf:owner/name, hf:owner/name/file or '
            "hf:owner/name@revision/file."
        )
    return Reference(match[1], match[3] or "", match[2] or match[4])


def fetch_generator(reference: Reference, preferred: Sequence[str] = ()) -> Path:
    """Local path of the generator file that a reference names: its file, or the one generator among the
    repository's files. A repository of diffusers is a folder.

    Where several files hold a generator, the first of the `preferred` names among them is taken. InputError
    names the choices where that leaves a doubt, and says what is the matter where nothing can be found or
    reached.
    """
    with explained(reference):
        if reference.file:
            return _fetch([reference])[0]
        files, peek = _listed(reference)
        if unet := unet_files(list(files)):
            return _fetch([replace(reference, file=name) for name in unet])[0].parent
        weights = sorted(name for name in files if name.endswith(WEIGHTS))
        if not weights:
            raise InputError(f"{reference} holds no file of weights ({', '.join(WEIGHTS)}).")
        if len(weights) == 1:
            return _fetch([replace(reference, file=weights[0])])[0]
        found = []
        if len(weights) <= MAX_PEEKS:
            say(f"looking for the generator among {len(weights)} files of {reference}")
            found = [name for name in weights if holds_generator(peek(name))]
        choices = [name for name in preferred if name in found] or found
        if len(choices) == 1 or (choices and choices[0] in preferred):
            return _fetch([replace(reference, file=choices[0])])[0]
        listed = [f"  {replace(reference, file=name)}  {megabytes(files[name])}" for name in found or weights]
        count = (
            f"{len(found)} files that hold a generator"
            if found
            else f"{len(weights)} files that may hold a generator"
        )
        raise InputError("\n".join([f"{reference} has {count}; name one of them:", *listed]))


def unet_files(names: list[str]) -> list[str]:
    """Files of a repository that a U-Net of diffusers needs, one of the top folder first; empty where there
    is none."""
    settings = [
        name for name in ("model_index.json", "config.json", "scheduler_config.json") if name in names
    ]
    settings += [name for name in ("unet/config.json", "scheduler/scheduler_config.json") if name in names]
    inside = "unet/" if "unet/config.json" in names else ""
    weights = [f"{inside}diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")]
    found = [name for name in weights if name in names][:1]
    return [*settings, *found] if found and settings and "/" not in settings[0] else []


def fetch_folder(reference: Reference, choose: Callable[[list[str]], Iterable[str]]) -> Path:
    """Local folder with those files of a repository that `choose` takes from their names."""
    with explained(reference):
        files, _ = _listed(reference)
        names = list(choose(sorted(files)))
        if not names:
            raise InputError(f"{reference} holds none of the files that are needed.")
        path = _fetch([replace(reference, file=name) for name in names])[0]
        return path.parents[names[0].count("/")]


def holds_generator(head: bytes) -> bool:
    """Whether a file that begins with these bytes is likely to hold a generator."""
    return any(mark in head for mark in MARKS)


def endpoint() -> str:
    """Address of the hub: huggingface.co, or HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _fetch(references: Sequence[Reference]) -> list[Path]:
    """Local paths of files, downloaded where the cache does not have them."""
    from huggingface_hub import hf_hub_download

    def options(item: Reference) -> dict[str, str | None]:
        return {"repo_id": item.repository, "filename": item.file, "revision": item.revision}

    found = [(item, hf_hub_download(**options(item), dry_run=True)) for item in references]  # pyright: ignore
    missing = [(item, info) for item, info in found if info.will_download]
    if missing:
        names = missing[0][0].file if len(missing) == 1 else f"{len(missing)} files"
        size = megabytes(sum(info.file_size or 0 for _, info in missing))
        say(f"downloading {names} ({size}) of {missing[0][0].repository} from {endpoint()}")
    return [
        Path(hf_hub_download(**options(item))) if info.will_download else Path(info.local_path)  # pyright: ignore
        for item, info in found
    ]


def _listed(reference: Reference) -> tuple[dict[str, int], Callable[[str], bytes]]:
    """Files of a repository with their sizes, and what reads the beginning of one: from the hub, else from
    the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    cached = _cached(reference)
    if is_offline_mode():
        if cached is None:
            raise LocalEntryNotFoundError(str(reference))
    else:
        try:
            info = HfApi().model_info(reference.repository, revision=reference.revision, files_metadata=True)
            sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
            return sizes, lambda name: _remote_head(replace(reference, file=name))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except _network_errors():
            if cached is None:
                raise
            say(f"{endpoint()} did not answer; using what is in the cache of {reference}")
    folder = cached
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    return sizes, lambda name: _local_head(folder / name)


def _cached(reference: Reference) -> Path | None:
    """Folder of the cache with the files of a repository that were downloaded so far."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(reference.repository, revision=reference.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError as error:
        incomplete = getattr(
            error, "snapshot_path", None
        )  # some releases insist on every file of the repository
        return Path(incomplete) if incomplete else None


def _local_head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def _remote_head(reference: Reference) -> bytes:
    """The first bytes of a file on the hub; no more is transferred, even where the server would send the
    whole file."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(reference.repository, reference.file, revision=reference.revision)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{HEAD_BYTES - 1}"}
    head = b""
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(HEAD_BYTES):
            head += chunk
            if len(head) >= HEAD_BYTES:
                break
    return head[:HEAD_BYTES]


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where there is no connection or no good answer."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the error of the HTTP library, whose name differs between releases.
    return (HfHubHTTPError.__bases__[0], OSError)


@contextmanager
def explained(reference: Reference, failed: str = "could not deliver") -> Iterator[None]:
    """Turns what the hub's client raises into one InputError that says what to try. `failed` says what the
    hub did."""
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = reference.repository
    where = endpoint()
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{repository} is gated: accept its terms at {where}/{repository}, log in with `hf auth login`, "
            "and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{where} has no repository {repository}, or it is private; check the name, or log in with `hf "
            "auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{repository} has no revision {reference.revision}; give a branch, a tag or a commit."
        ) from error
    except LocalEntryNotFoundError as error:
        if is_offline_mode():
            reason = "offline mode is on (HF_HUB_OFFLINE); unset it to download"
        else:
            reason = f"{where} could not be reached; check the connection"
        raise InputError(
            f"{reference} is not in the cache of this computer, and {reason}, or give a local file."
        ) from error
    except EntryNotFoundError as error:
        raise InputError(
            f"{repository} has no file {reference.file}; give {PREFIX}{repository} to see what it has."
        ) from error
    except HFValidationError as error:
        raise InputError(f"{reference} is no valid name on the hub: {_first_line(error)}") from error
    except _network_errors() as error:
        answer = getattr(error, "response", None)
        if answer is None:
            reason = f"could not be reached for {reference} ({_first_line(error)}); check the connection."
        elif answer.status_code in (401, 403):
            reason = f"{failed} {reference}: your token does not allow it, or there is none; "
            reason += "log in with `hf auth login`."
        else:
            reason = f"{failed} {reference}: {_first_line(error)}"
        raise InputError(f"{where} {reason}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def say(text: str) -> None:
    """Tells the person at the terminal, below or above running bars. A download is never silent, whoever
    began it."""
    from huggingface_hub.utils import tqdm

    tqdm.write(text, file=sys.stderr)


def megabytes(size: int) -> str:
    """A number of bytes as a person reads it."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
