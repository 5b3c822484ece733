"""Ids of text that is made of words seen before: four times as fast, on one core, as the tokenizer that it asks."""

import re
from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from retlab.data.pieces import CUT

MOST_WORDS = 2**18
"""Words that are remembered, about 50 MB."""
LONGEST_WORD = 64

# GPT-2's words where all characters are ASCII; `pieces` has the full expression. White space as Unicode defines it.
_SPACE = r"\t\n\x0b\x0c\r "
_ASCII_WORD = re.compile(
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^{_SPACE}A-Za-z0-9]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)


class WordMemo(dict[str, bytes]):
    """Encodes text word by word, each distinct word once, for tokenizers that `pieces.can_be_cut`.

    Words with other than ASCII characters are taken from one safe cut to the next, so that the tokenizer alone decides
    what in them is a letter.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: npt.DTypeLike) -> None:
        super().__init__()
        self._tokenizer, self._dtype = tokenizer, np.dtype(dtype)

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word, add_special_tokens=False).ids, dtype=self._dtype).tobytes()
        if len(self) < MOST_WORDS and len(word) <= LONGEST_WORD:
            self[word] = ids
        return ids

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text."""
        return np.frombuffer(b"".join(map(self.__getitem__, _words(text))), dtype=self._dtype)


def _words(text: str) -> list[str] | Iterator[str]:
    if text.isascii():
        return _ASCII_WORD.findall(text)
    stretches = CUT.split(text)
    return chain.from_iterable(_ASCII_WORD.findall(one) if one.isascii() else (one,) for one in stretches)
