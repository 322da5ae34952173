"""The report is one file that needs nothing beside it, and says what the run folder says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import tiny
from zeroshift.measure.report import curve, duration, layer_shares, write_report, write_report_files
from zeroshift.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of a finished run, whose label must be escaped, with sample grids."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tiny.run(path, target="zombie <b>& face</b>", run={"grid_every": 2, "samples": 2})
    return RunFolder.load(path)


def page(folder: RunFolder) -> str:
    return (folder.path / "report.html").read_text("utf-8")


class Balance(HTMLParser):
    """Counts elements that were closed in the wrong order or not at all."""

    SINGLE = {"meta", "img", "line", "polyline", "br", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.SINGLE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that closes itself is in order."""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_a_run_ends_with_a_picture_and_a_report(folder: RunFolder) -> None:
    assert (folder.path / "before_after.png").stat().st_size > 500
    assert "<!doctype html>" in page(folder)


def test_the_report_refers_to_nothing_outside_itself(folder: RunFolder) -> None:
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"", page(folder))
    assert len(addresses) == 1 + 2
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page(folder))


def test_the_report_is_well_formed_and_escapes_labels(folder: RunFolder) -> None:
    balance = Balance()
    balance.feed(page(folder))
    assert balance.wrong == [] and balance.open == []
    assert "<b>& face" not in page(folder) and "zombie &lt;b&gt;&amp; face" in page(folder)


def test_the_report_shows_every_option_and_the_environment(folder: RunFolder) -> None:
    text = page(folder)
    for name in (
        "lambda_domain",
        "free_rgb",
        "image_floor",
        "layer_map",
        "checkpoint_every",
        "torch",
        "sha256",
    ):
        assert name in text
    assert folder.environment["source"]["sha256"] in text


def test_the_report_says_how_often_each_layer_was_free(folder: RunFolder) -> None:
    shares = layer_shares(folder.metrics())
    counted = {row["name"]: row["count"] for row in shares}
    for name, count in counted.items():
        assert count == sum(name in line.get("layers", ()) for line in folder.metrics())
    assert counted and all(f'<td class="name">{name}</td>' in page(folder) for name in counted)
    assert {row["of"] for row in shares} == {folder.config.train.steps}


def test_the_report_works_in_the_dark_and_on_a_phone(folder: RunFolder) -> None:
    assert "prefers-color-scheme: dark" in page(folder) and 'name="viewport"' in page(folder)


def test_both_stages_have_their_curves(folder: RunFolder) -> None:
    assert "Stage 1, the words: loss" in page(folder) and "Stage 2, the generator: loss" in page(folder)


@pytest.mark.parametrize("method", ["ipl", "nada"])
def test_where_the_truth_is_known_the_report_says_where_the_words_point(tmp_path: Path, method: str) -> None:
    run = tiny.run(tmp_path / "run", method=method, state=tiny.given(world=tiny.described())).folder
    section = page(run).partition("<h2>Where the words point</h2>")[2].partition("</table>")[0]
    cells = re.findall(r"<td class=\"(?:name|n)\">([^<]*)</td>", section)
    wanted = []
    for row in run.agreement:
        means = {name: f"{whole:.2f}" for name, (whole, _) in row["cosines"].items()}
        wanted += [row["clip"], *(means.get(name, "") for name in ("label", "words", "captions", "best"))]
    assert cells == wanted and len(run.agreement) == 2
    assert ("" in cells) == (method == "nada")
    assert section.count("<th>") == 5 and "learned words" in section


def test_where_the_truth_is_unknown_the_report_says_nothing_of_words(folder: RunFolder) -> None:
    assert folder.agreement == [] and "Where the words point" not in page(folder)


def test_what_is_there_is_kept_and_what_is_missing_is_written(folder: RunFolder) -> None:
    source, target = tiny.generator(), tiny.generator(1)
    picture, report = folder.path / "before_after.png", folder.path / "report.html"
    before = picture.read_bytes()
    report.unlink()
    assert write_report_files(folder, source, target) == (picture, report)
    assert report.is_file() and picture.read_bytes() == before


def test_a_report_can_be_written_of_a_run_that_did_not_end(folder: RunFolder, tmp_path: Path) -> None:
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_bytes((folder.path / name).read_bytes())
    text = write_report(RunFolder.load(tmp_path)).read_text("utf-8")
    assert "running" in text and "Before and after" not in text and "<svg" not in text


def test_a_curve_spans_its_axes_and_is_valid_svg() -> None:
    drawn = ElementTree.fromstring(str(curve([(1, 2.0), (2, 4.0), (11, 3.0)], "loss & more")))
    raw = drawn.findall("polyline")[0].attrib["points"].split()
    points = [tuple(map(float, each.split(","))) for each in raw]
    assert points[0] == (46.0, 166.0) and points[1][1] == 10.0 and points[2][0] == 410.0
    assert [text.text for text in drawn.findall("text")][:3] == ["2", "3", "4"]
    assert drawn.attrib["aria-label"] == "loss & more"


def test_a_constant_curve_is_drawn_in_the_middle() -> None:
    drawn = ElementTree.fromstring(str(curve([(1, 0.7), (2, 0.7)], "flat")))
    assert {each.split(",")[1] for each in drawn.findall("polyline")[0].attrib["points"].split()} == {"88.0"}


def test_durations_are_said_in_words() -> None:
    assert [duration(seconds) for seconds in (8.2, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 5 min"]
