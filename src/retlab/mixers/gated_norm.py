"""The end of a retention block: per-head norm and gate (Sun et al. 2023, arXiv:2307.08621, eq. 8)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .retention_loop import suits_loop

# Numbers of a tile that fits a core's cache with what is computed of it.
_TILE = 64 * 1024


def gated_norm(x: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
    """silu(gate) times the RMS norm of every head of x (B, T, heads, width); gate and output (B, T, heads x width)."""
    if suits_loop(x, gate):
        gated: torch.Tensor = _TiledGatedNorm.apply(x, gate, eps)
        return gated
    # By heads, as the norm is: in another shape Inductor makes the gate a kernel of its own.
    return (F.silu(gate.unflatten(-1, x.shape[-2:])) * F.rms_norm(x, x.shape[-1:], eps=eps)).flatten(-2)


class _TiledGatedNorm(torch.autograd.Function):
    """The same, some rows at a time, with its gradient by hand: PyTorch's norm has none of its own on a CPU.

    All that is computed of a tile is written over what the last tile left in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        for xs, gates, outs, (gated,) in _tiles(1, x, gate, out):
            torch.ops.aten.silu(gates, out=gated)
            torch.mul(gated.mul_(xs), _inverse_norm(xs, eps), out=outs)
        ctx.save_for_backward(x, gate)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, gate = ctx.saved_tensors
        grad_x, grad_gate = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (x, gate))
        for xs, gates, grads, x_part, gate_part, (normed, slope, a, b) in _tiles(4, x, gate, grad, grad_x, grad_gate):
            inverse = _inverse_norm(xs, ctx.eps)
            torch.mul(xs, inverse, out=normed)
            sigmoid = torch.sigmoid(gates, out=a)
            # silu' = sigmoid + sigmoid gate (1 - sigmoid)
            torch.addcmul(gates, gates, sigmoid, value=-1, out=slope)
            through = a.mul_(grads)
            grad_normed = torch.mul(through, gates, out=b)
            through.mul_(normed)
            torch.addcmul(through, through, slope, out=gate_part)
            along = torch.mul(grad_normed, normed, out=a).mean(dim=-1, keepdim=True)
            torch.mul(grad_normed.addcmul_(normed, along, value=-1), inverse, out=x_part)
        return grad_x, grad_gate, None


def _inverse_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """One over the root mean square of the last dimension (..., 1)."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[-1]).add_(eps).rsqrt_()


def _tiles(count: int, x: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """Rows (tokens, heads, width) of x (B, T, heads, width) and of tensors with as many channels, some at a time.

    With every tile come `count` tensors of its shape to write to, the same for all.
    """
    heads, width = x.shape[-2:]
    rows = max(1, _TILE // (heads * width))
    scratch = x.new_empty(count, rows, heads, width)
    for tile in zip(*(one.reshape(-1, heads, width).split(rows) for one in (x, *others)), strict=True):
        yield *tile, scratch[:, : len(tile[0])].unbind()
