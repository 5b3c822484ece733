"""A host's energy is shared out over the trials that ran, and none of it twice."""

import pytest

from retlab.sweep.energy import EnergyShares


class Host:
    """A host of 36 W whose tracker reports every five seconds, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shares = EnergyShares(self.totals, lambda: self.now)

    def totals(self) -> dict[str, float | str]:
        seconds = self.now // 5 * 5
        kwh = 0.036 * seconds / 3600
        return {
            "duration_seconds": seconds, "energy_kwh": kwh, "emissions_kg_co2e": kwh / 2, "power_method": "by hand"
        }  # fmt: skip

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.shares.tick()


def test_trials_side_by_side_share_the_host_by_time() -> None:
    host = Host()
    host.shares.start("first")
    host.wait(10)
    host.shares.start("second")
    host.wait(10)
    first = host.shares.end("first")
    host.wait(10)
    second = host.shares.end("second")
    # 10 s alone and 10 s of two: 15 s of the host each, which are 0.15 Wh.
    for energy in (first, second):
        assert energy.kwh == pytest.approx(0.00015, rel=1e-6)
        assert energy.kg == pytest.approx(0.000075, rel=1e-6)
        assert "up to 2 trials at once; by hand" in energy.method


def test_time_before_the_first_measurement_counts() -> None:
    host = Host()
    host.shares.start("first")
    host.wait(3)
    assert host.shares.so_far("first").kwh is None
    host.wait(4)
    assert host.shares.end("first").kwh == pytest.approx(0.036 * 7 / 3600, rel=1e-6)


def test_energy_of_earlier_attempts_is_added_once() -> None:
    host = Host()
    host.shares.start("first")
    host.wait(10)
    before = host.shares.end("first")
    host.shares.start("first")
    host.wait(10)
    total = host.shares.end("first").after(before)
    assert total.kwh == pytest.approx(0.036 * 20 / 3600, rel=1e-6)


def test_without_a_tracker_nothing_is_said_to_be_measured() -> None:
    shares = EnergyShares(lambda: None)
    shares.start("first")
    energy = shares.end("first")
    assert energy.kwh is None
    assert energy.method == "not measured"
