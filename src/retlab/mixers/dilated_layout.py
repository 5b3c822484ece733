"""What the documents of a piece mean to dilated attention: the same for all mixers with the same branches and heads."""

from typing import NamedTuple

import torch

from .dilated_pairs import Pairs, suits_pairs, weigh_pairs
from .dilated_slots import Branch, BranchSlots, TokenOrder, branch_slots, head_offsets, token_order


class Layout(NamedTuple):
    """Where the tokens of a piece stand, and which of them meet; b is the batch, or 1 where all rows are alike.

    `times` (b, H, T) is the logarithm of the number of branches that keep a token for a head. `pairs` is for all pairs
    at once; `slots`, one per branch, for their cells. Neither is there where the segments are whole and nothing of
    them is worth sharing.
    """

    order: TokenOrder
    times: torch.Tensor
    pairs: Pairs | None
    slots: tuple[BranchSlots, ...] | None


def layout_of(
    like: torch.Tensor,
    heads: int,
    branches: list[Branch],
    segment_ids: torch.Tensor | None,
    past: torch.Tensor | None,
) -> Layout:
    """The layout of a piece; `like` (batch, tokens, ...) has its device and dtype, `past` is the `place` of a state."""
    rows, tokens = like.shape[:2]
    order = token_order(tokens, segment_ids, past, like.device)
    offsets, place = head_offsets(heads, like.device), order.own_place[:, None]
    keeping = torch.stack([place % segment % ratio == offsets % ratio for segment, ratio in branches]).sum(0)
    # Logarithms too are those of the widest dtype that the scores may have.
    dtype = torch.promote_types(like.dtype, torch.float32)
    pairs, slots = None, None
    if past is None and suits_pairs(like.device, rows, heads, tokens, branches):
        pairs = weigh_pairs(order, segment_ids, branches, keeping, dtype)
    elif not order.plain:
        slots = tuple(branch_slots(order, branch, heads) for branch in branches)
    return Layout(order, keeping.to(dtype).log(), pairs, slots)
