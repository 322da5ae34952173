"""References to the hub: found, chosen by content, downloaded aloud and once, from a hub that runs on this
computer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import hubserver
import tiny
import zeroshift
from hubserver import Repository, commit_of
from zeroshift.app import cli
from zeroshift.errors import InputError
from zeroshift.files import checkpoints, hub, registry
from zeroshift.files.clips import save_clip
from zeroshift.files.hub import Reference
from zeroshift.files.writing import file_sha256
from zeroshift.models.discriminator import StyleGAN2Discriminator


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hubserver.Hub]:
    with hubserver.running(monkeypatch, tmp_path / "cache") as made:
        yield made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of generator files in several layouts, and of files that hold none."""
    folder = tmp_path_factory.mktemp("weights")
    made = tiny.generator(5)
    checkpoints.save_generator(folder / "ours", made)
    checkpoints.export_pt(folder / "foreign", made)
    torch.save(StyleGAN2Discriminator(made.config).state_dict(), folder / "other")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:ann/faces", Reference("ann/faces")),
        ("ann/faces", Reference("ann/faces")),
        ("hf:ann/faces/sub/g.pt", Reference("ann/faces", "sub/g.pt")),
        ("hf:ann/faces@v1/g.pt", Reference("ann/faces", "g.pt", "v1")),
        ("hf:ann/faces/g.pt@v1", Reference("ann/faces", "g.pt", "v1")),
        ("hf:ann/faces@refs/pr/3", Reference("ann/faces", "", "refs/pr/3")),
        ("hf://ann/faces@refs/pr/3/g.pt", Reference("ann/faces", "g.pt", "refs/pr/3")),
        ("ann/faces@v1", Reference("ann/faces", "", "v1")),
    ],
)
def test_a_reference_is_read_and_written_back(text: str, expected: Reference) -> None:
    assert hub.parse_reference(text) == expected
    assert hub.parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["hf:", "hf:faces", "hf:/faces", "hf:ann/", "hf:ann/faces@v1/g.pt@v2", "hf:ann/faces@"]
)
def test_what_is_no_reference_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(InputError, match="hf:owner/name@revision/file"):
        hub.parse_reference(text)


