"""The state of each stage from manifests, notes and the queue."""

from pathlib import Path

import pytest

from retlab.artifacts import write_json
from retlab.cluster import queue, status
from retlab.cluster.notes import JobNote, StartNote, notes_folder, write_note, write_start
from retlab.cluster.queue import Job
from retlab.config import ExperimentConfig, load_config


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    (tmp_path / "one.yaml").write_text(f"name: one\noutput_dir: {tmp_path}/runs\ndata: {{folder: {tmp_path}/data}}\n")
    return load_config(tmp_path / "one.yaml")


def _submitted(config: ExperimentConfig, number: int, stage: str, parts: tuple[str, ...] = ()) -> None:
    log = str(notes_folder(config) / (f"{stage}-%A_%a.log" if parts else f"{stage}-%j.log"))
    values = {"job": number, "name": f"{stage}-one", "stage": stage, "parts": list(parts), "log": log}
    write_note(config, JobNote(**values, config="one.yaml", submitted=f"2026-01-01T00:00:{number:02}+00:00"))


def _states(config: ExperimentConfig, found: list[Job], monkeypatch: pytest.MonkeyPatch) -> dict[str, status.Status]:
    monkeypatch.setattr(queue, "jobs", lambda _ids: found)
    rows, trouble = status.stages(config)
    assert trouble is None
    return {row.label: row for row in rows}


def test_every_state_is_told_apart(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.data.folder is not None
    raw = config.data.raw_folder
    raw.mkdir(parents=True)
    manifest = {"stage": "download_data", "settings": {}, "inputs": {}, "outputs": {}}
    write_json(raw / "manifest.json", manifest | {"volatile": {"started": "2026-01-01T00:00:00+00:00", "seconds": 3}})
    monkeypatch.setattr(status, "changes_of", lambda *_: [])
    _submitted(config, 2, "split_data")
    _submitted(config, 3, "train_tokenizer")
    _submitted(config, 4, "tokenize_data", ("train", "validation", "test"))
    _submitted(config, 5, "train_model")
    folder = notes_folder(config)
    write_json(folder / "2.ended.json", {"code": 2, "outcome": "failed", "ended": "2026-01-01T00:01:00+00:00"})
    (folder / "split_data-2.log").write_text("one\n10 %\r20 %\nerror: no text\n\n")
    write_json(folder / "4_0.ended.json", {"code": 75, "outcome": "told to end", "ended": "2026-01-01T00:01:00+00:00"})
    (folder / "4_1.log").write_text("killed\n")
    write_start(config, "4_1", StartNote(log=str(folder / "4_1.log"), node="n1", restarts=0, started="2026-01-01"))
    live = [
        Job(3, None, "PENDING", "PartitionNodeLimit", "", "N/A", "train_tokenizer-one"),
        Job(4, 2, "RUNNING", "None", "n2", "2026-01-01T00:02:00", "tokenize_data-one"),
        # Another cluster's job of the same number.
        Job(5, None, "RUNNING", "None", "n2", "2026-01-01T00:02:00", "something else"),
    ]
    rows = _states(config, live, monkeypatch)
    assert {label: row.state for label, row in rows.items()} == {
        "download_data": "done", "split_data": "failed", "train_tokenizer": "pending",
        "tokenize_data train": "cancelled", "tokenize_data validation": "failed", "tokenize_data test": "running",
        "train_model": "cancelled", "evaluate_model perplexity": "not submitted",
        "evaluate_model samples": "not submitted",
    }  # fmt: skip
    assert "exit code 2" in rows["split_data"].detail
    assert rows["split_data"].tail == ["one", "20 %", "error: no text"]
    assert "cluster.time, nodes" in rows["train_tokenizer"].detail
    assert rows["tokenize_data validation"].tail == ["killed"]
    assert "n2 since 2026-01-01 00:02:00" in rows["tokenize_data test"].detail
    assert max(map(len, status.table("one", list(rows.values())).splitlines())) < 100


@pytest.mark.parametrize(
    ("state", "by"),
    [
        ("CANCELLED", "scancel"), ("TIMEOUT", "the time limit"), ("NODE_FAIL", "its node going down"),
        (None, "scancel, the time limit or its node going down"),
    ],
)  # fmt: skip
def test_what_told_a_job_to_end_is_said(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, state: str | None, by: str
) -> None:
    _submitted(config, 2, "train_model")
    end = {"code": 75, "outcome": "told to end", "ended": "2026-01-01T00:01:00+00:00"}
    write_json(notes_folder(config) / "2.ended.json", end)
    found = [Job(2, None, state, "None", "n1", "N/A", "train_model-one")] if state else []
    row = _states(config, found, monkeypatch)["train_model"]
    assert (row.state, row.detail) == ("cancelled", f"job 2: told to end by {by}; saved")


def test_without_squeue_the_files_still_tell(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _submitted(config, 2, "split_data")
    monkeypatch.setenv("PATH", "/nowhere")
    rows, trouble = status.stages(config)
    assert trouble is not None
    assert "squeue is not installed here" in trouble
    assert next(row.state for row in rows if row.stage == "split_data") == "cancelled"


@pytest.mark.parametrize(
    ("reason", "known"),
    [
        ("PartitionTimeLimit", True), ("BadConstraints", True), ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", True),
        ("AssocGrpCpuLimit", True), ("QOSMaxJobsPerUserLimit", True), ("DependencyNeverSatisfied", True),
        ("Job's account not known, so it can't use this partition (paid allows research)", True),
        ("Priority", False), ("Resources", False), ("Dependency", False), ("None", False), ("BeginTime", False),
    ],
)  # fmt: skip
def test_reasons_that_waiting_does_not_mend_have_advice(reason: str, known: bool) -> None:
    assert (queue.trouble(reason) is not None) == known
