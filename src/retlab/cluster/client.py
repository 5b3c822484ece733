"""Slurm's own programs, called without a shell."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from retlab.errors import UserError


def installed(program: str = "sbatch") -> bool:
    """Whether one of Slurm's programs is here."""
    return shutil.which(program) is not None


def call(command: Sequence[str], *, keep_open: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs and return what it said.

    Args:
        command: the program and its words.
        keep_open: files that the program holds open, too, and with them their locks, should this process be killed.

    Raises:
        UserError: it is not installed here.
    """
    require(command[0])
    return subprocess.run(
        command, capture_output=True, text=True, env=outer_environment(), errors="replace", pass_fds=keep_open
    )


def require(program: str) -> None:
    """Raise a UserError where one of Slurm's programs is not here."""
    if not installed(program):
        raise UserError(
            f"{program} is not installed here, or not in PATH: run this on a login node of a Slurm cluster,"
            " or use the script of the same number in scripts/, which needs no cluster"
        )


def outer_environment() -> dict[str, str]:
    """The environment without what Slurm set for a job around this process: a new job must not take it for its own."""
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    kept = ("SLURM_CONF", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key in kept}


def reason_given(answer: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed said, on one line and without its own name."""
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines()]
    for noise in (f"{answer.args[0]}: ", "error: ", "Batch job submission failed: ", "allocation failure: "):
        lines = [line.removeprefix(noise) for line in lines]
    kept = [line for line in lines if line and not line.startswith('Try "')]
    return "; ".join(dict.fromkeys(kept)) or f"exit code {answer.returncode} without a word"
