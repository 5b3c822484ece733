"""Token shards on disk: parquet parts with one document per row, counted once and read a row group at a time."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retlab.artifacts import read_manifest, sha256_file
from retlab.data.reading import parts_of, readable
from retlab.errors import UserError
from retlab.section import script, shown_path

_AGAIN = f"run {script('tokenize_data')} with this configuration"


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that token ids have on disk."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def shard_schema(vocab_size: int) -> pa.Schema:
    """Columns of a token shard: `input_ids` (without end-of-text token), `tokens` and UTF-8 `bytes` of a document."""
    dtype = pa.from_numpy_dtype(token_dtype(vocab_size))
    return pa.schema(
        [
            pa.field("input_ids", pa.list_(pa.field("element", dtype, nullable=False)), nullable=False),
            pa.field("tokens", pa.uint32(), nullable=False),
            pa.field("bytes", pa.uint64(), nullable=False),
        ]
    )


class GroupTokens(NamedTuple):
    """The documents of one row group as one stream, each behind an end-of-text token that opens it."""

    stream: np.ndarray
    "uint16 or uint32 [tokens + documents]."
    starts: np.ndarray
    "int64 [documents], ascending: where in the stream each document's opening end-of-text token stands."


@dataclass(frozen=True, eq=False)
class Shards:
    """All row groups of one split, in file order. A few numbers per row group, whatever the size of the data."""

    files: tuple[Path, ...]
    file: np.ndarray
    "int64 [groups]: index into `files`."
    group: np.ndarray
    "int64 [groups]: row group inside the file."
    documents: np.ndarray
    "int64 [groups]."
    tokens: np.ndarray
    "int64 [groups], end-of-text tokens not counted."
    pieces: np.ndarray
    "int64 [groups]: padded windows, where every document is cut into pieces of its own."

    @property
    def targets(self) -> np.ndarray:
        """Predicted tokens of each row group, int64 [groups]: its documents' tokens and one end of text for each."""
        return self.tokens + self.documents

    def read(self, index: int, eos_id: int) -> GroupTokens:
        """Decode one row group.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.files[self.file[index]]
        with readable(path, "tokenize_data"):
            parquet = pq.ParquetFile(path)
            column = parquet.read_row_group(int(self.group[index]), columns=["input_ids"], use_threads=False)[0]
        lists = column.combine_chunks()
        values = lists.flatten().to_numpy(zero_copy_only=False)
        lengths = np.diff(lists.offsets.to_numpy())
        if len(values) != self.tokens[index] or len(lengths) != self.documents[index]:
            raise UserError(f"{shown_path(path)} changed while it was being read; {_AGAIN} and --force")
        starts = np.arange(len(lengths)) + np.cumsum(lengths) - lengths
        opens = np.zeros(len(values) + len(lengths), dtype=bool)
        opens[starts] = True
        stream = np.empty(len(opens), dtype=values.dtype)
        stream[opens] = eos_id
        stream[~opens] = values
        return GroupTokens(stream, starts)


def open_shards(folder: Path, sequence_length: int) -> Shards:
    """Count the token shards of one split from their `tokens` columns; no token is decoded.

    Raises:
        UserError: no shards, no documents, or a part that is truncated or no token shard; the part is named.
    """
    files = tuple(parts_of(folder))
    if not files:
        raise UserError(f"{shown_path(folder)} holds no token shards (part-*.parquet); {_AGAIN} first")
    counts = [_count(path, _state(path), sequence_length) for path in files]
    table = np.concatenate(counts)
    if table[:, 1].sum() == 0:
        raise UserError(f"the token shards in {shown_path(folder)} hold no documents; give that split more text")
    file = np.repeat(np.arange(len(files)), [len(count) for count in counts])
    return Shards(files, file, *(np.ascontiguousarray(column) for column in table.T))


def check_shards(folder: Path, tokenizer_folder: Path) -> None:
    """Refuse token shards that another tokenizer made.

    Raises:
        UserError: the shards are missing or unfinished, or their tokenizer is not the one in `tokenizer_folder`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{shown_path(folder)} holds no finished token shards; {_AGAIN} first")
    file = tokenizer_folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{shown_path(tokenizer_folder)} holds no tokenizer (tokenizer.json); run the stage that makes it first"
        )
    if manifest["report"]["tokenizer_sha256"] != sha256_file(file):
        raise UserError(
            f"the token shards in {shown_path(folder)} were made with another tokenizer than the one in"
            f" {shown_path(tokenizer_folder)}; {_AGAIN},"
            " or let data.tokens_folder or tokenizer.folder name what belongs together"
        )


def _state(path: Path) -> tuple[int, ...]:
    """What differs between two files that stood there one after the other."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _count(path: Path, _state: tuple[int, ...], sequence_length: int) -> np.ndarray:
    """Row group, documents, tokens and pieces of each row group of a part, int64 [groups, 4].

    Kept for the next training or measurement of this process on the same file.
    """
    with readable(path, "tokenize_data"):
        parquet = pq.ParquetFile(path)
        if not {"input_ids", "tokens", "bytes"} <= set(parquet.schema_arrow.names):
            raise UserError(
                f"{shown_path(path)} is no token shard: it has the columns {', '.join(parquet.schema_arrow.names)};"
                f" {_AGAIN} and --force"
            )
        tokens = parquet.read(columns=["tokens"], use_threads=False)["tokens"].to_numpy().astype(np.int64)
        rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    bounds = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    # A document takes part in the loss with its tokens and its end of text.
    pieces = -(-(tokens + 1) // sequence_length)
    token_sums, piece_sums = (np.concatenate([[0], np.cumsum(part)])[bounds] for part in (tokens, pieces))
    return np.stack([np.arange(len(rows)), np.diff(bounds), np.diff(token_sums), np.diff(piece_sums)], axis=1)
