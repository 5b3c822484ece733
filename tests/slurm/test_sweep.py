"""A sweep's job arrays on a real Slurm: most trials only wait and write a result."""

import csv
import dataclasses
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.forked import Script
from tests.slurm.experiments import script
from tests.slurm.private import MAX_ARRAY_SIZE, PrivateSlurm
from tests.training.experiment import make_config, make_inputs

from retlab.cluster import queue, sbatch
from retlab.cluster_settings import ClusterSection
from retlab.config import ExperimentConfig
from retlab.data.settings import DataSection
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT
from retlab.sweep import slurm as engine
from retlab.sweep.grid import Grid, Point, Trial
from retlab.sweep.points import make_grid
from retlab.sweep.results import TrialFailure, read_result, write_failure
from retlab.sweep.slurm import missing_trials, submit_sweep
from retlab.sweep.status import sweep_status
from retlab.sweep.submissions import Task, read_submissions, submissions_folder, tasks
from retlab.sweep_settings import GridSearchSection

pytestmark = pytest.mark.component
SUBMIT = sbatch.submit

# In place of slurm/07_grid_search.sh: a trial waits as long as there is a file `hold`, then has a result.
STAND_IN = """#!/bin/bash
exec {python} - "$@" <<'END'
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {source!r})
from retlab.sweep.results import TrialResult, write_result
hold = Path({hold!r})
words = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
if "--table" in sys.argv:
    with open(hold.with_name("tables"), "a") as file:
        file.write("made\\n")
    sys.exit()
trial = json.loads(Path(words["--trials"]).read_text())[int(os.environ["SLURM_ARRAY_TASK_ID"])]["id"]
with open(hold.with_name("started"), "a") as file:
    file.write(trial + "\\n")
print("training", trial, flush=True)
while hold.exists():
    time.sleep(0.1)
write_result(hold.parent / "trials" / trial, TrialResult(
    trial=trial, status="finished", architecture="retnet", seed=0, parameters=1, steps=1,
    tokens=1, training_seconds=1, tokens_per_second=1, seconds=1, device="cpu", host="n", started="", ended="",
    versions=dict(),
))
END
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """More trials than one array may have tasks."""
    script = tmp_path / "stand_in.sh"
    hold = str(tmp_path / "hold")
    script.write_text(STAND_IN.format(python=sys.executable, source=str(PROJECT_ROOT / "src"), hold=hold))
    monkeypatch.setattr(engine, "_SCRIPT", script)
    data = DataSection(folder=tmp_path / "data", tokens_folder=tmp_path / "data" / "tokens")
    section = GridSearchSection(axes={"train.learning_rate": [1]}, max_parallel=3, trials_folder=tmp_path / "trials")
    config = ExperimentConfig(
        name="sweep", output_dir=tmp_path / "runs", data=data, grid_search=section, cluster=ClusterSection(cpus=1)
    )
    trials = [
        Trial("retnet", number, ExperimentConfig(name=f"t{number}", output_dir=tmp_path / "trials", seed=number), 1)
        for number in range(MAX_ARRAY_SIZE + 2)
    ]
    for trial in trials:
        trial.folder.mkdir(parents=True)
    return Grid(config, [Point(1, {}, trials)], 0)


def until(true: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def running(grid: Grid) -> list[Task]:
    return [task for task in tasks(grid.config) if task.job is not None and task.job.state == "RUNNING"]


def test_what_is_cancelled_or_loses_its_node_is_all_that_a_second_submission_runs(
    slurm: PrivateSlurm, grid: Grid, tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()
    lines: list[str] = []
    first = submit_sweep(grid, lines.append)
    assert first is not None
    assert [len(queue.jobs([array.job])) for array in first.arrays] == [MAX_ARRAY_SIZE, 2]
    started = tmp_path / "started"
    until(lambda: len(running(grid)) == 3 and started.exists() and len(started.read_text().split()) == 3)
    # All is in the queue: nothing is submitted twice.
    again = submit_sweep(grid, lines.append)
    assert again is not None
    assert not again.arrays
    status, _ = sweep_status(grid)
    assert (status.state, status.detail) == ("running", "13 trials: 3 running, 10 pending")

    # A task is cancelled, and the node of another goes down.
    on_first = next(task for task in running(grid) if task.job is not None and task.job.nodes == "n1")
    on_second = next(task for task in running(grid) if task.job is not None and task.job.nodes == "n2")
    slurm.run("scancel", f"{on_first.array.job}_{on_first.index}")
    slurm.take_down("n2")
    until(lambda: all(task.trial not in (on_first.trial, on_second.trial) for task in running(grid)))
    (tmp_path / "hold").unlink()
    slurm.bring_up("n2")
    slurm.wait(*[array.job for array in first.arrays], first.table or 0)
    assert (tmp_path / "tables").read_text() == "made\n"
    assert [trial.id for trial in missing_trials(grid, False)] == [on_first.trial]
    begun = started.read_text().split()
    assert begun.count(on_second.trial) == 2
    status, _ = sweep_status(grid)
    assert (status.state, status.detail) == ("failed", "13 trials: 12 done, 1 ended without a result")
    assert on_first.trial in status.tail[0]
    assert f"training {on_first.trial}" in " ".join(status.tail)

    # One that failed is submitted only when asked.
    failed = next(trial for trial in grid.trials if trial.id != on_first.trial)
    (failed.folder / "result.json").unlink()
    write_failure(failed.folder, TrialFailure(trial=failed.id, kind="error", message="no", host="n", ended=""))
    second = submit_sweep(grid, lines.append)
    assert second is not None
    slurm.wait(*[array.job for array in second.arrays], second.table or 0)
    assert started.read_text().split()[len(begun) :] == [on_first.trial]
    assert submit_sweep(grid, lines.append) is None
    third = submit_sweep(grid, lines.append, retry_failed=True)
    assert third is not None
    slurm.wait(*[array.job for array in third.arrays], third.table or 0)
    assert all(read_result(trial.folder) is not None for trial in grid.trials)
    assert submit_sweep(grid, lines.append, retry_failed=True) is None


@pytest.mark.usefixtures("slurm")
def test_a_sweep_that_is_rejected_or_can_never_start_is_told(grid: Grid) -> None:
    def submit(**cluster: str) -> list[str]:
        lines: list[str] = []
        changed = grid.config.model_copy(update={"cluster": ClusterSection.model_validate(cluster)})
        submit_sweep(dataclasses.replace(grid, config=changed), lines.append)
        return lines

    with pytest.raises(UserError, match="invalid partition specified: nope.*cluster.partition: nope"):
        submit(partition="nope")
    assert not tasks(grid.config)
    assert not list(submissions_folder(grid.config).iterdir())
    # The scheduler says it some moments after the submission.
    notes = [line for line in submit(partition="short", time="1:00:00") if line.startswith("note: ")]
    assert re.match(r"note: job \d+ waits: (PartitionTimeLimit|PartitionConfig): .*cluster\.time", notes[0])


@pytest.mark.parametrize(
    ("killed_at", "given"),
    [(1, ["--job-name=mine"]), (2, ["--comment=mine"]), (3, [])],
    ids=["first array", "second array", "table"],
)
@pytest.mark.usefixtures("slurm")
def test_jobs_of_a_submission_that_was_killed_before_it_noted_them_are_not_submitted_again(
    grid: Grid, tmp_path: Path, killed_at: int, given: list[str]
) -> None:
    (tmp_path / "hold").touch()
    child = os.fork()
    if child == 0:
        submitted = iter(range(1, 10))

        def submit(*words: Any, **more: Any) -> int:
            job = SUBMIT(*words, **more)
            if next(submitted) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return job

        sbatch.submit = submit
        submit_sweep(grid, print, given=given)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    until(lambda: len(running(grid)) == 3)
    lines: list[str] = []
    submit_sweep(grid, lines.append, given=given)
    again = [line for line in lines if line.startswith("submitted 2 trials")]
    assert len(again) == (killed_at == 1), "what was never given to sbatch, and nothing else"
    assert sum("was submitted by a process that was killed" in line for line in lines) == (killed_at < 3)
    assert sorted(task.trial for task in tasks(grid.config) if task.is_live) == sorted(one.id for one in grid.trials)
    arrays = {array.job for _, record in read_submissions(grid.config) for array in record.arrays}
    tables = {record.table for _, record in read_submissions(grid.config)}
    assert {job.id for job in queue.own_jobs() if not job.is_over} == arrays | tables
    assert (len(arrays), len(tables)) == (2, 2 if killed_at == 1 else 1)


def cells(folder: Path, table: str) -> list[dict[str, str]]:
    """A table without what differs from run to run."""
    volatile = ("seconds", "tokens_per_second", "energy", "emissions", "started", "ended", "folder")
    with open(folder / "grid_search" / table, newline="") as file:
        return [
            {key: row[key] for key in row if not any(word in key for word in volatile)} for row in csv.DictReader(file)
        ]


def test_an_array_leaves_the_tables_of_a_sweep_on_one_machine(slurm: PrivateSlurm, tmp_path: Path) -> None:
    make_inputs(tmp_path)
    shutil.copytree(tmp_path / "tokens" / "validation", tmp_path / "tokens" / "test")
    file = make_config(tmp_path, "local", max_steps=6, micro_batch_size=8)
    grid_search = {"axes": {"train.learning_rate": [1e-2]}, "seeds": [5], "similarity_windows": 2, "workers": 2}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"grid_search": grid_search}))
    trials = f"grid_search.trials_folder={tmp_path}/others"
    answer = script(PROJECT_ROOT, "07_grid_search.sh", str(file), "name=cluster", trials, "cluster.cpus=1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    process = Script(PROJECT_ROOT / "src" / "grid_search.py", str(file), OMP_NUM_THREADS="1")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    slurm.wait()
    for table in ("grid_search.csv", "trials.csv"):
        rows = [cells(tmp_path / "runs" / name, table) for name in ("cluster", "local")]
        assert rows[0] == rows[1], slurm.report()
        assert rows[0]


def test_a_full_disk_ends_an_array_and_the_next_submission_runs_what_is_missing(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    make_inputs(tmp_path)
    shutil.copytree(tmp_path / "tokens" / "validation", tmp_path / "tokens" / "test")
    file = make_config(tmp_path, "full", max_steps=6, micro_batch_size=8)
    grid_search = {"axes": {"train.learning_rate": [1e-3, 1e-2]}, "architectures": ["retnet"], "max_parallel": 1}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"grid_search": grid_search}))
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Jobs have the limits of who submits them: no checkpoint can be written, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, kept[1]))
    try:
        answer = script(PROJECT_ROOT, "07_grid_search.sh", str(file), "cluster.cpus=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    slurm.wait()
    logs = [log.read_text() for log in (tmp_path / "runs" / "full" / "slurm").glob("trials-*.log")]
    assert len(logs) == 1, "the other one never began"
    assert "error: files may not become so large here" in logs[0]
    status, _ = sweep_status(make_grid(file, []))
    assert status.detail == "2 trials: 2 ended without a result"
    assert "files may not become so large here" in " ".join(status.tail)
    assert status.tail[-1] == "1 trial cancelled before the start"
    answer = script(PROJECT_ROOT, "07_grid_search.sh", str(file), "cluster.cpus=1")
    assert "submitted 2 trials" in answer.stdout, answer.stdout + answer.stderr
