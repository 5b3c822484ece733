"""What is a full disk, or a folder that is gone, and what is any other error."""

import errno
from pathlib import Path

import pytest

from retlab.errors import StorageFailed, UserError
from retlab.storage import make_folder, storage_errors


def failing_checkpoint() -> None:
    """As PyTorch's writer tells of a full disk, and the code around it."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
    except RuntimeError as error:
        raise UserError("the checkpoint could not be written") from error


def test_a_full_disk_behind_other_errors_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=f"the disk is full: {tmp_path}; free some space"), storage_errors(tmp_path):
        failing_checkpoint()


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "trials"
    with pytest.raises(StorageFailed, match="trials is gone"), storage_errors(gone):
        (gone / "trial" / "log.txt").write_text("")


@pytest.mark.parametrize(
    "error", [UserError("no"), FileNotFoundError(errno.ENOENT, "no"), FileExistsError(errno.EEXIST, "no"), ValueError()]
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, storage_errors(tmp_path):
        raise error
    assert raised.value is error


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "new" / "folder")
    make_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    with pytest.raises(UserError, match="no folder can be made here: /proc/x/y; choose another"):
        make_folder(Path("/proc/x/y"))
