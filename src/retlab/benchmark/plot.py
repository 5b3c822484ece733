"""The benchmark's results as one picture: training speed, time of a generated token, memory, by length."""

import io
from collections.abc import Sequence
from typing import Any

from retlab.benchmark.row import DECODE, RETLAB, TRAINING, Row

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def to_png(rows: Sequence[Row], title: str) -> bytes:
    """Draw completed rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    _training(figure.add_subplot(grid[:, 0]), [row for row in rows if row.measurement == TRAINING])
    decode = [row for row in rows if row.measurement == DECODE and row.tokens_per_second]
    time, memory = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    _lines(time, decode, "milliseconds", "ms per new token (all rows)", "Decoding: time of one step")
    _lines(memory, decode, "peak_memory_gib", "GiB", "Prefill and decoding: peak memory")
    if decode:
        time.legend(fontsize=8, loc="best")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _training(axes: Any, rows: list[Row]) -> None:
    """A bar for each implementation and shape, RetLab's darker than the others."""
    rows = sorted(rows, key=lambda row: (row.model, row.batch, row.tokens))[::-1]
    colours = dict(zip(_names(rows), _COLOURS * 9, strict=False))
    values = [row.tokens_per_second or 0 for row in rows]
    axes.barh(range(len(rows)), values, color=[colours[row.implementation] for row in rows])
    labels = [f"{row.model}\n{row.implementation}, {row.batch} x {row.tokens:,}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        share = f" ({row.model_flops_utilization:.0%} MFU)" if row.model_flops_utilization else ""
        axes.text(value, place, f" {value:,.0f}{share}" if value else f" {row.remark}", va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(values, default=1) or 1)
    axes.set_title("Training, tokens per second")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", alpha=0.3)


def _lines(axes: Any, rows: list[Row], key: str, unit: str, title: str) -> None:
    """One line for each implementation, model and batch over the context."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.implementation, row.model, row.batch or 0), []).append(row)
    curves = list(dict.fromkeys((name, model) for name, model, _ in groups))
    batches = sorted({batch for *_, batch in groups})
    for (name, model, batch), group in groups.items():
        group.sort(key=lambda row: row.tokens or 0)
        axes.plot(
            [row.tokens for row in group],
            [getattr(row, key) for row in group],
            color=_COLOURS[curves.index((name, model)) % len(_COLOURS)],
            linestyle=("-", "--", ":", "-.")[batches.index(batch) % 4],
            marker="o" if name == RETLAB else "s",
            label=f"{name}, {model}, batch {batch}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    contexts = sorted({row.tokens for row in rows if row.tokens})
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(alpha=0.3)


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.implementation for row in reversed(rows)))
