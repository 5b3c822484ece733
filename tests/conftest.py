"""What several test files share: a quickstart in a fresh clone, run once for all test processes."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retlab.section import PROJECT_ROOT
from tests.interpreted import load_triton

# Before anything else does.
if not torch.cuda.is_available():
    load_triton()

TINY = [
    "data.max_bytes=700000",
    "data.sequence_length=64",
    "tokenizer.vocab_size=400",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "train.max_steps=24",
    "train.micro_batch_size=2",
    "train.validate_every_steps=10",
    "train.validate_batches=4",
    "train.checkpoint_every_steps=5",
    "train.log_every_steps=1",
    "train.schedule.warmup_steps=5",
    "generate.max_new_tokens=10",
]
"""Overrides that make configs/quickstart.yaml a matter of seconds."""


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone in which the quickstart ran, made tiny: data/ and runs/ of its RetNet and its Transformer.

    Its scripts are to be used with its folders: a configuration's relative paths start at the checkout.
    quickstart.txt beside the clone is what was printed.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    clone, printed = shared / "clone", shared / "quickstart.txt"
    with open(shared / "quickstart.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not printed.exists():
            make_clone(clone)
            # From another folder than the clone, with nothing in the environment that names a Python.
            kept = {key: value for key, value in environment().items() if key != "VIRTUAL_ENV"}
            command = ["bash", str(clone / "scripts" / "quickstart.sh"), *TINY]
            answer = subprocess.run(command, capture_output=True, text=True, cwd=shared, env=kept)
            assert answer.returncode == 0, answer.stdout + answer.stderr
            # Looked at here: later the tests of other processes use these folders.
            left = [file for name in ("data", "runs") for file in (clone / name).rglob(".*")]
            assert not left, "something unfinished or a lock is left"
            printed.write_text(answer.stdout)
    return clone


def make_clone(clone: Path) -> None:
    """The checkout as git has it, and over it what is changed and not committed yet."""
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(PROJECT_ROOT), str(clone)], check=True)
    listing = ["git", "-C", str(PROJECT_ROOT), "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    changed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, changed):
        (clone / name).unlink(missing_ok=True)
        if (PROJECT_ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / name, clone / name)
    # The environment that runs the tests has what the quickstart would install.
    (clone / ".venv").symlink_to(sys.prefix)


def environment() -> dict[str, str]:
    """The environment for scripts: they use the Python that runs the tests."""
    return os.environ | {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
