"""Time per token and memory over the context, of one model or of several runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retlab.artifacts import write_atomic
from retlab.drawing import Draw, Pen, label_ticks, legend_above, marker, render
from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow

Runs = Mapping[str, Sequence[LatencyRow]]
"""Rows by the run's name."""

TIME_SIZE, MEMORY_SIZE = (9.0, 5.2), (10.0, 5.2)
"""Inches."""


def time_per_token(runs: Runs) -> Draw | None:
    """Medians, with whiskers up to the 95th percentiles; None where there are no numbers."""
    if not any(row.decode_median_s is not None for rows in runs.values() for row in rows):
        return None

    def draw(canvas: Any, pen: Pen) -> None:
        axes = canvas.add_subplot()
        _curves(axes, pen, runs, lambda row: row.decode_median_s, 1e3, lambda row: row.decode_p95_s)
        axes.set_ylabel("ms per token of all sequences")
        axes.set_xlabel("context, tokens")
        legend_above(canvas, *canvas.axes[0].get_legend_handles_labels())

    return draw


def memory(runs: Runs) -> Draw | None:
    """Peak memory and the state of a sequence; None where there are no numbers."""
    if not any(row.peak_memory_bytes is not None for rows in runs.values() for row in rows):
        return None

    def draw(canvas: Any, pen: Pen) -> None:
        peak, state = canvas.subplots(1, 2)
        _curves(peak, pen, runs, lambda row: row.peak_memory_bytes, 2**-20)
        peak.set_title("peak of prefill and decoding, MiB", fontsize=10.5)
        state.set_title("state or cache per sequence, MiB", fontsize=10.5)
        if not _curves(state, pen, runs, lambda row: row.state_bytes_per_sequence, 2**-20, batches=False):
            state.set_axis_off()
        for axes in (peak, state):
            axes.set_xlabel("context, tokens")
        legend_above(canvas, *canvas.axes[0].get_legend_handles_labels())

    return draw


def write_plots(runs: Runs, folder: Path) -> None:
    """Write time_per_token.png and memory.png, where there are numbers for them."""
    for name, draw, size in (
        ("time_per_token", time_per_token(runs), TIME_SIZE),
        ("memory", memory(runs), MEMORY_SIZE),
    ):
        if draw is not None:
            write_atomic(folder / f"{name}.png", render(draw, size))


def _curves(
    axes: Any,
    pen: Pen,
    runs: Runs,
    value: Callable[[LatencyRow], float | None],
    scale: float,
    upper: Callable[[LatencyRow], float | None] | None = None,
    batches: bool = True,
) -> bool:
    """A curve for each run, method and batch size that has numbers; False where there is none.

    Args:
        axes: where to draw.
        pen: colours and markers.
        runs: the rows.
        value: the number to draw.
        scale: what to multiply it by.
        upper: the end of its whisker.
        batches: whether the batch size matters; or else the smallest alone is drawn.
    """
    rows = [row for rows in runs.values() for row in rows if row.is_measured and value(row) is not None]
    sizes = sorted({row.batch_size for row in rows})
    for place, run in enumerate(runs):
        # Whiskers of different runs stand beside each other.
        shift = 1 + 0.015 * (place - (len(runs) - 1) / 2) if upper else 1
        for method in dict.fromkeys(row.method for row in runs[run]):
            for size in sizes if batches else sizes[:1]:
                own = [row for row in runs[run] if row in rows and (row.method, row.batch_size) == (method, size)]
                own.sort(key=lambda row: row.context)
                values = [scale * (value(row) or 0) for row in own]
                ends = [scale * (upper(row) or 0) for row in own] if upper else values
                if own:
                    axes.errorbar(
                        [row.context * shift for row in own],
                        values,
                        yerr=([0] * len(own), [max(0.0, end - low) for low, end in zip(values, ends, strict=True)]),
                        color=pen.colour(place),
                        linestyle=":" if method == NO_CACHE else "-",
                        marker=marker(sizes.index(size)),
                        markersize=5,
                        fillstyle="none" if method == NO_CACHE else "full",
                        capsize=3 if upper else 0,
                        elinewidth=0.8,
                        capthick=0.8,
                        label=f"{run}, {method}" + (f", batch {size}" if len(sizes) > 1 else ""),
                    )
    if rows:
        numbers = [number for row in rows for number in (value(row), upper(row) if upper else None) if number]
        _axes_of(axes, [row.context for row in rows], [scale * number for number in numbers])
    return bool(rows)


def _axes_of(axes: Any, contexts: Sequence[int], values: Sequence[float]) -> None:
    """Logarithmic axes with ticks that people read: the contexts themselves, and round numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    label_ticks(axes, contexts)
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = min(values), max(values)
    axes.set_ylim(low / 1.5, high * 1.5)
    steps = (1.0, 2.0, 5.0) if high > 8 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, linewidth=0.6)
