"""Stages as jobs: one, or all of them chained."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from retlab.cluster import queue, sbatch
from retlab.cluster.notes import JobNote, forget, keep_config, notes_folder, read_notes, same_job, write_note
from retlab.config import ExperimentConfig
from retlab.data.settings import SPLITS
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT, SCRIPTS, shown_path

PIPELINE = [stage for stage in SCRIPTS if stage != "grid_search"]
"""The stages that are chained, in their order."""
STAGES = [*PIPELINE, "grid_search"]
"""All that can be a job."""


@dataclass(frozen=True)
class Submission:
    """What one call of sbatch asks for."""

    config: ExperimentConfig
    stage: str
    words: Sequence[str] = ()
    "Words of the stage, such as --force, or the splits to tokenise."
    given: Sequence[str] = ()
    "The user's own words for sbatch."

    @property
    def name(self) -> str:
        """Name of the job."""
        return f"{self.stage}-{self.config.name}"

    @property
    def parts(self) -> list[str]:
        """The splits that an array's tasks tokenise, one each."""
        chosen = [word for word in self.words if word in SPLITS]
        return (chosen or list(SPLITS)) if self.stage == "tokenize_data" else []

    @property
    def num_nodes(self) -> int:
        """Nodes of a training."""
        return self.config.train.num_nodes or 1

    def command(self, dependency: Sequence[str] = ()) -> list[str]:
        """The words for sbatch that are no options of the configuration: name, log, array, then the script."""
        folder = str(notes_folder(self.config)).replace("%", "%%")
        array = [f"--array={','.join(str(SPLITS.index(part)) for part in self.parts)}"] if self.parts else []
        log = f"{folder}/{self.stage}-{'%A_%a' if self.parts else '%j'}.log"
        own = [f"--job-name={self.name}", f"--output={log}", f"--chdir={PROJECT_ROOT}"]
        script = str(PROJECT_ROOT / "slurm" / {"grid_search": "07_grid_search.sh", **SCRIPTS}[self.stage])
        rest = [word for word in self.words if word not in self.parts]
        return [*own, "--export=ALL", *array, *dependency, script, str(keep_config(self.config)), *rest]

    @property
    def log(self) -> str:
        """The log file's pattern."""
        return next(word for word in self.command() if word.startswith("--output=")).removeprefix("--output=")


def submit_stage(wanted: Submission, dependency: Sequence[str] = ()) -> JobNote:
    """Submit one stage and leave the note of its job.

    Raises:
        UserError: it is in the queue already, or sbatch is not here or refuses.
    """
    config, stage = wanted.config, wanted.stage
    # The job finds this checkout whatever script it was started with.
    os.environ["RETLAB_ROOT"] = str(PROJECT_ROOT)
    number = sbatch.submit(
        wanted.command(dependency), stage=stage, cluster=config.cluster, given=wanted.given, num_nodes=wanted.num_nodes
    )
    indices = [SPLITS.index(part) for part in wanted.parts]
    note = JobNote(
        job=number,
        name=sbatch.given_value(wanted.given, "--job-name", "-J") or wanted.name,
        stage=stage,
        parts=[SPLITS[index] for index in indices],
        log=wanted.log,
        config=str(keep_config(config)),
        words=list(wanted.words),
        submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    write_note(config, note)
    return note


def submit_chain(stages: Sequence[Submission], say: Callable[[str], None]) -> list[JobNote]:
    """Submit stages of which each starts when the one before has succeeded, and never if it failed.

    Raises:
        UserError: one of them cannot be submitted; then none is left in the queue.
    """
    refuse_queued(stages[0].config, [wanted.stage for wanted in stages])
    notes: list[JobNote] = []
    try:
        for wanted in stages:
            dependency = []
            if notes:
                dependency = [f"--dependency=afterok:{notes[-1].job}", "--kill-on-invalid-dep=yes"]
                kept = sbatch.without(wanted.given, "--dependency", "-d")
                wanted = Submission(wanted.config, wanted.stage, wanted.words, kept)
            notes.append(submit_stage(wanted, dependency))
            say(_announcement(notes[-1]))
    except BaseException as error:
        sbatch.cancel([note.job for note in notes])
        forget(stages[0].config, notes)
        if isinstance(error, UserError) and notes:
            raise UserError(f"{error}; the jobs before it were cancelled, nothing is left in the queue") from None
        raise
    return notes


def hindrances(stages: Sequence[Submission], notes: Sequence[JobNote]) -> list[str]:
    """A line for each thing that waiting alone will not mend, and how to take the jobs out of the queue."""
    found = queue.jobs_looked_at([note.job for note in notes])
    requests: set[tuple[str, ...]] = set()
    lines: dict[tuple[str, ...], str] = {}
    for wanted, note in zip(stages, notes, strict=True):
        options = sbatch.options(wanted.config.cluster, wanted.stage, wanted.num_nodes)
        asked = tuple(word for word in options if word != "--nodes=1")
        # Another job that asks for the same waits for the same.
        if asked not in requests:
            requests.add(asked)
            waiting = [job.reason for job in same_job(note, found) if job.state == "PENDING"]
            line, culprits = _hindrance(wanted, note, next(filter(queue.trouble, waiting), None))
            lines.setdefault(culprits or asked, line)
    told = list(filter(None, lines.values()))
    return [*told, queue.way_out([note.job for note in notes])] if told else []


def _hindrance(wanted: Submission, note: JobNote, reason: str | None) -> tuple[str, tuple[str, ...]]:
    """What keeps a job from starting, and what it asks for that is to blame.

    A job that waits for others often gives no other reason in the queue; so Slurm is asked what it has against it.
    """
    against = _against(wanted) if reason is None or queue.is_about_resources(reason) else None
    waits = f"note: job {note.job} ({note.stage}) waits: {reason}"
    if against is None:
        return (f"{waits}: {queue.trouble(reason)}" if reason else ""), ()
    said, culprits = against
    if reason and culprits:
        return f"{waits}: as things are, it can never start; it comes from {', '.join(culprits)}", tuple(culprits)
    return f"note: as things are, {note.stage} can never start. {said}", tuple(culprits)


def _against(wanted: Submission) -> tuple[str, list[str]] | None:
    return sbatch.unstartable(
        wanted.command(), stage=wanted.stage, cluster=wanted.config.cluster, given=wanted.given,
        num_nodes=wanted.num_nodes,
    )  # fmt: skip


def _announcement(note: JobNote) -> str:
    what = f"job {note.job}" + (f", a task each for {', '.join(note.parts)}" if note.parts else "")
    log = Path(note.log.replace("%A", str(note.job)).replace("%j", str(note.job)).replace("%a", "*").replace("%%", "%"))
    return f"submitted {note.stage}: {what}; log {shown_path(log)}"


def refuse_queued(config: ExperimentConfig, stages: Sequence[str]) -> None:
    """Raise a UserError where a stage of this experiment waits or runs already: two would do the same work."""
    notes = [note for note in read_notes(config) if note.stage in stages]
    found = queue.jobs([note.job for note in notes]) if notes else []
    for note in notes:
        live = [job for job in same_job(note, found) if not job.is_over]
        if live:
            raise UserError(
                f"{note.stage} of {config.name} is in the queue already: job {note.job} is {live[0].state.lower()};"
                f" wait for it, or take it out with: scancel {note.job}"
            )
