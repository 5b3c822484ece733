"""What dilated attention remembers between two pieces of a sequence, and how one more token reads it."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .dilated_slots import Branch, TokenOrder, head_offsets, kept_places
from .segment_attention import EMPTY, Before, widened


class DilatedState(NamedTuple):
    """The keys and values that later tokens can still read: of the open segment of every branch, what the heads keep.

    `keys` and `values` (batch, heads, slots, head width) hold the branches one after the other, each with the j-th
    token that a head keeps of the segment in its j-th slot, and zeros where that token has not come. `place` (batch,)
    int64 counts the tokens of the open document. `fed` (batch, tokens fed, at most the longest segment, 0) holds no
    number: its length says how many slots the branches have.
    """

    keys: torch.Tensor
    values: torch.Tensor
    place: torch.Tensor
    fed: torch.Tensor


def take_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens (b, H, n) of x (B, H, T, width): (B, H, n, width)."""
    index = index.clamp(0, x.shape[2] - 1)[..., None]
    return x.gather(2, index.expand(*x.shape[:2], -1, x.shape[-1]))


def _of_branches(x: torch.Tensor, branches: list[Branch], fed: int) -> tuple[torch.Tensor, ...]:
    """The slots of every branch: (B, H, slots, width) each."""
    return x.split([branch.slots(fed) for branch in branches], dim=2)


def past_of(branches: list[Branch], heads: int, state: DilatedState | None) -> list[Before | None]:
    """What the branches find in the state; the segment of one began `place` tokens before the piece."""
    if state is None:
        return [None] * len(branches)
    fed, found = state.fed.shape[1], list[Before | None]()
    parts = (_of_branches(x, branches, fed) for x in (state.keys, state.values))
    for branch, keys, values in zip(branches, *parts, strict=True):
        place = state.place[:, None, None] % branch.segment
        missing = torch.where(kept_places(branch, keys.shape[2], heads, place.device) < place, 0.0, EMPTY)
        found.append(Before(keys, values, -place.expand(-1, 1, keys.shape[2]), missing))
    return found


def next_state(
    k: torch.Tensor, v: torch.Tensor, branches: list[Branch], order: TokenOrder, state: DilatedState | None
) -> DilatedState:
    """What the open segments keep after a piece of keys and values (batch, heads, tokens, head width)."""
    batch, heads, tokens, _ = k.shape
    fed = _longer(tokens, branches, state)
    place = order.open_place.expand(batch, 1)
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for branch, past in zip(branches, past_of(branches, heads, state), strict=True):
        in_segment, slots = place[:, None] % branch.segment, branch.slots(fed)
        kept = kept_places(branch, slots, heads, k.device)
        # Counted over the real tokens of this piece; negative where the state has it already.
        rank = order.length[:, None] - in_segment + kept
        token = order.token[:, None].expand(batch, heads, -1).gather(2, rank.clamp(0, tokens - 1))
        for new, old, parts in ((k, past and past.keys, keys), (v, past and past.values, values)):
            part = take_tokens(new, token)
            if old is not None:
                part = torch.where((rank < 0)[..., None], F.pad(old, (0, 0, 0, slots - old.shape[2])), part)
            parts.append(torch.where((kept < in_segment)[..., None], part, 0))
    return DilatedState(torch.cat(keys, 2), torch.cat(values, 2), place[:, 0], k.new_empty(batch, fed, 0))


def _longer(tokens: int, branches: list[Branch], state: DilatedState | None) -> int:
    """Tokens fed, at most the longest segment, after a piece."""
    return min(tokens + (0 if state is None else state.fed.shape[1]), branches[-1].segment)


def one_more_token(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    branches: list[Branch],
    segment_ids: torch.Tensor | None,
    state: DilatedState,
) -> tuple[torch.Tensor, DilatedState]:
    """The output at a token (batch, heads, 1, head width) after `state`, and the state after it.

    The weighted branches are one softmax over all that the branches which keep the token have kept.
    """
    heads, offsets, place = q.shape[1], head_offsets(q.shape[1], q.device), state.place[:, None, None]
    real: torch.Tensor | int = 1
    if segment_ids is not None:
        real = (segment_ids >= 0).long()[..., None]
        place = torch.where(segment_ids[..., None] > 0, 0, place)
    fed = _longer(1, branches, state)
    keys, values = (_with_slots(x, branches, state.fed.shape[1], fed) for x in (state.keys, state.values))
    kept, segment, ratio = _slot_table(branches, fed, heads, q.device)

    in_segment = place % segment
    readable = (in_segment % ratio == offsets % ratio) & (kept < in_segment)
    keeping = torch.stack([place % branch.segment % branch.ratio == offsets % branch.ratio for branch in branches]).sum(
        0
    )
    scale = q.shape[-1] ** -0.5
    scores = (widened(q @ keys.transpose(-1, -2))[:, :, 0] * scale).masked_fill(~readable, EMPTY)
    itself = (widened(q) * widened(k)).sum(-1) * scale + keeping.to(scores.dtype).log()
    weights = (torch.cat((scores, itself), dim=-1).softmax(-1) * (keeping > 0)).to(v.dtype)[:, :, None]
    out = weights[..., :-1] @ values + weights[..., -1:] * v

    arrives, stays = (kept == in_segment)[..., None], (kept < (place + real) % segment)[..., None]
    keys, values = (torch.where(stays, torch.where(arrives, new, old), 0) for new, old in ((k, keys), (v, values)))
    return out, DilatedState(keys, values, (place + real)[:, 0, 0], k.new_empty(k.shape[0], fed, 0))


def _with_slots(x: torch.Tensor, branches: list[Branch], before: int, fed: int) -> torch.Tensor:
    """The slots after `before` tokens with empty ones up to the number that `fed` tokens need."""
    if before == fed:
        return x
    parts = zip(branches, _of_branches(x, branches, before), strict=True)
    return torch.cat([F.pad(part, (0, 0, 0, branch.slots(fed) - part.shape[2])) for branch, part in parts], dim=2)


def _slot_table(
    branches: list[Branch], fed: int, heads: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every slot the place in its segment (1, H, slots), and its branch's segment and ratio (slots,)."""
    sizes = [branch.slots(fed) for branch in branches]
    kept = [kept_places(branch, size, heads, device) for branch, size in zip(branches, sizes, strict=True)]
    segment, ratio = (
        torch.cat([torch.full((size,), number, device=device) for number, size in zip(numbers, sizes, strict=True)])
        for numbers in zip(*branches, strict=True)
    )
    return torch.cat(kept, dim=2), segment, ratio
