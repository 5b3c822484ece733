"""The parquet files of documents: their bytes follow from the documents alone, and row groups are bounded."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.data.documents import contents

from retlab.data import documents
from retlab.data.documents import DocumentFile, as_texts, is_empty


def groups_by_hand(texts: list[bytes]) -> list[list[bytes]]:
    """The rule, one document at a time."""
    found: list[list[bytes]] = [[]]
    for text in texts:
        full = len(found[-1]) == documents.ROW_GROUP_DOCUMENTS
        if found[-1] and (full or sum(map(len, found[-1])) + len(text) > documents.ROW_GROUP_BYTES):
            found.append([])
        found[-1].append(text)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_row_groups_and_bytes_do_not_depend_on_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(documents, "ROW_GROUP_DOCUMENTS", 12)
    chance = random.Random(seed)
    texts = [b"x" * chance.choice([0, 1, 10, 100, 300, 1000, 2500]) for _ in range(300)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with DocumentFile(tmp_path / name / "part") as file:
            start = 0
            while start < len(texts):
                stop = start + (1 if name == "a" else chance.randrange(1, 60))
                file.write(as_texts(texts[start:stop]))
                start = stop
        assert (file.documents, file.bytes) == (300, sum(map(len, texts)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pq.ParquetFile(tmp_path / "a" / "part") as parquet:
        groups = [parquet.read_row_group(group)["text"].to_pylist() for group in range(parquet.num_row_groups)]
    assert groups == [[text.decode() for text in group] for group in groups_by_hand(texts)]


def test_empty_is_what_python_strips_away() -> None:
    texts = ["", " ", "\n\t\r", "\u2003\u00a0", "a", " a ", "\x00", "\u200b"]
    found = is_empty(as_texts([text.encode() for text in texts])).to_pylist()
    assert found == [not text.strip() for text in texts]
