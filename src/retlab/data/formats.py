"""Documents out of files: parquet, JSON lines, CSV and plain text, streamed, plain or compressed."""

import csv
import io
import json
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from retlab.data.sources import SourceFile
from retlab.errors import UserError

MAX_DOCUMENT_BYTES = 2**29
"""Longer documents (512 MB) are refused, because a document has to fit into memory several times."""

_BATCH_BYTES = 8 * 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadRecord:
    """A record that gives no document: where it stands, and why."""

    place: str
    reason: str


Record = bytes | BadRecord
"""A document in valid UTF-8, or what is wrong with it."""


class _Positioned(Protocol):
    def tell(self) -> int: ...


def read_documents(file: SourceFile, path: Path, column: str) -> Iterator[tuple[int, Record]]:
    """Every record of a file in its order, each with the bytes of the file that were read by then.

    Args:
        file: the file's format, compression and name in messages.
        path: where its content lies on this machine.
        column: column or key that holds the text; plain text has none. A null text is an empty document.

    Raises:
        UserError: the file is truncated or damaged, or has no such column.
    """
    try:
        if file.format == "parquet":
            yield from _parquet(file, path, column)
            return
        with pa.OSFile(str(path)) as raw:
            stream = io.BufferedReader(
                pa.CompressedInputStream(raw, file.compression) if file.compression else raw, 2**20
            )
            yield from _READERS[file.format](file.name, stream, raw, column)
    except OSError as error:
        # Arrow reports damage as an OSError without an error number; others are the machine's.
        if error.errno is not None:
            raise
        raise UserError(f"{file.name} is truncated or damaged ({_first_line(error)}); replace or remove it") from None


def _parquet(file: SourceFile, path: Path, column: str) -> Iterator[tuple[int, Record]]:
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as parquet:
            field = _text_field(file.name, parquet.schema_arrow, column)
            row, rows = 0, parquet.metadata.num_rows
            for group in range(parquet.num_row_groups):
                metadata = parquet.metadata.row_group(group)
                average = metadata.total_byte_size // max(metadata.num_rows, 1)
                size = min(max(_BATCH_BYTES // max(average, 1), 1), 4096)
                for batch in parquet.iter_batches(size, row_groups=[group], columns=[column], use_threads=False):
                    for text in _binary(batch.column(0), field.type).to_pylist():
                        row += 1
                        yield file.size * row // rows, _valid(text or b"", f"{file.name}: row {row}")
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file.name} is no complete parquet file ({_first_line(error)}); replace or remove it"
        ) from None


def _text_field(name: str, schema: pa.Schema, column: str) -> pa.Field:
    if column not in schema.names:
        raise UserError(f"{name} has no column {column!r}; set data.text_column to one of: {', '.join(schema.names)}")
    field = schema.field(column)
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_known(kind) for is_known in known):
        raise UserError(f"{name}: the column {column!r} holds {field.type}, not text; set another data.text_column")
    return field


def _binary(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        texts = texts.dictionary_decode()
    # Bytes, because Arrow does not check that a file's strings are UTF-8.
    return texts if pa.types.is_null(texts.type) else texts.cast(pa.large_binary())


def _json_lines(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    lines = iter(partial(stream.readline, MAX_DOCUMENT_BYTES + 1), b"")
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        if len(line) > MAX_DOCUMENT_BYTES:
            raise UserError(f"{place}: the line is longer than {MAX_DOCUMENT_BYTES >> 20} MB; cut its document up")
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.isspace():
            yield raw.tell(), _json_text(line, column, place)


def _json_text(line: bytes, column: str, place: str) -> Record:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord(place, f"invalid UTF-8 ({_first_line(error)})")
    except json.JSONDecodeError as error:
        if line.lstrip().startswith(b"[") and place.endswith(":1"):
            raise UserError(f"{place}: this is a JSON array, not JSON lines; write one object per line") from None
        return BadRecord(place, f"broken JSON line: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BadRecord(place, f"broken JSON line: {_first_line(error)}")
    if not isinstance(value, dict):
        return BadRecord(place, f"the line holds a {_json_type(value)}, where each line has to be one JSON object")
    if column not in value:
        keys = ", ".join(list(value)[:20]) or "none"
        return BadRecord(place, f"no key {column!r} (data.text_column); the keys of this line: {keys}")
    text = value[column]
    if text is None:
        return b""
    if not isinstance(text, str):
        return BadRecord(place, f"the value of {column!r} is a {_json_type(text)}, not text")
    return _encoded(text, place)


def _json_type(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")


def _csv(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    # Invalid bytes pass as surrogates, so that they are found in their own record and not in a block of many.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise UserError(f"{name}:1: the header is no CSV ({error}); mend it or set data.format") from None
    if header is None:
        return
    if column not in header:
        raise UserError(f"{name} has no column {column!r}; set data.text_column to one of: {', '.join(header)}")
    index = header.index(column)
    while True:
        place = f"{name}:{rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield raw.tell(), BadRecord(place, f"broken CSV record: {error}")
            continue
        if row is None:
            return
        if len(row) == len(header):
            yield raw.tell(), _encoded(row[index], place)
        elif row:
            yield raw.tell(), BadRecord(place, f"the record has {len(row)} fields, the header {len(header)}")


def _text(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    del column
    yield raw.tell(), _valid(_whole(name, stream).removeprefix(_BOM), name)


def _python(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    del column
    source = _whole(name, stream)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        record = _encoded(source.decode(encoding), name)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        record = BadRecord(name, f"not in the encoding that it declares ({_first_line(error)})")
    yield raw.tell(), record


_Reader = Callable[[str, io.BufferedReader, _Positioned, str], Iterator[tuple[int, Record]]]
_READERS: dict[str, _Reader] = {"jsonl": _json_lines, "csv": _csv, "text": _text, "python": _python}


def _whole(name: str, stream: io.BufferedReader) -> bytes:
    content = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise UserError(
            f"{name} is longer than {MAX_DOCUMENT_BYTES >> 20} MB, and a plain text file is one document; cut it up"
        )
    return content


def _valid(text: bytes, place: str) -> Record:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return BadRecord(place, f"invalid UTF-8 ({_first_line(error)})")
    return text


def _encoded(text: str, place: str) -> Record:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return BadRecord(place, "invalid UTF-8 (a byte or surrogate that is no character)")


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0][:200]
