"""Documents into token ids in bounded memory, however long one of them is."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from retlab.data.pieces import Piece, can_be_cut, encode_word, pieces, tried_pieces
from retlab.data.shards import token_dtype
from retlab.data.word_memo import WordMemo
from retlab.errors import UserError
from retlab.section import shown_path

LONGEST_WHOLE = 2**23
"""Characters that are encoded at once at most, which takes about 150 bytes for each: by one thread at a time."""
LOT_CHARACTERS = 2**20
"""Text that the tokenizer gets at once, to spread over its own threads."""
FEW_CORES = 4
"""Up to so many, looking words up on one core (4.6 MB/s measured) beats the tokenizer's threads (1.6 MB/s a core)."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Encoder:
    """Text to ids, documents in pieces where the tokenizer allows it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, available: int | None = None) -> None:
        """Take the fast core of a tokenizer, as `text_tokenizer` gives it; ids are uint16, or uint32 above 65,536.

        `available` is how many cores it may use; None is all that this process may. The ids do not depend on it.
        """
        self._tokenizer, self._can_be_cut = tokenizer, can_be_cut(tokenizer)
        self._dtype = token_dtype(vocab_size)
        self._large = threading.Lock()
        use_memo = self._can_be_cut and (available or cores()) <= FEW_CORES
        self._memo = WordMemo(tokenizer, self._dtype) if use_memo else None

    def documents(self, texts: pa.LargeStringArray, source: Path) -> Iterator[np.ndarray]:
        """Ids of each document of a file, in order.

        Raises:
            UserError: a document is too long for a tokenizer that cannot be cut.
        """
        parts: list[np.ndarray] = []
        for lot in _lots(self._pieces(_each(texts), source)):
            for ids, ends in zip(self._encode([piece for piece, _ in lot]), [ends for _, ends in lot], strict=True):
                parts.append(ids)
                if ends:
                    yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                    parts = []

    def _pieces(self, texts: Iterable[str], source: Path) -> Iterator[tuple[Piece, bool]]:
        """Each document's pieces, and whether a piece is its last."""
        for text in texts:
            last = Piece("", False)
            for number, piece in enumerate(pieces(text) if self._can_be_cut else tried_pieces(self._tokenizer, text)):
                if len(piece.text) > LONGEST_WHOLE and not piece.is_word:
                    raise UserError(
                        f"{shown_path(source)}: a document of {len(text):,} characters cannot be cut for this tokenizer"
                        f" without other tokens, and more than {LONGEST_WHOLE:,} at once take too much memory;"
                        " split or drop it"
                    )
                if number:
                    yield last, False
                last = piece
            yield last, True

    def _encode(self, lot: list[Piece]) -> list[np.ndarray]:
        if self._memo is not None:
            return [self._encode_word(piece.text) if piece.is_word else self._memo.encode(piece.text) for piece in lot]
        texts = [piece.text for piece in lot if not piece.is_word]
        with self._large if sum(map(len, texts)) > 2 * LOT_CHARACTERS else nullcontext():
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ids = iter([np.array(encoding.ids, dtype=self._dtype) for encoding in encodings])
            # Before the next thread has its turn.
            del encodings
        return [self._encode_word(piece.text) if piece.is_word else next(ids) for piece in lot]

    def _encode_word(self, word: str) -> np.ndarray:
        return np.array(encode_word(self._tokenizer, word), dtype=self._dtype)


def _each(texts: pa.LargeStringArray) -> Iterator[str]:
    # A few at a time: as Python strings, a row group of short texts takes twice its memory.
    for start in range(0, len(texts), 256):
        yield from texts.slice(start, 256).to_pylist()


def _lots(all_pieces: Iterable[tuple[Piece, bool]]) -> Iterator[list[tuple[Piece, bool]]]:
    lot: list[tuple[Piece, bool]] = []
    characters = 0
    for piece, ends in all_pieces:
        lot.append((piece, ends))
        characters += len(piece.text)
        if characters >= LOT_CHARACTERS:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot
