import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from retlab.errors import UserError
from retlab.training.checkpoints import FORMAT, CheckpointStore, load_checkpoint
from retlab.training.metrics import COLUMNS, MetricsFile


def checkpoint(step: int, best=()) -> dict:
    return {"step": step, "best": list(best), "model": {"weight": torch.full((1000,), float(step))}}


def names(store: CheckpointStore) -> list[str]:
    return sorted(file.name for file in store.folder.iterdir())


def test_the_last_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.last() is None
    store.save(checkpoint(10, [[3.0, 10]]))
    store.save(checkpoint(15, [[3.0, 10]]))
    assert store.steps() == [10, 15]
    store.save(checkpoint(20, [[2.0, 20], [3.0, 10]]))
    assert store.steps() == [10, 20]
    store.save(checkpoint(30, [[1.0, 30], [2.0, 20]]))
    assert store.steps() == [20, 30]
    assert store.last()["step"] == 30
    assert torch.equal(load_checkpoint(store.path(20))["model"]["weight"], torch.full((1000,), 20.0))


def test_a_save_that_fails_before_the_rename_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            store.save(checkpoint(2))
    assert names(store) == ["step-00000001.pt"]
    assert store.last()["step"] == 1


def test_a_save_killed_before_the_rename_leaves_the_earlier_checkpoint(tmp_path):
    program = f"""
        import os, signal, sys, torch
        from pathlib import Path
        from retlab.training.checkpoints import CheckpointStore
        store = CheckpointStore(Path({str(tmp_path)!r}))
        store.save({{"step": 1, "best": []}})
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.save({{"step": 2, "best": []}})
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment(), check=False)
    assert died.returncode == -signal.SIGKILL
    store = CheckpointStore(tmp_path)
    assert ".checkpoint.partial" in names(store)
    assert store.last()["step"] == 1
    store.prune([])
    assert names(store) == ["step-00000001.pt"]


def test_a_full_disk_leaves_the_earlier_checkpoint_and_one_sentence(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    # The kernel refuses to let any file of this process grow beyond 3 KiB, as a full disk would.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3072, limits[1]))
        with pytest.raises(UserError, match=r"step 2 could not be written .* step 1 is kept") as caught:
            store.save(checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(caught.value)
    assert names(store) == ["step-00000001.pt"]
    assert store.last()["step"] == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"format": FORMAT}), "cut", "code", "list"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    path = store.path(1)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif content == "code":
        torch.save({"format": FORMAT, "danger": re.compile("x")}, path)
    elif content == "list":
        torch.save([1], path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="step-00000001.pt is no checkpoint") as caught:
        store.last()
    assert "torch" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metrics_are_cut_back_and_read_back_exactly(tmp_path):
    metrics = MetricsFile(tmp_path / "run" / "metrics.csv")
    metrics.resume(0)
    metrics.append({"step": 1, "loss": 0.1 + 0.2})
    length = metrics.sync()
    kept = metrics.path.read_bytes()
    metrics.append({"step": 2, "loss": 1.0})
    metrics.resume(length)
    assert metrics.path.read_bytes() == kept
    header, line = kept.decode().splitlines()
    assert header == ",".join(COLUMNS)
    assert float(line.split(",")[COLUMNS.index("loss")]) == 0.1 + 0.2
    assert line.split(",")[COLUMNS.index("validation_loss")] == ""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
