"""A sweep's pictures: loss over learning rate, parameters and energy, and the learning curves of the best runs."""

import csv
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from retlab.artifacts import write_atomic
from retlab.sweep.comparison import Comparison, Entry
from retlab.sweep.outcomes import Outcome

LEARNING_RATE = "train.learning_rate"

Curve = list[tuple[float, float | None, float | None]]
"""Tokens, training loss and validation loss of each line of a trial's metrics."""

# Paul Tol's bright scheme, told apart by people with any colour vision.
_COLOURS = ("#4477aa", "#ee6677", "#228833")
_MARKERS = ("o", "^", "D")
_ENERGY_UNITS = (("kWh", 1.0), ("Wh", 1e3), ("mWh", 1e6))


def write_plots(comparison: Comparison) -> list[str]:
    """Draw what there are numbers for into the sweep's folder, and remove pictures of which there are none.

    Returns:
        Names of the pictures.
    """
    pictures: dict[str, Callable[[Comparison, Any], bool]] = {
        "loss_over_learning_rate.png": _over_learning_rate,
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


def _style(comparison: Comparison, architecture: str) -> dict[str, Any]:
    place = comparison.architectures.index(architecture)
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}


def _over_learning_rate(comparison: Comparison, figure: Any) -> bool:
    """A panel for each architecture, a thin line for each combination of the other axes, the best one thick."""
    entries = [entry for entry in comparison.entries.values() if LEARNING_RATE in entry.point.values]
    if not any(entry.validation.mean is not None for entry in entries):
        return False
    figure.suptitle(f"{comparison.grid.config.name}: validation loss over learning rate", fontsize=14)
    panels: Any = figure.subplots(1, len(comparison.architectures), sharey=True, squeeze=False)[0]
    for architecture, axes in zip(comparison.architectures, panels, strict=True):
        own = [entry for entry in entries if entry.architecture == architecture]
        best = comparison.best.get(architecture)
        _learning_rates(axes, own, best, _style(comparison, architecture))
        _rate_ticks(axes, own)
        thick = "" if best is None else f"thick: {_others(best) or 'the only combination'}"
        axes.set_xlabel("\n".join(["learning rate", *textwrap.wrap(thick, 140 // len(panels))]))
        axes.set_title(architecture, fontsize=12)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss, nats per token")
    return True


def _learning_rates(axes: Any, entries: Sequence[Entry], best: Entry | None, style: dict[str, Any]) -> None:
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=_rate):
        groups.setdefault(_others(entry), []).append(entry)
    for others, group in groups.items():
        is_best = best is not None and others == _others(best)
        kind = {"linewidth": 2.5, "zorder": 3} if is_best else {"linewidth": 0.8, "alpha": 0.45, "markersize": 3}
        # A point without a loss is a gap in its line.
        losses = [math.nan if entry.validation.mean is None else entry.validation.mean for entry in group]
        bars = [entry.validation.deviation or 0.0 for entry in group]
        axes.errorbar(
            [_rate(entry) for entry in group],
            losses,
            bars if is_best and any(bars) else None,
            capsize=3,
            **style,
            **kind,
        )


def _rate_ticks(axes: Any, entries: Sequence[Entry]) -> None:
    """The grid's own rates, each with the number of trials that diverged there."""
    lost: dict[float, int] = {}
    for entry in entries:
        lost[_rate(entry)] = lost.get(_rate(entry), 0) + entry.counts["diverged"]
    labels = [f"{rate:g}" + (f"\n{count} diverged" if count else "") for rate, count in lost.items()]
    axes.set_xscale("log")
    axes.minorticks_off()
    # Labels of many rates would run into each other.
    axes.set_xticks(list(lost), labels, rotation=90 if len(lost) > 5 else 0, fontsize=9)
    axes.margins(x=0.12)


def _rate(entry: Entry) -> float:
    return float(entry.point.values[LEARNING_RATE])


def _others(entry: Entry) -> str:
    """Values of the other axes."""
    values = entry.point.values.items()
    return ", ".join(f"{key} {value}" for key, value in values if key != LEARNING_RATE)


def _over_parameters(comparison: Comparison, figure: Any) -> bool:
    return _over(comparison, figure, "parameters", lambda entry: entry.parameters, "parameters")


def _over_energy(comparison: Comparison, figure: Any) -> bool:
    largest = max((entry.energy.mean or 0.0 for entry in comparison.entries.values()), default=0.0)
    unit, factor = next((pair for pair in _ENERGY_UNITS if largest * pair[1] >= 1), _ENERGY_UNITS[-1])
    return _over(
        comparison,
        figure,
        "energy",
        lambda entry: None if entry.energy.mean is None else entry.energy.mean * factor,
        f"energy of a trial, {unit}",
    )


def _over(comparison: Comparison, figure: Any, what: str, cost: Callable[[Entry], float | None], label: str) -> bool:
    """Test losses of all points over what they cost, and of those that had the lowest validation loss up to there."""
    points = [entry for entry in comparison.entries.values() if entry.test.mean is not None and (cost(entry) or 0) > 0]
    if not points:
        return False
    figure.suptitle(f"{comparison.grid.config.name}: test loss over {what}", fontsize=14)
    axes = figure.add_subplot()
    for architecture in comparison.architectures:
        own = [entry for entry in points if entry.architecture == architecture]
        # Of equal costs the best comes first.
        own.sort(key=lambda entry: (cost(entry) or 0, entry.validation.mean or 0))
        style = _style(comparison, architecture)
        axes.errorbar(
            [cost(entry) for entry in own],
            [entry.test.mean for entry in own],
            yerr=[entry.test.deviation or 0.0 for entry in own] if _has_seeds(own) else None,
            linestyle="none", elinewidth=0.8, alpha=0.5, fillstyle="none", label=f"{architecture}, each point", **style,
        )  # fmt: skip
        chosen = _chosen(own)
        axes.step(
            [cost(entry) for entry in chosen],
            [entry.test.mean for entry in chosen],
            where="post", linewidth=2, label=f"{architecture}, best by validation up to here", **style,
        )  # fmt: skip
        # The last of them has the lowest validation loss of all.
        for entry in chosen[-1:]:
            axes.plot(cost(entry), entry.test.mean, linestyle="none", label=f"{architecture}, best of all",
                      **style | {"marker": "*", "markersize": 17, "markeredgecolor": "black"})  # fmt: skip
    _readable_ticks(axes, [cost(entry) or 0 for entry in points])
    axes.set_xlabel(label)
    axes.set_ylabel("test loss, nats per token")
    axes.grid(alpha=0.3)
    _legend_below(figure, axes, comparison.architectures)
    return True


def _legend_below(figure: Any, axes: Any, architectures: Sequence[str]) -> None:
    """A column for each architecture, by the beginning of the labels."""
    found = list(zip(*axes.get_legend_handles_labels(), strict=True))
    ordered = [pair for name in architectures for pair in found if pair[1].startswith(f"{name},")]
    figure.legend(*zip(*ordered, strict=True), loc="outside lower center", ncols=len(architectures), fontsize=9)


def _has_seeds(entries: Sequence[Entry]) -> bool:
    return any(entry.test.deviation is not None for entry in entries)


def _chosen(entries: Sequence[Entry]) -> list[Entry]:
    """Of entries in the order of their cost, those with a lower validation loss than all before."""
    chosen: list[Entry] = []
    for entry in entries:
        loss = entry.validation.mean
        if loss is not None and (not chosen or loss < (chosen[-1].validation.mean or 0.0)):
            chosen.append(entry)
    return chosen


def _readable_ticks(axes: Any, costs: Sequence[float]) -> None:
    """A log axis with ticks of few digits, or a plain one where the costs are near to each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = min(costs), max(costs)
    if high < 1.2 * low:
        # Nearly equal costs are to look nearly equal.
        axes.set_xlim(0.9 * low, 1.1 * high)
    elif high > 4 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
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
    figure.suptitle(f"{comparison.grid.config.name}: the best run of each architecture", fontsize=14)
    axes = figure.add_subplot()
    named = set()
    for entry, _, curve in curves:
        style = _style(comparison, entry.architecture)
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
    _legend_below(figure, axes, list(comparison.best))
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
