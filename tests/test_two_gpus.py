"""What only two GPUs can show: NCCL, DDP and FSDP on GPUs; the same tests run on two CPU processes elsewhere."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from retlab.errors import EXIT_OK, EXIT_USER_ERROR
from retlab.section import PROJECT_ROOT
from retlab.training.checkpoints import CheckpointStore
from tests.training.experiment import make_config, make_inputs, start
from tests.training.several_processes import TIED, assert_several_train_as_one

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs; tests/training has it for CPUs"),
]


@pytest.mark.parametrize("model", [{}, TIED], ids=["retnet", "tied-transformer"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one(tmp_path: Path, strategy: str, model: dict) -> None:
    said = assert_several_train_as_one(tmp_path, strategy, "packed", model, device="cuda", compile="off")
    assert any("2 processes (ddp), each on NVIDIA" in line for line in said)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one_when_compiled(tmp_path: Path, strategy: str) -> None:
    assert_several_train_as_one(tmp_path, strategy, "packed", {}, device="cuda", compile="on")


def losses(run: Path) -> list[float]:
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_bf16_rounds_the_same_in_one_process_under_ddp_and_under_fsdp(tmp_path: Path) -> None:
    """The two GPUs add in another order, and nothing else: a bf16 step of theirs stays near one process's."""
    make_inputs(tmp_path)
    settings = {"max_steps": 20, "log_every_steps": 1, "device": "cuda", "precision": "bf16", "compile": "off"}
    model = {"dropout": 0.0, "activation_dropout": 0.0, "hidden_size": 64, "num_attention_heads": 2, "value_size": 64}
    names = {"one": {}, "ddp": {"devices": 2, "strategy": "ddp"}, "fsdp": {"devices": 2, "strategy": "fsdp"}}
    processes = [start(make_config(tmp_path, name, model, **settings, **extra)) for name, extra in names.items()]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == EXIT_OK, output
    one, ddp, fsdp = (losses(tmp_path / "runs" / name) for name in names)
    assert ddp == pytest.approx(one, rel=5e-3)
    assert fsdp == pytest.approx(one, rel=5e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_is_one_sentence_and_nothing_hangs(tmp_path: Path, strategy: str) -> None:
    make_inputs(tmp_path)
    config = make_config(
        tmp_path, "killed", max_steps=100_000, devices=2, strategy=strategy, device="cuda", compile="off",
        validate_every_steps=1000,
    )  # fmt: skip
    process, store = start(config), CheckpointStore(tmp_path / "runs" / "killed" / "checkpoints")
    while process.poll() is None and not store.steps():
        time.sleep(0.05)
    helpers = psutil.Process(process.pid).children()
    helpers[-1].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_USER_ERROR, output
    assert "error: process 2 of the training was ended by SIGKILL (out of memory?)" in output
    assert "Traceback" not in output
    assert store.last() is not None


def test_a_process_without_memory_ends_all_and_says_so(tmp_path: Path) -> None:
    """The second GPU is nearly full before the training starts, and full for any test that runs beside this one."""
    make_inputs(tmp_path)
    model = {"hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 4096, "value_size": 4096}
    config = make_config(tmp_path, "full", model, devices=2, device="cuda", compile="off")
    free, _ = torch.cuda.mem_get_info(1)
    held = torch.empty(free - 3 * 2**30, dtype=torch.uint8, device="cuda:1")
    process = start(config)
    output, _ = process.communicate(timeout=300)
    del held
    torch.cuda.empty_cache()
    assert process.returncode == EXIT_USER_ERROR, output
    assert output.strip().splitlines()[-1].startswith("error: "), output


def test_no_process_takes_memory_on_the_gpu_of_another(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    config = make_config(tmp_path, "apart", max_steps=100_000, devices=2, device="cuda", compile="off")
    process, store = start(config), CheckpointStore(tmp_path / "runs" / "apart" / "checkpoints")
    while process.poll() is None and not store.steps():
        time.sleep(0.05)
    answer = subprocess.run(
        ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader"], capture_output=True, text=True
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    lines = [line.split(", ") for line in answer.stdout.splitlines()]
    pids = [int(pid) for _, pid in lines if pid.isdigit()]
    if process.pid not in pids:
        pytest.skip("this machine's driver does not tell the processes of its GPUs")
    assert pids.count(process.pid) == 1, answer.stdout + output


def test_more_gpus_than_there_are_is_one_sentence(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    make_inputs(tmp_path)
    config = make_config(tmp_path, "many", devices=count + 1, batch_size=2 * (count + 1), device="cuda")
    answer = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "src" / "train_model.py"), str(config)],
        capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert answer.returncode == EXIT_USER_ERROR
    assert f"train.devices is {count + 1}, but this machine has {count} GPUs; lower it" in answer.stderr
