"""Which tokens meet in a branch of dilated attention, as indices of fixed shape.

Segments begin where a document does, and padding lies anywhere, so segments lie anywhere in a row. What holds
everywhere: among the real tokens of a row, a head keeps every r-th of a segment. Cut the real tokens into cells of r.
A segment has one kept token per cell at most, and

- a kept token with an earlier one in its segment lies in a cell in which that segment was open from the beginning:
  one such reader per cell;
- it reads, of every earlier cell, the kept token of the segment that was open at that cell's end: one writer per cell.

So T / r readers and as many writers hold every pair of a branch but those of a token with itself.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .segment_attention import EMPTY, Segments

# Stands for the segment of what is no token.
_NOTHING = -(2**62)


class Branch(NamedTuple):
    """One segment length with its dilation ratio, in tokens."""

    segment: int
    ratio: int

    def slots(self, fed: int) -> int:
        """Tokens that a head keeps of a segment, of `fed` tokens at most."""
        return -(-min(fed, self.segment) // self.ratio)


class TokenOrder(NamedTuple):
    """The real tokens of the rows of a piece, in order; b is the batch, or 1 where all rows are alike.

    `token` (b, T) says where in the piece the n-th real token is, `place` (b, T) which token of its document it is,
    from 0 and with those before the piece; both mean nothing from `length` (b, 1) on. `own_place` (b, T) is the place
    of the token at each index of the piece, `open_place` (b, 1) that of the token that would come next. `plain` says
    that there is neither padding nor a boundary nor a past.
    """

    token: torch.Tensor
    place: torch.Tensor
    length: torch.Tensor
    own_place: torch.Tensor
    open_place: torch.Tensor
    plain: bool


class BranchSlots(NamedTuple):
    """Where in the piece the reader and the writer of every cell are, (b, H, cells) int64, and their segments.

    `reader` is the number of tokens where a cell has none. A segment is named by the rank of its first token among
    the real tokens of the piece, negative for one that began before it. None stands for segments of whole cells that
    follow each other from the first on.
    """

    reader: torch.Tensor
    writer: torch.Tensor
    segments: Segments | None


def token_order(
    tokens: int, segment_ids: torch.Tensor | None, past: torch.Tensor | None, device: torch.device
) -> TokenOrder:
    """Order and places of the tokens of a piece; `past` (batch,) counts the tokens of the document 0 before it."""
    index = torch.arange(tokens, device=device)[None]
    before = torch.zeros_like(index[:, :1]) if past is None else past[:, None]
    if segment_ids is None:
        place = index + before
        return TokenOrder(index, place, torch.full_like(before, tokens), place, before + tokens, past is None)
    real = segment_ids >= 0
    token = (~real).long().argsort(dim=1, stable=True)
    document = segment_ids.gather(1, token)
    begins = document != F.pad(document, (1, 0))[:, :-1]
    place = index - torch.where(begins, index, -before).cummax(dim=1).values
    rank = real.long().cumsum(dim=1)
    length = rank[:, -1:]
    own_place = place.gather(1, (rank - 1).clamp(min=0))
    following = place.gather(1, (length - 1).clamp(min=0)) + 1
    return TokenOrder(token, place, length, own_place, torch.where(length > 0, following, before), False)


def head_offsets(heads: int, device: torch.device) -> torch.Tensor:
    """The numbers of the heads (H, 1): head h keeps the tokens h mod r of a segment."""
    return torch.arange(heads, device=device)[:, None]


def kept_places(branch: Branch, slots: int, heads: int, device: torch.device) -> torch.Tensor:
    """Places in a segment of the first `slots` tokens that each head keeps (1, H, slots)."""
    return (head_offsets(heads, device) % branch.ratio + torch.arange(slots, device=device) * branch.ratio)[None]


def branch_slots(order: TokenOrder, branch: Branch, heads: int) -> BranchSlots:
    """The cells of a branch."""
    segment, ratio = branch
    tokens, device = order.token.shape[1], order.token.device
    fill = -tokens % ratio
    unit = torch.where(
        torch.arange(tokens, device=device) < order.length,
        torch.arange(tokens, device=device) - order.place % segment,
        _NOTHING,
    )
    unit = F.pad(unit, (0, fill), value=_NOTHING)[:, None]
    token = F.pad(order.token.expand(unit.shape[0], -1), (0, fill), value=tokens)[:, None].expand(-1, heads, -1)
    first, last = unit[..., ::ratio], unit[..., ratio - 1 :: ratio]
    start = torch.arange(0, tokens, ratio, device=device)
    # The only rank in the cell that lies a multiple of the ratio behind the segment's start and the head's offset.
    read, write = (start + (edge + head_offsets(heads, device)) % ratio for edge in (first, last))
    reads = (unit.expand(-1, heads, -1).gather(2, read) == first) & (first != _NOTHING)
    reader, writer = torch.where(reads, token.gather(2, read), tokens), token.gather(2, write)
    if order.plain and segment % ratio == 0:
        return BranchSlots(reader, writer, None)
    writes = (write >= last) & (last != _NOTHING)
    return BranchSlots(reader, writer, Segments(first, last, torch.where(writes, 0.0, EMPTY)))
