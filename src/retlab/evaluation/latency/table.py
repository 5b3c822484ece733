"""Latency and memory as lines for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterator, Sequence

from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow

WIDTH = 100

_COLUMNS = (
    ("", "method", 9),
    ("", "batch", 5),
    ("", "context", 11),
    ("first token, ms", "median", 11),
    ("first token, ms", "95 %", 9),
    ("time per token, ms", "median", 11),
    ("time per token, ms", "95 %", 9),
    ("memory, MiB", "peak", 11),
    ("memory, MiB", "state", 9),
)
"""Group, title and width."""

_COMPARED = {
    "prefill_median_s": "first token",
    "decode_median_s": "time per token",
    "peak_memory_bytes": "peak memory",
}


def latency_table(rows: Sequence[LatencyRow]) -> list[str]:
    """The rows of one model, what was measured and how, and what the columns mean."""
    first = rows[0]
    head = f"Latency of {first.model}: {first.precision} on {first.device}"
    lines = [*textwrap.wrap(head, WIDTH), *_titles()]
    best = _best(rows)
    for number, row in enumerate(rows):
        if number and row.method != rows[number - 1].method:
            lines.append("")
        lines += _line(row, best)
    return [*lines, _rule(), *(line for note in _explanations(rows, best) for line in _wrapped(note))]


def _titles() -> list[str]:
    groups: list[tuple[str, int]] = []
    for group, _, width in _COLUMNS:
        if groups and groups[-1][0] == group:
            groups[-1] = (group, groups[-1][1] + 2 + width)
        else:
            groups.append((group, width))
    titles = "  ".join(title.ljust(width) if place == 0 else title.rjust(width) for place, (_, title, width) in enumerate(_COLUMNS))
    return ["  ".join(group.rjust(width) for group, width in groups).rstrip(), titles, _rule()]


def _rule() -> str:
    return "-" * (sum(width for *_, width in _COLUMNS) + 2 * (len(_COLUMNS) - 1))


def _line(row: LatencyRow, best: dict[tuple[int, int], dict[str, float]]) -> Iterator[str]:
    cells = [row.method.ljust(_COLUMNS[0][2]), f"{row.batch_size:,}".rjust(5), f"{row.context:,}".rjust(11)]
    if not row.is_measured:
        start = "  ".join(cells) + "  "
        yield from textwrap.wrap(row.status, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
        return
    lowest = best.get((row.batch_size, row.context), {})

    def marked(key: str, text: str) -> str:
        return ("*" if getattr(row, key) == lowest.get(key) else "") + text

    numbers = [
        marked("prefill_median_s", _milliseconds(row.prefill_median_s)),
        _milliseconds(row.prefill_p95_s),
        marked("decode_median_s", _milliseconds(row.decode_median_s)),
        _milliseconds(row.decode_p95_s),
        marked("peak_memory_bytes", _mebibytes(row.peak_memory_bytes)),
        _mebibytes(row.state_bytes_per_sequence),
    ]
    cells += [number.rjust(width) for number, (*_, width) in zip(numbers, _COLUMNS[3:], strict=True)]
    yield "  ".join(cells).rstrip()


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
    each = ", ".join(f"{tokens:,} further {'token' if tokens == 1 else 'tokens'} ({method})" for method, tokens in counts.items())
    yield f"Median and 95th percentile of {measured[0].trials:,} trials, each a call of generate(): the first token, then {each}."
    if NO_CACHE in counts:
        yield f"{NO_CACHE}: everything is read anew for each token."
    if measured[0].device.startswith("cpu"):
        yield "Peak memory: the weights, and what the process takes beyond what it had before the call (5 ms samples)."
    else:
        yield "Peak memory: what PyTorch allocates on the GPU at most, the weights included."
    yield "State: what is kept of each sequence between two tokens, counted in the tensors of the state or cache."
    if best:
        yield f"* lowest of the methods at this batch size and context ({', '.join(_COMPARED.values())})."


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, WIDTH, subsequent_indent="  ")


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else _digits(1000 * seconds)


def _mebibytes(size: int | None) -> str:
    return "" if size is None else _digits(size / 2**20)


def _digits(value: float) -> str:
    """Three decimals below ten, one below ten thousand."""
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}" if value < 10_000 else f"{value:,.0f}"
