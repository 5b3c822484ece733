"""The plot of loss by position; without torch, for the comparison too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retlab.drawing import Draw, Pen, legend_above

PICTURE_SIZE = (9.0, 4.6)
"""Inches."""


def drawing_of(runs: Mapping[str, list[dict[str, Any]]], windows: Sequence[int]) -> Draw:
    """Loss over position of one or several runs, with twice the standard error, and where their windows end.

    Args:
        runs: the rows of each, by name.
        windows: tokens of the windows that they were scored in.
    """

    def draw(canvas: Any, pen: Pen) -> None:
        axes: Any = canvas.add_subplot()
        for place, (name, rows) in enumerate(runs.items()):
            if not rows:
                continue
            places = [math.sqrt(row["first_position"] * row["last_position"]) for row in rows]
            losses, errors = [row["loss"] for row in rows], [2 * (row["standard_error"] or 0.0) for row in rows]
            axes.plot(places, losses, label=name, linewidth=1.6, **pen.style(place))
            low, high = ([loss + sign * error for loss, error in zip(losses, errors, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=pen.colour(place), alpha=0.18, linewidth=0)
        for window in windows:
            axes.axvline(window, color=pen.ink, linestyle="--", linewidth=0.8, alpha=0.6, label=_named(windows))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda place, _: f"{place:,.0f}")
        axes.set_xlabel("position in the document, tokens")
        axes.set_ylabel("loss, nats per token")
        axes.grid(True, linewidth=0.6)
        # Above the plot, where no curve runs through it; several windows are one entry.
        entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        legend_above(canvas, entries.values(), entries)

    return draw


def _named(windows: Sequence[int]) -> str:
    numbers = [f"{window:,}" for window in windows]
    listed = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
    return f"window of {listed} tokens" if len(numbers) == 1 else f"windows of {listed} tokens"
