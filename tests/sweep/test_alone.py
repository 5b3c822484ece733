"""A trial as its own process: hangs, crashes, and files that cannot be written."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sweep.made_trials import make_grid

from retlab.emissions import EmissionsSection
from retlab.section import PROJECT_ROOT
from retlab.sweep.grid import Trial
from retlab.sweep.results import read_failure
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
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))

alone.run_trial = run_trial
trial = read_trial(pathlib.Path(sys.argv[1]), 0)
run_command(lambda: alone.run_alone(trial, 1.0, False, lambda: False, print), "")
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
