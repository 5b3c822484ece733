"""The gated linear unit (Shazeer 2020, arXiv:2002.05202), the channel mixer of RetNet and of the Transformer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..own_kernels.few_rows import added_product, fits_few_rows, normed_product
from .base import Misfit, Mixer, MixerState, refuse
from .projections import lay_side_by_side, project_few, weight_of_all
from .rotary import Rotation

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


class ReservedUnit(NamedTuple):
    """The weights of `fc1` and `gate` as one (2 x intermediate_size, hidden_size), where they lie side by side."""

    weight: torch.Tensor | None


class GatedLinearUnit(Mixer):
    """fc2(activation(fc1 x) * gate x), without biases; `intermediate_size` None is twice the hidden size."""

    ignores_blanks = True

    def __init__(
        self, hidden_size: int, *, intermediate_size: int | None = None, activation: str = "gelu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        refuse(self.misfits(hidden_size, {"intermediate_size": intermediate_size, "activation": activation}))
        intermediate_size = 2 * hidden_size if intermediate_size is None else intermediate_size
        self.activation = activation
        self.dropout = dropout
        # TorchScale leaves them as PyTorch initialises them.
        self.fc1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.fc2 = nn.Linear(intermediate_size, hidden_size, bias=False)

    @classmethod
    def misfits(cls, hidden_size: int, settings: Mapping[str, Any]) -> Iterator[Misfit]:  # noqa: ARG003
        """An activation that there is not, and a width of nothing."""
        activation, intermediate_size = settings["activation"], settings["intermediate_size"]
        if activation not in ACTIVATIONS:
            yield ("activation",), f"The activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}."
        if intermediate_size is not None and intermediate_size < 1:
            yield ("intermediate_size",), f"The intermediate size must be at least 1, not {intermediate_size}."

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None = None,  # noqa: ARG002
        segment_ids: torch.Tensor | None = None,  # noqa: ARG002
        state: MixerState = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None]:
        inner = F.dropout(ACTIVATIONS[self.activation](self.fc1(hidden)), self.dropout, self.training)
        return self.fc2(inner * self.gate(hidden)), None

    def prepare_weights(self) -> None:
        """Those that read the same input, side by side."""
        lay_side_by_side(self.fc1, self.gate)

    def reserve(self, state: MixerState, capacity: int) -> ReservedUnit:  # noqa: ARG002
        """No memory; the weights as one."""
        return ReservedUnit(weight_of_all(self.fc1, self.gate))

    def changing(self, reserved: ReservedUnit) -> list[torch.Tensor]:  # noqa: ARG002
        """Nothing."""
        return []

    def unload(self, reserved: ReservedUnit, slots: int) -> None:
        """No state."""

    def advance(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,  # noqa: ARG002
        reserved: ReservedUnit,
        slot: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """As the contract has it, in two products."""
        inner, gate = project_few(hidden, reserved.weight, self.fc1, self.gate)
        return self.fc2(ACTIVATIONS[self.activation](inner) * gate)

    def fuses(self, hidden: torch.Tensor, norm: nn.RMSNorm, reserved: ReservedUnit) -> bool:
        """One token of few rows."""
        return fits_few_rows(hidden, norm, reserved.weight, self.fc2)

    def advance_fused(
        self,
        hidden: torch.Tensor,
        norm: nn.RMSNorm,
        rotation: Rotation | None,  # noqa: ARG002
        reserved: ReservedUnit,
        slot: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """As the contract has it, in two kernels for one row."""
        assert reserved.weight is not None
        inner = normed_product(hidden, norm, reserved.weight, self.activation)
        return added_product(inner, self.fc2.weight, hidden)

    def core_flops_per_token(self, sequence_length: int) -> float:  # noqa: ARG002
        """All its work is in weight matrices."""
        return 0.0
