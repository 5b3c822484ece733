"""Loss by position: whether a model uses its context, and whether it breaks beyond the length of its training."""

import csv
import io
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retlab.artifacts import write_atomic

# Paul Tol's bright scheme, told apart by people with any colour vision.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")

COLUMNS = ("first_position", "last_position", "tokens", "loss", "standard_error")

# The ranges end at 1, 2, 3, 4, 6, 8, 12, 16, ...: so does every window that is a power of two.
_FIRST = torch.tensor([1, 2] + [(part << power) + 1 for power in range(40) for part in (2, 3)])


@dataclass
class PositionLosses:
    """Sums of -log p over targets by their place in their documents, in ranges that grow with the place."""

    tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(len(_FIRST), dtype=torch.int64))
    nats: torch.Tensor = field(default_factory=lambda: torch.zeros(len(_FIRST), dtype=torch.float64))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(len(_FIRST), dtype=torch.float64))

    def add(self, positions: torch.Tensor, losses: torch.Tensor) -> None:
        """Count targets at `positions` (int64 [n], from 1) with their `losses` (float64 [n], nats)."""
        ranges = torch.bucketize(positions, _FIRST, right=True) - 1
        self.tokens.index_add_(0, ranges, torch.ones_like(ranges))
        self.nats.index_add_(0, ranges, losses)
        self.squares.index_add_(0, ranges, losses.square())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each range that holds targets: its places, its targets, and their mean loss in nats per token.

        The standard error takes the targets as independent; it is None for a single one.
        """
        rows = []
        for number in self.tokens.nonzero().flatten().tolist():
            count, loss = int(self.tokens[number]), float(self.nats[number] / self.tokens[number])
            spread = max(float(self.squares[number]) / count - loss * loss, 0.0)
            rows.append(
                {
                    "first_position": int(_FIRST[number]),
                    "last_position": int(_FIRST[number + 1]) - 1,
                    "tokens": count,
                    "loss": loss,
                    "standard_error": math.sqrt(spread / (count - 1)) if count > 1 else None,
                }
            )
        return rows


def write_positions(file: Path, rows: list[dict[str, Any]]) -> None:
    """loss_by_position.csv."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, table.getvalue())


def draw_positions(runs: dict[str, list[dict[str, Any]]], window: int, file: Path) -> None:
    """Loss over position of one or several runs, with twice the standard error, and where the window ends.

    Args:
        runs: the rows of each, by name.
        window: tokens of a training window.
        file: the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for (name, rows), colour in zip(runs.items(), itertools.cycle(_COLOURS)):
        places = [math.sqrt(row["first_position"] * row["last_position"]) for row in rows]
        losses = [row["loss"] for row in rows]
        errors = [2 * (row["standard_error"] or 0.0) for row in rows]
        axes.plot(places, losses, "o-", markersize=4, color=colour, label=name)
        low, high = ([loss + sign * error for loss, error in zip(losses, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axvline(window, color="#888888", linestyle="--", linewidth=1)
    axes.annotate(
        f"window of {window:,} tokens", (window, 0), (-4, 6), xycoords=("data", "axes fraction"),
        textcoords="offset points", rotation=90, ha="right", va="bottom", fontsize=9, color="#666666",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda place, _: f"{place:,.0f}")
    axes.set_xlabel("position in the document, tokens")
    axes.set_ylabel("loss, nats per token")
    axes.set_title("Loss by position, with twice the standard error", fontsize=12)
    axes.grid(True, alpha=0.3)
    if len(runs) > 1:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(file, picture.getvalue())
