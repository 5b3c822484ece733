"""Linear maps without bias: their initialisation, and several of one input as one product."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .retention_loop import suits_loop

# Tokens from which one product is faster: joining the weights, which it needs, costs as much as reading them.
JOINED_FROM = 1024


class Projection(nn.Linear):
    """A linear map without bias, initialised as Xavier uniform with a gain (Glorot and Bengio 2010, eq. 16)."""

    def __init__(self, in_features: int, out_features: int, gain: float) -> None:
        self.gain = gain
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight, gain=self.gain)


def project(hidden: torch.Tensor, *projections: nn.Linear) -> tuple[torch.Tensor, ...]:
    """The outputs of several linear maps without bias of the same `hidden` (batch, tokens, hidden_size).

    Compiled for a GPU this is one product over the joined weights, and of the gradients too: on an H100 that takes
    4 % off the step of a RetNet, whose four are most of its products. Attention and the gated linear unit gain
    nothing, because what computes their gradients cannot write to one place. On a CPU the gradients of `hidden` are
    added up by the products.
    """
    if suits_loop(hidden) and all(map(_is_weight_alone, projections)):
        summed: tuple[torch.Tensor, ...] = _Summed.apply(hidden, *(projection.weight for projection in projections))
        return summed
    if torch.compiler.is_compiling() and hidden.is_cuda and hidden.shape[:-1].numel() >= JOINED_FROM:
        return joined_projections(hidden, *(projection.weight for projection in projections))
    return tuple(projection(hidden) for projection in projections)


def lay_side_by_side(*maps: nn.Linear) -> None:
    """Move the weights of several maps of one input beside each other in memory, where nothing forbids it.

    The parameters stay what they are. A GPU reads one matrix of four times the rows in little more time than one of
    the four, where a few tokens leave most of it idle: on an H100 a quarter of a decoding step of 16 rows.
    """
    weights = [each.weight for each in maps]
    if _lie_side_by_side(weights) or not all(map(_can_move, maps)):
        return
    if len({(weight.dtype, weight.device, weight.shape[1]) for weight in weights}) > 1:
        return
    joined = torch.cat([weight.detach() for weight in weights])
    for weight, place in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
        weight.data = place


def weight_of_all(*maps: nn.Linear) -> torch.Tensor | None:
    """The weights of maps as one (features of all, hidden_size) in the same memory.

    None where they lie apart, and where there are biases, which would be left out.
    """
    weights = [each.weight for each in maps]
    if any(each.bias is not None for each in maps) or not _lie_side_by_side(weights):
        return None
    first = weights[0].detach()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), (first.shape[1], 1))


def project_few(hidden: torch.Tensor, joined: torch.Tensor | None, *maps: nn.Linear) -> tuple[torch.Tensor, ...]:
    """`project` of one token a row or so, by what `weight_of_all` gave for the maps."""
    if joined is None:
        return tuple(each(hidden) for each in maps)
    return split_few(F.linear(hidden, joined), *maps)


def split_few(outputs: torch.Tensor, *maps: nn.Linear) -> tuple[torch.Tensor, ...]:
    """The outputs of each of several maps, from those of all side by side."""
    return outputs.split([each.out_features for each in maps], dim=-1)


def _can_move(linear: nn.Linear) -> bool:
    weight = linear.weight
    # Other processes look at shared memory; the memory of a GPU always says that it is shared.
    is_free = not weight.is_inference() and (weight.is_cuda or not weight.is_shared())
    return linear.bias is None and weight.is_contiguous() and is_free


def _lie_side_by_side(weights: list[torch.Tensor]) -> bool:
    """Whether every weight begins where the one before ends, in one piece of memory."""
    first = weights[0]
    if any(weight.dtype != first.dtype or not weight.is_contiguous() for weight in weights):
        return False
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    if any(weight.data_ptr() != end for weight, end in zip(weights[1:], ends, strict=False)):
        return False
    return len({weight.untyped_storage().data_ptr() for weight in weights}) == 1


def _is_weight_alone(projection: nn.Linear) -> bool:
    """Whether it is its weight and nothing else: no adapter in its place, and nobody who watches its calls."""
    return type(projection) is Projection and not (projection._forward_hooks or projection._forward_pre_hooks)


def joined_projections(hidden: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`hidden` (batch, tokens, hidden_size) times every weight (features, hidden_size), in one product."""
    return _Split.apply(F.linear(hidden, torch.cat(weights)), [len(weight) for weight in weights])


class _Summed(torch.autograd.Function):
    """Several linear maps of one input, whose gradient is written once and added to by the other products."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(hidden, *weights)
        return tuple(F.linear(hidden, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *weights = ctx.saved_tensors
        rows = hidden.flatten(0, -2)
        total: torch.Tensor | None = None
        of_weights: list[torch.Tensor | None] = []
        for gradient, weight, needed in zip(gradients, weights, ctx.needs_input_grad[1:], strict=True):
            gradient = gradient.flatten(0, -2)
            if ctx.needs_input_grad[0]:
                total = gradient @ weight if total is None else total.addmm_(gradient, weight)
            of_weights.append(gradient.mT @ rows if needed else None)
        return None if total is None else total.view_as(hidden), *of_weights


class _Split(torch.autograd.Function):
    """Splits the last dimension; in the backward pass every gradient is written to its place by who computes it.

    The concatenation that autograd would make is one kernel to Inductor, which computes all gradients at all places:
    on an H100 it took 8 ms of a step of 60.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, widths: list[int]) -> tuple[torch.Tensor, ...]:
        ctx.widths = widths
        return x.split(widths, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        leading, total = gradients[0].shape[:-1], sum(ctx.widths)
        joined = gradients[0].new_empty(leading.numel(), total)
        start = total
        # The last come first: mixers use their projections in order, so these gradients are known first. A strided
        # view is what Inductor writes to in place.
        for gradient, width in zip(reversed(gradients), reversed(ctx.widths), strict=True):
            start -= width
            place = joined.as_strided((leading.numel(), width), (total, 1), start)
            place.copy_(gradient.reshape(-1, width))
        return joined.view(*leading, total), None
