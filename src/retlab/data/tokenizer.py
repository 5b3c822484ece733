"""The tokenizer: a byte-level BPE trained on a stream of the train split, or an existing fast tokenizer."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retlab.data.encoding import Encoder
from retlab.data.reading import parts_of, text_bytes, texts_of
from retlab.data.settings import TokenizerSection
from retlab.errors import UserError
from retlab.progress import Progress, progress
from retlab.section import absolute, script, shown_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
"""Ids 0 to 3, in this order."""

# BPE training holds every distinct word with 32 bytes for each of its bytes, and letters or marks that go on for ever
# are one word. Only the beginning of such a run takes part in the training.
LONGEST_RUN = 1024
_LONG_RUN = re.compile(rf"(\w{{{LONGEST_RUN}}})\w+|([^\w\s]{{{LONGEST_RUN}}})[^\w\s]+")
TRAINING_PIECE = 2**16
"""Characters that the training reads at once of a long document."""
MEASURED_BYTES = 10_000_000
"""So much of the validation split is enough for the bytes per token."""
_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")
_SHARED: "dict[str, PreTrainedTokenizerBase]" = {}


def make_tokenizer(section: TokenizerSection, splits_folder: Path, folder: Path) -> dict[str, Any]:
    """Train or import a tokenizer into a folder that `AutoTokenizer` loads.

    Args:
        section: what to train, or what to import.
        splits_folder: holds `train/` and `validation/`.
        folder: gets tokenizer.json and tokenizer_config.json.

    Returns:
        Report: the vocabulary's size, requested and reached, special ids, and the bytes per token of the validation
        split (its first 10 MB, no end-of-text tokens counted).

    Raises:
        UserError: an empty train split, or a tokenizer to import that cannot be had or used.
    """
    if section.from_pretrained is None:
        tokenizer = _as_folder(train_tokenizer(section, splits_folder / "train"), folder)
        requested: dict[str, Any] = {"vocab_size_requested": section.vocab_size}
    else:
        tokenizer = import_tokenizer(section.from_pretrained)
        tokenizer.save_pretrained(folder)
        requested = {"from_pretrained": section.from_pretrained}
    vocab_size = vocabulary_size(tokenizer)
    return {
        **requested,
        "vocab_size": vocab_size,
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        **_bytes_per_token(Encoder(text_tokenizer(tokenizer), vocab_size), splits_folder / "validation"),
    }


def train_tokenizer(section: TokenizerSection, folder: Path) -> Tokenizer:
    """Train a byte-level BPE (all 256 bytes, no normaliser, GPT-2's pre-tokeniser) on the parts of a split.

    The result depends on the documents and the settings alone, not on the number of threads.

    Raises:
        UserError: there are no documents.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    total = text_bytes(folder)
    if total == 0:
        raise UserError(f"{shown_path(folder)} holds no text to train a tokenizer on; get more text and split it again")
    with progress("read text for the tokenizer", min(total, section.max_bytes or total), "byte") as bar:
        tokenizer.train_from_iterator(_training_texts(folder, section.max_bytes, bar), trainer)
    return tokenizer


def import_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """An existing tokenizer from a folder or the hub, without padding and truncation.

    Raises:
        UserError: it cannot be found or reached, is no fast tokenizer or has no end-of-text token.
    """
    is_folder = absolute(name).is_dir()
    # Hub names are NAME or OWNER/NAME.
    if not is_folder and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UserError(f"tokenizer.from_pretrained {name!r}: there is no such folder; give one, or a hub name")
    if is_folder and not (absolute(name) / "tokenizer.json").is_file():
        raise UserError(f"tokenizer.from_pretrained {name!r} holds no tokenizer.json, the file of a fast tokenizer")
    tokenizer = _load(absolute(name) if is_folder else name, f"tokenizer.from_pretrained {name!r}")
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer.from_pretrained {name!r} is no fast tokenizer (it has no tokenizer.json); choose one that is"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer.from_pretrained {name!r} has no end-of-text token, which separates documents;"
            " choose one that has"
        )
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of an experiment; it has an `eos_token_id` and perhaps a `pad_token_id`.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{shown_path(folder)} holds no tokenizer (tokenizer.json);"
            f" run {script('train_tokenizer')} with this configuration first"
        )
    return _load(folder, shown_path(folder))


