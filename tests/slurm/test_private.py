"""The private Slurm itself: jobs run on both nodes, and a node that is taken down gives its job to another."""

from pathlib import Path

import pytest
from tests.slurm.private import PrivateSlurm

pytestmark = pytest.mark.component


def test_jobs_run_on_both_nodes(slurm: PrivateSlurm) -> None:
    answer = slurm.run("srun", "-N2", "--gpus-per-node=1", "bash", "-c", "echo $SLURMD_NODENAME")
    assert sorted(answer.stdout.split()) == ["n1", "n2"]
    number = slurm.submit("#!/bin/bash\nexit 3\n")
    (job,) = slurm.wait(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "3:0")


def test_a_job_survives_its_node(slurm: PrivateSlurm, tmp_path: Path) -> None:
    script = f"#!/bin/bash\necho $SLURMD_NODENAME >> {tmp_path}/nodes\n[ -e {tmp_path}/go ] || sleep 60\n"
    number = slurm.submit(script, "--requeue", "--nodelist=n1")
    slurm.wait_for(number, "RUNNING")
    (tmp_path / "go").touch()
    slurm.take_down("n1")
    slurm.wait_for(number, "PENDING")
    slurm.bring_up("n1")
    (job,) = slurm.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
