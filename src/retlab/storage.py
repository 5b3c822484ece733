"""Files and folders that cannot be used whatever is tried next, as one sentence."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from retlab.errors import StorageFailed, UserError
from retlab.section import shown_path

_SENTENCES = {
    errno.EACCES: "no permission{where}; give this user the right to it or choose another folder",
    errno.EPERM: "not permitted{where}; give this user the right to it or choose another folder",
    errno.EROFS: "read-only file system{where}; choose another folder",
    errno.ENOSPC: "the disk is full{where}; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up{where}; free some space and run the same command again",
    errno.EFBIG: "files may not become so large here{where}; raise the limit (ulimit -f) or choose another folder",
    errno.EIO: "the disk does not answer{where}; mend it or choose another folder",
    errno.ESTALE: "the network drive does not answer{where}; mend it and run the same command again",
    errno.ENOTDIR: "a file is in the way of a folder{where}; move it or choose another folder",
    errno.ENAMETOOLONG: "a name is too long for this file system{where}; choose a shorter one",
    errno.EEXIST: "a file is in the way of a folder{where}; move it or choose another folder",
}
# What befalls one file or folder, and not the next.
_OF_ONE_FILE = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST}


def sentence(error: OSError, folder: Path | None = None) -> str | None:
    """What is wrong and what to do, where the user can mend it; None of other errors.

    Args:
        error: what the system said.
        folder: where it happened, of errors that name no file.
    """
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else folder
    words = _SENTENCES.get(error.errno or 0)
    return words and words.format(where=f": {shown_path(Path(name))}" if name else "")


def make_folder(folder: Path) -> None:
    """Make a folder that the user chose, and those around it, where it is not there yet.

    Raises:
        UserError: its file system, such as /proc, takes no folders.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise UserError(f"no folder can be made here: {shown_path(folder)}; choose another folder") from error


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn an error that comes from the place of some files, not from the work, into a StorageFailed.

    Args:
        folder: where the work writes; it was there before.
    """
    try:
        yield
    except Exception as error:
        found = _cause(error)
        said = sentence(found, folder) if found and found.errno not in _OF_ONE_FILE else None
        if isinstance(found, FileNotFoundError) and not folder.is_dir():
            said = f"the folder {shown_path(folder)} is gone; bring it back, or run the same command again"
        if said is None:
            raise
        raise StorageFailed(said) from error


def _cause(error: BaseException | None) -> OSError | None:
    """The system's error behind an error. PyTorch's writer says so in an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error
