"""A stage says that what it builds on was made with other settings, or from something else."""

import json
from pathlib import Path

import pytest

from retlab.config import ExperimentConfig, load_config
from retlab.upstream import (
    download_settings,
    outdated,
    outdated_model,
    split_settings,
    tokenizer_settings,
    train_settings,
)


def leave(folder: Path, settings: dict[str, object], inputs: dict[str, str], content: str = "1") -> None:
    """What a stage with these settings and inputs would leave of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {"a": {"sha256": content}}
    manifest = {"settings": settings, "inputs": inputs, "outputs": outputs}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load(folder: Path, *overrides: str) -> ExperimentConfig:
    (folder / "c.yaml").write_text(
        f"name: n\noutput_dir: {folder}/runs\ndata: {{folder: {folder}/data}}\nemissions: {{enabled: false}}\n"
    )
    return load_config(folder / "c.yaml", overrides)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything up to the model, made from one configuration."""
    from retlab.artifacts import fingerprint

    monkeypatch.chdir(tmp_path)
    config = load(tmp_path)
    data, tokenizer, shards = config.data, config.data.splits_folder.parent / "tokenizer", []
    leave(data.raw_folder, download_settings(config), {})
    leave(data.splits_folder, split_settings(config), {str(data.raw_folder): fingerprint(data.raw_folder)})
    splits = {str(data.splits_folder): fingerprint(data.splits_folder)}
    leave(tokenizer, tokenizer_settings(config), splits)
    for split in ("train", "validation", "test"):
        shards.append(data.tokens_folder / split)
        leave(shards[-1], {"split": split}, splits | {str(tokenizer): fingerprint(tokenizer)})
    leave(config.run_folder / "model", train_settings(config), {str(one): fingerprint(one) for one in shards[:2]})
    return tmp_path


def notes(lab: Path, stage: str, *overrides: str) -> list[str]:
    config = load(lab, *overrides)
    inputs = [config.data.shards_folder("train"), config.data.shards_folder("validation")]
    return outdated(config, stage, inputs)


def test_nothing_is_said_where_everything_fits(lab: Path) -> None:
    for stage in ("download_data", "split_data", "train_tokenizer", "tokenize_data", "train_model", "evaluate_model"):
        assert notes(lab, stage) == []
        assert notes(lab, stage, "train.tensorboard=false", "evaluate.batch_size=3", "data.loader_workers=1") == []


def test_other_settings_are_named_with_the_script_that_takes_them_in(lab: Path) -> None:
    (note,) = notes(lab, "train_model", "data.max_documents=30", "data.format=text")
    assert note.startswith(
        "note: data/raw was made with data.format 'auto' and not 'text', with data.max_documents null and not 30;"
    )
    assert note.endswith("scripts/01_download_data.sh")
    assert notes(lab, "download_data", "data.max_documents=30") == []
    assert "03_train_tokenizer.sh" in notes(lab, "tokenize_data", "tokenizer.vocab_size=300")[0]
    (note,) = notes(lab, "evaluate_model", "train.learning_rate=0.5")
    assert "runs/n/model was made with train.learning_rate 0.001 and not 0.5" in note
    (note,) = notes(lab, "train_model", "tokenizer.from_pretrained=gpt2")
    assert "tokenizer.from_pretrained null and not 'gpt2'" in note


def test_of_the_model_alone_nothing_is_said_of_the_data(lab: Path) -> None:
    assert outdated_model(load(lab, "data.max_documents=30", "data.split_seed=7")) == []
    (note,) = outdated_model(load(lab, "model.architecture=transformer"))
    assert note.startswith("note: runs/n/model was made with model.architecture 'retnet' and not 'transformer'")
    # Neither the keys that only one of them has, nor a command that would be refused.
    assert note.count("with model.") == 1
    assert note.endswith("for the other model choose another name, or run bash " + note.split("bash ")[-1])
    assert note.endswith("05_train_model.sh with --force")


def test_a_width_that_was_matched_is_no_difference(lab: Path) -> None:
    assert notes(lab, "evaluate_model", "model.match_parameters_of=runs/other") == []


def test_what_was_made_from_something_that_changed_since_is_named(lab: Path) -> None:
    leave(lab / "data" / "raw", download_settings(load(lab)), {}, content="2")
    (note,) = notes(lab, "train_model")
    assert note.startswith("note: data/splits was made from what data/raw held before;")
    assert note.endswith("scripts/02_split_data.sh")
