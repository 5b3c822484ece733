"""Training objectives: pure functions of a model and a batch, free of any training loop."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from retlab.models.causal_lm import CausalLM

IGNORED = -100
"""Target of a position that is in no loss."""

LOGITS_AT_ONCE = 2**28
"""Most logits in float32 at a time (1 GiB); a larger batch is scored in pieces whose logits are recomputed."""


class SummedLoss(NamedTuple):
    """Result of an objective over one batch.

    Attributes:
        loss: float32 scalar, the sum of the losses of all counted tokens, in nats.
        tokens: int64 scalar, how many tokens were counted.
    """

    loss: Tensor
    tokens: Tensor


Objective = Callable[[CausalLM, Mapping[str, Tensor]], SummedLoss]


def counted_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """Targets [B, T] int64 with IGNORED wherever the loss mask is off."""
    return batch["targets"].masked_fill(~batch["loss_mask"], IGNORED)


def count_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Number of tokens that the objective counts, int64 scalar; needs no model."""
    return (counted_targets(batch) != IGNORED).sum()


def next_token(model: CausalLM, batch: Mapping[str, Tensor]) -> SummedLoss:
    """Cross entropy of the next token, the logits in float32.

    Args:
        model: a causal language model with `encode`, everything before the head, and `lm_head`.
        batch: `input_ids` and `targets` int64 [B, T], `loss_mask` bool [B, T], and `segment_ids` int64 [B, T] unless
            nothing has to be kept apart.
    """
    targets = counted_targets(batch)
    hidden = model.encode(batch["input_ids"], segment_ids=batch.get("segment_ids")).hidden
    rows, labels = hidden.flatten(0, 1), targets.flatten()
    pieces = -(-labels.numel() * model.lm_head.out_features // LOGITS_AT_ONCE)
    if pieces == 1:
        loss = _cross_entropy(model.lm_head, rows, labels)
    else:
        parts = zip(rows.chunk(pieces), labels.chunk(pieces), strict=True)
        losses = [checkpoint(_cross_entropy, model.lm_head, *part, use_reentrant=False) for part in parts]
        loss = torch.stack(losses).sum()
    return SummedLoss(loss, (targets != IGNORED).sum())


def _cross_entropy(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Summed cross entropy of hidden states [N, D] under a head to the vocabulary, labels [N]."""
    return F.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORED, reduction="sum")


OBJECTIVES: dict[str, Objective] = {"next_token": next_token}
