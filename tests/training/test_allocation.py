"""Numbers of nodes and processes: as the YAML says, or as Slurm gives; where the two differ, one sentence."""

import pytest
from tests.test_slurm_step import ARRAY, BATCH, SINGLE_IN_TWO_NODES, STEP

from retlab.errors import UserError
from retlab.nodes import Connection, Nodes, OtherNode
from retlab.training.allocation import allocated
from retlab.training.kernels import micro_batch_size
from retlab.training.settings import TrainSection


def nodes(count: int, gpus: int | None = None) -> Nodes:
    """The nodes as the first one sees them once the others came."""
    found = Nodes()
    found.count = count
    connection = Connection.__new__(Connection)
    found.others = [OtherNode(connection, {"node": n, "name": f"n{n + 1}", "gpus": gpus}) for n in range(1, count)]
    return found


def numbers(count: int, environment: dict[str, str], gpus: int | None = None, **train: object) -> tuple[object, ...]:
    said: list[str] = []
    section = allocated(TrainSection.model_validate(train), nodes(count, gpus), said.append, environment)
    return section.num_nodes, section.devices, said


FIRST = STEP | {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n1"}
GPUS = {"SLURM_GPUS_ON_NODE": "4"}


def test_without_slurm_it_is_one_process_on_one_machine() -> None:
    assert numbers(1, {}) == (1, 1, [])
    assert numbers(1, {"CUDA_VISIBLE_DEVICES": "0,1"}) == (1, 1, [])
    assert numbers(1, {}, devices=2) == (1, 2, [])


@pytest.mark.parametrize("environment", [ARRAY, SINGLE_IN_TWO_NODES])
def test_a_job_of_one_node_without_gpus(environment: dict[str, str]) -> None:
    assert numbers(1, environment) == (1, 1, [])
    assert numbers(1, environment, devices=2, num_nodes=1) == (1, 2, [])


def test_gpus_and_nodes_come_from_the_allocation() -> None:
    assert numbers(1, ARRAY | GPUS) == (1, 4, ["4 processes, one for each GPU of the job"])
    assert numbers(1, ARRAY | GPUS, device="cpu") == (1, 1, [])
    assert numbers(2, FIRST | GPUS, gpus=4) == (2, 4, ["2 nodes (n1, n2), 4 processes on each"])
    assert numbers(2, FIRST | GPUS, gpus=4, devices=4, num_nodes=2)[:2] == (2, 4)


def test_a_batch_that_does_not_share_evenly_is_kept_and_said() -> None:
    said = numbers(1, ARRAY | {"SLURM_GPUS_ON_NODE": "3"}, batch_size=32)[2]
    assert said[-1] == "a step keeps its 32 windows: 3 processes share them out unevenly"  # type: ignore[index]


@pytest.mark.parametrize(
    ("count", "environment", "train", "parts"),
    [
        (1, {}, {"num_nodes": 2}, ["train.num_nodes is 2", "one machine without Slurm"]),
        (1, BATCH, {"num_nodes": 2}, ["train.num_nodes is 2", "srun --ntasks-per-node=1"]),
        (1, BATCH, {"num_nodes": 1}, ["train.num_nodes is 1", "the job has 2 nodes"]),
        (1, ARRAY, {"num_nodes": 2}, ["train.num_nodes is 2", "Slurm gave 1 node;", "--nodes=2"]),
        (2, FIRST, {"num_nodes": 3}, ["train.num_nodes is 3", "Slurm gave 2 nodes;", "--nodes=3"]),
        (2, FIRST, {"num_nodes": 1}, ["train.num_nodes is 1", "Slurm gave 2 nodes;", "--nodes=1"]),
        (1, ARRAY | GPUS, {"devices": 2}, ["train.devices is 2", "Slurm gave 4 GPUs", "--gpus-per-node=2"]),
    ],
)
def test_a_mismatch_names_key_and_both_numbers(
    count: int, environment: dict[str, str], train: dict[str, int], parts: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        numbers(count, environment, **train)
    for part in parts:
        assert part in str(error.value)


def test_nodes_with_other_numbers_of_gpus() -> None:
    with pytest.raises(UserError, match=r"different numbers of GPUs \(n1 4, n2 2\)"):
        numbers(2, FIRST | GPUS, gpus=2)


def test_one_process_in_a_job_of_two_nodes_says_so() -> None:
    count, devices, said = numbers(1, BATCH)
    assert (count, devices) == (1, 1)
    assert "the job has 2 nodes, and this training takes one" in str(said)


@pytest.mark.parametrize(
    ("processes", "micro", "found"),
    [(1, None, 32), (2, None, 16), (3, None, 11), (1, 8, 8), (3, 8, 6), (5, 8, 7), (64, 8, 1)],
)
def test_micro_batches_are_no_larger_than_asked(processes: int, micro: int | None, found: int) -> None:
    section = TrainSection(batch_size=32, micro_batch_size=micro, devices=processes, num_nodes=1)
    assert micro_batch_size(section) == found
