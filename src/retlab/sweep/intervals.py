"""Means over seeds, and intervals of differences that are paired over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

COVERAGE = 0.95


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float | None = None
    "None without any value."
    deviation: float | None = None
    "Sample standard deviation; None of fewer than two values."
    values: int = 0


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its interval."""

    mean: float
    low: float | None
    high: float | None
    "Student's t interval of the mean; None of one pair."


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    if not values:
        return Spread()
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Mean of first - second over pairs, with Student's t interval; None without a pair."""
    over = spread([one - other for one, other in zip(first, second, strict=True)])
    if over.mean is None:
        return None
    if over.deviation is None:
        return Difference(over.mean, None, None)
    half = student_t(over.values - 1) * over.deviation / math.sqrt(over.values)
    return Difference(over.mean, over.mean - half, over.mean + half)


def student_t(degrees_of_freedom: int, coverage: float = COVERAGE) -> float:
    """The t that a Student variable stays within, on both sides of 0, with probability `coverage`.

    Bisection of the exact probability for whole degrees of freedom, in the angle atan(t / sqrt(degrees of freedom)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees_of_freedom) < coverage else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(low)


def _probability(angle: float, degrees_of_freedom: int) -> float:
    """P(|T| < t) as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    is_odd = degrees_of_freedom % 2
    square, term, total = math.cos(angle) ** 2, 1.0, 0.0
    for step in range(1, degrees_of_freedom // 2 + 1):
        total += term
        term *= square * (2 * step / (2 * step + 1) if is_odd else (2 * step - 1) / (2 * step))
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total
