"""Blind votes: a page that shows pairs of pictures without saying which method drew them, and the votes it
gives back.

vote.html is one file that needs no server: the same seed by two methods, in random order and on random
sides, with the source above. Its votes are downloaded as a file of their own. What is whose stands in
vote-key.json alone; pairs have opaque names that belong to the pictures, so votes stay valid when a
comparison grows.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from zeroshift import __version__
from zeroshift.comparison.statistics import WinRate, win_rate
from zeroshift.comparison.strips import TargetStrips
from zeroshift.errors import InputError
from zeroshift.files.images import GAP
from zeroshift.files.writing import write_bytes, write_json
from zeroshift.measure.report import template

SCHEMA = 1
"""Of files of votes and of their key."""
MAX_PAIRS = 60
"""Pairs on a page: about ten minutes."""
CHOICES = {"first": 1.0, "second": 0.0, "neither": 0.5}
"""What a vote may be, and what it counts for the first picture of a pair."""


def write_vote_page(strips: Sequence[TargetStrips], count: int, folder: Path) -> Path | None:
    """Path of vote.html, with the pairs of methods on the `count` pictures of every strip; None where no
    target has two methods."""
    pairs = _in_turn([_pairs_of(each, count) for each in strips])[:MAX_PAIRS]
    if not pairs:
        return None
    key_file = folder / "vote-key.json"
    key = _read_json(key_file)["pairs"] if key_file.is_file() else {}
    pictures = EmbeddedPictures()
    shown = []
    for pair in pairs:
        key[pair["name"]] = {name: pair[name] for name in ("first", "second", "target", "seed")}
        places = {name: pictures.add(path, pair["seed"]) for name, path in pair["files"].items()}
        shown.append({"name": pair["name"], "target": pair["target"], **places})
    write_json(key_file, {"schema": SCHEMA, "pairs": key})
    names = "".join(sorted(pair["name"] for pair in pairs))
    data = {
        "pairs": shown,
        "pictures": pictures.uris,
        "version": __version__,
        "study": hashlib.sha256(names.encode()).hexdigest()[:16],
    }
    path = folder / "vote.html"
    write_bytes(path, template("vote.html.j2").render(data=data).encode())
    return path


def _pairs_of(strips: TargetStrips, count: int) -> list[dict[str, Any]]:
    """Every two methods on every picture of one target, in an order that no one can guess from the
    methods."""
    found = []
    for one, other in combinations(strips.methods, 2):
        digests = sorted(
            (label, hashlib.sha256(path.read_bytes()).hexdigest()) for label, path in (one, other)
        )
        for seed in range(count):
            name = hashlib.sha256(f"{strips.target} {seed} {digests}".encode()).hexdigest()[:16]
            first, second = (one, other) if int(name, 16) % 2 else (other, one)
            files = {"first_picture": first[1], "second_picture": second[1]}
            if strips.source is not None:
                files["source_picture"] = strips.source
            whose = {"target": strips.target, "seed": seed, "first": first[0], "second": second[0]}
            found.append({"name": name, "files": files, **whose})
    return sorted(found, key=lambda pair: pair["name"])


def _in_turn(groups: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One of every target in turn, so that the first pairs hold all targets alike."""
    longest = max(map(len, groups), default=0)
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


class EmbeddedPictures:
    """Single pictures cut out of strips, each once, without what their files say about them."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        """PNG files as data URIs."""
        self.places: dict[tuple[Path, int], int] = {}

    def add(self, path: Path, seed: int) -> int:
        """Place in `uris` of the picture of a seed in a strip."""
        from PIL import Image

        if (path, seed) not in self.places:
            with Image.open(path) as strip:
                side = strip.height - 2 * GAP
                left = GAP + seed * (side + GAP)
                picture = Image.new("RGB", (side, side))
                picture.paste(strip.convert("RGB").crop((left, GAP, left + side, GAP + side)))
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            self.places[path, seed] = len(self.uris)
            self.uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
        return self.places[path, seed]


# Votes.


def read_votes(files: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Votes of the files, each with `first` and `second` (labels of methods), `target`, `seed` and `worth`,
    what it counts for the first.

    InputError where a file cannot be read, or holds votes on pairs that the comparison in `folder` never
    showed.
    """
    if not files:
        return []
    if not (folder / "vote-key.json").is_file():
        raise InputError(
            f"{folder} has no vote-key.json, which says whose the pictures were; give the --out of the "
            "comparison."
        )
    key = _read_json(folder / "vote-key.json")["pairs"]
    votes = []
    for path in files:
        for name, choice in _read_json(path)["votes"].items():
            if name not in key:
                raise InputError(
                    f"{path} has votes on other pictures than those of {folder} (pair {name!r})."
                )
            if not isinstance(choice, str) or choice not in CHOICES:
                raise InputError(f"{path} has the vote {choice!r}; votes are {', '.join(CHOICES)}.")
            votes.append({**key[name], "worth": CHOICES[choice]})
    return votes


def _read_json(path: Path) -> dict[str, Any]:
    """A file of votes, or the key to them; InputError where it is neither."""
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({error}); it should be a file that vote.html gave to download."
        ) from error
    kinds = [tree.get(name) for name in ("votes", "pairs")] if isinstance(tree, dict) else []
    if not any(isinstance(kind, dict) for kind in kinds) or tree.get("schema") != SCHEMA:
        raise InputError(f"{path} is no file of votes; vote.html gives them to download.")
    return tree


def preferences(votes: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Per target, and over all of them, the share of votes for the later of every two methods over the
    earlier.

    Rows of `target` and `shares`, a list of (second label, first label, WinRate or None); the last row is
    over all targets.
    """
    pairs = [(second, first) for first, second in combinations(labels, 2)]
    worth: dict[tuple[str, str], dict[str, list[float]]] = {pair: {} for pair in pairs}
    for vote in votes:
        for pair, value in (
            ((vote["first"], vote["second"]), vote["worth"]),
            ((vote["second"], vote["first"]), 1 - vote["worth"]),
        ):
            if pair in worth:
                worth[pair].setdefault(vote["target"], []).append(value)
    targets = list(dict.fromkeys(vote["target"] for vote in votes))

    def row(name: str, chosen: Sequence[str]) -> dict[str, Any]:
        found: list[tuple[str, str, WinRate | None]] = []
        for pair in pairs:
            groups = [worth[pair][target] for target in chosen if target in worth[pair]]
            found.append((*pair, win_rate(groups) if groups else None))
        return {"target": name, "shares": found}

    rows = [row(target, [target]) for target in targets]
    return [*rows, row("all", targets)] if len(rows) > 1 else rows
