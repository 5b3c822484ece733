import math

import pytest

from retlab.training.schedules import SHAPES, learning_rate_factor
from retlab.training.settings import ConstantSchedule, CosineSchedule, StepSchedule, WarmupStableDecaySchedule


def factors(schedule, total: int) -> list[float]:
    return [learning_rate_factor(schedule, step, total) for step in range(total)]


def test_cosine_rises_linearly_and_falls_to_the_final_ratio():
    values = factors(CosineSchedule(warmup_steps=4, final_ratio=0.1), 11)
    assert values[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert values[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert values[-1] == pytest.approx(0.1)


def test_warmup_stable_decay_ends_in_a_line():
    values = factors(WarmupStableDecaySchedule(name="warmup_stable_decay", warmup_steps=2, decay_steps=4), 10)
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_step_multiplies_by_gamma():
    values = factors(StepSchedule(name="step", warmup_steps=1, step_size=2, gamma=0.5), 6)
    assert values == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])


def test_constant_stays():
    assert factors(ConstantSchedule(name="constant", warmup_steps=2), 4) == pytest.approx([0.5, 1, 1, 1])


@pytest.mark.parametrize("total", [1, 2, 3])
def test_every_shape_bears_a_training_shorter_than_its_warmup(total):
    schedules = [
        CosineSchedule(warmup_steps=5),
        WarmupStableDecaySchedule(name="warmup_stable_decay", warmup_steps=5, decay_steps=5),
        StepSchedule(name="step", warmup_steps=5, step_size=1),
        ConstantSchedule(name="constant", warmup_steps=5),
    ]
    assert {schedule.name for schedule in schedules} == set(SHAPES)
    for schedule in schedules:
        assert all(0 <= value <= 1 for value in factors(schedule, total))
