"""What became of an experiment's stages: from their manifests, the queue and the notes of their jobs."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from retlab.artifacts import MANIFEST, read_manifest
from retlab.cluster import queue
from retlab.cluster.notes import JobNote, log_of, read_end, read_notes, same_job, task_name
from retlab.cluster.queue import Job
from retlab.config import ExperimentConfig
from retlab.data.settings import SPLITS, SplitName
from retlab.errors import UserError
from retlab.evaluation.results import measurement_folder
from retlab.progress import duration
from retlab.section import shown_path
from retlab.upstream import changes_of

WIDTH = 99
_LOG_LINES = 5
_ENDED_BY = {"CANCELLED": "scancel", "TIMEOUT": "the time limit", "NODE_FAIL": "its node going down"}


@dataclass
class Status:
    """One stage, or the part of it that one task does."""

    stage: str
    part: str = ""
    state: str = "not submitted"
    "done, running, pending, failed, cancelled, or not submitted."
    detail: str = ""
    "What more there is to say."
    tail: list[str] = field(default_factory=list)
    "The last lines of its log."
    waiting: set[int] = field(default_factory=set)
    "Numbers of its jobs that wait."
    is_stuck: bool = False
    "Whether waiting alone may not help."
    changes: list[str] = field(default_factory=list)
    "How a finished output differs from what the configuration would make."

    @property
    def label(self) -> str:
        """Name of the stage and of its part."""
        return f"{self.stage} {self.part}".strip()


def stages(config: ExperimentConfig) -> tuple[list[Status], str | None]:
    """What became of each of the stages 1 to 6, and why the queue cannot tell its part, where it cannot."""
    notes = read_notes(config)
    trouble = None
    try:
        found = queue.jobs([note.job for note in notes])
    except UserError as error:
        found, trouble = [], str(error)
    return [_status(config, *output, notes, found) for output in _outputs(config)], trouble


def _outputs(config: ExperimentConfig) -> Iterator[tuple[str, str, Path]]:
    """Stage, part and folder of everything that the pipeline makes."""
    data = config.data
    assert config.tokenizer.folder is not None
    yield "download_data", "", data.raw_folder
    yield "split_data", "", data.splits_folder
    yield "train_tokenizer", "", config.tokenizer.folder
    for split in get_args(SplitName):
        yield "tokenize_data", split, data.shards_folder(split)
    yield "train_model", "", config.run_folder / "model"
    for measurement in config.evaluate.measure:
        yield "evaluate_model", measurement, measurement_folder(config.run_folder, measurement)


def _status(
    config: ExperimentConfig, stage: str, part: str, folder: Path, notes: Sequence[JobNote],
    found: Sequence[Job],
) -> Status:  # fmt: skip
    status = Status(stage, part)
    manifest = read_manifest(folder)
    attempts = [note for note in notes if note.stage == stage and (not part or not note.parts or part in note.parts)]
    last = attempts[-1] if attempts else None
    if last is not None:
        index = SPLITS.index(part) if part and last.parts else None
        mine = [job for job in same_job(last, found) if job.index in (index, None)]
        _say_job(config, status, last, index, mine[0] if mine else None)
    is_live = status.state in ("running", "pending")
    newer = manifest is not None and last is not None and _time(last.submitted) > (folder / MANIFEST).stat().st_mtime
    if manifest is not None and not is_live and not (status.state == "failed" and newer):
        status.state, status.tail, status.detail = "done", [], _when(manifest)
        status.changes = changes_of(config, stage, manifest) if stage != "evaluate_model" else []
        if status.changes:
            status.detail += f"; {', '.join(status.changes)}"
    return status


def _say_job(config: ExperimentConfig, status: Status, note: JobNote, index: int | None, job: Job | None) -> None:
    """Fill in what a job tells, the queue first."""
    task = task_name(note.job, index)
    log = log_of(config, note, index)
    end = read_end(config, task)
    if job is not None and not job.is_over:
        _say_live(status, job, task, log)
    elif end is not None and end.outcome == "done":
        status.state, status.detail = "done", f"job {task}"
    elif end is not None and end.outcome == "told to end":
        by = _ENDED_BY.get(job.state if job else "", "scancel, the time limit or its node going down")
        status.state, status.detail = "cancelled", f"job {task}: told to end by {by}; saved"
    elif end is not None:
        more = "" if end.outcome in ("failed", "requeued") else f", {end.outcome}"
        status.state, status.detail = "failed", f"job {task}: exit code {end.code}{more}; {shown_path(log)}"
        status.tail = last_lines(log)
    elif log.exists():
        how = (
            job.state.lower().replace("_", " ") if job else "killed, cancelled, out of time or memory, or its node down"
        )
        status.state, status.detail = "failed", f"job {task}: {how}; {shown_path(log)}"
        status.tail = last_lines(log)
    else:
        why = f": {job.reason}" if job and job.reason not in ("None", "") else ""
        status.state, status.detail = "cancelled", f"job {task} before it started{why}"


def _say_live(status: Status, job: Job, task: str, log: Path) -> None:
    if job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        advice = queue.trouble(job.reason)
        usual = {
            "Dependency": "waits for the stages before",
            "Priority": "others come first",
            "Resources": "waits for free nodes",
            "BeginTime": f"starts {job.since.replace('T', ' ')}",
            "JobArrayTaskLimit": "as many tasks as allowed run",
            "None": "Slurm has not looked at it yet",
        }
        why = advice or usual.get(job.reason)
        status.waiting, status.is_stuck = {job.id}, advice is not None
        status.state, status.detail = "pending", f"job {task}: {job.reason}" + (f": {why}" if why else "")
        return
    state = "" if job.state == "RUNNING" else f" ({job.state.lower()})"
    status.state, status.detail = "running", f"job {task}{state} on {job.nodes} since {job.since.replace('T', ' ')}"
    status.tail = last_lines(log, 1)


def last_lines(log: Path, count: int = _LOG_LINES) -> list[str]:
    """The last lines of a log that say something, of each what a progress bar wrote last."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _when(manifest: dict[str, Any]) -> str:
    volatile = manifest["volatile"]
    started = datetime.fromisoformat(volatile["started"]).astimezone()
    return f"{started:%Y-%m-%d %H:%M}, in {duration(volatile['seconds'])}"


def table(title: str, rows: Sequence[Status]) -> str:
    """The stages as text, no line longer than a page is wide."""
    lines = [title]
    for row in rows:
        start = f"{row.label:<25} {row.state:<13}"
        lines += wrapped(f"{start} {row.detail}", " " * (len(start) + 1))
        for line in row.tail:
            # Of a very long line the beginning says what it is about.
            lines += wrapped(f"    | {line}", "    |   ")[:4]
    return "\n".join(lines)


def wrapped(text: str, indent: str = "") -> list[str]:
    """The text in lines of the page's width, those after the first indented; paths stay whole where they fit."""
    return textwrap.wrap(text.rstrip(), WIDTH, subsequent_indent=indent, break_on_hyphens=False)
