"""Softmax attention within segments of a sequence, with the softmax denominators, in blocks and without stored scores.

PyTorch's own attention gives no denominators on every device, and autograd would store every score.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .dilated_slots import NOTHING

EMPTY = -1e30
"""The score of a pair that does not exist: its exponential is zero, and unlike -inf it gives no NaN."""


class Before(NamedTuple):
    """Keys, values (batch, heads, n, width) and numbers (batch, heads, n) int64 that come before a sequence."""

    keys: torch.Tensor
    values: torch.Tensor
    unit: torch.Tensor


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or in float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attend_in_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_unit: torch.Tensor,
    key_unit: torch.Tensor,
    longest: int,
    before: Before | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to the keys before it (itself not) that carry its number.

    q, k, v (batch, heads, places, width); `query_unit` and `key_unit` (b, heads, places) int64, b the batch or 1, with
    keys of one number within `longest` places; `before` has `longest` of them at most. Returns outputs (batch, heads,
    places, width) and the logarithms of the softmax denominators (batch, heads, places), which are about EMPTY where a
    query reads nothing (its output means nothing).
    """
    places = q.shape[2]
    size = min(places, longest)
    blocks = -(-places // size)
    key_unit = key_unit[..., None]
    if before is not None:
        key_unit = key_unit.expand(q.shape[0], -1, -1, -1)
    past = (None, None, None) if before is None else (before.keys, before.values, before.unit[..., None])
    k, v, key_unit = (
        _windows(x, earlier, size, blocks, fill)
        for x, earlier, fill in zip((k, v, key_unit), past, (0, 0, NOTHING), strict=True)
    )
    fill = blocks * size - places
    q = F.pad(q, (0, 0, 0, fill)).unflatten(2, (blocks, size))
    query_unit = F.pad(query_unit, (0, fill), value=NOTHING + 1).unflatten(2, (blocks, size))
    out, total = _SegmentAttention.apply(q, k, v, query_unit, key_unit[..., 0])
    return out.flatten(2, 3)[:, :, :places], total.flatten(2, 3)[:, :, :places]


def _windows(x: torch.Tensor, before: torch.Tensor | None, size: int, blocks: int, fill: int) -> torch.Tensor:
    """What the queries of each block may read: its own places behind those of the block before, (b, H, N, n, ...)."""
    if blocks == 1:
        return (x if before is None else torch.cat((before, x), dim=2)).unsqueeze(2)
    before = x[:, :, :0] if before is None else before
    x = torch.cat((F.pad(before, (0, 0, size - before.shape[2], 0), value=fill), x), dim=2)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size), value=fill).unflatten(2, (blocks + 1, size))
    return torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=3)


def _scores(q: torch.Tensor, k: torch.Tensor, query_unit: torch.Tensor, key_unit: torch.Tensor) -> torch.Tensor:
    """Scaled scores (..., n, m), EMPTY where the numbers differ or the key does not come before the query."""
    earlier = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    allowed = earlier.tril(k.shape[-2] - q.shape[-2] - 1) & (query_unit[..., :, None] == key_unit[..., None, :])
    return (widened(q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).masked_fill(~allowed, EMPTY)


class _SegmentAttention(torch.autograd.Function):
    """Outputs and logarithms of the denominators; the backward pass computes the scores again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, query_unit: torch.Tensor, key_unit: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = _scores(q, k, query_unit, key_unit)
        total = scores.logsumexp(-1)
        return (scores - total[..., None]).exp().to(v.dtype) @ v, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, query_unit, key_unit, out, total = ctx.saved_tensors
        weights = (_scores(q, k, query_unit, key_unit) - total[..., None]).exp()
        from_out = widened(grad_out @ v.transpose(-1, -2))
        mean = (widened(grad_out) * widened(out)).sum(-1)
        grad_scores = weights * (from_out + (grad_total - mean)[..., None])
        grad_scores = (grad_scores * q.shape[-1] ** -0.5).to(q.dtype)
        grad_v = weights.to(v.dtype).transpose(-1, -2) @ grad_out
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, grad_v, None, None
