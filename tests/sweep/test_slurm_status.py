"""The status of a sweep counts the trials of this grid, wherever they were run."""

from pathlib import Path

import pytest
from tests.sweep.made_trials import diverge, fail, finish, make_grid

from retlab import artifacts
from retlab.cluster import queue
from retlab.cluster.queue import Job
from retlab.errors import UserError
from retlab.sweep.grid import Grid
from retlab.sweep.slurm_status import sweep_status
from retlab.sweep.submissions import Submission, TrialArray, new_submission, write_submission
from retlab.sweep.trial_list import write_trials


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return make_grid(tmp_path, {"train.learning_rate": [1e-3, 2e-3, 3e-3]})


def states(grid: Grid) -> tuple[str, str]:
    status, trouble = sweep_status(grid)
    assert trouble is None
    return status.state, status.detail


def test_from_nothing_to_done(grid: Grid) -> None:
    assert states(grid) == ("not submitted", "6 trials: 6 not run")
    finish(grid.trials[0])
    # Another sweep's, in the same folder.
    (grid.trials_folder / "other").mkdir()
    (grid.trials_folder / "other" / "result.json").write_text((grid.trials[0].folder / "result.json").read_text())
    assert states(grid) == ("begun", "6 trials: 1 done, 5 not run")
    grid.folder.mkdir(parents=True)
    with artifacts.lock(grid.folder, True, lambda: None):
        assert states(grid) == ("running", "6 trials: 1 done, 5 not run; a process runs them now")
    diverge(grid.trials[1])
    fail(grid.trials[2])
    status, _ = sweep_status(grid)
    assert (status.state, status.detail) == ("failed", "6 trials: 1 done, 1 diverged, 1 failed, 3 not run")
    assert grid.trials[2].id in status.tail[0]
    assert "ran out of memory" in status.tail[0]
    for trial in grid.trials:
        finish(trial)
    assert states(grid) == ("done", "6 trials: 6 done")


def test_what_was_submitted(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_submission(grid.config)
    write_trials(folder / "trials-0.json", grid.trials[:4])
    log = str(folder / "trials-%A_%a.log")
    write_submission(folder, Submission(arrays=[TrialArray(job=7, name="t", file="trials-0.json", log=log)]))
    found = [Job(7, 0, "RUNNING", "None", "n1", "", "t"), Job(7, 1, "PENDING", "QOSMaxCpuPerUserLimit", "", "", "t")]
    monkeypatch.setattr(queue, "jobs", lambda _ids: found)
    finish(grid.trials[2])
    expected = "6 trials: 1 done, 1 running, 1 pending, 1 ended without a result, 2 not run (QOSMaxCpuPerUserLimit)"
    assert states(grid) == ("running", expected)

    def silent(_ids: list[int]) -> list[Job]:
        raise UserError("squeue cannot tell")

    monkeypatch.setattr(queue, "jobs", silent)
    status, trouble = sweep_status(grid)
    assert (status.state, status.detail, trouble) == ("begun", "6 trials: 1 done, 5 not run", "squeue cannot tell")
