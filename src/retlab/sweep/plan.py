"""What a sweep is about to do: points, trials, tokens, and after a calibration hours and energy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from retlab.errors import UserError
from retlab.progress import counted, duration
from retlab.section import shown_path
from retlab.sweep.calibration import (
    STEPS,
    Cost,
    Costs,
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
        tokens = sum(map(planned_tokens, self.missing))
        return [
            f"axes: {axes or 'none'}",
            f"{points}, {', '.join(section.architectures)}, {counted(len(section.seeds), 'seed')}:"
            f" {counted(len(grid.trials), 'trial')}",
            *(f"invalid: point {point.number} ({_named(point.values)}): {point.problem}" for point in invalid),
            f"finished {len(self.finished):,}, failed {len(self.failed):,}, to run {len(self.missing):,}:"
            f" {tokens:,} training tokens",
            *([f"failed trials are run again with --retry-failed: {len(self.failed):,}"] if self.failed else []),
            f"trials: {shown_path(grid.trials_folder)}; tables: {shown_path(grid.folder)}",
        ]


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

    def started(self, trial: Trial) -> None:
        pass

    def done(self, trial: Trial, result: dict[str, Any] | None) -> None:
        if result:
            self.costs.append((trial, Cost(**result)))

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
    measured = Calibration(_known_costs(plan))
    probes = [one for one in extremes(plan.missing) if not any(is_like(one, known) for known, _ in measured.costs)]
    if probes:
        say(f"calibrating: {2 * STEPS} steps of {counted(len(probes), 'trial')}")
        # Every worker takes part: they are as slow beside each other as they will be, and have warmed up then.
        shared = islice(cycle(probes), max(len(probes), len(pool.places)))
        pool.run(shared, measured, {"calibration_steps": STEPS})
    for failure in dict.fromkeys(measured.failures):
        say(f"calibration: {failure}")
    if not measured.costs:
        return
    costs, places = Costs(measured.costs), len(pool.places)
    each = [costs.seconds(trial, planned_steps(trial)) for trial in plan.missing]
    seconds = duration_of(each, places)
    power = kilowatts()
    energy = f", about {power * seconds / 3600:.3g} kWh at {1000 * power:.0f} W" if power else ""
    say(f"expected: {duration(seconds)}, {places} at a time{energy}")


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
