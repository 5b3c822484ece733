"""Folders and files that stages leave: atomic writing and publishing, locks, manifests, fingerprints."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retlab.errors import UserError
from retlab.section import shown_path

MANIFEST = "manifest.json"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a reader, or a kill at any moment, sees the old content or the new.

    The temporary file has one fixed name, so a killed write leaves nothing that the next does not reuse;
    its lock keeps two processes that write the same file apart.
    """
    partial = path.with_name(f".{path.name}.partial")
    while True:
        with open(partial, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The writer that was waited for may have renamed the file that is open here.
            if not _is_same_file(file.fileno(), partial):
                continue
            try:
                file.truncate(0)
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        sync_folder(path.parent)
        return


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is no such file or no JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, exclusive: bool, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a folder or file against other processes: shared to read it, exclusive to replace it.

    `waiting` is called once when another process has to be waited for. The lock file stands beside the
    path and is removed by the last holder. A folder whose parent this user may not write is not locked:
    nobody with these rights could replace it.
    """
    file = path.with_name(f".{path.name}.lock")
    mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            if exclusive:
                raise
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, mode)
            if not _is_same_file(descriptor, file):
                continue
            try:
                yield
            finally:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another process holds a folder or file for itself alone."""
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """The manifest of a published folder, or None where there is none or it is no manifest."""
    manifest = read_json(folder / name)
    return manifest if isinstance(manifest, dict) and "outputs" in manifest else None


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Identity of what a stage left: names and contents of its files, nothing of when or where."""
    contents = {name: entry["sha256"] for name, entry in manifest["outputs"].items()}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def fingerprint(folder: Path) -> str:
    """`fingerprint_of` a published folder. Raises UserError where a stage has not finished it."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{shown_path(folder)} is no finished output of a stage; run the stage that makes it first")
    return fingerprint_of(manifest)


def describe_outputs(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Sizes and hashes of all files below a folder, and their modification times in nanoseconds.

    Hidden files are a stage's notes to itself, which `publish_folder` removes.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    files = [file for file in files if not file.name.startswith(".")]
    outputs, times = {}, {}
    for file in files:
        name, status = str(file.relative_to(folder)), file.stat()
        outputs[name] = {"bytes": status.st_size, "sha256": sha256_file(file)}
        times[name] = status.st_mtime_ns
    return outputs, times


def damage(folder: Path, manifest: dict[str, Any], verify: bool) -> str | None:
    """What differs between a folder and its manifest, as half a sentence; None where nothing does.

    Sizes and times are compared; contents where the times differ (a copied folder) and with `verify`.
    """
    times = manifest["volatile"]["times"]
    for name, entry in (manifest["outputs"] | manifest["volatile"].get("files", {})).items():
        file = folder / name
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{shown_path(file)} is missing"
        if status.st_size != entry["bytes"]:
            return f"{shown_path(file)} has {status.st_size:,} bytes instead of {entry['bytes']:,}"
        if (verify or status.st_mtime_ns != times.get(name)) and sha256_file(file) != entry["sha256"]:
            return f"the content of {shown_path(file)} has changed"
    return None


def link_files(source: Path, target: Path) -> None:
    """Have a folder hold the files of a published one beside its own, by hard links where the file system has them.

    Files that are not as they were published are left out. Who changes one must replace it, as `write_atomic` does.
    """
    manifest = read_manifest(source)
    assert manifest is not None
    for name, entry in (manifest["outputs"] | manifest["volatile"].get("files", {})).items():
        file, there = source / name, target / name
        if there.exists() or not file.is_file() or sha256_file(file) != entry["sha256"]:
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, there)
        except OSError:
            shutil.copy2(file, there)


def publish_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in its place. A kill in between is mended by `recover_folder`."""
    for file in partial.rglob("*"):
        if file.name.startswith("."):
            file.unlink()
        elif file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
    old = _old(target)
    if target.exists():
        os.rename(target, old)
    os.rename(partial, target)
    sync_folder(target.parent)
    _remove(old)


def recover_folder(target: Path) -> None:
    """Undo a publication that was killed half-way: the old folder comes back, or its remains go."""
    old = _old(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    _remove(old)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