def test_a_generator_is_downloaded_aloud_and_once(
    server: hubserver.Hub, weights: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repositories["ann/faces"] = Repository({"README.md": b"x", "network.bin": weights["foreign"]})
    loaded, info = registry.load_generator("hf:ann/faces")
    said = capsys.readouterr()
    assert (
        f"downloading network.bin ({hub.megabytes(len(weights['foreign']))}) of ann/faces from "
        f"{server.address}" in said.err
    )
    assert states_equal(loaded, tiny.generator(5)) and said.out == ""
    path = tmp_path / "foreign"
    path.write_bytes(weights["foreign"])
    assert info.sha256 == file_sha256(path) and info.name == "hf:ann/faces"
    registry.load_generator("hf:ann/faces")
    assert "downloading" not in capsys.readouterr().err
    assert len(server.asked("GET", "/resolve/")) == 1


def test_the_one_generator_among_several_files_is_found_by_content_without_downloading_the_others(
    server: hubserver.Hub, weights: dict[str, bytes]
) -> None:
    large = weights["other"] + bytes(8_000_000)
    files = {
        "discriminator.pt": weights["other"],
        "generator.pt.bin": large,
        "x/renamed.ckpt": weights["foreign"],
    }
    server.repositories["ann/faces"] = Repository(files)
    path = registry.find_generator("hf:ann/faces")
    assert path.name == "renamed.ckpt" and path.read_bytes() == weights["foreign"]
    assert server.sent < 1_000_000


def test_two_generators_are_a_choice_unless_one_has_a_usual_name(
    server: hubserver.Hub, weights: dict[str, bytes]
) -> None:
    files = {"a.pt": weights["foreign"], "b.safetensors": weights["ours"], "c.pt": weights["other"]}
    server.repositories["ann/faces"] = Repository(files)
    with pytest.raises(InputError) as caught:
        registry.find_generator("hf:ann/faces")
    assert "hf:ann/faces/a.pt" in str(caught.value) and "hf:ann/faces/b.safetensors" in str(caught.value)
    assert "c.pt" not in str(caught.value)
    server.repositories["ann/faces"].revisions["main"]["generator.safetensors"] = weights["ours"]
    assert registry.find_generator("ann/faces").name == "generator.safetensors"
    assert registry.find_generator("hf:ann/faces/a.pt").read_bytes() == weights["foreign"]


def test_a_revision_is_taken_by_tag_and_by_commit(server: hubserver.Hub, weights: dict[str, bytes]) -> None:
    repository = server.repositories["ann/faces"] = Repository({"g.pt": weights["foreign"]})
    repository.revisions["v1"] = {"g.pt": weights["ours"]}
    commit = commit_of(repository.revisions["v1"])
    assert registry.find_generator("hf:ann/faces").read_bytes() == weights["foreign"]
    for spec in (
        "hf:ann/faces@v1",
        f"hf:ann/faces@{commit}",
        "hf:ann/faces@v1/g.pt",
        "hf:ann/faces/g.pt@v1",
        "ann/faces@v1",
    ):
        assert registry.find_generator(spec).read_bytes() == weights["ours"]
    with pytest.raises(InputError, match="no revision v2"):
        registry.find_generator("hf:ann/faces@v2")


def test_a_file_without_a_generator_is_refused_by_what_it_holds(
    server: hubserver.Hub, weights: dict[str, bytes]
) -> None:
    server.repositories["ann/faces"] = Repository({"generator.pt": weights["other"], "notes.txt": b"x"})
    with pytest.raises(InputError, match="discriminator, not a generator"):
        registry.load_generator("hf:ann/faces")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hf:ann/nothing", "has no repository ann/nothing, or it is private"),
        ("ann/nothing", "no built-in name"),
        ("hf:ann/faces/gone.pt", "has no file gone.pt"),
        ("hf:ann/words", "holds no file of weights"),
        ("hf:ann/gated/g.pt", "accept its terms"),
        ("hf:ann/" + "x" * 120, "no valid name"),
        ("hf:ann", "is no reference to the hub"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_sentence(
    server: hubserver.Hub, weights: dict[str, bytes], spec: str, says: str
) -> None:
    server.repositories["ann/faces"] = Repository({"g.pt": weights["ours"]})
    server.repositories["ann/words"] = Repository({"README.md": b"x"})
    server.repositories["ann/gated"] = Repository({"g.pt": weights["ours"]}, gated="auto")
    with pytest.raises(InputError, match=says) as caught:
        registry.load_generator(spec)
    assert "Traceback" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_offline_the_cache_answers_and_nothing_is_asked_for(
    server: hubserver.Hub,
    weights: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.repositories["ann/faces"] = Repository({"g.pt": weights["ours"], "other.pt": weights["other"]})
    online = registry.load_generator("hf:ann/faces/g.pt")[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    capsys.readouterr()
    for spec in ("hf:ann/faces/g.pt", "hf:ann/faces", "ann/faces"):
        assert registry.load_generator(spec)[1].sha256 == online.sha256
    assert server.requests == [] and "downloading" not in capsys.readouterr().err
    for spec in ("hf:ann/faces/other.pt", "hf:ann/faces@v7", "hf:bob/unseen"):
        with pytest.raises(
            InputError, match=r"not in the cache of this computer, and offline mode is on \(HF_HUB_OFFLINE\)"
        ):
            registry.load_generator(spec)


def test_a_cache_laid_out_by_hand_is_read_offline(
    weights: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "a" * 40
    repository = tmp_path / "models--ann--faces"
    (repository / "snapshots" / commit / "sub").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "sub" / "g.pkl").write_bytes(weights["ours"])
    for spec in ("hf:ann/faces", "hf:ann/faces/sub/g.pkl", f"hf:ann/faces@{commit}"):
        assert registry.find_generator(spec).read_bytes() == weights["ours"]


def test_without_a_connection_the_cache_answers_and_says_so(
    server: hubserver.Hub,
    weights: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.repositories["ann/faces"] = Repository({"g.pt": weights["ours"]})
    registry.find_generator("hf:ann/faces")
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(
            constants, name, getattr(constants, name).replace(server.address, "http://127.0.0.1:9")
        )
    assert registry.find_generator("hf:ann/faces").read_bytes() == weights["ours"]
    assert "http://127.0.0.1:9 did not answer; using what is in the cache" in capsys.readouterr().err
    with pytest.raises(InputError, match="could not be reached for hf:ann/other .* check the connection"):
        registry.find_generator("hf:ann/other")


def test_load_gives_the_generator_of_a_reference_and_sample_draws_from_it(
    server: hubserver.Hub, weights: dict[str, bytes]
) -> None:
    server.repositories["ann/faces"] = Repository({"g.safetensors": weights["ours"]})
    loaded = zeroshift.load("hf:ann/faces")
    expected = zeroshift.sample(tiny.generator(5), seeds=[3, 4])
    assert torch.equal(zeroshift.sample(loaded, seeds=[3, 4]), expected)
    assert torch.equal(zeroshift.sample("hf:ann/faces", seeds=[3, 4]), expected)


def test_the_command_takes_a_reference_where_it_takes_a_generator(
    server: hubserver.Hub, weights: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repositories["ann/faces"] = Repository({"g.safetensors": weights["ours"]})
    assert cli.main(["convert", "hf:ann/faces", str(tmp_path / "g.pt"), "--to", "rosinality"]) == 0
    assert states_equal(checkpoints.load_generator_file(tmp_path / "g.pt")[0], tiny.generator(5))
    assert cli.main(["convert", "hf:ann/gone", str(tmp_path / "h.pt"), "--to", "rosinality"]) == 2
    assert "ann/gone" in capsys.readouterr().err


def test_a_clip_of_the_hub_is_downloaded_aloud_and_guides_as_its_folder_does(
    server: hubserver.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny.clip(1)
    save_clip(made, tmp_path / "clip")
    files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    server.repositories["ann/eyes"] = Repository(
        {**files, "flax_model.msgpack": b"x", "onnx/model.onnx": b"x"}
    )
    texts = ["a photo of a person"]
    expected = registry.load_clip(tmp_path / "clip").encode_text(texts)
    for spec in ("hf:ann/eyes", "ann/eyes"):
        assert torch.equal(registry.load_clip(spec).encode_text(texts), expected)
    said = capsys.readouterr().err
    assert said.count("downloading") == 1 and "of ann/eyes" in said
    assert server.asked("GET", "flax_model.msgpack") == [] and server.asked("GET", "onnx") == []


def test_a_run_on_a_reference_records_the_hash_and_finds_its_source_again(
    server: hubserver.Hub, weights: dict[str, bytes], tmp_path: Path
) -> None:
    server.repositories["ann/faces"] = Repository({"g.safetensors": weights["ours"]})
    given = tiny.given(generator=None)
    run = tiny.run(tmp_path / "run", state=given, generator="hf:ann/faces", method="nada", train={"steps": 1})
    (tmp_path / "same").write_bytes(weights["ours"])
    recorded = run.folder.environment["source"]
    assert recorded == {"name": "hf:ann/faces", "sha256": file_sha256(tmp_path / "same")}
    assert states_equal(zeroshift.load(tmp_path / "run").source, tiny.generator(5))  # pyright: ignore[reportArgumentType]
