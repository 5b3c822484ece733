"""Documents out of each format, against what was written; damage is named."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.documents import section, write_parquet

from retlab.data import formats
from retlab.data.formats import BadRecord, Record, read_documents
from retlab.data.sources import find_sources
from retlab.errors import UserError

TEXTS = [
    "plain",
    "",
    "two\nlines\r\nand a carriage return",
    'quotes " and , commas',
    "nul \x00 inside",
    "Ünïcödé 🐍 \u2028 separators",
    " <eos> ",
]


def records(path: Path, column: str = "text", **values: str) -> list[Record]:
    (file,) = find_sources(section(path, **values))
    return [record for _, record in read_documents(file, path, column)]


def bad(path: Path, column: str = "text") -> list[str]:
    return [f"{path.name}{one.place}: {one.reason}" for one in records(path, column) if isinstance(one, BadRecord)]


def good(path: Path, column: str = "text") -> list[str]:
    return [one.decode() for one in records(path, column) if isinstance(one, bytes)]


def compress_zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", compress_zstd)])
def test_json_lines(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=bool(number % 2)) for number, text in enumerate(TEXTS)]
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(compress(("\ufeff" + "\n\n".join(lines)).encode()))
    assert good(path) == TEXTS
    assert bad(path) == []


def test_gzip_of_several_members(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(json.dumps({"text": text}).encode() + b"\n") for text in TEXTS))
    assert good(path) == TEXTS


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", compress_zstd)])
def test_csv_with_quoted_fields_over_several_lines(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    plain = tmp_path / "plain"
    with open(plain, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(compress(plain.read_bytes()))
    assert good(path) == TEXTS
    assert bad(path) == []


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", compress_zstd)])
@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_is_one_document(tmp_path: Path, text: str, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(text.encode()))
    assert good(path) == [text]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.binary())),
    ],
)
def test_parquet_of_every_text_type(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([*TEXTS, None], pa.string()).cast(kind)
    pq.write_table(pa.table({"other": range(len(TEXTS) + 1), "text": column}), path, row_group_size=3)
    assert good(path) == [*TEXTS, ""]


def test_null_text_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    assert good(tmp_path / "a.jsonl") == [""]
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "a.parquet")
    assert good(tmp_path / "a.parquet") == ["", ""]


def test_position_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    (file,) = find_sources(section(path))
    positions = [position for position, _ in read_documents(file, path, "text")]
    assert positions == sorted(positions)
    assert positions[-1] == file.size


def test_bad_json_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut off',
        b'["text"]',
        b'{"body": 1, "url": 2}',
        b'{"text": 5}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "also good"}',
    ]
    path.write_bytes(b"\n".join(lines))
    assert good(path) == ["good", "also good"]
    found = bad(path)
    assert [one.split(": ")[0] for one in found] == [f"a.jsonl:{line}" for line in range(2, 9)]
    assert "broken JSON line" in found[0]
    assert "holds a list, where each line has to be one JSON object" in found[1]
    assert found[2].endswith("the line has no key 'text'")
    assert "the value of 'text' is a number, not text" in found[3]
    assert "invalid UTF-8" in found[4]
    assert "invalid UTF-8" in found[5]
    assert "broken JSON line" in found[6]


def test_bad_csv_records_are_named_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2,a,b\n3\n\n4,\xff\n5,"x"y\n6,good\n7,"never closed\n')
    assert good(path) == ["two\nlines", "good"]
    found = bad(path)
    assert [one.split(": ")[0] for one in found] == ["a.csv:4", "a.csv:5", "a.csv:7", "a.csv:8", "a.csv:10"]
    assert "the record has 3 fields, the header 2" in found[0]
    assert "invalid UTF-8" in found[2]
    assert "broken CSV record" in found[3]
    assert "unexpected end of data" in found[4]


def test_csv_field_beyond_the_standard_limit(tmp_path: Path) -> None:
    text = "long, " * 50_000
    path = tmp_path / "a.csv"
    path.write_text(f'id,text\n1,"{text}"\n')
    assert good(path) == [text]


def test_invalid_utf8_in_text_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"latin \xe9t\xe9")
    assert "invalid UTF-8" in bad(tmp_path / "a.txt")[0]
    binary = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": binary}), tmp_path / "a.parquet")
    assert good(tmp_path / "a.parquet") == ["good", "fine"]
    assert bad(tmp_path / "a.parquet")[0].startswith("a.parquet: row 2: invalid UTF-8")


def test_python_sources_in_declared_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nname = 'été'\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"name = '\xff'\n")
    (tmp_path / "c.py").write_bytes("\ufeffname = 'ü'\n".encode())
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    found = [
        record
        for file in find_sources(section("python-stdlib"))
        for _, record in read_documents(file, Path(file.path), "text")
    ]
    assert [found[0], found[2]] == ["# coding: latin-1\nname = 'été'\n".encode(), "name = 'ü'\n".encode()]
    assert isinstance(found[1], BadRecord)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_missing_column_names_those_that_there_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    write_parquet(tmp_path / "a.parquet", ["x"], "body")
    with pytest.raises(UserError, match=f"{name} has no column 'text'; set data.text_column to one of: id, body"):
        records(tmp_path / name)
    assert good(tmp_path / name, "body") == ["x"]


def test_column_that_holds_no_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(UserError, match="column 'id' holds int64, not text; set data.text_column to one of: text"):
        records(path, "id")


def test_column_beside_one_whose_part_has_the_same_path(tmp_path: Path) -> None:
    inner = pa.array([{"b": "inner"}])
    table = pa.Table.from_arrays([inner, pa.array(["outer"])], names=["a", "a.b"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert good(tmp_path / "a.parquet", "a.b") == ["outer"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_column_that_there_is_twice(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("text,text\n1,2\n")
    pq.write_table(pa.Table.from_arrays([pa.array(["1"])] * 2, names=["text"] * 2), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"{name} has 2 columns 'text'; give them different names"):
        records(tmp_path / name)


def test_csv_that_is_not_separated_by_commas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;x\n")
    with pytest.raises(UserError, match="a.csv: the fields of 'id;text' are not separated by commas"):
        records(tmp_path / "a.csv")


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"}]', '[\n{"text": "a"}\n]\n'])
def test_json_array_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="a.json is a JSON array and not JSON lines; write one object on each line"):
        records(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.txt.gz"])
def test_utf16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    content = "\ufeff".encode(encoding) if encoding == "utf-16-be" else b""
    content += 'text\n{"text": "x"}\n'.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert bad(tmp_path / name) == [f"{name}: the file is UTF-16 and not UTF-8"]
    assert good(tmp_path / name) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS * 100)
    cut(path)
    with pytest.raises(UserError, match="a.parquet is truncated or damaged, or no parquet file; replace or remove it"):
        records(path)


def test_parquet_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [f"{number} text" for number in range(5000)], use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xab" * (len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.parquet is .*; replace or remove it"):
        records(path)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", compress_zstd)])
def test_truncated_compressed_file_is_named(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"".join(json.dumps({"text": str(n) * 9}).encode() + b"\n" for n in range(5000))))
    cut(path)
    with pytest.raises(UserError, match=f"a.jsonl{suffix} is truncated or damaged, or no (gzip|zstd) file; replace"):
        records(path)


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.txt.gz", "c.txt.zst"):
        (tmp_path / name).write_text("this is plain text, long enough to be none of those formats")
        with pytest.raises(UserError, match=f"{name} is .*; replace or remove it"):
            records(tmp_path / name)


def test_document_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.txt").write_text("x" * 101)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 101}))
    (tmp_path / "a.csv").write_text("text\nshort\n" + "x" * 101 + "\n")
    with pytest.raises(UserError, match="a.txt is longer than .* cut it up"):
        records(tmp_path / "a.txt")
    with pytest.raises(UserError, match="a.jsonl:2: the line is longer than .* cut its document up"):
        records(tmp_path / "a.jsonl")
    assert "a.csv:3: broken CSV record (field larger than field limit" in bad(tmp_path / "a.csv")[0]
    monkeypatch.undo()
    assert len(good(tmp_path / "a.csv")) == 2
