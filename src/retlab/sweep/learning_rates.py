"""The picture of a sweep's validation losses over the learning rate."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from retlab.sweep.comparison import Comparison, Entry
from retlab.sweep.drawing import leave_out_outliers, mark_best, over_seeds, set_title, style_of

LEARNING_RATE = "train.learning_rate"


def over_learning_rate(comparison: Comparison, figure: Any) -> bool:
    """A panel for each architecture, a thin line for each combination of the other axes, the best one thick."""
    entries = [entry for entry in comparison.entries.values() if LEARNING_RATE in entry.point.values]
    if not any(entry.validation.mean is not None for entry in entries):
        return False
    set_title(figure, comparison, "validation loss over learning rate")
    panels: Any = figure.subplots(1, len(comparison.architectures), sharey=True, squeeze=False)[0]
    losses = []
    for architecture, axes in zip(comparison.architectures, panels, strict=True):
        own = [entry for entry in entries if entry.architecture == architecture]
        best = comparison.best.get(architecture)
        style = style_of(comparison, architecture)
        _lines(axes, own, best, style)
        _rate_ticks(axes, own, len(panels))
        if best is None:
            axes.text(0.5, 0.5, "no trial finished", transform=axes.transAxes, ha="center", va="center")
        else:
            mark_best(axes, _rate(best), best.validation.mean, style)
        axes.set_xlabel("\n".join(["learning rate", *_caption(best, 140 // len(panels))]))
        axes.set_title(architecture, fontsize=12)
        axes.grid(alpha=0.3)
        losses.append([entry.validation.mean for entry in own if entry.validation.mean is not None])
    leave_out_outliers(panels, losses)
    panels[0].set_ylabel("validation loss, nats per token" + over_seeds(comparison))
    return True


def _caption(best: Entry | None, width: int) -> list[str]:
    if best is None:
        return []
    found = f"\u2605 best: point {best.point.number}, {best.validation.mean:.4f}"
    others = _others(best)
    return [found, *textwrap.wrap(f"thick: {others}" if others else "", width)]


def _lines(axes: Any, entries: Sequence[Entry], best: Entry | None, style: dict[str, Any]) -> None:
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


def _rate_ticks(axes: Any, entries: Sequence[Entry], panels: int) -> None:
    """The grid's own rates, each with the number of trials that diverged there."""
    lost: dict[float, int] = {}
    for entry in sorted(entries, key=_rate):
        lost[_rate(entry)] = lost.get(_rate(entry), 0) + entry.counts["diverged"]
    labels = [f"{rate:g}" + (f"\n{count} diverged" if count else "") for rate, count in lost.items()]
    axes.set_xscale("log")
    axes.minorticks_off()
    # Labels of many rates would run into each other.
    upright = len(lost) > 5 or (any(lost.values()) and len(lost) * panels > 10)
    axes.set_xticks(list(lost), labels, rotation=90 if upright else 0, fontsize=9)
    # Rates at which all diverged are shown, too.
    least, most = min(lost), max(lost)
    room = (most / least) ** 0.15 if most > least else 2.0
    axes.set_xlim(least / room, most * room)


def _rate(entry: Entry) -> float:
    return float(entry.point.values[LEARNING_RATE])


def _others(entry: Entry) -> str:
    """Values of the other axes."""
    values = entry.point.values.items()
    return ", ".join(f"{key} {value}" for key, value in values if key != LEARNING_RATE)
