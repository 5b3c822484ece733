"""Checkpoints as Hugging Face folders."""

import shutil
from pathlib import Path
from typing import Any

from retlab.errors import UserError
from retlab.section import absolute, portable
from retlab.training.checkpoints import CheckpointStore, load_checkpoint
from retlab.training.inputs import load_tokenizer
from retlab.training.request import TrainingRequest
from retlab.training.run_folder import refuse_other_model
from retlab.training.trainer import TrainingResult, new_model


def export_best(request: TrainingRequest, result: TrainingResult, folder: Path) -> None:
    """Write the checkpoint with the lowest validation loss as a model folder."""
    store = CheckpointStore(request.run_folder / "checkpoints")
    _export(request, store.path(result.best_step), folder)


def export_checkpoint(request: TrainingRequest, checkpoint: str, folder: Path) -> Path:
    """Write a checkpoint (best, last, or a file) as a model folder, and return the checkpoint's file.

    Raises:
        UserError: no such checkpoint, one of another model, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{portable(folder)} exists already; name a new folder for the exported model")
    store = CheckpointStore(request.run_folder / "checkpoints")
    path = absolute(checkpoint)
    if checkpoint in ("best", "last"):
        last = store.last()
        if last is None:
            raise UserError(f"there is no checkpoint in {portable(store.folder)}; train first")
        if checkpoint == "best" and not last["best"]:
            raise UserError(f"no checkpoint in {portable(store.folder)} is validated yet; export the last one")
        path = store.path(last["step"] if checkpoint == "last" else int(last["best"][0][1]))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _export(request, path, partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _export(request: TrainingRequest, path: Path, folder: Path) -> None:
    checkpoint: dict[str, Any] = load_checkpoint(path)
    refuse_other_model(checkpoint, request.model, path)
    model = new_model(request)
    model.load_state_dict(checkpoint["model"])
    tokenizer = load_tokenizer(request.tokenizer_folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
