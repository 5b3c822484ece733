"""The vocabulary and the matched size that a model section leaves open."""

from pathlib import Path

import pytest

from retlab.config import ExperimentConfig, load_config
from retlab.config_model import resolve_model, vocabulary_size
from retlab.errors import UserError


def load(folder: Path, name: str, text: str) -> ExperimentConfig:
    file = folder / f"{name}.yaml"
    file.write_text(f"name: {name}\ndata: {{folder: {folder}/data}}\n{text}")
    return load_config(file)


REFERENCE = "tokenizer: {vocab_size: 1000}\nmodel: {architecture: retnet, hidden_size: 64, num_hidden_layers: 3}"


@pytest.mark.parametrize("width", [64, 56])
def test_the_fitted_width_gives_the_same_size_within_one_percent(tmp_path: Path, width: int) -> None:
    from retlab.models import build_model

    reference = load(tmp_path, "reference", REFERENCE)
    text = f"model: {{architecture: transformer, hidden_size: {width}, match_parameters_of: {tmp_path}/reference.yaml}}"
    config = load(tmp_path, "other", f"tokenizer: {{vocab_size: 1000}}\n{text}")
    resolved = resolve_model(config)
    assert resolved.model.match_parameters_of is None
    sizes = [
        sum(parameter.numel() for parameter in build_model(one.model, vocabulary_size(one)).parameters())
        for one in (reference, resolved)
    ]
    assert abs(sizes[1] / sizes[0] - 1) <= 0.01
    assert resolve_model(resolved) == resolved


def test_a_size_that_no_width_reaches_is_said(tmp_path: Path) -> None:
    load(tmp_path, "reference", REFERENCE)
    text = f"model: {{architecture: transformer, hidden_size: 512, match_parameters_of: {tmp_path}/reference.yaml}}"
    with pytest.raises(UserError, match="match_parameters_of: .*closest"):
        resolve_model(load(tmp_path, "other", text))


def test_a_reference_that_is_nothing_is_said(tmp_path: Path) -> None:
    text = f"model: {{architecture: transformer, match_parameters_of: {tmp_path}/nothing}}"
    with pytest.raises(UserError, match="no configuration, run folder or model folder"):
        resolve_model(load(tmp_path, "other", text))


def test_a_model_folder_counts_by_its_weights(tmp_path: Path) -> None:
    from retlab.models import build_model

    reference = load(tmp_path, "reference", REFERENCE)
    build_model(reference.model, 1000).save_pretrained(tmp_path / "run" / "model")
    text = "tokenizer: {vocab_size: 1000}\nmodel: {architecture: transformer, hidden_size: 64, match_parameters_of: "
    by_weights = resolve_model(load(tmp_path, "a", f"{text}{tmp_path}/run}}"))
    by_config = resolve_model(load(tmp_path, "b", f"{text}{tmp_path}/reference.yaml}}"))
    assert by_weights.model == by_config.model


def test_the_vocabulary_is_the_models_the_tokenizers_or_that_of_the_one_taken_over(tmp_path: Path) -> None:
    assert vocabulary_size(load(tmp_path, "a", "tokenizer: {vocab_size: 700}")) == 700
    text = "model: {architecture: retnet, vocab_size: 800}\n"
    assert vocabulary_size(load(tmp_path, "b", text + "tokenizer: {vocab_size: 700}")) == 800
    config = load(tmp_path, "c", "tokenizer: {from_pretrained: somewhere}")
    assert vocabulary_size(config) is None
    folder = tmp_path / "data" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2}]}')
    assert vocabulary_size(config) == 3
    (folder / "tokenizer.json").write_text('{"model": {"vocab": [["a", 0], ["b", -1]]}, "added_tokens": [{"id": 0}]}')
    assert vocabulary_size(config) == 2
