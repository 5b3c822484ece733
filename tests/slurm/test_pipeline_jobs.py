"""All stages as a chain of jobs, and what becomes of the chain when one of them fails."""

import json
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.slurm.experiments import script
from tests.slurm.private import PrivateSlurm

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component

CONFIG = """\
name: chain
output_dir: {folder}/runs
data: {{source: python-stdlib, folder: {folder}/data}}
emissions: {{enabled: false}}
cluster: {{partition: main, time: 20:00, environment: {{OMP_NUM_THREADS: 1, LEARNT: "a, b=c"}}}}
"""


def _jobs(folder: Path) -> dict[str, int]:
    notes = [json.loads(file.read_text()) for file in (folder / "runs" / "chain" / "slurm").glob("[0-9]*.json")]
    return {note["stage"]: note["job"] for note in notes if "stage" in note}


def test_the_whole_chain_runs(slurm: PrivateSlurm, tmp_path: Path) -> None:
    folder = tmp_path / "rate=1"
    folder.mkdir()
    (folder / "chain.yaml").write_text(CONFIG.format(folder=folder))
    answer = script(PROJECT_ROOT, "submit_pipeline.sh", "chain.yaml", *TINY, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    jobs = _jobs(folder)
    again = script(PROJECT_ROOT, "05_train_model.sh", "chain.yaml", *TINY, cwd=folder)
    assert (again.returncode, "in the queue already" in again.stderr) == (2, True), again.stderr
    sweep = script(PROJECT_ROOT, "07_grid_search.sh", "chain.yaml", *TINY, cwd=folder)
    assert (sweep.returncode, sweep.stderr.count("\n")) == (2, 1), sweep.stderr
    assert f"this runs the sweep after it: sbatch -d afterok:{jobs['tokenize_data']} " in sweep.stderr
    ended = slurm.wait(*jobs.values(), timeout=300)
    assert len(ended) == 8
    assert {job["JobState"] for job in ended} == {"COMPLETED"}, slurm.report(*jobs.values())
    assert (folder / "runs" / "chain" / "results.json").is_file()
    status = script(PROJECT_ROOT, "status.sh", "chain.yaml", *TINY, cwd=folder)
    assert status.stdout.count(" done ") == 9, status.stdout
    assert "all stages are done" in status.stdout


def test_a_failing_stage_leaves_the_rest_cancelled(slurm: PrivateSlurm, tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "broken.jsonl").write_text("no JSON\n")
    source = f"data.source={tmp_path}/broken.jsonl"
    answer = script(PROJECT_ROOT, "submit_pipeline.sh", "chain.yaml", source, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    jobs = _jobs(tmp_path)
    slurm.wait(*jobs.values())
    (first,), rest = slurm.jobs(jobs.pop("download_data")), slurm.jobs(*jobs.values())
    assert (first["JobState"], first["ExitCode"]) == ("FAILED", "2:0")
    assert {job["JobState"] for job in rest} == {"CANCELLED"}
    status = script(PROJECT_ROOT, "status.sh", "chain.yaml", source, cwd=tmp_path).stdout
    assert "exit code 2" in status
    assert "broken.jsonl" in "".join(status.split())
    assert status.count("cancelled") == 8
    assert max(len(line) for line in status.splitlines() if not line.startswith("bash ")) < 100
