"""The trials of a sweep in long form, one row each, for statistics of one's own."""

import io
import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from retlab.sweep.comparison import Comparison, intermediate_size
from retlab.sweep.grid import Grid, Point
from retlab.sweep.outcomes import Outcome

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = (
    ("steps", "int64"),
    ("tokens", "int64"),
    ("best_step", "int64"),
    ("validation_loss_nats_per_token", "float64"),
    ("test_loss_nats_per_token", "float64"),
    ("test_bits_per_byte", "float64"),
    ("training_seconds", "float64"),
    ("tokens_per_second", "float64"),
    ("seconds", "float64"),
    ("energy_kwh", "float64"),
    ("emissions_kg", "float64"),
)
_WORDS = ("energy_method", "device", "host")
_TIMES = ("started", "ended")


def trial_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each architecture and seed of every valid point, whatever became of it."""
    return [
        _row(point, outcome)
        for point in comparison.grid.points
        for outcome in (comparison.outcomes[trial.id] for trial in point.trials)
    ]


def _row(point: Point, outcome: Outcome) -> dict[str, Any]:
    trial, result = outcome.trial, outcome.result
    known = result.model_dump(mode="json") if result else {}
    if outcome.failure:
        known = {"host": outcome.failure.host, "ended": outcome.failure.ended}
    names = [*(name for name, _ in _NUMBERS), *_WORDS, *_TIMES]
    return {
        "trial": trial.id,
        "point": point.number,
        "architecture": trial.architecture,
        "seed": trial.seed,
        **point.values,
        "status": outcome.status,
        "message": outcome.message,
        "parameters": trial.parameters,
        "intermediate_size": intermediate_size(outcome),
        **{name: known.get(name.removesuffix("_nats_per_token")) for name in names},
        "versions": json.dumps(known["versions"]) if "versions" in known else None,
        "commit": known.get("commit"),
        "folder": str(trial.folder),
    }


def to_parquet(grid: Grid, rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows with types: whole numbers, floats, times in UTC, text; axes as their values are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    axes = list(dict.fromkeys(key for point in grid.points for key in point.values))
    fixed = {
        "point": pa.int64(), "seed": pa.int64(), "parameters": pa.int64(), "intermediate_size": pa.int64(),
        **{name: pa.type_for_alias(kind) for name, kind in _NUMBERS},
        **dict.fromkeys(_TIMES, pa.timestamp("us", "UTC")),
    }  # fmt: skip
    columns = list(rows[0]) if rows else ["trial", "point", "architecture", "seed", *axes, "status", "message"]
    arrays = []
    for name in columns:
        values = [row[name] for row in rows]
        if name in axes:
            arrays.append(_axis(values))
        elif name in _TIMES:
            arrays.append(pa.array([_time(value) for value in values], fixed[name]))
        else:
            arrays.append(pa.array(values, fixed.get(name, pa.string())))
    file = io.BytesIO()
    pq.write_table(pa.table(arrays, names=columns), file, compression="zstd")
    return file.getvalue()


def _axis(values: Sequence[Any]) -> "pa.Array":
    """Values of an axis: all whole, all numbers, all true or false, else text (JSON of what is none)."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, pa.string())


def _time(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
