"""What became of a sweep's trials, here and on Slurm, for the status of an experiment."""

from collections import Counter

from retlab.artifacts import is_locked
from retlab.cluster.status import Status, last_lines
from retlab.errors import UserError
from retlab.progress import counted
from retlab.section import shown_path
from retlab.sweep.grid import Grid
from retlab.sweep.outcomes import Outcome, read_outcomes
from retlab.sweep.submissions import Task, tasks

_MOST_LOGS = 5
_LOG_LINES = 3
_ORDER = ("done", "diverged", "running", "pending", "failed", "ended without a result", "not run")
_USUAL = {"None", "Resources", "Priority", "JobArrayTaskLimit", "Dependency"}


def sweep_status(grid: Grid) -> tuple[Status, str | None]:
    """How many trials of a grid are done, running, pending and failed; and why the queue cannot tell, if it cannot.

    Trials of an earlier form of the grid, and of other sweeps in the same folder, do not count.
    """
    trouble = None
    try:
        submitted = {task.trial: task for task in tasks(grid.config)}
    except UserError as error:
        submitted, trouble = {}, str(error)
    outcomes = read_outcomes(grid)
    states = {name: _state(outcome, submitted.get(name)) for name, outcome in outcomes.items()}
    count = Counter(states.values())
    detail = f"{len(states):,} trials: " + ", ".join(f"{count[name]:,} {name}" for name in _ORDER if count[name])
    # The lock of grid_search, and of the job that makes the tables.
    works_here = is_locked(grid.folder)
    status = Status("grid_search", state=_state_of_all(count, works_here), detail=detail)
    if works_here:
        status.detail += "; a process runs them now"
    found = [task for name, task in submitted.items() if states.get(name) == "pending"]
    reasons = {task.job.reason for task in found if task.job is not None} - _USUAL
    if reasons:
        status.detail += f" ({', '.join(sorted(reasons))})"
    lost = [outcome for name, outcome in outcomes.items() if states[name] in ("failed", "ended without a result")]
    # What was cancelled before it began has nothing to say.
    begun = [one for one in lost if one.status == "failed" or submitted[one.trial.id].log.exists()]
    for outcome in begun[:_MOST_LOGS]:
        status.tail += _last_words(outcome, submitted.get(outcome.trial.id))
    if len(begun) > _MOST_LOGS:
        status.tail.append(f"and {len(begun) - _MOST_LOGS:,} more")
    if len(lost) > len(begun):
        status.tail.append(f"{counted(len(lost) - len(begun), 'trial')} cancelled before the start")
    return status, trouble


def _state_of_all(count: Counter[str], works_here: bool) -> str:
    if count["running"] or works_here:
        return "running"
    if count["pending"]:
        return "pending"
    if count["failed"] or count["ended without a result"]:
        return "failed"
    if count["not run"]:
        return "begun" if len(count) > 1 else "not submitted"
    return "done"


def _state(outcome: Outcome, task: Task | None) -> str:
    if outcome.status in ("finished", "diverged"):
        return "done" if outcome.status == "finished" else "diverged"
    if task is not None and task.is_live:
        assert task.job is not None
        return "pending" if task.job.state in ("PENDING", "REQUEUED") else "running"
    if outcome.status == "failed":
        return "failed"
    return "not run" if task is None else "ended without a result"


def _last_words(outcome: Outcome, task: Task | None) -> list[str]:
    trial = outcome.trial
    if task is None:
        return [f"{trial.id}: {outcome.message}; {shown_path(trial.folder / 'log.txt')}"]
    name = f"{task.array.job}_{task.index}"
    why = outcome.message or "ended without a result: cancelled, killed, at its time limit, or as its log says"
    lines = last_lines(task.log, _LOG_LINES)
    return [f"{trial.id} (job {name}): {why}; {shown_path(task.log)}", *(f"  {line}" for line in lines)]
