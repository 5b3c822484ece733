"""One token of retention as one Triton kernel: the memory is read once and written once.

torch brings Triton along where it is built for NVIDIA's GPUs; elsewhere the plain form computes the same.
"""

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

TILE = 4096
"""Numbers of the memory that one program holds in registers."""

WIDEST_KEYS = 1024
"""Channels of a head's keys beyond which few values would be left to a program."""

step_kernel: Any = None

if triton is not None:

    @triton.jit
    def step_kernel(  # type: ignore[no-untyped-def]
        qk, v, decay, memory, out, scale, heads,
        keys: tl.constexpr, values: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        """`retention_step` for `block` values of one head of one row; all contiguous, keys last in the memory."""
        head = tl.program_id(0)
        # Of each row the queries of all heads, then the keys.
        of_query = qk + (head // heads * heads + head) * keys
        channel = tl.arange(0, wide)
        value = tl.program_id(1) * block + tl.arange(0, block)
        is_key, is_value = channel < keys, value < values
        place = memory + (head.to(tl.int64) * values + value[:, None]) * keys + channel[None, :]
        inside = is_value[:, None] & is_key[None, :]
        query = tl.load(of_query + channel, mask=is_key, other=0.0)
        key = tl.load(of_query + heads * keys + channel, mask=is_key, other=0.0) * scale
        written = tl.load(v + head * values + value, mask=is_value, other=0.0)
        kept = tl.load(place, mask=inside, other=0.0) * tl.load(decay + head % heads)
        new = kept + written[:, None] * key[None, :]
        tl.store(place, new, mask=inside)
        tl.store(out + head * values + value, tl.sum(new * query[None, :], axis=1), mask=is_value)


def kernel_can_step(memory: torch.Tensor) -> bool:
    """Whether `kernel_step` takes this memory (batch, heads, key width, value width)."""
    return (
        step_kernel is not None
        and memory.is_cuda
        and memory.dtype == torch.float32
        and memory.shape[2] <= WIDEST_KEYS
        and memory.mT.is_contiguous()
    )


def kernel_step(
    qk: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, scale: float, memory: torch.Tensor
) -> torch.Tensor:
    """`retention_step` on the kernel, for memory that `kernel_can_step`."""
    batch, heads, keys, values = memory.shape
    out = torch.empty(batch, heads, 1, values, device=memory.device, dtype=torch.float32)
    wide = triton.next_power_of_2(keys)
    block = max(1, TILE // wide)
    grid = (batch * heads, triton.cdiv(values, block))
    step_kernel[grid](
        qk.contiguous(), v.contiguous(), decay.contiguous(), memory, out, scale, heads,
        keys=keys, values=values, wide=wide, block=block,
    )  # fmt: skip
    return out
