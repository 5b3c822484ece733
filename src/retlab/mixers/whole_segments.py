"""Dilated attention on PyTorch's flash attention, where segments are whole: no padding, no documents and no past.

A branch is then one batch of equally long causal sequences. Flash attention returns the logarithms of its softmax
denominators, which weigh the branches, but no gradient through them. None is needed: the weighted branches are one
softmax over all their pairs, exp(score - total) with the denominator of all branches together, and so the backward
pass of every branch is that of flash attention, told the output and the denominator of all.
"""

from typing import Any

import torch
from torch.nn import functional as F

from .dilated_slots import Branch
from .segment_attention import EMPTY, widened


def has_flash(q: torch.Tensor) -> bool:
    """Whether PyTorch has flash attention with denominators for such queries (batch, heads, tokens, head width)."""
    if q.device.type == "cpu":
        return True
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 and _gpu_has_flash()


def _gpu_has_flash() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)


# All that torch.compiler.assume_constant_result does, which imports the compiler: a second for who compiles nothing.
_gpu_has_flash._dynamo_marked_constant = True  # type: ignore[attr-defined]


def attend_in_whole_segments(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, branches: list[Branch]) -> torch.Tensor:
    """Dilated attention of q, k, v (batch, heads, tokens, head width), for which `has_flash` holds."""
    mixed, *_ = _WholeSegments.apply(*(x.transpose(1, 2) for x in (q, k, v)), tuple(branches))
    return mixed.transpose(1, 2)


def _kept(x: torch.Tensor, branch: Branch) -> torch.Tensor:
    """The tokens of x (B, T, H, ...) that the heads keep of every segment: (B, segments, slots, H, ...)."""
    segment, ratio = min(branch.segment, x.shape[1]), branch.ratio
    rest = (0, 0) * (x.ndim - 2)
    x = F.pad(x, (*rest, 0, -x.shape[1] % segment)).unflatten(1, (-1, segment))
    if ratio == 1:
        return x
    # Behind the last token of a segment, where no query of a token reads.
    x = F.pad(x, (*rest, 0, -segment % ratio)).unflatten(2, (-1, ratio))
    heads = x.shape[4]
    full = heads - heads % ratio
    parts = []
    if full:
        groups = x[:, :, :, :, :full].unflatten(4, (-1, ratio))
        parts.append(groups.diagonal(dim1=3, dim2=5).movedim(-1, 4).flatten(3, 4))
    if full < heads:
        parts.append(x[:, :, :, :, full:].diagonal(dim1=3, dim2=4).movedim(-1, 3))
    return torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]


def _at_tokens(kept: torch.Tensor, branch: Branch, tokens: int, fill: float) -> torch.Tensor:
    """What `_kept` took back in its place, `fill` elsewhere: (B, T, H, ...)."""
    segment, ratio = min(branch.segment, tokens), branch.ratio
    if ratio > 1:
        heads = kept.shape[3]
        keeps = torch.arange(ratio, device=kept.device)[:, None] == torch.arange(heads, device=kept.device) % ratio
        keeps = keeps.view(ratio, heads, *[1] * (kept.ndim - 4))
        kept = torch.where(keeps, kept.unsqueeze(3), fill).flatten(2, 3)[:, :, :segment]
    return kept.flatten(1, 2)[:, :tokens]


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Causal attention of (n, heads, slots, width): outputs, logarithms of the denominators, random state."""
    if q.device.type == "cpu":
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        return out, total, []
    result = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
    return result[0], result[1], [result[6], result[7]]


def _flash_backward(tensors: tuple[torch.Tensor, ...], random: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k and v; `tensors` are the gradient of the output, q, k, v, the output and the denominators.

    The weights are exp(score - denominator), and the output is what these weights would sum to.
    """
    if tensors[0].device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, True)
    slots = tensors[0].shape[2]
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *tensors, None, None, slots, slots, 0.0, True, *random
    )


def _sequences(x: torch.Tensor) -> torch.Tensor:
    """(B, segments, slots, H, width) to (B segments, H, slots, width)."""
    return x.flatten(0, 1).transpose(1, 2)


def _segments(x: torch.Tensor, batch: int) -> torch.Tensor:
    """(B segments, H, slots, ...) to (B, segments, slots, H, ...)."""
    return x.transpose(1, 2).unflatten(0, (batch, -1))


class _WholeSegments(torch.autograd.Function):
    """The weighted branches of q, k, v (B, T, H, width), and what the backward pass needs of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, branches: tuple[Branch, ...]
    ) -> tuple[torch.Tensor, ...]:
        batch, tokens = q.shape[:2]
        outs, totals, random = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        for branch in branches:
            out, total, states = _flash(*(_sequences(_kept(x, branch)) for x in (q, k, v)))
            outs.append(_segments(out, batch))
            totals.append(_at_tokens(_segments(total, batch), branch, tokens, EMPTY))
            random += states
        together = torch.stack(totals).logsumexp(0)
        mixed: Any = 0
        for branch, out, total in zip(branches, outs, totals, strict=True):
            mixed = mixed + (total - together).exp()[..., None] * _at_tokens(out, branch, tokens, 0.0)
        return (mixed.to(v.dtype), together, *random)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.branches = inputs[3]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:3], *output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        q, k, v, mixed, together, *random = ctx.saved_tensors
        batch, tokens = q.shape[:2]
        states = len(random) // len(ctx.branches)
        sums: list[Any] = [0, 0, 0]
        for index, branch in enumerate(ctx.branches):
            grad_out, *kept = [_sequences(_kept(x, branch)) for x in (grad, q, k, v, mixed)]
            total = _sequences(_kept(together[..., None], branch))[..., 0].contiguous()
            own = random[states * index : states * (index + 1)]
            found = _flash_backward((grad_out, *kept, total), own)
            for place, part in enumerate(found):
                at_tokens = _at_tokens(_segments(part, batch), branch, tokens, 0.0)
                sums[place] = sums[place] + widened(at_tokens)
        return (*(total.to(x.dtype) for total, x in zip(sums, (q, k, v), strict=True)), None)
