"""What a sweep leaves for people: its tables, its pictures and a summary, always rebuilt from the trials' files."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

from retlab.artifacts import write_atomic
from retlab.storage import make_folder
from retlab.sweep.comparison import Comparison, Entry, Versus, compare
from retlab.sweep.grid import Grid, Point
from retlab.sweep.intervals import Difference, Spread
from retlab.sweep.outcomes import STATUSES, read_outcomes
from retlab.sweep.plots import write_plots
from retlab.sweep.report import report
from retlab.sweep.similarity import compare_models
from retlab.sweep.trials_table import to_parquet, trial_rows

Row = dict[str, Any]


def write_tables(grid: Grid, say: Callable[[str], None], *, compares: bool = True) -> None:
    """Write grid_search.csv, trials.csv, trials.parquet and the pictures into the sweep's folder, and say a summary.

    Trials that are still to be run, or running, are `missing`.

    Args:
        grid: the sweep.
        say: prints a line for people.
        compares: compare the predictions of models that were not compared yet; it takes a second or more for a pair.
    """
    make_folder(grid.folder)
    outcomes = read_outcomes(grid)
    comparison = compare(grid, outcomes, compare_models(grid, outcomes, say, compares))
    rows = trial_rows(comparison)
    write_atomic(grid.folder / "grid_search.csv", to_csv(point_rows(comparison)))
    write_atomic(grid.folder / "trials.csv", to_csv(rows))
    write_atomic(grid.folder / "trials.parquet", to_parquet(grid, rows))
    pictures = write_plots(comparison)
    for line in report(comparison, ["grid_search.csv", "trials.csv", "trials.parquet", *pictures]).splitlines():
        say(line)


def load_libraries(compares: bool) -> None:
    """Import now what `write_tables` needs, with `compares` also what predicts."""
    import pyarrow.parquet  # noqa: F401

    if compares:
        import retlab.sweep.predictions  # noqa: F401


def point_rows(comparison: Comparison) -> list[Row]:
    """The lines of grid_search.csv: one per point, invalid ones included."""
    return [_point_row(comparison, point) for point in comparison.grid.points]


def _point_row(comparison: Comparison, point: Point) -> Row:
    names = comparison.architectures
    row: Row = {
        "point": point.number,
        **point.values,
        "seeds": " ".join(map(str, comparison.grid.config.grid_search.seeds)),
        "problem": point.problem,
    }
    for name in names:
        entry = comparison.entries.get((point.number, name))
        is_best = entry is not None and comparison.best.get(name) is entry
        row |= {f"{name}_{key}": value for key, value in _entry_cells(entry, is_best).items()}
    for first, second in combinations(names, 2):
        versus = comparison.pairs.get((point.number, first, second))
        row |= _versus_cells(first, second, versus)
    return row


def _entry_cells(entry: Entry | None, is_best: bool) -> Row:
    counts = entry.counts if entry else dict.fromkeys(STATUSES)
    empty = Spread()
    return {
        "parameters": entry and entry.parameters,
        "intermediate_size": entry and entry.intermediate_size,
        **{f"trials_{status}": counts[status] for status in STATUSES},
        **_loss_cells("validation_loss_nats_per_token", entry.validation if entry else empty),
        **_loss_cells("test_loss_nats_per_token", entry.test if entry else empty),
        "test_bits_per_byte_mean": entry and entry.bits_per_byte.mean,
        "training_seconds_mean": entry and entry.seconds.mean,
        "tokens_per_second_mean": entry and entry.tokens_per_second.mean,
        "energy_kwh_mean": entry and entry.energy.mean,
        "energy_method": entry and entry.energy_method,
        "best_by_validation": "yes" if is_best else None,
    }


def _loss_cells(key: str, loss: Spread) -> Row:
    return {f"{key}_mean": loss.mean, f"{key}_sd": loss.deviation}


def _versus_cells(first: str, second: str, versus: Versus | None) -> Row:
    minus, between = f"{first}_minus_{second}", f"{first}_vs_{second}"
    return {
        f"{between}_shared_seeds": versus and versus.seeds,
        **_difference_cells(f"{minus}_test_loss_nats_per_token", versus.test if versus else None),
        **_difference_cells(f"{minus}_validation_loss_nats_per_token", versus.validation if versus else None),
        f"{between}_better": versus and versus.better,
        f"{between}_decided_by": versus and versus.decided_by,
        f"{between}_same_next_token_share": versus and versus.same_next_token,
        f"{between}_symmetric_kl_nats_per_token": versus and versus.symmetric_kl,
    }


def _difference_cells(key: str, difference: Difference | None) -> Row:
    return {
        f"{key}_mean": difference and difference.mean,
        f"{key}_ci95_low": difference and difference.low,
        f"{key}_ci95_high": difference and difference.high,
    }


def to_csv(rows: Iterable[Row]) -> str:
    """Rows of equal keys as CSV: None is blank, numbers read back the same, lists are JSON."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
