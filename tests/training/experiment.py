"""A small experiment whose token shards and tokenizer are there, for running the stage as a process."""

from pathlib import Path
from typing import Any

import yaml
from tests.forked import Script
from tests.training.conftest import VOCABULARY, write_splits
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from retlab.artifacts import MANIFEST, describe_outputs, sha256_file, write_json
from retlab.section import PROJECT_ROOT

TRAIN = {
    "max_steps": 30, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-2, "validate_every_steps": 7,
    "checkpoint_every_steps": 4, "log_every_steps": 2, "device": "cpu", "threads": 1, "tensorboard": False,
}  # fmt: skip
MODEL = {
    "architecture": "retnet", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "value_size": 32, "vocab_size": 260, "dropout": 0.1, "activation_dropout": 0.1,
}  # fmt: skip


def publish(folder: Path, report: dict[str, Any]) -> None:
    """Leave a folder as a finished stage does."""
    outputs, times = describe_outputs(folder)
    manifest = {
        "stage": "made for a test", "settings": {}, "sources": {}, "inputs": {}, "report": report, "outputs": outputs,
        "volatile": {"times": times},
    }  # fmt: skip
    write_json(folder / MANIFEST, manifest)


def make_inputs(folder: Path, documents: int = 120) -> None:
    """Tokenizer and token shards in `folder`/tokenizer and `folder`/tokens."""
    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 4))]
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "tokenizer")
    publish(folder / "tokenizer", {})
    write_splits(folder / "tokens", documents)
    for split in ("train", "validation"):
        digest = sha256_file(folder / "tokenizer" / "tokenizer.json")
        publish(folder / "tokens" / split, {"tokenizer_sha256": digest})


def make_config(folder: Path, name: str, model: dict[str, Any] | None = None, **train: Any) -> Path:
    """A configuration file over the inputs in `folder`; keywords change the train section."""
    values = {
        "name": name,
        "seed": 3,
        "output_dir": str(folder / "runs"),
        "data": {"folder": str(folder), "sequence_length": 16},
        "tokenizer": {"vocab_size": 260},
        "model": MODEL | (model or {}),
        "train": TRAIN | train,
        "emissions": {"enabled": False},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(config: Path, *arguments: str, cwd: Path | None = None) -> Script:
    """The stage as a process."""
    return Script(PROJECT_ROOT / "src" / "train_model.py", str(config), *arguments, cwd=cwd, OMP_NUM_THREADS="1")


def finish(config: Path, *arguments: str, cwd: Path | None = None) -> tuple[int, str]:
    """Run the stage to its end; exit code and output."""
    process = start(config, *arguments, cwd=cwd)
    output, _ = process.communicate()
    return process.wait(), output
