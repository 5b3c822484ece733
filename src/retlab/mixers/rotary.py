"""Rotary positions: angles in float64, whatever the dtype of the model, rotations in float32."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..own_kernels.rotation import kernel_rotation
from ..own_kernels.trial import own_kernels_run


class Rotation(NamedTuple):
    """Cosine and sine of every position's angles, two (batch or 1, tokens, 1, pairs) float32 tensors."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class RetNetFrequencies:
    """RetNet's frequencies, 1 / 10000^x with x evenly spaced over [0, 1], both ends included."""

    width: int

    def values(self, device: torch.device) -> torch.Tensor:
        """(width / 2,) float64."""
        return 10_000.0 ** -torch.linspace(0, 1, self.width // 2, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class RopeFrequencies:
    """Frequencies of RoPE (Su et al. 2021, eq. 15), theta^(-2i / width)."""

    width: int
    theta: float

    def values(self, device: torch.device) -> torch.Tensor:
        """(width / 2,) float64."""
        return self.theta ** (-torch.arange(0, self.width, 2, dtype=torch.float64, device=device) / self.width)


Frequencies = RetNetFrequencies | RopeFrequencies


def rotation(positions: torch.Tensor, frequencies: Frequencies) -> Rotation:
    """The rotation of `positions` (batch or 1, tokens) int64.

    In float32 the angle itself would be off by 1e-3 at position 10,000; in bfloat16 by whole turns.
    """
    return _rotation(positions, turns_of(frequencies, positions.device))


def turns_of(frequencies: Frequencies, device: torch.device) -> torch.Tensor:
    """Turns from one position to the next (pairs,) float64."""
    return frequencies.values(device) / (2 * math.pi)


def rotation_by(positions: torch.Tensor, turns_each: torch.Tensor) -> Rotation:
    """`rotation` of `positions` on the current device, by what `turns_of` gave."""
    if positions.shape[1] == 1 and own_kernels_run(positions.device):
        return Rotation(*kernel_rotation(positions, turns_each))
    return _rotation(positions, turns_each)


def _rotation(positions: torch.Tensor, turns_each: torch.Tensor) -> Rotation:
    turns = positions[..., None, None].to(torch.float64) * turns_each
    # Whole turns are taken off in float64, so that float32 does for the sine: many GPUs compute it faster by far.
    angles = ((turns - turns.round()) * (2 * math.pi)).to(torch.float32)
    return Rotation(angles.cos(), angles.sin())


def rotate_pairs(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn the channel pairs (0, 1), (2, 3), ... of x (batch, tokens, heads, width), as TorchScale's RetNet does.

    Returns float32, or the dtype of x where that is wider.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # A product of complex numbers, in one pass.
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
        return torch.view_as_real(torch.view_as_complex(wide) * torch.complex(*rotation)).flatten(-2)
    cos = rotation.cos.repeat_interleave(2, dim=-1)
    sin = torch.stack((-rotation.sin, rotation.sin), dim=-1).flatten(-2)
    # The other channel of every pair: compiled, this reads each channel twice and copies nothing.
    other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos + other * sin


def rotate_pairs_of_one_token(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """`rotate_pairs` of x (batch, 1, heads, width) as (batch, heads, width), with few kernels where none is fused."""
    if torch.compiler.is_compiling():
        return rotate_pairs(x, rotation)[:, 0]
    wide = x[:, 0].to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    turns = torch.complex(rotation.cos[:, 0], rotation.sin[:, 0])
    return torch.view_as_real(torch.view_as_complex(wide) * turns).flatten(-2)


def rotate_halves(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn the channel pairs (i, i + width / 2) of x (batch, tokens, heads, width), as Llama's checkpoints do.

    Returns the dtype of x.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
