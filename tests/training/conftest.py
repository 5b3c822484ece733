"""A small experiment that trains in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.shard_files import write_shards

from retlab.data.settings import DataSection
from retlab.training.request import TrainingRequest
from retlab.training.settings import TrainSection

VOCABULARY = 64
EOS, PAD = 2, 0
MODEL = {
    "architecture": "retnet", "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "value_size": 32, "pad_token_id": PAD, "eos_token_id": EOS,
}  # fmt: skip


def write_splits(folder: Path, documents: int = 120) -> None:
    """Random documents of 3 to 60 tokens; the next token leans on the last one, so there is something to learn."""
    random = np.random.default_rng(0)

    def document() -> list[int]:
        steps = random.integers(1, 4, size=random.integers(3, 60))
        return (4 + np.cumsum(steps) % (VOCABULARY - 4)).tolist()

    write_shards(folder / "train", [[[document() for _ in range(documents // 2)]] * 2], VOCABULARY)
    write_shards(folder / "validation", [[[document() for _ in range(20)]]], VOCABULARY)


def make_request(folder: Path, run: str = "run", model: dict[str, Any] | None = None, **train: Any) -> TrainingRequest:
    """A training of 12 steps of 8 windows of 16 tokens, in micro-batches of 4; keywords change the train section.

    `packing` goes to the data section.
    """
    if not (folder / "train").exists():
        write_splits(folder)
    packing = train.pop("packing", "packed")
    defaults = {
        "max_steps": 12, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2, "validate_every_steps": 5,
        "checkpoint_every_steps": 3, "log_every_steps": 2, "device": "cpu", "threads": 1, "tensorboard": False,
    }  # fmt: skip
    section = TrainSection.model_validate(defaults | train)
    return TrainingRequest(
        seed=7,
        data=DataSection(sequence_length=16, packing=packing),
        train=section,
        model={**MODEL, **(model or {})},
        eos_id=EOS,
        pad_id=PAD,
        train_shards=folder / "train",
        validation_shards=folder / "validation",
        tokenizer_folder=folder / "tokenizer",
        run_folder=folder / run,
        identity={"learning_rate": section.learning_rate},
    )


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with token shards of a train and a validation split."""
    folder = tmp_path_factory.mktemp("splits")
    write_splits(folder)
    return folder
