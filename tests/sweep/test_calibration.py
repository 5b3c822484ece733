"""Expected durations: steps, validations and what is there once, for trials between those that were measured."""

import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.sweep.made_trials import finish, make_grid

from retlab.sweep import calibration, estimate
from retlab.sweep.calibration import Cost, Costs, duration_of, extremes, is_like, operations
from retlab.sweep.estimate import Calibration, expect_on_slurm
from retlab.sweep.failures import of_time
from retlab.sweep.grid import Grid, Point, Trial
from retlab.sweep.plan import Plan


def trial(folder: Path, hidden_size: int = 16, sequence_length: int = 64, **train: Any) -> Trial:
    made = make_grid(folder, axes={}, architectures=("retnet",)).trials[0]
    config = made.config
    changed = {
        "model": config.model.model_copy(update={"hidden_size": hidden_size}),
        "data": config.data.model_copy(update={"sequence_length": sequence_length}),
        "train": config.train.model_copy(update={"batch_size": 4, "max_steps": 100, "max_tokens": None} | train),
        "name": f"{hidden_size}-{sequence_length}",
    }
    return Trial("retnet", 0, config.model_copy(update=changed), 1000)


def test_every_validation_counts_also_the_one_at_the_end(tmp_path: Path) -> None:
    one = trial(tmp_path, validate_every_steps=40)
    costs = Costs([(one, Cost(step=2.0, validation=7.0, overhead=5.0))])
    assert costs.seconds(one, 100) == 5 + 100 * 2 + 3 * 7
    assert costs.seconds(one, 80) == 5 + 80 * 2 + 2 * 7


def test_costs_between_two_measured_trials_follow_the_operations_of_a_step(tmp_path: Path) -> None:
    low, high, middle = trial(tmp_path, 16, 64), trial(tmp_path, 64, 256), trial(tmp_path, 64, 64)
    assert [one.id for one in extremes([middle, high, low])] == [low.id, high.id]
    # As long as a step costs a fixed time and one by its operations, every trial is met exactly.
    per_operation, fixed = 1e-9, 0.25
    measured = [(one, Cost(fixed + per_operation * operations(one), 0.0, 0.0)) for one in (low, high)]
    expected = 10 * (fixed + per_operation * operations(middle))
    assert Costs(measured).seconds(middle, 10) == pytest.approx(expected)


def test_a_step_of_more_tokens_has_more_operations(tmp_path: Path) -> None:
    assert operations(trial(tmp_path, batch_size=8)) == 2 * operations(trial(tmp_path, batch_size=4))


def test_pieces_of_work_go_to_the_first_free_place() -> None:
    assert duration_of([3, 1, 1, 1, 3], places=2) == 6
    assert duration_of([2] * 12, places=3) == 8
    assert duration_of([5], places=4) == 5


class Measuring:
    """Workers that need a second for every step, and are stopped after some trials."""

    def __init__(self, places: int = 2, stopped_after: int | None = None) -> None:
        self.places: list[dict[str, str]] = [{}] * places
        self.probed: list[str] = []
        self._stopped_after = stopped_after

    def run(self, trials: Iterable[Trial], watcher: Any, extra: dict[str, Any]) -> bool:
        assert extra["calibration_steps"] > 0
        for one in islice(trials, self._stopped_after):
            self.probed.append(one.id)
            watcher.done(one, {"step": 1.0, "validation": 0.0, "overhead": 0.0})
        return self._stopped_after is None


def grid_of(folder: Path, *trials: Trial, **grid_search: Any) -> Grid:
    grid = make_grid(folder, **grid_search)
    grid.folder.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(grid, points=[Point(1, {}, list(trials))])


