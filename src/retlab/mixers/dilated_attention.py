"""Dilated attention (LongNet, Ding et al. 2023, arXiv:2307.02486): causal softmax attention of linear cost.

A branch with segment length w and dilation ratio r cuts every document into segments of w tokens; head h keeps the
tokens h mod r, h mod r + r, ... of each, and they attend to each other causally. The branches' outputs are weighted by
their shares of the sum of the softmax denominators (eq. 9 and 10), so that a head's output at a token is one softmax
over the keys of all branches that kept the token; gradients flow through the weights too (TorchScale's do not). A head
whose branches all drop a token has the output zero there, which a branch of ratio 1 rules out. A smallest ratio above
the number of heads is refused, because some tokens would be dropped by every head.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from .base import Misfit, refuse
from .dilated_layout import Layout, layout_of
from .dilated_pairs import attend_to_pairs, suits_pairs
from .dilated_slots import Branch, branch_slots
from .dilated_state import DilatedState, next_state, one_more_token, past_of, take_tokens
from .heads import AttentionHeads
from .rotary import Rotation
from .segment_attention import EMPTY, attend_in_blocks, widened
from .whole_segments import attend_in_whole_segments, has_flash


def branch_misfits(segment_lengths: Sequence[int], dilation_ratios: Sequence[int], num_heads: int) -> Iterator[Misfit]:
    """What is wrong with lists that describe no dilated attention."""
    segments, ratios = list(segment_lengths), list(dilation_ratios)
    both = ("segment_lengths", "dilation_ratios")
    whole = True
    for name, numbers in zip(both, (segments, ratios), strict=True):
        if numbers and min(numbers) < 1:
            whole = False
            yield (name,), f"{name} {numbers} must be whole numbers of at least 1."
    if min(segments, default=1) >= 1 and any(a >= b for a, b in pairwise(segments)):
        yield ("segment_lengths",), f"segment_lengths {segments} must increase."
    if not segments or len(segments) != len(ratios):
        yield (
            both,
            f"segment_lengths {segments} and dilation_ratios {ratios} must be lists of the same length, one or more: "
            "every segment length has its ratio.",
        )
    elif whole:
        for segment, ratio in zip(segments, ratios, strict=True):
            if ratio > segment:
                yield both[::-1], f"A dilation ratio ({ratio}) must not exceed its segment length ({segment})."
    if ratios and min(ratios) > num_heads > 0:
        yield (
            ("dilation_ratios", "num_heads"),
            f"The smallest of dilation_ratios {ratios} must not exceed the number of heads ({num_heads}): head h keeps "
            "the tokens h mod ratio, and some tokens would be kept by none.",
        )


class DilatedAttention(AttentionHeads):
    """Multi-head dilated attention with rotary positions of base `rope_theta` (Su et al. 2021) and no biases."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = 4,
        segment_lengths: tuple[int, ...] = (64, 256, 1024),
        dilation_ratios: tuple[int, ...] = (1, 2, 4),
        rope_theta: float = 10_000.0,
    ) -> None:
        super().__init__(hidden_size, num_heads, rope_theta)
        refuse(branch_misfits(segment_lengths, dilation_ratios, num_heads))
        self.branches = [Branch(*pair) for pair in zip(segment_lengths, dilation_ratios, strict=True)]

    @classmethod
    def misfits(cls, hidden_size: int, settings: Mapping[str, Any]) -> Iterator[Misfit]:
        """Heads that do not divide the width, and lists that describe no branches."""
        yield from super().misfits(hidden_size, settings)
        yield from branch_misfits(*(settings[name] for name in ("segment_lengths", "dilation_ratios", "num_heads")))

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        segment_ids: torch.Tensor | None = None,
        state: DilatedState | None = None,
        layout: Layout | None = None,
    ) -> tuple[torch.Tensor, DilatedState]:
        qkv = self.project(hidden, rotation)
        out, new_state = dilated_attention(*qkv, self.branches, segment_ids, state, layout)
        return self.merge(out), new_state

    @property
    def layout_kind(self) -> Hashable:
        """Heads and branches."""
        return (self.num_heads, *self.branches)

    def layout(
        self, hidden: torch.Tensor, segment_ids: torch.Tensor | None, state: DilatedState | None
    ) -> Layout | None:
        """Order of the tokens and which of them meet; None where that is not worth sharing."""
        rows, tokens = hidden.shape[:2]
        if state is None:
            past = None
            shared = segment_ids is not None or suits_pairs(hidden.device, rows, self.num_heads, tokens, self.branches)
        else:
            past, shared = state.place, tokens > 1
        return layout_of(hidden, self.num_heads, self.branches, segment_ids, past) if shared else None

    @property
    def can_advance(self) -> bool:
        """Never: the state's slots grow with the tokens up to the longest segment."""
        return False

    def core_flops_per_token(self, sequence_length: int) -> float:
        """Scores and weighted sums of every branch over the half of its squares that the causal mask leaves.

        One token in `ratio` is kept per head, and reads one in `ratio` of its segment.
        """
        pairs = sum(min(segment, sequence_length) / ratio**2 for segment, ratio in self.branches)
        return 2 * pairs * self.num_heads * self.head_width


