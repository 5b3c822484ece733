"""The benchmark's results as CSV and Markdown: one table, what its columns mean, ratios."""

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from retlab.benchmark.processes import Machine
from retlab.benchmark.row import DECODE, FIRST_DECODE, FORWARD, LOADER, PREFILL, RETLAB, TRAINING, Row

FORMULA = (
    "MFU = tokens/s x FLOPs per token / measured rate of a matrix product. FLOPs per token = 6 M + 3 x sum over the "
    "mixers of core(T), forward and backward: M are the weights that multiply a token (all but the input embedding); "
    "core(T) is 2 T d for causal attention of width d, 2 d x sum over the branches of min(s, T) / r^2 for dilated "
    "attention with segments of s tokens at the ratio r, and 2 C (d + v) + 4 w v for retention in chunks of C tokens, "
    "with keys of width w in each head and d over all heads, values of width v over all heads. A peer is counted as "
    "RetLab's model of its sizes."
)
EXPLANATIONS = (
    f"{TRAINING}: a whole step on constant random tokens, forward, cross entropy, backward, AdamW; median. RetLab's "
    f"step is that of train_model, with Lightning and gradient clipping. {FORWARD} is that step "
    "up to the loss, launched kernel by kernel, with whatever of the gradient is computed along with it.",
    f"{LOADER[0]}: steps on batches of the loader, real text whose documents do not see each other; {LOADER[1]}: on "
    "one such batch again and again; means over the steps of one training.",
    f"{PREFILL} and {DECODE}: greedy generate() after a random prompt of so many tokens; prefill lasts to the first "
    "new token, decode is each further one. ms: of a step, a prefill, one new token of all rows, a batch.",
    f"RetLab's {PREFILL} and {DECODE} are those of a shape in steady use: on a GPU it records a shape at its third use "
    "and, where it has no kernels of its own for it, compiles it after some thousand tokens; both are over before the "
    "clock starts. "
    f"{FIRST_DECODE} is each of the first tokens of a shape that has never been used, recording included.",
    "peak GiB: a GPU's allocated memory, weights included; on a CPU what the process takes beyond Python and its "
    "libraries. state MiB: the cache after the last token.",
    "weights x: time of one new token over that of reading all weights once at the measured bandwidth. RetLab x: "
    "RetLab's tokens/s over those of this row.",
)


_START = time.monotonic()


def say(text: str) -> None:
    """Print one line for people, with the seconds since the start."""
    print(f"[benchmark_speed, {time.monotonic() - _START:,.0f} s] {text}", flush=True)


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
    Column("weight_readings", "weights x", "{:.1f}".format),
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
    flops = [f"{model} at T = {tokens:,}: {count / 1e6:,.1f} million" for model, tokens, count in sorted(counts)]
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
    """The ratios of tokens per second that no single line of the table shows."""
    measured = [row for row in rows if row.tokens_per_second]
    own = [row for row in measured if row.implementation == RETLAB]
    lines: dict[str, list[str]] = {}
    for what, place, row, other in [*_lengths(own), *_within_training(own), *_against_other_models(measured)]:
        assert row.tokens_per_second
        assert other.tokens_per_second
        lines.setdefault(what, []).append(f"{row.tokens_per_second / other.tokens_per_second:.3f} ({place})")
    return [f"{what}: {', '.join(ratios)}" for what, ratios in lines.items()]


Ratio = tuple[str, str, Row, Row]
"""What is compared, where, and the two rows."""


def _lengths(own: list[Row]) -> Iterator[Ratio]:
    """The longest against the shortest window in training, and context in decoding."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in own:
        if row.measurement in (TRAINING, DECODE):
            groups.setdefault((row.model, row.measurement, row.measurement == DECODE and row.batch), []).append(row)
    for group in groups.values():
        first, last = (choose(group, key=lambda row: row.tokens or 0) for choose in (min, max))
        if first is not last:
            place = f"batch {last.batch}" if last.batch == first.batch else _pair(last, first)
            yield f"{last.model}, {last.measurement}, {last.tokens:,} over {first.tokens:,} tokens", place, last, first


def _within_training(own: list[Row]) -> Iterator[Ratio]:
    """The loader against constant batches, and prefill against the forward part of the same length."""
    for row in own:
        for other in own:
            pair = (row.measurement, other.measurement)
            if (row.model, row.tokens) == (other.model, other.tokens) and pair in (LOADER, (PREFILL, FORWARD)):
                yield f"{row.model}, {pair[0]} over {pair[1]}", _pair(row, other), row, other


def _against_other_models(measured: list[Row]) -> Iterator[Ratio]:
    """Decoding of RetLab's first model against that of peers of other models."""
    decode = [row for row in measured if row.measurement == DECODE]
    own = [row for row in decode if row.implementation == RETLAB]
    for row in own:
        for other in decode:
            is_peer = other.implementation != RETLAB and other.model != row.model == own[0].model
            if is_peer and (row.batch, row.tokens) == (other.batch, other.tokens):
                yield f"{row.model}, {DECODE}, over {other.implementation}", _shape(row), row, other


def _pair(row: Row, other: Row) -> str:
    return _shape(row) if _shape(row) == _shape(other) else f"{_shape(row)} over {_shape(other)}"


def _shape(row: Row) -> str:
    return f"{row.batch} x {row.tokens:,}"
