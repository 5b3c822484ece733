"""The model and its objective as one module, what it keeps for the backward pass, and how processes share it."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from retlab.models.causal_lm import CausalLM
from retlab.training.objectives import SummedLoss

SHARDED_TOGETHER = 2**25
"""Parameters that FSDP gathers and gives up at once: every time costs the host more than a millisecond."""

KEPT_GATHERED = 2**28
"""Up to so many parameters FSDP keeps what a step has gathered until the backward pass: a GiB buys half the traffic."""


class Scored(nn.Module):
    """The model and its objective as one module: what is wrapped, sharded and compiled."""

    def __init__(self, model: CausalLM, objective: nn.Module) -> None:
        super().__init__()
        self.model: CausalLM = model
        self.objective = objective

    def forward(self, batch: Mapping[str, Tensor]) -> SummedLoss:
        return self.objective(self.model, batch)


def recompute_activations(model: CausalLM) -> None:
    """Have blocks keep their input alone for the backward pass, which computes the rest again."""
    # Transformers 5.17 has the second name alone, later ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()


def shard(scored: Scored, mesh: Any) -> None:
    """Shard runs of blocks, each of `SHARDED_TOGETHER` parameters or one block, and the rest together (FSDP2).

    Weights are gathered in float32 and autocast rounds what it rounds in one process. FSDP's own mixed precision
    would also round norms, rotations and the sums of the embedding's gradient.
    """
    gives_up = sum(parameter.numel() for parameter in scored.parameters()) > KEPT_GATHERED
    for run in runs_of(scored.model.body.blocks, SHARDED_TOGETHER):
        fully_shard(run, mesh=mesh, reshard_after_forward=gives_up)
    fully_shard(scored, mesh=mesh, reshard_after_forward=gives_up)


def runs_of(blocks: Iterable[nn.Module], least: int) -> list[list[nn.Module]]:
    """Neighbouring blocks put together until each run, but for the last, has `least` parameters."""
    runs: list[list[nn.Module]] = [[]]
    for block in blocks:
        if sum(parameter.numel() for part in runs[-1] for parameter in part.parameters()) >= least:
            runs.append([])
        runs[-1].append(block)
    return runs
