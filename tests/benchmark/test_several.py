"""The measurement of training in several processes, as a command at small sizes; no time is asserted."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.forked import Script

from retlab.errors import EXIT_OK, EXIT_USER_ERROR
from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component
SCRIPT = PROJECT_ROOT / "src" / "benchmark_speed.py"


def benchmark(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300)


def test_one_process_and_two_by_both_strategies(tmp_path: Path) -> None:
    config = str(PROJECT_ROOT / "configs" / "quickstart.yaml")
    answer = benchmark(config, *TINY, "--devices", "2", "--device", "cpu", "--output", str(tmp_path))
    assert answer.returncode == EXIT_OK, answer.stderr
    assert answer.stderr == ""
    with open(tmp_path / "devices.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["training, 1 CPU process", "training, 2 CPU processes, ddp", "training, 2 CPU processes, fsdp"]
    assert [row["measurement"] for row in rows] == names
    assert [int(row["batch"]) for row in rows] == [2, 4, 4]
    rates = [float(row["tokens_per_second"]) for row in rows]
    ratios = [f"{rate / rates[0]:.3f} x the tokens/s of one" for rate in rates[1:]]
    assert [row["remark"] for row in rows] == ["", *ratios]
    report = (tmp_path / "devices.md").read_text()
    assert "2 processes, each on CPU" in report
    assert all(name in report and name in answer.stdout for name in names)


@pytest.mark.parametrize("words", [("--devices", "1"), ("--devices", "2", "--peers", "none")])
def test_what_cannot_be_measured_is_one_sentence(words: tuple[str, ...]) -> None:
    process = Script(SCRIPT, *words)
    printed, _ = process.communicate()
    assert process.returncode == EXIT_USER_ERROR
    assert printed == "error: command line: --devices takes 2 or more, and goes without --peers and --measure\n"
