"""The benchmark's results as CSV and Markdown: one table, what its columns mean, ratios."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from retlab.benchmark.processes import Machine
from retlab.benchmark.row import DECODE, FORWARD, LOADER, PREFILL, RETLAB, TRAINING, Row

FORMULA = (
    "MFU = tokens/s x FLOPs per token / measured rate of a matrix product. FLOPs per token = 6 M + 3 x sum over the "
    "mixers of core(T), forward and backward: M are the weights that multiply a token (all but the input embedding); "
    "core(T) is 2 T d for causal attention of width d, and 2 C (d + v) + 4 w v for retention in chunks of C tokens, "
    "with keys of width w in each head and d over all heads, values of width v over all heads. A peer is counted as "
    "RetLab's model of its sizes."
)
EXPLANATIONS = (
    "training: whole step on constant random tokens, forward, cross entropy, backward, AdamW; median. RetLab's step "
    "is that of train_model, with Lightning and gradient clipping.",
    f"{FORWARD}: the same step up to the loss.",
    "training, documents apart: with the loader's batches of real text, whose documents do not see each other, and "
    "with one constant batch in their place; mean of the steps of one training.",
    "prefill and decode: greedy generate() after a random prompt of so many tokens; prefill is up to the first new "
    "token, decode the median of each further one. Peak memory is that of both, the state that of the cache at the end. "
    "Memory on a CPU is what the process takes beyond Python and its libraries.",
    "weights read: time of one generated token over that of reading all weights once at the measured copy bandwidth.",
    "RetLab x: RetLab's tokens/s over those of this row. ms: of a step, a prefill, a new token of all rows, a batch.",
)


class Column(NamedTuple):
    """A column of the table: the row's field, its title with the unit, how a person reads the number."""

    key: str
    title: str
    show: Callable[[Any], str]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


COLUMNS = (
    Column("measurement", "measurement", str),
    Column("model", "model", str),
    Column("implementation", "implementation", str),
    Column("batch", "batch", "{:,}".format),
    Column("tokens", "tokens", "{:,}".format),
    Column("tokens_per_second", "tokens/s", _number),
    Column("milliseconds", "ms", _number),
    Column("model_flops_utilization", "MFU", "{:.1%}".format),
    Column("weight_readings", "weights read", "{:.1f}".format),
    Column("retlab_ratio", "RetLab x", "{:.2f}".format),
    Column("peak_memory_gib", "peak GiB", "{:.2f}".format),
    Column("state_mib", "state MiB", "{:.2f}".format),
    Column("remark", "remark", str),
)
"""The columns of the Markdown table; the CSV has all fields of a row."""


def complete(rows: Sequence[Row], machine: Machine | None) -> list[Row]:
    """The rows with what follows from the machine's rates and from each other."""
    own = {_place(row): row.tokens_per_second for row in rows if row.implementation == RETLAB and row.tokens_per_second}
    return [dataclasses.replace(row, **_derived(row, machine, own.get(_place(row)))) for row in rows]


def _place(row: Row) -> tuple[Any, ...]:
    return row.measurement, row.model, row.batch, row.tokens


def _derived(row: Row, machine: Machine | None, own: float | None) -> dict[str, Any]:
    derived: dict[str, Any] = {}
    if row.tokens_per_second and own and row.implementation != RETLAB:
        derived["retlab_ratio"] = own / row.tokens_per_second
    if machine and row.tokens_per_second and row.flops_per_token:
        derived["model_flops_utilization"] = row.tokens_per_second * row.flops_per_token / machine.product_flops
    if machine and row.milliseconds and row.weight_bytes:
        derived["weight_readings"] = row.milliseconds / 1000 / (row.weight_bytes / machine.copied_bytes)
    return derived


