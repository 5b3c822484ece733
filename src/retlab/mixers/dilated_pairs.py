"""Dilated attention over all pairs of a piece at once: for pieces so short that leaving pairs out costs more.

The weighted branches are one softmax over all their pairs. So a pair that n branches hold has log n added to its score,
and one that none holds does not exist.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .dilated_slots import Branch, TokenOrder, head_offsets
from .segment_attention import EMPTY

# Pairs that cost no more than one of a branch's; measured on a CPU, at segments of 64 to 1,024 tokens.
CHEAP_PAIRS = 4

# Most weights of pairs, which are kept for the backward pass (64 MiB of float32).
MOST_WEIGHTS = 2**24


class Pairs(NamedTuple):
    """What is added to the score of query n and key m, (b, H, T, T), b the batch or 1; EMPTY for no pair.

    `heard` (b, H, T, 1) is False at tokens that no branch keeps for a head; None where there are none.
    """

    weights: torch.Tensor
    heard: torch.Tensor | None


def suits_pairs(device: torch.device, rows: int, heads: int, tokens: int, branches: list[Branch]) -> bool:
    """Whether all pairs at once are the fastest way on this device."""
    if device.type != "cpu" or rows * heads * tokens**2 > MOST_WEIGHTS:
        return False
    return tokens <= CHEAP_PAIRS * sum(min(segment, tokens) / ratio**2 for segment, ratio in branches)


def weigh_pairs(
    order: TokenOrder,
    segment_ids: torch.Tensor | None,
    branches: list[Branch],
    keeping: torch.Tensor,
    dtype: torch.dtype,
) -> Pairs:
    """The weights of a piece without a past; `keeping` (b, H, T) counts the branches that keep a token for a head."""
    tokens, device = order.own_place.shape[1], order.own_place.device
    offsets, place = head_offsets(keeping.shape[1], device), order.own_place[:, None]
    if segment_ids is None:
        real, rank = torch.ones_like(place, dtype=torch.bool), place
    else:
        real = (segment_ids >= 0)[:, None]
        rank = real.cumsum(2) - 1
    # What reads nothing reads itself, so that no row is empty.
    silent, own = ~real | (keeping == 0), -3 - torch.arange(tokens, device=device)
    times = torch.full((), len(branches), dtype=torch.uint8, device=device)
    for index, (segment, ratio) in enumerate(branches):
        kept = real & (place % segment % ratio == offsets % ratio)
        # A segment is named by the rank of its first token; what is not kept, by numbers that no other side has.
        name = rank - place % segment
        query, key = torch.where(kept, name, -1), torch.where(kept, name, -2)
        if index == 0:
            query, key = (torch.where(silent, own, x) for x in (query, key))
        # On a CPU faster than comparing; the numbers are as small as the square must be.
        difference = query.to(torch.int16)[..., :, None] - key.to(torch.int16)[..., None, :]
        times = times - difference.bool().to(torch.uint8)
    exists = times.bool() & torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    weights = times.clamp(min=1).to(dtype).log() + (~exists).to(dtype) * EMPTY
    return Pairs(weights, None if min(ratio for _, ratio in branches) == 1 else keeping[..., None] > 0)


def attend_to_pairs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Dilated attention of q, k, v (batch, heads, tokens, head width)."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=pairs.weights)
    return out if pairs.heard is None else out * pairs.heard
