"""What became of each trial of a grid, read from the trials' folders."""

from dataclasses import dataclass
from typing import Literal

from retlab.sweep.grid import Grid, Trial
from retlab.sweep.results import TrialFailure, TrialResult, read_failure, read_result

Status = Literal["finished", "diverged", "failed", "missing"]
STATUSES: tuple[Status, ...] = ("finished", "diverged", "failed", "missing")


@dataclass(frozen=True)
class Outcome:
    """A trial and what its folder holds."""

    trial: Trial
    result: TrialResult | None = None
    failure: TrialFailure | None = None

    @property
    def status(self) -> Status:
        """Missing is a trial that was not run yet, or not to its end."""
        if self.result is not None:
            return self.result.status
        return "missing" if self.failure is None else "failed"

    @property
    def message(self) -> str | None:
        """Why a trial diverged or failed."""
        if self.result is not None:
            return self.result.message
        return None if self.failure is None else self.failure.sentence


def read_outcomes(grid: Grid) -> dict[str, Outcome]:
    """What every trial of the grid left, by the trial's identity. A result counts, whatever failed before it."""
    return {trial.id: _read(trial) for trial in grid.trials}


def _read(trial: Trial) -> Outcome:
    result = read_result(trial.folder)
    if result is not None:
        return Outcome(trial, result)
    return Outcome(trial, failure=read_failure(trial.folder))
