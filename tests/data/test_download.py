"""Stage 1: limits, counts, sentences; an interrupted download continues and ends in identical files."""

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.documents import contents, section, texts, write_parquet

from retlab.data import download as module
from retlab.data.documents import DocumentFile
from retlab.data.download import download
from retlab.data.settings import DataSection
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT


def lines(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with every format, and its documents in order."""
    source = tmp_path / "source"
    source.mkdir()
    write_parquet(source / "a.parquet", ["parquet 0", None, "parquet nul \x00", "parquet 3"])
    (source / "b.csv").write_text('id,text\n1,"csv\n0"\n2,csv 1\n')
    lines(source / "c" / "c.jsonl", ["json 0", "json 1", " "])
    (source / "d.txt").write_text("text\r\n0")
    expected = [
        "parquet 0",
        "",
        "parquet nul \x00",
        "parquet 3",
        "csv\n0",
        "csv 1",
        "json 0",
        "json 1",
        " ",
        "text\r\n0",
    ]
    return source, expected


def test_folder_of_all_formats(mixed: tuple[Path, list[str]], raw: Path) -> None:
    source, expected = mixed
    report = download(section(source), raw)
    assert texts(raw) == expected
    assert [file.name for file in raw.iterdir() if not file.name.startswith(".")] == ["part-00000.parquet"]
    assert report == {
        "source_files": 4,
        "documents": 10,
        "bytes": sum(len(text.encode()) for text in expected),
        "empty_documents": 2,
        "skipped_records": 0,
        "first_skipped_record": None,
        "hub_commits": [],
    }


@pytest.mark.parametrize("limit", [1, 4, 5, 9, 10, 11])
def test_max_documents(mixed: tuple[Path, list[str]], raw: Path, limit: int) -> None:
    source, expected = mixed
    report = download(section(source, max_documents=limit), raw)
    assert texts(raw) == expected[:limit]
    assert report["documents"] == min(limit, 10)


@pytest.mark.parametrize("limit", [9, 10, 27, 40, 1000])
def test_max_bytes_stops_before_it_is_exceeded(mixed: tuple[Path, list[str]], raw: Path, limit: int) -> None:
    source, expected = mixed
    report = download(section(source, max_bytes=limit), raw)
    taken: list[str] = []
    for text in expected:
        if sum(len(one.encode()) for one in [*taken, text]) > limit:
            break
        taken.append(text)
    assert texts(raw) == taken
    assert report["bytes"] <= limit


def test_limit_reached_at_the_end_of_a_file_leaves_the_next_alone(tmp_path: Path, raw: Path) -> None:
    lines(tmp_path / "s" / "a.jsonl", ["one", "two"])
    (tmp_path / "s" / "b.jsonl").write_text("broken")
    assert download(section(tmp_path / "s", max_documents=2), raw)["documents"] == 2


def test_first_document_above_max_bytes(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(UserError, match="data.max_bytes: found 3, but the first document has 4 bytes"):
        download(section(lines(tmp_path / "a.jsonl", ["four"]), max_bytes=3), raw)


def test_broken_line_stops_with_file_and_line_or_is_skipped_and_counted(tmp_path: Path, raw: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["one", "two"])
    path.write_text(path.read_text() + '{"text": "cut\n{"text": "three"}\n{"other": 1}\n')
    with pytest.raises(UserError, match=r"a.jsonl:3: broken JSON line \(.*\); .*set data.on_bad_line: skip"):
        download(section(path), raw)
    report = download(section(path, on_bad_line="skip"), raw)
    assert texts(raw) == ["one", "two", "three"]
    assert report["skipped_records"] == 2
    assert "a.jsonl:3: broken JSON line" in report["first_skipped_record"]


def test_json_lines_without_the_column_name_those_that_there_are(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "body": "x"}\n')
    with pytest.raises(
        UserError, match="a.jsonl:1: the line has no key 'text'; set data.text_column to one of: id, body"
    ):
        download(section(tmp_path / "a.jsonl"), raw)


def test_invalid_utf8_stops_or_is_skipped(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt").write_text("fine")
    (tmp_path / "s" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="b.txt: invalid UTF-8"):
        download(section(tmp_path / "s"), raw)
    assert download(section(tmp_path / "s", on_bad_line="skip"), raw)["skipped_records"] == 1
    assert texts(raw) == ["fine"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no documents"),
        ("\n\n", "holds no documents"),
        (
            '{"text": ""}\n{"text": " \\u2003\\n"}\n{"text": null}\n',
            "holds 3 empty documents and no other; name another source",
        ),
        (
            '{"body": "x"}\n',
            r"holds no documents \(1 record skipped, first: .*a.jsonl:1: the line has no key 'text'\);"
            " set data.text_column to one of: body, or name another source",
        ),
    ],
)
def test_empty_data_set(tmp_path: Path, raw: Path, content: str, sentence: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=sentence):
        download(section(tmp_path / "a.jsonl", on_bad_line="skip"), raw)
    assert list(raw.iterdir()) == []


def test_truncated_parquet_in_the_middle_of_a_folder(tmp_path: Path, raw: Path) -> None:
    for name in "abc":
        write_parquet(tmp_path / "s" / f"{name}.parquet", [name * 50] * 100)
    broken = tmp_path / "s" / "b.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(UserError, match="b.parquet is truncated or damaged, or no parquet file"):
        download(section(tmp_path / "s"), raw)
    assert list(raw.iterdir()) == []


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read everything, so the test goes on as nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["locked.txt", "locked"])
def test_no_permission_to_read(outside: Path, name: str, request: pytest.FixtureRequest) -> None:
    (outside / "locked.txt").write_text("secret")
    (outside / "locked").mkdir()
    for entry in ("locked.txt", "locked"):
        os.chmod(outside / entry, 0)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(UserError, match=f"(no permission to read .*{name}|{name} cannot be read: Permission denied)"):
        download(section(outside / name), outside)


def test_file_that_changes_while_it_is_read(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "a.jsonl", ["one"])
    read = module.read_documents

    def grow(*arguments: object) -> object:
        yield from read(*arguments)
        lines(path, ["one", "two"])

    monkeypatch.setattr(module, "read_documents", grow)
    with pytest.raises(UserError, match="a.jsonl has changed while it was read; run the same command again"):
        download(section(path), raw)


def test_file_that_goes_before_it_is_read(mixed: tuple[Path, list[str]], raw: Path, monkeypatch) -> None:
    read = module.read_documents

    def remove(*arguments: object) -> object:
        (mixed[0] / "d.txt").unlink(missing_ok=True)
        yield from read(*arguments)

    monkeypatch.setattr(module, "read_documents", remove)
    with pytest.raises(UserError, match="d.txt has gone while it was to be read; run the same command again"):
        download(section(mixed[0]), raw)


@pytest.mark.parametrize("limits", [{}, {"max_documents": 3}, {"max_bytes": 20}, {"max_documents": 10}])
def test_progress_ends_at_its_total(
    mixed: tuple[Path, list[str]], raw: Path, capsys: pytest.CaptureFixture[str], limits: dict[str, int]
) -> None:
    download(section(mixed[0], **limits), raw)
    last = capsys.readouterr().out.splitlines()[-1]
    done, total = re.fullmatch(r"download: ([\d,]+) of ([\d,]+) bytes \(100 %\), .*", last).groups()
    assert done == total


# Ten files of 40 documents; a part ends after 1,300 bytes, so there are parts that end inside files and files that
# end inside parts.
PART_BYTES = 1300


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for number in range(10):
        lines(
            tmp_path / "many" / f"{number}.jsonl", [f"{number} {line} " + "x" * (line * 7 % 50) for line in range(40)]
        )
    return tmp_path / "many"


@pytest.fixture
def undisturbed(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(module, "PART_BYTES", PART_BYTES)
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    download(section(many), folder)
    return contents(folder)


def test_parts_hold_everything_once(undisturbed: dict[str, str], tmp_path: Path) -> None:
    assert len(undisturbed) > 4
    assert len(texts(tmp_path / "undisturbed")) == 400
    expected = [f"{number} {line}" for number in range(10) for line in range(40)]
    assert [" ".join(text.split(" ")[:2]) for text in texts(tmp_path / "undisturbed")] == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from retlab.data import download as module
from retlab.data.documents import DocumentFile
from retlab.data.settings import DataSection

module.PART_BYTES = {part_bytes}
place, count = sys.argv[3], int(sys.argv[4])

def killing(function, after):
    def wrapped(*arguments, **options):
        global count
        count -= 1
        if count == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

if place == "inside a part":
    module.read_documents = lambda *a: (killing(lambda one: one, False)(record) for record in READ(*a))
    READ = __import__("retlab.data.formats", fromlist=["x"]).read_documents
elif place == "before the state is saved":
    module.write_json = killing(module.write_json, False)
elif place == "after the state is saved":
    module.write_json = killing(module.write_json, True)
elif place == "while a part is closed":
    DocumentFile.close = killing(DocumentFile.close, False)
module.download(DataSection(source=sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.component
@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("inside a part", 137),
        ("inside a part", 399),
        ("while a part is closed", 3),
        ("before the state is saved", 3),
        ("after the state is saved", 1),
        ("after the state is saved", 3),
    ],
)
def test_killed_download_continues_to_identical_files(
    many: Path, raw: Path, undisturbed: dict[str, str], place: str, count: int
) -> None:
    script = KILLED.format(part_bytes=PART_BYTES)
    command = [sys.executable, "-c", script, str(many), str(raw), place, str(count)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    assert subprocess.run(command, env=environment).returncode == -9
    report = download(section(many), raw)
    assert contents(raw) == undisturbed
    assert report["documents"] == 400


def test_finished_parts_are_not_made_again(
    many: Path, raw: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, opened = DocumentFile.close, []

    def full_disk(self: DocumentFile) -> None:
        if len(list(raw.glob("part-*"))) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(raw))
        finish(self)

    monkeypatch.setattr(DocumentFile, "close", full_disk)
    with pytest.raises(OSError, match="No space left"):
        download(section(many), raw)
    assert sorted(path.name for path in raw.glob("part-*")) == [f"part-{number:05d}.parquet" for number in range(3)]
    monkeypatch.setattr(DocumentFile, "close", finish)
    monkeypatch.setattr(module, "DocumentFile", lambda path: opened.append(path.name) or DocumentFile(path))
    download(section(many), raw)
    assert opened[0] == "part-00003.parquet"
    assert contents(raw) == undisturbed


def test_another_source_starts_anew(many: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PART_BYTES", PART_BYTES)
    finish = DocumentFile.close

    def stop(self: DocumentFile) -> None:
        finish(self)
        if len(list(raw.glob("part-*"))) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(DocumentFile, "close", stop)
    with pytest.raises(KeyboardInterrupt):
        download(section(many), raw)
    monkeypatch.setattr(DocumentFile, "close", finish)
    lines(many / "0.jsonl", ["changed"])
    download(section(many), raw)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    download(section(many), fresh)
    assert contents(raw) == contents(fresh)


def test_standard_library_is_the_same_every_time(tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        reports.append(download(DataSection(source="python-stdlib", max_bytes=2_000_000), tmp_path / name))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert reports[0] == reports[1]
    assert 1_500_000 < reports[0]["bytes"] <= 2_000_000


MEASURED = """
import json, re, sys
from pathlib import Path
from retlab.data.download import download
from retlab.data.settings import DataSection
from retlab.data.split import split_documents

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

folder = Path(sys.argv[2])
settings = DataSection(source=sys.argv[1], dask_workers=2)
for name in ("raw", "splits"):
    (folder / name).mkdir()
report = download(settings, folder / "raw")
after_download = peak()
split = split_documents(settings, folder / "raw", folder / "splits")
print(json.dumps([report["bytes"], split["bytes"], after_download, peak()]))
"""


@pytest.mark.component
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.parquet"])
def test_document_of_50_megabytes_in_bounded_memory(tmp_path: Path, name: str) -> None:
    # Beyond the basic plane, so that Python's strings take four bytes for each character.
    long = "🐍 läng " * (50_000_000 // 11)
    source = tmp_path / "source"
    lines(source / "others.jsonl", [f"document {number}" for number in range(200)])
    if name == "a.jsonl":
        (source / name).write_text(json.dumps({"text": long}, ensure_ascii=False))
    elif name == "a.csv":
        (source / name).write_text(f'text\n"{long}"\n')
    elif name == "a.txt":
        (source / name).write_text(long)
    else:
        write_parquet(source / name, ["short", long, "short"])
    command = [sys.executable, "-c", MEASURED, str(source), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    raw_bytes, split_bytes, after_download, after_split = json.loads(answer.stdout.splitlines()[-1])
    assert raw_bytes == split_bytes > 49_000_000
    assert after_download < 1.2 * 2**20
    assert after_split < 1.2 * 2**20
