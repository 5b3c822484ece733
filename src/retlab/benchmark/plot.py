"""The benchmark's results as one picture: training speed, and time and memory of generation by context."""

import io
from collections.abc import Sequence
from typing import Any

from retlab.benchmark.row import DECODE, RETLAB, TRAINING, Row
from retlab.drawing import Pen

# Lines and markers by batch; a batch of one context has no line.
_BATCHES = (("-", "o"), ("--", "^"), (":", "D"), ("-.", "v"))

FEWEST_BARS = 6
"""Bars that there is room for at least."""


def to_png(rows: Sequence[Row], title: str) -> bytes:
    """Draw completed rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 10), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14)
    contestants = dict.fromkeys(map(_contestant, filter(lambda row: row.model, rows)))
    colours = {contestant: Pen().colour(place) for place, contestant in enumerate(contestants)}
    steps = [row for row in rows if row.measurement == TRAINING]
    decode = [row for row in rows if row.measurement == DECODE and row.tokens_per_second]
    both: Any = figure.subfigures(1, 2, width_ratios=[1.2, 1]) if steps and decode else (figure, figure)
    if steps or not decode:
        _bars(both[0].add_subplot(), steps, colours)
    if decode:
        _panels(both[1], decode, colours)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _panels(part: Any, rows: list[Row], colours: dict["Contestant", str]) -> None:
    """Time and memory of decoding, one above the other."""
    panels = [part.add_subplot(3, 1, place) for place in (1, 2, 3)]
    _curves(panels[0], rows, "milliseconds", "One decoding step of all rows, ms", colours)
    _curves(panels[1], rows, "peak_memory_gib", "Peak memory of prefill and decoding, GiB", colours)
    _curves(panels[2], rows, "state_mib", "Cache, MiB", colours)
    panels[2].set_xlabel("context, tokens")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        part.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)


Contestant = tuple[str, str]


def _contestant(row: Row) -> Contestant:
    """Who made the row, however it was run, and with which model."""
    return row.implementation.partition(",")[0], row.model


def _bars(axes: Any, rows: list[Row], colours: dict[Contestant, str]) -> None:
    """A bar for each model, shape and implementation, from the top in the order of the rows."""
    rows = sorted(rows, key=lambda row: (row.model, row.tokens or 0))
    values = [row.tokens_per_second or 0 for row in rows]
    axes.barh(range(len(rows)), values, color=[colours[_contestant(row)] for row in rows])
    labels = [f"{row.model}, {row.batch} x {row.tokens:,}\n{row.implementation}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    # From the top, and no bar as high as the picture.
    axes.set_ylim(max(len(rows), FEWEST_BARS) - 0.5, -0.5)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        share = f", {row.model_flops_utilization:.0%} MFU" if row.model_flops_utilization else ""
        axes.text(value, place, f" {value:,.0f}{share}" if value else f" {row.remark[:50]}", va="center", fontsize=9)
    axes.set_xlim(0, 1.35 * max(values, default=0) or 1)
    axes.set_title("Training, tokens per second")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", alpha=0.3)


def _curves(axes: Any, rows: list[Row], key: str, title: str, colours: dict[Contestant, str]) -> None:
    """A curve over the context for each implementation, model and batch."""
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = [row for row in rows if getattr(row, key)]
    batches = sorted({row.batch or 0 for row in rows})
    groups: dict[tuple[Contestant, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.tokens or 0):
        groups.setdefault((_contestant(row), row.batch or 0), []).append(row)
    for (contestant, batch), group in groups.items():
        line, marker = _BATCHES[batches.index(batch) % len(_BATCHES)]
        axes.plot(
            [row.tokens for row in group],
            [getattr(row, key) for row in group],
            color=colours[contestant],
            linestyle=line,
            marker=marker,
            markersize=8,
            # Curves may lie on each other: those of peers are hollow.
            fillstyle="full" if contestant[0] == RETLAB else "none",
            alpha=0.8,
            label=f"{contestant[0]}, {contestant[1].split()[0]}, batch {batch}",
        )
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    if rows:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        contexts = sorted({row.tokens for row in rows if row.tokens})
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        values = [getattr(row, key) for row in rows]
        steps = (1.0, 2.0, 5.0) if max(values) > 8 * min(values) else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
