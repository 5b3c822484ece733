"""The paired bootstrap: against brute force, in coverage, and over documents that only some runs have."""

import math

import numpy as np
import pytest

from retlab.comparison.runs import DocumentLosses
from retlab.comparison.statistics import bootstrap_interval, loss_difference


def losses(nats: list[float], tokens: list[int], names: str, size: int = 100) -> DocumentLosses:
    return DocumentLosses(list(names), nats, tokens, [size] * len(names))


def test_the_interval_is_that_of_resamples_one_by_one() -> None:
    generator = np.random.default_rng(5)
    amounts, sizes = generator.normal(1, 2, 30), generator.integers(10, 500, 30).astype(float)
    ratios = []
    for _ in range(20_000):
        drawn = [int(generator.integers(30)) for _ in range(30)]
        ratios.append(sum(amounts[place] for place in drawn) / sum(sizes[place] for place in drawn))
    low, high = bootstrap_interval(amounts, sizes, seed=0)
    expected = np.quantile(ratios, [0.025, 0.975])
    assert (low, high) == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))
    assert bootstrap_interval(amounts, sizes, seed=0) == (low, high), "the same seed, the same interval"


def test_most_intervals_hold_the_true_difference() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        sizes = generator.integers(50, 150, 60).astype(float)
        low, high = bootstrap_interval(sizes * generator.normal(0.3, 0.5, 60), sizes, seed)
        held += low <= 0.3 <= high
    assert 180 <= held <= 199


def test_documents_are_paired_by_their_text_in_any_order() -> None:
    baseline = losses([10.0, 20.0, 30.0, 40.0], [10, 10, 20, 20], "abcc")
    run = losses([41.0, 12.0, 99.0, 33.0], [20, 10, 7, 20], "cazc")
    found = loss_difference(run, baseline)
    assert found is not None
    # Of equal texts the first goes with the first; z has no counterpart, b is not in the run.
    assert found.mean == pytest.approx(((41 - 30) + (12 - 10) + (33 - 40)) / 50)
    assert (found.unit, found.documents) == ("nats/token", 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high


def test_other_tokens_are_compared_in_bits_per_byte() -> None:
    found = loss_difference(losses([30.0, 50.0], [9, 9], "ab"), losses([20.0, 40.0], [10, 10], "ab"))
    assert found is not None
    assert found.unit == "bits/byte"
    assert found.mean == pytest.approx(20 / math.log(2) / 200)


def test_what_cannot_be_paired() -> None:
    assert loss_difference(losses([1.0], [1], "a"), losses([1.0], [1], "b")) is None
    single = loss_difference(losses([3.0], [1], "a"), losses([1.0], [1], "a"))
    assert single is not None
    assert (single.mean, single.low, single.high) == (2.0, None, None)
    assert loss_difference(DocumentLosses([], [], [], []), losses([1.0], [1], "b")) is None
