"""Causal softmax attention with rotary positions, on PyTorch's scaled dot product attention."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .heads import AttentionHeads
from .kernels import causal_attention
from .rotary import Rotation

MANY_HEADS = 64
"""Rows times heads from which one query each runs on PyTorch's own kernel.

On an H200 a layer of 16 rows of 16 heads of 64 took 123 us with 8,192 slots, which is the rate of a copy; two products
and a softmax took 175, and compiled 216. What lies between that and one row was not measured.
"""


class AttentionState(NamedTuple):
    """Keys and values seen so far (batch, heads, past tokens, head width), and which of them can still be read.

    `visible` (batch, past tokens) bool is False for padding and for documents that have ended.
    """

    keys: torch.Tensor
    values: torch.Tensor
    visible: torch.Tensor

    def cropped(self, tokens: int) -> "AttentionState":
        """The state without its last `tokens` tokens."""
        kept = self.keys.shape[2] - tokens
        return AttentionState(self.keys[:, :, :kept], self.values[:, :, :kept], self.visible[:, :kept])


class Attention(AttentionHeads):
    """Multi-head attention with rotary positions of base `rope_theta` (Su et al. 2021) and no biases."""

    def __init__(
        self, hidden_size: int, *, num_heads: int = 4, rope_theta: float = 10_000.0, dropout: float = 0.0
    ) -> None:
        super().__init__(hidden_size, num_heads, rope_theta)
        self.dropout = dropout

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        segment_ids: torch.Tensor | None = None,
        state: AttentionState | None = None,
    ) -> tuple[torch.Tensor, AttentionState]:
        q, k, v = self.project(hidden, rotation)
        dropout = self.dropout if self.training else 0.0
        if state is not None:
            k, v = torch.cat((state.keys, k), dim=2), torch.cat((state.values, v), dim=2)
        if segment_ids is None and state is None:
            out = causal_attention(q, k, v, dropout, self.kernel)
        else:
            allowed = _allowed_pairs(hidden, segment_ids, state)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.merge(out), AttentionState(k, v, _visible_next(hidden, segment_ids, state))

    def reserve(self, state: AttentionState, capacity: int) -> AttentionState:
        """Zeros, because what no query reads still takes part in products, with weight zero."""
        batch, heads, _, width = state.keys.shape
        keys, values = (x.new_zeros(batch, heads, capacity, width) for x in (state.keys, state.values))
        return AttentionState(keys, values, state.visible.new_zeros(batch, capacity))

    def load(self, reserved: AttentionState, state: AttentionState) -> None:
        """Copy a state into the first slots, and hide the others."""
        used = state.keys.shape[2]
        reserved.keys[:, :, :used].copy_(state.keys)
        reserved.values[:, :, :used].copy_(state.values)
        reserved.visible.zero_()
        reserved.visible[:, :used].copy_(state.visible)

    def unload(self, reserved: AttentionState, slots: int) -> AttentionState:
        """A state of its own memory after the first `slots` slots."""
        keys, values = (x[:, :, :slots].clone() for x in (reserved.keys, reserved.values))
        return AttentionState(keys, values, reserved.visible[:, :slots].clone())

    def advance(
        self, hidden: torch.Tensor, rotation: Rotation | None, reserved: AttentionState, slot: torch.Tensor
    ) -> torch.Tensor:
        """The output at one token, whose key and value go to `slot`."""
        q, k, v = self.project(hidden, rotation)
        keys, values, visible = reserved
        place = slot.view(1)
        keys.index_copy_(2, place, k)
        values.index_copy_(2, place, v)
        visible.index_fill_(1, place, True)
        return self.merge(_attend_one(q, keys, values, visible))

    def core_flops_per_token(self, sequence_length: int) -> float:
        """Scores and weighted sums over the half of the square that the causal mask leaves."""
        return 2 * sequence_length * self.num_heads * self.head_width


def _attend_one(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Attention of one query (batch, heads, 1, width) to the visible of (batch, heads, slots, width)."""
    batch, heads = keys.shape[:2]
    # Compiled, PyTorch's kernel for float32 refused the strides of a lone row's query.
    fits = batch > 1 and q.dtype.itemsize < 4 and batch * heads >= MANY_HEADS
    if fits or not q.is_cuda:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible[:, None, None])
    # Products share the slots out, too, where rows and heads are few.
    pairs = (q.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
    scores = torch.bmm(*pairs, out_dtype=torch.float32) if q.dtype.itemsize < 4 else torch.bmm(*pairs)
    scores = scores.unflatten(0, q.shape[:2]) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
    return weights.to(values.dtype) @ values


def _allowed_pairs(
    hidden: torch.Tensor, segment_ids: torch.Tensor | None, state: AttentionState | None
) -> torch.Tensor:
    """Which query reads which key, (batch, 1, tokens, past + tokens) bool; padding reads itself: no row is empty."""
    batch, tokens = hidden.shape[:2]
    allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden.device).tril()
    allowed = allowed.expand(batch, tokens, tokens)
    if segment_ids is not None:
        allowed = allowed & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if state is not None:
        past = state.visible[:, None, :].expand(batch, tokens, state.visible.shape[1])
        if segment_ids is not None:
            past = past & (segment_ids == 0)[:, :, None]
        allowed = torch.cat((past, allowed), dim=2)
    return allowed[:, None]


def _visible_next(hidden: torch.Tensor, segment_ids: torch.Tensor | None, state: AttentionState | None) -> torch.Tensor:
    """Which keys the document that is open after this piece may read, (batch, past + tokens) bool."""
    if segment_ids is None:
        now = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return now if state is None else torch.cat((state.visible, now), dim=1)
    last = segment_ids.amax(dim=1, keepdim=True).clamp(min=0)
    now = segment_ids == last
    return now if state is None else torch.cat((state.visible & (last == 0), now), dim=1)
