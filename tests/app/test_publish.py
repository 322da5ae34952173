"""Pushing an adapted generator: what is uploaded, what the card says, and what is refused, with a hub on this
computer."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

import hubserver
import tiny
import zeroshift
from hubserver import Repository
from zeroshift.app import cli, publish
from zeroshift.errors import InputError
from zeroshift.files import checkpoints
from zeroshift.files.deltas import load_delta
from zeroshift.methods.adapt import AdaptRun

TARGET = "a *sketch* | <person>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """A finished run on a generator file that lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("secret")
    checkpoints.save_generator(folder / "faces.safetensors", tiny.generator())
    given = tiny.given(generator=None)
    settings = {"steps": 12, "batch": 2, "lr": 0.01}
    return tiny.run(
        folder / "run",
        state=given,
        generator=str(folder / "faces.safetensors"),
        target=TARGET,
        train=settings,
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hubserver.Hub]:
    with hubserver.running(monkeypatch, tmp_path / "cache") as made:
        monkeypatch.setenv("HF_TOKEN", hubserver.TOKEN)
        yield made


def test_a_pushed_generator_comes_back_from_the_hub_with_equal_weights(
    run: AdaptRun, server: hubserver.Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    done = zeroshift.push_to_hub(run, "ann/sketch")
    repository = server.repositories["ann/sketch"]
    assert done.url == f"{server.address}/ann/sketch" and not repository.facts["private"]
    assert {name: len(content) for name, content in repository.revisions["main"].items()} == done.files
    assert len(repository.messages) == 1 and "zeroshift" in repository.messages[0]
    assert f"to {server.address}/ann/sketch" in capsys.readouterr().err
    loaded = zeroshift.load("hf:ann/sketch").state()
    ours = run.generator.state()
    assert loaded.keys() == ours.keys() and all(torch.equal(loaded[name], ours[name]) for name in ours)


def test_both_layouts_are_pushed_on_request_and_ours_is_the_one_that_is_loaded(
    run: AdaptRun, server: hubserver.Hub
) -> None:
    done = zeroshift.push_to_hub(run.folder.path, "ann/sketch", private=True, rosinality=True)
    assert server.repositories["ann/sketch"].facts["private"] and "generator.pt" in done.files
    content = torch.load(
        io.BytesIO(server.repositories["ann/sketch"].revisions["main"]["generator.pt"]), weights_only=True
    )
    assert torch.equal(content["latent_avg"], run.generator.latent_avg.cpu())
    assert zeroshift.load_generator("hf:ann/sketch")[1].path.name == "generator.safetensors"


def test_small_parameters_are_pushed_beside_the_generator_that_they_make(
    tmp_path: Path, server: hubserver.Hub
) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    checkpoints.save_generator(folder / "faces.safetensors", tiny.generator())
    run = tiny.run(
        folder / "run",
        state=tiny.given(generator=None),
        generator=str(folder / "faces.safetensors"),
        train={"steps": 2, "batch": 2, "parameters": {"kind": "affine"}},
    )
    done = zeroshift.push_to_hub(run, "ann/small")
    held = server.repositories["ann/small"].revisions["main"]
    pushed = tmp_path / "delta.safetensors"
    pushed.write_bytes(held["delta.safetensors"])
    ours, theirs = load_delta(run.folder.delta_file()), load_delta(pushed)
    assert "delta.safetensors" in done.files and b"kilobytes" in held["README.md"]
    assert ours.kind == theirs.kind and ours.source_sha256 == theirs.source_sha256
    assert all(torch.equal(each, theirs.tensors[name]) for name, each in ours.tensors.items())
    assert theirs.source_name == "faces.safetensors" and str(folder).encode() not in pushed.read_bytes()
    assert zeroshift.load_generator("hf:ann/small")[1].path.name == "generator.safetensors"


def test_the_card_says_what_was_asked_and_where_the_weights_came_from(run: AdaptRun, tmp_path: Path) -> None:
    zeroshift.push_to_hub(run, "ann/sketch", dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    facts = ModelCard(text).data.to_dict()
    assert facts["library_name"] == "zeroshift" and facts["license"] == "other"
    assert {"zeroshift", "stylegan2", "ipl"} <= set(facts["tags"])
    assert r"# photo to a \*sketch\* \| \<person\>" in text and "<person>" not in text.split("## Config")[0]
    assert "**To be filled in.**" in text and "changed copy of faces.safetensors" in text
    origin = run.folder.environment["source"]["sha256"]
    assert f"`{origin}`" in text and 'zs.load("hf:ann/sketch")' in text and "](before_after.png)" in text
    config = json.loads(text.split("```json")[1].split("```")[0])
    assert config["train"]["steps"] == 12 and config["target"] == TARGET
    assert re.search(r"\| 2 \| loss \| \d\.\d{4} \| \d\.\d{4} \|", text)


def test_the_numbers_of_the_card_are_means_of_the_logged_tenths(run: AdaptRun, tmp_path: Path) -> None:
    lines = [
        {"stage": 2, "step": step, "loss": float(step), "direction": float(step), "global_clip": 1.0}
        for step in range(20)
    ]
    assert publish._loss_rows(lines, ()) == [
        (2, "loss", "0.5000", "18.5000"),
        (2, "global loss", "1.0000", "1.0000"),
    ]


def test_a_dry_run_writes_the_folder_and_asks_the_hub_for_nothing(
    run: AdaptRun, server: hubserver.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["push", str(run.folder.path), "ann/sketch", "--dry-run", str(tmp_path / "out"), "--rosinality"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    names = {"README.md", "config.json", "generator.safetensors", "generator.pt", "before_after.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names and all(
        name in said for name in names
    )
    assert server.requests == [] and "Nothing was uploaded" in said and "licence" in said
    with Image.open(tmp_path / "out" / "before_after.png") as picture:
        assert picture.width > 100
    assert cli.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == names


def test_no_folder_of_this_computer_is_published(run: AdaptRun, tmp_path: Path) -> None:
    zeroshift.push_to_hub(run, "ann/sketch", dry_run=tmp_path / "out")
    place = str(run.folder.path.parent)
    assert place in (run.folder.path / "config.json").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir() if place.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("portraits", "portraits"),
        ("hf:ann/faces@v1", "hf:ann/faces@v1"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("/data/ann/ffhq.pt", "ffhq.pt"),
        ("models/ffhq.pt", "ffhq.pt"),
        ("~/models/clip", "clip"),
    ],
)
def test_a_model_is_named_without_its_folders(spec: str, shown: str) -> None:
    assert publish.public_name(spec) == shown


def test_the_built_in_generator_brings_its_own_licence(tmp_path: Path) -> None:
    made = tiny.run(tmp_path / "run", method="nada")
    path = made.folder.path / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"source": {"name": "portraits", "sha256": "0" * 64}}))
    done = zeroshift.push_to_hub(made, "ann/sketch", dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        ModelCard(text).data.to_dict()["license"] == "mit"
        and "To be filled in" not in text
        and not done.licence_open
    )


