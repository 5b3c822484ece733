"""Rotary positions: angles in float64, whatever the dtype of the model, rotations in float32."""

import math

import torch


def rotation(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of position times frequency.

    `positions` (batch, tokens) int64 and `frequencies` (pairs,) float64 give two (batch, tokens, 1, pairs) float32
    tensors. In float32 the angle itself would be off by 1e-3 at position 10,000; in bfloat16 by whole turns.
    """
    turns = positions[..., None, None].to(torch.float64) * (frequencies / (2 * math.pi))
    # Whole turns are taken off in float64, so that float32 does for the sine: many GPUs compute it faster by far.
    angles = ((turns - turns.round()) * (2 * math.pi)).to(torch.float32)
    return angles.cos(), angles.sin()


def retnet_frequencies(width: int, device: torch.device) -> torch.Tensor:
    """RetNet's frequencies, 1 / 10000^x with x evenly spaced over [0, 1], both ends included (width / 2, float64)."""
    return 10_000.0 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64, device=device)


def rope_frequencies(width: int, theta: float, device: torch.device) -> torch.Tensor:
    """Frequencies of RoPE (Su et al. 2021, eq. 15), theta^(-2i / width) (width / 2, float64)."""
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs (0, 1), (2, 3), ... of x (batch, tokens, heads, width), as TorchScale's RetNet does."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs (i, i + width / 2) of x (batch, tokens, heads, width), as Llama's checkpoints do."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
