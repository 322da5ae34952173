"""Blind votes: a page that shows pairs of pictures without saying which method drew them, and the votes it
gives back.

vote.html is one file that needs no server: the same person by two methods, in random order and on random
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
from zeroshift.comparison.statistics import Share, share
from zeroshift.errors import InputError
from zeroshift.files.images import GAP
from zeroshift.files.writing import write_bytes, write_json
from zeroshift.measure.report import template

SCHEMA = 1
MOST = 60
"""Pairs on a page: about ten minutes."""
WORTH = {"first": 1.0, "second": 0.0, "neither": 0.5}
"""What a vote counts for the first picture of a pair."""


def write_ballot(wall: Sequence[Mapping[str, Any]], people: int, folder: Path) -> Path | None:
    """Path of vote.html for the strips of pictures that `wall.strips` found; None where no target has two
    methods."""
    pairs = _spread([_pairs(item, people) for item in wall])[:MOST]
    if not pairs:
        return None
    key_file, pictures = folder / "vote-key.json", Pictures()
    key = _read(key_file)["pairs"] if key_file.is_file() else {}
    shown = []
    for pair in pairs:
        key[pair["name"]] = {name: pair[name] for name in ("first", "second", "target", "person")}
        uris = {name: pictures.add(path, pair["person"]) for name, path in pair["files"].items()}
        shown.append({"name": pair["name"], "target": pair["target"], **uris})
    write_json(key_file, {"schema": SCHEMA, "pairs": key})
    data = {"pairs": shown, "pictures": pictures.uris, "version": __version__}
    data["study"] = hashlib.sha256("".join(sorted(pair["name"] for pair in pairs)).encode()).hexdigest()[:16]
    path = folder / "vote.html"
    write_bytes(path, template("vote.html.j2").render(data=data).encode())
    return path


def _pairs(item: Mapping[str, Any], people: int) -> list[dict[str, Any]]:
    """Every two methods on every person of one target, in an order that no one can guess from the methods."""
    found = []
    for (one, first), (other, second) in combinations(item["rows"], 2):
        digests = {
            label: hashlib.sha256(path.read_bytes()).hexdigest()
            for label, path in ((one, first), (other, second))
        }
        for person in range(people):
            name = hashlib.sha256(
                f"{item['target']} {person} {sorted(digests.items())}".encode()
            ).hexdigest()[:16]
            sides = [(one, first), (other, second)] if int(name, 16) % 2 else [(other, second), (one, first)]
            files = {"first_picture": sides[0][1], "second_picture": sides[1][1]}
            if item["source"] is not None:
                files["source_picture"] = item["source"]
            labels = {"first": sides[0][0], "second": sides[1][0]}
            found.append({"name": name, "target": item["target"], "person": person, "files": files, **labels})
    return sorted(found, key=lambda pair: pair["name"])


def _spread(groups: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One of every target in turn, so that the first pairs hold all targets alike."""
    longest = max(map(len, groups), default=0)
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


class Pictures:
    """Single pictures cut out of strips, each once, without what their files say about them."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.places: dict[tuple[Path, int], int] = {}

    def add(self, path: Path, person: int) -> int:
        """Place in `uris` of the picture of a person in a strip."""
        from PIL import Image

        if (path, person) not in self.places:
            with Image.open(path) as strip:
                side = strip.height - 2 * GAP
                left = GAP + person * (side + GAP)
                picture, buffer = Image.new("RGB", (side, side)), io.BytesIO()
                picture.paste(strip.convert("RGB").crop((left, GAP, left + side, GAP + side)))
            picture.save(buffer, "PNG")
            self.places[path, person] = len(self.uris)
            self.uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
        return self.places[path, person]


# Votes.


def read_votes(files: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Votes of the files: first and second method, target, and what the vote is worth for the first.

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
    key, votes = _read(folder / "vote-key.json")["pairs"], []
    for path in files:
        for name, choice in _read(path)["votes"].items():
            if name not in key:
                raise InputError(
                    f"{path} has votes on other pictures than those of {folder} (pair {name!r})."
                )
            if not isinstance(choice, str) or choice not in WORTH:
                raise InputError(f"{path} has the vote {choice!r}; votes are {', '.join(WORTH)}.")
            votes.append({**key[name], "worth": WORTH[choice]})
    return votes


def _read(path: Path) -> dict[str, Any]:
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

    Rows of `target` and `shares`, a list of (second label, first label, Share or None); the last row is over
    all targets.
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
        found: list[tuple[str, str, Share | None]] = []
        for pair in pairs:
            groups = [worth[pair][target] for target in chosen if target in worth[pair]]
            found.append((*pair, share(groups) if groups else None))
        return {"target": name, "shares": found}

    rows = [row(target, [target]) for target in targets]
    return [*rows, row("all", targets)] if len(rows) > 1 else rows
