"""Stage 2: documents into train, validation and test, decided by each document's text alone."""

import contextlib
import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retlab.data import shuffle
from retlab.data.documents import DocumentFile, is_empty, part_name, text_offsets
from retlab.data.parallel import run_tasks, scratch_folder, written_aside
from retlab.data.reading import parts_of, readable, texts_of
from retlab.data.settings import SPLITS, DataSection, SplitShares
from retlab.errors import UserError
from retlab.progress import counted, progress


@dataclass
class Counts:
    """Documents and bytes per split, the empty documents that were left out, and the runs to gather."""

    documents: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    bytes: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    empty: int = 0
    read: int = 0
    runs: int = 0

    def add(self, other: "Counts") -> None:
        """Add another part's counts to these."""
        self.documents = [mine + its for mine, its in zip(self.documents, other.documents, strict=True)]
        self.bytes = [mine + its for mine, its in zip(self.bytes, other.bytes, strict=True)]
        self.empty += other.empty
        self.read += other.read
        self.runs += other.runs


def split_documents(section: DataSection, raw: Path, folder: Path) -> dict[str, Any]:
    """Write the documents of `raw`/part-*.parquet to train/, validation/ and test/ inside a folder.

    A document's split depends on its text and `data.split_seed`; so equal texts are never in two splits, and more
    files move no document. Without `data.shuffle` the documents keep their order.

    Returns:
        Documents, bytes and shares per split, and the count of empty documents, for the manifest.

    Raises:
        UserError: a split comes out empty.
    """
    parts = parts_of(raw)
    sizes = [_text_bytes(part) for part in parts]
    for split in SPLITS:
        (folder / split).mkdir()
    plan = shuffle.plan(sum(sizes), _shares(section.splits)) if section.shuffle else None
    counts = Counts()
    with scratch_folder(folder) as scratch:
        with progress("split", sum(sizes), "byte") as bar:
            calls = [(part, number, section, plan, folder, scratch) for number, part in enumerate(parts)]
            for part_counts in run_tasks(_split_part, calls, section.dask_workers, lambda one: bar.advance(one.read)):
                counts.add(part_counts)
        _check(section, counts)
        if plan:
            with progress("shuffle", sum(counts.bytes), "byte") as bar:
                folders = [folder / split for split in SPLITS]
                shuffle.gather(plan, scratch, counts.runs, folders, section.dask_workers, bar.advance)
    return _report(counts)


def document_hashes(texts: pa.LargeStringArray, seed: int) -> npt.NDArray[np.uint64]:
    """Two independent 64-bit numbers for each document, from its text and the seed: uint64 [documents, 2]."""
    if len(texts) == 0:
        return np.empty((0, 2), np.uint64)
    content = memoryview(texts.buffers()[2])
    key = str(seed).encode()
    digests = (
        hashlib.blake2b(content[start:end], digest_size=16, key=key).digest()
        for start, end in itertools.pairwise(text_offsets(texts).tolist())
    )
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def membership(hashes: npt.NDArray[np.uint64], shares: SplitShares) -> npt.NDArray[np.int64]:
    """Index into `SPLITS` for each document, from its first hash: int64 [documents]."""
    limits = np.cumsum(_shares(shares))[:-1]
    bounds = np.array([min(int(limit * 2**64), 2**64 - 1) for limit in limits], np.uint64)
    return np.searchsorted(bounds, hashes, side="right")


def _shares(shares: SplitShares) -> list[float]:
    return [getattr(shares, split) for split in SPLITS]


def _text_bytes(part: Path) -> int:
    with readable(part, "download_data"):
        metadata = pq.read_metadata(part)
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _split_part(
    part: Path, number: int, section: DataSection, plan: shuffle.Plan | None, folder: Path, scratch: Path
) -> Counts:
    with contextlib.ExitStack() as files:
        if plan:
            writer: _InOrder | shuffle.Scatter = shuffle.Scatter(plan, scratch, number)
        else:
            writer = _InOrder(folder, scratch, number, files)
        counts = _divide(part, section, writer)
    counts.read = _text_bytes(part)
    counts.runs = writer.runs
    return counts


def _divide(part: Path, section: DataSection, writer: "_InOrder | shuffle.Scatter") -> Counts:
    counts = Counts()
    for texts in texts_of(part, "download_data"):
        empty = is_empty(texts)
        counts.empty += empty.true_count
        texts = texts.filter(pc.invert(empty))
        hashes = document_hashes(texts, section.split_seed)
        splits = membership(hashes[:, 0], section.splits)
        lengths = np.diff(text_offsets(texts))
        for index in range(len(SPLITS)):
            counts.documents[index] += int((splits == index).sum())
            counts.bytes[index] += int(lengths[splits == index].sum())
        writer.write(texts, splits, hashes[:, 1])
    writer.close()
    return counts


class _InOrder:
    """Writes one raw part's documents to a part of the same number in each split; `files` closes them."""

    runs = 0

    def __init__(self, folder: Path, scratch: Path, number: int, files: contextlib.ExitStack) -> None:
        self._paths = [folder / split / part_name(number) for split in SPLITS]
        self._scratch, self._files = scratch, files
        self._open: dict[int, DocumentFile] = {}

    def write(self, texts: pa.LargeStringArray, splits: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> None:
        del keys
        for index, path in enumerate(self._paths):
            chosen = texts.filter(pa.array(splits == index))
            if len(chosen):
                if index not in self._open:
                    aside = self._files.enter_context(written_aside(path, self._scratch))
                    self._open[index] = self._files.enter_context(DocumentFile(aside))
                self._open[index].write(chosen)

    def close(self) -> None:
        """All is written when `files` closes."""


def _check(section: DataSection, counts: Counts) -> None:
    total = sum(counts.documents)
    if total == 0:
        found = f"only {counted(counts.empty, 'empty document')}" if counts.empty else "none"
        raise UserError(f"there is no document to split, {found}; name another data.source")
    missing = [split for split, documents in zip(SPLITS, counts.documents, strict=True) if documents == 0]
    if missing:
        found = ", ".join(f"{count:,} in {split}" for split, count in zip(SPLITS, counts.documents, strict=True))
        few = total < len(SPLITS)
        other = "" if few else f", a larger share in data.splits, or another data.split_seed than {section.split_seed}"
        raise UserError(
            f"no document falls into {' and '.join(missing)}: of {counted(total, 'document')}, {found}; take more"
            f" documents{other} (a file of plain text is one document, a line of JSON or a row of a table another)"
        )


def _report(counts: Counts) -> dict[str, Any]:
    documents, size = sum(counts.documents), sum(counts.bytes)
    return {
        "documents": documents,
        "bytes": size,
        "empty_documents": counts.empty,
        "splits": {
            split: {
                "documents": counts.documents[index],
                "bytes": counts.bytes[index],
                "share_of_documents": counts.documents[index] / documents,
                "share_of_bytes": counts.bytes[index] / size,
            }
            for index, split in enumerate(SPLITS)
        },
    }
