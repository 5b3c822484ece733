"""How long the missing trials of a sweep will take and how much energy: from what ran before, and a calibration."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from retlab import provenance
from retlab.artifacts import read_json, write_json
from retlab.progress import counted, duration
from retlab.section import shown_path
from retlab.sweep.calibration import STEPS, Cost, Costs, duration_of, extremes, is_like, planned_steps, validations
from retlab.sweep.grid import Grid, Trial
from retlab.sweep.plan import Plan
from retlab.sweep.pool import Pool
from retlab.sweep.results import read_result

# What neither decides what a trial does nor how long that takes.
_NO_MATTER = ("name", "seed", "output_dir", "emissions", "generate", "grid_search", "cluster")


@dataclass
class Calibration:
    """What the workers measure, with what those of earlier attempts at the sweep measured under the same conditions.

    Every measurement is written down at once, so that nothing is measured again after an interruption.

    Args:
        grid: the sweep, in whose folder it is kept.
        places: the environment of the worker at each place.
    """

    grid: Grid
    places: Sequence[dict[str, str]]
    costs: list[tuple[Trial, Cost]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    kilowatts: float = 0.0
    "Power of the host while that was measured; 0 where it is not known."
    since: str | None = None
    "When the first of what earlier attempts measured was written down, ISO 8601 in UTC."
    _entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return self.grid.folder / "calibration.json"

    def read(self) -> None:
        """Take over what was measured of these trials by the same machine with the same settings."""
        kept, trials = read_json(self.file), {trial.id: trial for trial in self.grid.trials}
        if not isinstance(kept, dict):
            return
        for entry in kept["measured"]:
            trial = trials.get(entry["trial"])
            if trial is not None and entry["conditions"] == self._conditions(trial):
                self._entries.append(entry)
                self.costs.append((trial, Cost(**entry["cost"])))
        if self._entries:
            self.kilowatts, self.since = kept["kilowatts"], min(entry["measured"] for entry in self._entries)

    def keep(self) -> None:
        """Write it down."""
        write_json(self.file, {"kilowatts": self.kilowatts, "measured": self._entries})

    def _conditions(self, trial: Trial) -> str:
        values = {
            "config": {key: value for key, value in trial.config.dump().items() if key not in _NO_MATTER},
            "host": os.uname().nodename,
            "cores": len(os.sched_getaffinity(0)),
            "places": list(self.places),
            "versions": provenance.versions(),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()

    def started(self, trial: Trial) -> None:
        pass

    def done(self, trial: Trial, result: dict[str, Any] | None) -> None:
        if result:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            cost = Cost(**result)
            self.costs.append((trial, cost))
            self._entries.append(
                {"trial": trial.id, "conditions": self._conditions(trial), "measured": now, "cost": asdict(cost)}
            )
            self.keep()

    def failed(self, trial: Trial, kind: str, message: str) -> None:
        if kind == "timeout":
            # What a timeout says of checkpoints is true of trials alone.
            limit = self.grid.config.grid_search.trial_timeout
            message = f"it takes longer than grid_search.trial_timeout, {limit} s"
        self.failures.append(f"{trial.id} ({kind}): {message}")

    def interrupted(self, trial: Trial) -> None:
        pass

    def busy(self, trial: Trial) -> None:
        pass

    def tick(self) -> None:
        pass


def estimate(plan: Plan, pool: Pool, kilowatts: Callable[[], float], say: Callable[[str], None]) -> None:
    """Say how long the missing trials will take, from finished ones of this sweep or a few steps of some."""
    known, energy_rate = _known_costs(plan)
    measured = Calibration(plan.grid, pool.places)
    measured.read()
    probes = _unlike(extremes(plan.missing), [*known, *measured.costs])
    if measured.since and _unlike(extremes(plan.missing), known):
        say(f"calibrated on {_date(measured.since)}, by {shown_path(measured.file)}")
    if probes:
        say(f"calibrating: {2 * STEPS} steps of {counted(len(probes), 'trial')}")
        # Every worker takes part: they are as slow beside each other as they will be, and have warmed up then.
        shared = islice(cycle(probes), max(len(probes), len(pool.places)))
        finished = pool.run(shared, measured, {"calibration_steps": STEPS})
        measured.kilowatts = kilowatts() or measured.kilowatts
        if measured.costs:
            measured.keep()
        if not finished:
            return
    for failure in dict.fromkeys(measured.failures):
        say(f"calibration: {failure}")
    costs, places = [*known, *measured.costs], len(pool.places)
    if not costs:
        return
    each = _seconds_of(plan.missing, costs)
    seconds = duration_of(each, places)
    power = measured.kilowatts
    energy = f", about {power * seconds / 3600:.3g} kWh at {1000 * power:.0f} W" if power else ""
    if not power and energy_rate:
        energy = f", about {energy_rate * sum(each):.3g} kWh"
    say(f"expected: {duration(seconds)}, {places} at a time{energy}")


def expect_on_slurm(plan: Plan, say: Callable[[str], None]) -> None:
    """Say how long the missing trials will take as tasks of job arrays, as far as finished ones tell."""
    if not plan.missing:
        return
    known, energy_rate = _known_costs(plan)
    if not known:
        say(
            "expected: not known before the first trials have a result, since the jobs' machines are not at hand here;"
            " --plan tells it from those then, and with grid_search.engine=local, in a job on such a machine, measures"
            " it now"
        )
        return
    each = _seconds_of(plan.missing, known)
    places = min(plan.grid.config.grid_search.max_parallel, len(each))
    energy = f", about {energy_rate * sum(each):.3g} kWh" if energy_rate else ""
    say(
        f"expected: {duration(duration_of(each, places))} of running, {places} at a time{energy}, by"
        f" {counted(len(known), 'finished trial')}; waiting in the queue comes on top"
    )


def _unlike(trials: Sequence[Trial], known: Sequence[tuple[Trial, Cost]]) -> list[Trial]:
    return [one for one in trials if not any(is_like(one, other) for other, _ in known)]


def _seconds_of(trials: Sequence[Trial], known: Sequence[tuple[Trial, Cost]]) -> list[float]:
    costs = Costs(known)
    return [costs.seconds(trial, planned_steps(trial)) for trial in trials]


def _date(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}"


def _known_costs(plan: Plan) -> tuple[list[tuple[Trial, Cost]], float]:
    """What the finished trials of this sweep took, and their kWh per second; 0 where that was not measured."""
    known, kwh, spent = [], 0.0, 0.0
    for trial in plan.finished:
        result = read_result(trial.folder)
        if result is not None and result.status == "finished" and result.steps:
            seconds, validation = result.training_seconds, result.validation_seconds or 0.0
            others = result.seconds - seconds - validation * validations(trial, result.steps)
            known.append((trial, Cost(seconds / result.steps, validation, max(0.0, others))))
            if result.energy_kwh is not None:
                # Energy is that of all attempts, and so are the seconds of the steps.
                kwh, spent = kwh + result.energy_kwh, spent + max(result.seconds, seconds)
    return known, kwh / spent if spent else 0.0
