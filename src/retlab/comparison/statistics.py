"""The difference of two models' test losses with a paired bootstrap interval over documents."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retlab.comparison.runs import DocumentLosses

COVERAGE = 0.95
RESAMPLES = 10_000
_FEWEST_RESAMPLES = 1_000
_DRAWS = 10**8
"""Documents drawn in all at most, above which there are fewer resamples."""
_AT_ONCE = 10**7

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much more a model loses than the baseline on the documents that both were tested on."""

    mean: float
    low: float | None
    high: float | None
    "Percentile interval; None of a single document."
    unit: str
    "nats/token, or bits/byte where the tokenizers differ."
    documents: int
    "Pairs."


def loss_difference(run: DocumentLosses, baseline: DocumentLosses, seed: int = 0) -> Difference | None:
    """Mean loss of a run minus that of the baseline; None without a document that both have.

    Documents are paired by the hash of their text and drawn with replacement, pairs together (Efron and Tibshirani,
    An Introduction to the Bootstrap, 1993, chapter 13). Of equal tokens it is the loss per token, of others that per
    UTF-8 byte: in both cases a ratio of sums, made anew of every resample.
    """
    pairs = _pairs(run, baseline)
    if not pairs:
        return None
    mine, theirs = (np.array(places, dtype=np.int64) for places in zip(*pairs, strict=True))
    nats = np.array(run.nats, dtype=np.float64)[mine] - np.array(baseline.nats, dtype=np.float64)[theirs]
    tokens, other_tokens = np.array(run.tokens)[mine], np.array(baseline.tokens)[theirs]
    if (tokens == other_tokens).all():
        unit, amounts = "nats/token", nats
        sizes: Floats = tokens.astype(np.float64)
    else:
        unit, amounts = "bits/byte", nats / math.log(2)
        sizes = np.array(run.bytes, dtype=np.float64)[mine]
    low, high = bootstrap_interval(amounts, sizes, seed) if len(pairs) > 1 else (None, None)
    return Difference(float(amounts.sum() / sizes.sum()), low, high, unit, len(pairs))


def bootstrap_interval(amounts: Floats, sizes: Floats, seed: int) -> tuple[float, float]:
    """Percentile interval of sum(amounts) / sum(sizes) over resampled places, both float64 [documents]."""
    documents, generator = len(amounts), np.random.default_rng(seed)
    resamples = max(_FEWEST_RESAMPLES, min(RESAMPLES, _DRAWS // documents))
    ratios, rows = [], max(1, _AT_ONCE // documents)
    for start in range(0, resamples, rows):
        drawn = generator.integers(documents, size=(min(rows, resamples - start), documents))
        ratios.append(amounts[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _pairs(run: DocumentLosses, baseline: DocumentLosses) -> list[tuple[int, int]]:
    """Places of the documents that both have; of equal texts the first goes with the first."""
    places: dict[str, list[int]] = defaultdict(list)
    for place in reversed(range(len(baseline.sha256))):
        places[baseline.sha256[place]].append(place)
    return [(place, places[text].pop()) for place, text in enumerate(run.sha256) if places[text]]
