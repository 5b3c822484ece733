"""What is missing for a stage is seen before it is submitted, with its key and the stage to begin with."""

from pathlib import Path

import pytest

from retlab.artifacts import write_json
from retlab.cluster import queue
from retlab.cluster.checks import check_stages
from retlab.cluster.notes import JobNote, write_note
from retlab.cluster.queue import Job
from retlab.config import ExperimentConfig, load_config
from retlab.data.settings import SPLITS
from retlab.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    (tmp_path / "one.yaml").write_text(f"name: one\noutput_dir: {tmp_path}/runs\ndata: {{folder: {tmp_path}/data}}\n")
    return load_config(tmp_path / "one.yaml")


def _finish(config: ExperimentConfig, *names: str) -> None:
    assert config.data.folder is not None
    for name in names:
        (config.data.folder / name).mkdir(parents=True)
        write_json(config.data.folder / name / "manifest.json", {"outputs": {}})


@pytest.mark.parametrize(
    ("finished", "stage", "key", "first"),
    [
        ([], "train_model", "tokenizer.folder: ", "download_data"),
        (["raw"], "train_model", "tokenizer.folder: ", "split_data"),
        (["raw", "splits", "tokenizer", "tokens/train"], "train_model", "data.tokens_folder: ", "tokenize_data"),
        ([], "split_data", "data.folder: ", "download_data"),
        (["splits", *(f"tokens/{split}" for split in SPLITS)], "evaluate_model", "output_dir: ", "train_tokenizer"),
    ],
)
def test_a_missing_input_is_named(
    config: ExperimentConfig, finished: list[str], stage: str, key: str, first: str
) -> None:
    _finish(config, *finished)
    with pytest.raises(UserError) as refusal:
        check_stages(config, [stage], [], False)
    assert str(refusal.value).startswith(key)
    assert str(refusal.value).endswith(f"--from {first}")
    # The chain has it made, and a job that the user waits for may make it.
    check_stages(config, [first, stage], ["--dependency=afterok:3"], False)
    check_stages(config, [stage], ["-d", "afterok:3"], False)


def test_what_a_job_in_the_queue_makes_is_not_missing(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"job": 3, "name": "download_data-one", "stage": "download_data", "log": "x", "config": "one.yaml"}
    write_note(config, JobNote(**values, submitted="2026-01-01T00:00:00+00:00"))
    state = "RUNNING"
    monkeypatch.setattr(queue, "jobs", lambda _ids: [Job(3, None, state, "None", "", "N/A", "download_data-one")])
    check_stages(config, ["split_data"], [], False)
    state = "FAILED"
    with pytest.raises(UserError, match=r"data\.folder"):
        check_stages(config, ["split_data"], [], False)


def test_a_training_of_another_model_is_refused_unless_forced(config: ExperimentConfig) -> None:
    (config.run_folder / "model").mkdir(parents=True)
    write_json(config.run_folder / "model" / "config.json", {"model_type": "retlab_retnet", "hidden_size": 7})
    with pytest.raises(UserError, match="training of another model"):
        check_stages(config, ["download_data", "train_model"], [], False)
    check_stages(config, ["download_data", "train_model"], [], True)
