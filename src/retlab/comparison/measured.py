"""Tables of what is measured beyond the test loss: lm-eval's tasks, latency, loss by position, learning curves."""

from collections.abc import Iterator, Sequence
from typing import Any

from retlab.comparison.runs import Run
from retlab.comparison.tables import Better, Cell, Column, Row, Table, number, significant, with_best

_LOWER = ("perplexity", "bits_per_byte", "loss", "brier", "wer", "cer", "ter", "mse", "mae")
_HIGHER = (
    "acc",
    "exact_match",
    "f1",
    "bleu",
    "rouge",
    "chrf",
    "pass",
    "mcc",
    "mrr",
    "em",
    "prompt_level",
    "inst_level",
)


def task_table(runs: Sequence[Run]) -> Table | None:
    """Each metric of each task, a column for each run and one for its standard error."""
    found = {run.name: {_task_key(row): row for row in run.results.get("tasks", [])} for run in runs}
    keys = sorted({key for rows in found.values() for key in rows})
    if not keys:
        return None
    rows, notes = [], []
    for key in keys:
        cells = [_with_error(found[run.name].get(key, {})) for run in runs]
        asked = {run.name: _questions(found[run.name][key]) for run in runs if key in found[run.name]}
        better = _direction(key[1]) if len(set(asked.values())) == 1 else None
        task, metric, filter_name, shots = key
        label = f"{task}, {metric}" + (f", {filter_name}" if filter_name not in ("none", "") else "")
        label += f", {shots} shot{'' if shots == 1 else 's'}" if shots >= 0 else ""
        rows.append(Row(label, with_best(cells, better) if better else cells))
        if len(set(asked.values())) > 1:
            each = ", ".join(f"{name} {questions}" for name, questions in asked.items())
            notes.append(f"{label}: not the same questions, so none is marked: {each}.")
    columns = [Column(run.name) for run in runs]
    note = "± is lm-evaluation-harness's standard error. The best value is marked where a metric has a better side."
    return Table("tasks", columns, rows, stub="task, metric", notes=[note, *notes])


def _questions(row: dict[str, Any]) -> str:
    """How many questions of which version of a task were asked."""
    version = row.get("version")
    return f"{row.get('samples') or 0:,}" + ("" if version is None else f" of version {version}")


def _with_error(row: dict[str, Any], key: str = "value") -> Cell:
    value, error = row.get(key), row.get("standard_error")
    if value is None:
        return Cell()
    shown = f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4e}"
    return Cell(value, shown + ("" if error is None else f" ±{significant(error, 2).text}"), error)


def _task_key(row: dict[str, Any]) -> tuple[str, str, str, Any]:
    shots = row.get("shots")
    return str(row.get("task")), str(row.get("metric")), str(row.get("filter") or ""), -1 if shots is None else shots


def _direction(metric: str) -> Better | None:
    name = metric.lower()
    if any(part in name for part in _LOWER):
        return "lower"
    return "higher" if any(name.startswith(part) for part in _HIGHER) else None


def latency_table(runs: Sequence[Run]) -> Table | None:
    """Prefill, decoding and memory of each batch and context, the runs and their methods below each other."""
    rows = [(run, row) for run in runs for row in run.results.get("latency", [])]
    if not rows:
        return None
    columns = [
        Column("prefill", "ms"), Column("95 %", "ms"), Column("per token", "ms"), Column("95 % ", "ms"),
        Column("peak", "MiB"), Column("state each", "MiB"),
    ]  # fmt: skip
    table: list[Row] = []
    notes = []
    for place in sorted({(row["batch_size"], row["context"]) for _, row in rows}):
        here = [(run, row) for run, row in rows if (row["batch_size"], row["context"]) == place]
        cells = [list(column) for column in zip(*(_latency_cells(row) for _, row in here), strict=True)]
        marked = [with_best(column, "lower") for column in cells]
        for line, (run, row) in enumerate(here):
            label = f"{place[1]:,} x {place[0]}: {run.name}, {row['method']}"
            table.append(Row(label, [column[line] for column in marked], starts_group=line == 0 and bool(table)))
            if row.get("status") not in (None, "measured"):
                notes.append(f"{label}: {row['status']}")
    devices = dict.fromkeys(f"{run.name} on {row['device']} in {row['precision']}" for run, row in rows)
    notes.insert(
        0,
        f"Context in tokens x sequences at once; medians, and 95th percentiles over the trials: {', '.join(devices)}.",
    )
    return Table("latency", columns, table, stub="context x batch: run, method", notes=notes)


def _latency_cells(row: dict[str, Any]) -> list[Cell]:
    times = ("prefill_median_s", "prefill_p95_s", "decode_median_s", "decode_p95_s")
    sizes = ("peak_memory_bytes", "state_bytes_per_sequence")
    return [
        *(significant(None if row.get(key) is None else 1000 * row[key], 4) for key in times),
        *(significant(None if row.get(key) is None else row[key] / 2**20, 4) for key in sizes),
    ]


def position_table(runs: Sequence[Run]) -> Table | None:
    """Loss by the place of a token in its document."""
    found = {run.name: {_range(row): row for row in run.results.get("loss_by_position", [])} for run in runs}
    ranges = sorted({key for rows in found.values() for key in rows})
    if not ranges:
        return None
    columns = [Column(run.name, "nats/token") for run in runs]
    rows = [
        Row(f"{first:,} to {last:,}", [_with_error(found[run.name].get((first, last), {}), "loss") for run in runs])
        for first, last in ranges
    ]
    return Table("loss by position", columns, rows, stub="positions")


def _range(row: dict[str, Any]) -> tuple[int, int]:
    return int(row["first_position"]), int(row["last_position"])


def curve_tables(runs: Sequence[Run]) -> Iterator[Table]:
    """The learning curve of each run that has one; energy is the training's, shared out by time."""
    columns = [
        Column("tokens"), Column("time", "s"), Column("energy", "kWh"), Column("training loss", "nats/token"),
        Column("validation loss", "nats/token"),
    ]  # fmt: skip
    for run in runs:
        rows = [Row(f"{line['step']:.0f}", _curve_cells(line)) for line in curve(run)]
        if rows:
            yield Table(f"learning curve of {run.name}", columns, rows, stub="step")


def curve(run: Run) -> list[dict[str, float]]:
    """The lines of a run's metrics with `energy_kwh`, the training's energy shared out by time."""
    lines = [line for line in run.metrics if "step" in line]
    energy, end = run.total("energy_kwh", "train_model"), max((line.get("seconds", 0.0) for line in lines), default=0.0)
    if energy is None or not end:
        return lines
    return [{**line, "energy_kwh": energy * line["seconds"] / end} if "seconds" in line else line for line in lines]


def _curve_cells(line: dict[str, float]) -> list[Cell]:
    return [
        number(line.get("tokens"), ",.0f"),
        number(line.get("seconds"), ",.1f"),
        significant(line.get("energy_kwh")),
        number(line.get("loss"), ".4f"),
        number(line.get("validation_loss"), ".4f"),
    ]


def samples_of(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Each prompt with what every run wrote after it, None where it wrote nothing."""
    prompts = dict.fromkeys(sample["prompt"] for run in runs for sample in run.samples)
    written = {run.name: {sample["prompt"]: sample["continuation"] for sample in run.samples} for run in runs}
    return [(prompt, [(run.name, written[run.name].get(prompt)) for run in runs]) for prompt in prompts]
