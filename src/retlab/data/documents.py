"""Parquet files of documents: one column of text, zstd, row groups of bounded size, the same bytes every time."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA = pa.schema([pa.field("text", pa.large_string(), nullable=False)])
ROW_GROUP_BYTES = 16 * 2**20
ROW_GROUP_DOCUMENTS = 10_000


def part_name(number: int) -> str:
    """File name of one part of a data set."""
    return f"part-{number:05d}.parquet"


def text_offsets(texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    """Where each document starts in the array's UTF-8 buffer, and where the last ends: int64 [documents + 1]."""
    if len(texts) == 0:
        return np.zeros(1, np.int64)
    return np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]


def as_texts(documents: list[bytes]) -> pa.LargeStringArray:
    """Documents in valid UTF-8 as one Arrow array."""
    return pa.array(documents, pa.large_binary()).view(pa.large_string())


def is_empty(texts: pa.LargeStringArray) -> pa.BooleanArray:
    """Which documents are empty or hold nothing but white space."""
    return pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))


class DocumentFile:
    """Writes one parquet file of documents. A row group holds at most 16 MB of text, or one longer document.

    The bytes of the file depend on the documents and their order alone, not on the batches they come in.
    """

    def __init__(self, path: Path) -> None:
        self.documents = 0
        self.bytes = 0
        self._waiting: list[pa.LargeStringArray] = []
        self._waiting_documents = self._waiting_bytes = 0
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False)

    def write(self, texts: pa.LargeStringArray) -> None:
        """Add documents without nulls. The last row group is held back until it is known to be full."""
        ends = text_offsets(texts)
        start, stop = 0, len(texts)
        while start < stop:
            room = ROW_GROUP_BYTES - self._waiting_bytes
            fitting = int(np.searchsorted(ends[1:], ends[start] + room, side="right")) - start
            count = min(fitting, ROW_GROUP_DOCUMENTS - self._waiting_documents)
            if count <= 0 and self._waiting:
                self._flush()
                continue
            count = max(count, 1)
            self._waiting.append(texts.slice(start, count))
            self._waiting_documents += count
            self._waiting_bytes += int(ends[start + count] - ends[start])
            start += count
        self.documents += stop
        self.bytes += int(ends[-1] - ends[0])

    def _flush(self) -> None:
        if self._waiting:
            # One contiguous array: page boundaries would follow the chunks of a chunked one.
            texts = pa.concat_arrays(self._waiting)
            self._writer.write_table(pa.table([texts], schema=SCHEMA))
            self._waiting = []
            self._waiting_documents = self._waiting_bytes = 0

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
