"""The run folder between trainings: what is there is continued, set aside, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retlab.artifacts import sync_folder
from retlab.differences import differences
from retlab.emissions_rows import move_rows
from retlab.errors import UserError
from retlab.section import shown_path
from retlab.training.checkpoints import CheckpointStore
from retlab.training.request import TrainingRequest, model_differences

TRAINED_FILES = (
    "checkpoints", "model", "metrics.csv", "tensorboard",
    "results.json", "results.csv", "document_losses.parquet", "samples.json", "evaluate_model.manifest.json",
)  # fmt: skip
"""What belongs to one training of a run folder and leaves with it."""


def prepare_run_folder(request: TrainingRequest, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The checkpoint to continue from, or None to start anew; an earlier training of other settings is set aside.

    Args:
        request: the training that is about to start.
        say: prints a line for people.

    Raises:
        UserError: the last checkpoint is not readable, or is of another model without `start_anew`.
    """
    folder = request.run_folder
    store = CheckpointStore(folder / "checkpoints")
    checkpoint = None if request.start_anew else store.last()
    if checkpoint is not None:
        other_model = model_differences(checkpoint["model_config"], request.model)
        if other_model:
            raise UserError(
                f"{shown_path(store.folder)} holds checkpoints of another model ({'; '.join(other_model)});"
                " choose another name for this experiment, or set them aside and start anew with --force"
            )
        changes = list(differences(checkpoint["identity"], request.identity))
        if not changes:
            store.prune(checkpoint["best"])
            return checkpoint
        # Of a finished training, whose model is there, the stage has already said what changed.
        if not (folder / "model").exists():
            say(f"the run folder holds a training with other settings: {'; '.join(changes)}")
    _set_aside(folder, say)
    return None


def refuse_other_model(checkpoint: dict[str, Any], model_config: dict[str, Any], path: Path) -> None:
    """Raise a UserError unless the checkpoint is of this model."""
    differences = model_differences(checkpoint["model_config"], model_config)
    if differences:
        raise UserError(f"{shown_path(path)} is a checkpoint of another model: {'; '.join(differences)}")


def _set_aside(folder: Path, say: Callable[[str], None]) -> None:
    """Move an earlier training to the first free of <folder>.1, <folder>.2, ...; a killed move is finished.

    What never came to a checkpoint is nothing to keep, and is written over.
    """
    partial = folder.with_name(f".{folder.name}.partial")
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
