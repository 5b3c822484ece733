"""The lines of latency.csv."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

MEASURED = "measured"

NO_CACHE: Literal["no cache"] = "no cache"
Method = Literal["recurrent", "cache", "no cache"]
"""How tokens are generated: from a state of fixed size, from a cache of all that was read, or from all of it anew."""


@dataclass(frozen=True)
class LatencyRow:
    """What was measured at one context; the numbers are None where they do not apply or nothing could be measured."""

    model: str
    method: Method
    device: str
    "The GPU's name, or cpu with its threads."
    precision: str
    batch_size: int
    context: int
    "Tokens of every sequence before the first new one."
    new_tokens: int
    "Tokens after the first new one, over which the time per token is taken."
    trials: int
    prefill_median_s: float | None = None
    "From the call to the first new token."
    prefill_p95_s: float | None = None
    decode_median_s: float | None = None
    "Per token of all sequences, the mean of each trial."
    decode_p95_s: float | None = None
    peak_memory_bytes: int | None = None
    state_bytes_per_sequence: int | None = None
    status: str = MEASURED
    "Or a sentence that says why there are no numbers."

    @property
    def is_measured(self) -> bool:
        """Whether it has numbers."""
        return self.status == MEASURED


def write_rows(rows: Iterable[LatencyRow]) -> str:
    """The text of latency.csv; an empty cell where there is no number."""
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(LatencyRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return table.getvalue()


def read_rows(file: Path) -> list[LatencyRow]:
    """The lines of a latency.csv."""
    hints = get_type_hints(LatencyRow)
    with open(file, encoding="utf-8", newline="") as opened:
        return [
            LatencyRow(**{key: _value(text, hints[key]) for key, text in row.items()}) for row in csv.DictReader(opened)
        ]


def _value(text: str, hint: Any) -> Any:
    kinds = [hint, *get_args(hint)]
    if text == "" and type(None) in kinds:
        return None
    return next((kind(text) for kind in (int, float) if kind in kinds), text)
