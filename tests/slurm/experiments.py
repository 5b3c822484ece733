"""Experiments for the private Slurm, and the scripts that submit them."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.conftest import environment


def script(checkout: Path, name: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script of slurm/ in the environment of the test."""
    command = ["bash", str(checkout / "slurm" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300)


def prepared(quickstart: Path, folder: Path, cluster: dict[str, Any]) -> Path:
    """The configuration of the quickstart's RetNet, with data and tokenizer of the quickstart and runs of its own."""
    values = yaml.safe_load((quickstart / "runs" / "quickstart-retnet" / "config.yaml").read_text())
    values |= {"name": "again", "output_dir": str(folder / "runs"), "cluster": cluster}
    values["emissions"]["enabled"] = False
    file = folder / "again.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def pausing(monkeypatch: Any, folder: Path, moments: str) -> Path:
    """Make the training wait at these moments; returns the folder of their files."""
    stand_in = Path(__file__).parents[1] / "stand_ins" / "pauses"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stand_in), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PAUSE_AT", moments)
    monkeypatch.setenv("PAUSE_FOLDER", str(folder))
    return folder
