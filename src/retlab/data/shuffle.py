"""A global shuffle of documents in bounded memory: scatter into buckets by hash, then order each bucket.

A document's place follows from a hash of its text, so it does not depend on files, their order or the workers.
Copies of one text are told apart by their count: the first stands where the text's hash says, the others at
random places of the same bucket, whichever copy is which.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retlab.data.documents import DocumentFile, part_name, text_offsets
from retlab.data.parallel import run_tasks, written_aside

BUCKET_BYTES = 64 * 2**20
"""Text that one bucket holds at most on average, and that a worker orders at a time."""

_RUN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Plan:
    """How many buckets, as powers of two, each split has."""

    bits: tuple[int, ...]

    @property
    def first_buckets(self) -> list[int]:
        """Number of the first bucket of each split, and the count of all."""
        return [0, *np.cumsum([2**bits for bits in self.bits]).tolist()]


def plan(text_bytes: int, shares: list[float]) -> Plan:
    """The buckets for so much text in all, of which each split gets its share."""
    return Plan(tuple(max(0, int(np.ceil(np.log2(text_bytes * share / BUCKET_BYTES)))) for share in shares))


class Scatter:
    """Writes the documents of one raw part as runs: files with a record batch for every bucket."""

    def __init__(self, plan: Plan, scratch: Path, number: int) -> None:
        self._plan, self._scratch, self._number = plan, scratch, number
        self.runs = self._bytes = 0
        self._texts: list[pa.LargeStringArray] = []
        self._buckets: list[npt.NDArray[np.int64]] = []
        self._keys: list[Keys] = []

    def write(self, texts: pa.LargeStringArray, splits: npt.NDArray[np.int64], keys: Keys) -> None:
        """Add documents: their split (index) and 64-bit key, int64 and uint64 [documents]."""
        bits = np.array(self._plan.bits, np.uint64)[splits]
        # In two steps, because a shift by all 64 bits is not defined.
        inside = (keys >> np.uint64(1)) >> (np.uint64(63) - bits)
        self._texts.append(texts)
        self._buckets.append(np.array(self._plan.first_buckets)[splits] + inside.astype(np.int64))
        self._keys.append(keys)
        offsets = text_offsets(texts)
        self._bytes += int(offsets[-1] - offsets[0])
        if self._bytes >= BUCKET_BYTES:
            self.close()

    def close(self) -> None:
        """Write what is held as one run."""
        if not self._texts:
            return
        texts, keys, buckets = pa.concat_arrays(self._texts), np.concatenate(self._keys), np.concatenate(self._buckets)
        self._texts, self._keys, self._buckets, self._bytes = [], [], [], 0
        order = np.argsort(buckets, kind="stable")
        texts = texts.take(pa.array(order))
        columns = [pa.array(keys[order]), pa.array(np.diff(text_offsets(texts))), texts]
        table = pa.record_batch(columns, schema=_RUN_SCHEMA)
        count = self._plan.first_buckets[-1]
        limits = np.searchsorted(buckets[order], np.arange(count + 1))
        path = self._scratch / f"run-{self._number:05d}-{self.runs:05d}.arrow"
        with (
            written_aside(path, self._scratch) as aside,
            pa.OSFile(str(aside), "wb") as file,
            pa.ipc.new_file(file, _RUN_SCHEMA, options=_COMPRESSED) as run,
        ):
            for start, end in itertools.pairwise(limits.tolist()):
                run.write_batch(table.slice(start, end - start))
        self.runs += 1


def gather(
    plan: Plan, scratch: Path, runs: int, folders: list[Path], workers: int | None, advance: Callable[[int], None]
) -> None:
    """Order every bucket of so many runs and write it as one parquet part of its split's folder; `advance` is told of
    text bytes."""
    firsts = plan.first_buckets
    calls = [
        (scratch, runs, firsts[index] + number, plan.bits[index], folder / part_name(number))
        for index, folder in enumerate(folders)
        for number in range(2 ** plan.bits[index])
    ]
    run_tasks(_order_bucket, calls, workers, advance)


def _order_bucket(scratch: Path, count: int, bucket: int, bits: int, target: Path) -> int:
    """Write one bucket in its final order. Memory stays bounded when copies of one text make it very large:
    the order is found from the keys alone, and the texts are then fetched for one stretch of it at a time."""
    runs = sorted(scratch.glob("run-*.arrow"))
    assert len(runs) == count, f"{scratch} holds {len(runs)} of {count} runs"
    heads = [_read(run, bucket, ["key", "bytes"]) for run in runs]
    keys = np.concatenate([head.column(0).to_numpy() for head in heads])
    if len(keys) == 0:
        return 0
    order = np.argsort(places(keys, bits), kind="stable")
    ends = np.cumsum(np.concatenate([head.column(1).to_numpy() for head in heads])[order])
    firsts = np.cumsum([0, *(head.num_rows for head in heads)])
    with written_aside(target, scratch) as aside, DocumentFile(aside) as file:
        start = 0
        while start < len(order):
            limit = (ends[start - 1] if start else 0) + BUCKET_BYTES * 2
            stop = max(int(np.searchsorted(ends, limit, side="right")), start + 1)
            file.write(_fetch(runs, firsts, bucket, order[start:stop]))
            start = stop
    return file.bytes


def _fetch(runs: list[Path], firsts: npt.NDArray[np.int64], bucket: int, rows: npt.NDArray[np.int64]) -> pa.Array:
    """The texts of a bucket's rows, in the order asked for; rows count through all runs."""
    wanted = np.sort(rows)
    found = []
    for run, first, after in zip(runs, firsts[:-1], firsts[1:], strict=True):
        here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, after)] - first
        if len(here):
            found.append(_read(run, bucket, ["text"]).column(0).take(pa.array(here)))
    return pa.concat_arrays(found).take(pa.array(np.searchsorted(wanted, rows)))


def _read(run: Path, bucket: int, columns: list[str]) -> pa.RecordBatch:
    options = pa.ipc.IpcReadOptions(included_fields=[_RUN_SCHEMA.get_field_index(name) for name in columns])
    options.use_threads = False
    with pa.OSFile(str(run)) as file, pa.ipc.open_file(file, options=options) as reader:
        return reader.get_batch(bucket)


def places(keys: Keys, bits: int) -> Keys:
    """Sort keys of a bucket's documents: the document's own key, and for a copy of an earlier one a key derived
    from it that has the same leading `bits`. uint64 [documents]; the result does not depend on the order but
    for which of several equal keys is which."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    index = np.arange(len(keys))
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    copy = (index - np.maximum.accumulate(np.where(is_first, index, 0))).astype(np.uint64)
    tail = np.uint64(2 ** (64 - bits) - 1)
    derived = (ordered & ~tail) | (_mix(ordered + copy * np.uint64(0x9E3779B97F4A7C15)) & tail)
    result = np.empty_like(keys)
    result[order] = np.where(is_first, ordered, derived)
    return result


def _mix(values: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the result depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