def to_csv(rows: Sequence[Row]) -> str:
    """All fields of completed rows; floats as they are, blank for what is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    for row in rows:
        writer.writerow("" if value is None else value for value in dataclasses.astuple(row))
    return text.getvalue()


def to_markdown(rows: Sequence[Row], header: Sequence[str], missing: Sequence[str]) -> str:
    """The whole report of completed rows."""
    parts = ["# Speed of RetLab and its peers", "\n".join(f"- {line}" for line in header)]
    if missing:
        parts.append("Not measured:\n" + "\n".join(f"- {line}" for line in missing))
    parts.append(table(rows))
    ratios = ratio_lines(rows)
    if ratios:
        parts.append("Ratios of this run:\n" + "\n".join(f"- {line}" for line in ratios))
    counts = {(row.model, row.tokens, row.flops_per_token) for row in rows if row.flops_per_token}
    flops = [f"{model} at T = {tokens:,}: {count:.4g}" for model, tokens, count in sorted(counts)]
    explained = [*EXPLANATIONS, FORMULA + (" Here: " + "; ".join(flops) + "." if flops else "")]
    parts.append("\n".join(f"- {line}" for line in explained))
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """The table, its columns aligned; a column without any value is left out."""
    used = [column for column in COLUMNS if any(getattr(row, column.key) not in (None, "") for row in rows)]
    lines = [[column.title for column in used]]
    lines += [[_cell(column, getattr(row, column.key)) for column in used] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    is_text = [column.show is str for column in used]

    def line(cells: Sequence[str]) -> str:
        places = zip(cells, widths, is_text, strict=True)
        return "| " + " | ".join(c.ljust(w) if text else c.rjust(w) for c, w, text in places) + " |"

    rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, is_text, strict=True)]
    return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


def _cell(column: Column, value: Any) -> str:
    # A remark can quote a library, and a bar would end its cell.
    return "" if value is None else column.show(value).replace("|", "/")


def ratio_lines(rows: Sequence[Row]) -> list[str]:
    """The ratios that no single line of the table shows."""
    measured = [row for row in rows if row.tokens_per_second]
    own = [row for row in measured if row.implementation == RETLAB]
    return [*_lengths(own), *_loader(own), *_prefill(own), *_retnet_against_others(measured)]


def _lengths(own: list[Row]) -> list[str]:
    """The longest against the shortest window in training, and context in decoding."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in own:
        if row.measurement == TRAINING:
            groups.setdefault((TRAINING, row.model), []).append(row)
        elif row.measurement == DECODE:
            groups.setdefault((f"{DECODE} at batch {row.batch}", row.model), []).append(row)
    lines = []
    for (what, model), group in groups.items():
        first, last = (choose(group, key=lambda row: row.tokens or 0) for choose in (min, max))
        if first is not last:
            ratio = _over(last, first)
            lines.append(f"{model}, {what}: tokens/s at {last.tokens:,} tokens over those at {first.tokens:,}: {ratio}")
    return lines


def _loader(own: list[Row]) -> list[str]:
    found = {row.measurement: row for row in own}
    if not set(LOADER) <= found.keys():
        return []
    loader, constant = (found[name] for name in LOADER)
    return [f"{loader.model}, training: tokens/s with the loader over those with a constant batch: "
            f"{_over(loader, constant, 3)}"]  # fmt: skip


def _prefill(own: list[Row]) -> list[str]:
    """Prefill against the forward part of training at the same length."""
    lines = []
    for forward in own:
        for row in own:
            is_same = (row.model, row.tokens) == (forward.model, forward.tokens)
            if forward.measurement == FORWARD and row.measurement == PREFILL and is_same:
                what = f"prefill at batch {row.batch} over training's forward part at batch {forward.batch}"
                lines.append(f"{row.model}, {row.tokens:,} tokens: tokens/s of {what}: {_over(row, forward)}")
    return lines


def _retnet_against_others(measured: list[Row]) -> list[str]:
    """RetLab's decoding of its first model against the peers of other models."""
    decode = [row for row in measured if row.measurement == DECODE]
    own = [row for row in decode if row.implementation == RETLAB]
    first = [row for row in own if row.model == own[0].model]
    return [
        f"{row.model} against {other.implementation}, decode at batch {row.batch}, context {row.tokens:,}: "
        f"{_over(row, other, 1)}"
        for other in decode
        for row in first
        if other.implementation != RETLAB and other.model != row.model
        and (row.batch, row.tokens) == (other.batch, other.tokens)
    ]  # fmt: skip


def _over(row: Row, other: Row, digits: int = 2) -> str:
    assert row.tokens_per_second
    assert other.tokens_per_second
    return f"{row.tokens_per_second / other.tokens_per_second:.{digits}f}"
