"""Chunkwise retention (eq. 7) as a loop over chunks, with its gradient by hand: for a CPU in float32.

A chunk of all heads fits a core's cache, so that decays, masks and sums are applied there instead of in main memory,
and nothing is copied to be contiguous. The forms in `retention_forms` compute the same; a graph for a GPU wants those.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

# Numbers from which loops are faster; fewer are in the cache anyway, and a loop only adds calls.
LOOPED_FROM = 2**20


def suits_loop(*tensors: torch.Tensor) -> bool:
    """Whether loops over pieces in the cache are the fastest: a CPU, float32, no torch.compile and no torch.func."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    fits = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
    return fits and sum(x.numel() for x in tensors) >= LOOPED_FROM


class ChunkTable(NamedTuple):
    """Decays inside one chunk of c tokens; b is the batch or 1, H are the heads; float32.

    The score of key m for query n is the product of the decayed two times `weights`, which is 0 where no path leads.
    """

    # Of queries since the chunk began, of keys until it ends (b, H, c, 1).
    since: torch.Tensor
    until: torch.Tensor
    # (b, H, c, c)
    weights: torch.Tensor
    # Of the memory over the chunk (b, H, 1, 1).
    keep: torch.Tensor
    # 1 for queries that read the memory before the chunk, for keys that write to that after it (b, 1, c, 1); None: all.
    reads: torch.Tensor | None
    writes: torch.Tensor | None


class ChunkLoop(torch.autograd.Function):
    """Retention chunk by chunk: what was decayed, the scores and the memories are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        memory: torch.Tensor | None,
        tables: Sequence[ChunkTable],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (B, H, T, dv) and the last memory from q, k (B, H, T, dk), v (B, H, T, dv), memory (B, H, dk, dv)."""
        keeps = any(ctx.needs_input_grad)
        apart = v.shape[:2]
        out = _empty_beside(v, v.shape[-1])
        kept: list[torch.Tensor | None] = [v]
        memory = None if memory is None else memory.flatten(0, 1)
        for table, (qs, ks, vs, outs) in zip(tables, _chunk_views(tables, q, k, v, out), strict=True):
            late, early, vs = (qs * table.since).flatten(0, 1), (ks * table.until).flatten(0, 1), vs.flatten(0, 1)
            scores = torch.bmm(late, early.mT)
            _heads(scores, apart).mul_(table.weights)
            if keeps:
                kept += [late, early, scores, memory]
            late, early = _times(late, table.reads, apart), _times(early, table.writes, apart)
            read = _plus_product(None if memory is None else torch.bmm(late, memory), scores, vs)
            outs.copy_(_heads(read, apart))
            memory = _plus_product(None if memory is None else _times(memory, table.keep, apart), early.mT, vs)
        assert memory is not None
        ctx.save_for_backward(*kept)
        ctx.tables = tables
        # The last memory, or its gradient, is rarely of use.
        ctx.set_materialize_grads(False)
        return out, _heads(memory, apart)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: torch.Tensor | None, grad_memory: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """From the last chunk to the first; `grad_memory` becomes the gradient of the memory before each."""
        v, *kept = ctx.saved_tensors
        tables, apart, key_width = ctx.tables, v.shape[:2], kept[0].shape[-1]
        grad_out = torch.zeros_like(v) if grad_out is None else grad_out
        grad_memory = None if grad_memory is None else grad_memory.flatten(0, 1)
        grad_q, grad_k, grad_v = (_empty_beside(v, width) for width in (key_width, key_width, v.shape[-1]))
        chunks = list(_chunk_views(tables, v, grad_out, grad_q, grad_k, grad_v))
        for n in reversed(range(len(tables))):
            table, (vs, grads, q_part, k_part, v_part) = tables[n], chunks[n]
            late, early, scores, memory = kept[4 * n : 4 * n + 4]
            vs, grads = vs.flatten(0, 1), grads.flatten(0, 1)
            grad_scores = torch.bmm(grads, vs.mT)
            _heads(grad_scores, apart).mul_(table.weights)
            through = None if memory is None else _times(torch.bmm(grads, memory.mT), table.reads, apart)
            grad_late = _plus_product(through, grad_scores, early)
            torch.mul(_heads(grad_late, apart), table.since, out=q_part)
            through = None if grad_memory is None else _times(torch.bmm(vs, grad_memory.mT), table.writes, apart)
            grad_early = _plus_product(through, grad_scores.mT, late)
            torch.mul(_heads(grad_early, apart), table.until, out=k_part)
            through = None if grad_memory is None else torch.bmm(_times(early, table.writes, apart), grad_memory)
            v_part.copy_(_heads(_plus_product(through, scores.mT, grads), apart))
            if memory is not None:
                decayed = None if grad_memory is None else _times(grad_memory, table.keep, apart)
                grad_memory = _plus_product(decayed, _times(late, table.reads, apart).mT, grads)
        if grad_memory is not None:
            grad_memory = _heads(grad_memory, apart)
        return grad_q, grad_k, grad_v, grad_memory if ctx.needs_input_grad[3] else None, None


def _empty_beside(x: torch.Tensor, width: int) -> torch.Tensor:
    """Empty (B, H, T, width) beside x (B, H, T, ...), which lies in memory as (B, T, H, width), as projections do."""
    batch, heads, tokens, _ = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _chunk_views(tables: Sequence[ChunkTable], *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of each chunk of tensors (B, H, T, width)."""
    lengths = [table.since.shape[-2] for table in tables]
    return zip(*(x.split(lengths, dim=2) for x in tensors), strict=True)


def _heads(x: torch.Tensor, apart: torch.Size) -> torch.Tensor:
    """The view (B, H, ...) of x (B H, ...), the shape that products of matrices take; `apart` is (B, H)."""
    return x.view(*apart, *x.shape[1:])


def _plus_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """total + left @ right (B H, ...), written to total; None is zero."""
    return torch.bmm(left, right) if total is None else torch.baddbmm(total, left, right, out=total)


def _times(x: torch.Tensor, factors: torch.Tensor | None, apart: torch.Size) -> torch.Tensor:
    """x (B H, ...) times factors (b, H or 1, ...), anew; None is one."""
    return x if factors is None else (_heads(x, apart) * factors).flatten(0, 1)