def dilated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    branches: list[Branch],
    segment_ids: torch.Tensor | None = None,
    state: DilatedState | None = None,
    layout: Layout | None = None,
) -> tuple[torch.Tensor, DilatedState]:
    """The dilated attention of (positioned) queries, keys and values, and the state after the last token.

    q, k, v (batch, heads, tokens, head width) in one floating dtype; `segment_ids` (batch, tokens) int64 as in `base`,
    and `layout` what they mean here, where that is known. Returns (batch, heads, tokens, head width) in the dtype of v.
    Work and memory are linear in tokens, but for pieces so short that a square costs less. Softmax is computed in
    float32 at least, and autocast is left out.
    """
    with torch.autocast(device_type=q.device.type, enabled=False):
        if state is not None and q.shape[2] == 1:
            return one_more_token(q, k, v, branches, segment_ids, state)
        if layout is None:
            place = None if state is None else state.place
            layout = layout_of(q.transpose(1, 2), q.shape[1], branches, segment_ids, place)
        if layout.pairs is not None:
            out = attend_to_pairs(q, k, v, layout.pairs)
        elif layout.order.plain and has_flash(q):
            out = attend_in_whole_segments(q, k, v, branches)
        else:
            out = _mix(q, k, v, branches, layout, state)
        return out, next_state(k, v, branches, layout.order, state)


def _mix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    branches: list[Branch],
    layout: Layout,
    state: DilatedState | None,
) -> torch.Tensor:
    """One softmax over what every token reads: itself, once per branch that kept it, and what came before it."""
    heads, tokens, width = q.shape[1:]
    itself = (widened(q) * widened(k)).sum(-1) * width**-0.5 + layout.times
    slots_of_branches = layout.slots or [branch_slots(layout.order, branch, heads) for branch in branches]
    totals, earlier = [itself], []
    for branch, slots, past in zip(branches, slots_of_branches, past_of(branches, heads, state), strict=True):
        out, total = attend_in_blocks(
            take_tokens(q, slots.reader),
            take_tokens(k, slots.writer),
            take_tokens(v, slots.writer),
            branch.slots(branch.segment),
            slots.segments,
            past,
        )
        reader = slots.reader.expand(q.shape[0], -1, -1)
        # The slot behind the last takes what belongs to no token.
        at_tokens = total.new_full((*q.shape[:2], tokens + 1), EMPTY).scatter(2, reader, total)
        totals.append(at_tokens[..., :tokens])
        earlier.append((reader, out, total))
    together = torch.stack(totals).logsumexp(0)
    out = F.pad((itself - together).exp().to(v.dtype)[..., None] * v, (0, 0, 0, 1))
    together = F.pad(together, (0, 1), value=-EMPTY)
    for reader, from_branch, total in earlier:
        share = (total - together.gather(2, reader)).exp().to(v.dtype)[..., None]
        out = out.scatter_add(2, reader[..., None].expand_as(from_branch), share * from_branch)
    return out[:, :, :tokens]
