"""A training that is told to leave at the worst moments ends with the weights of one that was left alone."""

import time
from pathlib import Path

import pytest
from tests.slurm.experiments import pausing, prepared, script
from tests.slurm.private import PrivateSlurm

pytestmark = pytest.mark.component


def test_a_training_told_to_leave_again_and_again_ends_with_the_same_weights(
    slurm: PrivateSlurm, quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """USR1 before the time limit during imports, a validation and a save; then a requeue from outside in a step."""
    config = prepared(quickstart, tmp_path, {"time": "10:00", "environment": {"OMP_NUM_THREADS": 1}})
    moments = ["imports", "validation", "save", "step"]
    pausing(monkeypatch, tmp_path, ",".join(moments))
    # The user's own sbatch, in another folder than the checkout's, with a relative name.
    submitted = slurm.run(
        "sbatch", "--parsable", f"--chdir={tmp_path}", "--nodelist=n2",
        str(quickstart / "slurm" / "05_train_model.sh"), config.name, "train.log_every_steps=1",
    )  # fmt: skip
    number = int(submitted.stdout)
    for moment in moments:
        wait_for(slurm, tmp_path / moment, number)
        if moment == "step":
            slurm.run("scontrol", "requeue", str(number))
        else:
            slurm.run("scancel", "--signal=USR1", "--batch", str(number))
        # What is edited meanwhile is for later jobs.
        config.write_text(config.read_text().replace("learning_rate:", "learning_rate: 0.5 #"))
    (job,) = slurm.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "4"), slurm.report(number)
    log = (tmp_path / f"slurm-{number}.out").read_text()
    assert log.count("told to leave: back into the queue") == 3, log
    assert (tmp_path / "runs" / "again" / "slurm" / f"train_model-{number}.log").read_text() == log
    ours, theirs = (folder / "model" / "model.safetensors" for folder in (
        tmp_path / "runs" / "again", quickstart / "runs" / "quickstart-retnet"
    ))  # fmt: skip
    assert ours.read_bytes() == theirs.read_bytes()
    status = script(quickstart, "status.sh", str(config))
    assert "train_model               done" in status.stdout, status.stdout


def wait_for(slurm: PrivateSlurm, file: Path, number: int) -> None:
    """Wait until the training has come to a moment."""
    end = time.monotonic() + 300
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} did not come\n{slurm.report(number)}"
        time.sleep(0.1)
