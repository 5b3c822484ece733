"""A sweep as job arrays of Slurm: a task for each trial that is missing, and after them a job that makes the table."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from retlab import artifacts
from retlab.cluster import queue, sbatch
from retlab.cluster.client import call, require
from retlab.cluster.notes import JobNote, keep_config, notes_folder, write_note
from retlab.errors import UserError
from retlab.progress import counted
from retlab.section import PROJECT_ROOT, shown_path
from retlab.storage import make_folder
from retlab.sweep.grid import Grid, Trial
from retlab.sweep.results import read_failure, read_result
from retlab.sweep.submissions import (
    Submission,
    TrialArray,
    new_submission,
    read_submission,
    read_submissions,
    sbatch_at_work,
    settle,
    tasks,
    with_jobs_found,
    write_submission,
)
from retlab.sweep.trial_list import write_trials

_SCRIPT = PROJECT_ROOT / "slurm" / "07_grid_search.sh"
_STAGE = "grid_search"
# Slurm's own default.
_MAX_ARRAY_SIZE = 1001


def submit_missing(
    grid: Grid, say: Callable[[str], None], *, plan_only: bool, retry_failed: bool, given: Sequence[str] = ()
) -> Submission | None:
    """Print the plan and submit what is missing, see `submit_sweep`.

    Raises:
        UserError: the folder holds another sweep, or see `submit_sweep`.
    """
    from retlab.sweep.estimate import expect_on_slurm
    from retlab.sweep.local import claim
    from retlab.sweep.plan import make_plan

    if not plan_only:
        try:
            require("sbatch")
        except UserError as error:
            raise UserError(f"{error} where grid_search.engine is local") from None
    make_folder(grid.folder)
    if not plan_only:
        make_folder(grid.trials_folder)
    claim(grid)
    plan = make_plan(grid, retry_failed)
    for line in plan.lines():
        say(line)
    expect_on_slurm(plan, say)
    if plan_only:
        return None
    with artifacts.lock(grid.folder, True, lambda: say("waiting: another process runs this sweep")):
        submission = submit_sweep(grid, say, retry_failed=retry_failed, given=given)
    if submission is None:
        say("up to date: no trial is missing; --table makes the tables anew")
    return submission


def missing_trials(grid: Grid, retry_failed: bool) -> list[Trial]:
    """The trials without a result; those that failed only if they are to be tried again."""
    without = [trial for trial in grid.trials if read_result(trial.folder) is None]
    return [trial for trial in without if retry_failed or read_failure(trial.folder) is None]


def submit_sweep(
    grid: Grid, say: Callable[[str], None], *, retry_failed: bool = False, given: Sequence[str] = ()
) -> Submission | None:
    """Submit the trials that are missing and not in the queue already, and the job that makes the table after them.

    Args:
        grid: the sweep.
        say: prints a line for people.
        retry_failed: submit those that failed, too.
        given: the user's own words for sbatch.

    Returns:
        The jobs; None where nothing is missing and nothing in the queue.

    Raises:
        UserError: sbatch is not here, or Slurm refuses; then nothing of this submission is left in the queue.
    """
    _take_up(grid, say, given)
    queued = [task for task in tasks(grid.config) if task.is_live]
    live = {task.trial for task in queued}
    missing = missing_trials(grid, retry_failed)
    wanted = [trial for trial in missing if trial.id not in live]
    waiting = len(missing) - len(wanted)
    if waiting:
        are = "is" if waiting == 1 else "are"
        say(
            f"{waiting:,} of {counted(len(missing), 'missing trial')} {are} in the queue already; scancel takes jobs"
            " out of it"
        )
        for line in _what_waits(sorted({task.array.job for task in queued if task.array.job is not None})):
            say(line)
    if not wanted:
        return Submission() if waiting else None
    folder = new_submission(grid.config)
    size = max_array_size()
    lists = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    submission = Submission()
    try:
        for number, trials in enumerate(lists):
            submission = _submit_array(grid, folder, number, trials, submission, retry_failed, given)
            array = submission.arrays[-1].job
            say(f"submitted {counted(len(trials), 'trial')}: job array {array}, {_at_a_time(grid, trials)} at a time")
        submission = _submit_table_after(grid, say, folder, submission, given)
    except BaseException:
        _withdraw(folder, submission)
        raise
    say(f"logs: {shown_path(notes_folder(grid.config))}/trials-*.log")
    for line in _what_waits(submission.jobs, [submission.table] if submission.table is not None else []):
        say(line)
    return submission


def max_array_size() -> int:
    """Tasks that a job array of this cluster may have."""
    answer = call(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, flags=re.MULTILINE)
    return max(1, int(found[1])) if found else _MAX_ARRAY_SIZE


def _at_a_time(grid: Grid, trials: Sequence[Trial]) -> int:
    return min(grid.config.grid_search.max_parallel, len(trials))


def _take_up(grid: Grid, say: Callable[[str], None], given: Sequence[str]) -> None:
    """What a killed process has submitted without writing it down is this sweep's, and gets the table that it lacks."""
    settle(grid.config)
    queued = {task.array.job for task in tasks(grid.config) if task.is_live}
    for folder, record in read_submissions(grid.config):
        if record.table is None and queued & set(record.jobs):
            listed = ", ".join(map(str, record.jobs))
            say(f"job array {listed} was submitted by a process that was killed before its end")
            _submit_table_after(grid, say, folder, record, given)


