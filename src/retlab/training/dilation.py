"""What the branches of dilated attention leave out in windows of one length: said before a training, never refused."""

from collections.abc import Iterator

import numpy as np

from retlab.mixers import DilatedAttention
from retlab.mixers.dilated_slots import Branch
from retlab.models.counting import body_without_weights
from retlab.models.fields import ModelFields


def dilation_notes(fields: ModelFields, tokens: int) -> list[str]:
    """A line for everything that windows of so many tokens make of no use, or that no head reads."""
    mixers = [module for module in body_without_weights(fields).modules() if isinstance(module, DilatedAttention)]
    return list(dict.fromkeys(note for one in mixers for note in branch_notes(one.branches, one.num_heads, tokens)))


def branch_notes(branches: list[Branch], num_heads: int, tokens: int) -> Iterator[str]:
    """The notes about one mixer; head h keeps the tokens h mod ratio of every segment."""
    for number, branch in enumerate(branches):
        segment, ratio = branch
        name = f"note: dilated attention, branch {segment}/{ratio} (segment length/dilation ratio):"
        wider = _contains(branches, number, tokens)
        if min(segment, tokens) <= ratio:
            yield f"{name} a head keeps one token of a segment, which then reads itself alone; lower the ratio"
        elif wider is not None:
            other = "/".join(map(str, wider))
            yield f"{name} in windows of {tokens:,} tokens it reads nothing that branch {other} does not read too"
        elif segment > tokens:
            yield f"{name} windows have {tokens:,} tokens, so that the branch is trained as one of segment {tokens}"
        if ratio > num_heads:
            yield (
                f"{name} {num_heads} {'head keeps' if num_heads == 1 else 'heads keep'} {num_heads} of every {ratio}"
                f" tokens, and the other {ratio - num_heads} neither read nor are read in this branch;"
                f" a ratio of at most {num_heads} keeps all"
            )
    silent = max(_silent_share(branches, head, tokens) for head in range(num_heads))
    if silent:
        yield (
            f"note: dilated attention: no branch has the ratio 1, so that a head is silent (its output is zero) at up"
            f" to {silent:.0%} of the tokens, those that all its branches drop"
        )


def _contains(branches: list[Branch], number: int, tokens: int) -> Branch | None:
    """Another branch of which every head reads in a window whatever it reads in this one; of two equals the first."""
    for index, other in enumerate(branches):
        if index != number and _reads_in(branches[number], other, tokens):
            if number < index and _reads_in(other, branches[number], tokens):
                continue
            return other
    return None


def _reads_in(branch: Branch, other: Branch, tokens: int) -> bool:
    segments = other.segment >= tokens or other.segment % branch.segment == 0
    # Both count places from the same tokens on, or from ones that differ by whole ratios.
    places = branch.segment >= tokens or branch.segment % other.ratio == 0
    return segments and places and branch.ratio % other.ratio == 0


def _silent_share(branches: list[Branch], head: int, tokens: int) -> float:
    """Share of the tokens of a window that a head's branches all drop."""
    place = np.arange(tokens)
    kept = np.zeros(tokens, dtype=bool)
    for segment, ratio in branches:
        kept |= place % segment % ratio == head % ratio
    return float(1 - kept.mean())
