"""Which files a `data.source` stands for: the standard library, local paths and globs, data sets of the Hub."""

import glob
import hashlib
import json
import os
import re
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from retlab.data.settings import HUB, STDLIB, DataSection
from retlab.errors import UserError
from retlab.section import absolute, shown_path

Format = Literal["parquet", "jsonl", "csv", "text", "python"]
Compression = Literal["gzip", "zstd"] | None

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    # As in C4's files: one object per line under the plain name.
    ".json": "jsonl",
    ".csv": "csv",
}
_TEXT_SUFFIXES = frozenset({
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".xml", ".srt", ".yaml", ".yml", ".toml", ".ini", ".cfg",
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".css", ".go", ".rs", ".rb", ".pl",
    ".php", ".sh", ".bash", ".lua", ".r", ".jl", ".scala", ".kt", ".swift", ".hs", ".ml", ".lisp", ".clj", ".sql",
})  # fmt: skip
# Folders of the standard library that hold its tests, or what others installed beside it.
_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class SourceFile:
    """One file to take documents from.

    Attributes:
        name: what messages call it.
        path: absolute local path, or the path in huggingface_hub's file system with the commit pinned.
        size: bytes, as the file system or the Hub says.
        version: changes when the content does: modification time, or the Hub's blob id.
        remote: whether it lies on the Hub.
    """

    name: str
    path: str
    size: int
    version: str
    format: Format
    compression: Compression
    remote: bool = False


def find_sources(section: DataSection) -> list[SourceFile]:
    """All files of `data.source`: in its order, sorted within each of its entries, each file once.

    Raises:
        UserError: an entry that stands for no file, a file whose format cannot be told, the Hub out of reach.
    """
    files = _unique(file for entry in entries(section) for file in _expand(entry, section))
    _refuse_own_outputs(files, section)
    return files


def local_state(section: DataSection) -> dict[str, Any]:
    """Sizes and times of the local source files in a few values. A Hub source is left out: it needs a network."""
    here = [entry for entry in entries(section) if not entry.startswith(HUB)]
    files = _unique(file for entry in here for file in _expand(entry, section))
    if not files:
        return {}
    _refuse_own_outputs(files, section)
    return {
        "source files": len(files),
        "source bytes": sum(file.size for file in files),
        "names, sizes and times of the source files": identity(files),
    }


def identity(files: Iterable[SourceFile]) -> str:
    """A hash over the paths, sizes and versions of files."""
    described = [(file.path, file.size, file.version) for file in files]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def entries(section: DataSection) -> list[str]:
    """The entries of `data.source`, one or several."""
    return [section.source] if isinstance(section.source, str) else section.source


def _unique(files: Iterable[SourceFile]) -> list[SourceFile]:
    """Each file once, the first of its names: links are another name of the same text."""
    found: dict[str, SourceFile] = {}
    for file in files:
        found.setdefault(file.path if file.remote else os.path.realpath(file.path), file)
    return list(found.values())


def _refuse_own_outputs(files: Iterable[SourceFile], section: DataSection) -> None:
    if section.folder is None:
        return
    outputs = [section.raw_folder, section.splits_folder, section.tokens_folder or section.folder / "tokens"]
    for file in files:
        if not file.remote and any(Path(file.path).is_relative_to(output) for output in outputs):
            raise UserError(
                f"data.source contains {file.name}, which this experiment itself writes; set another data.folder"
            )


def _expand(entry: str, section: DataSection) -> list[SourceFile]:
    if entry == STDLIB:
        return _stdlib()
    return _hub(entry, section) if entry.startswith(HUB) else _local(entry, section)


def _stdlib() -> list[SourceFile]:
    root = sysconfig.get_path("stdlib")
    paths = [path for path in _walk(root, _NOT_LIBRARY) if path.endswith(".py") and os.path.isfile(path)]
    if not paths:
        raise UserError(f"data.source: {STDLIB}: {root} holds no Python files; name another source")
    return [_local_file(path, "python", None) for path in paths]


def _local(entry: str, section: DataSection) -> list[SourceFile]:
    path = str(absolute(entry))
    shown = shown_path(Path(path))
    if os.path.exists(path):
        matches = [path]
    elif not glob.has_magic(entry):
        raise UserError(f"data.source: there is no file or folder {shown}; correct the path")
    else:
        matches = _glob(path)
        if not matches:
            brackets = " (a bracket that is part of a name is written [[])" if "[" in entry else ""
            raise UserError(f"data.source: no file matches {shown}; correct the pattern{brackets}")
    paths: list[str] = []
    for match in matches:
        paths += _data_files(_walk(match), section, remote=False) if os.path.isdir(match) else [match]
    if not paths:
        raise UserError(f"data.source: the folder {shown} holds no data files; name another one")
    return [_local_file(file, *_format(shown_path(Path(file)), section)) for file in sorted(set(paths))]


