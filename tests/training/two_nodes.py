"""A training on two nodes that are both this machine: started as srun starts it on each, without Slurm."""

import itertools
import socket
from pathlib import Path

from tests.forked import Script

from retlab.section import PROJECT_ROOT

_JOBS = itertools.count(1)


def start_nodes(config: Path, *words: str, nodes: int = 2) -> list[Script]:
    """The stage once for each node, the first node's process first."""
    job = next(_JOBS)
    shared = {
        "SLURM_JOB_ID": str(job), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes), "SLURM_STEP_ID": "0",
        "SLURM_TASKS_PER_NODE": f"1(x{nodes})", "SLURM_STEP_TASKS_PER_NODE": f"1(x{nodes})",
        "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NUM_TASKS": str(nodes), "SLURM_STEP_NODELIST": "n[1-2]",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    script = PROJECT_ROOT / "src" / "train_model.py"
    return [
        Script(
            script, str(config), *words, **shared,
            SLURM_PROCID=str(node), SLURM_NODEID=str(node), SLURMD_NODENAME=f"n{node + 1}",
        )
        for node in range(nodes)
    ]  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def ended(processes: list[Script], timeout: float = 600) -> list[tuple[int, str]]:
    """Exit code and output of each node's process."""
    outputs = [process.communicate(timeout)[0] for process in processes]
    return [(process.wait(), output) for process, output in zip(processes, outputs, strict=True)]
