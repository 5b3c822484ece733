"""What Slurm says of the place where this process runs: its job, its step, its GPUs."""

import os
from collections.abc import Mapping
from typing import NamedTuple

START = "srun --ntasks-per-node=1 --kill-on-bad-exit=1 python src/train_model.py CONFIG"
"""How a training on several nodes is started."""


class Step(NamedTuple):
    """The job step that srun started this process in."""

    job: str
    number: str
    nodes: int
    tasks: int
    rank: int
    "Which of the tasks this process is."
    node: int
    "Which of the nodes this process is on."
    node_list: str
    "Names of the nodes as Slurm writes them, such as n[1-2]."

    @property
    def one_task_a_node(self) -> bool:
        """Whether every node has one task."""
        return self.tasks == self.nodes


def current_step(environment: Mapping[str, str] = os.environ) -> Step | None:
    """The step of this process, or None where srun did not start it.

    The script of a batch job is task 0 of no step. A job that was submitted from inside a step inherits the variables
    of that step beside its own, and the two differ.
    """
    pairs = {"SLURM_STEP_NUM_NODES": "SLURM_NNODES", "SLURM_STEP_TASKS_PER_NODE": "SLURM_TASKS_PER_NODE"}
    if any(environment.get(step) is None or environment[step] != environment.get(own) for step, own in pairs.items()):
        return None
    try:
        return Step(
            environment["SLURM_JOB_ID"],
            environment["SLURM_STEP_ID"],
            int(environment["SLURM_STEP_NUM_NODES"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_NODEID"]),
            environment["SLURM_STEP_NODELIST"],
        )
    except (KeyError, ValueError):
        return None


def job_nodes(environment: Mapping[str, str] = os.environ) -> int | None:
    """Nodes of the job that this process runs in, or None outside of a job."""
    if "SLURM_JOB_ID" not in environment:
        return None
    return _number(environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES"))


def gpus_on_node(environment: Mapping[str, str] = os.environ) -> int | None:
    """GPUs that the job or step has on this node, or None where Slurm gave none or this is no job.

    A cluster that does not count its GPUs may still hide those of others.
    """
    if "SLURM_JOB_ID" not in environment:
        return None
    if "SLURM_GPUS_ON_NODE" in environment:
        return _number(environment["SLURM_GPUS_ON_NODE"])
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return len([name for name in visible if name not in ("", "-1", "NoDevFiles")]) or None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) > 0 else None
