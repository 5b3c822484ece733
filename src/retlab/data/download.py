"""Stage 1: text from its source into parquet parts; an interrupted download goes on where its last part ended."""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, write_json
from retlab.data.documents import DocumentFile, as_texts, is_empty, part_name
from retlab.data.formats import BadRecord, read_documents
from retlab.data.settings import DataSection
from retlab.data.sources import SourceFile, find_sources, identity
from retlab.errors import UserError
from retlab.progress import Progress, progress

PART_BYTES = 128 * 2**20
"""UTF-8 bytes of text after which a part is complete."""

_STATE = ".state.json"
_FETCHED = ".fetched"
_BATCH_BYTES = 4 * 2**20
_BATCH_DOCUMENTS = 1000


def download(section: DataSection, folder: Path) -> dict[str, Any]:
    """Write the documents of `data.source` to `part-*.parquet` in a folder.

    An unfinished folder of the same source is continued: finished parts and fetched files stay, and all parts
    are the same bytes as those of an undisturbed run.

    Returns:
        Counts for the manifest: files, documents, bytes of UTF-8, empty documents, skipped records.

    Raises:
        UserError: one sentence on what is wrong with the source.
    """
    sources = find_sources(section)
    work = _Download(section, folder, sources)
    with progress("download", sum(map(_work_bytes, sources)), "byte", work.finished_bytes()) as bar:
        work.run(bar)
    report = work.report()
    work.remove_traces()
    return report


def _work_bytes(file: SourceFile) -> int:
    return file.size * (2 if file.remote else 1)


@dataclass
class _State:
    """How far the work has come. Saved with each finished part: file and record say where the next one begins."""

    sources: str
    parts: int = 0
    file: int = 0
    record: int = 0
    documents: int = 0
    bytes: int = 0
    empty: int = 0
    skipped: int = 0
    first_skipped: str = ""


class _Download:
    def __init__(self, section: DataSection, folder: Path, sources: list[SourceFile]) -> None:
        self._section, self._folder, self._sources = section, folder, sources
        self._fetched = folder / _FETCHED
        self._part: DocumentFile | None = None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        saved, name = read_json(folder / _STATE), identity(sources)
        self._state = _State(**saved) if saved and saved["sources"] == name else _State(name)
        if not saved or saved["sources"] != name:
            # What was fetched from another state of the source must not be taken for this one's.
            shutil.rmtree(self._fetched, ignore_errors=True)
            self._save()

    def finished_bytes(self) -> int:
        return sum(map(_work_bytes, self._sources[: self._state.file]))

    def run(self, bar: Progress) -> None:
        if not self._is_full():
            for index in range(self._state.file, len(self._sources)):
                if not self._take(index, bar):
                    break
        self._finish_part(len(self._sources), 0)

    def _take(self, index: int, bar: Progress) -> bool:
        """Write the documents of one file; false where data.max_documents or data.max_bytes ends the work."""
        file, seen = self._sources[index], 0
        done_before = self._state.record if index == self._state.file else 0
        path = self._fetch(index, bar) if file.remote else Path(file.path)
        _check_unchanged(file)
        for number, (position, record) in enumerate(read_documents(file, path, self._section.text_column), 1):
            bar.advance(position - seen)
            seen = position
            if number <= done_before:
                continue
            if isinstance(record, BadRecord):
                self._skip(record, file)
            elif not self._fits(record):
                return False
            else:
                self._add(record)
                if self._is_full():
                    return False
                if self._part and self._part.bytes + self._batch_bytes >= PART_BYTES:
                    self._finish_part(index, number)
        bar.advance(file.size - seen)
        _check_unchanged(file)
        return True

    def _fetch(self, index: int, bar: Progress) -> Path:
        # Imported here because the Hub's client is slow to import and most runs need none.
        from retlab.data import hub

        file, target = self._sources[index], self._fetched / f"{index:06d}"
        if target.exists():
            bar.advance(file.size)
        else:
            self._fetched.mkdir(exist_ok=True)
            hub.fetch(file.name, file.path, file.size, target, bar.advance)
        return target

    def _skip(self, record: BadRecord, file: SourceFile) -> None:
        # Nobody can mend a file of the standard library, and no other Python reads it either.
        if self._section.on_bad_line == "stop" and file.format != "python":
            raise UserError(
                f"{record.place}: {record.reason};"
                " mend it, or set data.on_bad_line: skip to leave out such records and count them"
            )
        self._state.skipped += 1
        self._state.first_skipped = self._state.first_skipped or f"{record.place}: {record.reason}"

    def _fits(self, text: bytes) -> bool:
        limit = self._section.max_bytes
        if limit is None or self._state.bytes + len(text) <= limit:
            return True
        if self._state.documents == 0:
            raise UserError(
                f"data.max_bytes: found {limit:,}, but the first document has {len(text):,} bytes; raise it"
            )
        return False

    def _is_full(self) -> bool:
        return self._section.max_documents is not None and self._state.documents >= self._section.max_documents

    def _add(self, text: bytes) -> None:
        if self._part is None:
            self._part = DocumentFile(self._folder / part_name(self._state.parts))
        self._batch.append(text)
        self._batch_bytes += len(text)
        self._state.documents += 1
        self._state.bytes += len(text)
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_DOCUMENTS:
            self._write_batch()

    def _write_batch(self) -> None:
        assert self._part is not None
        texts = as_texts(self._batch)
        self._part.write(texts)
        self._state.empty += is_empty(texts).true_count
        self._batch, self._batch_bytes = [], 0

    def _finish_part(self, file: int, record: int) -> None:
        if self._part is None:
            return
        self._write_batch()
        self._part.close()
        self._part = None
        self._state.parts += 1
        self._state.file, self._state.record = file, record
        self._save()
        for fetched in self._fetched.glob("*"):
            if int(fetched.stem) < file:
                fetched.unlink()

    def _save(self) -> None:
        write_json(self._folder / _STATE, dataclasses.asdict(self._state))

    def report(self) -> dict[str, Any]:
        state = self._state
        if state.documents == state.empty:
            found = f"only empty documents ({state.empty})" if state.empty else "no documents"
            if state.skipped:
                found += f" ({state.skipped} records were skipped, the first is {state.first_skipped})"
            raise UserError(f"data.source: {self._section.source} holds {found}; name another source")
        return {
            "source_files": len(self._sources),
            "documents": state.documents,
            "bytes": state.bytes,
            "empty_documents": state.empty,
            "skipped_records": state.skipped,
            "first_skipped_record": state.first_skipped or None,
            "hub_commits": sorted({_data_set(file) for file in self._sources if file.remote}),
        }

    def remove_traces(self) -> None:
        """Leave the parts and the state alone: no fetched files, no part of an earlier attempt beyond the last.

        The state stays until the folder is published, so that a kill before then does not cost the work again.
        """
        shutil.rmtree(self._fetched, ignore_errors=True)
        kept = {part_name(number) for number in range(self._state.parts)}
        for file in self._folder.glob("part-*.parquet"):
            if file.name not in kept:
                file.unlink()


def _data_set(file: SourceFile) -> str:
    return "/".join(file.path.split("/")[:3])


def _check_unchanged(file: SourceFile) -> None:
    if file.remote:
        return
    status = os.stat(file.path)
    if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.version):
        raise UserError(f"{file.name} has changed while it was read; run the same command again")
