"""The `grid_search` section of the configuration."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from retlab.section import ProjectPath, Section

Architecture = Literal["retnet", "transformer", "longnet"]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]


class GridSearchSection(Section):
    """Which trainings a sweep compares, and how they are run."""

    axes: dict[str, list[Any]] = {}
    "Dotted keys of model, train or data to lists of values, such as train.learning_rate: [1e-3, 3e-4]."
    architectures: list[Architecture] = Field(default=["retnet", "transformer"], min_length=1)
    "Architectures trained at every point; each pair of them is compared."
    seeds: list[_Seed] = Field(default=[0], min_length=1)
    "Seeds; each architecture is trained once for each of them at every point."
    exclude: list[dict[str, Any]] = []
    "Points to leave out: dotted keys to a value or a list of values; a point that fits all keys of a rule is out."
    match_parameters: bool = True
    "The axes set the first architecture; the others' feed-forward width is fitted to its parameters within 1 %."
    max_trials: int = Field(default=1000, ge=1)
    "Most trials of a sweep; one with more is refused."
    trial_timeout: float | None = Field(default=None, gt=0)
    "Seconds after which a trial is given up; null never does."
    trials_folder: ProjectPath | None = None
    "Folder of the trials, which several sweeps may share; null is <output_dir>/trials."
    similarity_windows: int = Field(default=64, ge=1)
    "Windows of the test split on which two models' predictions are compared."
    engine: Literal["local", "slurm"] = "local"
    "Where trials run: on this machine, or each as a task of a Slurm job array."
    workers: int | None = Field(default=None, ge=1)
    "Trials at a time on this machine; null is one per GPU, or one per CPU core (train.threads each)."
    max_parallel: int = Field(default=16, ge=1)
    "Tasks of the Slurm job array at a time."

    @field_validator("axes", mode="before")
    @classmethod
    def _dotted(cls, axes: Any) -> Any:
        """Axes that are nested, as `grid_search.axes.train.learning_rate=[...]` gives them, by dotted key."""
        return dict(_flat(axes)) if isinstance(axes, dict) else axes


def _flat(axes: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in axes.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
