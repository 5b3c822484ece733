"""The comparison's plots: learning curves, loss by position, latency and memory, in light and dark."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from retlab.comparison.measured import curve
from retlab.comparison.runs import Run
from retlab.drawing import Draw, Pen, legend_above
from retlab.evaluation.latency import plots
from retlab.evaluation.latency.rows import LatencyRow
from retlab.evaluation.position_plot import PICTURE_SIZE, drawing_of

_MOST_POINTS = 400
_CURVE_AXES = (
    ("step", "steps", 1.0),
    ("tokens", "tokens, millions", 1e-6),
    ("seconds", "training time, minutes", 1 / 60),
)
"""What learning curves are drawn over: column of the metrics, label, factor."""


@dataclass(frozen=True)
class Figure:
    """A plot, drawn anew for each theme and format."""

    name: str
    "Of its file, without the ending."
    title: str
    caption: str
    size: tuple[float, float]
    draw: Draw


def figures(runs: Sequence[Run], alike: Sequence[Run]) -> list[Figure]:
    """The plots that there are numbers for; those of losses show only the runs whose losses are alike."""
    found = [learning_curves(runs, alike), loss_by_position(runs, alike), *latency(runs)]
    return [figure for figure in found if figure is not None]


def learning_curves(runs: Sequence[Run], alike: Sequence[Run]) -> Figure | None:
    """Validation loss, and behind it the training loss, over steps, tokens, time and energy."""
    # Every run has its place, and with it its colour, in all plots.
    curves = {run.name: curve(run) if run in alike else [] for run in runs}
    if not any(curves.values()):
        return None
    axes_of = list(_CURVE_AXES)
    if any("energy_kwh" in line for lines in curves.values() for line in lines):
        axes_of.append(("energy_kwh", "energy of the training, Wh", 1e3))

    def draw(canvas: Any, pen: Pen) -> None:
        panels: Any = canvas.subplots(math.ceil(len(axes_of) / 2), 2, sharey=True, squeeze=False).flatten()
        for panel in panels[len(axes_of) :]:
            panel.set_visible(False)
        for panel, (key, label, scale) in zip(panels, axes_of, strict=False):
            for place, (name, lines) in enumerate(curves.items()):
                _curve(panel, lines, key, scale, pen.style(place), name)
            panel.set_xlabel(label)
            panel.grid(True, linewidth=0.6)
            panel.tick_params(labelleft=True)
        for panel in panels[::2]:
            panel.set_ylabel("loss, nats per token")
        low, high = _shown_losses(list(curves.values()))
        panels[0].set_ylim(low, high)
        legend_above(canvas, *panels[0].get_legend_handles_labels())

    caption = "Points: validation loss. Thin lines: training loss."
    if len(axes_of) == 4:
        caption += " Energy is that of all attempts at the training, shared out by time."
    caption += _left_out(run.name for run in runs if run not in alike and curve(run))
    return Figure("learning_curves", "Learning curves", caption, (10, 7.5), draw)


def _left_out(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f" Left out, as their losses are those of other tokens or of other text: {listed}." if listed else ""


def _curve(panel: Any, lines: list[dict[str, float]], key: str, scale: float, style: dict[str, Any], name: str) -> None:
    training = [(line[key] * scale, line["loss"]) for line in lines if key in line and "loss" in line]
    thinned = training[:: max(1, len(training) // _MOST_POINTS)]
    if thinned:
        panel.plot(*zip(*thinned, strict=True), color=style["color"], linewidth=0.8, alpha=0.55)
    validation = [
        (line[key] * scale, line["validation_loss"]) for line in lines if key in line and "validation_loss" in line
    ]
    shown = validation or training[-1:]
    if shown:
        panel.plot(*zip(*shown, strict=True), label=name, linewidth=1.8, **style)


def _shown_losses(curves: list[list[dict[str, float]]]) -> tuple[float, float]:
    """Bounds of the losses without the first steep tenth, which would leave no room for the rest."""
    ends = [line[key] for lines in curves for line in lines[len(lines) // 10 :] for key in ("loss", "validation_loss")
            if math.isfinite(line.get(key, math.nan))]  # fmt: skip
    if not ends:
        return 0.0, 1.0
    margin = 0.05 * (max(ends) - min(ends)) or 0.1
    return min(ends) - margin, max(ends) + margin


def loss_by_position(runs: Sequence[Run], alike: Sequence[Run]) -> Figure | None:
    """Loss over the place of a token in its document."""
    rows = {run.name: run.results.get("loss_by_position", []) if run in alike else [] for run in runs}
    if not any(rows.values()):
        return None
    windows = sorted({run.settings["sequence_length"] for run in alike if "sequence_length" in run.settings})
    caption = "Bands: twice the standard error. Dashed: the length of the windows that the tokens were scored in."
    caption += _left_out(run.name for run in runs if run not in alike and run.results.get("loss_by_position"))
    return Figure("loss_by_position", "Loss by position", caption, PICTURE_SIZE, drawing_of(rows, windows))


def latency(runs: Sequence[Run]) -> Iterator[Figure]:
    """Median time of a decoding step, and memory, over context."""
    columns = [field.name for field in fields(LatencyRow)]
    rows = {
        run.name: [LatencyRow(**{name: row[name] for name in columns}) for row in run.results.get("latency", [])]
        for run in runs
    }
    time, memory = plots.time_per_token(rows), plots.memory(rows)
    if time:
        caption = "Medians, with whiskers to the 95th percentile. Dotted: everything is read anew for each token."
        yield Figure("time_per_token", "Time per token", caption, plots.TIME_SIZE, time)
    if memory:
        caption = "Dotted: everything is read anew for each token."
        yield Figure("memory", "Memory", caption, plots.MEMORY_SIZE, memory)
