"""What the tests of stages 1 and 2 share: sections, raw parts and what lies in a folder of parts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retlab.data.documents import DocumentFile, as_texts, part_name
from retlab.data.settings import DataSection


def section(source: Path | str | Sequence[Path | str], **values: Any) -> DataSection:
    """A data section for local paths or other sources."""
    entries = [source] if isinstance(source, Path | str) else source
    return DataSection(source=[str(entry) for entry in entries], **values)


def texts(folder: Path) -> list[str]:
    """All documents of a folder of parts, in order."""
    parts = sorted(folder.glob("part-*.parquet"))
    return [text for part in parts for text in pq.read_table(part).column("text").to_pylist()]


def write_raw(folder: Path, parts: Sequence[Sequence[str]]) -> Path:
    """A raw folder with these documents in its parts."""
    folder.mkdir(parents=True)
    for number, documents in enumerate(parts):
        with DocumentFile(folder / part_name(number)) as file:
            file.write(as_texts([text.encode() for text in documents]))
    return folder


def write_parquet(path: Path, documents: Sequence[str | None], column: str = "text", **options: Any) -> Path:
    """A parquet file as others write it: a further column, and default options."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(len(documents)), column: pa.array(documents, pa.string())})
    pq.write_table(table, path, **options)
    return path


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
