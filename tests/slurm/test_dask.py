"""Splitting and tokenising on Dask workers that are jobs of a real Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.data.documents import contents, write_parquet
from tests.slurm.private import PrivateSlurm

from retlab.section import PROJECT_ROOT

pytest.importorskip("dask_jobqueue")
pytestmark = pytest.mark.component


def configure(tmp_path: Path, name: str, **cluster: object) -> Path:
    """An experiment of a name over the same text."""
    folder = tmp_path / name
    config = {"name": name, "output_dir": str(folder / "runs"), "emissions": {"enabled": False}}
    config["data"] = {"source": str(tmp_path / "source"), "folder": str(folder / "data")}
    config["tokenizer"] = {"vocab_size": 300}
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps(config | {"cluster": cluster}))
    return file


def start(stage: str, config: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(PROJECT_ROOT / "src" / f"{stage}.py"), str(config), *words]
    # Nothing but the worker's own script tells it where RetLab is.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept)


def run(stage: str, config: Path, *words: str) -> str:
    process = start(stage, config, *words)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    return stdout


def running(slurm: PrivateSlurm) -> list[dict[str, str]]:
    return [job for job in slurm.jobs() if job["JobState"] == "RUNNING"]


def test_stages_on_worker_jobs_make_the_same_files(slurm: PrivateSlurm, tmp_path: Path) -> None:
    write_parquet(tmp_path / "source" / "a.parquet", [f"document {number} of text" for number in range(3000)])
    here, there = configure(tmp_path, "here"), configure(tmp_path, "there", dask="slurm", dask_jobs=2)
    for config in (here, there):
        run("download_data", config)
    run("split_data", here)

    # Ctrl-C while the workers come: no job is left, nothing half-written.
    stage = start("split_data", there)
    while not running(slurm) and stage.poll() is None:
        time.sleep(0.2)
    stage.send_signal(signal.SIGINT)
    stdout, stderr = stage.communicate(timeout=300)
    assert stage.returncode == 75, stdout + stderr
    slurm.wait(timeout=300)
    assert not list((tmp_path / "there" / "data").glob("*split*"))

    # The first worker job is taken away; another comes in its place.
    stage = start("split_data", there)
    while not running(slurm) and stage.poll() is None:
        time.sleep(0.2)
    slurm.run("scancel", running(slurm)[0]["JobId"])
    stdout, stderr = stage.communicate(timeout=300)
    assert stage.returncode == 0, stdout + stderr
    assert "2 Dask worker jobs" in stdout
    run("train_tokenizer", here)
    run("tokenize_data", here)
    tokenizer = f"tokenizer.folder={tmp_path}/here/data/tokenizer"
    assert "Dask worker jobs" in run("tokenize_data", there, tokenizer)
    slurm.wait(timeout=300)
    found = [
        {name: value for name, value in contents(tmp_path / place / "data").items() if name.endswith(".parquet")}
        for place in ("here", "there")
    ]
    assert found[0] == found[1]
    assert {name.split("/")[0] for name in found[0]} == {"raw", "splits", "tokens"}


def test_worker_jobs_that_slurm_refuses_or_never_starts_are_a_sentence(slurm: PrivateSlurm, tmp_path: Path) -> None:
    write_parquet(tmp_path / "source" / "a.parquet", [f"document {number} of text" for number in range(300)])
    config = configure(tmp_path, "lab", dask="slurm", dask_jobs=1)
    run("download_data", config)
    for words, sentence in {
        "cluster.partition=nosuch": "cluster.partition: nosuch",
        "cluster.partition=short cluster.time=1:00:00": "PartitionTimeLimit",
    }.items():
        process = start("split_data", config, *words.split())
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 2, stdout + stderr
        assert sentence in stderr
        assert "Traceback" not in stdout + stderr
        slurm.wait(timeout=300)
