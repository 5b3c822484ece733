"""The stage's numbers are those of the harness's own command line on the exported folder, to the last digit."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.lab import Lab
from tests.lm_tasks.build import build

pytestmark = pytest.mark.component
BATCH = "3"
NAMES = ["local_mc", "local_wino", "local_ppl"]


# One process for all models, since it takes long to start, and one reading of the harness's thousands of task files.
COMMANDS = """
import functools, json, runpy, sys
from lm_eval.tasks import _index
_index.load_yaml = functools.cache(_index.load_yaml)
for command in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *command]
    runpy.run_module("lm_eval", run_name="__main__")
assert "retlab" not in sys.modules
"""


def command_lines(models: dict[str, Path], tasks: Path, folder: Path) -> None:
    """Have `lm_eval`, which never heard of RetLab, leave results and samples of every model in a folder of its name."""
    # The same number of threads adds in the same order.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    commands = [
        [
            "run", "--model", "hf", "--device", "cpu", "--batch_size", BATCH, "--num_fewshot", "1", "--log_samples",
            "--model_args", f"pretrained={model},trust_remote_code=True", "--tasks", ",".join(NAMES),
            "--include_path", str(tasks), "--output_path", str(folder / name),
        ]
        for name, model in models.items()
    ]  # fmt: skip
    command = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_the_same_numbers_to_the_last_digit(tmp_path: Path) -> None:
    tasks = build(tmp_path / "pack", questions=12, documents=3)
    chosen = f"{{names: [{', '.join(NAMES)}], include_path: {tasks}, num_fewshot: 1, batch_size: {BATCH}}}"
    labs = {}
    for architecture in ("retnet", "transformer"):
        labs[architecture] = lab = Lab(tmp_path / architecture)
        lab.make_model(seed=3, architecture=architecture)
        lab.evaluate("evaluate.measure=[tasks]", f"evaluate.tasks={chosen}")
    command_lines({name: lab.run_folder / "model" for name, lab in labs.items()}, tasks, tmp_path)
    for name, lab in labs.items():
        compare(lab.run_folder / "evaluation" / "tasks", tmp_path / name)


def compare(folder: Path, theirs: Path) -> None:
    """All numbers of the measurement against those of the command line."""
    results = json.loads(next(theirs.rglob("results_*.json")).read_text())["results"]
    with open(folder / "tasks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["local_mc", "local_mc", "local_wino", *["local_ppl"] * 3]
    for row in rows:
        numbers = results[row["task"]]
        assert row["value"] == repr(numbers[f"{row['metric']},{row['filter']}"]), row
        error = numbers[f"{row['metric']}_stderr,{row['filter']}"]
        assert row["standard_error"] == ("" if error == "N/A" else repr(error))
    for name in NAMES:
        mine = _samples(folder / f"{name}.samples.jsonl")
        others = _samples(next(theirs.rglob(f"samples_{name}_*.jsonl")))
        assert [sample["doc_hash"] for sample in mine] == [sample["doc_hash"] for sample in others]
        expected = [_score(sample) for sample in others]
        # In one command the harness fills its batches with the requests of several tasks of one kind.
        expected = expected if name == "local_ppl" else pytest.approx(expected, rel=1e-5)
        assert [_score(sample) for sample in mine] == expected


def _samples(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _score(sample: dict[str, Any]) -> float:
    """The sum of a sample's log-likelihoods."""
    answers = [answer[0] if isinstance(answer, list) else answer for answer in sample["filtered_resps"]]
    return sum(float(answer) for answer in answers)
