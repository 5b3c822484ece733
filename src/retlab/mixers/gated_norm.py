"""The end of a retention block: per-head norm and gate (Sun et al. 2023, arXiv:2307.08621, eq. 8)."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .retention_loop import suits_loop

# Rows of 1,024 channels that fit a core's cache with what is computed of them.
_TILE = 128 * 1024


def gated_norm(x: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
    """silu(gate) times the RMS norm of every head of x (B, T, heads, width); gate and output (B, T, heads x width)."""
    if suits_loop(x, gate):
        gated: torch.Tensor = _TiledGatedNorm.apply(x, gate, eps)
        return gated
    # By heads, as the norm is: in another shape Inductor makes the gate a kernel of its own.
    return (F.silu(gate.unflatten(-1, x.shape[-2:])) * F.rms_norm(x, x.shape[-1:], eps=eps)).flatten(-2)


class _TiledGatedNorm(torch.autograd.Function):
    """The same, some rows at a time, with its gradient by hand: PyTorch's norm has none of its own on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, eps: float) -> torch.Tensor:
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        for xs, gates, outs in _tiles(x, gate, out):
            torch.mul(F.rms_norm(xs, xs.shape[-1:], eps=eps), F.silu(gates), out=outs)
        ctx.save_for_backward(x, gate)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, gate = ctx.saved_tensors
        grad_x, grad_gate = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (x, gate))
        for xs, gates, grads, x_part, gate_part in _tiles(x, gate, grad, grad_x, grad_gate):
            inverse = torch.linalg.vector_norm(xs, dim=-1, keepdim=True).square_()
            inverse.div_(xs.shape[-1]).add_(ctx.eps).rsqrt_()
            normed = xs * inverse
            torch.ops.aten.silu_backward(grads * normed, gates, grad_input=gate_part)
            grad_normed = F.silu(gates).mul_(grads)
            along = (grad_normed * normed).mean(dim=-1, keepdim=True)
            torch.mul(grad_normed.addcmul_(normed, along, value=-1), inverse, out=x_part)
        return grad_x, grad_gate, None


def _tiles(x: torch.Tensor, *others: torch.Tensor) -> "zip[tuple[torch.Tensor, ...]]":
    """Rows (tokens, heads, width) of x (B, T, heads, width) and of tensors with as many channels, some at a time."""
    heads, width = x.shape[-2:]
    rows = max(1, _TILE // (heads * width))
    return zip(*(one.reshape(-1, heads, width).split(rows) for one in (x, *others)), strict=True)
