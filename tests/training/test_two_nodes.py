"""Two nodes joined by gloo, each with one or more processes; Slurm's own part is tested in tests/slurm."""

import signal
import time
from pathlib import Path

import pytest
import torch
from tests.training.experiment import finish, make_config, make_inputs
from tests.training.two_nodes import ended, start_nodes

from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from retlab.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.component

NO_DROPOUT = {"dropout": 0.0, "activation_dropout": 0.0}


def store_of(folder: Path, name: str) -> CheckpointStore:
    return CheckpointStore(folder / "runs" / name / "checkpoints")


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    checkpoint = store_of(folder, name).last()
    assert checkpoint is not None
    assert checkpoint["step"] == 30
    return checkpoint["model"]


def wait_for_checkpoint(folder: Path, name: str, processes: list) -> None:
    while not store_of(folder, name).steps() and all(process.poll() is None for process in processes):
        time.sleep(0.02)


@pytest.mark.parametrize(("train", "nodes"), [({}, 2), ({"devices": 2, "strategy": "fsdp"}, 2), ({}, 3)])
def test_nodes_train_as_one_machine_also_when_interrupted(tmp_path: Path, train: dict, nodes: int) -> None:
    """Three processes share a batch of eight out unevenly; the signal reaches the last node alone."""
    make_inputs(tmp_path)
    assert finish(make_config(tmp_path, "one", NO_DROPOUT))[0] == EXIT_OK
    config = make_config(tmp_path, "several", NO_DROPOUT, **train)
    processes = start_nodes(config, nodes=nodes)
    wait_for_checkpoint(tmp_path, "several", processes)
    processes[-1].send_signal(signal.SIGUSR1)
    (code, output), *others = ended(processes)
    assert code == EXIT_INTERRUPTED, output
    assert "interrupted: saved after step" in output
    assert others == [(EXIT_OK, "")] * (nodes - 1)
    (code, output), *others = ended(start_nodes(config, nodes=nodes))
    assert code == EXIT_OK, output
    assert others == [(EXIT_OK, "")] * (nodes - 1)
    assert "continuing after step" in output
    for key, weight in weights(tmp_path, "one").items():
        torch.testing.assert_close(weight, weights(tmp_path, "several")[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_dies_ends_the_other_with_a_sentence(tmp_path: Path, lost: int) -> None:
    make_inputs(tmp_path)
    processes = start_nodes(make_config(tmp_path, "dies", max_steps=100_000, validate_every_steps=1000))
    wait_for_checkpoint(tmp_path, "dies", processes)
    processes[lost].kill()
    code, output = ended(processes)[1 - lost]
    assert code == EXIT_USER_ERROR, output
    who = "the first node of the training" if lost == 0 else "node 2 (n2) of the training"
    assert f"error: {who} is gone; checkpoints are kept: run the same command again" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert store_of(tmp_path, "dies").last() is not None


def test_a_mistake_is_one_sentence_of_the_first_node_and_nothing_is_written(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    config = make_config(tmp_path, "wrong", num_nodes=3)
    (code, output), other = ended(start_nodes(config))
    assert code == EXIT_USER_ERROR
    assert output.startswith("error: train.num_nodes is 3, but Slurm gave 2 nodes; ")
    assert len(output.splitlines()) == 1
    # srun takes the highest code of all, and ends the others with the first that fails.
    assert other == (EXIT_OK, "")
    assert not (tmp_path / "runs").exists()


def test_what_is_up_to_date_ends_all_nodes(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    config = make_config(tmp_path, "done", max_steps=2)
    assert finish(config)[0] == EXIT_OK
    (code, output), other = ended(start_nodes(config))
    assert code == EXIT_OK
    assert "up to date" in output
    assert other == (EXIT_OK, "")
