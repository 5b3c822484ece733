"""Training objectives: modules that score a model on a batch, free of any training loop."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retlab.models.causal_lm import CausalLM

IGNORED = -100
"""Target of a position that is in no loss."""

LOGITS_AT_ONCE = 2**29
"""Most logits at a time (1 GiB in bfloat16); a larger batch is scored in pieces."""


class SummedLoss(NamedTuple):
    """Result of an objective over one batch.

    Attributes:
        loss: float32 scalar, the sum of the losses of all counted tokens, in nats.
        tokens: int64 scalar, how many tokens were counted.
    """

    loss: Tensor
    tokens: Tensor


def counted_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """Targets [B, T] int64 with IGNORED wherever the loss mask is off."""
    return batch["targets"].masked_fill(~batch["loss_mask"], IGNORED)


def count_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Number of tokens that the objective counts, int64 scalar; needs no model."""
    return (counted_targets(batch) != IGNORED).sum()


class NextToken(nn.Module):
    """Cross entropy of the next token, the logits in float32.

    Its submodules are compiled by themselves, as are the blocks of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cross_entropy = LinearCrossEntropy()

    def forward(self, model: CausalLM, batch: Mapping[str, Tensor]) -> SummedLoss:
        """The loss of a batch.

        Args:
            model: a causal language model with `encode`, everything before the head, and `lm_head`.
            batch: `input_ids` and `targets` int64 [B, T], `loss_mask` bool [B, T], and `segment_ids` int64 [B, T]
                unless nothing has to be kept apart.
        """
        targets = counted_targets(batch)
        hidden = model.encode(batch["input_ids"], segment_ids=batch.get("segment_ids")).hidden
        loss = self.cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten())
        return SummedLoss(loss, (targets != IGNORED).sum())


class LinearCrossEntropy(nn.Module):
    """Summed cross entropy of hidden states [N, D] under an output projection [V, D], labels [N]; float32 scalar.

    The gradient is computed with the loss: every piece of the logits is made once, read twice, and never kept.
    """

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
                return _WithGradient.apply(hidden, weight, labels, dtype)
            pieces = _pieces(hidden.to(dtype), weight, labels)
            return torch.stack([_loss(_log_probabilities(x @ weight.to(dtype).T), y) for x, y in pieces]).sum()


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        weights = weight.to(dtype)
        losses, of_hidden, of_weight = [], [], None
        for rows, targets in _pieces(hidden.to(dtype), weights, labels):
            log_probabilities = _log_probabilities(rows @ weights.T)
            losses.append(_loss(log_probabilities, targets))
            of_logits = _gradient(log_probabilities, targets).to(dtype)
            of_hidden.append(of_logits @ weights)
            piece = (of_logits.T @ rows).to(weight.dtype)
            of_weight = piece if of_weight is None else of_weight + piece
        ctx.save_for_backward(torch.cat(of_hidden).to(hidden.dtype), of_weight)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * gradients[0].to(of_hidden.dtype), of_weight * gradients[0].to(of_weight.dtype), None, None


def _pieces(hidden: Tensor, weight: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    count = -(-labels.numel() * weight.shape[0] // LOGITS_AT_ONCE)
    return zip(hidden.chunk(count), labels.chunk(count), strict=True)


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(log_probabilities, labels, ignore_index=IGNORED, reduction="sum")


def _gradient(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `_loss` with respect to the logits [N, V], which replaces the log probabilities."""
    of_logits = log_probabilities.exp_()
    if torch.compiler.is_compiling():
        # One pass with the exponential; the scattered subtraction would need passes of its own.
        words = torch.arange(of_logits.shape[-1], device=labels.device)
        of_logits = torch.where(words == labels[:, None], of_logits - 1, of_logits)
    else:
        of_logits[torch.arange(len(labels), device=labels.device), labels.clamp(min=0)] -= 1
    return of_logits.masked_fill_((labels == IGNORED)[:, None], 0.0)


OBJECTIVES: dict[str, type[nn.Module]] = {"next_token": NextToken}
"""The objective of every name that `train.objective` knows."""
