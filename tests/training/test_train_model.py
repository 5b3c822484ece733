"""The training stage as a process: kills, signals, several processes, bad input."""

import csv
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from retlab.artifacts import sha256_file
from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from retlab.training.checkpoints import CheckpointStore
from retlab.training.metrics import DETERMINISTIC_COLUMNS
from tests.training.experiment import finish, make_config, make_inputs, start

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
    code, output = finish(make_config(folder, "undisturbed", max_steps=400))
    assert code == EXIT_OK, output
    return folder / "runs" / "undisturbed"


def test_kill_9_at_random_moments_changes_no_bit(folder, undisturbed):
    config = make_config(folder, "killed", max_steps=400)
    moments = random.Random(5)
    for step in (1, 100, 250):
        process = start(config)
        wait_for_step(config, process, step)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert "continuing after step" in output
    assert_same_run(undisturbed, folder / "runs" / "killed")
    code, output = finish(config)
    assert "up to date" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_own_code(folder, undisturbed, number):
    config = make_config(folder, f"signalled-{number.name}", max_steps=400)
    process = start(config)
    wait_for_step(config, process, 50)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert "interrupted: saved after step" in output
    assert "Traceback" not in output
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert "continuing after step" in output
    assert_same_run(undisturbed, folder / "runs" / config.stem)


@pytest.mark.parametrize(("strategy", "packing"), [("ddp", "packed"), ("ddp", "padded"), ("fsdp", "padded")])
def test_two_processes_train_as_one(folder, strategy, packing):
    configs = []
    for devices in (1, 2):
        config = make_config(
            folder, f"{strategy}-{packing}-{devices}", {"dropout": 0.0, "activation_dropout": 0.0},
            devices=devices, strategy=strategy, max_steps=10,
        )  # fmt: skip
        code, output = finish(config, f"data.packing={packing}")
        assert code == EXIT_OK, output
        configs.append(config)
    one, two = (folder / "runs" / config.stem for config in configs)
    for left, right in zip(metrics(one), metrics(two), strict=True):
        assert [float(x or 0) for x in left] == pytest.approx([float(x or 0) for x in right], rel=1e-5)
    left, right = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


def test_a_signal_to_one_of_two_processes_stops_both_and_resumes_to_the_same_bits(folder):
    reference = make_config(folder, "pair", devices=2, max_steps=200, micro_batch_size=1)
    assert finish(reference)[0] == EXIT_OK
    config = make_config(folder, "pair-stopped", devices=2, max_steps=200, micro_batch_size=1)
    for stop in (signal.SIGTERM, signal.SIGKILL):
        process = start(config)
        wait_for_step(config, process, 20 if stop == signal.SIGTERM else 80)
        process.send_signal(stop)
        output, _ = process.communicate(timeout=120)
        assert process.returncode in (EXIT_INTERRUPTED, -signal.SIGKILL), output
    code, output = finish(config)
    assert code == EXIT_OK, output
    assert_same_run(folder / "runs" / "pair", folder / "runs" / "pair-stopped")


def test_any_checkpoint_is_exported_and_other_models_are_refused(folder, undisturbed):
    config = make_config(folder, "undisturbed", max_steps=400)
    store = CheckpointStore(undisturbed / "checkpoints")
    for checkpoint in ("last", "best", str(store.path(store.steps()[0]))):
        target = folder / f"exported-{Path(checkpoint).stem}"
        code, output = finish(config, "--export", checkpoint, str(target))
        assert code == EXIT_OK, output
        model = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True)
        if checkpoint == "last":
            saved = store.last()
            assert saved is not None
            assert torch.equal(model.state_dict()["lm_head.weight"], saved["model"]["lm_head.weight"])
    again = finish(config, "--export", "last", str(folder / "exported-last"))
    absent = finish(config, "--export", str(folder / "none.pt"), str(folder / "x"))
    other = make_config(folder, "wider", {"hidden_size": 24})
    wrong = finish(other, "--export", str(store.path(store.steps()[0])), str(folder / "y"))
    for (code, output), words in [
        (again, "exists already"), (absent, "there is no checkpoint"), (wrong, "checkpoint of another model"),
    ]:  # fmt: skip
        assert code == EXIT_USER_ERROR, output
        assert words in output
        assert "Traceback" not in output
    assert not (folder / "x").exists()
    assert not (folder / "y").exists()


def test_another_architecture_in_the_run_folder_is_refused_and_nothing_lost(folder):
    assert finish(make_config(folder, "kept", max_steps=4))[0] == EXIT_OK
    run = folder / "runs" / "kept"
    before = sha256_file(run / "model" / "model.safetensors"), metrics(run)
    config = make_config(folder, "kept", {"architecture": "transformer"}, max_steps=4)
    config.write_text(config.read_text().replace("  value_size: 32\n", ""))
    code, output = finish(config)
    assert code == EXIT_USER_ERROR, output
    assert "checkpoints of another model" in output
    assert "Traceback" not in output
    assert before == (sha256_file(run / "model" / "model.safetensors"), metrics(run))
    code, output = finish(config, "--force")
    assert code == EXIT_OK, output
    assert before[0] == sha256_file(folder / "runs" / "kept.1" / "model" / "model.safetensors")
