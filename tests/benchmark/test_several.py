"""The measurement of training in several processes, as a command at small sizes; no time is asserted."""

import csv
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.forked import Script

from retlab.benchmark import several
from retlab.benchmark.plan import Shape, default_plan
from retlab.errors import EXIT_OK, EXIT_USER_ERROR
from retlab.section import PROJECT_ROOT
from retlab.training.request import TrainingRequest
from retlab.training.settings import TrainSection

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
    assert report.startswith("# Training in one process and in several\n\n- CPU, ")
    assert f"bash scripts/benchmark_speed.sh {config} " in report
    assert f"torch {version('torch')}" in report
    assert several.EXPLANATION in report
    assert all(name in report and name in answer.stdout for name in names)


def test_every_shape_is_compared_with_one_process_at_that_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answers(_work, request):
        settings = TrainingRequest.model_validate_json(request).train
        asked.append((settings.processes, settings.batch_size, settings.micro_batch_size))
        lap = {"tokens_per_second": f"{settings.micro_batch_size * settings.processes - 1}", "peak_memory_bytes": "1"}
        return iter([[lap]])

    monkeypatch.setattr(several, "answers", answers)
    plan = replace(default_plan("cpu", TrainSection(device="cpu")), several=(Shape(2, 16), Shape(8, 32)))
    rows = list(several.several_rows(plan, "cpu", 2))
    assert asked == [(1, 2, 2), (2, 4, 2), (2, 4, 2), (1, 8, 8), (2, 16, 8), (2, 16, 8)]
    assert [(row.batch, row.tokens) for row in rows] == [(2, 16), (4, 16), (4, 16), (8, 32), (16, 32), (16, 32)]
    ratios = [row.remark.split()[0] if row.remark else "" for row in rows]
    assert ratios == ["", "3.000", "3.000", "", "2.143", "2.143"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("1", "--devices is 1, but it compares one GPU with 2 or more"),
        ("0", "--devices is 0, but it compares one GPU with 2 or more"),
        ("2 --peers none", "--devices measures RetLab's training alone; leave --peers out"),
        ("2 --measure training", "--devices measures RetLab's training alone; leave --measure out"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words: str, sentence: str) -> None:
    process = Script(SCRIPT, "--devices", *words.split())
    printed, _ = process.communicate()
    assert process.returncode == EXIT_USER_ERROR
    assert printed == f"error: command line: {sentence}\n"
