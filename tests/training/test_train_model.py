"""The training stage as a process: kills, signals, several processes, bad input."""

import csv
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.training.experiment import finish, make_config, make_inputs, start
from transformers import AutoModelForCausalLM

from retlab.artifacts import sha256_file
from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from retlab.section import PROJECT_ROOT
from retlab.training.checkpoints import CheckpointStore
from retlab.training.metrics import DETERMINISTIC_COLUMNS

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment")
    make_inputs(path)
    return path


def metrics(run: Path) -> list[tuple[str, ...]]:
    with open(run / "metrics.csv", newline="") as file:
        return [tuple(row[column] for column in DETERMINISTIC_COLUMNS) for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    assert sha256_file(one / "model" / "model.safetensors") == sha256_file(other / "model" / "model.safetensors")
    assert metrics(one) == metrics(other)
    assert [p.name for p in sorted(one.rglob("*")) if p.is_file() and "tensorboard" not in str(p)] == [
        p.name for p in sorted(other.rglob("*")) if p.is_file() and "tensorboard" not in str(p)
    ]


def wait_for_step(config: Path, process, step: int) -> None:
    """Until the training has left a checkpoint of this step or a later one."""
    store = CheckpointStore(config.parent / "runs" / config.stem / "checkpoints")
    while process.poll() is None and not any(found >= step for found in store.steps()):
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    """A run of 200 steps in a Python that started from nothing: what the others share by their origin it has not."""
    command = [sys.executable, str(PROJECT_ROOT / "src" / "train_model.py")]
    subprocess.run([*command, make_config(folder, "undisturbed", max_steps=200)], check=True, capture_output=True)
    return folder / "runs" / "undisturbed"


def test_kill_9_at_random_moments_changes_no_bit(folder, undisturbed):
    config = make_config(folder, "killed", max_steps=200)
    moments = random.Random(5)
    for step in (1, 80):
        process = start(config)
        wait_for_step(config, process, step)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert "continuing after step" in output
    assert_same_run(undisturbed, folder / "runs" / "killed")
    assert "up to date" in finish(config)[1]


def test_signals_save_and_leave_with_their_own_code(folder, undisturbed):
    config = make_config(folder, "signalled", max_steps=200)
    for step, number in [(10, signal.SIGTERM), (60, signal.SIGUSR1), (110, signal.SIGINT)]:
        process = start(config)
        wait_for_step(config, process, step)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == EXIT_INTERRUPTED, output
        assert "interrupted: saved after step" in output
        assert "Traceback" not in output
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert_same_run(undisturbed, folder / "runs" / "signalled")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_while_exporting_loses_nothing(folder, small_disk):
    config = make_config(folder, "full", max_steps=10)
    config.write_text(config.read_text().replace(f"output_dir: {folder}/runs", f"output_dir: {small_disk}"))
    assert finish(config)[0] == EXIT_OK
    run = small_disk / "full"
    weights = sha256_file(run / "model" / "model.safetensors")
    shutil.rmtree(run / "model")
    # Room for the modelling code or the weights, not for both.
    (small_disk / "fill").write_bytes(bytes(shutil.disk_usage(small_disk).free - 80_000))
    code, output = finish(config)
    assert code == EXIT_USER_ERROR, output
    assert output.splitlines()[-1].startswith("error: the disk is full")
    assert "Traceback" not in output
    assert not (run / "model").exists()
    assert not (run / ".model.partial").exists()
    last = CheckpointStore(run / "checkpoints").last()
    assert last is not None
    assert last["step"] == 10
    (small_disk / "fill").unlink()
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert sha256_file(run / "model" / "model.safetensors") == weights


def test_checkpoints_are_exported_and_other_models_refused(folder, undisturbed):
    config = make_config(folder, "undisturbed", max_steps=200)
    last = CheckpointStore(undisturbed / "checkpoints").last()
    assert last is not None
    code, output = finish(config, "--export", "last", str(folder / "exported"))
    assert code == EXIT_OK, output
    model = AutoModelForCausalLM.from_pretrained(folder / "exported", trust_remote_code=True)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, last["model"][name]), name
    for names in (("best", "last"), ("nothing", str(folder / "new"))):
        code, output = finish(config, "--export", *names, cwd=undisturbed)
        assert code == (EXIT_OK if names[0] == "best" else EXIT_USER_ERROR), output
    assert "--export: nothing is no checkpoint; allowed are best, last and a checkpoint's file" in output
    assert (undisturbed / "last" / "config.json").exists()
    shutil.rmtree(undisturbed / "last")
    kept = ("model/model.safetensors", "metrics.csv", "config.yaml")
    before = [sha256_file(undisturbed / name) for name in kept]
    other = make_config(folder, "undisturbed", {"architecture": "transformer"}, max_steps=200)
    other.write_text(other.read_text().replace("  value_size: 32\n", ""))
    for arguments in ([], ["--export", "last", str(folder / "other")]):
        code, output = finish(other, *arguments)
        assert code == EXIT_USER_ERROR, output
        assert "of another model" in output
        assert "architecture: 'retnet' -> 'transformer'" in output
        assert "Traceback" not in output
    assert before == [sha256_file(undisturbed / name) for name in kept]
    assert not (folder / "other").exists()
