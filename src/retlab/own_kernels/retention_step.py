"""One token of retention as one Triton kernel: the memory is read once and written once."""

from typing import Any

import torch

from .early_launch import early_launch, wait_for_inputs
from .loading import tl, triton
from .trial import own_kernels_run

TILE = 4096
"""Numbers of the memory that one program holds in registers."""

WIDEST_KEYS = 1024
"""Channels of a head's keys beyond which few values would be left to a program."""

step_kernel: Any = None

if triton is not None:

    @triton.jit
    def turned(x, channel, is_key, cos, sin):  # type: ignore[no-untyped-def]
        """`rotate_pairs` of the channels at x, whose pairs' cosines and sines lie at `cos` and `sin`."""
        own = tl.load(x + channel, mask=is_key, other=0.0).to(tl.float32)
        other = tl.load(x + (channel ^ 1), mask=is_key, other=0.0).to(tl.float32)
        along = tl.load(cos + channel // 2, mask=is_key, other=0.0)
        across = tl.load(sin + channel // 2, mask=is_key, other=0.0)
        return own * along + other * tl.where(channel % 2 == 0, -across, across)

    @triton.jit
    def step_kernel(  # type: ignore[no-untyped-def]
        q, q_row, k, k_row, v, v_row, cos, sin, turn_row, decay, memory, out, scale, heads,
        keys: tl.constexpr, values: tl.constexpr, wide: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
    ):  # fmt: skip
        """`retention_step` for `block` values of one head of one row; keys last in the memory."""
        row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
        channel = tl.arange(0, wide)
        value = tl.program_id(1) * block + tl.arange(0, block)
        is_key, is_value = channel < keys, value < values
        place = memory + (tl.program_id(0).to(tl.int64) * values + value[:, None]) * keys + channel[None, :]
        inside = is_value[:, None] & is_key[None, :]
        kept = tl.load(place, mask=inside, other=0.0) * tl.load(decay + head)
        wait_for_inputs(early)
        cos, sin = cos + row * turn_row, sin + row * turn_row
        query = turned(q + row * q_row + head * keys, channel, is_key, cos, sin)
        key = turned(k + row * k_row + head * keys, channel, is_key, cos, sin) * scale
        written = tl.load(v + row * v_row + head * values + value, mask=is_value, other=0.0).to(tl.float32)
        new = kept + written[:, None] * key[None, :]
        tl.store(place, new, mask=inside)
        tl.store(out + tl.program_id(0) * values + value, tl.sum(new * query[None, :], axis=1), mask=is_value)


def kernel_can_step(memory: torch.Tensor) -> bool:
    """Whether `kernel_step` takes this memory (batch, heads, key width, value width)."""
    return (
        own_kernels_run(memory.device)
        and memory.dtype == torch.float32
        and memory.shape[2] <= WIDEST_KEYS
        and memory.mT.is_contiguous()
    )


def kernel_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    decay: torch.Tensor,
    scale: float,
    memory: torch.Tensor,
) -> torch.Tensor:
    """`retention_step` on the kernel, for memory that `kernel_can_step`.

    The kernel that was launched before it must not write to the memory; see `early_launch`.
    """
    batch, heads, keys, values = memory.shape
    out = torch.empty(batch, heads, 1, values, device=memory.device, dtype=torch.float32)
    cos, sin = (part.contiguous() for part in rotation)
    wide = triton.next_power_of_2(keys)
    block = max(1, TILE // wide)
    grid = (batch * heads, triton.cdiv(values, block))
    step_kernel[grid](
        q, q.stride(0), k, k.stride(0), v, v.stride(0), cos, sin, keys // 2 if len(cos) > 1 else 0,
        decay.contiguous(), memory, out, scale, heads, keys=keys, values=values, wide=wide, block=block,
        **early_launch(memory.device),
    )  # fmt: skip
    return out
