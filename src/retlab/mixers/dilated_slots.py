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

NOTHING = -(2**62)
"""Stands for the segment of a slot that holds no token."""


class TokenOrder(NamedTuple):
    """The real tokens of the rows of a piece, in order; b is the batch, or 1 where all rows are alike.

    `token` (b, T) says where in the piece the n-th real token is, `place` (b, T) which token of its document it is,
    from 0 and with those before the piece; both mean nothing from `length` (b, 1) on. `own_place` (b, T) is the place
    of the token at each index of the piece, `open_place` (b, 1) that of the token that would come next.
    """

    token: torch.Tensor
    place: torch.Tensor
    length: torch.Tensor
    own_place: torch.Tensor
    open_place: torch.Tensor


class BranchSlots(NamedTuple):
    """The reader and the writer of every cell, (b, H, cells) int64, and the segments that they belong to.

    `reader` is the number of tokens where a cell has none. A segment is named by the rank of its first token among
    the real tokens of the piece, negative for one that began before it.
    """

    reader: torch.Tensor
    writer: torch.Tensor
    reader_unit: torch.Tensor
    writer_unit: torch.Tensor


def token_order(
    tokens: int, segment_ids: torch.Tensor | None, past: torch.Tensor | None, device: torch.device
) -> TokenOrder:
    """Order and places of the tokens of a piece; `past` (batch,) counts the tokens of the document 0 before it."""
    index = torch.arange(tokens, device=device)[None]
    before = torch.zeros_like(index[:, :1]) if past is None else past[:, None]
    if segment_ids is None:
        place = index + before
        return TokenOrder(index, place, torch.full_like(before, tokens), place, before + tokens)
    real = segment_ids >= 0
    token = (~real).long().argsort(dim=1, stable=True)
    document = segment_ids.gather(1, token)
    begins = document != F.pad(document, (1, 0))[:, :-1]
    place = index - torch.where(begins, index, -before).cummax(dim=1).values
    rank = real.long().cumsum(dim=1)
    length = rank[:, -1:]
    last = place.gather(1, (length - 1).clamp(min=0))
    return TokenOrder(
        token, place, length, place.gather(1, (rank - 1).clamp(min=0)), torch.where(length > 0, last + 1, before)
    )


def head_offsets(heads: int, device: torch.device) -> torch.Tensor:
    """The numbers of the heads (H, 1): head h keeps the tokens h mod r of a segment."""
    return torch.arange(heads, device=device)[:, None]


def branch_slots(order: TokenOrder, segment: int, ratio: int, heads: int) -> BranchSlots:
    """The cells of a branch of segments of `segment` tokens, of which each head keeps one in `ratio`."""
    tokens = order.token.shape[1]
    index = torch.arange(tokens, device=order.token.device)
    fill = -tokens % ratio
    unit = torch.where(index < order.length, index - order.place % segment, NOTHING)
    unit = F.pad(unit, (0, fill), value=NOTHING)[:, None]
    token = F.pad(order.token.expand(unit.shape[0], -1), (0, fill), value=tokens)[:, None].expand(-1, heads, -1)
    first, last = unit[..., ::ratio], unit[..., ratio - 1 :: ratio]
    start = torch.arange(0, tokens, ratio, device=unit.device)
    offsets = head_offsets(heads, unit.device)
    # The only rank in the cell that lies a multiple of the ratio behind the segment's start and the head's offset.
    read, write = (start + (edge + offsets) % ratio for edge in (first, last))
    reads = (unit.expand(-1, heads, -1).gather(2, read) == first) & (first != NOTHING)
    writes = (write >= last) & (last != NOTHING)
    return BranchSlots(
        torch.where(reads, token.gather(2, read), tokens),
        token.gather(2, write),
        # No writer has this number.
        torch.where(reads, first, NOTHING + 1),
        torch.where(writes, last, NOTHING),
    )
