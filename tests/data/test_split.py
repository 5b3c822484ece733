"""Stage 2: membership by text and seed alone, exact shares, and nothing lost."""

import hashlib
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.data.documents import contents, texts, write_raw

from retlab.data import documents as parts
from retlab.data.settings import SPLITS, DataSection, SplitShares
from retlab.data.split import document_hashes, split_documents
from retlab.errors import UserError

SHARES = SplitShares(train=0.7, validation=0.2, test=0.1)


def settings(**values: object) -> DataSection:
    return DataSection(**{"splits": SHARES, "dask_workers": 2, **values})


def split(raw: Path, target: Path, **values: object) -> dict[str, list[str]]:
    target.mkdir()
    split_documents(settings(**values), raw, target)
    return {name: texts(target / name) for name in SPLITS}


def everything(splits: dict[str, list[str]]) -> list[str]:
    return [text for found in splits.values() for text in found]


def by_hand(text: str, seed: int = 0) -> str:
    """The split of a text, computed from the documented rule."""
    digest = hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()
    place = int.from_bytes(digest[:8], "little") / 2**64
    return "train" if place < 0.7 else "validation" if place < 0.9 else "test"


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """2,000 documents of very different lengths; 200 occur more than once."""
    chance = random.Random(0)
    found = [f"document {number} " + "ä" * int(chance.lognormvariate(3, 1.5)) for number in range(1700)]
    found += chance.choices(found[:200], k=300)
    chance.shuffle(found)
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The report on 100,000 distinct documents at the default shares."""
    folder = tmp_path_factory.mktemp("large")
    raw = write_raw(folder / "raw", [[f"text number {part * 50_000 + n}" for n in range(50_000)] for part in range(2)])
    (folder / "splits").mkdir()
    return split_documents(DataSection(dask_workers=2), raw, folder / "splits")


@pytest.mark.parametrize("name", SPLITS)
def test_share_is_within_four_standard_errors(large: dict[str, dict[str, dict[str, float]]], name: str) -> None:
    share = {"train": 0.9, "validation": 0.05, "test": 0.05}[name]
    standard_error = (share * (1 - share) / 100_000) ** 0.5
    found = large["splits"][name]
    assert abs(found["documents"] / 100_000 - share) < 4 * standard_error
    assert found["share_of_documents"] == found["documents"] / 100_000


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_membership_follows_from_text_and_split_seed(
    tmp_path: Path, documents: list[str], name: str, seed: int, shuffle: bool
) -> None:
    raw = write_raw(tmp_path / "raw", [documents[:900], documents[900:]])
    found = split(raw, tmp_path / "splits", split_seed=seed, shuffle=shuffle)
    assert sorted(found[name]) == sorted(text for text in documents if by_hand(text, seed) == name)


def test_equal_texts_are_never_in_two_splits(tmp_path: Path, documents: list[str]) -> None:
    found = split(write_raw(tmp_path / "raw", [documents]), tmp_path / "splits")
    train, validation, test = (set(found[name]) for name in SPLITS)
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert sorted(everything(found)) == sorted(documents)


@pytest.mark.parametrize("shuffle", [True, False])
def test_adding_files_moves_no_document(tmp_path: Path, documents: list[str], shuffle: bool) -> None:
    few = split(write_raw(tmp_path / "few", [documents[500:1000]]), tmp_path / "a", shuffle=shuffle)
    more = [documents[1000:], documents[500:1000], documents[:500]]
    many = split(write_raw(tmp_path / "many", more), tmp_path / "b", shuffle=shuffle)
    for name in SPLITS:
        assert set(few[name]) <= set(many[name])


def test_changing_shares_moves_only_what_lies_between(tmp_path: Path, documents: list[str]) -> None:
    raw = write_raw(tmp_path / "raw", [documents])
    before = split(raw, tmp_path / "a")
    after = split(raw, tmp_path / "b", splits=SplitShares(train=0.6, validation=0.3, test=0.1))
    assert set(after["train"]) < set(before["train"])
    assert sorted(after["test"]) == sorted(before["test"])


def test_shuffled_order_is_that_of_the_documents_hashes(tmp_path: Path, documents: list[str]) -> None:
    distinct = list(dict.fromkeys(documents))
    found = split(write_raw(tmp_path / "raw", [distinct[:77], distinct[77:]]), tmp_path / "splits")

    def key(text: str) -> int:
        digest = hashlib.blake2b(text.encode(), digest_size=16, key=b"0").digest()
        return int.from_bytes(digest[8:], "little")

    for name in SPLITS:
        assert found[name] == sorted(found[name], key=key)


def test_without_shuffle_the_order_is_that_of_the_input(tmp_path: Path, documents: list[str]) -> None:
    raw = write_raw(tmp_path / "raw", [documents[:100], documents[100:101], documents[101:]])
    found = split(raw, tmp_path / "splits", shuffle=False)
    for name in SPLITS:
        assert found[name] == [text for text in documents if by_hand(text) == name]


def test_empty_documents_are_dropped_and_counted(tmp_path: Path, documents: list[str]) -> None:
    empty = ["", " ", "\n\t", "\u2003\u00a0"]
    raw = write_raw(tmp_path / "raw", [empty[:2] + documents, empty[2:], documents[:1]])
    (tmp_path / "splits").mkdir()
    report = split_documents(settings(), raw, tmp_path / "splits")
    found = everything({name: texts(tmp_path / "splits" / name) for name in SPLITS})
    assert sorted(found) == sorted([*documents, documents[0]])
    assert report["empty_documents"] == 4
    assert report["documents"] == len(found)
    assert report["bytes"] == sum(len(text.encode()) for text in found)


def test_report_counts_what_lies_in_the_files(tmp_path: Path, documents: list[str]) -> None:
    raw = write_raw(tmp_path / "raw", [documents])
    (tmp_path / "splits").mkdir()
    report = split_documents(settings(), raw, tmp_path / "splits")
    for name in SPLITS:
        found = texts(tmp_path / "splits" / name)
        size = sum(len(text.encode()) for text in found)
        assert report["splits"][name] == {
            "documents": len(found),
            "bytes": size,
            "share_of_documents": len(found) / len(documents),
            "share_of_bytes": size / sum(len(text.encode()) for text in documents),
        }


@pytest.mark.parametrize("shuffle", [True, False])
def test_files_are_the_same_for_any_number_of_workers(tmp_path: Path, documents: list[str], shuffle: bool) -> None:
    raw = write_raw(tmp_path / "raw", [documents[start : start + 250] for start in range(0, 2000, 250)])
    found = []
    for workers in (1, 2, 5):
        split(raw, tmp_path / str(workers), shuffle=shuffle, dask_workers=workers)
        found.append(contents(tmp_path / str(workers)))
    assert found[0] == found[1] == found[2]
    assert all(name.split("/")[0] in SPLITS and name.endswith(".parquet") for name in found[0])


def test_row_groups_stay_small(tmp_path: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_DOCUMENTS", 100)
    split(write_raw(tmp_path / "raw", [documents]), tmp_path / "splits")
    with pq.ParquetFile(tmp_path / "splits" / "train" / "part-00000.parquet") as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert max(sizes) == 100


def test_nul_bytes_and_any_text_come_through(tmp_path: Path) -> None:
    odd = ["\x00", "a\x00b", "🐍", "\u200b", "\r\n x", "<eos>", "\ufeffmark", "x" * 100_000]
    odd += [f"{number} filler" for number in range(100)]
    found = split(write_raw(tmp_path / "raw", [odd]), tmp_path / "splits")
    assert sorted(everything(found)) == sorted(odd)


def test_split_that_comes_out_empty_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", [["one", "", "one"]])
    sentence = "no document falls into train and test: of 2 documents, 0 in train, 2 in validation, 0 in test"
    with pytest.raises(UserError, match=rf"{sentence}; take more documents \(a file of plain text is one document"):
        split(raw, tmp_path / "splits")
    more = write_raw(tmp_path / "more", [["one", "one", "one", "one"]])
    with pytest.raises(UserError, match="of 4 documents, .*data.splits.*data.split_seed than 0"):
        split(more, tmp_path / "more-splits")


def test_damaged_part_is_named(tmp_path: Path, documents: list[str]) -> None:
    raw = write_raw(tmp_path / "raw", [documents[:50], documents[50:]])
    part = raw / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match="part-00001.parquet cannot be read because .*; run .*01_download_data.sh"):
        split(raw, tmp_path / "splits")


def test_nothing_but_empty_documents(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", [["", " "]])
    with pytest.raises(UserError, match="there is no document to split, only 2 empty documents"):
        split(raw, tmp_path / "splits")


def test_hashes_of_a_slice_are_those_of_its_documents(documents: list[str]) -> None:
    array = parts.as_texts([text.encode() for text in documents])
    whole = document_hashes(array, 3)
    assert (document_hashes(array.slice(700, 40), 3) == whole[700:740]).all()
    assert document_hashes(array.slice(5, 0), 3).shape == (0, 2)
    assert not (document_hashes(array, 4) == whole).any()
