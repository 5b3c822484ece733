"""Trials as plain values: for a worker's orders, and as a list of which every task of a job array runs one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, write_atomic
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.section import shown_path
from retlab.sweep.grid import Trial


def plain(trial: Trial) -> dict[str, Any]:
    """A trial as plain values."""
    values = {"id": trial.id, "architecture": trial.architecture, "seed": trial.seed, "parameters": trial.parameters}
    return values | {"config": trial.config.dump()}


def trial_of(values: dict[str, Any]) -> Trial:
    """The trial of plain values."""
    config = ExperimentConfig.model_validate(values["config"])
    return Trial(values["architecture"], values["seed"], config, values["parameters"])


def write_trials(file: Path, trials: Sequence[Trial]) -> None:
    """Write a list of trials, a line each; a task needs nothing else to know its own."""
    write_atomic(file, "[\n" + ",\n".join(json.dumps(plain(trial)) for trial in trials) + "\n]\n")


def trial_ids(file: Path) -> list[str]:
    """The identities of the trials of a list; none where it is gone."""
    return [values["id"] for values in read_json(file) or []]


def read_trial(file: Path, number: int) -> Trial:
    """The trial of this number, from 0, in a list. Raises UserError where there is none."""
    trials = read_json(file)
    if not isinstance(trials, list) or not all(isinstance(values, dict) and "config" in values for values in trials):
        raise UserError(
            f"--trials: {shown_path(file.absolute())} is missing or no list of trials; name the list that --task"
            " counts in"
        )
    if not 0 <= number < len(trials):
        raise UserError(f"--task: there is no trial {number} in {file}, which lists {len(trials):,}; count from 0")
    return trial_of(trials[number])
