"""Softmax attention within segments of a sequence, with the softmax denominators, in blocks and without stored scores.

PyTorch's own attention gives no denominators on every device, and autograd would store every score.
"""

import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

EMPTY = -1e30
"""The score of a pair that does not exist: its exponential is zero, and unlike -inf it gives no NaN."""


class Segments(NamedTuple):
    """Which segment a query and a key are of, (b, 1, places) int64 each, b the batch or 1.

    `missing` (b, heads, places) float32 is EMPTY for a key that does not exist, and otherwise zero.
    """

    query: torch.Tensor
    key: torch.Tensor
    missing: torch.Tensor


class Before(NamedTuple):
    """Keys and values (batch, heads, n, width) that come before a sequence, with `key` and `missing` of `Segments`.

    They are of one segment in each row, and those that exist come first.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key: torch.Tensor
    missing: torch.Tensor


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in float32, or in float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attend_in_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    longest: int,
    segments: Segments | None = None,
    before: Before | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to the keys of its segment before it, itself not among them.

    q, k, v (batch, heads, places, width). A segment lies within `longest` places; `before` has `longest` of them at
    most. Without `segments` they begin at 0, `longest`, 2 `longest`, ... Returns outputs (batch, heads, places, width)
    and the logarithms of the softmax denominators (batch, heads, places), which are about EMPTY where a query reads
    nothing (its output means nothing).
    """
    places = q.shape[2]
    size = min(places, longest if segments is None else _block_size(longest))
    fill = -places % size
    if segments is None:
        k, v = _windows(k, None, size, 0), _windows(v, None, size, 0)
        query = key = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=q.device)
        missing = torch.zeros(1, 1, 1, 1, device=q.device)
    else:
        if before is not None and places > size:
            before = _behind_the_rest(before)
        past = (None, None, None, None) if before is None else before
        k, v, key, missing = (
            _windows(x, earlier, size, longest, nothing)
            for x, earlier, nothing in zip((k, v, segments.key, segments.missing), past, (0, 0, 0, EMPTY), strict=True)
        )
        query = F.pad(segments.query, (0, fill)).unflatten(2, (-1, size))
    q = F.pad(q, (0, 0, 0, fill)).unflatten(2, (-1, size))
    out, total = _SegmentAttention.apply(q, k, v, query, key, missing)
    return out.flatten(2, 3)[:, :, :places], total.flatten(2, 3)[:, :, :places] * math.log(2)


def _behind_the_rest(before: Before) -> Before:
    """The keys that exist right before the sequence, so that no block has to look further back than a segment."""
    slots = before.missing.shape[-1]
    exist = (before.missing == 0).sum(-1, keepdim=True)
    index = (torch.arange(slots, device=exist.device) + exist) % slots
    keys, values = (x.gather(2, index[..., None].expand_as(x)) for x in (before.keys, before.values))
    return before._replace(keys=keys, values=values, missing=before.missing.gather(2, index))


def _block_size(longest: int) -> int:
    """Queries per block: their window reaches `longest` places back, so that small blocks read less in vain."""
    return min(longest, max(128, -(-longest // 4)))


def _windows(x: torch.Tensor, before: torch.Tensor | None, size: int, reach: int, fill: float = 0) -> torch.Tensor:
    """What the queries of each block may read: its own places behind the `reach` before it.

    x (b, heads, places, ...) in blocks of `size` gives (b, heads, blocks, places of a window, ...).
    """
    blocks = -(-x.shape[2] // size)
    known = 0 if before is None else before.shape[2]
    if before is not None:
        x = torch.cat((before, x.expand(before.shape[0], *x.shape[1:])), dim=2)
    if blocks == 1:
        return x.unsqueeze(2)
    back = -(-min(reach, known + (blocks - 1) * size) // size)
    ends = (back * size - known, -(x.shape[2] - known) % size)
    x = F.pad(x, (0, 0) * (x.ndim - 3) + ends, value=fill).unflatten(2, (-1, size))
    return torch.cat([x[:, :, start : start + blocks] for start in range(back + 1)], dim=3)


def _scores(
    q: torch.Tensor, k: torch.Tensor, query: torch.Tensor, key: torch.Tensor, missing: torch.Tensor
) -> torch.Tensor:
    """Scaled scores (..., n, m) for powers of 2, EMPTY and less for pairs that do not exist."""
    queries, keys = q.shape[-2], k.shape[-2]
    earlier = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries - 1)
    scores = widened(q @ k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5 / math.log(2))
    together = earlier & (query[..., :, None] == key[..., None, :])
    return scores.add_(torch.where(together, 0.0, EMPTY)).add_(missing[..., None, :])


class _SegmentAttention(torch.autograd.Function):
    """Outputs and base-2 logarithms of the denominators; the backward pass computes the scores again.

    Powers of 2, because those of e are slow on a CPU where they vanish.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        missing: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = _scores(q, k, query, key, missing)
        largest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(largest).exp2_()
        total = weights.sum(-1, keepdim=True)
        out = (weights.to(v.dtype) @ v) / total.to(v.dtype)
        return out, (largest + total.log2())[..., 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, query, key, missing, out, total = ctx.saved_tensors
        weights = _scores(q, k, query, key, missing).sub_(total[..., None]).exp2_()
        grad_v = weights.to(v.dtype).transpose(-1, -2) @ grad_out
        mean = (widened(grad_out) * widened(out)).sum(-1)
        # d out / d score = weight (value - out); the scores and their logarithms have base 2.
        grad_scores = widened(grad_out @ v.transpose(-1, -2)).add_((grad_total / math.log(2) - mean)[..., None])
        grad_scores = grad_scores.mul_(weights).mul_(q.shape[-1] ** -0.5).to(q.dtype)
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, grad_v, None, None, None
