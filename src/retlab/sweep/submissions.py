"""What a sweep has submitted to Slurm: of each submission the trials and jobs, and what became of them."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from retlab.artifacts import write_atomic
from retlab.cluster import queue
from retlab.cluster.queue import Job
from retlab.config import ExperimentConfig
from retlab.section import Section
from retlab.sweep.trial_list import trial_ids

RECORD = "submission.json"


class TrialArray(Section):
    """One job array, a task for each trial of a file."""

    job: int
    "Its number; 0 until sbatch has told it, which who is killed in that moment does not hear."
    name: str
    "Its name in the queue, which no other array has."
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


def read_submissions(config: ExperimentConfig) -> list[tuple[Path, Submission]]:
    """Folder and record of all submissions, the first one first."""
    found = []
    for file in sorted(submissions_folder(config).glob(f"*/{RECORD}")):
        try:
            found.append((file.parent, Submission.model_validate_json(file.read_bytes())))
        except (OSError, ValidationError):
            continue
    return found


def _with_numbers(records: list[tuple[Path, Submission]]) -> list[tuple[Path, Submission]]:
    """Records whose arrays have the numbers that the queue knows; those that never came there are left out."""
    unheard = [array.name for _, record in records for array in record.arrays if not array.job]
    known = queue.numbers(unheard)
    numbered = []
    for folder, record in records:
        arrays = [
            array if array.job else array.model_copy(update={"job": known[array.name]})
            for array in record.arrays
            if array.job or array.name in known
        ]
        numbered.append((folder, record.model_copy(update={"arrays": arrays})))
    return numbered


def tasks(config: ExperimentConfig) -> list[Task]:
    """All trials that were ever submitted, of each the last submission.

    Raises:
        UserError: squeue has no answer.
    """
    records = _with_numbers(read_submissions(config))
    found = queue.jobs([array.job for _, record in records for array in record.arrays])
    known = {(job.id, job.name, job.index): job for job in found}
    latest: dict[str, Task] = {}
    for folder, record in records:
        for array in record.arrays:
            for index, trial in enumerate(trial_ids(folder / array.file)):
                task = Task(trial, array, index, known.get((array.job, array.name, index)))
                # One that still runs counts, though a later submission has it too.
                if trial not in latest or not latest[trial].is_live:
                    latest[trial] = task
    return list(latest.values())
