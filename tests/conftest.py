"""What several test files share: one small trained experiment, made once for all test processes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retlab.section import PROJECT_ROOT

TINY = [
    "data.max_bytes=700000",
    "data.sequence_length=64",
    "tokenizer.vocab_size=400",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "train.max_steps=24",
    "train.micro_batch_size=2",
    "train.validate_every_steps=10",
    "train.validate_batches=4",
    "train.checkpoint_every_steps=5",
    "train.log_every_steps=1",
    "train.schedule.warmup_steps=5",
    "generate.max_new_tokens=10",
]
"""Overrides that make configs/quickstart.yaml a matter of seconds."""


@pytest.fixture(scope="session")
def tiny_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and runs/quickstart-retnet of a finished, tiny run of the whole pipeline."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    lab = shared / "tiny-lab"
    with open(shared / "tiny-lab.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (lab / "runs" / "quickstart-retnet" / "results.json").exists():
            run_pipeline(lab)
    return lab


def run_pipeline(lab: Path, *words: str) -> str:
    """Run configs/quickstart.yaml, made tiny, with its folders in `lab`; returns what it printed."""
    command = ["bash", str(PROJECT_ROOT / "scripts" / "run_pipeline.sh"), str(PROJECT_ROOT / "configs/quickstart.yaml")]
    command += [f"data.folder={lab}/data", f"output_dir={lab}/runs", *TINY, *words]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=lab.parent)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def environment() -> dict[str, str]:
    """The environment for scripts: they use the Python that runs the tests."""
    return os.environ | {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