def _withdraw(folder: Path, submission: Submission) -> None:
    """Cancel what was submitted, also where a signal ended sbatch when the job was there already."""
    with contextlib.suppress(UserError, OSError):
        submission = with_jobs_found(read_submission(folder) or submission)
        write_submission(folder, submission)
    jobs = [*submission.jobs, *([submission.table] if submission.table is not None else [])]
    sbatch.cancel(jobs)
    if not jobs:
        # Of what Slurm refused there is nothing to be told.
        shutil.rmtree(folder, ignore_errors=True)


def _submit_array(
    grid: Grid,
    folder: Path,
    number: int,
    trials: Sequence[Trial],
    before: Submission,
    retry_failed: bool,
    given: Sequence[str],
) -> Submission:
    """Submit one more array; the submission with it, as it is written down, too."""
    # No job has this name, nor will one whose folder has the same number when this one was removed.
    name = f"trials-{grid.config.name}-{folder.name}-{number}-{secrets.token_hex(4)}"
    log = f"{_percents(notes_folder(grid.config))}/trials-%A_%a.log"
    words = [f"--array=0-{len(trials) - 1}%{grid.config.grid_search.max_parallel}"]
    # The next array begins when the one before has ended, so that never more than max_parallel run.
    if before.arrays:
        words.append(f"--dependency=afterany:{before.jobs[-1]}")
    file = folder / f"trials-{number}.json"
    write_trials(file, trials)
    array = TrialArray(job=None, name=name, file=file.name, log=log.replace("%%", "%"))
    write_submission(folder, before.model_copy(update={"arrays": [*before.arrays, array]}))
    task = [f"--trials={file}", *(["--retry-failed"] if retry_failed else [])]
    with sbatch_at_work(folder) as lock:
        job = _submit(
            grid, "trials", name, log, words, task, given if not before.arrays else _independent(given), [lock]
        )
    array = array.model_copy(update={"job": job})
    submission = before.model_copy(update={"arrays": [*before.arrays, array]})
    write_submission(folder, submission)
    return submission


def _submit_table_after(
    grid: Grid, say: Callable[[str], None], folder: Path, submission: Submission, given: Sequence[str]
) -> Submission:
    """Submit the job that makes the tables when the arrays have ended; the submission with it, written down, too."""
    name = f"table-{grid.config.name}-{folder.name}-{secrets.token_hex(4)}"
    write_submission(folder, submission.model_copy(update={"table_name": name}))
    words = [f"--dependency=afterany:{':'.join(map(str, submission.jobs))}"]
    with sbatch_at_work(folder) as lock:
        job = _submit(grid, "table", name, _table_log(grid), words, ["--table"], _independent(given), [lock])
    submission = submission.model_copy(update={"table": job, "table_name": name})
    write_submission(folder, submission)
    say(f"submitted the table: job {job}, after them")
    return submission


def submit_table(grid: Grid, say: Callable[[str], None], *, given: Sequence[str] = ()) -> int:
    """Submit a job that makes the tables of what is there; its number.

    Raises:
        UserError: the folder holds another sweep, sbatch is not here, or Slurm refuses.
    """
    from retlab.sweep.local import claim

    make_folder(grid.folder)
    claim(grid)
    job = _submit(grid, "table", f"table-{grid.config.name}", _table_log(grid), [], ["--table"], given)
    say(f"submitted the table: job {job}")
    return job


def _table_log(grid: Grid) -> str:
    return f"{_percents(notes_folder(grid.config))}/table-%j.log"


def _submit(
    grid: Grid,
    kind: str,
    name: str,
    log: str,
    words: Sequence[str],
    task: Sequence[str],
    given: Sequence[str],
    keep_open: Sequence[int] = (),
) -> int:
    config = grid.config
    file = str(keep_config(config))
    # The job finds this checkout whatever script it was started with.
    os.environ["RETLAB_ROOT"] = str(PROJECT_ROOT)
    own = [f"--job-name={name}", f"--comment={name}", f"--output={log}", f"--chdir={PROJECT_ROOT}", "--export=ALL"]
    job = sbatch.submit(
        [*own, *words, str(_SCRIPT), file, *task],
        stage=_STAGE, cluster=config.cluster, given=given, keep_open=keep_open,
    )  # fmt: skip
    submitted = datetime.now(UTC).isoformat(timespec="milliseconds")
    write_note(
        config, JobNote(job=job, name=name, stage=kind, log=log, config=file, words=list(task), submitted=submitted)
    )
    return job


def _independent(given: Sequence[str]) -> list[str]:
    """The user's words without the jobs to wait for, which the first array has waited for."""
    return sbatch.without(given, "--dependency", "-d")


def _percents(folder: Path) -> str:
    return str(folder).replace("%", "%%")


def _what_waits(arrays: Sequence[int], after: Sequence[int] = ()) -> list[str]:
    """A line for an array that Slurm already says will not start by waiting alone, and how to be rid of all."""
    try:
        found = queue.jobs_looked_at(arrays)
    except UserError:
        return []
    reasons = {(job.id, job.reason): queue.trouble(job.reason) for job in found if job.state == "PENDING"}
    lines = [f"note: job {job} waits: {reason}: {advice}" for (job, reason), advice in reasons.items() if advice]
    return [*lines, queue.way_out([*arrays, *after])] if lines else []
