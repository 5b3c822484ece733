"""The comparison's plots: learning curves, loss by position, latency and memory, in light and dark."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retlab.comparison.measured import curve
from retlab.comparison.runs import Run

Theme = Literal["light", "dark"]

# Paul Tol's bright scheme, told apart by people with any colour vision; the dark page has lighter ones.
_COLOURS: dict[Theme, tuple[str, ...]] = {
    "light": ("#4477aa", "#ee6677", "#228833", "#b8a020", "#3aa0c8", "#aa3377", "#777777"),
    "dark": ("#77aadd", "#ee8866", "#66cc88", "#eedd88", "#99ddff", "#ffaabb", "#bbbbbb"),
}
_INK: dict[Theme, tuple[str, str, str]] = {
    "light": ("#1f2328", "#d0d7de", "#ffffff"),
    "dark": ("#e6edf3", "#3d444d", "#0f141a"),
}
_MARKERS = "o^DsvPX"
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
    draw: Callable[[Any, "Pen"], None]

    def render(self, theme: Theme, form: Literal["png", "svg"]) -> bytes:
        """The picture's file."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        ink, grid, paper = _INK[theme]
        style: dict[Any, Any] = {
            "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": grid,
            "grid.color": grid, "figure.facecolor": paper, "axes.facecolor": paper, "legend.facecolor": paper,
            "legend.edgecolor": grid, "svg.hashsalt": "retlab", "axes.spines.top": False, "axes.spines.right": False,
            "font.size": 10.5,
        }  # fmt: skip
        with matplotlib.rc_context(style):
            canvas = Canvas(figsize=self.size, dpi=130, layout="constrained")
            FigureCanvasAgg(canvas)
            self.draw(canvas, Pen(theme))
            picture = io.BytesIO()
            canvas.savefig(picture, format=form, metadata={"Date": None} if form == "svg" else None)
        return picture.getvalue()


@dataclass(frozen=True)
class Pen:
    """Colours and markers of one theme."""

    theme: Theme

    def style(self, place: int) -> dict[str, Any]:
        """Colour and marker of a run."""
        colours = _COLOURS[self.theme]
        return {"color": colours[place % len(colours)], "marker": _MARKERS[place % len(_MARKERS)], "markersize": 4.5}


def figures(runs: Sequence[Run]) -> list[Figure]:
    """The plots that there are numbers for."""
    found = [learning_curves(runs), loss_by_position(runs), time_per_token(runs), memory(runs)]
    return [figure for figure in found if figure is not None]


def learning_curves(runs: Sequence[Run]) -> Figure | None:
    """Validation loss, and behind it the training loss, over steps, tokens, time and energy."""
    curves = {run.name: curve(run) for run in runs}
    if not any(curves.values()):
        return None
    axes_of = [
        ("step", "steps", 1.0),
        ("tokens", "tokens, millions", 1e-6),
        ("seconds", "training time, minutes", 1 / 60),
    ]
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
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3), frameon=False)

    caption = "Points: validation loss. Thin lines: training loss."
    if len(axes_of) == 4:
        caption += " Energy is that of all attempts at the training, shared out by time."
    return Figure("learning_curves", "Learning curves", caption, (10, 7.5), draw)


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


