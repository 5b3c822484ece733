"""Stages 1 and 2 as a user runs them: what they leave, when they do nothing, and how they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.data.documents import contents, texts, write_parquet

from retlab.artifacts import read_manifest
from retlab.data.settings import SPLITS
from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component


class Lab:
    """An experiment on a folder of text."""

    def __init__(self, root: Path) -> None:
        self.source, self.data, self.config = root / "source", root / "data", root / "lab.yaml"
        data = {"source": str(self.source), "folder": str(self.data)}
        values: dict[str, Any] = {"name": "lab", "output_dir": str(root / "runs"), "data": data}
        self.config.write_text(json.dumps({**values, "emissions": {"enabled": False}}))

    def run(self, stage: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROJECT_ROOT / "src" / f"{stage}.py"), str(self.config), *words]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def refusal(answer: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a stage that refuses."""
    assert answer.returncode == 2, answer.stdout + answer.stderr
    sentences = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    return sentences[0]


def test_new_files_move_no_document_and_nothing_is_done_twice(lab: Lab) -> None:
    write_parquet(lab.source / "b.parquet", [f"b {number}" for number in range(300)])
    for stage in ("download_data", "split_data"):
        answer = lab.run(stage)
        assert answer.returncode == 0, answer.stderr
    before = {name: set(texts(lab.data / "splits" / name)) for name in SPLITS}
    files = contents(lab.data)
    for stage in ("download_data", "split_data"):
        assert "up to date" in lab.run(stage).stdout
    assert contents(lab.data) == files

    write_parquet(lab.source / "a.parquet", [f"a {number}" for number in range(300)])
    assert "source files: 1 -> 2" in lab.run("download_data").stdout
    assert "changed since the last run" in lab.run("split_data").stdout
    after = {name: set(texts(lab.data / "splits" / name)) for name in SPLITS}
    assert all(before[name] < after[name] for name in SPLITS)
    manifest = read_manifest(lab.data / "splits")
    assert manifest is not None
    assert manifest["report"]["documents"] == 600
    assert manifest["report"]["splits"]["train"]["documents"] == len(after["train"])
    assert sorted(path.name for path in lab.data.iterdir()) == ["raw", "splits"]


def test_truncated_file_is_named_and_the_earlier_output_stays(lab: Lab) -> None:
    write_parquet(lab.source / "a.parquet", ["a"] * 50)
    assert lab.run("download_data").returncode == 0
    files = contents(lab.data / "raw")
    for name in "bc":
        write_parquet(lab.source / f"{name}.parquet", [name] * 50)
    broken = lab.source / "b.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    assert "b.parquet is truncated or damaged" in refusal(lab.run("download_data"))
    assert contents(lab.data / "raw") == files
    broken.unlink()
    assert lab.run("download_data").returncode == 0
    assert texts(lab.data / "raw") == ["a"] * 50 + ["c"] * 50
    assert sorted(path.name for path in lab.data.iterdir()) == ["raw"]


def test_split_needs_the_download_and_enough_documents(lab: Lab) -> None:
    assert "scripts/01_download_data.sh" in refusal(lab.run("split_data"))
    write_parquet(lab.source / "a.parquet", ["only one"])
    assert lab.run("download_data").returncode == 0
    assert "of 1 document, " in refusal(lab.run("split_data"))
    assert sorted(path.name for path in lab.data.iterdir()) == ["raw"]
