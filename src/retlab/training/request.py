"""What one training needs to know, as plain values that also reach helper processes."""

from pathlib import Path
from typing import Any

from retlab.data.settings import DataSection
from retlab.differences import differences
from retlab.section import Section, absolute
from retlab.training.settings import TrainSection

# Keys of the sections `model` and `train` that change speed, files or the machine, and not which model is trained.
_FREE = {
    "attention_kernel", "retention_kernel",
    "device", "devices", "num_nodes", "strategy", "threads", "compile", "cuda_graphs", "micro_batch_size",
    "gradient_checkpointing", "checkpoint_every_steps", "checkpoint_every_minutes", "log_every_steps", "tensorboard",
    "wandb",
}  # fmt: skip

# Fields of a model's configuration that change neither its weights' shapes nor what they compute.
_NOT_ARCHITECTURE = {
    "dropout", "activation_dropout", "attention_dropout", "max_position_embeddings", "chunk_size",
    "attention_kernel", "retention_kernel",
}  # fmt: skip


class TrainingRequest(Section):
    """One training: sections, and the folders that it reads and writes."""

    seed: int
    "Seed of weights, dropout and data order."
    data: DataSection
    "How tokens become batches."
    train: TrainSection
    "How to train."
    model: dict[str, Any]
    "`architecture` and the fields of that model's configuration."
    eos_id: int
    "Token that separates documents."
    pad_id: int
    "Token that fills padded windows."
    train_shards: Path
    "Token shards to train on."
    validation_shards: Path
    "Token shards to validate on."
    tokenizer_folder: Path
    "Tokenizer that made the shards."
    run_folder: Path
    "Folder of checkpoints and metrics."
    kernels: dict[str, str] = {}
    "What mixers run on where that is not their plain form; see `models.kernel_choice`."
    continue_from: int | None = None
    "Step of the checkpoint that all processes begin with; set by the first one."
    start_anew: bool = False
    "Set aside whatever training the run folder holds."
    identity: dict[str, Any]
    "Settings and inputs that decide the result; a checkpoint with others belongs to another training."


def deciding_settings(seed: int, data: DataSection, model: Section, train: TrainSection) -> dict[str, Any]:
    """The settings that decide which model is trained, by dotted key."""
    sections = {
        "data": {key: getattr(data, key) for key in ("sequence_length", "packing", "reset_at_documents")},
        "model": {key: value for key, value in model.dump().items() if key not in _FREE},
        "train": {key: value for key, value in train.dump().items() if key not in _FREE},
    }
    return {"seed": seed} | {
        f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()
    }


def model_differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What makes weights of one model useless for another: `key: there -> here`, for keys that both name."""
    shared = (there.keys() & here.keys()) - _NOT_ARCHITECTURE
    return list(differences({key: there[key] for key in shared}, {key: here[key] for key in shared}))


def source_of_weights(init_from: str | None) -> dict[str, Any]:
    """Sizes and times of the weight files that a training starts from, where they are local."""
    if init_from is None or not absolute(init_from).is_dir():
        return {}
    files = sorted(absolute(init_from).glob("*.safetensors"))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
