"""What the kinds of softmax attention share: projections to heads, rotary positions, initialisation."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .base import Misfit, Mixer, head_misfits, refuse
from .projections import Projection
from .rotary import RopeFrequencies, Rotation, rotate_halves


class AttentionHeads(Mixer):
    """Queries, keys and values of several heads, with rotary positions (Su et al. 2021) and no biases."""

    keeps_tokens = True

    def __init__(self, hidden_size: int, num_heads: int, rope_theta: float) -> None:
        super().__init__()
        refuse(head_misfits(hidden_size, num_heads))
        self.num_heads = num_heads
        self.head_width = hidden_size // num_heads
        self.frequencies = RopeFrequencies(self.head_width, rope_theta)
        # TorchScale's initialisation.
        self.q_proj = Projection(hidden_size, hidden_size, gain=2**-0.5)
        self.k_proj = Projection(hidden_size, hidden_size, gain=2**-0.5)
        self.v_proj = Projection(hidden_size, hidden_size, gain=2**-0.5)
        self.out_proj = Projection(hidden_size, hidden_size, gain=1.0)

    @classmethod
    def misfits(cls, hidden_size: int, settings: Mapping[str, Any]) -> Iterator[Misfit]:
        """Heads that do not divide the width."""
        yield from head_misfits(hidden_size, settings["num_heads"])

    def project(
        self, hidden: torch.Tensor, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Positioned queries and keys, and values, (batch, heads, tokens, head width) each."""
        assert rotation is not None
        q = rotate_halves(self.q_proj(hidden).unflatten(-1, (self.num_heads, -1)), rotation).transpose(1, 2)
        k = rotate_halves(self.k_proj(hidden).unflatten(-1, (self.num_heads, -1)), rotation).transpose(1, 2)
        return q, k, self.v_proj(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, heads: torch.Tensor) -> torch.Tensor:
        """The block's output (batch, tokens, hidden_size) from that of its heads."""
        return self.out_proj(heads.transpose(1, 2).flatten(-2))
