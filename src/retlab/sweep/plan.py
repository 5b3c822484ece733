"""What a sweep is about to do: points, trials, tokens, parameters; `estimate` adds hours and energy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retlab.artifacts import read_manifest
from retlab.config_model import vocabulary_size
from retlab.errors import UserError
from retlab.progress import counted
from retlab.section import shown_path
from retlab.sweep.calibration import planned_tokens
from retlab.sweep.grid import Grid, Trial
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
        done = f"finished {len(self.finished):,}, failed {len(self.failed):,}, "
        return [
            f"axes: {axes or 'none'}",
            f"{points}, {', '.join(section.architectures)}, {counted(len(section.seeds), 'seed')}:"
            f" {counted(len(grid.trials), 'trial')}",
            *(f"invalid: point {point.number} ({_named(point.values)}): {point.problem}" for point in invalid),
            *([f"parameters: {self._parameters()}"] if grid.trials else []),
            f"{'' if grid.lacking else done}to run {len(self.missing):,}: {self._tokens()}",
            *([f"failed trials are run again with --retry-failed: {len(self.failed):,}"] if self.failed else []),
            f"trials: {shown_path(grid.trials_folder)}; tables: {shown_path(grid.folder)}",
        ]

    def _parameters(self) -> str:
        if vocabulary_size(self.grid.config) is None:
            return "not known before the tokenizer is there"
        said = []
        for architecture in self.grid.config.grid_search.architectures:
            counts = sorted({trial.parameters for trial in self.grid.trials if trial.architecture == architecture})
            said.append(f"{architecture} {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else ""))
        return ", ".join(said)

    def _tokens(self) -> str:
        data = self.grid.config.data
        lengths = [(one.config.train.max_steps, one.config.train.max_tokens) for one in self.missing]
        if (None, None) in lengths and read_manifest(data.shards_folder("train")) is None:
            return "training tokens not known before the token shards are there"
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


def tell_without_inputs(grid: Grid, say: Callable[[str], None]) -> None:
    """Print the plan of a sweep whose data or tokenizer are not there: which trials have a result is not known."""
    for line in Plan(grid, [], [], grid.trials).lines():
        say(line)
    say(f"expected: hours and kWh are known once what stages 1 to 4 make is there: {grid.lacking}")


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
