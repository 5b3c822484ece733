"""What a sweep's pictures share: colours, titles, the mark of the best point, losses beyond the picture."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from retlab.drawing import Pen, marker
from retlab.sweep.comparison import Comparison

_TITLE_WIDTH = 88
_MOST = 3.0
"""Losses of so many times the median lie beyond the picture: beside them all others would look alike."""


def style_of(comparison: Comparison, architecture: str) -> dict[str, Any]:
    """Colour and marker of an architecture, the same in all pictures."""
    place = comparison.architectures.index(architecture)
    return {"color": Pen().colour(place), "marker": marker(place)}


def star_size(comparison: Comparison, architecture: str) -> float:
    """Smaller for each further architecture: at the same place all are seen."""
    return 21.0 - 5.0 * comparison.architectures.index(architecture)


def set_title(figure: Any, comparison: Comparison, what: str) -> None:
    """The experiment's name and what is shown, in as many lines as it takes."""
    lines = textwrap.wrap(f"{comparison.grid.config.name}: {what}", _TITLE_WIDTH)
    figure.suptitle("\n".join(lines), fontsize=14)


def over_seeds(comparison: Comparison) -> str:
    """What a loss stands for where there are several seeds."""
    seeds = len(comparison.grid.config.grid_search.seeds)
    return f"\nmean of {seeds} seeds, bars: standard deviation" if seeds > 1 else ""


def mark_best(
    axes: Any, x: float | None, y: float | None, style: dict[str, Any], label: str | None = None, size: float = 17.0
) -> None:
    """A star at the point that is chosen."""
    axes.plot([x], [y], linestyle="none", marker="*", markersize=size, markeredgecolor="black", markeredgewidth=0.8,
              color=style["color"], zorder=5, label=label)  # fmt: skip


def leave_out_outliers(panels: Sequence[Any], losses: Sequence[Sequence[float]]) -> None:
    """End the picture below losses that are far above most others, and say in each panel how many are not shown.

    Args:
        panels: axes that share their losses' scale.
        losses: those of each panel.
    """
    known = [loss for own in losses for loss in own if not math.isnan(loss)]
    limit = _MOST * statistics.median(known)
    shown = [loss for loss in known if loss <= limit]
    if len(shown) == len(known):
        return
    room = 0.05 * ((max(shown) - min(shown)) or 1.0)
    panels[0].set_ylim(min(shown) - room, max(shown) + 3 * room)
    for axes, own in zip(panels, losses, strict=True):
        beyond = [loss for loss in own if loss > limit]
        if beyond:
            text = f"\u2191 {len(beyond)} above, up to {max(beyond):,.3g}"
            axes.text(0.98, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=9)
