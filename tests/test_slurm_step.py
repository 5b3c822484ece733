"""What Slurm 22.05 really sets, shortened to what is read: copied from jobs on a cluster of two nodes."""

import pytest

from retlab.slurm_step import Step, current_step, gpus_on_node, job_nodes

BATCH = {
    "SLURM_JOB_ID": "3", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0",
}  # fmt: skip
STEP = BATCH | {
    "SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GTIDS": "1",
}  # fmt: skip
SINGLE_IN_TWO_NODES = STEP | {
    "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1",
    "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_TASKS_PER_NODE": "1",
}  # fmt: skip
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "4", "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "1",
}  # fmt: skip
SUBMITTED_FROM_A_STEP = STEP | {
    "SLURM_JOB_ID": "6", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "1",
}  # fmt: skip


def test_a_task_of_a_step_knows_its_node() -> None:
    step = current_step(STEP)
    assert step == Step("3", "0", 2, 2, 1, 1, "n[1-2]")
    assert step.one_task_a_node


def test_several_tasks_on_a_node_are_seen() -> None:
    tasks = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    step = current_step(STEP | tasks)
    assert step is not None
    assert not step.one_task_a_node


@pytest.mark.parametrize("environment", [{}, BATCH, ARRAY, SUBMITTED_FROM_A_STEP, {"SLURM_PROCID": "1"}])
def test_what_srun_did_not_start_is_no_step(environment: dict[str, str]) -> None:
    assert current_step(environment) is None


def test_a_step_of_one_task_is_its_own_allocation() -> None:
    step = current_step(SINGLE_IN_TWO_NODES)
    assert step is not None
    assert (step.nodes, step.tasks, step.rank) == (1, 1, 0)


def test_nodes_of_the_job() -> None:
    assert job_nodes({}) is None
    assert job_nodes(BATCH) == 2
    assert job_nodes(ARRAY) == 1


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({}, None),
        ({"SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_gpus_of_the_allocation(variables: dict[str, str], gpus: int | None) -> None:
    assert gpus_on_node(BATCH | variables) == gpus
    assert gpus_on_node(variables) is None
