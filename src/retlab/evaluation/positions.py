"""Loss by position: whether a model uses its context, and whether it breaks beyond the length of its training."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from retlab.artifacts import write_atomic

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