def loss_by_position(runs: Sequence[Run]) -> Figure | None:
    """Loss over the place of a token in its document."""
    rows = {run.name: run.results.get("loss_by_position", []) for run in runs}
    if not any(rows.values()):
        return None
    windows = sorted({run.settings["sequence_length"] for run in runs if "sequence_length" in run.settings})

    def draw(canvas: Any, pen: Pen) -> None:
        panel: Any = canvas.add_subplot()
        for place, (name, found) in enumerate(rows.items()):
            style = pen.style(place)
            places = [math.sqrt(row["first_position"] * row["last_position"]) for row in found]
            losses, errors = [row["loss"] for row in found], [2 * (row["standard_error"] or 0.0) for row in found]
            panel.plot(places, losses, label=name, linewidth=1.6, **style)
            bounds = [[loss + sign * error for loss, error in zip(losses, errors, strict=True)] for sign in (-1, 1)]
            panel.fill_between(places, *bounds, color=style["color"], alpha=0.18, linewidth=0)
        for window in windows:
            panel.axvline(window, color=_INK[pen.theme][0], linestyle="--", linewidth=0.8, alpha=0.6)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.set_xlabel("position in the document, tokens")
        panel.set_ylabel("loss, nats per token")
        panel.grid(True, linewidth=0.6)
        panel.legend(frameon=False)

    named = " and ".join(f"{window:,}" for window in windows)
    caption = f"Bands: twice the standard error. Dashed: windows of {named} tokens."
    return Figure("loss_by_position", "Loss by position", caption, (9, 4.6), draw)


def time_per_token(runs: Sequence[Run]) -> Figure | None:
    """Median time of a decoding step over context, up to the 95th percentile."""
    caption = (
        "Medians with bars up to the 95th percentile; dotted: a full forward for each token, without state or cache."
    )
    draw = _over_context(runs, [("decode_median_s", 1e3, "-", "decode_p95_s")], "time per token, ms")
    return draw and Figure("time_per_token", "Time per token", caption, (9, 4.8), draw)


def memory(runs: Sequence[Run]) -> Figure | None:
    """Peak memory and the state of a sequence over context."""
    lines = [("peak_memory_bytes", 2**-20, "-", None), ("state_bytes_per_sequence", 2**-20, "--", None)]
    caption = "Solid: peak memory. Dashed: state or cache of one sequence."
    draw = _over_context(runs, lines, "memory, MiB")
    return draw and Figure("memory", "Memory", caption, (9, 4.8), draw)


_Line = tuple[str, float, str, str | None]


def _over_context(runs: Sequence[Run], lines: Sequence[_Line], label: str) -> Callable[[Any, Pen], None] | None:
    """Draws columns of the latency tables over context, a line for each run, method and batch."""
    rows = [(place, run, row) for place, run in enumerate(runs) for row in run.results.get("latency", [])]
    if not any(row.get(key) is not None for _, _, row in rows for key, *_ in lines):
        return None
    batches = sorted({row["batch_size"] for _, _, row in rows})

    def draw(canvas: Any, pen: Pen) -> None:
        panels: Any = canvas.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        for panel, batch in zip(panels, batches, strict=True):
            groups = {(place, run.name, row["method"]) for place, run, row in rows if row["batch_size"] == batch}
            for place, name, method in sorted(groups):
                own = [row for one, _, row in rows if (one, row["method"], row["batch_size"]) == (place, method, batch)]
                for key, scale, dashes, upper in lines:
                    _line(panel, own, (key, scale, ":" if method == "no cache" else dashes, upper), pen.style(place),
                          f"{name}, {method}" if key == lines[0][0] else None)  # fmt: skip
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
            panel.set_xlabel("context, tokens")
            panel.set_title(f"{batch} sequence{'' if batch == 1 else 's'} at once", fontsize=10.5)
            panel.grid(True, linewidth=0.6)
        panels[0].set_ylabel(label)
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 2), frameon=False)

    return draw


def _line(panel: Any, rows: list[dict[str, Any]], line: _Line, style: dict[str, Any], name: str | None) -> None:
    key, scale, dashes, upper = line
    found = sorted((row["context"], row[key] * scale, (row.get(upper) or row[key]) * scale if upper else 0.0)
                   for row in rows if row.get(key))  # fmt: skip
    if not found:
        return
    contexts, values, tops = zip(*found, strict=True)
    if upper:
        spans = [[0.0] * len(values), [max(0.0, top - value) for top, value in zip(tops, values, strict=True)]]
        panel.errorbar(contexts, values, yerr=spans, linestyle=dashes, label=name, linewidth=1.6, capsize=2, **style)
    else:
        panel.plot(contexts, values, linestyle=dashes, label=name, linewidth=1.6, **style)