def test_finished_trials_are_measured_no_more_and_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = trial(tmp_path, 16), trial(tmp_path, 64)
    assert not is_like(small, large)
    finish(small, steps=100, training_seconds=20.0, seconds=31.0, validation_seconds=1.0)
    seen, pool = {}, Measuring()
    monkeypatch.setattr(estimate, "duration_of", lambda each, _places: seen.setdefault("each", list(each)) and 1.0)
    missing = [trial(tmp_path, 16, learning_rate=0.5), large]
    estimate.estimate(Plan(grid_of(tmp_path, *missing), [small], [], missing), pool, lambda: 0.0, lambda _: None)
    assert pool.probed == [large.id] * 2, "one for each place"
    # 20 s of steps, one validation of 1 s, and 10 s of all else; then 100 steps of 1 s.
    assert seen["each"] == [pytest.approx(31.0), pytest.approx(100.0)]


def test_an_interrupted_calibration_is_kept_and_measured_to_its_end(tmp_path: Path) -> None:
    missing = [trial(tmp_path, 16), trial(tmp_path, 64)]
    plan = Plan(grid_of(tmp_path, *missing), [], [], missing)

    def probed(plan: Plan, **pool: Any) -> tuple[list[str], str]:
        workers, said = Measuring(**pool), [""]
        estimate.estimate(plan, workers, lambda: 0.5 if workers.probed else 0.0, said.append)
        return workers.probed, said[-1]

    small, large = (one.id for one in missing)
    found, said = probed(plan, stopped_after=1)
    assert found == [small]
    assert "expected" not in said
    assert probed(plan)[0] == [large] * 2
    again, said = probed(plan)
    assert again == []
    assert said == "expected: 1 min 40 s, 2 at a time, about 0.0139 kWh at 500 W"
    assert probed(plan, places=1)[0] == [small, large], "with another number of workers each has another speed"
    slower = [dataclasses.replace(one, config=one.config.model_copy(
        update={"train": one.config.train.model_copy(update={"threads": 2})})) for one in missing]  # fmt: skip
    assert probed(Plan(grid_of(tmp_path, *slower), [], [], slower))[0] == [small, large]


def test_a_measurement_that_takes_too_long_promises_no_checkpoint(tmp_path: Path) -> None:
    one = trial(tmp_path)
    calibration = Calibration(grid_of(tmp_path, one, trial_timeout=15), [{}])
    calibration.failed(one, *of_time(15))
    assert calibration.failures == [f"{one.id} (timeout): it takes longer than grid_search.trial_timeout, 15.0 s"]


def test_on_slurm_finished_trials_say_how_long_the_others_take(tmp_path: Path) -> None:
    done, *missing = [trial(tmp_path, 16, learning_rate=rate) for rate in (0.1, 0.2, 0.3, 0.4)]
    missing = [dataclasses.replace(one, config=one.config.model_copy(update={"name": f"m{number}"}))
               for number, one in enumerate(missing)]  # fmt: skip
    grid = grid_of(tmp_path, done, *missing, max_parallel=2)
    said: list[str] = []
    expect_on_slurm(Plan(grid, [], [], [done, *missing]), said.append)
    assert "not known before the first trials have a result" in said[-1]
    assert "grid_search.engine=local" in said[-1]
    finish(done, steps=100, training_seconds=20.0, seconds=30.0, validation_seconds=0.0, energy_kwh=0.03)
    expect_on_slurm(Plan(grid, [done], [], missing), said.append)
    assert said[-1] == (
        "expected: 1 min 00 s of running, 2 at a time, about 0.09 kWh, by 1 finished trial;"
        " waiting in the queue comes on top"
    )


@pytest.mark.parametrize(("seconds", "times"), [(1.0, 2), (100.0, 1)])
def test_only_a_short_measurement_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    """What a process does once is no small part of a short one."""
    runs, now = [], [0.0]

    def run(*_: object) -> dict[str, Any]:
        runs.append(None)
        now[0] += seconds
        return {"run": len(runs)}

    monkeypatch.setattr(calibration, "_run", run)
    monkeypatch.setattr(calibration.time, "monotonic", lambda: now[0])
    assert calibration.measure(trial(tmp_path), 8, lambda: False) == {"run": times}
