"""Which model is measured: the trained one of the run folder, or another that `evaluate.model` names."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retlab.artifacts import fingerprint
from retlab.config import ExperimentConfig
from retlab.section import portable

if TYPE_CHECKING:
    from retlab.evaluation.trained_model import TrainedModel

OTHER_MODELS = "other_models"
"""Folder in a run folder with a run folder for each other model that was measured on its data."""


@dataclass(frozen=True)
class Subject:
    """A model and where its results go.

    Attributes:
        config: the configuration, whose run folder the results belong to.
        folder: the model's files.
        inputs: the folder, where an earlier stage made it.
        sources: what is known of it, where none did.
        load: loads it, once.
    """

    config: ExperimentConfig
    folder: Path
    inputs: list[Path]
    sources: dict[str, Any]
    load: "Callable[[], TrainedModel]"

    def identity(self) -> dict[str, Any]:
        """What the manifest of a stage that measured this model says of it."""
        return {
            "inputs": {portable(folder): fingerprint(folder) for folder in self.inputs},
            "sources": self.sources,
        }


def find_subject(config: ExperimentConfig) -> Subject:
    """The model that a configuration's measurements are of; loads nothing yet.

    Raises:
        UserError: there is no such other model, or the hub cannot be reached.
    """
    if config.evaluate.model is None:
        folder = config.run_folder / "model"
        return Subject(config, folder, [folder], {}, functools.cache(lambda: _load(config, folder, None)))

    from retlab.evaluation.other_model import AGAIN, find_other_model

    other = find_other_model(config.evaluate.model)
    # The configuration that such a measurement left in its folder belongs there already.
    if config.output_dir.name != OTHER_MODELS:
        config = config.model_copy(update={"output_dir": config.run_folder / OTHER_MODELS, "name": other.name})
    load = functools.cache(lambda: _load(config, other.folder, AGAIN))
    return Subject(config, other.folder, [], {"model": other.identity}, load)


def _load(config: ExperimentConfig, folder: Path, again: str | None) -> "TrainedModel":
    # Late, because torch takes seconds.
    from retlab.evaluation.trained_model import load_trained_model

    return load_trained_model(config.evaluate, folder, again)
