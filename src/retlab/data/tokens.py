"""Documents into token shards: batched encoding in bounded memory, the same bytes whatever the number of workers."""

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from retlab.artifacts import sha256_file
from retlab.data.parallel import run_tasks
from retlab.data.pieces import Piece, can_be_cut, encode_word, pieces, tried_pieces
from retlab.data.reading import parts_of, text_bytes, texts_of
from retlab.data.settings import DataSection
from retlab.data.shards import shard_schema
from retlab.data.tokenizer import load_tokenizer, text_tokenizer, vocabulary_size
from retlab.data.word_memo import WordMemo
from retlab.errors import Interrupted, UserError
from retlab.progress import Progress, progress

ROW_GROUP_TOKENS = 2**20
ROW_GROUP_DOCUMENTS = 4096
LONGEST_WHOLE = 2**23
"""Characters that are encoded at once at most, which takes about 150 bytes for each."""
LOT_CHARACTERS = 2**20
"""Text that the tokenizer gets at once, to spread over its own threads."""
MOST_THREADS = 4
"""The tokenizer has a thread per core itself; more of ours add memory and no speed."""
FEW_CORES = 4
"""Up to so many, looking words up on one core (4.6 MB/s measured) beats the tokenizer's threads (1.6 MB/s a core)."""


def tokenise(section: DataSection, texts_folder: Path, tokenizer_folder: Path, folder: Path) -> dict[str, Any]:
    """Encode one split, a shard for each of its parts.

    Args:
        section: dask_workers is read.
        texts_folder: the split's parts, a `text` column.
        tokenizer_folder: as `make_tokenizer` leaves it.
        folder: gets the shards, `shards.shard_schema`.

    Returns:
        Report: documents, tokens (no end-of-text tokens counted), bytes of text, the vocabulary's size, special ids and
        the tokenizer's fingerprint.

    Raises:
        UserError: no text, a damaged part, or no tokenizer.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    vocab_size = vocabulary_size(tokenizer)
    parts = parts_of(texts_folder)
    if not parts:
        raise UserError(f"{texts_folder} holds no documents; get more text and split it again")
    threads = section.dask_workers or min(MOST_THREADS, _cores())
    encoder = _Encoder(text_tokenizer(tokenizer), vocab_size)
    with progress(f"tokenise {texts_folder.name}", text_bytes(texts_folder), "byte") as bar:
        job = _Job(encoder, bar)
        try:
            calls = [(part, folder / part.name) for part in parts]
            counts = np.array(run_tasks(job.run, calls, threads, lambda _: None))
        finally:
            # Where one part fails or a signal comes, the others need not be finished.
            job.stopped.set()
    documents, tokens, size = (int(count) for count in counts.sum(axis=0))
    return {
        "documents": documents,
        "tokens": tokens,
        "bytes": size,
        "vocab_size": vocab_size,
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        "tokenizer_sha256": sha256_file(tokenizer_folder / "tokenizer.json"),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class _Encoder:
    """Text to ids, documents in pieces where the tokenizer allows it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.can_be_cut = tokenizer, can_be_cut(tokenizer)
        self.schema = shard_schema(vocab_size)
        self.dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        use_memo = self.can_be_cut and _cores() <= FEW_CORES
        self.memo = WordMemo(tokenizer, self.dtype) if use_memo else None

    def documents(self, texts: Iterable[str], source: Path) -> Iterator[np.ndarray]:
        """Ids of each document of a file, in order."""
        parts: list[np.ndarray] = []
        for lot in _lots(self._pieces(texts, source)):
            for ids, ends in zip(self._encode([piece for piece, _ in lot]), [ends for _, ends in lot], strict=True):
                parts.append(ids)
                if ends:
                    yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                    parts = []

    def _pieces(self, texts: Iterable[str], source: Path) -> Iterator[tuple[Piece, bool]]:
        """Each document's pieces, and whether a piece is its last."""
        for text in texts:
            last = Piece("", False)
            for number, piece in enumerate(pieces(text) if self.can_be_cut else tried_pieces(self.tokenizer, text)):
                if len(piece.text) > LONGEST_WHOLE and not piece.is_word:
                    raise UserError(
                        f"{source}: a document of {len(text):,} characters cannot be cut for this tokenizer without"
                        f" other tokens, and more than {LONGEST_WHOLE:,} at once take too much memory; split or drop it"
                    )
                if number:
                    yield last, False
                last = piece
            yield last, True

    def _encode(self, lot: list[Piece]) -> list[np.ndarray]:
        if self.memo is not None:
            return [self._encode_word(piece.text) if piece.is_word else self.memo.encode(piece.text) for piece in lot]
        texts = [piece.text for piece in lot if not piece.is_word]
        encodings = iter(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return [
            self._encode_word(piece.text) if piece.is_word else np.array(next(encodings).ids, dtype=self.dtype)
            for piece in lot
        ]

    def _encode_word(self, word: str) -> np.ndarray:
        return np.array(encode_word(self.tokenizer, word), dtype=self.dtype)


def _lots(all_pieces: Iterable[tuple[Piece, bool]]) -> Iterator[list[tuple[Piece, bool]]]:
    lot: list[tuple[Piece, bool]] = []
    characters = 0
    for piece, ends in all_pieces:
        lot.append((piece, ends))
        characters += len(piece.text)
        if characters >= LOT_CHARACTERS:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot


@dataclass(eq=False)
class _Job:
    """Encoding the parts of one split, several at a time."""

    encoder: _Encoder
    bar: Progress
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, source: Path, target: Path) -> tuple[int, int, int]:
        """Encode one part. Returns its documents, tokens and bytes of text."""
        with _ShardFile(target, self.encoder.schema) as shard:
            for texts in texts_of(source):
                sizes = pc.binary_length(texts).to_numpy()
                for ids, size in zip(self.encoder.documents(_each(texts), source), sizes, strict=True):
                    if self.stopped.is_set():
                        raise Interrupted("another part failed or a signal came")
                    shard.add(ids, int(size))
                    with self.lock:
                        self.bar.advance(int(size))
        return shard.documents, shard.tokens, shard.bytes