def shared_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """`load_tokenizer` for those who change nothing of it: once in a process for folders of the same content.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    files = [file for name in _FILES for file in folder.glob(name) if file.is_file()]
    content = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in sorted(files))).hexdigest()
    kept = _SHARED.pop(content, None) or load_tokenizer(folder)
    # The trials of a sweep read two: the one that they were given, and as their models' folders hold it.
    while len(_SHARED) >= 2:
        del _SHARED[next(iter(_SHARED))]
    _SHARED[content] = kept
    return kept


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Entries that an embedding needs: one more than the highest id, which gaps can put above the number of tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def text_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> Tokenizer:
    """The tokenizer's fast core for the text of documents: names of special tokens in it are text like any other."""
    core = tokenizer.backend_tokenizer
    # The others find whole words in their vocabulary, in which the special tokens can be as well.
    if not isinstance(core.model, models.BPE):
        core = _with_names_outside_text(core)
    core.encode_special_tokens = True
    return core


def _with_names_outside_text(core: Tokenizer) -> Tokenizer:
    """The same ids, but the special tokens of the model's vocabulary begin with a code point that is no character."""
    description = json.loads(core.to_str())
    model, added = description["model"], description["added_tokens"]
    # A model that needs the unknown token by its name keeps it.
    names = {token["content"]: f"\uffff{token['content']}" for token in added if token["special"]}
    names.pop(model.get("unk_token"), None)
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): number for word, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    # Puts special tokens around a text, which is not wanted here, and knows them by their names.
    description["post_processor"] = None
    return Tokenizer.from_str(json.dumps(description))


def _load(place: str | Path, shown: str) -> "PreTrainedTokenizerBase":
    # Late, because it takes seconds.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    # transformers raises whatever its parsers and the hub's client raise, often wrapped.
    except Exception as error:
        raise UserError(f"{shown} cannot be loaded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    from huggingface_hub import errors

    sentences = {
        errors.GatedRepoError: "it is gated; ask for access on its page and log in with `hf auth login`",
        errors.RepositoryNotFoundError: "there is no such repository, or it is private; correct the name or log in",
        errors.LocalEntryNotFoundError: "it is not in the local cache and the hub cannot be reached (offline)",
    }
    cause: BaseException | None = error
    while cause is not None:
        for kind, sentence in sentences.items():
            if isinstance(cause, kind):
                return sentence
        cause = cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}; give a folder or hub name that holds a fast tokenizer"


def _as_folder(core: Tokenizer, folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    # split_special_tokens: `<eos>` in a text is the characters, also for who loads the folder elsewhere.
    # padding_side: prompts of a batch must end together for the model to go on with them.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **SPECIAL_TOKENS,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _training_texts(folder: Path, max_bytes: int | None, bar: Progress) -> Iterator[list[str]]:
    """The first bytes of a split in lots for the trainer."""
    left = max_bytes
    for texts in _text_lots(folder):
        lot: list[str] = []
        for text in texts:
            size = len(text.encode())
            if left is not None and size > left:
                text, size = text.encode()[:left].decode(errors="ignore"), left
            lot += _training_pieces(text)
            bar.advance(size)
            left = None if left is None else left - size
        yield lot
        if left == 0:
            return


def _training_pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), TRAINING_PIECE):
        piece = text[start : start + TRAINING_PIECE]
        # The test is twenty times as fast as the substitution.
        is_plain = max(map(len, piece.split()), default=0) <= LONGEST_RUN
        yield piece if is_plain else _LONG_RUN.sub(r"\1\2", piece)


def _bytes_per_token(encoder: Encoder, folder: Path) -> dict[str, Any]:
    measured_bytes = tokens = 0
    for ids, size in _encoded(encoder, folder):
        measured_bytes += size
        tokens += len(ids)
        if measured_bytes >= MEASURED_BYTES:
            break
    return {
        "validation_bytes": measured_bytes,
        "validation_tokens": tokens,
        "validation_bytes_per_token": round(measured_bytes / tokens, 4) if tokens else None,
    }


def _encoded(encoder: Encoder, folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Ids and UTF-8 bytes of each document of a split."""
    for path in parts_of(folder):
        for texts in texts_of(path):
            sizes = pc.binary_length(texts).to_pylist()
            yield from zip(encoder.documents(texts, path), sizes, strict=True)


def _text_lots(folder: Path) -> Iterator[list[str]]:
    for path in parts_of(folder):
        for texts in texts_of(path):
            for start in range(0, len(texts), 256):
                yield texts.slice(start, 256).to_pylist()
