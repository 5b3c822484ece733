"""Stage 1: text from its source into parquet parts; an interrupted download goes on where its last part ended."""

import contextlib
import dataclasses
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, write_json
from retlab.data.documents import DocumentFile, as_texts, is_empty, part_name
from retlab.data.formats import BadRecord, read_documents
from retlab.data.settings import DataSection
from retlab.data.sources import SourceFile, entries, find_sources, identity
from retlab.errors import UserError
from retlab.progress import Progress, counted, progress
from retlab.section import portable

PART_BYTES = 128 * 2**20
"""UTF-8 bytes of text after which a part is complete."""

_STATE = ".state.json"
_FETCHED = "fetched"
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
    work = _Download(section, folder, find_sources(section))
    with progress("download", work.all_bytes, "byte", work.done_bytes) as bar:
        work.run(bar)
    return work.finish()


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
    advice: str = ""


class _Download:
    def __init__(self, section: DataSection, folder: Path, sources: list[SourceFile]) -> None:
        self._section, self._folder, self._sources = section, folder, sources
        self._fetched = folder / _FETCHED
        self._part: DocumentFile | None = None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self.all_bytes = sum(map(_work_bytes, sources))
        saved, name = read_json(folder / _STATE), identity(sources)
        self._state = _State(**saved) if saved and saved["sources"] == name else _State(name)
        if not saved or saved["sources"] != name:
            # What was fetched from another state of the source must not be taken for this one's.
            shutil.rmtree(self._fetched, ignore_errors=True)
            self._save()
        self.done_bytes = sum(map(_work_bytes, self._sources[: self._state.file]))

    def run(self, bar: Progress) -> None:
        """Write the documents of all files, or of as many as data.max_documents and data.max_bytes allow."""
        self._bar = bar
        try:
            self._take_all()
            bar.set_total(self.done_bytes)
            self._finish_part(len(self._sources), 0)
        except BaseException:
            # It will be written anew, and until then it would only fill the disk.
            if self._part:
                (self._folder / part_name(self._state.parts)).unlink(missing_ok=True)
            raise

    def _take_all(self) -> None:
        if self._is_full():
            return
        for index, file in enumerate(self._sources[self._state.file :], self._state.file):
            path = self._fetch(index) if file.remote else Path(file.path)
            try:
                if not self._take(index, path):
                    return
            except UserError:
                # What mends it changes the source or the settings, so nothing of this can be used again.
                self._discard()
                raise

    def _advance(self, amount: int) -> None:
        self.done_bytes += amount
        self._bar.advance(amount)
        share = max(
            self._state.documents / (self._section.max_documents or math.inf),
            self._state.bytes / (self._section.max_bytes or math.inf),
        )
        if share:
            # Where a limit will end the work before all files are read, as far as can be told by now.
            self._bar.set_total(min(self.all_bytes, self.done_bytes / share))

    def _take(self, index: int, path: Path) -> bool:
        """Write the documents of one file; false where data.max_documents or data.max_bytes ends the work."""
        file, seen = self._sources[index], 0
        done_before = self._state.record if index == self._state.file else 0
        _check_unchanged(file)
        for number, (position, record) in enumerate(read_documents(file, path, self._section.text_column), 1):
            self._advance(position - seen)
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
        self._advance(file.size - seen)
        _check_unchanged(file)
        return True

    def _fetch(self, index: int) -> Path:
        # Imported here because the Hub's client is slow to import and most runs need none.
        from retlab.data import hub

        file, target = self._sources[index], self._fetched / f"{index:06d}"
        if target.exists():
            self._advance(file.size)
        else:
            self._fetched.mkdir(exist_ok=True)
            try:
                hub.fetch(file.name, file.path, file.size, target, self._advance)
            except UserError:
                # Where nothing has arrived nothing is to be continued.
                with contextlib.suppress(OSError):
                    self._fetched.rmdir()
                raise
        return target

    def _skip(self, record: BadRecord, file: SourceFile) -> None:
        # Nobody can mend a file of the standard library, and no other Python reads it either.
        if self._section.on_bad_line == "stop" and file.format != "python":
            raise UserError(
                f"{file.name}{record.place}: {record.reason}; {record.advice},"
                " or set data.on_bad_line: skip to leave out such records and count them"
            )
        self._state.skipped += 1
        if not self._state.first_skipped:
            name = file.name if file.remote else portable(Path(file.path))
            self._state.first_skipped = f"{name}{record.place}: {record.reason}"
            self._state.advice = f"{record.advice}, or "

    def _fits(self, text: bytes) -> bool:
        limit = self._section.max_bytes
        if limit is None or self._state.bytes + len(text) <= limit:
            return True
        if self._state.documents == 0:
            raise UserError(
                f"data.max_bytes: found {limit:,}, but the first document has {counted(len(text), 'byte')}; raise it"
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

    def finish(self) -> dict[str, Any]:
        """Leave the parts and the state alone, and report. The state stays until the folder is published, so that
        a kill before then does not cost the work again."""
        state = self._state
        if state.documents == state.empty:
            found = counted(state.empty, "empty document") + " and no other" if state.empty else "no documents"
            if state.skipped:
                found += f" ({counted(state.skipped, 'record')} skipped, first: {state.first_skipped})"
            self._discard()
            source = ", ".join(entries(self._section))
            raise UserError(f"data.source: {source} holds {found}; {state.advice}name another source")
        self._remove_all_but(state.parts)
        return {
            "source_files": len(self._sources),
            "documents": state.documents,
            "bytes": state.bytes,
            "empty_documents": state.empty,
            "skipped_records": state.skipped,
            "first_skipped_record": state.first_skipped or None,
            "hub_commits": sorted({_data_set(file) for file in self._sources if file.remote}),
        }

    def _discard(self) -> None:
        self._remove_all_but(0)
        (self._folder / _STATE).unlink()

    def _remove_all_but(self, parts: int) -> None:
        """No fetched files, and no part beyond the first ones, an earlier attempt's included."""
        shutil.rmtree(self._fetched, ignore_errors=True)
        kept = {part_name(number) for number in range(parts)}
        for file in self._folder.glob("part-*.parquet"):
            if file.name not in kept:
                file.unlink()


def _data_set(file: SourceFile) -> str:
    return "/".join(file.path.split("/")[:3])


def _check_unchanged(file: SourceFile) -> None:
    if file.remote:
        return
    try:
        status = os.stat(file.path)
    except FileNotFoundError:
        raise UserError(f"{file.name} has gone while it was to be read; run the same command again") from None
    if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.version):
        raise UserError(f"{file.name} has changed while it was read; run the same command again")
