"""The energy of a host shared out over the trials that ran on it at the same time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retlab.sweep.trial import Energy


@dataclass
class _Share:
    """What one trial used so far."""

    kwh: float = 0.0
    seconds: float = 0.0
    "Its share of the host's time that no power is known for yet."
    most: int = 1
    "Trials that ran at once, itself included."


@dataclass
class EnergyShares:
    """Shares out what the sweep's tracker measures, by time: of n trials that run side by side each has an nth.

    The tracker's totals come every few seconds; until the next ones the power of the last interval counts on.

    Args:
        totals: the running totals of the tracker's row (`energy_kwh`, `emissions_kg_co2e`, `duration_seconds`,
            `power_method`), or None where nothing is measured.
        clock: seconds.
    """

    totals: Callable[[], dict[str, Any] | None]
    clock: Callable[[], float] = time.monotonic
    kilowatts: float = 0.0
    "Power of the last interval; 0 before there is one."
    _shares: dict[str, _Share] = field(default_factory=dict)
    _kg_per_kwh: float = 0.0
    _method: str = ""
    _seen: tuple[float, float] = (0.0, 0.0)
    _last: float | None = None

    def start(self, trial: str) -> None:
        """A trial began."""
        self.tick()
        self._shares[trial] = _Share()
        for share in self._shares.values():
            share.most = max(share.most, len(self._shares))

    def end(self, trial: str) -> Energy:
        """What a trial used that has ended."""
        self.tick()
        used = self.so_far(trial)
        del self._shares[trial]
        return used

    def so_far(self, trial: str) -> Energy:
        """What a running trial used up to the last tick."""
        share = self._shares[trial]
        if self.kilowatts == 0:
            return Energy()
        how = f"by time, up to {share.most} trials at once" if share.most > 1 else "one trial at a time"
        return Energy(share.kwh, share.kwh * self._kg_per_kwh, f"share of the host's, {how}; {self._method}")

    def tick(self) -> None:
        """Count the time that passed, at the power that is known by now."""
        now = self.clock()
        passed = now - self._last if self._last is not None else 0.0
        self._last = now
        self._look()
        for share in self._shares.values():
            share.seconds += passed / len(self._shares)
            if self.kilowatts:
                share.kwh += self.kilowatts * share.seconds / 3600
                share.seconds = 0.0

    def _look(self) -> None:
        row = self.totals()
        if row is None or row["duration_seconds"] <= self._seen[0] or row["energy_kwh"] <= self._seen[1]:
            return
        seconds, kwh = float(row["duration_seconds"]), float(row["energy_kwh"])
        self.kilowatts = (kwh - self._seen[1]) * 3600 / (seconds - self._seen[0])
        self._kg_per_kwh = row["emissions_kg_co2e"] / kwh
        self._seen, self._method = (seconds, kwh), row["power_method"]
