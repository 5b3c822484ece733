"""A trial as its own process: hangs, crashes, and files that cannot be written."""

import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.sweep.made_trials import make_grid

from retlab.emissions import EmissionsSection
from retlab.section import PROJECT_ROOT
from retlab.sweep.grid import Trial
from retlab.sweep.results import read_failure, read_result
from retlab.sweep.submissions import Submission, TrialArray, write_submission
from retlab.sweep.trial_list import write_trials

# Runs a trial alone of which something else becomes than a training.
PROGRAM = """
import os, pathlib, signal, sys
from retlab.command import run_command
from retlab.errors import StorageFailed
from retlab.sweep import alone
from retlab.sweep.trial_list import read_trial

def run_trial(trial, **_):
    if sys.argv[2] == "full":
        raise StorageFailed("the disk is full")
    if sys.argv[2].isdigit():
        os._exit(int(sys.argv[2]))
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))

alone.run_trial = run_trial
trial = read_trial(pathlib.Path(sys.argv[1]), 0)
timeout = 1.0 if sys.argv[2] == "SIGSTOP" else 600.0
run_command(lambda: alone.run_alone(trial, timeout, "retry" in sys.argv, lambda: False, print), "")
"""


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    made = make_grid(tmp_path).trials[0]
    quiet = made.config.model_copy(update={"emissions": EmissionsSection(enabled=False)})
    write_trials(tmp_path / "trials.json", [dataclasses.replace(made, config=quiet)])
    return made


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        # A stopped process stands for one that no signal handler and no thread of its own can end.
        ("SIGSTOP", "timeout", "no result after 1 s (grid_search.trial_timeout)"),
        ("SIGSEGV", "killed", "the process of the trial ended by SIGSEGV"),
        # A library that ends the process says nothing, whatever the code.
        ("0", "killed", "the process of the trial ended with exit code 0"),
        ("7", "killed", "the process of the trial ended with exit code 7"),
        ("full", None, "the disk is full"),
    ],
)
def test_what_ends_a_trial_is_a_sentence(tmp_path: Path, trial: Trial, what: str, kind: str | None, said: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "trials.json"), what]
    changed = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT / "src")}
    answer = subprocess.run(command, capture_output=True, text=True, env=changed)
    assert (answer.returncode, answer.stderr.startswith(f"error: {said}")) == (2, True), answer.stderr
    assert answer.stderr.count("error:") == 1
    failure = read_failure(trial.folder)
    assert (failure and failure.kind) == kind
    # A job that is put back into the queue begins with this.
    again = subprocess.run([*command[:-1], "SIGKILL"], capture_output=True, text=True, env=changed)
    assert said in again.stderr if kind else "SIGKILL" in again.stderr


def test_a_second_failure_takes_the_place_of_the_first(tmp_path: Path, trial: Trial) -> None:
    for what, code in (("7", 7), ("SIGSEGV", None), ("9", 9)):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "trials.json"), what, "retry"]
        changed = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT / "src")}
        answer = subprocess.run(command, capture_output=True, text=True, env=changed)
        failure = read_failure(trial.folder)
        assert failure, answer.stderr
        assert failure.message in answer.stderr
        assert failure.message.endswith(f"exit code {code}" if code else what)


@pytest.fixture
def cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a task of array 77, after which comes array 78; in the folder lies what scancel is told."""
    heard = tmp_path / "cancelled"
    for folder in (heard, tmp_path / "bin"):
        folder.mkdir()
    (tmp_path / "bin" / "scancel").write_text(f'#!/bin/sh\nmkdir "{heard}/$*"\n')
    (tmp_path / "bin" / "scancel").chmod(0o755)
    arrays = [TrialArray(job=job, name=f"trials-{job}", file="trials.json", log="") for job in (77, 78)]
    write_submission(tmp_path, Submission(arrays=arrays))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "90", "ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return heard


@pytest.mark.parametrize("script", ["grid_search.py", "enter_job.py"])
def test_a_full_disk_is_told_once_and_is_no_failure_of_a_trial(
    tmp_path: Path, trial: Trial, cancelled: Path, script: str
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "runs"), "name": "sweep"}))
    words = [str(config), f"--trials={tmp_path / 'trials.json'}"]
    words = ["grid_search", *words] if script == "enter_job.py" else [*words, "--task=0"]
    trial.folder.parent.mkdir(parents=True)
    answer = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "src" / script), *words], capture_output=True, text=True,
        # No file may have a single byte, as on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )  # fmt: skip
    assert (answer.returncode, answer.stderr.count("error:")) == (2, 1), answer.stderr
    assert "error: files may not become so large here" in answer.stderr
    assert "those that have not begun leave the queue" in answer.stdout + answer.stderr
    assert (read_failure(trial.folder), read_result(trial.folder)) == (None, None)
    assert [path.name for path in cancelled.iterdir()] == ["--state=PENDING 77 78"]
