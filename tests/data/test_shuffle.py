"""The global shuffle: a permutation, far from the identity, the same for all partitions, bounded per bucket."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.data.documents import contents, texts, write_raw

from retlab.data import shuffle
from retlab.data.settings import SPLITS, DataSection, SplitShares
from retlab.data.split import split_documents

COUNT = 3000


def run(raw: Path, target: Path, workers: int = 2) -> list[str]:
    target.mkdir()
    shares = SplitShares(train=0.98, validation=0.01, test=0.01)
    split_documents(DataSection(splits=shares, dask_workers=workers), raw, target)
    return texts(target / "train")


@pytest.fixture
def numbered() -> list[str]:
    return [f"{number} " + "x" * (number % 40) for number in range(COUNT)]


@pytest.fixture(params=[2**26, 2**13], ids=["one bucket", "many buckets"])
def bucket_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", request.param)
    return request.param


def test_order_is_a_permutation_far_from_the_identity(tmp_path: Path, numbered: list[str], bucket_bytes: int) -> None:
    raw = write_raw(tmp_path / "raw", [numbered[:1000], numbered[1000:1100], numbered[1100:]])
    found = run(raw, tmp_path / "splits")
    assert len(list((tmp_path / "splits" / "train").iterdir())) == (1 if bucket_bytes == 2**26 else 16)
    everything = [text for name in SPLITS for text in texts(tmp_path / "splits" / name)]
    assert Counter(everything) == Counter(numbered)
    numbers = np.array([int(text.split()[0]) for text in found])
    ranks = np.argsort(np.argsort(numbers))
    place = np.arange(len(ranks))
    # A random permutation's rank correlation has the standard error 1 / sqrt(n), and it moves a document by n / 3
    # in the mean.
    assert abs(np.corrcoef(ranks, place)[0, 1]) < 4 / len(ranks) ** 0.5
    assert abs(np.abs(ranks - place).mean() / len(ranks) - 1 / 3) < 0.03
    # Neighbours do not stay together: there are about two such pairs by chance.
    assert (np.abs(np.diff(numbers)) == 1).sum() < 15


def test_order_depends_on_the_split_seed(tmp_path: Path, numbered: list[str]) -> None:
    raw = write_raw(tmp_path / "raw", [numbered])
    found = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        split_documents(DataSection(split_seed=seed), raw, tmp_path / str(seed))
        found.append(texts(tmp_path / str(seed) / "train"))
    common = set(found[0]) & set(found[1])
    assert [text for text in found[0] if text in common] != [text for text in found[1] if text in common]


@pytest.mark.usefixtures("bucket_bytes")
def test_files_do_not_depend_on_partition_order_or_workers(tmp_path: Path, numbered: list[str]) -> None:
    chance = random.Random(1)
    documents = numbered + chance.choices(numbered[:50], k=500)
    found = []
    for number, workers in enumerate((1, 2, 4)):
        cuts = sorted(chance.sample(range(1, len(documents)), number * 3))
        pieces = [documents[a:b] for a, b in zip([0, *cuts], [*cuts, len(documents)], strict=True)]
        run(write_raw(tmp_path / f"raw{number}", pieces), tmp_path / str(number), workers)
        found.append(contents(tmp_path / str(number)))
        chance.shuffle(documents)
    assert found[0] == found[1] == found[2]


def test_copies_of_a_text_do_not_stand_together(tmp_path: Path, numbered: list[str]) -> None:
    found = run(write_raw(tmp_path / "raw", [numbered + ["copy"] * 100]), tmp_path / "splits")
    places = np.array([place for place, text in enumerate(found) if text == "copy"])
    assert len(places) == 100
    # Spread evenly, 100 copies would be about 30 apart; in a random order about 6 pairs are neighbours.
    assert (np.diff(places) == 1).sum() < 15
    assert abs(places.mean() / len(found) - 0.5) < 4 * (1 / 12 / 100) ** 0.5


def test_bucket_larger_than_memory_gives_the_same_order(
    tmp_path: Path, numbered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw", [numbered, ["copy"] * 300])
    expected = run(raw, tmp_path / "at once")
    plan = shuffle.Plan((0, 0, 0))
    monkeypatch.setattr(shuffle, "plan", lambda *_: plan)
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 5000)
    assert run(raw, tmp_path / "in stretches") == expected
    assert contents(tmp_path / "in stretches") == contents(tmp_path / "at once")


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_places_keep_the_bucket_and_tell_copies_apart(bits: int) -> None:
    chance = np.random.default_rng(0)
    keys = chance.integers(0, 2**64, 500, dtype=np.uint64)
    keys = np.concatenate([keys, keys[:50], keys[:50], np.full(200, keys[7])])
    found = shuffle.places(keys, bits)
    assert len(np.unique(found)) == len(found)
    if bits:
        assert (found >> np.uint64(64 - bits) == keys >> np.uint64(64 - bits)).all()
    assert (found[:500] == keys[:500]).all()
    order = chance.permutation(len(keys))
    assert (np.sort(shuffle.places(keys[order], bits)) == np.sort(found)).all()


def test_plan_keeps_buckets_below_their_size() -> None:
    size = shuffle.BUCKET_BYTES
    plan = shuffle.plan(100 * size, [0.9, 0.05, 0.05])
    assert plan.bits == (7, 3, 3)
    assert plan.first_buckets == [0, 128, 136, 144]
    assert shuffle.plan(10, [0.9, 0.05, 0.05]).bits == (0, 0, 0)
