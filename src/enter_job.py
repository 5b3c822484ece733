"""What a job does first: leave its notes, and tell slurm/job.sh what the configuration says about it.

    python src/enter_job.py STAGE CONFIG [key=value ...] [options of the stage]

Printed are pairs of a kind and a value, each ended by a NUL: notes (a folder), requeues, module, variable, and the
words for the stage. A job that came back from the queue goes on with the configuration that it began with.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import retlab.script_start  # noqa: F401
from retlab.cluster.allocation import differences
from retlab.cluster.notes import (
    JobNote,
    StartNote,
    forget_force,
    keep_config,
    link_log,
    notes_folder,
    read_note,
    task_name,
    write_note,
    write_start,
)  # fmt: skip
from retlab.command import run_command
from retlab.config import ExperimentConfig, load_config
from retlab.data.settings import SPLITS
from retlab.errors import UserError
from retlab.storage import sentence
from retlab.sweep.submissions import cancel_waiting


def main() -> None:
    """Answer slurm/job.sh."""
    try:
        _enter()
    except OSError as error:
        trials = [word.removeprefix("--trials=") for word in sys.argv if word.startswith("--trials=")]
        if trials and sentence(error):
            cancel_waiting(Path(trials[0]), lambda line: print(f"[grid_search] {line}", file=sys.stderr))
        raise


def _enter() -> None:
    stage, *words = sys.argv[1:]
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = int(os.environ["SLURM_ARRAY_JOB_ID" if index else "SLURM_JOB_ID"])
    task = task_name(job, int(index) if index else None)
    # As the stages have it, the first word that is no option; it may hold any character.
    file = next((word for word in words if not word.startswith("-")), None)
    if file is None:
        raise UserError("command line: CONFIG is missing; name the experiment's YAML file")
    rest = list(words)
    rest.remove(file)
    config = load_config(file, [word for word in rest if "=" in word and not word.startswith("-")])
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    rest = [word for word in rest if word.startswith("-") or "=" not in word]
    if Path(file).absolute().parent != notes_folder(config):
        # Submitted by the user's own sbatch.
        config, rest = _begin(config, stage, job, rest, now)
    if stage == "tokenize_data" and index and not set(rest) & set(SPLITS):
        rest.append(SPLITS[int(index)])
    if stage == "grid_search":
        if any(word.startswith("--trials=") for word in rest):
            rest.append(f"--task={index}")
        elif "--table" not in rest:
            # In a job a sweep is submitted as an array, wherever it would run otherwise.
            rest.append("grid_search.engine=slurm")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    start = StartNote(
        log=os.path.realpath("/proc/self/fd/2"),
        node=os.environ.get("SLURMD_NODENAME", os.uname().nodename),
        restarts=restarts,
        started=now,
    )
    if not restarts:
        forget_force(config)
    write_start(config, task, start)
    link_log(config, stage, task, Path(start.log))
    came = f", requeue {restarts}" if restarts else ""
    print(f"[slurm {task}] {stage} on {start.node}{came}", file=sys.stderr)
    _answer("notes", str(notes_folder(config)))
    _answer("requeues", str(config.cluster.max_requeues))
    for name in config.cluster.modules:
        _answer("module", name)
    for name, value in config.cluster.environment.items():
        _answer("variable", f"{name}={value}")
    for word in (str(keep_config(config)), *rest):
        _answer("word", word)


def _begin(
    config: ExperimentConfig, stage: str, job: int, rest: list[str], now: str
) -> tuple[ExperimentConfig, list[str]]:
    """The configuration and words to go on with: those of the job's first start."""
    note = read_note(config, job)
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and note is not None and note.stage == stage:
        return load_config(note.config), list(note.words)
    for line in differences(config, stage):
        print(f"note: {line}", file=sys.stderr)
    log = os.path.realpath("/proc/self/fd/2").replace("%", "%%")
    name = os.environ.get("SLURM_JOB_NAME", stage)
    file = str(keep_config(config))
    write_note(config, JobNote(job=job, name=name, stage=stage, log=log, config=file, words=rest, submitted=now))
    return config, rest


def _answer(kind: str, value: str) -> None:
    sys.stdout.write(f"{kind}\0{value}\0")


if __name__ == "__main__":
    run_command(main, "it will begin again")
