"""What is measured: a cell for every method, batch size and context, in the order in which they are tried."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from retlab.evaluation.latency.rows import MEASURED, NO_CACHE, LatencyRow, Method
from retlab.evaluation.settings import LatencySection
from retlab.progress import duration

NAIVE_TOKENS = 2
"""Tokens after the first one where each takes a forward over everything: each of them is as long as the first."""


@dataclass
class Cell:
    """One method at one batch size and context, with what has been measured of it.

    Attributes:
        trial: seconds up to the first new token and per further one, of the trial that memory was measured in.
        prefills: seconds up to the first new token, of every trial that counts.
        decodes: seconds per further token, the mean of every trial that counts.
        peak_bytes: peak memory.
        state_bytes: of the state or cache, per sequence.
        status: "measured", or why there are no numbers.
        lacks_memory: whether the memory did not suffice.
    """

    method: Method
    batch: int
    context: int
    new_tokens: int
    trial: tuple[float, float] | None = None
    prefills: list[float] = field(default_factory=list)
    decodes: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    state_bytes: int | None = None
    status: str = MEASURED
    lacks_memory: bool = False

    @property
    def is_open(self) -> bool:
        """Whether nothing keeps it from being measured, as far as is known."""
        return self.status == MEASURED

    def row(self, model: str, device: str, precision: str) -> LatencyRow:
        """The line of the table."""
        prefill, decode = (_median_and_p95(times if self.is_open else []) for times in (self.prefills, self.decodes))
        return LatencyRow(
            model=model, method=self.method, device=device, precision=precision, batch_size=self.batch,
            context=self.context, new_tokens=self.new_tokens, trials=len(self.prefills) if self.is_open else 0,
            prefill_median_s=prefill[0], prefill_p95_s=prefill[1], decode_median_s=decode[0], decode_p95_s=decode[1],
            peak_memory_bytes=self.peak_bytes if self.is_open else None,
            state_bytes_per_sequence=self.state_bytes if self.is_open else None, status=self.status,
        )  # fmt: skip


def _median_and_p95(times: Sequence[float]) -> tuple[float | None, float | None]:
    """Median and 95th percentile, between the two nearest values where it falls there."""
    if len(times) < 2:
        return (times[0], times[0]) if times else (None, None)
    return statistics.median(times), statistics.quantiles(times, n=20, method="inclusive")[-1]


def cells_of(section: LatencySection, method: Method) -> list[Cell]:
    """All cells of a model, each method's and batch size's from the shortest context on."""
    methods: list[tuple[Method, int]] = [(method, section.new_tokens)]
    if section.naive:
        methods.append((NO_CACHE, min(section.new_tokens, NAIVE_TOKENS)))
    return [
        Cell(kind, batch, context, new_tokens)
        for kind, new_tokens in methods
        for batch in sorted(section.batch_sizes)
        for context in sorted(section.contexts)
    ]


def expected_obstacle(cell: Cell, others: Sequence[Cell], positions: int | None, longest: float) -> str | None:
    """Why a cell need not be tried, or None.

    Args:
        cell: what would be tried next.
        others: all cells, with what is known of them.
        positions: vectors that the model has learned for positions, if it has.
        longest: seconds that a trial may take.
    """
    needed = cell.context + cell.new_tokens
    if positions is not None and needed > positions:
        return (
            f"not possible: {cell.context:,} + {cell.new_tokens:,} tokens need {needed:,} positions, and the model has"
            f" learned {positions:,}"
        )
    for other in _beside(cell, others):
        if other.lacks_memory and other.batch <= cell.batch and other.context <= cell.context:
            return f"not tried: {other.batch:,} x {other.context:,} tokens did not fit in memory"
    seconds = _expected_seconds(cell, [other for other in _beside(cell, others) if other.batch == cell.batch])
    if seconds > longest:
        return (
            f"not tried: a trial would take {duration(seconds)} or longer, and evaluate.latency.longest_trial_seconds"
            f" is {longest:g}"
        )
    return None


def _beside(cell: Cell, others: Sequence[Cell]) -> Iterator[Cell]:
    return (other for other in others if other is not cell and other.method == cell.method)


def _expected_seconds(cell: Cell, others: Sequence[Cell]) -> float:
    """A low guess of what a trial takes, from the two next shorter contexts; 0 where there are none."""
    known = [(other.context, *other.trial) for other in others if other.trial and other.context < cell.context]
    if not known:
        return 0.0
    context, prefill, decode = known[-1]
    power = 1.0
    if len(known) > 1:
        shorter, faster, _ = known[-2]
        power = min(2.0, max(1.0, math.log(prefill / faster) / math.log(context / shorter)))
    prefill *= (cell.context / context) ** power
    return prefill + cell.new_tokens * (prefill if cell.method == NO_CACHE else decode)
