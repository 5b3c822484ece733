"""The architectures of a sweep at each point: means over seeds, paired differences, and which of two is better."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from retlab.sweep.grid import Grid, Point
from retlab.sweep.intervals import Difference, Spread, paired_difference, spread
from retlab.sweep.outcomes import STATUSES, Outcome, Status
from retlab.sweep.results import TrialResult
from retlab.sweep.similarity import Pair, Similarity

UNDECIDED = "undecided"


@dataclass(frozen=True)
class Entry:
    """One architecture at one point, over its seeds. Means are those of the finished trials."""

    architecture: str
    point: Point
    outcomes: list[Outcome]
    parameters: int | None
    intermediate_size: int | None
    "Width of the feed-forward blocks, fitted where parameters are matched."
    counts: dict[Status, int]
    validation: Spread
    "Losses in nats per token. Empty where a trial diverged: a mean of the others would flatter the point."
    test: Spread
    bits_per_byte: Spread
    seconds: Spread
    tokens_per_second: Spread
    energy: Spread
    "kWh."
    energy_method: str


@dataclass(frozen=True)
class Versus:
    """Two architectures at one point, over the seeds that both finished."""

    first: str
    second: str
    seeds: int
    test: Difference | None
    "first - second, nats per token. None where a trial of either diverged."
    validation: Difference | None
    better: str | None
    "The architecture with the lower test loss, or undecided."
    decided_by: str | None
    "interval (it does not hold 0), one seed, or divergence (only one of the two always finished)."
    same_next_token: float | None
    symmetric_kl: float | None


@dataclass(frozen=True)
class Comparison:
    """All that the tables and plots of a sweep show."""

    grid: Grid
    outcomes: dict[str, Outcome]
    entries: dict[tuple[int, str], Entry]
    "By the number of the point and the architecture; the valid points alone."
    pairs: dict[tuple[int, str, str], Versus]
    best: dict[str, Entry]
    "Of each architecture the entry with the lowest mean validation loss; the test loss takes no part."

    @property
    def architectures(self) -> list[str]:
        """In the order of the configuration."""
        return list(self.grid.config.grid_search.architectures)


def compare(grid: Grid, outcomes: dict[str, Outcome], similarities: dict[Pair, Similarity]) -> Comparison:
    """Put the trials' outcomes side by side."""
    architectures: list[str] = list(grid.config.grid_search.architectures)
    valid = [point for point in grid.points if point.trials]
    entries = {(point.number, name): _entry(point, name, outcomes) for point in valid for name in architectures}
    pairs = {
        (point.number, first, second): _versus(
            entries[point.number, first], entries[point.number, second], similarities
        )
        for point in valid
        for first, second in combinations(architectures, 2)
    }
    best = {}
    for name in architectures:
        known = [entry for (_, one), entry in entries.items() if one == name and entry.validation.mean is not None]
        if known:
            best[name] = min(known, key=rank)
    return Comparison(grid, outcomes, entries, pairs, best)


def _entry(point: Point, architecture: str, outcomes: dict[str, Outcome]) -> Entry:
    own = [outcomes[trial.id] for trial in point.trials if trial.architecture == architecture]
    counts = {status: sum(outcome.status == status for outcome in own) for status in STATUSES}
    finished = [outcome.result for outcome in own if outcome.result is not None and outcome.status == "finished"]
    rated = [] if counts["diverged"] else finished
    trial = own[0].trial if own else None
    return Entry(
        architecture=architecture,
        point=point,
        outcomes=own,
        parameters=trial.parameters if trial else None,
        intermediate_size=intermediate_size(own[0]) if own else None,
        counts=counts,
        validation=_over(rated, lambda result: result.validation_loss),
        test=_over(rated, lambda result: result.test_loss),
        bits_per_byte=_over(rated, lambda result: result.test_bits_per_byte),
        seconds=_over(finished, lambda result: result.training_seconds),
        tokens_per_second=_over(finished, lambda result: result.tokens_per_second),
        energy=_over(finished, lambda result: result.energy_kwh),
        energy_method=joined_methods(result.energy_method for result in finished),
    )


def rank(entry: Entry) -> tuple[int, float]:
    """The lower, the better is an entry with a validation loss."""
    # A mean over a few lucky seeds does not compete with one over all.
    return -entry.counts["finished"], entry.validation.mean or 0.0


def some_lack_seeds(comparison: Comparison) -> bool:
    """Whether a point with a loss had fewer seeds finished than the best, and so did not compete."""
    return any(
        entry.validation.mean is not None
        and entry.counts["finished"] < comparison.best[entry.architecture].counts["finished"]
        for entry in comparison.entries.values()
    )


def joined_methods(methods: Iterable[str]) -> str:
    """How energy was measured, each clause once."""
    return "; ".join(dict.fromkeys(clause for method in methods for clause in method.split("; ")))


def intermediate_size(outcome: Outcome) -> int | None:
    """Width of the trial's feed-forward blocks."""
    model = outcome.trial.config.model
    width: int | None = getattr(model, "intermediate_size", None)
    return width if width is not None else 2 * model.to_fields(1).hidden_size


def _over(results: Sequence[TrialResult], value: Callable[[TrialResult], float | None]) -> Spread:
    return spread([number for result in results if (number := value(result)) is not None])


def _versus(first: Entry, second: Entry, similarities: dict[Pair, Similarity]) -> Versus:
    others = {outcome.trial.seed: outcome for outcome in second.outcomes}
    both = [
        (one, others[one.trial.seed])
        for one in first.outcomes
        if one.trial.seed in others and one.status == others[one.trial.seed].status == "finished"
    ]
    rated = [] if first.counts["diverged"] or second.counts["diverged"] else both
    test = _difference(rated, lambda result: result.test_loss)
    better, decided_by = _better(first, second, test)
    alike = [
        similarities[one.trial.id, other.trial.id]
        for one, other in both
        if (one.trial.id, other.trial.id) in similarities
    ]
    return Versus(
        first=first.architecture,
        second=second.architecture,
        seeds=len(both),
        test=test,
        validation=_difference(rated, lambda result: result.validation_loss),
        better=better,
        decided_by=decided_by,
        same_next_token=spread([one.same_next_token for one in alike]).mean,
        symmetric_kl=spread([one.symmetric_kl for one in alike]).mean,
    )


def _difference(both: list[tuple[Outcome, Outcome]], value: Callable[[TrialResult], float | None]) -> Difference | None:
    numbers = [
        (one, other)
        for first, second in both
        if first.result and second.result
        and (one := value(first.result)) is not None and (other := value(second.result)) is not None
    ]  # fmt: skip
    return paired_difference([one for one, _ in numbers], [other for _, other in numbers])


def _better(first: Entry, second: Entry, test: Difference | None) -> tuple[str | None, str | None]:
    """Which is better, and by what."""
    diverged = [bool(entry.counts["diverged"]) for entry in (first, second)]
    if any(diverged):
        stable = second if diverged[0] else first
        return (None, None) if all(diverged) or stable.test.mean is None else (stable.architecture, "divergence")
    if test is None:
        return None, None
    lower = first.architecture if test.mean < 0 else second.architecture
    if test.low is None or test.high is None:
        return (lower if test.mean else UNDECIDED), "one seed"
    return (UNDECIDED if test.low <= 0 <= test.high else lower), "interval"
