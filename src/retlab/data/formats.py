"""Documents out of files: parquet, JSON lines, CSV and plain text, streamed, plain or compressed."""

import codecs
import csv
import io
import json
import re
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

# Binary too: writers that do not mark their strings as such are common, and every text is checked.
_TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.null()),
)
_BATCH_BYTES = 8 * 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadRecord:
    """A record that gives no document.

    Attributes:
        place: where in its file it stands, to follow the file's name: ":3", ": row 3", or nothing.
        reason: why it gives none.
        advice: what can be done about it.
    """

    place: str
    reason: str
    advice: str = "mend it"


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
            if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                advice = "convert it with iconv -f UTF-16 -t UTF-8"
                yield raw.tell(), BadRecord("", "the file is UTF-16 and not UTF-8", advice)
                return
            yield from _READERS[file.format](file.name, stream, raw, column)
    except OSError as error:
        # Arrow reports damage as an OSError without an error number; others are the machine's.
        if error.errno is not None:
            raise
        kind = f", or no {file.compression} file" if file.compression else ""
        raise UserError(f"{file.name} is truncated or damaged{kind}; replace or remove it") from None


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
                    # By name: a column inside another one may have the same path.
                    texts = batch.column(batch.schema.get_field_index(column))
                    for text in _binary(texts, field.type).to_pylist():
                        row += 1
                        yield file.size * row // rows, _valid(text or b"", f": row {row}")
    except pa.ArrowInvalid:
        raise UserError(f"{file.name} is truncated or damaged, or no parquet file; replace or remove it") from None


def _text_field(name: str, schema: pa.Schema, column: str) -> pa.Field:
    _check_column(name, schema.names, column)
    field = schema.field(column)
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if kind not in _TEXT_TYPES:
        texts = [other.name for other in schema if other.type in _TEXT_TYPES and other.name != column]
        advice = f"set data.text_column to one of: {', '.join(texts)}" if texts else "no other column holds text either"
        raise UserError(f"{name}: the column {column!r} holds {field.type}, not text; {advice}")
    return field


def _check_column(name: str, columns: list[str], column: str) -> None:
    if columns.count(column) > 1:
        raise UserError(f"{name} has {columns.count(column)} columns {column!r}; give them different names")
    if column not in columns:
        raise UserError(f"{name} has no column {column!r}; {_choose(columns)}")


def _choose(columns: list[str]) -> str:
    """Advice on which column to take; of very many the first."""
    if not columns:
        return "there are none in it"
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    return f"set data.text_column to one of: {', '.join(columns[:20])}{more}"


def _binary(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        texts = texts.dictionary_decode()
    # Bytes, because Arrow does not check that a file's strings are UTF-8.
    return texts if pa.types.is_null(texts.type) else texts.cast(pa.large_binary())


def _json_lines(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    lines = iter(partial(stream.readline, MAX_DOCUMENT_BYTES + 1), b"")
    for number, line in enumerate(lines, 1):
        place = f":{number}"
        if len(line) > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"{name}{place}: the line is longer than {MAX_DOCUMENT_BYTES >> 20} MB; cut its document up"
            )
        if number == 1:
            line = line.removeprefix(_BOM)
            if re.match(rb"\s*\[\s*(\{|$)", line):
                raise UserError(f"{name} is a JSON array and not JSON lines; write one object on each line")
        if not line.isspace():
            yield raw.tell(), _json_text(line, column, place)


def _json_text(line: bytes, column: str, place: str) -> Record:
    try:
        value = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        return _not_utf8(place, error)
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        advice = "write one whole JSON object on each line"
        return BadRecord(place, f"broken JSON line ({what} at column {error.colno})", advice)
    except RecursionError:
        return BadRecord(place, "broken JSON line (nested too deeply)")
    except ValueError:
        return BadRecord(place, "broken JSON line (a number with too many digits)")
    if not isinstance(value, dict):
        return BadRecord(place, f"the line holds a {_json_type(value)}, where each line has to be one JSON object")
    if column not in value:
        return BadRecord(place, f"the line has no key {column!r}", _choose(list(value)))
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
    header = [field.encode(errors="replace").decode() for field in header]
    if len(header) == 1 and column in re.split("[;\t|]", header[0])[1:]:
        raise UserError(f"{name}: the fields of {header[0]!r} are not separated by commas; write it with commas")
    _check_column(name, header, column)
    index = header.index(column)
    while True:
        place = f":{rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield raw.tell(), BadRecord(place, f"broken CSV record ({error})")
            continue
        if row is None:
            return
        if len(row) == len(header):
            yield raw.tell(), _encoded(row[index], place)
        elif row:
            yield raw.tell(), BadRecord(place, f"the record has {len(row)} fields, the header {len(header)}")


def _text(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    del column
    yield raw.tell(), _valid(_whole(name, stream).removeprefix(_BOM), "")


def _python(name: str, stream: io.BufferedReader, raw: _Positioned, column: str) -> Iterator[tuple[int, Record]]:
    del column
    source = _whole(name, stream)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        record = _encoded(source.decode(encoding), "")
    except (SyntaxError, UnicodeDecodeError, LookupError):
        record = BadRecord("", "not in the encoding that it declares")
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
        return _not_utf8(place, error)
    return text


def _not_utf8(place: str, error: UnicodeDecodeError) -> BadRecord:
    return BadRecord(place, f"invalid UTF-8 (byte {error.start + 1:,} is {error.object[error.start]:#04x})")


def _encoded(text: str, place: str) -> Record:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return BadRecord(place, "invalid UTF-8 (a byte or surrogate that is no character)")
