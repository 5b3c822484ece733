"""Expected durations: steps, validations and what is there once, for trials between those that were measured."""

from pathlib import Path
from typing import Any

import pytest
from tests.sweep.made_trials import finish, make_grid

from retlab.sweep import calibration, plan
from retlab.sweep.calibration import Cost, Costs, KeptCosts, duration_of, extremes, is_like, operations
from retlab.sweep.grid import Trial
from retlab.sweep.plan import Plan, estimate


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


def test_finished_trials_are_measured_no_more_and_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = trial(tmp_path, 16), trial(tmp_path, 64)
    assert not is_like(small, large)
    finish(small, steps=100, training_seconds=20.0, seconds=31.0, validation_seconds=1.0)
    grid, said, probed = make_grid(tmp_path), [], []

    class Measuring:
        places = ({}, {})

        def run(self, trials: list[Trial], watcher: Any, extra: dict[str, Any]) -> None:
            assert extra["calibration_steps"] > 0
            for one in trials:
                probed.append(one.id)
                watcher.done(one, {"step": 1.0, "validation": 0.0, "overhead": 0.0})

    seen = {}
    monkeypatch.setattr(plan, "duration_of", lambda each, _places: seen.setdefault("each", list(each)) and 1.0)
    missing = [trial(tmp_path, 16, learning_rate=0.5), large]
    estimate(Plan(grid, [small], [], missing), Measuring(), lambda: 0.0, said.append)
    assert probed == [large.id] * 2, "one for each place"
    # 20 s of steps, one validation of 1 s, and 10 s of all else; then 100 steps of 1 s.
    assert seen["each"] == [pytest.approx(31.0), pytest.approx(100.0)]


def test_a_measurement_is_kept_for_this_machine(tmp_path: Path) -> None:
    file, one, other = tmp_path / "calibration.json", trial(tmp_path, 16), trial(tmp_path, 64)
    kept = KeptCosts(file, ["here", 2, {"CUDA_VISIBLE_DEVICES": "1"}])
    assert kept.read({one.id: one}) == []
    kept.add(one, Cost(3.0, 1.0, 1.0))
    kept.add(one, Cost(2.0, 1.0, 1.0))
    kept.add(other, Cost(5.0, 1.0, 1.0))
    again = KeptCosts(file, ["here", 2, {"CUDA_VISIBLE_DEVICES": "1"}])
    assert again.read({one.id: one}) == [(one, Cost(2.0, 1.0, 1.0))]
    assert KeptCosts(file, ["there", 2, {"CUDA_VISIBLE_DEVICES": "1"}]).read({one.id: one}) == []
    file.write_text("{")
    assert again.read({one.id: one}) == []


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
