"""Workers are there before there is work for all of them."""

from pathlib import Path

import pytest
from tests.sweep.made_trials import make_grid

from retlab.sweep.plan import Calibration
from retlab.sweep.pool import Pool


def test_all_workers_start_although_the_first_work_is_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    start = Pool._start

    def counted(pool: Pool, place: int, environment: dict[str, str]) -> None:
        places.append(place)
        start(pool, place, environment)

    monkeypatch.setattr(Pool, "_start", counted)
    trials = make_grid(tmp_path).trials[:1]
    # A signal that was there before: nothing is given to a worker, and none is waited for.
    with Pool([{}, {}, {}], None, lambda: True, tmp_path) as pool:
        pool.start()
        assert places == [0, 1, 2]
        assert not pool.run(trials, Calibration())
    assert places == [0, 1, 2]
