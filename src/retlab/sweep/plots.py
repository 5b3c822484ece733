"""A sweep's pictures: loss over learning rate, parameters and energy, and the learning curves of the best runs."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from retlab.artifacts import write_atomic
from retlab.sweep.comparison import Comparison, Entry
from retlab.sweep.outcomes import Outcome

LEARNING_RATE = "train.learning_rate"

# Paul Tol's bright scheme, told apart by people with any colour vision.
_COLOURS = ("#4477aa", "#ee6677", "#228833")
_MARKERS = ("o", "^", "D")


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
    rates = sorted({float(entry.point.values[LEARNING_RATE]) for entry in entries})
    panels: Any = figure.subplots(1, len(comparison.architectures), sharey=True, squeeze=False)[0]
    for architecture, axes in zip(comparison.architectures, panels, strict=True):
        own = [entry for entry in entries if entry.architecture == architecture]
        _learning_rates(axes, own, comparison, architecture)
        axes.set_xscale("log")
        axes.minorticks_off()
        # Labels of so many rates would run into each other.
        turn = 90 if len(rates) > 8 else 0
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=turn)
        axes.set_xlabel("learning rate")
        axes.set_title(architecture, fontsize=12)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss, nats per token")
    return True


def _learning_rates(axes: Any, entries: Sequence[Entry], comparison: Comparison, architecture: str) -> None:
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: float(entry.point.values[LEARNING_RATE])):
        groups.setdefault(_others(entry), []).append(entry)
    style = _style(comparison, architecture)
    best = comparison.best.get(architecture)
    for others, group in groups.items():
        known = [entry for entry in group if entry.validation.mean is not None]
        is_best = best is not None and others == _others(best)
        kind = {"linewidth": 2.5, "zorder": 3} if is_best else {"linewidth": 0.8, "alpha": 0.45, "markersize": 3}
        axes.errorbar(
            [float(entry.point.values[LEARNING_RATE]) for entry in known],
            [entry.validation.mean for entry in known],
            yerr=[entry.validation.deviation or 0.0 for entry in known] if is_best else None,
            capsize=3,
            label=f"best: {others or 'one combination'}" if is_best else None,
            **style,
            **kind,
        )
    lost: dict[float, int] = {}
    for entry in entries:
        rate = float(entry.point.values[LEARNING_RATE])
        lost[rate] = lost.get(rate, 0) + entry.counts["diverged"]
    for rate, count in lost.items():
        if count:
            axes.annotate(
                f"{count} diverged", (rate, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)


def _others(entry: Entry) -> str:
    """Values of the other axes."""
    values = entry.point.values.items()
    return "\n".join(f"{key} {value}" for key, value in values if key != LEARNING_RATE)


def _over_parameters(comparison: Comparison, figure: Any) -> bool:
    return _over(comparison, figure, "parameters", lambda entry: entry.parameters, "parameters")


def _over_energy(comparison: Comparison, figure: Any) -> bool:
    return _over(comparison, figure, "energy", lambda entry: entry.energy.mean, "energy of a trial, kWh")


def _over(comparison: Comparison, figure: Any, what: str, cost: Callable[[Entry], float | None], label: str) -> bool:
    """Test losses of all points over what they cost, and of those that had the lowest validation loss up to there."""
    points = [entry for entry in comparison.entries.values() if entry.test.mean is not None and (cost(entry) or 0) > 0]
    if not points:
        return False
    figure.suptitle(f"{comparison.grid.config.name}: test loss over {what}", fontsize=14)
    axes = figure.add_subplot()
    for architecture in comparison.architectures:
        own = sorted((entry for entry in points if entry.architecture == architecture), key=lambda e: cost(e) or 0)
        style = _style(comparison, architecture)
        axes.errorbar(
            [cost(entry) for entry in own],
            [entry.test.mean for entry in own],
            yerr=[entry.test.deviation or 0.0 for entry in own] if _has_seeds(own) else None,
            linestyle="none", elinewidth=0.8, alpha=0.5, fillstyle="none", label=architecture, **style,
        )  # fmt: skip
        chosen = _chosen(own)
        if len(chosen) > 1:
            axes.step(
                [cost(entry) for entry in chosen],
                [entry.test.mean for entry in chosen],
                where="post", linewidth=2, label=f"{architecture}, best by validation so far", **style,
            )  # fmt: skip
    axes.set_xscale("log")
    _readable_ticks(axes.xaxis)
    axes.set_xlabel(label)
    axes.set_ylabel("test loss, nats per token")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return True


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


def _readable_ticks(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


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
        axes.plot(*_columns(validation), linewidth=1.8, **style,
                  label=label and f"{label}, point {entry.point.number}, validation{test}")  # fmt: skip
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return True


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _curve(outcome: Outcome) -> list[tuple[float, float | None, float | None]]:
    """Tokens, training loss and validation loss of each line of a trial's metrics."""
    file = outcome.trial.folder / "metrics.csv"
    if not file.is_file():
        return []
    with open(file, encoding="utf-8", newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row.get("tokens")]
    return [(float(row["tokens"]), _number(row.get("loss")), _number(row.get("validation_loss"))) for row in rows]


def _number(text: str | None) -> float | None:
    return float(text) if text else None