def test_files_on_the_hub_are_replaced_only_when_allowed(run: AdaptRun, server: hubserver.Hub) -> None:
    mine = {"README.md": b"my own words", ".gitattributes": b""}
    server.repositories["ann/sketch"] = Repository(mine)
    with pytest.raises(InputError, match=r"holds README.md already; --overwrite"):
        zeroshift.push_to_hub(run, "ann/sketch")
    assert server.repositories["ann/sketch"].revisions["main"] == mine
    zeroshift.push_to_hub(run, "ann/sketch", overwrite=True)
    files = server.repositories["ann/sketch"].revisions["main"]
    assert (
        files["README.md"] != mine["README.md"]
        and ".gitattributes" in files
        and "generator.safetensors" in files
    )


def test_a_public_repository_is_not_taken_for_a_private_one(run: AdaptRun, server: hubserver.Hub) -> None:
    server.repositories["ann/sketch"] = Repository()
    with pytest.raises(InputError, match="is there and public"):
        zeroshift.push_to_hub(run, "ann/sketch", private=True)
    assert server.repositories["ann/sketch"].revisions["main"] == {}


def test_without_a_token_or_with_a_refused_one_nothing_is_uploaded_and_the_way_out_is_named(
    run: AdaptRun, server: hubserver.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main(["push", str(run.folder.path), "ann/sketch"]) == 2
    said = capsys.readouterr().err
    assert "no access token" in said and "hf auth login" in said and server.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_anotherToken")
    assert cli.main(["push", str(run.folder.path), "ann/sketch"]) == 2
    assert (
        "did not accept hf:ann/sketch: your token does not allow it, or there is none"
        in capsys.readouterr().err
    )
    assert server.repositories == {}


def test_offline_nothing_is_uploaded_and_a_dry_run_is_offered(
    run: AdaptRun, server: hubserver.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="offline mode is on .*--dry-run"):
        zeroshift.push_to_hub(run, "ann/sketch")
    assert server.requests == []


@pytest.mark.parametrize("name", ["sketch", "ann/sketch/file", "ann/sketch@v1", "hf:ann/sketch", "ann/"])
def test_a_name_that_is_none_of_a_repository_is_refused(name: str, run: AdaptRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="owner/name"):
        zeroshift.push_to_hub(run, name, dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_and_a_folder_without_a_run_are_refused(
    run: AdaptRun, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.json", "environment.json"):
        (begun / name).write_bytes((run.folder.path / name).read_bytes())
    with pytest.raises(InputError, match="not finished"):
        zeroshift.push_to_hub(begun, "ann/sketch", dry_run=tmp_path / "out")
    with pytest.raises(InputError, match="not a run folder"):
        zeroshift.push_to_hub(tmp_path, "ann/sketch", dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()
