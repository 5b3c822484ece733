"""The files that the evaluation leaves in a run folder."""

import csv
import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, read_manifest, write_atomic, write_json
from retlab.data.settings import DataSection
from retlab.data.shards import check_shards
from retlab.errors import UserError
from retlab.evaluation.perplexity import DocumentLosses, rates, score_documents, write_document_losses
from retlab.evaluation.reference_points import TestText, count_models, read_text, uniform_nats
from retlab.evaluation.samples import write_samples
from retlab.evaluation.settings import EvaluateSection, GenerateSection
from retlab.evaluation.trained_model import TrainedModel, load_trained_model
from retlab.memory import memory_errors
from retlab.section import script, shown_path

SCORED_FILES = ("results.json", "results.csv", "document_losses.parquet")
"""What the `generate` section has no part in."""

UNITS = {
    "loss": "nats/token",
    "perplexity": "1",
    "bits_per_byte": "bits/byte",
    "parameters": "1",
    "vocab_size": "tokens",
    "documents": "1",
    "tokens": "tokens",
    "bytes": "bytes",
    "train_tokens": "tokens",
}
"""Unit of every number in results.json and results.csv."""


def evaluate(
    section: EvaluateSection,
    generate: GenerateSection,
    data: DataSection,
    model_folder: Path,
    folder: Path,
    say: Callable[[str], None] = lambda _line: None,
    scored: Path | None = None,
) -> dict[str, Any]:
    """Measure a trained model on the test split, and let it write.

    Writes results.json, results.csv, document_losses.parquet and samples.json into `folder`, and returns the test
    split's numbers. `say` prints a line for people. The first three are copied from the folder `scored`, if one is
    given: that of an earlier evaluation of the same model, data and section.

    Raises:
        UserError: the model, the token shards or the text are missing, or do not belong together; or the memory does
            not do.
    """
    trained = load_trained_model(section, model_folder)
    if scored is None:
        _score(section, data, trained, model_folder, folder, say)
    else:
        for name in SCORED_FILES:
            shutil.copyfile(scored / name, folder / name)
    with memory_errors(lambda: _too_long_samples(generate)):
        samples = write_samples(trained, generate)
    write_json(folder / "samples.json", samples)
    return dict(read_json(folder / "results.json")["test"])


def _score(
    section: EvaluateSection,
    data: DataSection,
    trained: TrainedModel,
    model_folder: Path,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Write the numbers of the test split into `folder`."""
    shards = data.shards_folder("test")
    check_shards(shards, model_folder)
    for line in trained.kernel_lines(data.sequence_length):
        say(line)
    with memory_errors(lambda: _too_many_windows(section, data)):
        losses = score_documents(trained, data, shards, section.batch_size)
    text = read_text(data.splits_folder / "test")
    if len(text.bytes) != len(losses.bytes) or (text.bytes != losses.bytes).any():
        raise UserError(
            f"the token shards in {shown_path(shards)} hold other documents than"
            f" {shown_path(data.splits_folder / 'test')}; run {script('tokenize_data')} again"
        )
    results = {
        "model": _describe_model(trained),
        "settings": _describe_settings(section, data, trained, text),
        "test": _test_numbers(losses),
    }
    if section.reference_points:
        results["reference_points"] = _reference_points(data, trained, losses, text)
    write_json(folder / "results.json", results)
    write_atomic(folder / "results.csv", results_table(results))
    write_document_losses(folder / "document_losses.parquet", losses, text.sha256)


def _too_many_windows(section: EvaluateSection, data: DataSection) -> tuple[str, str]:
    """What ran out of memory in scoring, and what to do."""
    size = section.batch_size
    windows = f"{size} {'window' if size == 1 else 'windows'} of {data.sequence_length:,} tokens at once"
    if size == 1:
        return windows, "shorten data.sequence_length, or set evaluate.device to cpu"
    return windows, f"lower evaluate.batch_size to {size // 2} or less, which changes no result"


def _too_long_samples(generate: GenerateSection) -> tuple[str, str]:
    longest = max(map(len, generate.prompts), default=0)
    return (
        f"a sample of {generate.max_new_tokens:,} tokens after a prompt of up to {longest:,} characters",
        "lower generate.max_new_tokens, shorten generate.prompts, or set evaluate.device to cpu",
    )


def _describe_model(trained: TrainedModel) -> dict[str, Any]:
    config = trained.config
    return {
        "architecture": config.architecture,
        "parameters": sum(weight.numel() for weight in trained.model.parameters()),
        "vocab_size": config.vocab_size,
    }


def _describe_settings(
    section: EvaluateSection, data: DataSection, trained: TrainedModel, text: TestText
) -> dict[str, Any]:
    return {
        "test_text_sha256": hashlib.sha256("".join(text.sha256).encode()).hexdigest(),
        "sequence_length": data.sequence_length,
        "packing": data.packing,
        "reset_at_documents": data.reset_at_documents,
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


def results_table(results: dict[str, Any]) -> str:
    """results.csv: a line per number, with what it describes, the split, the metric, the value and the unit."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["subject", "split", "metric", "value", "unit"])
    for metric, value in results["model"].items():
        if metric in UNITS:
            writer.writerow(["model", "", metric, repr(value), UNITS[metric]])
    for subject, numbers in {"model": results["test"], **results.get("reference_points", {})}.items():
        for metric, value in numbers.items():
            writer.writerow([subject, "test", metric, repr(value), UNITS[metric]])
    return table.getvalue()
