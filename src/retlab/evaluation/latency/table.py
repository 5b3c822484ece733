"""Latency and memory of one model as lines for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterator, Sequence

from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow
from retlab.progress import counted

WIDTH = 100
SHAPE = 3
"""Columns before the numbers."""

_TITLES = (
    ("", "method"),
    ("", "batch"),
    ("", "context"),
    ("first token, ms", "median"),
    ("first token, ms", "95 %"),
    ("time per token, ms", "median"),
    ("time per token, ms", "95 %"),
    ("memory, MiB", "peak"),
    ("memory, MiB", "state"),
)
"""Group and title of each column."""

_COMPARED = {
    "prefill_median_s": "first token",
    "decode_median_s": "time per token",
    "peak_memory_bytes": "peak memory",
}


def latency_table(rows: Sequence[LatencyRow]) -> list[str]:
    """What was measured of one model and how, its rows, and what the columns mean."""
    best = _best(rows)
    lines = [_cells(row, best.get((row.batch_size, row.context), {})) for row in rows]
    titles = [title for _, title in _TITLES]
    # A reason stands in the place of all numbers, and two numbers have room for what stands above them.
    known = [line if len(line) == len(titles) else [*line[:SHAPE], *[""] * (len(titles) - SHAPE)] for line in lines]
    least = [0] * SHAPE + [8] * (len(titles) - SHAPE)
    widths = [max(room, *map(len, column)) for room, *column in zip(least, titles, *known, strict=True)]
    table = [*_titles(widths), "-" * (sum(widths) + 2 * (len(widths) - 1))]
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        if number and row.method != rows[number - 1].method:
            table.append("")
        table += _line(line, widths)
    head = f"latency of {rows[0].model}, {rows[0].precision}, {rows[0].device}"
    notes = [line for note in _explanations(rows, best) for line in wrapped(note)]
    return [head, *table, table[2], *notes]


def _titles(widths: Sequence[int]) -> list[str]:
    groups: dict[str, int] = {}
    for (group, _), width in zip(_TITLES, widths, strict=True):
        groups[group] = groups.get(group, -2) + 2 + width
    above = "  ".join(group.rjust(width) for group, width in groups.items())
    return [above.rstrip(), _joined([title for _, title in _TITLES], widths)]


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    right = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *right]).rstrip()


def _cells(row: LatencyRow, lowest: dict[str, float]) -> list[str]:
    """Method, batch and context with the numbers, or with the reason why there are none."""
    shape = [row.method, f"{row.batch_size:,}", f"{row.context:,}"]
    if not row.is_measured:
        return [*shape, row.status]

    def number(key: str, scale: float) -> str:
        value = getattr(row, key)
        return "" if value is None else ("*" if value == lowest.get(key) else "") + _digits(scale * value)

    times = ("prefill_median_s", "prefill_p95_s", "decode_median_s", "decode_p95_s")
    sizes = ("peak_memory_bytes", "state_bytes_per_sequence")
    return [*shape, *(number(key, 1e3) for key in times), *(number(key, 2**-20) for key in sizes)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    if len(cells) == len(widths):
        return [_joined(cells, widths)]
    *shape, status = cells
    start = _joined(shape, widths[: len(shape)]) + "  "
    return textwrap.wrap(status, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _best(rows: Sequence[LatencyRow]) -> dict[tuple[int, int], dict[str, float]]:
    """The lowest numbers at each batch size and context that several methods were measured at."""
    shapes: dict[tuple[int, int], list[LatencyRow]] = {}
    for row in rows:
        if row.is_measured:
            shapes.setdefault((row.batch_size, row.context), []).append(row)
    return {
        shape: {key: min(getattr(row, key) for row in group) for key in _COMPARED}
        for shape, group in shapes.items()
        if len(group) > 1
    }


def _explanations(rows: Sequence[LatencyRow], best: dict[tuple[int, int], dict[str, float]]) -> Iterator[str]:
    measured = [row for row in rows if row.is_measured]
    if not measured:
        return
    counts = {row.method: row.new_tokens for row in measured}
    each = ", ".join(f"{counted(tokens, 'further token')} ({method})" for method, tokens in counts.items())
    trials = f"{counted(measured[0].trials, 'trial')}, each a call of generate()"
    yield f"Median and 95th percentile of {trials}: the first token, then {each}."
    if NO_CACHE in counts:
        yield f"{NO_CACHE}: everything is read anew for each token."
    if measured[0].device.startswith("cpu"):
        yield "Peak memory: the weights, and what the process takes beyond what it had before the call (5 ms samples)."
    else:
        yield "Peak memory: what PyTorch allocates on the GPU at most, the weights included."
    yield "State: what is kept of each sequence between two tokens, counted in the tensors of the state or cache."
    if best:
        yield f"* lowest of the methods at this batch size and context ({', '.join(_COMPARED.values())})."


def wrapped(note: str) -> list[str]:
    """A note below the table."""
    return textwrap.wrap(note, WIDTH, subsequent_indent="  ")


def _digits(value: float) -> str:
    """Three decimals below ten, one below ten thousand."""
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}" if value < 10_000 else f"{value:,.0f}"
