"""What a sweep is about to do: points, trials, tokens, and after a calibration hours and energy."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from retlab import provenance
from retlab.errors import UserError
from retlab.progress import counted, duration
from retlab.section import shown_path
from retlab.sweep.calibration import (
    STEPS,
    Cost,
    Costs,
    KeptCosts,
    counts_epochs,
    duration_of,
    extremes,
    is_like,
    planned_steps,
    planned_tokens,
    validations,
)
from retlab.sweep.grid import Grid, Trial
from retlab.sweep.pool import Pool
from retlab.sweep.results import read_failure, read_result
from retlab.yaml_file import shown


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep by what is to be done about them."""

    grid: Grid
    finished: list[Trial]
    failed: list[Trial]
    "Not run again without --retry-failed."
    missing: list[Trial]
    "To be run."

    def lines(self) -> list[str]:
        """For people, one line each."""
        grid, section = self.grid, self.grid.config.grid_search
        invalid = [point for point in grid.points if point.problem]
        axes = ", ".join(f"{key} {shown(values)}" for key, values in section.axes.items())
        points = counted(len(grid.points), "point") + (f" ({grid.excluded:,} excluded)" if grid.excluded else "")
        return [
            f"axes: {axes or 'none'}",
            f"{points}, {', '.join(section.architectures)}, {counted(len(section.seeds), 'seed')}:"
            f" {counted(len(grid.trials), 'trial')}",
            *(f"invalid: point {point.number} ({_named(point.values)}): {point.problem}" for point in invalid),
            f"parameters: {self._sizes()}",
            f"finished {len(self.finished):,}, failed {len(self.failed):,}, to run {len(self.missing):,}:"
            f" {self._tokens()}",
            *([f"failed trials are run again with --retry-failed: {len(self.failed):,}"] if self.failed else []),
            f"trials: {shown_path(grid.trials_folder)}; tables: {shown_path(grid.folder)}",
        ]

    def _sizes(self) -> str:
        """The range of the trials' parameters, by architecture."""
        parts = []
        for architecture in self.grid.config.grid_search.architectures:
            sizes = {trial.parameters for trial in self.grid.trials if trial.architecture == architecture}
            if sizes:
                low, high = min(sizes), max(sizes)
                parts.append(f"{architecture} {low:,}" + (f" to {high:,}" if high > low else ""))
        return ", ".join(parts) or "none"

    def _tokens(self) -> str:
        # Epochs are as long as the data are.
        if self.grid.lacks and any(counts_epochs(trial) for trial in self.missing):
            return "train.max_epochs of data that are not there yet"
        return f"{sum(map(planned_tokens, self.missing)):,} training tokens"


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def make_plan(grid: Grid, retry_failed: bool) -> Plan:
    """Look at what is there of each trial."""
    finished, failed, missing = [], [], []
    for trial in grid.trials:
        if read_result(trial.folder) is not None:
            finished.append(trial)
        elif not retry_failed and read_failure(trial.folder) is not None:
            failed.append(trial)
        else:
            missing.append(trial)
    return Plan(grid, finished, failed, missing)


def refuse_invalid(grid: Grid, skip: bool) -> None:
    """Raise a UserError that lists the points that cannot be run; with `skip` only where there are no others."""
    invalid = [point for point in grid.points if point.problem]
    if invalid and (not skip or len(invalid) == len(grid.points)):
        rest = "" if skip else ", or run the rest with --skip-invalid"
        lines = [f"point {point.number} ({_named(point.values)}): {point.problem}" for point in invalid]
        raise UserError(
            "\n".join(lines)
            + f"\n{counted(len(invalid), 'point')} of {len(grid.points):,} cannot be run; mend the axes or leave them"
            f" out with grid_search.exclude{rest}"
        )


@dataclass
class Calibration:
    """Collects what the workers measured."""

    costs: list[tuple[Trial, Cost]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    keep: Callable[[Trial, Cost], None] = lambda _trial, _cost: None

    def started(self, trial: Trial) -> None:
        pass

    def done(self, trial: Trial, result: dict[str, Any] | None) -> None:
        if result:
            self.costs.append((trial, Cost(**result)))
            self.keep(trial, Cost(**result))

    def failed(self, trial: Trial, kind: str, message: str) -> None:
        self.failures.append(f"{trial.id} ({kind}): {message}")

    def interrupted(self, trial: Trial) -> None:
        pass

    def busy(self, trial: Trial) -> None:
        pass

    def tick(self) -> None:
        pass


def estimate(plan: Plan, pool: Pool, kilowatts: Callable[[], float], say: Callable[[str], None]) -> None:
    """Say how long the missing trials will take, from finished ones of this sweep or a few steps of some."""
    places = len(pool.places)
    kept = KeptCosts(
        plan.grid.folder / "calibration.json", [os.uname().nodename, places, pool.places[0], provenance.commit()]
    )
    by_id = {trial.id: trial for trial in plan.grid.trials}
    measured = Calibration([*_known_costs(plan), *kept.read(by_id)], keep=kept.add)
    probes = [one for one in extremes(plan.missing) if not any(is_like(one, known) for known, _ in measured.costs)]
    if probes:
        say(f"calibrating: {2 * STEPS} steps of {counted(len(probes), 'trial')}")
        # Every worker takes part: they are as slow beside each other as they will be, and have warmed up then.
        shared = islice(cycle(probes), max(len(probes), places))
        pool.run(shared, measured, {"calibration_steps": STEPS})
    for failure in dict.fromkeys(measured.failures):
        say(f"calibration: {failure}")
    if not measured.costs:
        return
    seconds = _expected_seconds(plan, measured.costs, places)
    power = kilowatts()
    energy = f", about {power * seconds / 3600:.3g} kWh at {1000 * power:.0f} W" if power else ""
    say(f"expected: {duration(seconds)}, {places} at a time{energy}")


def estimate_from_finished(plan: Plan, places: int, say: Callable[[str], None]) -> None:
    """Say how long the missing trials will take somewhere else, from finished ones of this sweep."""
    known = _known_costs(plan)
    if not plan.missing:
        return
    if not known:
        say(
            "hours and kWh: known when the first trials have finished; grid_search.engine=local with --plan measures"
            " them on the machine that it runs on"
        )
        return
    energies = [result.energy_kwh for trial in plan.finished if (result := read_result(trial.folder))]
    used = [energy for energy in energies if energy is not None]
    energy = f", about {sum(used) / len(used) * len(plan.missing):.3g} kWh" if used else ""
    seconds = _expected_seconds(plan, known, places)
    say(
        f"expected: {duration(seconds)} when {places} run at a time{energy}, from"
        f" {counted(len(known), 'finished trial')}; waiting for the cluster comes on top"
    )


def _expected_seconds(plan: Plan, known: list[tuple[Trial, Cost]], places: int) -> float:
    costs = Costs(known)
    return duration_of([costs.seconds(trial, planned_steps(trial)) for trial in plan.missing], places)


def _known_costs(plan: Plan) -> list[tuple[Trial, Cost]]:
    """Costs of the finished trials of this sweep; those of other machines are no guide but the best there is."""
    known = []
    for trial in plan.finished:
        result = read_result(trial.folder)
        if result is not None and result.status == "finished" and result.steps:
            seconds, validation = result.training_seconds, result.validation_seconds or 0.0
            others = result.seconds - seconds - validation * validations(trial, result.steps)
            known.append((trial, Cost(seconds / result.steps, validation, max(0.0, others))))
    return known
