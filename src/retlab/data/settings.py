"""The `data` and `tokenizer` sections of the configuration."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from retlab.section import ProjectPath, Section

STDLIB = "python-stdlib"
HUB = "hf://"
_HUB_ENTRY = re.compile(r"hf://datasets/[^/@\s]+/[^/@\s]+(@[^/\s]+)?(/.*)?")
SPLITS = ("train", "validation", "test")
SplitName = Literal["train", "validation", "test"]


class SplitShares(Section):
    """Share of the documents in each split; the three add up to 1."""

    train: float = Field(default=0.9, gt=0, lt=1)
    "Share of the documents for training."
    validation: float = Field(default=0.05, gt=0, lt=1)
    "Share of the documents for validation."
    test: float = Field(default=0.05, gt=0, lt=1)
    "Share of the documents for the final test."

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            shares = f"train {self.train:g}, validation {self.validation:g} and test {self.test:g}"
            raise ValueError(f"{shares} must add up to 1, not {total:g}")
        return self


class DataSection(Section):
    """Where text comes from, how it is split, and how it becomes batches."""

    source: str | list[str] = "python-stdlib"
    "python-stdlib, hf://datasets/OWNER/NAME/path-or-glob, or local files, folders and globs (one or a list)."
    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = "auto"
    "File format; auto goes by the file name (.parquet .jsonl .json .csv .txt .py .md, also with .gz or .zst)."
    text_column: str = Field(default="text", min_length=1)
    "Column or JSON key that holds the text; plain text files need none."
    max_documents: int | None = Field(default=None, ge=1)
    "Stop after so many documents; null takes all."
    max_bytes: int | None = Field(default=None, ge=1)
    "Stop before the documents' UTF-8 text exceeds so many bytes; null takes all."
    on_bad_line: Literal["stop", "skip"] = "stop"
    "A broken line or record, or invalid UTF-8: stop and name file and line, or skip and count it."
    folder: ProjectPath | None = None
    "Folder of raw text and splits, may be shared by experiments; null is data/<name>."
    tokens_folder: ProjectPath | None = None
    "Folder of the token shards; null is <data.folder>/tokens."
    splits: SplitShares = SplitShares()
    "Share of the documents in each split."
    split_seed: int = Field(default=0, ge=0, lt=2**63)
    "Decides with a document's text, and nothing else, which split the document is in."
    shuffle: bool = True
    "Shuffle the documents of each split globally, in bounded memory, when splitting."
    sequence_length: int = Field(default=512, ge=1)
    "Tokens that the model sees in one window."
    packing: Literal["packed", "padded"] = "packed"
    "packed: documents joined by <eos> fill every window; padded: one document's piece per window, rest masked."
    reset_at_documents: bool = True
    "State and attention stop at document boundaries inside a packed window."
    loader_workers: int = Field(default=0, ge=0)
    "Processes that prepare batches; 0 prepares them in a thread of the training process."
    dask_workers: int | None = Field(default=None, ge=1)
    "Dask threads of the split and tokenise stages, or processes of a worker job (cluster.dask); null is one per core."

    @field_validator("source")
    @classmethod
    def _is_a_source(cls, source: str | list[str]) -> str | list[str]:
        entries = [source] if isinstance(source, str) else source
        if not entries or not all(entry.strip() for entry in entries):
            raise ValueError(f"name at least one source: {STDLIB}, {HUB}datasets/OWNER/NAME, a file, folder or glob")
        for entry in entries:
            if entry.startswith(HUB) and not _HUB_ENTRY.fullmatch(entry):
                raise ValueError(f"'{entry}' is not of the form {HUB}datasets/OWNER/NAME[@REVISION][/path or glob]")
            if "://" in entry and not entry.startswith(HUB):
                raise ValueError(f"'{entry}' cannot be read; use {HUB}datasets/OWNER/NAME/... or local files")
        return source

    @property
    def raw_folder(self) -> Path:
        """Folder of the downloaded documents."""
        assert self.folder is not None
        return self.folder / "raw"

    @property
    def splits_folder(self) -> Path:
        """Folder of the three splits, a subfolder each."""
        assert self.folder is not None
        return self.folder / "splits"

    def shards_folder(self, split: SplitName) -> Path:
        """Folder of one split's token shards."""
        assert self.tokens_folder is not None
        return self.tokens_folder / split


class TokenizerSection(Section):
    """The tokenizer: a byte-level BPE trained on the train split, or an existing one."""

    vocab_size: int = Field(default=32000, ge=260, le=2**24)
    "Entries of the vocabulary: 256 bytes, 4 special tokens and the merges."
    min_frequency: int = Field(default=2, ge=1)
    "A pair must occur so often to become a merge."
    max_bytes: int | None = Field(default=200_000_000, ge=1)
    "Train on the first so many bytes of the train split; null takes all of it (memory grows with its distinct words)."
    from_pretrained: str | None = None
    "Folder or hub name of an existing fast tokenizer to use instead of training one."
    folder: ProjectPath | None = None
    "Folder of the tokenizer, may be shared by experiments; null is <data.folder>/tokenizer."