def _each(texts: pa.LargeStringArray) -> Iterator[str]:
    # A few at a time: as Python strings, a row group of short texts takes twice its memory.
    for start in range(0, len(texts), 256):
        yield from texts.slice(start, 256).to_pylist()


class _ShardFile:
    """Writes one shard. A row group holds at most 4,096 documents and a million tokens, or one longer document."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.documents = self.tokens = self.bytes = 0
        self._schema = schema
        self._waiting: list[np.ndarray] = []
        self._sizes: list[int] = []
        self._waiting_tokens = 0
        # Without statistics: nobody searches for token ids.
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False)

    def add(self, ids: np.ndarray, size: int) -> None:
        """Add a document: its ids and its UTF-8 bytes."""
        is_full = len(self._waiting) == ROW_GROUP_DOCUMENTS or self._waiting_tokens + len(ids) > ROW_GROUP_TOKENS
        if is_full and self._waiting:
            self._flush()
        self._waiting.append(ids)
        self._sizes.append(size)
        self._waiting_tokens += len(ids)
        self.documents += 1
        self.tokens += len(ids)
        self.bytes += size

    def _flush(self) -> None:
        lengths = np.array([len(ids) for ids in self._waiting], dtype=np.uint32)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(np.concatenate(self._waiting)), type=self._schema.field("input_ids").type
        )
        sizes = pa.array(np.array(self._sizes, dtype=np.uint64))
        self._writer.write_table(pa.table([lists, pa.array(lengths), sizes], schema=self._schema))
        self._waiting, self._sizes, self._waiting_tokens = [], [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._waiting:
            self._flush()
        self._writer.close()
