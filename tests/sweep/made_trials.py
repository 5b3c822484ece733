"""Grids and trial folders made by hand."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retlab.config import ExperimentConfig
from retlab.data.settings import DataSection
from retlab.sweep.grid import Grid, Point, Trial
from retlab.sweep.results import TrialFailure, TrialResult, write_failure, write_result


def make_grid(
    folder: Path,
    axes: dict[str, list[Any]] | None = None,
    architectures: tuple[str, ...] = ("retnet", "transformer"),
    seeds: tuple[int, ...] = (0,),
    problems: dict[int, str] | None = None,
    data: DataSection | None = None,
    **grid_search: Any,
) -> Grid:
    """A grid whose trials are named by point, architecture and seed; `problems` by number of point."""
    axes = {"train.learning_rate": [1e-3, 1e-2]} if axes is None else axes
    section = {"axes": axes, "architectures": architectures, "seeds": seeds, **grid_search}
    values = {"name": "sweep", "output_dir": folder / "runs", "grid_search": section}
    values["evaluate"] = {"device": "cpu", "batch_size": 3}
    config = ExperimentConfig.model_validate(values)
    if data is not None:
        config = config.model_copy(update={"data": data})
    points = []
    for number, combination in enumerate(itertools.product(*axes.values()), start=1):
        problem = (problems or {}).get(number)
        trials = [] if problem else [_trial(config, number, name, seed) for name in architectures for seed in seeds]
        points.append(Point(number, dict(zip(axes, combination, strict=True)), trials, problem))
    return Grid(config, points, excluded=0)


def _trial(config: ExperimentConfig, number: int, architecture: str, seed: int) -> Trial:
    model = {"architecture": architecture, "hidden_size": 16, "intermediate_size": 30 + len(architecture)}
    values = {**config.dump(), "name": f"p{number}-{architecture}-{seed}", "seed": seed, "model": model}
    values["output_dir"] = config.output_dir / "trials"
    made = ExperimentConfig.model_validate(values)
    return Trial(architecture, seed, made.model_copy(update={"data": config.data}), 1000 + number)


def finish(trial: Trial, validation_loss: float = 4.0, test_loss: float = 4.1, **changes: Any) -> TrialResult:
    """Leave the result of a finished trial."""
    values: dict[str, Any] = {
        "trial": trial.id, "status": "finished", "architecture": trial.architecture, "seed": trial.seed,
        "parameters": trial.parameters, "steps": 10, "tokens": 1000, "best_step": 8,
        "validation_loss": validation_loss, "test_loss": test_loss, "test_bits_per_byte": 1.5,
        "training_seconds": 2.0, "tokens_per_second": 500.0, "seconds": 3.0, "energy_kwh": 1e-4, "emissions_kg": 4e-5,
        "energy_method": "share of the host's", "device": "cpu", "host": "here",
        "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:04:08+00:00", "versions": {"torch": "2"},
    }  # fmt: skip
    result = TrialResult.model_validate(values | changes)
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_result(trial.folder, result)
    return result


def diverge(trial: Trial, message: str = "the loss of step 7 is not finite") -> None:
    """Leave the result of a diverged trial."""
    losses = dict.fromkeys(["validation_loss", "test_loss", "test_bits_per_byte", "best_step"])
    finish(trial, **losses, status="diverged", message=message)  # type: ignore[arg-type]


def fail(trial: Trial, message: str = "ran out of memory") -> None:
    """Leave the failure of a trial."""
    values = {
        "trial": trial.id,
        "kind": "out of memory",
        "message": message,
        "host": "there",
        "ended": "2026-01-02T03:04:08+00:00",
    }
    write_failure(trial.folder, TrialFailure.model_validate(values))


def trial_at(grid: Grid, number: int, architecture: str, seed: int = 0) -> Trial:
    """One trial of the grid."""
    return next(
        trial for trial in grid.points[number - 1].trials if (trial.architecture, trial.seed) == (architecture, seed)
    )


def finish_all(grid: Grid, losses: Callable[[int, str, int], tuple[float, float]]) -> None:
    """Finish every trial with (validation loss, test loss) by point, architecture and seed."""
    for point in grid.points:
        for trial in point.trials:
            finish(trial, *losses(point.number, trial.architecture, trial.seed))
