"""Perplexity as a measurement: the test split's numbers, what they stand beside, and the files that hold them."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retlab.artifacts import read_manifest, sha256_file, write_atomic, write_json
from retlab.data.settings import DataSection
from retlab.data.shards import check_shards
from retlab.data.tokens import tokenise
from retlab.drawing import render
from retlab.errors import UserError
from retlab.evaluation.perplexity import (
    DocumentLosses,
    rates,
    score_documents,
    windows_for,
    write_document_losses,
)
from retlab.evaluation.position_plot import PICTURE_SIZE, drawing_of
from retlab.evaluation.positions import write_positions
from retlab.evaluation.reference_points import TestText, count_models, read_text, uniform_nats
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import TrainedModel
from retlab.memory import memory_errors
from retlab.section import script, shown_path


def measure_perplexity(
    trained: TrainedModel,
    section: EvaluateSection,
    data: DataSection,
    folder: Path,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Measure a trained model on the test split.

    Writes results.json, document_losses.parquet and loss_by_position.csv and .png into `folder`, and returns the test
    split's numbers. `say` prints a line for people.

    Raises:
        UserError: the token shards or the text are missing, or do not belong to the model; or the memory does not do.
    """
    windows = windows_for(trained, data)
    for line in trained.kernel_lines(windows.sequence_length):
        say(line)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".shards-") as scratch:
        shards = _shards(trained, section, data, Path(scratch))
        with memory_errors(lambda: _too_many_windows(section, windows)):
            losses = score_documents(trained, windows, shards, section.batch_size, section.carry_state)
    text = read_text(data.splits_folder / "test")
    if len(text.bytes) != len(losses.bytes) or (text.bytes != losses.bytes).any():
        raise UserError(
            f"the token shards in {shown_path(shards)} hold other documents than"
            f" {shown_path(data.splits_folder / 'test')}; run {script('tokenize_data')} again"
        )
    results = {
        "settings": _describe_settings(section, windows, trained, text),
        "test": _test_numbers(losses),
    }
    if section.reference_points and section.model is None:
        results["reference_points"] = _reference_points(data, trained, losses, text)
    write_json(folder / "results.json", results)
    write_document_losses(folder / "document_losses.parquet", losses, text.sha256)
    rows = losses.positions.rows()
    write_positions(folder / "loss_by_position.csv", rows)
    draw = drawing_of({trained.architecture: rows}, [windows.sequence_length])
    write_atomic(folder / "loss_by_position.png", render(draw, PICTURE_SIZE))
    return results["test"]


def _shards(trained: TrainedModel, section: EvaluateSection, data: DataSection, scratch: Path) -> Path:
    """The test split in the model's own tokens."""
    shards = data.shards_folder("test")
    if section.model is None:
        check_shards(shards, trained.folder)
        return shards
    manifest = read_manifest(shards)
    tokenizer = sha256_file(trained.folder / "tokenizer.json")
    if manifest is not None and manifest["report"]["tokenizer_sha256"] == tokenizer:
        return shards
    tokenise(data, data.splits_folder / "test", trained.folder, scratch)
    return scratch


def _too_many_windows(section: EvaluateSection, data: DataSection) -> tuple[str, str]:
    """What ran out of memory in scoring, and what to do."""
    size = section.batch_size
    windows = f"{size} {'window' if size == 1 else 'windows'} of {data.sequence_length:,} tokens at once"
    if size == 1:
        return windows, "shorten data.sequence_length, or set evaluate.device to cpu"
    return windows, f"lower evaluate.batch_size to {size // 2} or less, which changes no result"


def _describe_settings(
    section: EvaluateSection, windows: DataSection, trained: TrainedModel, text: TestText
) -> dict[str, Any]:
    return {
        "test_text_sha256": hashlib.sha256("".join(text.sha256).encode()).hexdigest(),
        "sequence_length": windows.sequence_length,
        "packing": windows.packing,
        "reset_at_documents": windows.reset_at_documents,
        "carry_state": section.carry_state,
        "form": section.form,
        "precision": trained.precision,
        "device": trained.device.type,
    }


def _test_numbers(losses: DocumentLosses) -> dict[str, Any]:
    tokens, text_bytes = int(losses.targets.sum()), int(losses.bytes.sum())
    return {
        **rates(float(losses.nats.sum()), tokens, text_bytes),
        "documents": len(losses.nats),
        "tokens": tokens,
        "bytes": text_bytes,
    }


def _reference_points(
    data: DataSection, trained: TrainedModel, losses: DocumentLosses, text: TestText
) -> dict[str, dict[str, Any]]:
    manifest = read_manifest(data.shards_folder("train"))
    if manifest is None:
        raise UserError(
            f"{shown_path(data.shards_folder('train'))} holds no finished token shards, which the reference points"
            f" count; run {script('tokenize_data')} first or set evaluate.reference_points=false"
        )
    tokens, text_bytes = int(losses.targets.sum()), int(losses.bytes.sum())
    vocab_size = trained.config.vocab_size
    counts = count_models(data.shards_folder("train"), data.shards_folder("test"), vocab_size, trained.eos_id)
    counted = {"train_tokens": counts.train_targets}
    return {
        "uniform": rates(uniform_nats(vocab_size, tokens), tokens, text_bytes),
        "unigram": rates(counts.unigram, tokens, text_bytes) | counted,
        "bigram": rates(counts.bigram, tokens, text_bytes) | counted,
        **{name: {"bits_per_byte": 8 * size / text_bytes} for name, size in text.compressed.items()},
    }
