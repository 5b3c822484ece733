"""A training on the two nodes of the private Slurm, joined by gloo through srun."""

import subprocess
import time
from pathlib import Path

import pytest
import torch
from tests.conftest import environment
from tests.slurm.experiments import pausing
from tests.slurm.private import PrivateSlurm
from tests.training.experiment import finish, make_config, make_inputs
from tests.training.test_two_nodes import NO_DROPOUT, weights

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component


def test_two_nodes_train_as_one_also_when_preempted(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """USR1 before the time limit at the first step: both nodes save and leave, and the job goes on by itself."""
    make_inputs(tmp_path)
    code, output = finish(make_config(tmp_path, "one", NO_DROPOUT))
    assert code == 0, output
    config = make_config(tmp_path, "two", NO_DROPOUT)
    pausing(monkeypatch, tmp_path, "step")
    script = str(PROJECT_ROOT / "slurm" / "05_train_model.sh")
    words = ["sbatch", "--parsable", "--nodes=2", f"--chdir={tmp_path}", script, str(config)]
    answer = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    number = int(answer.stdout)
    end = time.monotonic() + 300
    while not (tmp_path / "step").exists():
        assert time.monotonic() < end, slurm.report(number)
        time.sleep(0.1)
    slurm.run("scancel", "--signal=USR1", "--batch", str(number))
    (job,) = slurm.wait(number, timeout=300)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), slurm.report(number)
    log = (tmp_path / f"slurm-{number}.out").read_text()
    assert "2 nodes (n1, n2), 1 process on each" in log
    assert log.count("interrupted: saved after step 1 of 30") == 1, log
    assert "continuing after step 1" in log
    for key, weight in weights(tmp_path, "one").items():
        torch.testing.assert_close(weight, weights(tmp_path, "two")[key], rtol=1e-4, atol=1e-5)


def test_other_nodes_than_the_configuration_says_are_one_sentence(slurm: PrivateSlurm, tmp_path: Path) -> None:
    make_inputs(tmp_path)
    config = make_config(tmp_path, "wrong", num_nodes=1)
    words = ["sbatch", "--wait", "--nodes=2", f"--chdir={tmp_path}", "--output=log.txt"]
    script = str(PROJECT_ROOT / "slurm" / "05_train_model.sh")
    answer = subprocess.run([*words, script, str(config)], env=environment(), capture_output=True, timeout=300)
    log = (tmp_path / "log.txt").read_text()
    assert answer.returncode == 2, log + slurm.report()
    assert log.count("error: train.num_nodes is 1, but Slurm gave 2 nodes;") == 1, log
    assert "Traceback" not in log
    assert not (tmp_path / "runs" / "wrong" / "config.yaml").exists()
