"""What became of a grid's trials, on this machine or on Slurm, for the status of an experiment."""

from collections import Counter

from retlab.artifacts import is_locked
from retlab.cluster import queue
from retlab.cluster.status import Status, last_lines
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.progress import counted
from retlab.section import shown_path
from retlab.sweep.grid import Grid
from retlab.sweep.outcomes import Outcome, read_outcomes
from retlab.sweep.submissions import Task, read_submissions, tasks

_ORDER = ("done", "diverged", "running", "pending", "failed", "ended without a result", "not run yet")
_USUAL = {"None", "Resources", "Priority", "JobArrayTaskLimit", "Dependency"}
_MOST_LOGS = 5
_LOG_LINES = 3


def sweep_status(grid: Grid) -> tuple[Status, str | None]:
    """How many of the grid's trials are done, running, pending and failed; why the queue cannot tell, if it cannot.

    The folder of the trials may hold those of other sweeps, and the queue those of an earlier grid: neither counts.
    """
    trouble = None
    try:
        submitted = {task.trial: task for task in tasks(grid.config)}
    except UserError as error:
        submitted, trouble = {}, str(error)
    outcomes = read_outcomes(grid)
    states = {name: _state(outcome, submitted.get(name)) for name, outcome in outcomes.items()}
    count = Counter(states.values())
    # The lock of grid_search, and of the job that makes the tables.
    runs_here = is_locked(grid.folder)
    detail = f"{counted(len(states), 'trial')}: "
    detail += ", ".join(f"{count[name]:,} {name}" for name in _ORDER if count[name])
    status = Status("grid_search", state=_summary(count, runs_here), detail=detail)
    if runs_here:
        status.detail += "; a process runs them now"
    _add_waiting(grid.config, status, [task for name, task in submitted.items() if states.get(name) == "pending"])
    others = sum(task.is_live for name, task in submitted.items() if name not in states)
    if others:
        status.detail += f"; {counted(others, 'trial')} of an earlier grid in the queue"
    lost = [outcome for name, outcome in outcomes.items() if states[name] in ("failed", "ended without a result")]
    _add_lost(status, lost, submitted)
    return status, trouble


def _summary(count: Counter[str], runs_here: bool) -> str:
    if count["running"] or runs_here:
        return "running"
    if count["pending"]:
        return "pending"
    if count["failed"] or count["ended without a result"]:
        return "failed"
    if not count["not run yet"]:
        return "done"
    return "unfinished" if count["done"] or count["diverged"] else "not submitted"


def _state(outcome: Outcome, task: Task | None) -> str:
    if outcome.result is not None:
        return "diverged" if outcome.status == "diverged" else "done"
    # Whoever runs it, this sweep on this machine or another one, holds it.
    if is_locked(outcome.trial.folder):
        return "running"
    if task is not None and task.is_live:
        assert task.job is not None
        return "pending" if task.job.state in ("PENDING", "REQUEUED") else "running"
    if outcome.failure is not None:
        return "failed"
    return "not run yet" if task is None else "ended without a result"


def _add_waiting(config: ExperimentConfig, status: Status, waiting: list[Task]) -> None:
    reasons = {task.job.reason for task in waiting if task.job is not None} - _USUAL
    if reasons:
        status.detail += f" ({', '.join(sorted(reasons))})"
    status.waiting = {task.array.job for task in waiting if task.array.job is not None}
    for _, record in read_submissions(config):
        if record.table is not None and status.waiting & set(record.jobs):
            status.waiting.add(record.table)
    status.is_stuck = any(queue.trouble(reason) for reason in reasons)


def _add_lost(status: Status, lost: list[Outcome], submitted: dict[str, Task]) -> None:
    # What was cancelled before it began has nothing to say.
    begun = [one for one in lost if one.failure is not None or submitted[one.trial.id].log.exists()]
    for outcome in begun[:_MOST_LOGS]:
        status.tail += _last_words(outcome, submitted.get(outcome.trial.id))
    if len(begun) > _MOST_LOGS:
        status.tail.append(f"and {len(begun) - _MOST_LOGS:,} more")
    if len(lost) > len(begun):
        status.tail.append(f"{counted(len(lost) - len(begun), 'trial')} cancelled before the start")


def _last_words(outcome: Outcome, task: Task | None) -> list[str]:
    why = outcome.message or "ended without a result: cancelled, killed, at its time limit, or as its log says"
    name = outcome.trial.id if task is None else f"{outcome.trial.id} (job {task.array.job}_{task.index})"
    log = outcome.trial.folder / "log.txt" if task is None else task.log
    lines = last_lines(log, _LOG_LINES)
    return [f"{name}: {why}" + (f"; {shown_path(log)}" if lines else ""), *(f"  {line}" for line in lines)]
