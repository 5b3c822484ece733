"""What became of a sweep's trials on Slurm, for the status of an experiment."""

from collections import Counter
from pathlib import Path

from retlab.cluster.status import Status, last_lines
from retlab.config import ExperimentConfig
from retlab.progress import counted
from retlab.section import shown_path
from retlab.sweep.results import read_failure, read_result
from retlab.sweep.submissions import Task, tasks

_MOST_LOGS = 5
_LOG_LINES = 3


def sweep_status(config: ExperimentConfig) -> Status | None:
    """The submitted trials of a sweep: how many are done, running, pending and failed; None where none was submitted.

    Raises:
        UserError: squeue has no answer.
    """
    found = tasks(config)
    if not found:
        return None
    states = {task.trial: _state(config, task) for task in found}
    count = Counter(states.values())
    order = ("done", "diverged", "running", "pending", "failed", "ended without a result")
    detail = f"{len(found)} trials submitted: " + ", ".join(f"{count[name]} {name}" for name in order if count[name])
    live = "running" if count["running"] else "pending" if count["pending"] else None
    bad = count["failed"] + count["ended without a result"]
    status = Status("grid_search", state=live or ("failed" if bad else "done"), detail=detail)
    reasons = {task.job.reason for task in found if states[task.trial] == "pending" and task.job is not None}
    usual = {"None", "Resources", "Priority", "JobArrayTaskLimit", "Dependency"}
    if reasons - usual:
        status.detail += f" ({', '.join(sorted(reasons - usual))})"
    lost = [task for task in found if states[task.trial] in ("failed", "ended without a result")]
    # What was cancelled before it began has nothing to say.
    begun = [task for task in lost if task.log.exists() or states[task.trial] == "failed"]
    for task in begun[:_MOST_LOGS]:
        status.tail += _last_words(config, task, states[task.trial])
    if len(begun) > _MOST_LOGS:
        status.tail.append(f"and {len(begun) - _MOST_LOGS} more")
    if len(lost) > len(begun):
        status.tail.append(f"{counted(len(lost) - len(begun), 'trial')} cancelled before the start")
    return status


def _folder_of(config: ExperimentConfig, trial: str) -> Path:
    return (config.grid_search.trials_folder or config.output_dir / "trials") / trial


def _state(config: ExperimentConfig, task: Task) -> str:
    folder = _folder_of(config, task.trial)
    result = read_result(folder)
    if result is not None:
        return "diverged" if result.status == "diverged" else "done"
    if task.is_live:
        assert task.job is not None
        return "pending" if task.job.state in ("PENDING", "REQUEUED") else "running"
    return "failed" if read_failure(folder) is not None else "ended without a result"


def _last_words(config: ExperimentConfig, task: Task, state: str) -> list[str]:
    failure = read_failure(_folder_of(config, task.trial))
    name = f"{task.array.job}_{task.index}"
    why = failure.sentence if failure else f"{state}: cancelled, killed, at its time limit, or as its log says"
    lines = last_lines(task.log, _LOG_LINES)
    return [f"{task.trial} (job {name}): {why}; {shown_path(task.log)}", *(f"  {line}" for line in lines)]
