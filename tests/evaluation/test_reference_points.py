"""Count models against plain dictionaries, compressors against the command's own format."""

import gzip
import hashlib
import lzma
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.data.shard_files import write_shards

from retlab.data.documents import DocumentFile, as_texts
from retlab.evaluation import reference_points
from retlab.evaluation.reference_points import count_models, read_text, uniform_nats

EOS = 2
Documents = list[list[int]]


def pairs(documents: Documents) -> list[tuple[int, int]]:
    return [pair for ids in documents for pair in zip([EOS, *ids], [*ids, EOS], strict=True)]


class ByHand:
    """Witten-Bell in dictionaries."""

    def __init__(self, train: Documents, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.pairs = Counter(pairs(train))
        self.contexts = Counter(before for before, _ in pairs(train))
        self.unigrams = Counter(after for _, after in pairs(train))
        self.kinds = Counter(before for before, _ in self.pairs)

    def unigram(self, token: int) -> float:
        kinds = len(self.unigrams)
        return (self.unigrams[token] + kinds / self.vocab_size) / (sum(self.unigrams.values()) + kinds)

    def bigram(self, before: int, token: int) -> float:
        kinds = self.kinds[before]
        if kinds == 0:
            return self.unigram(token)
        return (self.pairs[before, token] + kinds * self.unigram(token)) / (self.contexts[before] + kinds)

    def nats(self, test: Documents) -> tuple[float, float]:
        unigram = -sum(math.log(self.unigram(after)) for _, after in pairs(test))
        bigram = -sum(math.log(self.bigram(before, after)) for before, after in pairs(test))
        return unigram, bigram


def corpus(seed: int, documents: int, highest: int) -> Documents:
    draw = random.Random(seed)
    return [[int(highest * draw.random() ** 3) for _ in range(draw.randrange(60))] for _ in range(documents)]


@pytest.mark.parametrize(("vocab_size", "seen_bits"), [(90, 2**31), (90, 90 * 7), (70_000, 2**31), (70_000, 2**28)])
def test_count_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int, seen_bits: int) -> None:
    # The test split has tokens and contexts that the train split never has; few bits force several passes.
    monkeypatch.setattr(reference_points, "SEEN_BITS", seen_bits)
    train, test = corpus(0, 60, 60), corpus(1, 20, 90)
    if vocab_size > 100:
        test[3] += [vocab_size - 1, 65_536, vocab_size - 1]
        train[5] += [65_536, 65_535]
    write_shards(tmp_path / "train", [[train[:20], train[20:30]], [train[30:]]], vocab_size)
    write_shards(tmp_path / "test", [[test[:5]], [test[5:]]], vocab_size)
    found = count_models(tmp_path / "train", tmp_path / "test", vocab_size, EOS)
    assert (found.unigram, found.bigram) == pytest.approx(ByHand(train, vocab_size).nats(test), rel=1e-12)
    assert found.train_targets == len(pairs(train))


def test_the_oracle_has_probabilities() -> None:
    model = ByHand(corpus(2, 10, 9), 12)
    assert sum(map(model.unigram, range(12))) == pytest.approx(1)
    for before in range(12):
        assert sum(model.bigram(before, token) for token in range(12)) == pytest.approx(1)


def test_only_the_first_tokens_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = corpus(3, 30, 40), corpus(4, 5, 40)
    write_shards(tmp_path / "train", [[train[:10], train[10:20]], [train[20:]]], 50)
    write_shards(tmp_path / "test", [[test]], 50)
    monkeypatch.setattr(reference_points, "COUNTED_TOKENS", len(pairs(train[:10])) + 1)
    found = count_models(tmp_path / "train", tmp_path / "test", 50, EOS)
    assert found.train_targets == len(pairs(train[:20]))
    assert (found.unigram, found.bigram) == pytest.approx(ByHand(train[:20], 50).nats(test))


def test_uniform() -> None:
    assert uniform_nats(256, 10) == pytest.approx(10 * math.log(256))


def test_text_is_hashed_and_compressed_as_by_the_commands(tmp_path: Path) -> None:
    documents = ["abc " * 1000, "é\0x", "日本" * 50, "x"]
    for number, part in enumerate((documents[:1], documents[1:])):
        with DocumentFile(tmp_path / f"part-{number:05}.parquet") as file:
            file.write(as_texts([text.encode() for text in part]))
    text = read_text(tmp_path)
    raw = "".join(documents).encode()
    assert text.sha256 == [hashlib.sha256(document.encode()).hexdigest() for document in documents]
    np.testing.assert_array_equal(text.bytes, [len(document.encode()) for document in documents])
    assert text.compressed == {
        "gzip": len(gzip.compress(raw, 9)),
        "xz": len(lzma.compress(raw, preset=6)),
    }
