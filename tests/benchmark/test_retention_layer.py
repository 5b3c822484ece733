"""The comparison of one layer: its command and its table, and nothing about times."""

import subprocess
import sys
from pathlib import Path

import pytest

from retlab.benchmark.retention_layer import Contestant, Measured, contestants, measure, table

SCRIPT = Path(__file__).parents[2] / "src" / "benchmark_retention_layer.py"


@pytest.mark.component
def test_layers_are_measured_in_turns() -> None:
    who = contestants(chunks=(64,))
    assert [one.kind for one in who] == ["retlab", "torchscale", "torchscale", "projections"]
    lines = list(measure(who, tokens=64, rounds=1, memory_tokens=64))
    assert [line.contestant for line in lines] == who
    assert all(line.milliseconds and line.milliseconds > 0 for line in lines)
    if sys.platform == "linux":
        assert all(line.megabytes is not None for line in lines)


def test_the_table_shows_gains_beside_their_floors() -> None:
    own, parallel = (
        Measured(Contestant("RetLab"), 100.0, 50.0),
        Measured(Contestant("parallel", "torchscale"), 450.0, 400.0),
    )
    chunks = Measured(Contestant("chunks", "torchscale", 512), 170.0, None)
    text = table([own, parallel, chunks], 2048, 8192).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in text[2:]] == [
        ["RetLab", "100", "", "", "50", "", ""],
        ["parallel", "450", "4.50", "4", "400", "8.00", "6"],
        ["chunks", "170", "1.70", "1.5", "", "", ""],
    ]
    assert "peak" not in table([own, parallel], 2048, None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--tokens", "100"], "multiple of 512"), (["--rounds", "0"], "at least 1"), (["--what"], "not understood")],
)
def test_mistakes_are_sentences(words: list[str], sentence: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
