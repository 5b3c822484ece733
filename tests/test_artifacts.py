"""Atomic writing and publishing, locks, fingerprints and damage."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from retlab import artifacts
from retlab.errors import UserError


def publish(folder: Path, content: str) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir()
    (partial / "a.txt").write_text(content)
    outputs, times = artifacts.describe_outputs(partial)
    artifacts.write_json(partial / artifacts.MANIFEST, {"outputs": outputs, "volatile": {"times": times}})
    artifacts.publish_folder(partial, folder)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    artifacts.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        artifacts.write_atomic(file, 5)  # type: ignore[arg-type]
    assert json.loads(file.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_killed_write_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    file = tmp_path / "x"
    artifacts.write_atomic(file, "old")
    code = (
        "import os, sys; from pathlib import Path; from retlab import artifacts;"
        "os.replace = lambda *a: os.kill(os.getpid(), 9); artifacts.write_atomic(Path(sys.argv[1]), 'new')"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(file)], env=os.environ | {"PYTHONPATH": "src"})
    assert answer.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    artifacts.write_atomic(file, "newer")
    assert file.read_text() == "newer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_publishing_replaces_the_folder_and_fingerprints_follow_the_content(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    publish(folder, "one")
    first = artifacts.fingerprint(folder)
    publish(folder, "two")
    assert (folder / "a.txt").read_text() == "two"
    assert artifacts.fingerprint(folder) != first
    publish(folder, "one")
    assert artifacts.fingerprint(folder) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_publication_killed_between_its_two_renames_is_undone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    publish(folder, "one")
    folder.rename(tmp_path / ".out.old")
    artifacts.recover_folder(folder)
    assert (folder / "a.txt").read_text() == "one"
    publish(tmp_path / "other", "two")
    (tmp_path / "other").rename(tmp_path / ".out.old")
    artifacts.recover_folder(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (folder / "a.txt").read_text() == "one"


def test_damage_is_seen_by_size_by_content_and_by_absence(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    publish(folder, "one")
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None
    assert artifacts.damage(folder, manifest, verify=True) is None
    times = os.stat(folder / "a.txt")
    (folder / "a.txt").write_text("eno")
    os.utime(folder / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert artifacts.damage(folder, manifest, verify=False) is None
    assert "content" in str(artifacts.damage(folder, manifest, verify=True))
    (folder / "a.txt").write_text("longer")
    assert "6 bytes instead of 3" in str(artifacts.damage(folder, manifest, verify=False))
    (folder / "a.txt").unlink()
    assert "missing" in str(artifacts.damage(folder, manifest, verify=False))


def test_a_copied_folder_with_other_times_is_still_itself(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    publish(folder, "one")
    os.utime(folder / "a.txt", (1, 1))
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None
    assert artifacts.damage(folder, manifest, verify=False) is None


def test_a_folder_without_manifest_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished output"):
        artifacts.fingerprint(tmp_path)


def _hold(path: Path, exclusive: bool, hold: Callable[[], object], log: Path) -> None:
    with artifacts.lock(path, exclusive, lambda: None):
        with log.open("a") as file:
            file.write("in\n")
        hold()
        with log.open("a") as file:
            file.write("out\n")


@pytest.mark.parametrize("exclusive", [True, False])
def test_locks_exclude_writers_and_let_readers_share(tmp_path: Path, exclusive: bool) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    # Readers wait for each other; writers give one that is let in wrongly the time to say so.
    together = context.Barrier(3)
    hold = partial(time.sleep, 0.3) if exclusive else partial(together.wait, 300)
    holders = [context.Process(target=_hold, args=(tmp_path / "x", exclusive, hold, log)) for _ in range(3)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join()
        assert holder.exitcode == 0
    order = log.read_text().split()
    assert (order == ["in", "out"] * 3) == exclusive
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"], "the last holder removes the lock file"


def test_a_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_hold, args=(tmp_path / "x", True, partial(time.sleep, 600), tmp_path / "log"))
    holder.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    holder.kill()
    holder.join()
    with artifacts.lock(tmp_path / "x", True, lambda: pytest.fail("had to wait")):
        pass
    assert not (tmp_path / ".x.lock").exists()
