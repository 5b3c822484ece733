"""Checks what a training reads, and makes its request."""

from pathlib import Path
from typing import Any

from retlab.data.settings import DataSection
from retlab.data.shards import check_shards
from retlab.data.tokenizer import shared_tokenizer, vocabulary_size
from retlab.errors import UserError
from retlab.models import config_from_section
from retlab.models.settings import ModelSettings
from retlab.section import script, shown_path
from retlab.training.request import TrainingRequest
from retlab.training.settings import TrainSection


def request_for(
    seed: int,
    data: DataSection,
    model: ModelSettings,
    train: TrainSection,
    tokenizer_folder: Path,
    run_folder: Path,
    *,
    vocab_size: int,
    identity: dict[str, Any],
) -> TrainingRequest:
    """The training of these sections.

    Raises:
        UserError: shards of another tokenizer, more tokens than the model has, or a model that cannot be.
    """
    for split in ("train", "validation"):
        check_shards(data.shards_folder(split), tokenizer_folder)
    tokenizer = shared_tokenizer(tokenizer_folder)
    if vocabulary_size(tokenizer) > vocab_size:
        raise UserError(
            f"the tokenizer in {shown_path(tokenizer_folder)} has {vocabulary_size(tokenizer):,} tokens, and the model"
            f" {vocab_size:,}; raise model.vocab_size (null takes the tokenizer's), or run"
            f" {script('train_tokenizer')} with this configuration"
        )
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    try:
        config = config_from_section(
            model, vocab_size, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    special = {key: getattr(config, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return TrainingRequest(
        seed=seed,
        data=data,
        train=train,
        model={"architecture": config.architecture, **config.get_params(), **special},
        eos_id=tokenizer.eos_token_id,
        pad_id=pad_id,
        train_shards=data.shards_folder("train"),
        validation_shards=data.shards_folder("validation"),
        tokenizer_folder=tokenizer_folder,
        run_folder=run_folder,
        identity=identity,
    )
