"""Rates of tokeniser and loader over text that every machine has, with the pipeline's own stages."""

import itertools
import time
from pathlib import Path
from typing import Any

from retlab.artifacts import read_json, write_json
from retlab.benchmark.plan import Plan, Shape
from retlab.benchmark.row import LOADER_ALONE, RETLAB, TOKENISER, Row
from retlab.data.download import download
from retlab.data.loader import TokenLoader
from retlab.data.settings import STDLIB, DataSection, TokenizerSection
from retlab.data.split import split_documents
from retlab.data.tokenizer import make_tokenizer
from retlab.data.tokens import tokenise
from retlab.errors import UserError

LARGEST_VOCABULARY = 32_000
_REPORT = "report.json"


def tokeniser_row(plan: Plan, folder: Path) -> Row:
    """Make splits, tokenizer and token shards in a folder; the rate is that of tokenising the train split."""
    section = DataSection(source=STDLIB, max_bytes=plan.text_bytes, folder=folder, tokens_folder=folder / "tokens")
    for made in (section.raw_folder, section.splits_folder, folder / "tokenizer", folder / "tokens" / "train"):
        made.mkdir(parents=True)
    download(section, section.raw_folder)
    split_documents(section, section.raw_folder, section.splits_folder)
    vocab_size = min(plan.subjects[0].vocab_size, LARGEST_VOCABULARY)
    tokenizer = TokenizerSection(vocab_size=vocab_size)
    make_tokenizer(tokenizer, section.splits_folder, folder / "tokenizer")
    # What is loaded on first use is no part of the rate.
    (folder / "tokens" / "validation").mkdir()
    tokenise(section, section.splits_folder / "validation", folder / "tokenizer", folder / "tokens" / "validation")
    start = time.perf_counter()
    report = tokenise(section, section.splits_folder / "train", folder / "tokenizer", folder / "tokens" / "train")
    seconds = time.perf_counter() - start
    write_json(folder / _REPORT, report)
    return Row(
        TOKENISER, "", RETLAB, tokens_per_second=report["tokens"] / seconds,
        remark=f"{report['bytes'] / seconds / 1e6:.1f} MB/s, vocabulary {report['vocab_size']:,}",
    )  # fmt: skip


def benchmark_loader(plan: Plan, shape: Shape, folder: Path) -> TokenLoader:
    """The training's loader over the shards that `tokeniser_row` made, a global batch in one piece.

    Raises:
        UserError: there are none, or too few for one batch.
    """
    report: dict[str, Any] | None = read_json(folder / _REPORT)
    if report is None:
        raise UserError("the tokeniser made no token shards")
    section = DataSection(
        sequence_length=shape.tokens, reset_at_documents=plan.reset_at_documents, loader_workers=plan.loader_workers
    )
    return TokenLoader(
        section, folder / "tokens" / "train", eos_id=report["eos_id"], pad_id=report["pad_id"],
        global_batch_size=shape.batch, micro_batch_size=shape.batch, seed=0,
    )  # fmt: skip


def loader_row(plan: Plan, folder: Path) -> Row:
    """How fast the loader hands out batches that nobody trains on, after the first."""
    shape = plan.training[0]
    batches = iter(benchmark_loader(plan, shape, folder))
    next(batches)
    count, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 4 * plan.seconds:
        count += sum(1 for _ in itertools.islice(batches, 10))
    return Row(
        LOADER_ALONE, "", RETLAB, *shape, tokens_per_second=count * shape.batch * shape.tokens / seconds,
        milliseconds=1000 * seconds / count,
    )  # fmt: skip
