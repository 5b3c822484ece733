"""How long a sweep will take and how much energy, from a few steps of its cheapest and dearest trials."""

import csv
import heapq
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retlab.data.loader import TokenLoader
from retlab.models.counting import flops_per_token
from retlab.sweep.grid import Trial

STEPS = 8
"""Measured steps of a trial, after as many that warm up and compile."""
_REPEATED_BELOW_SECONDS = 5.0
"""In shorter measurements, what a process does once is no small part."""
_flops: dict[str, float] = {}
"""Per token, by model and length: trials share them."""


@dataclass(frozen=True)
class Cost:
    """What a trial costs, in seconds."""

    step: float
    "An optimizer step."
    validation: float
    "A validation, with the saving of its checkpoint."
    overhead: float
    "All that is there once: building, loading, exporting, testing."


def measure(trial: Trial, steps: int, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    """Train a trial somewhere else for twice `steps`, and take its cost from the second half and the rest.

    Returns the fields of `Cost`.
    """
    started = time.monotonic()
    cost = _run(trial, steps, stop_requested)
    if time.monotonic() - started < _REPEATED_BELOW_SECONDS:
        cost = _run(trial, steps, stop_requested)
    return cost


def _run(trial: Trial, steps: int, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    from retlab.sweep.trial import run_trial

    changes = {"max_steps": 2 * steps, "max_tokens": None, "max_epochs": None, "log_every_steps": steps,
               "validate_every_steps": 2 * steps, "checkpoint_every_steps": None}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="retlab-calibration-", ignore_cleanup_errors=True) as folder:
        training = trial.config.train.model_copy(update=changes)
        config = trial.config.model_copy(update={"train": training, "output_dir": Path(folder)})
        short = Trial(trial.architecture, trial.seed, config, trial.parameters)
        started = time.monotonic()
        result = run_trial(short, say=lambda _line: None, stop_requested=stop_requested)
        total = time.monotonic() - started
        with open(short.folder / "metrics.csv", encoding="utf-8", newline="") as file:
            seconds = {int(row["step"]): float(row["seconds"]) for row in csv.DictReader(file)}
    validation = result.validation_seconds or 0.0
    # A diverged training may have no second half.
    half = seconds.get(steps, 0.0) if 2 * steps in seconds else 0.0
    step = (result.training_seconds - half) / max(result.steps - (steps if half else 0), 1)
    return {"step": step, "validation": validation, "overhead": max(0.0, total - result.training_seconds - validation)}


class Costs:
    """Seconds of every trial, from measured ones of its architecture: linear in the operations of a step."""

    def __init__(self, measured: Sequence[tuple[Trial, Cost]]) -> None:
        known = [(trial.architecture, operations(trial), cost) for trial, cost in measured]
        self._known = sorted(known, key=lambda entry: entry[1])

    def seconds(self, trial: Trial, steps: int) -> float:
        """Expected seconds of a trial of so many optimizer steps."""
        known = [entry for entry in self._known if entry[0] == trial.architecture] or self._known
        (_, low, cheap), (_, high, dear) = known[0], known[-1]
        share = 0.0 if high == low else (operations(trial) - low) / (high - low)
        share = min(max(share, 0.0), 1.0)

        def between(one: float, other: float) -> float:
            return one + share * (other - one)

        return (
            between(cheap.overhead, dear.overhead)
            + between(cheap.step, dear.step) * steps
            + between(cheap.validation, dear.validation) * validations(trial, steps)
        )


def duration_of(seconds: Sequence[float], places: int) -> float:
    """Seconds until the last of some pieces of work is done, each taken up in turn by the first free of the places."""
    free = [0.0] * places
    for piece in seconds:
        heapq.heapreplace(free, free[0] + piece)
    return max(free)


def operations(trial: Trial) -> float:
    """Floating point operations of an optimizer step."""
    from retlab.config_model import vocabulary_size

    vocabulary = vocabulary_size(trial.config)
    assert vocabulary is not None
    length = trial.config.data.sequence_length
    key = json.dumps([trial.config.model.dump(), vocabulary, length])
    if key not in _flops:
        _flops[key] = flops_per_token(trial.config.model.to_fields(vocabulary), length)
    return _flops[key] * trial.config.train.batch_size * length


def is_like(one: Trial, other: Trial) -> bool:
    """Whether the measured cost of one trial is a guide to that of the other."""
    return one.architecture == other.architecture and 0.8 < operations(one) / operations(other) < 1.25


def extremes(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of each architecture whose steps are the cheapest and the dearest."""
    found: list[Trial] = []
    for architecture in dict.fromkeys(trial.architecture for trial in trials):
        mine = sorted((trial for trial in trials if trial.architecture == architecture), key=operations)
        found += mine[:1] if operations(mine[0]) == operations(mine[-1]) else [mine[0], mine[-1]]
    return found


def validations(trial: Trial, steps: int) -> int:
    """Validations of a trial of so many optimizer steps."""
    return math.ceil(steps / trial.config.train.validate_every_steps)


def planned_steps(trial: Trial) -> int:
    """Optimizer steps of a trial that is not stopped early."""
    section, data = trial.config.train, trial.config.data
    if section.max_steps is not None:
        return section.max_steps
    if section.max_tokens is not None:
        return math.ceil(section.max_tokens / (section.batch_size * data.sequence_length))
    loader = TokenLoader(
        data, data.shards_folder("train"), global_batch_size=section.batch_size, micro_batch_size=section.batch_size,
        seed=trial.seed, eos_id=0, pad_id=0, rank=0, world_size=1,
    )  # fmt: skip
    return max(1, math.ceil((section.max_epochs or 1) * loader.steps_per_epoch))


def planned_tokens(trial: Trial) -> int:
    """Training tokens of a trial: whole steps of whole batches."""
    return planned_steps(trial) * trial.config.train.batch_size * trial.config.data.sequence_length
