"""The choice of the likeliest next token as one Triton kernel, in place of a dozen small ones."""

from typing import Any

import torch

from .early_launch import early_launch, wait_for_inputs
from .loading import tl, triton
from .trial import own_kernels_run

BLOCK = 8192
"""Logits that a program looks at together."""

choose_kernel: Any = None

if triton is not None:

    @triton.jit
    def choose_kernel(  # type: ignore[no-untyped-def]
        logits, finished, pad, ends, ids, ring, slot,
        vocab: tl.constexpr, most_ends: tl.constexpr, in_ring: tl.constexpr, block: tl.constexpr, early: tl.constexpr,
    ):  # fmt: skip
        """`Lane.choose` for one row."""
        row = tl.program_id(0).to(tl.int64)
        lane = tl.arange(0, block)
        best = tl.full([block], float("-inf"), tl.float32)
        where = lane
        wait_for_inputs(early)
        for start in tl.static_range(0, vocab, block):
            at = start + lane
            value = tl.load(logits + row * vocab + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            # A broken model's choice is the first number that is none, as it is with `argmax`.
            value = tl.where(value != value, float("inf"), value)
            better = value > best
            best, where = tl.where(better, value, best), tl.where(better, at, where)
        # Of equal ones the first.
        likeliest = tl.min(tl.where(best == tl.max(best, axis=0), where, vocab - 1), axis=0).to(tl.int64)
        had_end = tl.load(finished + row) != 0
        token = tl.where(had_end, tl.load(pad), likeliest)
        is_end = tl.sum((tl.load(ends + tl.arange(0, most_ends)) == token).to(tl.int32), axis=0) > 0
        tl.store(finished + row, had_end | is_end)
        tl.store(ids + row, token)
        tl.store(ring + row * in_ring + tl.load(slot) % in_ring, token)


def kernel_can_choose(logits: torch.Tensor) -> bool:
    """Whether `kernel_choose` takes logits (batch, vocab_size)."""
    return own_kernels_run(logits.device) and logits.dtype.itemsize <= 4 and logits.is_contiguous()


def kernel_choose(
    logits: torch.Tensor,
    finished: torch.Tensor,
    pad: torch.Tensor,
    ends: torch.Tensor,
    ids: torch.Tensor,
    ring: torch.Tensor,
    slot: torch.Tensor,
) -> None:
    """Write the next token of every row to ids (batch, 1) and to its place in the ring, and note rows that end.

    The other arguments are what a `Lane` has under the same names; the number of `ends` is a power of two.
    """
    batch, vocab = logits.shape
    choose_kernel[(batch,)](
        logits, finished, pad, ends, ids, ring, slot,
        vocab=vocab, most_ends=len(ends), in_ring=ring.shape[1], block=BLOCK, num_warps=16,
        **early_launch(logits.device),
    )  # fmt: skip
