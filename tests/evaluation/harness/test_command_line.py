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


def command_line(model: Path, tasks: Path, names: list[str], out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and samples of `lm_eval`, which never heard of RetLab."""
    # The same number of threads adds in the same order.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(out / "modules")}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", BATCH,
        "--model_args", f"pretrained={model},trust_remote_code=True", "--tasks", ",".join(names),
        "--include_path", str(tasks), "--num_fewshot", "1", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    answer = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    samples = {
        name: [json.loads(line) for line in next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()]
        for name in names
    }
    return results, samples


@pytest.mark.parametrize("architecture", ["retnet", "transformer"])
def test_the_same_numbers_to_the_last_digit(lab: Lab, tmp_path: Path, architecture: str) -> None:
    tasks = build(tmp_path / "pack", questions=12, documents=3)
    lab.make_model(seed=3, architecture=architecture)
    names = ["local_mc", "local_wino", "local_ppl"]
    chosen = f"{{names: [{', '.join(names)}], include_path: {tasks}, num_fewshot: 1, batch_size: {BATCH}}}"
    lab.evaluate("evaluate.measure=[tasks]", f"evaluate.tasks={chosen}")
    (tmp_path / "out").mkdir()
    results, samples = command_line(lab.run_folder / "model", tasks, names, tmp_path / "out")
    folder = lab.run_folder / "evaluation" / "tasks"
    with open(folder / "tasks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["local_mc", "local_mc", "local_wino", *["local_ppl"] * 3]
    for row in rows:
        theirs = results[row["task"]]
        assert row["value"] == repr(theirs[f"{row['metric']},{row['filter']}"]), row
        error = theirs[f"{row['metric']}_stderr,{row['filter']}"]
        assert row["standard_error"] == ("" if error == "N/A" else repr(error))
    for name in names:
        mine = [json.loads(line) for line in (folder / f"{name}.samples.jsonl").read_text().splitlines()]
        assert [sample["doc_hash"] for sample in mine] == [sample["doc_hash"] for sample in samples[name]]
        ours, theirs = ([_scores(sample) for sample in found] for found in (mine, samples[name]))
        # In one command the harness fills its batches with the requests of several tasks of one kind.
        assert ours == (theirs if name == "local_ppl" else pytest.approx(theirs, rel=1e-5))


def _scores(sample: dict[str, Any]) -> float:
    """The sum of a sample's log-likelihoods."""
    answers = [answer[0] if isinstance(answer, list) else answer for answer in sample["filtered_resps"]]
    return sum(float(answer) for answer in answers)
