"""What jobs leave in runs/<name>/slurm: a note of each job, of the start and of the end of each of its tasks.

Together with the queue they say what became of every job, without Slurm's accounting, which many clusters keep off.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from retlab.artifacts import write_atomic
from retlab.cluster.queue import Job
from retlab.config import ExperimentConfig, dump_config
from retlab.section import Section

Kept = TypeVar("Kept", bound=Section)


class JobNote(Section):
    """A job, or a job array, of one stage."""

    job: int
    "Its number."
    name: str
    "Its name in the queue."
    stage: str
    "The stage it runs."
    parts: list[str] = []
    "Of an array what each index works on, such as the splits; else what this job works on."
    log: str
    "Its log file, with Slurm's %j, %A and %a for job, array and index."
    config: str
    "The configuration as it was submitted."
    words: list[str] = []
    "Further words of its command."
    submitted: str
    "When, ISO 8601 in UTC."


class StartNote(Section):
    """The last start of a job or of an array's task."""

    log: str
    "Its log file."
    node: str
    "Where it runs."
    restarts: int
    "How often it came back from the queue."
    started: str
    "When, ISO 8601 in UTC."


class EndNote(Section):
    """The last end of a job or of an array's task, as its own shell saw it; who is killed leaves none."""

    code: int
    "Exit code of the stage."
    outcome: str
    "done, failed, requeued, told to end, or no requeue left."
    ended: str
    "When, ISO 8601 in UTC."


def notes_folder(config: ExperimentConfig) -> Path:
    """Where the notes and logs of an experiment's jobs are."""
    return config.run_folder / "slurm"


def keep_config(config: ExperimentConfig) -> Path:
    """The configuration as a file that nobody edits: a job that waits or comes back does what was submitted."""
    text = dump_config(config)
    folder = notes_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"config-{hashlib.sha256(text.encode()).hexdigest()[:10]}.yaml"
    if not file.exists():
        write_atomic(file, text)
    return file


def write_note(config: ExperimentConfig, note: JobNote) -> None:
    """Leave the note of a job."""
    folder = notes_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{note.job}.json", note.model_dump_json(indent=2) + "\n")


def read_notes(config: ExperimentConfig, stage: str | None = None) -> list[JobNote]:
    """The jobs of an experiment (of one of its stages), the first submitted first."""
    files = [file for file in notes_folder(config).glob("*.json") if re.fullmatch(r"\d+\.json", file.name)]
    notes = [note for note in (_read(file, JobNote) for file in files) if note is not None]
    return sorted((note for note in notes if stage in (None, note.stage)), key=lambda note: (note.submitted, note.job))


def read_note(config: ExperimentConfig, job: int) -> JobNote | None:
    """The note of one job."""
    return _read(notes_folder(config) / f"{job}.json", JobNote)


def forget(config: ExperimentConfig, notes: Sequence[JobNote]) -> None:
    """Take away the notes of jobs that were not to be, and what an experiment without jobs has of this."""
    folder = notes_folder(config)
    for note in notes:
        (folder / f"{note.job}.json").unlink(missing_ok=True)
    if not read_notes(config):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def task_name(job: int, index: int | None) -> str:
    """A job or an array's task as Slurm writes it, such as 12 or 12_0."""
    return str(job) if index is None else f"{job}_{index}"


def write_start(config: ExperimentConfig, task: str, start: StartNote) -> None:
    """Note that a task has begun; what it said at an earlier end is history."""
    folder = notes_folder(config)
    (folder / f"{task}.ended.json").unlink(missing_ok=True)
    write_atomic(folder / f"{task}.started.json", start.model_dump_json(indent=2) + "\n")


def link_log(config: ExperimentConfig, stage: str, task: str, log: Path) -> None:
    """Let the log of a job that the user's own sbatch submitted be found beside those of the run's other jobs."""
    link = notes_folder(config) / f"{stage}-{task}.log"
    if log.is_file() and log.parent != link.parent and (link.is_symlink() or not link.exists()):
        link.unlink(missing_ok=True)
        link.symlink_to(log)


def _forced(config: ExperimentConfig) -> Path:
    return notes_folder(config) / f"{os.environ['SLURM_JOB_ID']}.forced"


def forget_force(config: ExperimentConfig) -> None:
    """At the first start of the job around this process: another one may have had its number."""
    _forced(config).unlink(missing_ok=True)


def was_forced(config: ExperimentConfig) -> bool:
    """Whether the job around this process began anew with --force before it came back: now it goes on."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and _forced(config).exists()


def note_forced(config: ExperimentConfig) -> None:
    """In a job, note that what was there before --force is out of the way."""
    if "SLURM_JOB_ID" in os.environ:
        notes_folder(config).mkdir(parents=True, exist_ok=True)
        _forced(config).touch()


def read_start(config: ExperimentConfig, task: str) -> StartNote | None:
    """The last start of a task."""
    return _read(notes_folder(config) / f"{task}.started.json", StartNote)


def read_end(config: ExperimentConfig, task: str) -> EndNote | None:
    """The last end of a task, unless it has begun again."""
    return _read(notes_folder(config) / f"{task}.ended.json", EndNote)


def log_of(config: ExperimentConfig, note: JobNote, index: int | None) -> Path:
    """The log file of a job, or of one of an array's tasks."""
    start = read_start(config, task_name(note.job, index))
    if start is not None:
        return Path(start.log)
    values = {"%j": str(note.job), "%A": str(note.job), "%a": str(index), "%%": "%"}
    return Path(re.sub("%[jAa%]", lambda match: values[match[0]], note.log))


def same_job(note: JobNote, found: Sequence[Job]) -> list[Job]:
    """Those of the queue's jobs that are this one: another cluster, or a new one, gives the same numbers again."""
    return [job for job in found if job.id == note.job and job.name == note.name]


def _read(file: Path, kind: type[Kept]) -> Kept | None:
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
