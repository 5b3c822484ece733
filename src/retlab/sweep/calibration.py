"""How long a sweep will take and how much energy, from a few steps of its cheapest and dearest trials."""

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
"""Steps of a measurement, beside a few that warm up and compile."""


@dataclass(frozen=True)
class Cost:
    """What a trial costs: `seconds` = overhead + seconds per token x tokens."""

    seconds_per_token: float
    overhead: float


def measure(trial: Trial, steps: int, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    """Train a trial somewhere else: a step to warm up, a step, and `steps` more than that.

    Returns the seconds of a further step per token, and the seconds of everything else, which is there once:
    loading, a first step, validation, saving, testing.
    """
    spent = [_run_for(trial, length, stop_requested) for length in (1, 1, 1 + steps)][1:]
    (short, _, few), (long, total, many) = spent
    per_token = max(long - short, 0.0) / (many - few) if many > few else long / max(many, 1)
    return {"seconds_per_token": per_token, "overhead": max(0.0, total - per_token * many)}


def _run_for(trial: Trial, steps: int, stop_requested: Callable[[], bool]) -> tuple[float, float, int]:
    """Seconds in training steps, seconds in all, and training tokens of a short trial that leaves nothing."""
    from retlab.sweep.trial import run_trial

    training = trial.config.train.model_copy(
        update={"max_steps": steps, "max_tokens": None, "max_epochs": None, "validate_every_steps": 10**9}
    )
    with tempfile.TemporaryDirectory(prefix="retlab-calibration-", ignore_cleanup_errors=True) as folder:
        config = trial.config.model_copy(update={"train": training, "output_dir": Path(folder)})
        started = time.monotonic()
        result = run_trial(
            Trial(trial.architecture, trial.seed, config, trial.parameters),
            say=lambda _line: None,
            stop_requested=stop_requested,
        )
        return result.training_seconds, time.monotonic() - started, result.tokens


class Costs:
    """Seconds of every trial, from measured ones of its architecture: linear in the operations per token."""

    def __init__(self, measured: Sequence[tuple[Trial, Cost]]) -> None:
        self._measured = list(measured)

    def seconds(self, trial: Trial, tokens: int) -> float:
        """Expected seconds of a trial of so many training tokens."""
        known = [(operations(one), cost) for one, cost in self._measured if one.architecture == trial.architecture]
        known = known or [(operations(one), cost) for one, cost in self._measured]
        known.sort(key=lambda pair: pair[0])
        (low, cheap), (high, dear) = known[0], known[-1]
        share = 0.0 if high == low else (operations(trial) - low) / (high - low)
        share = min(max(share, 0.0), 1.0)
        per_token = cheap.seconds_per_token + share * (dear.seconds_per_token - cheap.seconds_per_token)
        overhead = cheap.overhead + share * (dear.overhead - cheap.overhead)
        return overhead + per_token * tokens


def operations(trial: Trial) -> float:
    """Floating point operations per trained token."""
    from retlab.config_model import vocabulary_size

    vocabulary = vocabulary_size(trial.config)
    assert vocabulary is not None
    return flops_per_token(trial.config.model.to_fields(vocabulary), trial.config.data.sequence_length)


def extremes(trials: Sequence[Trial]) -> list[Trial]:
    """The cheapest and the dearest trial of each architecture."""
    found: list[Trial] = []
    for architecture in dict.fromkeys(trial.architecture for trial in trials):
        mine = sorted((trial for trial in trials if trial.architecture == architecture), key=operations)
        found += mine[:1] if operations(mine[0]) == operations(mine[-1]) else [mine[0], mine[-1]]
    return found


def planned_tokens(trial: Trial) -> int:
    """Training tokens of a trial: whole steps of whole batches."""
    section, data = trial.config.train, trial.config.data
    step = section.batch_size * data.sequence_length
    if section.max_steps is not None:
        return section.max_steps * step
    if section.max_tokens is not None:
        return math.ceil(section.max_tokens / step) * step
    loader = TokenLoader(
        data, data.shards_folder("train"), global_batch_size=section.batch_size, micro_batch_size=section.batch_size,
        seed=trial.seed, eos_id=0, pad_id=0, rank=0, world_size=1,
    )  # fmt: skip
    return max(1, math.ceil((section.max_epochs or 1) * loader.steps_per_epoch)) * step
