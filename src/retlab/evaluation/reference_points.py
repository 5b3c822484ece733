"""What a test text costs without a neural network: a uniform guess, counts of the train tokens, and compressors.

All of them score the same targets as `perplexity` (a document's tokens and its end of text, from an end-of-text token
as context) and are stated per UTF-8 byte of the same documents.
"""

import hashlib
import lzma
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retlab.data.reading import parts_of, texts_of
from retlab.data.shards import Shards, open_shards

COUNTED_TOKENS = 2**28
"""The count models read the first so many tokens of the train split, rounded up to a row group."""

SEEN_BITS = 2**31
"""Size of the bit map of seen pairs (256 MiB); a larger vocabulary takes several passes over the train tokens."""

Integers = npt.NDArray[np.int64]


class CountModels(NamedTuple):
    """Sums of -log p over the test targets, in nats, and how many train targets were counted."""

    unigram: float
    bigram: float
    train_targets: int


class TestText(NamedTuple):
    """The documents of a split as text."""

    sha256: list[str]
    "Hash of each document's UTF-8 text, in file order."
    bytes: Integers
    "UTF-8 bytes of each document, int64 [documents]."
    compressed: dict[str, int]
    "Bytes of all documents, one after the other, under each compressor."


def read_text(folder: Path) -> TestText:
    """Read the parquet parts of a split once: hash, measure and compress them in bounded memory.

    The compressors are gzip -9 and xz at the default preset of its command, 6.

    Raises:
        UserError: a part is damaged.
    """
    gzip, xz = zlib.compressobj(9, wbits=31), lzma.LZMACompressor(preset=6)
    sizes = {"gzip": 0, "xz": 0}
    hashes, lengths = [], []
    for document in _documents(folder):
        hashes.append(hashlib.sha256(document).hexdigest())
        lengths.append(len(document))
        sizes["gzip"] += len(gzip.compress(document))
        sizes["xz"] += len(xz.compress(document))
    sizes["gzip"] += len(gzip.flush())
    sizes["xz"] += len(xz.flush())
    return TestText(hashes, np.array(lengths, dtype=np.int64), sizes)


def _documents(folder: Path) -> Iterator[bytes]:
    for part in parts_of(folder):
        for texts in texts_of(part):
            for text in texts:
                yield text.as_buffer().to_pybytes()


def uniform_nats(vocab_size: int, targets: int) -> float:
    """Sum of -log p where every token of the vocabulary is as likely as any other."""
    return targets * math.log(vocab_size)


def count_models(train: Path, test: Path, vocab_size: int, eos_id: int) -> CountModels:
    """Unigram and bigram models of the train tokens, scored on the test tokens.

    Both are smoothed after Witten and Bell (1991, "The zero-frequency problem", method C): with c(h, w) the count of w
    after h, T(h) the number of different tokens after h, V the vocabulary,

        p(w)   = (c(w) + T / V) / (N + T)
        p(w|h) = (c(h, w) + T(h) p(w)) / (c(h) + T(h))

    so that no token is impossible. Memory does not grow with the train split.
    """
    train_shards, test_shards = open_shards(train, 1), open_shards(test, 1)
    asked, times = _distinct_pairs(test_shards, vocab_size, eos_id)
    unigrams, contexts, followers, found = _count(train_shards, asked, vocab_size, eos_id)
    before, after = np.divmod(asked, vocab_size)
    total, kinds = unigrams.sum(), np.count_nonzero(unigrams)
    p_unigram = (unigrams[after] + kinds / vocab_size) / (total + kinds)
    followed = followers[before]
    # A context that the train split never has says nothing.
    seen = contexts[before] > 0
    p_bigram = p_unigram.copy()
    p_bigram[seen] = ((found + followed * p_unigram)[seen]) / (contexts[before] + followed)[seen]
    return CountModels(float(-times @ np.log(p_unigram)), float(-times @ np.log(p_bigram)), int(total))


def _pairs(shards: Shards, eos_id: int, limit: float = math.inf) -> Iterator[tuple[Integers, Integers]]:
    """Each row group's contexts and targets until `limit` targets are out: every token after its predecessor."""
    done = 0
    for index in range(len(shards.group)):
        if done >= limit:
            return
        stream = shards.read(index, eos_id).stream.astype(np.int64)
        done += len(stream)
        yield stream, np.append(stream[1:], eos_id)


def _distinct_pairs(shards: Shards, vocab_size: int, eos_id: int) -> tuple[Integers, Integers]:
    """The different pairs of a split as context * V + target, ascending, and how often each occurs."""
    keys, times = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    waiting: list[tuple[Integers, Integers]] = []
    for context, target in _pairs(shards, eos_id):
        waiting.append(np.unique(context * vocab_size + target, return_counts=True))
        if sum(len(part) for part, _ in waiting) > max(2**22, len(keys)):
            keys, times = _add_up([(keys, times), *waiting])
            waiting = []
    return _add_up([(keys, times), *waiting])


def _add_up(parts: list[tuple[Integers, Integers]]) -> tuple[Integers, Integers]:
    keys, where = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    times = np.zeros(len(keys), dtype=np.int64)
    start = 0
    for part, counts in parts:
        times[where[start : start + len(part)]] += counts
        start += len(part)
    return keys, times


def _count(shards: Shards, asked: Integers, vocab_size: int, eos_id: int) -> tuple[Integers, ...]:
    """Counts of targets, of contexts, of different targets per context (int64 [V]), and of the pairs asked for."""
    unigrams, contexts, followers = (np.zeros(vocab_size, dtype=np.int64) for _ in range(3))
    found = np.zeros(len(asked), dtype=np.int64)
    rows = max(1, SEEN_BITS // vocab_size)
    for first in range(0, vocab_size, rows):
        low, high = first * vocab_size, min(first + rows, vocab_size) * vocab_size
        seen = np.zeros(-(-(high - low) // 8), dtype=np.uint8)
        for context, target in _pairs(shards, eos_id, COUNTED_TOKENS):
            if first == 0:
                unigrams += np.bincount(target, minlength=vocab_size)
                contexts += np.bincount(context, minlength=vocab_size)
            keys, counts = np.unique(context * vocab_size + target, return_counts=True)
            part = slice(*np.searchsorted(keys, [low, high]))
            keys, counts = keys[part], counts[part]
            followers += np.bincount(_mark_new(seen, keys - low) // vocab_size + first, minlength=vocab_size)
            place = np.minimum(np.searchsorted(asked, keys), max(len(asked) - 1, 0))
            hit = asked[place] == keys
            found[place[hit]] += counts[hit]
    return unigrams, contexts, followers, found


def _mark_new(seen: npt.NDArray[np.uint8], keys: Integers) -> Integers:
    """Those of the keys (ascending, different) whose bit was not set yet; it is now."""
    byte, bit = keys >> 3, (1 << (keys & 7)).astype(np.uint8)
    new = (seen[byte] & bit) == 0
    if len(keys):
        # Several keys may share a byte: they stand side by side.
        starts = np.flatnonzero(np.diff(byte, prepend=-1))
        seen[byte[starts]] |= np.bitwise_or.reduceat(bit, starts)
    return keys[new]
