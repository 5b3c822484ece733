"""The page: every number also in the CSV, nothing from outside, and how a real browser shows it."""

import csv
import html.parser
import os
import re
from pathlib import Path

import pytest
from tests.comparison.made_runs import write_run
from tests.stand_ins.browser import Browser, find_browser

from retlab.artifacts import sha256_file, write_atomic
from retlab.comparison import page as page_module
from retlab.comparison.page import write_page
from retlab.comparison.report import compare
from retlab.comparison.runs import read_runs
from retlab.section import PROJECT_ROOT

SCREENSHOTS = Path(os.environ.get("RETLAB_SCREENSHOTS", PROJECT_ROOT / "screenshots"))


def write(folder: Path, *runs: Path) -> dict[str, Path]:
    found = read_runs(runs)
    return {file.name: file for file in write_page(compare(found, found[0]), folder)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("page")
    runs = [
        write_run(folder / name, worse, data={"source": ["a", "b"], "note": note})
        for name, worse, note in (("retnet", 0.0, "x"), ("transformer", 0.25, "<b>&"), ("longnet", 0.1, "long " * 60))
    ]
    return write(folder / "page", *runs)


class _Reader(html.parser.HTMLParser):
    """Cells with their marks, text by element, and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        if tag == "td":
            self.cells.append(found)
        self.addresses += [found[key] for key in ("src", "srcset", "href") if key in found]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def test_every_number_on_the_page_is_in_the_csv(files: dict[str, Path]) -> None:
    with open(files["comparison.csv"], newline="", encoding="utf-8") as file:
        known = {(row["table"], row["row"], row["column"], row["unit"]): row["value"] for row in csv.DictReader(file)}
    page = read(files["index.html"])
    valued = [cell for cell in page.cells if "data-value" in cell]
    assert len(valued) > 100
    for cell in valued:
        place = cell["data-table"], cell["data-row"], cell["data-column"], cell["data-unit"]
        assert known[place] == cell["data-value"], place
        if "data-error" in cell:
            assert known[*place[:2], f"{place[2]} ±", place[3]] == cell["data-error"]
    # The plots' numbers, too.
    assert float(known["learning curve of retnet", "50", "validation loss", "nats/token"]) == pytest.approx(
        5.5 - 50 / 60
    )
    assert float(known["learning curve of retnet", "50", "energy", "kWh"]) == pytest.approx(0.75 / 2)
    assert float(known["loss by position", "3 to 6", "longnet", "nats/token"]) == pytest.approx(5 - 3e-3 + 0.1)


def test_nothing_comes_from_outside_and_text_is_text(files: dict[str, Path]) -> None:
    page = read(files["index.html"])
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags
    text = "".join(page.text)
    assert '<script>alert("x")</script>' in text, "of a sample"
    assert "After the prompt 'def read('" in text, "in quotes, so that an empty one is seen"
    assert "<b>&" in text, "of a configuration"
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"https?://", page.text[0] + text)
    for heading in ("Summary", "Training", "Loss by position", "Tasks", "Latency and memory", "Samples",
                    "Energy and emissions", "Environment", "Difference from the baseline"):  # fmt: skip
        assert heading in text
    highlighted = [cell for cell in page.cells if "differs" in cell.get("class", "")]
    assert {cell["data-row"] for cell in highlighted if cell["data-table"] == "configuration"} == {"data.note"}


def test_pictures_and_markdown_lie_beside_it(files: dict[str, Path]) -> None:
    pictures = {"learning_curves.png", "loss_by_position.png", "time_per_token.png", "memory.png"}
    assert pictures | {"index.html", "comparison.csv", "comparison.md"} == files.keys()
    assert all(files[name].read_bytes().startswith(b"\x89PNG") for name in pictures)
    markdown = files["comparison.md"].read_text(encoding="utf-8")
    assert all(f"]({name})" in markdown for name in pictures)
    assert "| retnet | 1,234,567 | **4.0000** |" in markdown


@pytest.mark.component
def test_it_is_written_again_and_leaves_other_files_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    first = write(tmp_path / "page", run)
    before = {name: sha256_file(file) for name, file in first.items()}
    (tmp_path / "page" / "mine.txt").write_text("mine")
    assert {name: sha256_file(file) for name, file in write(tmp_path / "page", run).items()} == before
    (run / "metrics.csv").unlink()
    assert "learning_curves.png" not in write(tmp_path / "page", run)
    assert not (tmp_path / "page" / "learning_curves.png").exists(), "a picture without numbers"
    assert (tmp_path / "page" / "mine.txt").read_text() == "mine"


@pytest.mark.component
@pytest.mark.parametrize("written", range(1, 7))
def test_a_kill_between_two_files_leaves_a_folder_that_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    run, finished = write_run(tmp_path / "a"), []

    def stopped(file: Path, content: bytes) -> None:
        if len(finished) == written:
            raise KeyboardInterrupt
        finished.append(file)
        write_atomic(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(page_module, "write_atomic", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "page", run)
    assert not (tmp_path / "page" / "index.html").exists()
    if written == 1:
        # As a kill in the middle of the first write leaves it.
        (tmp_path / "page" / "comparison.csv").rename(tmp_path / "page" / ".comparison.csv.partial")
    assert write(tmp_path / "page", run)["index.html"].is_file()


@pytest.mark.component
@pytest.mark.skipif(find_browser() is None, reason="needs Chromium, which apt-get installs for root")
def test_a_browser_shows_it_without_complaint(files: dict[str, Path], tmp_path: Path) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    colours = {}
    with Browser() as browser:
        page = browser.open(files["index.html"])
        for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark"), (320, "light")):
            page.show(width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
            colours[width, scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            page.screenshot(SCREENSHOTS / f"comparison-{width}-{scheme}.png")
        assert colours[1280, "light"] != colours[1280, "dark"]
        pictures = "[...document.images].map(one => one.complete && one.naturalWidth > 0)"
        assert page.evaluate(pictures) == [True] * 4
        # Of the table that is wider than a phone all can be reached in its own box.
        page.show(400)
        assert page.evaluate("[...document.querySelectorAll('.scroll')].some(one => one.scrollWidth > one.clientWidth)")
        rule = "getComputedStyle(document.querySelector('tbody tr + tr > *')).borderTopWidth"
        assert page.evaluate(rule) == "1px", "the style sheet arrived whole"
        rule = "[...document.querySelectorAll('table')].map(one => getComputedStyle(one).borderCollapse)"
        assert set(page.evaluate(rule)) == {"separate"}, "collapsed borders stay behind under a sticky column"
        page.print(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert page.complaints == []
        assert [address for address in page.requests if not address.startswith("data:")] == [
            files["index.html"].as_uri()
        ]
