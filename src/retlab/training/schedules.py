"""Learning-rate schedules: pure functions of the step."""

import math
from collections.abc import Callable
from typing import Any

from retlab.training.settings import (
    ConstantSchedule,
    CosineSchedule,
    Schedule,
    StepSchedule,
    WarmupStableDecaySchedule,
)


def learning_rate_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Share of the highest learning rate that an optimizer step takes.

    Args:
        schedule: which shape.
        step: counted from 0; the warm-up reaches 1 at step `warmup_steps - 1`.
        total_steps: length of the training; step `total_steps - 1` is the last.
    """
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    return warmup * SHAPES[schedule.name](schedule, step, total_steps)


def _constant(_schedule: ConstantSchedule, _step: int, _total_steps: int) -> float:
    return 1.0


def _cosine(schedule: CosineSchedule, step: int, total_steps: int) -> float:
    after = max(0, step - schedule.warmup_steps)
    done = min(1.0, after / max(1, total_steps - 1 - schedule.warmup_steps))
    return schedule.final_ratio + (1 - schedule.final_ratio) * (1 + math.cos(math.pi * done)) / 2


def _warmup_stable_decay(schedule: WarmupStableDecaySchedule, step: int, total_steps: int) -> float:
    left = max(0, total_steps - 1 - step)
    return schedule.final_ratio + (1 - schedule.final_ratio) * min(1.0, left / schedule.decay_steps)


def _step(schedule: StepSchedule, step: int, _total_steps: int) -> float:
    return schedule.gamma ** (max(0, step - schedule.warmup_steps) // schedule.step_size)


SHAPES: dict[str, Callable[[Any, int, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "warmup_stable_decay": _warmup_stable_decay,
    "step": _step,
}
