"""What is said before anything is submitted, with or without a cluster."""

import subprocess
from pathlib import Path

import pytest
from tests.conftest import environment

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\noutput_dir: {tmp_path}/runs\ndata: {{folder: {tmp_path}/data}}\n")
    return file


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("submit_pipeline.sh", ["--from", "train_mode"], "--from train_mode is not understood (did you mean train_mo"),
        ("submit_pipeline.sh", ["--plan"], "--plan is for slurm/07_grid_search.sh alone"),
        ("05_train_model.sh", ["--from", "split_data"], "--from begins a chain of stages"),
        ("07_grid_search.sh", ["--", "--array=0-3%2"], "--array after -- would take the place of the job arrays"),
        ("submit_pipeline.sh", ["--", "-a", "0-3"], "--array after -- would take the place of the job arrays"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(script: str, words: list[str], sentence: str, config: Path) -> None:
    command = ["bash", str(PROJECT_ROOT / "slurm" / script), str(config), *words]
    answer = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (2, 1, ""), answer.stderr
    assert sentence in answer.stderr
    assert "submit_jobs" not in answer.stderr
