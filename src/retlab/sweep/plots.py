"""A sweep's pictures: loss over learning rate, parameters and energy, and the learning curves of the best runs."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from retlab.artifacts import write_atomic
from retlab.sweep.comparison import Comparison, Entry, rank, some_lack_seeds
from retlab.sweep.drawing import leave_out_outliers, mark_best, over_seeds, set_title, star_size, style_of
from retlab.sweep.learning_rates import over_learning_rate
from retlab.sweep.outcomes import Outcome

Curve = list[tuple[float, float | None, float | None]]
"""Tokens, training loss and validation loss of each line of a trial's metrics."""

_UNITS = ((1.0, "kWh"), (1e-3, "Wh"), (1e-6, "mWh"))
"""Units of energy in kWh, the largest first."""


def write_plots(comparison: Comparison) -> list[str]:
    """Draw what there are numbers for into the sweep's folder, and remove pictures of which there are none.

    Returns:
        Names of the pictures.
    """
    pictures: dict[str, Callable[[Comparison, Any], bool]] = {
        "loss_over_learning_rate.png": over_learning_rate,
        "loss_over_parameters.png": _over_parameters,
        "loss_over_energy.png": _over_energy,
        "best_runs.png": _best_runs,
    }
    drawn = []
    for name, draw in pictures.items():
        picture = _png(comparison, draw)
        if picture is None:
            (comparison.grid.folder / name).unlink(missing_ok=True)
        else:
            write_atomic(comparison.grid.folder / name, picture)
            drawn.append(name)
    return drawn


def _png(comparison: Comparison, draw: Callable[[Comparison, Any], bool]) -> bytes | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if not draw(comparison, figure):
        return None
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _over_parameters(comparison: Comparison, figure: Any) -> bool:
    return _over(comparison, figure, "parameters", lambda entry: entry.parameters, "parameters")


def _over_energy(comparison: Comparison, figure: Any) -> bool:
    energies = [entry.energy.mean for entry in comparison.entries.values() if entry.energy.mean]
    # Ticks of a few digits, whether a trial takes a second or a week.
    size, unit = next((pair for pair in _UNITS if max(energies, default=0.0) >= pair[0]), _UNITS[-1])

    def cost(entry: Entry) -> float | None:
        return None if entry.energy.mean is None else entry.energy.mean / size

    return _over(comparison, figure, "energy", cost, f"energy of a trial, {unit}")


def _over(comparison: Comparison, figure: Any, what: str, cost: Callable[[Entry], float | None], label: str) -> bool:
    """Test losses of all points over what they cost, and of those that had the lowest validation loss up to there."""
    points = [entry for entry in comparison.entries.values() if entry.test.mean is not None and (cost(entry) or 0) > 0]
    if not points:
        return False
    set_title(figure, comparison, f"test loss over {what}")
    axes = figure.add_subplot()
    for architecture in comparison.architectures:
        own = [entry for entry in points if entry.architecture == architecture]
        # Of equal costs the best comes first.
        own.sort(key=lambda entry: (cost(entry) or 0, entry.validation.mean or 0))
        style = style_of(comparison, architecture)
        axes.errorbar(
            [cost(entry) for entry in own],
            [entry.test.mean for entry in own],
            yerr=[entry.test.deviation or 0.0 for entry in own] if _has_seeds(own) else None,
            linestyle="none", elinewidth=0.8, alpha=0.5, fillstyle="none",
            label=f"{architecture}, each point{_left_out(comparison, architecture)}", **style,
        )  # fmt: skip
        if not own:
            continue
        chosen = _chosen(own)
        axes.step(
            [cost(entry) for entry in chosen],
            [entry.test.mean for entry in chosen],
            where="post", linewidth=2, label=f"{architecture}, best up to here", **style,
        )  # fmt: skip
        best = comparison.best.get(architecture)
        if best in own:
            said = f"{architecture}, best: point {best.point.number}, test {best.test.mean:.4f}"
            mark_best(axes, cost(best), best.test.mean, style, said, star_size(comparison, architecture))
    costs = [cost(entry) or 0 for entry in points]
    _readable_ticks(axes, costs)
    leave_out_outliers([axes], [[entry.test.mean or 0.0 for entry in points]])
    axes.set_xlabel(label)
    axes.set_ylabel("test loss, nats per token" + over_seeds(comparison))
    axes.grid(alpha=0.3)
    among = " of the points with the most seeds finished" if some_lack_seeds(comparison) else ""
    _legend_below(figure, axes, comparison.architectures, f"best is what has the lowest validation loss{among}")
    return True


