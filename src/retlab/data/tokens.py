"""Documents into token shards: batched encoding in bounded memory, the same bytes whatever the number of workers."""

import functools
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from retlab.artifacts import sha256_file
from retlab.data.encoding import Encoder, cores
from retlab.data.parallel import is_remote, run_tasks, scratch_folder, written_aside
from retlab.data.reading import parts_of, text_bytes, texts_of
from retlab.data.settings import DataSection
from retlab.data.shards import shard_schema
from retlab.data.tokenizer import load_tokenizer, text_tokenizer, vocabulary_size
from retlab.errors import Interrupted, UserError
from retlab.progress import Progress, progress
from retlab.section import shown_path

ROW_GROUP_TOKENS = 2**20
ROW_GROUP_DOCUMENTS = 4096
MOST_THREADS = 4
"""The tokenizer has a thread per core itself; more of ours add memory and no speed."""
_TOKENIZER = "tokenizer.json"


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
        raise UserError(f"{shown_path(texts_folder)} holds no documents; get more text and split it again")
    core = text_tokenizer(tokenizer)
    name = f"tokenise {texts_folder.name}"
    with scratch_folder(folder) as scratch, progress(name, text_bytes(texts_folder), "byte") as bar:
        targets = [(part, folder / part.name, scratch) for part in parts]
        if is_remote():
            core.save(str(scratch / _TOKENIZER))
            calls = [(*target, vocab_size) for target in targets]
            found = run_tasks(_encode_remotely, calls, None, lambda counts: bar.advance(counts[2]))
        else:
            found = _encode_here(section, core, vocab_size, bar, targets)
    counts = np.array(found)
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


_Counts = tuple[int, int, int]
_Part = tuple[Path, Path, Path]


def _encode_here(
    section: DataSection, core: Tokenizer, vocab_size: int, bar: Progress, parts: list[_Part]
) -> list[_Counts]:
    threads = section.dask_workers or min(MOST_THREADS, cores())
    job = _Job(Encoder(core, vocab_size, cores()), shard_schema(vocab_size), bar)
    try:
        return run_tasks(job.run, parts, threads, lambda _: None)
    finally:
        # Where one part fails or a signal comes, the others need not be finished.
        job.stopped.set()


def _encode_remotely(source: Path, target: Path, scratch: Path, vocab_size: int) -> _Counts:
    """Encode one part on a worker, whose threads share a tokenizer."""
    from distributed import get_worker

    encoder = _encoder(scratch / _TOKENIZER, vocab_size, get_worker().state.nthreads)
    return _Job(encoder, shard_schema(vocab_size)).run(source, target, scratch)


@functools.lru_cache(maxsize=1)
def _encoder(file: Path, vocab_size: int, threads: int) -> Encoder:
    core = Tokenizer.from_file(str(file))
    # What a tokenizer's file does not hold, as `text_tokenizer` sets it.
    core.encode_special_tokens = True
    return Encoder(core, vocab_size, threads)


@dataclass(eq=False)
class _Job:
    """Encoding the parts of one split, several at a time."""

    encoder: Encoder
    schema: pa.Schema
    bar: Progress | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, source: Path, target: Path, scratch: Path) -> _Counts:
        """Encode one part. Returns its documents, tokens and bytes of text."""
        with written_aside(target, scratch) as aside, _ShardFile(aside, self.schema) as shard:
            for texts in texts_of(source):
                sizes = pc.binary_length(texts).to_numpy()
                for ids, size in zip(self.encoder.documents(texts, source), sizes, strict=True):
                    if self.stopped.is_set():
                        raise Interrupted("another part failed or a signal came")
                    shard.add(ids, int(size))
                    if self.bar is not None:
                        with self.lock:
                            self.bar.advance(int(size))
        return shard.documents, shard.tokens, shard.bytes


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
