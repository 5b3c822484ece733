"""Why a trial came to no result, as a kind and a sentence."""

import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

from retlab.errors import OutOfMemory, UserError
from retlab.progress import duration
from retlab.section import shown_path
from retlab.sweep.grid import Trial
from retlab.sweep.results import TrialFailure, write_failure

LOG = "log.txt"
"""What was said in a trial, in its folder."""


def keep_failure(trial: Trial, kind: str, message: str) -> TrialFailure:
    """Write down that the trial failed, in its folder."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    values = {"trial": trial.id, "kind": kind, "message": message, "host": os.uname().nodename, "ended": ended}
    failure = TrialFailure.model_validate(values)
    write_failure(trial.folder, failure)
    return failure


def of_error(error: Exception) -> tuple[str, str]:
    """Kind and sentence of an error that a trial ended with."""
    if isinstance(error, UserError):
        return "out of memory" if isinstance(error, OutOfMemory) else "error", str(error)
    lines = str(error).strip().splitlines()
    return "error", ": ".join([type(error).__name__, *lines[:1]])


def of_time(timeout: float) -> tuple[str, str]:
    """Kind and sentence of a trial that took too long."""
    message = (
        f"no result after {duration(timeout)} (grid_search.trial_timeout); its last checkpoint is kept, and"
        " --retry-failed goes on from it"
    )
    return "timeout", message


def of_death(code: int, log: Path | None, kills_before: int | None) -> tuple[str, str]:
    """Kind and sentence of a trial whose process ended without a word.

    Args:
        code: its exit code; less than 0 is a signal.
        log: where it said something before.
        kills_before: what `memory_kills` said when the process began.
    """
    kills = memory_kills()
    if code == -signal.SIGKILL and kills is not None and kills_before is not None and kills > kills_before:
        message = (
            "out of memory: the system ended the process of the trial because the memory of this machine, or of this"
            " job, was used up; lower train.micro_batch_size or grid_search.workers, or raise cluster.memory"
        )
        return "out of memory", message
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    memory = " (out of memory?)" if code == -signal.SIGKILL and kills is None else ""
    where = f"; its log {shown_path(log)} may say more" if log else ""
    return "killed", f"the process of the trial {how}{memory}{where}"


def memory_kills() -> int | None:
    """How many processes this system has killed because memory ran out; None where it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