def _left_out(comparison: Comparison, architecture: str) -> str:
    """How many trials have no loss to be drawn."""
    counts = [entry.counts for (_, name), entry in comparison.entries.items() if name == architecture]
    lost = {status: sum(count[status] for count in counts) for status in ("diverged", "failed", "missing")}
    said = [f"{number} {status}" for status, number in lost.items() if number]
    return f" ({', '.join(said)})" if said else ""


def _legend_below(figure: Any, axes: Any, architectures: Sequence[str], title: str | None) -> None:
    """A column for each architecture, by the beginning of the labels; two columns where they were too many."""
    from matplotlib.lines import Line2D

    found = list(zip(*axes.get_legend_handles_labels(), strict=True))
    columns = [[pair for pair in found if pair[1].startswith(f"{name},")] for name in architectures]
    columns = [column for column in columns if column]
    # The legend fills its columns one after another, to equal lengths.
    longest = max(map(len, columns))
    nothing = Line2D([], [], linestyle="none")
    filled = [pair for column in columns for pair in [*column, *[(nothing, "")] * (longest - len(column))]]
    ncols = len(columns) if len(columns) < 4 else 2
    figure.legend(
        *zip(*filled, strict=True), loc="outside lower center", ncols=ncols, fontsize=9, title=title, title_fontsize=9
    )


def _has_seeds(entries: Sequence[Entry]) -> bool:
    return any(entry.test.deviation is not None for entry in entries)


def _chosen(entries: Sequence[Entry]) -> list[Entry]:
    """Of entries in the order of their cost, those that are better by validation than all before."""
    chosen: list[Entry] = []
    for entry in entries:
        if entry.validation.mean is not None and (not chosen or rank(entry) < rank(chosen[-1])):
            chosen.append(entry)
    return chosen


def _readable_ticks(axes: Any, costs: Sequence[float]) -> None:
    """A log axis with ticks of few digits, or a plain one where the costs are near to each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    least, most = min(costs), max(costs)
    if most > 4 * least:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif most < 1.3 * least:
        # Costs that are nearly the same look so.
        axes.set_xlim(least / 1.3, most * 1.3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")


def _best_runs(comparison: Comparison, figure: Any) -> bool:
    """Learning curves of the best point of each architecture, a curve for each seed."""
    curves = [
        (entry, outcome, _curve(outcome))
        for entry in comparison.best.values()
        for outcome in entry.outcomes
        if outcome.status == "finished"
    ]
    if not any(curve for _, _, curve in curves):
        return False
    set_title(figure, comparison, "the best run of each architecture")
    axes = figure.add_subplot()
    named = set()
    for entry, _, curve in curves:
        style = style_of(comparison, entry.architecture)
        label = None if entry.architecture in named else entry.architecture
        named.add(entry.architecture)
        training = [(tokens, loss) for tokens, loss, _ in curve if loss is not None]
        validation = [(tokens, loss) for tokens, _, loss in curve if loss is not None]
        axes.plot(*_columns(training), color=style["color"], linewidth=0.7, alpha=0.4,
                  label=label and f"{label}, training")  # fmt: skip
        test = "" if entry.test.mean is None else f", test {entry.test.mean:.4f}"
        axes.plot(*_columns(validation), linewidth=1.5, markersize=5, **style,
                  label=label and f"{label}, point {entry.point.number}, validation{test}")  # fmt: skip
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    _cut_first_losses(axes, [curve for _, _, curve in curves])
    seeds = len(comparison.grid.config.grid_search.seeds)
    _legend_below(figure, axes, list(comparison.best), "test losses are means over seeds" if seeds > 1 else None)
    return True


def _cut_first_losses(axes: Any, curves: Sequence[Curve]) -> None:
    """Leave the first tenth of the training losses out of the picture, beside which all that follows looks alike."""
    training = sorted(loss for curve in curves for _, loss, _ in curve if loss is not None)
    validation = [loss for curve in curves for _, _, loss in curve if loss is not None]
    shown = validation + training[: math.ceil(0.9 * len(training))]
    if shown and max(shown) > min(shown):
        room = (max(shown) - min(shown)) * 0.05
        axes.set_ylim(min(shown) - room, max(shown) + room)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _curve(outcome: Outcome) -> Curve:
    file = outcome.trial.folder / "metrics.csv"
    if not file.is_file():
        return []
    with open(file, encoding="utf-8", newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row.get("tokens")]
    return [(float(row["tokens"]), _number(row.get("loss")), _number(row.get("validation_loss"))) for row in rows]


def _number(text: str | None) -> float | None:
    return float(text) if text else None
