"""Progress as plain lines, for logs."""

import pytest

from retlab import progress


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


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
