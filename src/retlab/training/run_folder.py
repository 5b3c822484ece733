"""The run folder between trainings: what is there is continued, set aside, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, sync_folder
from retlab.differences import differences
from retlab.emissions_rows import move_rows
from retlab.errors import UserError
from retlab.section import shown_path
from retlab.training.checkpoints import CheckpointStore
from retlab.training.request import TrainingRequest, model_differences

TRAINED_FILES = (
    "checkpoints", "model", "metrics.csv", "tensorboard",
    "evaluation", "results.json", "results.csv",
)  # fmt: skip
"""What belongs to one training of a run folder and leaves with it."""


def prepare_run_folder(request: TrainingRequest, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The checkpoint to continue from, or None to start anew; an earlier training of other settings is set aside.

    Args:
        request: the training that is about to start.
        say: prints a line for people.

    Raises:
        UserError: the last checkpoint is not readable, or what was trained is another model, without `start_anew`.
    """
    folder = request.run_folder
    store = CheckpointStore(folder / "checkpoints")
    if not request.start_anew:
        refuse_other_training(folder, request.model)
    checkpoint = None if request.start_anew else store.last()
    if checkpoint is not None:
        changes = list(differences(checkpoint["identity"], request.identity))
        if not changes:
            store.prune(checkpoint["best"])
            return checkpoint
        # Of a finished training, whose model is there, the stage has already said what changed.
        if not (folder / "model").exists():
            say(f"the run folder holds a training with other settings: {'; '.join(changes)}")
    _set_aside(folder, say)
    return None


def refuse_other_training(folder: Path, model: dict[str, Any]) -> None:
    """Raise a UserError where a run folder holds a training of another model.

    Args:
        folder: the run folder.
        model: `architecture` and what is known of the fields of the model's configuration.
    """
    other_model = model_differences(_trained_model(folder), model)
    if other_model:
        raise UserError(
            f"{shown_path(folder)} holds a training of another model ({'; '.join(other_model)});"
            " choose another name for this experiment, or set it aside and start anew with --force"
        )


def _trained_model(folder: Path) -> dict[str, Any]:
    """The configuration of the model that a run folder holds; empty where there is none, or it is being set aside.

    The file of a finished model is read before a checkpoint, for which torch would have to be imported.
    """
    if _aside(folder).exists():
        return {}
    config = read_json(folder / "model" / "config.json")
    if isinstance(config, dict) and "model_type" in config:
        return {**config, "architecture": str(config["model_type"]).removeprefix("retlab_")}
    checkpoint = CheckpointStore(folder / "checkpoints").last() or {"model_config": {}}
    return dict(checkpoint["model_config"])


def refuse_other_model(checkpoint: dict[str, Any], model_config: dict[str, Any], path: Path) -> None:
    """Raise a UserError unless the checkpoint is of this model."""
    differences = model_differences(checkpoint["model_config"], model_config)
    if differences:
        raise UserError(f"{shown_path(path)} is a checkpoint of another model: {'; '.join(differences)}")


def _aside(folder: Path) -> Path:
    """Where an earlier training goes while it is set aside."""
    return folder.with_name(f".{folder.name}.partial")


def _set_aside(folder: Path, say: Callable[[str], None]) -> None:
    """Move an earlier training to the first free of <folder>.1, <folder>.2, ...; a killed move is finished.

    What never came to a checkpoint is nothing to keep, and is written over.
    """
    partial = _aside(folder)
    if not partial.exists() and not CheckpointStore(folder / "checkpoints").steps() and not (folder / "model").exists():
        return
    partial.mkdir(exist_ok=True)
    for name in (*TRAINED_FILES, "config.yaml"):
        if (folder / name).exists():
            (folder / name).rename(partial / name)
    move_rows(folder, partial, ("train_model", "evaluate_model"))
    number = 1
    while folder.with_name(f"{folder.name}.{number}").exists():
        number += 1
    aside = partial.rename(folder.with_name(f"{folder.name}.{number}"))
    for changed in (aside, folder, folder.parent):
        sync_folder(changed)
    say(f"the earlier training was set aside: {shown_path(aside)}")
