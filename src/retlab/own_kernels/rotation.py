"""The rotation of one token of every row as one Triton kernel, in place of eight small ones."""

from typing import Any

import torch

from .early_launch import early_launch, wait_for_inputs
from .loading import tl, triton

rotation_kernel: Any = None

if triton is not None:

    @triton.jit
    def rotation_kernel(positions, turns, cos, sin, pairs, wide: tl.constexpr, early: tl.constexpr):  # type: ignore[no-untyped-def]
        """`rotation_by` for one row."""
        row, pair = tl.program_id(0), tl.arange(0, wide)
        is_pair = pair < pairs
        wait_for_inputs(early)
        turned = tl.load(positions + row).to(tl.float64) * tl.load(turns + pair, mask=is_pair, other=0.0)
        angle = (turned - tl.floor(turned + 0.5)).to(tl.float32) * 6.283185307179586
        tl.store(cos + row * pairs + pair, tl.cos(angle), mask=is_pair)
        tl.store(sin + row * pairs + pair, tl.sin(angle), mask=is_pair)


def kernel_rotation(positions: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of `rotation_by` for positions (batch, 1)."""
    batch, pairs = len(positions), len(turns)
    cos, sin = torch.empty(2, batch, 1, 1, pairs, device=positions.device)
    rotation_kernel[(batch,)](
        positions.contiguous(),
        turns,
        cos,
        sin,
        pairs,
        wide=triton.next_power_of_2(pairs),
        **early_launch(positions.device),
    )
    return cos, sin
