"""The status of a grid speaks of its own trials, wherever they ran and whatever else lies beside them."""

from pathlib import Path

import pytest
from tests.sweep.made_trials import diverge, fail, finish, make_grid, trial_at

from retlab.artifacts import lock
from retlab.cluster import queue
from retlab.cluster.queue import Job
from retlab.cluster.status import Status
from retlab.errors import UserError
from retlab.sweep.grid import Grid
from retlab.sweep.slurm import _what_waits
from retlab.sweep.status import sweep_status
from retlab.sweep.submissions import Submission, TrialArray, new_submission, write_submission
from retlab.sweep.trial_list import write_trials
from show_status import remaining


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Two points of two architectures; the folder of the trials holds one of another sweep, too."""
    other = make_grid(tmp_path, {"train.learning_rate": [1e-3, 1e-2, 1e-1]})
    finish(trial_at(other, 3, "retnet"))
    return make_grid(tmp_path)


def _state(grid: Grid) -> str:
    return sweep_status(grid)[0].state


def test_trials_of_other_sweeps_do_not_count(grid: Grid) -> None:
    status, _ = sweep_status(grid)
    assert (status.state, status.detail) == ("not submitted", "4 trials: 4 not run yet")
    finish(trial_at(grid, 1, "retnet"))
    status, _ = sweep_status(grid)
    assert (status.state, status.detail) == ("unfinished", "4 trials: 1 done, 3 not run yet")
    diverge(trial_at(grid, 1, "transformer"))
    fail(trial_at(grid, 2, "retnet"), "ran out of memory")
    (trial_at(grid, 2, "retnet").folder / "log.txt").write_text("last words\n")
    status, _ = sweep_status(grid)
    assert (status.state, status.detail) == ("failed", "4 trials: 1 done, 1 diverged, 1 failed, 1 not run yet")
    assert "ran out of memory" in status.tail[0]
    assert status.tail[1] == "  last words"
    finish(trial_at(grid, 2, "retnet"))
    finish(trial_at(grid, 2, "transformer"))
    assert _state(grid) == "done"


def test_a_sweep_on_this_machine_is_running(grid: Grid) -> None:
    grid.folder.mkdir(parents=True)
    with lock(grid.folder, True, lambda: None):
        status, _ = sweep_status(grid)
        assert (status.state, status.detail) == ("running", "4 trials: 4 not run yet; a process runs them now")
        held = trial_at(grid, 1, "retnet").folder
        held.mkdir(parents=True)
        with lock(held, True, lambda: None):
            detail = sweep_status(grid)[0].detail
        assert detail == "4 trials: 1 running, 3 not run yet; a process runs them now"
    assert _state(grid) == "not submitted"


def test_trials_in_the_queue(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = make_grid(tmp_path, {"train.learning_rate": [1e-3, 1e-2, 1e-1]})
    folder = new_submission(grid.config)
    trials = [trial_at(older, 1, "retnet"), trial_at(older, 2, "retnet"), trial_at(older, 3, "transformer")]
    write_trials(folder / "trials-0.json", trials)
    array = TrialArray(job=7, name="trials", file="trials-0.json", log=str(tmp_path / "%A_%a.log"))
    write_submission(folder, Submission(arrays=[array], table=8, table_name="table"))
    reason = "PartitionNodeLimit"

    def jobs(_ids: list[int]) -> list[Job]:
        return [Job(7, number, "PENDING", reason, "", "N/A", "trials") for number in range(3)]

    monkeypatch.setattr(queue, "jobs", jobs)
    status, _ = sweep_status(grid)
    text = "4 trials: 2 pending, 2 not run yet (PartitionNodeLimit); 1 trial of an earlier grid in the queue"
    assert (status.state, status.detail) == ("pending", text)
    assert (status.is_stuck, status.waiting) == (True, {7, 8})
    reason = "Priority"
    status, _ = sweep_status(grid)
    assert not status.is_stuck

    def no_answer(_ids: list[int]) -> list[Job]:
        raise UserError("squeue is not installed here")

    monkeypatch.setattr(queue, "jobs", no_answer)
    assert (_state(grid), sweep_status(grid)[1]) == ("not submitted", "squeue is not installed here")


def test_tasks_that_ended_without_a_result(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_submission(grid.config)
    write_trials(folder / "trials-0.json", grid.trials[:3])
    array = TrialArray(job=7, name="trials", file="trials-0.json", log=str(tmp_path / "%A_%a.log"))
    write_submission(folder, Submission(arrays=[array]))
    monkeypatch.setattr(queue, "jobs", lambda _ids: [Job(7, 0, "RUNNING", "None", "n1", "", "trials")])
    (tmp_path / "7_2.log").write_text("last words\n")
    status, trouble = sweep_status(grid)
    text = "4 trials: 1 running, 2 ended without a result, 1 not run yet"
    assert (status.state, status.detail, trouble) == ("running", text, None)
    assert f"{grid.trials[2].id} (job 7_2): ended without a result" in status.tail[0]
    assert status.tail[1:] == ["  last words", "1 trial cancelled before the start"]


def test_what_keeps_an_array_waiting_comes_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [Job(7, None, "PENDING", "PartitionTimeLimit", "", "N/A", "trials")]
    monkeypatch.setattr(queue, "jobs", lambda _ids: waiting)
    note, way_out = _what_waits([7], [8])
    assert "cluster.time is longer" in note
    assert way_out == "take all of them out of the queue with: scancel 7 8"
    waiting = []
    assert _what_waits([7], [8]) == []


@pytest.mark.parametrize(
    ("state", "changed", "said"),
    [
        ("done", "done", ["all stages are done, and the grid search"]),
        ("running", "done", ["remains: grid_search; in the queue or running already"]),
        ("not submitted", "done", ["remains: grid_search", "07_grid_search.sh one.yaml"]),
        ("failed", "done", ["remains: grid_search", "07_grid_search.sh one.yaml --retry-failed"]),
        ("unfinished", "not submitted",
         ["remains: train_model, grid_search", "submit_pipeline.sh one.yaml --from train_model", "07_grid_search.sh"]),
        ("running", "not submitted",
         ["remains: train_model, grid_search; in the queue or running: grid_search", "--from train_model"]),
    ],
)  # fmt: skip
def test_what_remains_of_an_experiment_with_a_grid(state: str, changed: str, said: list[str]) -> None:
    rows = [Status("tokenize_data", state="done"), Status("train_model", state=changed)]
    lines = remaining(rows, Status("grid_search", state=state), "one.yaml").splitlines()
    assert len(lines) == len(said)
    for line, words in zip(lines, said, strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("detail", "again"),
    [("2 failed", True), ("1 failed, 1 not run yet", False), ("1 failed, 1 ended without a result", False)],
)
def test_failures_are_retried_when_nothing_else_is_left(detail: str, again: bool) -> None:
    text = remaining([], Status("grid_search", state="failed", detail=detail), "one.yaml")
    assert text.endswith("--retry-failed") is again
