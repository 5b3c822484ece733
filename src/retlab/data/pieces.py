"""Long documents in pieces whose tokens, one after the other, are the tokens of the whole document.

GPT-2's pre-tokeniser splits text into words by a regular expression that is matched from left to right, with no look
back and one character of look ahead, and BPE merges inside words only. So the text may be cut

1. before a blank or line end that follows a visible character: no word goes on across it, and the look ahead, which
   concerns white space before a visible character, sees the same on both sides;
2. after any visible word that the expression finds from an earlier cut on, if another word follows it.

A single word longer than a piece (a megabyte of letters) is encoded by `encode_word`, on the property of BPE that a
sequence of tokens is the encoding of its text exactly if every two neighbours in it are the encoding of theirs (van
Antwerpen and Neubeck, "So many tokens, so little time", 2024).

For other tokenizers no rule is known. They are tried on the text around a cut: where nothing changes, the cut is made.
"""

import json
import re
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers

PIECE = 2**16
"""Characters after which a document is cut at the next place that allows it."""

MOST_TRIALS = 64
TRIAL_CONTEXT = 512
"""Characters before and behind a cut that are looked at."""

# GPT-2's words (Radford et al., 2019). Found by the pre-tokeniser itself, because every library has its own version of
# Unicode's tables of letters.
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
_ALPHABET = set(pre_tokenizers.ByteLevel.alphabet())
_LOOK_AHEAD = 3
"""Characters behind a word that can have a say in where it ends: an apostrophe and two letters are one word."""

CUT = re.compile(r"(?<=[!-~\w])(?=[ \n])")
"""Matches nothing, at the places of rule 1."""


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    is_word: bool
    "Exactly one word of the pre-tokeniser."


def can_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is the byte-level BPE that the rules of this module hold for."""
    if not tokenizer.get_vocab(with_added_tokens=False).keys() >= _ALPHABET:
        return False
    description = json.loads(tokenizer.to_str())
    model, words = description["model"], description["pre_tokenizer"] or {}
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    return (
        isinstance(tokenizer.model, models.BPE)
        and not any(model.get(key) for key in plain)
        and description["normalizer"] is None
        and words.get("type") == "ByteLevel"
        and words.get("use_regex", True)
        and not words["add_prefix_space"]
        # Added tokens that are not special are found in the text before it is split into words.
        and all(token["special"] for token in description["added_tokens"])
    )


def pieces(text: str, size: int = PIECE) -> Iterator[Piece]:
    """Cut a document where cutting changes no token; most documents are one piece."""
    start = 0
    while len(text) - start > 2 * size:
        cut = CUT.search(text, start + size, start + 2 * size)
        if cut is not None:
            end, is_word = cut.end(), False
        else:
            end, is_word = _end_of_words(text, start, size)
        yield Piece(text[start:end], is_word)
        start = end
    yield Piece(text[start:], False)


def _end_of_words(text: str, start: int, size: int) -> tuple[int, bool]:
    """End of the last visible word that ends within `size` characters; without one, end of the first word, and True."""
    stretch = text[start : start + size + _LOOK_AHEAD]
    words = [span for _, span in _WORDS.pre_tokenize_str(stretch)]
    for low, high in reversed(words):
        if high <= size and not stretch[low:high].isspace():
            return start + high, False
    end = start + words[0][1]
    return (end if words[0][1] < len(stretch) else _end_of_word(text, end, size)), True


def _end_of_word(text: str, end: int, size: int) -> int:
    """End of a word that goes on at least up to `end`. Its last two characters say what it may go on with."""
    while end < len(text):
        stretch = text[end - 2 : end + size]
        _, (_, length) = _WORDS.pre_tokenize_str(stretch)[0]
        end += length - 2
        if length < len(stretch):
            break
    return end


def tried_pieces(tokenizer: Tokenizer, text: str, size: int = PIECE) -> Iterator[Piece]:
    """Cut a document for any tokenizer, where the text around each cut has the same tokens with the cut and without."""
    start = 0
    while len(text) - start > 2 * size:
        candidates = islice((cut.end() for cut in CUT.finditer(text, start + size)), MOST_TRIALS)
        end = next((cut for cut in candidates if _changes_nothing(tokenizer, text, cut)), None)
        if end is None:
            break
        yield Piece(text[start:end], False)
        start = end
    yield Piece(text[start:], False)


def _changes_nothing(tokenizer: Tokenizer, text: str, cut: int) -> bool:
    parts = [text[max(0, cut - TRIAL_CONTEXT) : cut], text[cut : cut + TRIAL_CONTEXT]]
    left, right, joint = (
        encoding.ids for encoding in tokenizer.encode_batch_fast([*parts, "".join(parts)], add_special_tokens=False)
    )
    return left + right == joint


def encode_word(tokenizer: Tokenizer, word: str, size: int = PIECE) -> "array[int]":
    """Ids of a text that the pre-tokeniser takes for one word, from left to right, in a few bytes per token.

    Each stretch starts at a token boundary of the one before, of which the last tokens are given up: they would be
    others if the text went on. The seam holds if its two tokens are the encoding of their joint text. If they are not,
    what was kept depends on what follows: more of it is given up, and stretches are longer from there on.
    """
    spelled = _spell(word, size)
    ids, widths = array("I"), array("I")
    start, given_up = 0, 64
    while True:
        tokens = tokenizer.model.tokenize(spelled[start : start + size])
        if ids and not _fit(tokenizer, ids[-1], tokens[0].id):
            start -= sum(widths[-given_up:])
            del ids[-given_up:], widths[-given_up:]
            size, given_up = 2 * size, 2 * given_up
            continue
        if start + size >= len(spelled):
            ids.extend(token.id for token in tokens)
            return ids
        kept = tokens[: len(tokens) - min(given_up, len(tokens) // 4)]
        ids.extend(token.id for token in kept)
        widths.extend(len(token.value) for token in kept)
        start += sum(widths[-len(kept) :])


def _spell(word: str, size: int) -> str:
    """The characters that stand for the word's UTF-8 bytes in the vocabulary, one for each byte."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    return "".join(spell(word[start : start + size])[0][0] for start in range(0, len(word), size))


def _fit(tokenizer: Tokenizer, left: int, right: int) -> bool:
    """Whether two tokens are the encoding of their joint text."""
    joint = (tokenizer.id_to_token(left) or "") + (tokenizer.id_to_token(right) or "")
    return [token.id for token in tokenizer.model.tokenize(joint)] == [left, right]
