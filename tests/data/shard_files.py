"""Small token shards for tests, written as the tokenise stage writes them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retlab.data.shards import shard_schema

Document = Sequence[int]


def write_shards(folder: Path, parts: Sequence[Sequence[Sequence[Document]]], vocab_size: int = 1000) -> None:
    """Write parts of row groups of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = shard_schema(vocab_size)
    for number, groups in enumerate(parts):
        with pq.ParquetWriter(folder / f"part-{number:05}.parquet", schema, compression="zstd") as writer:
            for documents in groups:
                columns = [documents, [len(ids) for ids in documents], [2 * len(ids) for ids in documents]]
                arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_table(pa.table(arrays, schema=schema))
