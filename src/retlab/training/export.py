"""Checkpoints as Hugging Face folders."""

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from retlab.artifacts import read_manifest
from retlab.emissions_rows import read_rows
from retlab.errors import UserError
from retlab.models.export import export_model
from retlab.models.model_card import ModelCardFacts
from retlab.section import shown_path
from retlab.training.checkpoints import CheckpointStore, load_checkpoint
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
        raise UserError(f"{shown_path(folder)} exists already; name a new folder for the exported model")
    path = _checkpoint_file(CheckpointStore(request.run_folder / "checkpoints"), checkpoint)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _export(request, path, partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _checkpoint_file(store: CheckpointStore, checkpoint: str) -> Path:
    if checkpoint not in ("best", "last"):
        path = Path(checkpoint).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"--export: {checkpoint} is no checkpoint; allowed are best, last and a checkpoint's file")
        return path
    last = store.last()
    if last is None:
        raise UserError(f"there is no checkpoint in {shown_path(store.folder)}; train first")
    if checkpoint == "best" and not last["best"]:
        raise UserError(f"no checkpoint in {shown_path(store.folder)} is validated yet; export the last one")
    return store.path(last["step"] if checkpoint == "last" else int(last["best"][0][1]))


def _export(request: TrainingRequest, path: Path, folder: Path) -> None:
    checkpoint = load_checkpoint(path)
    refuse_other_model(checkpoint, request.model, path)
    model = new_model(request)
    model.load_state_dict(checkpoint["model"])
    # One file is written; a bar for it is noise.
    logging.disable_progress_bar()
    try:
        export_model(model, folder, tokenizer_folder=request.tokenizer_folder, facts=_facts(request, checkpoint))
    except ValueError as error:
        raise UserError(str(error)) from error
    except SafetensorError as error:
        # It tells of a full disk in its own words alone.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    finally:
        logging.enable_progress_bar()


def _facts(request: TrainingRequest, checkpoint: dict[str, Any]) -> ModelCardFacts:
    """What the model card says of a checkpoint."""
    section, data = request.train, request.data
    train, validation = _report(request.train_shards), _report(request.validation_shards)
    tokenizer = _report(request.tokenizer_folder)
    # The row of this very training may not hold a measurement yet.
    energy = [row for row in read_rows(request.run_folder) if row["energy_kwh"]]
    # What the documents were made from, whatever this configuration says by now.
    raw = read_manifest(data.raw_folder) or {"settings": {}}
    source = raw["settings"].get("data.source", data.source)
    step = checkpoint["step"]
    losses = [loss for loss, at in checkpoint["best"] if at == step]
    return ModelCardFacts(
        name=request.run_folder.name,
        data_source=source if isinstance(source, str) else ", ".join(source),
        train_documents=train.get("documents"),
        train_tokens=train.get("tokens"),
        train_bytes=train.get("bytes"),
        validation_documents=validation.get("documents"),
        validation_tokens=validation.get("tokens"),
        tokenizer=tokenizer.get("from_pretrained", "byte-level BPE trained on the train split"),
        bytes_per_token=tokenizer.get("validation_bytes_per_token"),
        steps=step,
        seen_tokens=checkpoint["tokens"],
        sequence_length=data.sequence_length,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        precision=checkpoint["precision"],
        seed=request.seed,
        exported_step=step,
        validation_loss=losses[0] if losses else None,
        energy_kwh=math.fsum(row["energy_kwh"] for row in energy) if energy else None,
        emissions_kg=math.fsum(row["emissions_kg_co2e"] for row in energy) if energy else None,
        country=energy[-1]["country"] if energy else None,
        power_method=energy[-1]["power_method"] if energy else None,
    )


def _report(folder: Path) -> dict[str, Any]:
    """The report of the stage that wrote a folder."""
    manifest = read_manifest(folder) or {}
    return dict(manifest.get("report", {}))
