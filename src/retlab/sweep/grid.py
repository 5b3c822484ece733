"""What a sweep consists of: points of the grid, and at each the trials of all architectures and seeds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retlab.config import ExperimentConfig


@dataclass(frozen=True)
class Trial:
    """One training of a sweep with the measurement of its model: a run folder named by what decides its result."""

    architecture: str
    seed: int
    config: ExperimentConfig
    "Complete: sizes are fitted, `name` is the trial's identity and `output_dir` the folder of the trials."
    parameters: int
    "Parameters of the model."

    @property
    def id(self) -> str:
        """Name of the trial and of its folder: a hash of everything that decides its result."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """The trial's run folder, with model/ and metrics.csv as of every training."""
        return self.config.run_folder


@dataclass(frozen=True)
class Point:
    """One combination of the axes' values."""

    number: int
    "From 1, in the order of the axes, the last one running fastest; excluded points have no number."
    values: dict[str, Any]
    "The axes' values by dotted key."
    trials: list[Trial] = field(default_factory=list)
    "A trial for each architecture and seed; empty where the point is invalid."
    problem: str | None = None
    "Why the point cannot be run, in a sentence."


@dataclass(frozen=True)
class Grid:
    """All points of a sweep."""

    config: ExperimentConfig
    "The configuration that the points vary."
    points: list[Point]
    excluded: int
    "Points that `exclude` leaves out."
    lacking: str | None = None
    "What of the data and the tokenizer is not there, in a sentence: such a grid is good for a plan alone."

    @property
    def folder(self) -> Path:
        """Where the sweep's tables and plots go."""
        return self.config.run_folder / "grid_search"

    @property
    def trials_folder(self) -> Path:
        """The folder of the trials, which other sweeps may share."""
        return self.config.grid_search.trials_folder or self.config.output_dir / "trials"

    @property
    def trials(self) -> list[Trial]:
        """The trials of all valid points, each once, in the order of the points."""
        return list({trial.id: trial for point in self.points for trial in point.trials}.values())