def _glob(pattern: str) -> list[str]:
    head, *tail = re.split(r"/\*\*(?=/|$)", pattern, maxsplit=1)
    if not tail:
        return glob.glob(pattern)
    tops = [match for match in glob.glob(head or "/") if os.path.isdir(match)]
    if not tail[0]:
        # A folder stands for all that is below it anyway.
        return tops
    # Not the recursion of `glob.glob`, which follows a circle of links without end.
    return [match for top in tops for folder, _ in _folders(top) for match in _glob(glob.escape(folder) + tail[0])]


def _walk(root: str, skip: frozenset[str] = frozenset()) -> list[str]:
    """The files below a folder, without hidden ones."""
    return sorted(os.path.join(folder, name) for folder, names in _folders(root, skip) for name in names)


def _folders(root: str, skip: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, each with the names of its files; links are followed, and no folder comes twice."""

    def stop(error: OSError) -> None:
        name = shown_path(Path(error.filename))
        raise UserError(f"data.source: {name} cannot be read: {error.strerror}") from None

    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if name not in skip and not name.startswith("."))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield folder, [name for name in names if not name.startswith(".")]


def _local_file(path: str, format: Format, compression: Compression) -> SourceFile:
    name = shown_path(Path(path))
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"data.source: {name} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"data.source: {name} is no regular file; name files or folders of files")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise UserError(f"data.source: no permission to read {name}; give this user the right to it")
    return SourceFile(name, path, status.st_size, str(status.st_mtime_ns), format, compression)


def _hub(entry: str, section: DataSection) -> list[SourceFile]:
    # Imported here because the Hub's client is slow to import and most runs need none.
    from retlab.data import hub

    listing = hub.list_files(entry)
    names = sorted(listing.files)
    chosen = _data_files(names, section, remote=True) if listing.is_folder else names
    if not chosen:
        found = f"; it holds {', '.join(names[:5])}" if names else ""
        raise UserError(f"data.source: {entry} holds no data files{found}; name files or a pattern")
    files = []
    for name in chosen:
        size, version = listing.files[name]
        shown = f"{listing.shown}/{name}"
        files.append(SourceFile(shown, f"{listing.root}/{name}", size, version, *_format(shown, section), remote=True))
    return files


def _guess(path: str) -> tuple[Format, Compression] | None:
    """Format and compression that a file's name says."""
    name = PurePosixPath(path.lower())
    compression = _COMPRESSIONS.get(name.suffix)
    suffix = PurePosixPath(name.stem).suffix if compression else name.suffix
    format: Format | None = "text" if suffix in _TEXT_SUFFIXES else _FORMATS.get(suffix)
    # Parquet compresses inside the file; a compressed parquet file cannot be read from its end.
    return None if format is None or (format == "parquet" and compression) else (format, compression)


def _format(name: str, section: DataSection) -> tuple[Format, Compression]:
    if section.format != "auto":
        return section.format, _COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)
    guessed = _guess(name)
    if guessed is None:
        raise UserError(
            f"data.source: the name of {name} does not say its format; set data.format,"
            " or name the files with a pattern such as folder/**/*.parquet"
        )
    return guessed


def _data_files(paths: list[str], section: DataSection, remote: bool) -> list[str]:
    """The files of a folder that hold documents, without those that are about the others.

    A local file whose format is not known stays in the list, so that it is refused by name and not lost;
    data sets on the Hub hold all kinds of other files.
    """
    paths = [path for path in paths if not _is_metadata(path)]
    if section.format != "auto":
        return [path for path in paths if not remote or _kind(path) == section.format]
    tables = any(_kind(path) in ("parquet", "jsonl", "csv") for path in paths)
    chosen = []
    for path in paths:
        kind = _kind(path)
        readme = PurePosixPath(path).name.lower().startswith(("readme", "license"))
        if readme and (remote or tables or kind is None):
            continue
        if remote and (kind is None or (tables and kind == "text")):
            continue
        chosen.append(path)
    return chosen


def _kind(path: str) -> Format | None:
    guessed = _guess(path)
    return guessed[0] if guessed else None


def _is_metadata(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name == "manifest.json" or name.startswith("dataset_info") or (name.startswith("_") and not _guess(path))
