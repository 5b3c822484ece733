"""Which configuration values decide what each stage makes, and whether what lies there was made with them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from retlab.artifacts import fingerprint_of, read_manifest
from retlab.config import ExperimentConfig
from retlab.config_model import vocabulary_size
from retlab.data.settings import SplitName
from retlab.section import absolute, script, shown_path
from retlab.training.request import deciding_settings
from retlab.yaml_file import shown


def download_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the raw documents."""
    decisive = {"source", "format", "text_column", "max_documents", "max_bytes", "on_bad_line"}
    return {f"data.{key}": value for key, value in config.data.model_dump(mode="json", include=decisive).items()}


def split_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the splits, beside the raw documents."""
    decisive = {"splits", "split_seed", "shuffle"}
    return {f"data.{key}": value for key, value in config.data.model_dump(mode="json", include=decisive).items()}


def tokenizer_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the tokenizer, beside the train split."""
    section = config.tokenizer
    decisive = {"from_pretrained"} if section.from_pretrained else {"vocab_size", "min_frequency", "max_bytes"}
    return {f"tokenizer.{key}": value for key, value in section.model_dump(include=decisive).items()}


def train_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the trained model, beside the token shards; a model to match is resolved already."""
    settings = deciding_settings(config.seed, config.data, config.model, config.train)
    return settings | {"model.vocab_size": vocabulary_size(config)}


_SETTINGS: dict[str, Callable[[ExperimentConfig], dict[str, Any]]] = {
    "download_data": download_settings,
    "split_data": split_settings,
    "train_tokenizer": tokenizer_settings,
    "train_model": train_settings,
}
_ARCHITECTURE = "model.architecture"
# The sizes that `model.match_parameters_of` decides and the training writes down.
_MATCHED = {"model.match_parameters_of", "model.intermediate_size", "model.blocks"}


def outdated(config: ExperimentConfig, stage: str, inputs: list[Path]) -> list[str]:
    """How the folders that a stage builds on differ from what this configuration would make: a line for each.

    Args:
        config: the whole configuration.
        stage: name of the stage that is about to read.
        inputs: the folders that it reads itself; of the token shards only these are looked at.
    """
    before = _folders_before(config, stage)
    read = [(name, folder) for name, folder in before if name != "tokenize_data" or folder in inputs]
    return [line for name, folder in read for line in _outdated(config, name, folder)]


def outdated_model(config: ExperimentConfig) -> list[str]:
    """The same for the trained model alone, for what reads nothing else of the run."""
    return _outdated(config, "train_model", config.run_folder / "model")


def _outdated(config: ExperimentConfig, stage: str, folder: Path) -> list[str]:
    """The line for a folder that a stage made, if there is one."""
    manifest = read_manifest(folder)
    found = [] if manifest is None else changes_of(config, stage, manifest)
    advice = f"to change that, run {script(stage)}"
    if any(part.startswith("with model.") for part in found):
        # The stage does not write over another model.
        advice = f"for the other model choose another name, or run {script(stage)} with --force"
    return [f"note: {shown_path(folder)} was made {', '.join(found)}; {advice}"] if found else []


def changes_of(config: ExperimentConfig, stage: str, manifest: dict[str, Any]) -> list[str]:
    """How what a stage left differs from what this configuration would make, in parts of a sentence."""
    return _differences(manifest, config, stage) or list(_other_parents(manifest))


def _folders_before(config: ExperimentConfig, stage: str) -> Iterator[tuple[str, Path]]:
    data, tokenizer = config.data, config.tokenizer.folder
    assert tokenizer is not None
    made: dict[str, Sequence[Path]] = {
        "download_data": [data.raw_folder],
        "split_data": [data.splits_folder],
        "train_tokenizer": [tokenizer],
        "tokenize_data": [data.shards_folder(split) for split in get_args(SplitName)],
        "train_model": [config.run_folder / "model"],
    }
    for name, folders in made.items():
        if name == stage:
            return
        yield from ((name, folder) for folder in folders)


def _differences(manifest: dict[str, Any], config: ExperimentConfig, stage: str) -> list[str]:
    # The token shards depend on what they are made from alone.
    before, now = manifest["settings"], _SETTINGS[stage](config) if stage in _SETTINGS else {}
    matched = _MATCHED if config.model.match_parameters_of is not None else set()
    keys = sorted(key for key in now.keys() - matched if key in before or now[key] is not None)
    changed = [key for key in keys if before.get(key) != now[key]]
    if _ARCHITECTURE in changed:
        # Keys that one of the two architectures has not, or leaves open, say nothing more.
        changed = [key for key in changed if "model." not in key or None not in (before.get(key), now[key])]
    return [f"with {key} {shown(before.get(key))} and not {shown(now[key])}" for key in changed]


def _other_parents(manifest: dict[str, Any]) -> Iterator[str]:
    for name, fingerprint in manifest["inputs"].items():
        parent = read_manifest(absolute(name))
        if parent is not None and fingerprint_of(parent) != fingerprint:
            yield f"from what {shown_path(absolute(name))} held before"
