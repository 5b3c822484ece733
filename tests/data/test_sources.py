"""Which files a source stands for, in which order, and what is refused."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.data.documents import section

from retlab.data.settings import DataSection
from retlab.data.sources import SourceFile, find_sources, local_state
from retlab.errors import UserError


def names(files: list[SourceFile], root: Path) -> list[str]:
    return [str(Path(file.path).relative_to(root)) for file in files]


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_standard_library_without_its_tests_and_installed_packages() -> None:
    files = find_sources(DataSection(source="python-stdlib"))
    paths = [Path(file.path) for file in files]
    root = Path(os.__file__).parent
    inside = {str(path.relative_to(root)) for path in paths}
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py", "doctest.py"} <= inside
    assert paths == sorted(paths, key=str)
    assert len(paths) > 500
    forbidden = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not any(forbidden & set(path.relative_to(root).parts) for path in paths)
    assert {path.suffix for path in paths} == {".py"}


def test_folder_is_read_recursively_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/z.txt", "a/b/c.jsonl", "c.csv.gz", ".hidden.txt", ".git/config.txt", "d.PARQUET")
    files = find_sources(section(tmp_path))
    assert names(files, tmp_path) == ["a/b/c.jsonl", "a/z.txt", "b.txt", "c.csv.gz", "d.PARQUET"]
    assert [file.format for file in files] == ["jsonl", "text", "text", "csv", "parquet"]
    assert [file.compression for file in files] == [None, None, None, "gzip", None]
    assert [file.size for file in files] == [len(name) for name in names(files, tmp_path)]


def test_list_keeps_its_order_and_takes_each_file_once(tmp_path: Path) -> None:
    make(tmp_path, "x/2.txt", "x/1.txt", "y/3.txt")
    files = find_sources(section([tmp_path / "y", tmp_path / "x/*.txt", tmp_path / "x/1.txt"]))
    assert names(files, tmp_path) == ["y/3.txt", "x/1.txt", "x/2.txt"]


def test_recursive_glob(tmp_path: Path) -> None:
    make(tmp_path, "a/b/1.py", "a/2.py", "a/b/other.bin", "3.py")
    files = find_sources(section(f"{tmp_path}/**/*.py"))
    assert names(files, tmp_path) == ["3.py", "a/2.py", "a/b/1.py"]


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt", "/*/**/*.txt"])
def test_links_are_followed_and_each_file_is_taken_once(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "s/a/1.txt", "s/a/b/2.txt", "elsewhere/3.txt", "s/.hidden/4.txt")
    (tmp_path / "s/a/copy.txt").symlink_to(tmp_path / "s/a/1.txt")
    (tmp_path / "s/a/far").symlink_to(tmp_path / "elsewhere")
    for name in ("s/a/b/loop", "s/a/b/round", "s/z"):
        (tmp_path / name).symlink_to(tmp_path / "s")
    files = find_sources(section(f"{tmp_path}/s{pattern}"))
    assert names(files, tmp_path / "s") == ["a/1.txt", "a/b/2.txt", "a/far/3.txt"]


def test_two_stars_inside_a_name_are_one(tmp_path: Path) -> None:
    make(tmp_path, "ab/1.txt", "ab/c/2.txt")
    assert names(find_sources(section(f"{tmp_path}/a**/*.txt")), tmp_path) == ["ab/1.txt"]


def test_file_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    make(tmp_path, "part[1].txt")
    assert names(find_sources(section(tmp_path / "part[1].txt")), tmp_path) == ["part[1].txt"]


def test_files_about_the_data_are_no_data(tmp_path: Path) -> None:
    make(tmp_path, "data/a.parquet", "README.md", "LICENSE", "manifest.json", "dataset_infos.json", "_SUCCESS")
    assert names(find_sources(section(tmp_path)), tmp_path) == ["data/a.parquet"]


def test_readme_among_plain_texts_is_a_text(tmp_path: Path) -> None:
    make(tmp_path, "README.md", "notes.md", "LICENSE")
    assert names(find_sources(section(tmp_path)), tmp_path) == ["README.md", "notes.md"]


@pytest.mark.parametrize(
    ("name", "format", "compression"),
    [
        ("c4-train.00000-of-01024.json.gz", "jsonl", "gzip"),
        ("a.ndjson", "jsonl", None),
        ("a.jsonl.zst", "jsonl", "zstd"),
        ("a.csv.zst", "csv", "zstd"),
        ("a.txt.gz", "text", "gzip"),
        ("a.md", "text", None),
    ],
)
def test_format_goes_by_the_name(tmp_path: Path, name: str, format: str, compression: str | None) -> None:
    make(tmp_path, name)
    (file,) = find_sources(section(tmp_path / name))
    assert (file.format, file.compression) == (format, compression)


def test_format_of_the_configuration_overrules_the_name(tmp_path: Path) -> None:
    make(tmp_path, "a.dat", "b.txt.gz")
    files = find_sources(section(tmp_path, format="jsonl"))
    assert [(file.format, file.compression) for file in files] == [("jsonl", None), ("jsonl", "gzip")]


@pytest.mark.parametrize("name", ["table.xlsx", "a.parquet.gz", "noname"])
def test_unknown_format_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make(tmp_path, "good.jsonl", name)
    with pytest.raises(UserError, match=f"{name} does not say its format; set data.format"):
        find_sources(section(tmp_path))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.txt", "there is no file or folder .*nowhere.txt"),
        ("*.parquet", r"no file matches .*\*.parquet"),
        ("empty", "the folder .*empty holds no data files"),
        ("broken.txt", "there is no file or folder .*broken.txt"),
        ("pipe.txt", "pipe.txt is no regular file"),
    ],
)
def test_source_without_files_is_named(tmp_path: Path, source: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=sentence):
        find_sources(section(tmp_path / source))


def test_broken_link_in_a_folder_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="b.txt cannot be read: No such file"):
        find_sources(section(tmp_path))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("", "name at least one source"),
        ([], "name at least one source"),
        ("hf://models/owner/name", "not of the form hf://datasets/OWNER/NAME"),
        ("hf://datasets/name", "not of the form hf://datasets/OWNER/NAME"),
        ("https://example.com/a.parquet", "cannot be read; use hf://datasets"),
        (["python-stdlib", "s3://bucket/a"], "cannot be read; use hf://datasets"),
    ],
)
def test_malformed_source_is_an_error_of_the_configuration(source: str | list[str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        DataSection(source=source)


def test_state_of_local_files_follows_size_time_and_number(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.txt")
    one = section(tmp_path)
    before = local_state(one)
    assert before["source files"] == 2
    assert local_state(one) == before
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    touched = local_state(one)
    assert touched != before
    make(tmp_path, "c.txt")
    assert local_state(one)["source files"] == 3


def test_source_that_contains_the_outputs_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "mine.txt", "out/raw/part-00000.parquet")
    with pytest.raises(
        UserError, match="data.source contains .*part-00000.parquet, which this experiment itself writes"
    ):
        find_sources(section(tmp_path, folder=tmp_path / "out"))
    assert len(find_sources(section(tmp_path / "mine.txt", folder=tmp_path))) == 1


def test_state_of_a_hub_source_asks_no_network() -> None:
    assert local_state(DataSection(source="hf://datasets/owner/name")) == {}
