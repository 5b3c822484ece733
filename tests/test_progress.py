"""Progress as plain lines for logs, and as a bar on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from retlab import progress
from retlab.section import PROJECT_ROOT


def test_plain_lines_say_done_total_rate_and_note(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_SECONDS", 0.0)
    with progress.progress("tokenise train", total=200, unit="document") as bar:
        bar.note("loss 3.2")
        bar.advance(50)
        bar.advance(150)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tokenise train: 50 of 200 documents (25 %), ")
    assert lines[0].endswith("left, loss 3.2")
    assert "200 of 200 documents (100 %)" in lines[-1]


def test_the_last_line_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_SECONDS", 0.0)
    with progress.progress("compare", total=2, unit="pair") as bar:
        bar.advance(1)
        bar.advance(1)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "compare: 1 of 2 pairs (50 %)",
        "compare: 2 of 2 pairs (100 %)",
    ]


def test_work_that_ends_early_ends_at_its_total(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("download", total=5000, unit="byte") as bar:
        bar.advance(40)
        bar.set_total(40)
    assert capsys.readouterr().out.startswith("download: 40 of 40 bytes (100 %), ")


BAR = """
import os, sys
from retlab.progress import progress
with progress("download", 5000, "byte") as bar:
    bar.advance(1200)
    bar.set_total(1200)
with progress("sweep", 6, "trial") as bar:
    bar.advance(6)
"""


@pytest.mark.parametrize("size", [(0, 0), (24, 100)])
def test_bar_on_a_terminal(size: tuple[int, int]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    subprocess.run([sys.executable, "-c", BAR], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "download: 100%" in shown
    assert "1.20k/1.20k" in shown
    assert "bytes/s" in shown
    assert " 6/6 [" in shown


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 documents"), (1, "1 document"), (2, "2 documents"), (1234, "1,234 documents")]
)
def test_one_is_singular(number: int, text: str) -> None:
    assert progress.counted(number, "document") == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
