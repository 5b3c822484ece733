"""What a sweep has submitted to Slurm: of each submission the trials and jobs, and what became of them.

That a job is about to be submitted is written down before sbatch is called, with a name that no other job has; its
number comes after. Where a process is killed in between, the queue still knows which job has that name.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from retlab.artifacts import write_atomic
from retlab.cluster import queue, sbatch
from retlab.cluster.queue import Job
from retlab.config import ExperimentConfig
from retlab.section import Section
from retlab.sweep.trial_list import trial_ids

RECORD = "submission.json"


class TrialArray(Section):
    """One job array, a task for each trial of a file."""

    job: int | None
    "Its number; None from before sbatch is called until its answer is there."
    name: str
    "Its name and comment in the queue; a user's word for sbatch may change one of them."
    file: str
    "The file with its trials, beside this record."
    log: str
    "Its tasks' log files, with Slurm's %A and %a."


class Submission(Section):
    """The job arrays of one submission, and the job that makes the table after them."""

    arrays: list[TrialArray] = []
    "In the order in which they run."
    table: int | None = None
    "Number of the job that makes the table."
    table_name: str | None = None
    "Its name and comment, from before sbatch is called."

    @property
    def jobs(self) -> list[int]:
        """The numbers of the arrays' jobs."""
        return [array.job for array in self.arrays if array.job is not None]

    @property
    def is_settled(self) -> bool:
        """Whether the number of every job is there."""
        return len(self.jobs) == len(self.arrays) and (self.table is None) == (self.table_name is None)


@dataclass(frozen=True)
class Task:
    """A trial that was submitted."""

    trial: str
    array: TrialArray
    index: int
    job: Job | None
    "What the queue says of it, where it still knows it."

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.job is not None and not self.job.is_over

    @property
    def log(self) -> Path:
        """Its log file."""
        return Path(self.array.log.replace("%A", str(self.array.job)).replace("%a", str(self.index)))


def submissions_folder(config: ExperimentConfig) -> Path:
    """Where the submissions of a sweep are."""
    return config.run_folder / "grid_search" / "submissions"


def new_submission(config: ExperimentConfig) -> Path:
    """A new, empty folder, the next in number."""
    folder = submissions_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
    while True:
        number += 1
        try:
            (folder / f"{number:04d}").mkdir()
        except FileExistsError:
            continue
        return folder / f"{number:04d}"


def write_submission(folder: Path, submission: Submission) -> None:
    """Write down which jobs there are, after each that was submitted."""
    write_atomic(folder / RECORD, submission.model_dump_json(indent=2) + "\n")


def read_submission(folder: Path) -> Submission | None:
    """The record of one submission."""
    try:
        return Submission.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def read_submissions(config: ExperimentConfig) -> list[tuple[Path, Submission]]:
    """Folder and record of all submissions, the first one first."""
    folders = sorted(file.parent for file in submissions_folder(config).glob(f"*/{RECORD}"))
    return [(folder, record) for folder in folders if (record := read_submission(folder)) is not None]


@contextlib.contextmanager
def sbatch_at_work(folder: Path) -> Iterator[int]:
    """A file that sbatch keeps open while it works, as a lock: it outlives the process that called it."""
    with open(folder / ".sbatch.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def with_jobs_found(record: Submission) -> Submission:
    """The submission with the numbers that nobody wrote down; what is not in the queue under its name is left out.

    Raises:
        UserError: squeue has no answer.
    """
    if record.is_settled:
        return record
    found = {name: job.id for job in queue.own_jobs() for name in (job.name, job.comment)}
    arrays = [array.model_copy(update={"job": array.job or found.get(array.name)}) for array in record.arrays]
    table = record.table or found.get(record.table_name or "")
    return Submission(
        arrays=[array for array in arrays if array.job is not None],
        table=table,
        table_name=record.table_name if table is not None else None,
    )


def settle(config: ExperimentConfig) -> list[tuple[Path, Submission]]:
    """Find what killed processes have submitted without writing it down, and write it down; returns those records.

    Raises:
        UserError: squeue has no answer.
    """
    settled = []
    for folder, record in read_submissions(config):
        if not record.is_settled:
            with sbatch_at_work(folder):
                found = with_jobs_found(record)
            write_submission(folder, found)
            settled.append((folder, found))
    return settled


def cancel_waiting(trials: Path, say: Callable[[str], None]) -> None:
    """After an error that every trial would meet, such as a full disk: take those that have not begun from the queue.

    They are no failed trials, and the next submission has them.

    Args:
        trials: the list that the task of an array around this process, which met the error, runs a trial of.
        say: prints a line for people.
    """
    record = read_submission(trials.absolute().parent) or Submission()
    arrays = {*record.jobs, *([int(number)] if (number := os.environ.get("SLURM_ARRAY_JOB_ID")) else [])}
    if arrays:
        sbatch.cancel(sorted(arrays), waiting_alone=True)
        say("every trial would meet this: those that have not begun leave the queue; submit again when it is mended")


def tasks(config: ExperimentConfig) -> list[Task]:
    """All trials that were ever submitted, of each the last submission.

    Raises:
        UserError: squeue has no answer.
    """
    records = [(folder, with_jobs_found(record)) for folder, record in read_submissions(config)]
    found = queue.jobs([number for _, record in records for number in record.jobs])
    known = {(job.id, name, job.index): job for job in found for name in (job.name, job.comment)}
    latest: dict[str, Task] = {}
    for folder, record in records:
        for array in record.arrays:
            for index, trial in enumerate(trial_ids(folder / array.file)):
                task = Task(trial, array, index, known.get((array.job or 0, array.name, index)))
                # One that still runs counts, though a later submission has it too.
                if trial not in latest or not latest[trial].is_live:
                    latest[trial] = task
    return list(latest.values())
