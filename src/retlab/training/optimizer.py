"""AdamW, its parameter groups and the rule of what is decayed."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retlab.errors import UserError
from retlab.training.settings import ParameterGroup, TrainSection


class ShardwiseAdamW(torch.optim.AdamW):
    """AdamW that steps on this process's shards as plain tensors; its state is sharded as its parameters are.

    The operations are elementwise, so it is the same step. As operations on DTensors they cost the host ten
    milliseconds for a hundred and fifty parameters.

    Attributes:
        grad_scale: () float32, by which the fused kernel divides gradients as it reads them; None leaves them.
    """

    grad_scale: Tensor | None = None

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Fill the lists with parameters, gradients and their state."""
        has_complex: bool = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = own_shards(tensors)
        return has_complex

    def gradients(self) -> list[Tensor]:
        """This process's shards of all gradients."""
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        return own_shards(parameter.grad for parameter in parameters if parameter.grad is not None)

    def clip(self, norm: Tensor, highest: float) -> None:
        """Have the next step take gradients of this norm () as if it were no more than `highest`.

        The factor stays until the next call. A pass of its own over all gradients would take a GPU a hundredth of the
        step.
        """
        self.grad_scale = torch.clamp((norm.float() + 1e-6) / highest, min=1.0)


def own_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of every tensor what this process holds, sharing its memory."""
    return [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def build_optimizer(model: nn.Module, train: TrainSection) -> ShardwiseAdamW:
    """Fused AdamW over the parameters that are not frozen.

    Every group holds `highest_learning_rate` beside `lr`, for `set_learning_rate`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    undecayed = undecayed_names(model)
    for name, parameter, group in _assigned(model, train.parameter_groups):
        if not parameter.requires_grad:
            continue
        rate, decay = train.learning_rate, 0.0 if name in undecayed else train.weight_decay
        if group and group.learning_rate is not None:
            rate = group.learning_rate
        if group and group.weight_decay is not None:
            decay = group.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return ShardwiseAdamW(
        [
            {"params": parameters, "lr": rate, "highest_learning_rate": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=train.betas,
        eps=train.epsilon,
        fused=True,
    )


def freeze_parameters(model: nn.Module, groups: list[ParameterGroup]) -> None:
    """Freeze what the groups say.

    Raises:
        UserError: a group matches no parameter, or nothing is left to train.
    """
    for _, parameter, group in _assigned(model, groups):
        parameter.requires_grad_(not (group and group.frozen))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("train.parameter_groups: every parameter is frozen; leave some to train")


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its highest learning rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest_learning_rate"] * factor


def undecayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: norms, biases, embeddings and recurrence parameters.

    Vectors are norms, biases or recurrence parameters; a recurrence parameter of another shape says so by the
    attribute `no_weight_decay` of the parameter.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim < 2 or id(parameter) in embeddings or getattr(parameter, "no_weight_decay", False)
    }


def _assigned(
    model: nn.Module, groups: list[ParameterGroup]
) -> Iterable[tuple[str, nn.Parameter, ParameterGroup | None]]:
    """Every parameter with the first group whose expression is found in its name."""
    names = dict(model.named_parameters())
    for index, group in enumerate(groups):
        if not any(re.search(group.match, name) for name in names):
            examples = ", ".join(list(names)[:3])
            raise UserError(
                f"train.parameter_groups.{index}.match: {group.match!r} matches no parameter;"
                f" names look like {examples}"
            )
    for name, parameter in names.items():
        yield name, parameter, next((group for group in groups if re.search(group.match, name)), None)
