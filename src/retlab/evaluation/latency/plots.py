"""Time per token and memory over the context, of one model or of several runs."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retlab.artifacts import write_atomic
from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow

Runs = Mapping[str, Sequence[LatencyRow]]
"""Rows by the run's name."""

# Paul Tol's bright scheme, told apart by people with any colour vision.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_MARKERS = ("o", "^", "D", "v", "s")


def draw_time_per_token(runs: Runs, file: Path) -> bool:
    """Draw medians, with whiskers up to the 95th percentiles; False, and no picture, where there are no numbers."""

    def draw(figure: Any) -> bool:
        axes = figure.add_subplot()
        if not _curves(axes, runs, lambda row: row.decode_median_s, 1e3, lambda row: row.decode_p95_s):
            return False
        figure.suptitle("Time per token over context", fontsize=14)
        axes.set_ylabel("ms per token of all sequences\n(median of the trials, whisker to the 95th percentile)")
        axes.set_xlabel("context, tokens")
        return True

    return _write(draw, file, (9.5, 6.2))


def draw_memory(runs: Runs, file: Path) -> bool:
    """Draw peak memory and the state of a sequence; False, and no picture, where there are no numbers."""

    def draw(figure: Any) -> bool:
        peak, state = figure.subplots(1, 2)
        if not _curves(peak, runs, lambda row: row.peak_memory_bytes, 2**-20):
            return False
        figure.suptitle("Memory over context", fontsize=14)
        peak.set_title("Peak of prefill and decoding, MiB", fontsize=11)
        state.set_title("State or cache per sequence, MiB", fontsize=11)
        if not _curves(state, runs, lambda row: row.state_bytes_per_sequence, 2**-20, batches=False):
            state.set_axis_off()
        for axes in (peak, state):
            axes.set_xlabel("context, tokens")
        return True

    return _write(draw, file, (12, 6.2))


def _write(draw: Callable[[Any], bool], file: Path, size: tuple[float, float]) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if not draw(figure):
        return False
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(file, picture.getvalue())
    return True


def _curves(
    axes: Any,
    runs: Runs,
    value: Callable[[LatencyRow], float | None],
    scale: float,
    upper: Callable[[LatencyRow], float | None] | None = None,
    batches: bool = True,
) -> bool:
    """A curve for each run, method and batch size that has numbers; False where there is none.

    Args:
        axes: where to draw.
        runs: the rows.
        value: the number to draw.
        scale: what to multiply it by.
        upper: the end of its whisker.
        batches: whether the batch size matters; or else the smallest alone is drawn.
    """
    rows = [row for rows in runs.values() for row in rows if row.is_measured and value(row) is not None]
    sizes = sorted({row.batch_size for row in rows})
    for place, (run, colour) in enumerate(zip(runs, _COLOURS * len(runs), strict=False)):
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
                        color=colour,
                        linestyle=":" if method == NO_CACHE else "-",
                        marker=_MARKERS[sizes.index(size) % len(_MARKERS)],
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
    ticks = sorted(set(contexts))
    axes.set_xticks(ticks, [f"{context:,}" for context in ticks], rotation=30 if len(ticks) > 6 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = min(values), max(values)
    axes.set_ylim(low / 1.5, high * 1.5)
    steps = (1.0, 2.0, 5.0) if high > 8 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
