"""Multi-scale retention (Sun et al. 2023, arXiv:2307.08621) as a mixer."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..own_kernels.few_rows import added_product, fits_few_rows, gated_norm_of_one_token, normed_product
from ..own_kernels.retention_step import kernel_can_step
from .base import Misfit, Mixer, head_misfits, refuse
from .gated_norm import gated_norm
from .kernels import can_run, kernel_retention
from .projections import Projection, lay_side_by_side, project, project_few, split_few, weight_of_all
from .retention_forms import (
    FORMS,
    RetentionState,
    retention,
    retention_memory,
    retention_step,
    retnet_log_decay,
    torchscale_parallel_retention,
)
from .rotary import RetNetFrequencies, Rotation, rotate_pairs


class ReservedRetention(NamedTuple):
    """The memory of `RetentionState`, the decays (heads, 1, 1) float32, and the projections as one, if they can be.

    The keys of the memory lie side by side, as `kernel_step` takes it.
    """

    memory: torch.Tensor
    decay: torch.Tensor
    weight: torch.Tensor | None


class Retention(Mixer):
    """The multi-scale retention block with its projections, rotary positions, per-head norm and gate (eq. 8).

    `value_size` None is twice the hidden size. `chunk_size` changes the speed alone. `torchscale_normalizer`
    reproduces TorchScale's parallel outputs, quadratic in the length and without a state.
    """

    forms = FORMS
    recurrent = True
    ignores_blanks = True

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = 4,
        value_size: int | None = None,
        chunk_size: int = 128,
        norm_eps: float = 1e-6,
        torchscale_normalizer: bool = False,
    ) -> None:
        super().__init__()
        refuse(self.misfits(hidden_size, {"num_heads": num_heads, "value_size": value_size, "chunk_size": chunk_size}))
        value_size = 2 * hidden_size if value_size is None else value_size
        self.num_heads = num_heads
        self.key_width = hidden_size // num_heads
        self.value_width = value_size // num_heads
        self.frequencies = RetNetFrequencies(self.key_width)
        self.chunk_size = chunk_size
        self.norm_eps = norm_eps
        self.torchscale_normalizer = torchscale_normalizer
        # TorchScale's initialisation.
        self.q_proj = Projection(hidden_size, hidden_size, gain=2**-2.5)
        self.k_proj = Projection(hidden_size, hidden_size, gain=2**-2.5)
        self.v_proj = Projection(hidden_size, value_size, gain=2**-2.5)
        self.g_proj = Projection(hidden_size, value_size, gain=2**-2.5)
        self.out_proj = Projection(value_size, hidden_size, gain=2**-1)

    @classmethod
    def misfits(cls, hidden_size: int, settings: Mapping[str, Any]) -> Iterator[Misfit]:
        """Heads that do not divide the width of keys or values, and chunks of nothing."""
        num_heads, value_size = settings["num_heads"], settings["value_size"]
        yield from head_misfits(hidden_size, num_heads)
        # Twice a width that the heads divide, where none is given.
        if value_size is not None and num_heads > 0 and value_size % num_heads:
            message = f"The number of heads ({num_heads}) must divide the value size ({value_size})."
            yield ("value_size", "num_heads"), message
        if settings["chunk_size"] < 1:
            yield ("chunk_size",), f"The chunk size must be at least 1, not {settings['chunk_size']}."

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        segment_ids: torch.Tensor | None = None,
        state: RetentionState | None = None,
    ) -> tuple[torch.Tensor, RetentionState]:
        assert rotation is not None
        q, k, v, gate = project(hidden, self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))
        q, k = rotate_pairs(q, rotation), rotate_pairs(k, self._scaled(rotation))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        log_decay = retnet_log_decay(self.num_heads, hidden.device)
        if self.torchscale_normalizer:
            if state is not None or self.form in ("chunkwise", "recurrent"):
                raise ValueError(
                    "TorchScale's normaliser exists in the parallel form alone: run the model without a cache "
                    "(use_cache=False) and leave the form unset."
                )
            out = torchscale_parallel_retention(q.to(v.dtype), k.to(v.dtype), v, log_decay, segment_ids)
            # Empty, and there to be refused where a next piece brings it.
            new_state = RetentionState(hidden.new_empty(hidden.shape[0], 0))
        elif self.kernel is not None and self._takes_kernel(v, segment_ids):
            out, new_state = kernel_retention(q, k, v, log_decay, state, self.kernel)
        else:
            form = self.form_for(hidden.shape[1])
            out, new_state = retention(q, k, v, log_decay, state, segment_ids, form, self.chunk_size)
        return self.out_proj(gated_norm(out.transpose(1, 2), gate, self.norm_eps)), new_state

    def _takes_kernel(self, v: torch.Tensor, segment_ids: torch.Tensor | None) -> bool:
        chunkwise = self.form == "chunkwise" or (self.form is None and v.shape[2] > 1)
        return chunkwise and can_run(self.kernel, v, segment_ids)

    def form_for(self, tokens: int) -> str:
        """The form that a piece of so many tokens is computed in, where it does not run on a kernel."""
        if self.form is not None:
            return self.form
        if tokens == 1:
            return "recurrent"
        return "parallel" if tokens <= self.chunk_size else "chunkwise"

    @property
    def can_advance(self) -> bool:
        """Not with TorchScale's normaliser, which has no state."""
        return not self.torchscale_normalizer

    def empty_state(self, batch: int, like: torch.Tensor) -> RetentionState:
        """A memory of zeros."""
        shape = (batch, self.num_heads, self.key_width, self.value_width)
        return RetentionState(torch.zeros(shape, device=like.device))

    @property
    def _projections(self) -> tuple[Projection, ...]:
        return self.q_proj, self.k_proj, self.v_proj, self.g_proj

    def prepare_weights(self) -> None:
        """Those that read the same input, side by side."""
        lay_side_by_side(*self._projections)

    def reserve(self, state: RetentionState, capacity: int) -> ReservedRetention:  # noqa: ARG002
        """Memory of the state's shape, and what `advance` needs beside it."""
        decay = retnet_log_decay(self.num_heads, state.memory.device).exp().to(torch.float32)
        memory = torch.zeros_like(state.memory.mT, memory_format=torch.contiguous_format).mT
        return ReservedRetention(memory, decay[:, None, None], weight_of_all(*self._projections))

    def changing(self, reserved: ReservedRetention) -> list[torch.Tensor]:
        """The memory."""
        return [reserved.memory]

    def unload(self, reserved: ReservedRetention, slots: int) -> RetentionState:  # noqa: ARG002
        """A copy of the memory."""
        return RetentionState(reserved.memory.clone(memory_format=torch.contiguous_format))

    def advance(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        reserved: ReservedRetention,
        slot: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """As the contract has it, with few kernels for one token, unless a form is asked for by name."""
        if hidden.shape[1] > 1 or self.form is not None:
            out, state = self(hidden, rotation, None, RetentionState(reserved.memory))
            reserved.memory.copy_(state.memory)
            return out
        assert rotation is not None
        q, k, v, gate = project_few(hidden, reserved.weight, *self._projections)
        out = retention_step(q, k, v, rotation, reserved.decay, self.key_width**-0.5, reserved.memory)
        return self._finished(out.to(v.dtype), gate)

    def fuses(self, hidden: torch.Tensor, norm: nn.RMSNorm, reserved: ReservedRetention) -> bool:
        """One token of few rows, where no form is asked for by name."""
        fits = fits_few_rows(hidden, norm, reserved.weight, self.out_proj)
        return fits and self.form is None and kernel_can_step(reserved.memory)

    def advance_fused(
        self,
        hidden: torch.Tensor,
        norm: nn.RMSNorm,
        rotation: Rotation | None,
        reserved: ReservedRetention,
        slot: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """As the contract has it, in four kernels for one row."""
        assert rotation is not None
        assert reserved.weight is not None
        together = normed_product(hidden, norm, reserved.weight)
        q, k, v, gate = split_few(together, *self._projections)
        out = retention_step(q, k, v, rotation, reserved.decay, self.key_width**-0.5, reserved.memory)
        return added_product(gated_norm_of_one_token(out, gate, self.norm_eps), self.out_proj.weight, hidden)

    def advance_to_last(
        self, hidden: torch.Tensor, rotation: Rotation | None, reserved: ReservedRetention, slot: torch.Tensor
    ) -> torch.Tensor:
        """As the contract has it: with the memory after the last token, its output is one product."""
        if hidden.shape[1] == 1 or self.form is not None or self.kernel is not None:
            return super().advance_to_last(hidden, rotation, reserved, slot)
        assert rotation is not None
        k, v = project(hidden, self.k_proj, self.v_proj)
        k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (k, v))
        k = rotate_pairs(k, self._scaled(rotation)).transpose(1, 2)
        log_decay, state = retnet_log_decay(self.num_heads, hidden.device), RetentionState(reserved.memory)
        reserved.memory.copy_(retention_memory(k, v.transpose(1, 2), log_decay, state, self.chunk_size))
        hidden = hidden[:, -1:]
        q = self.q_proj(hidden).unflatten(-1, (self.num_heads, -1))
        q = rotate_pairs(q, Rotation(*(part[:, -1:] for part in rotation))).transpose(1, 2)
        return self._finished((q.to(torch.float32) @ reserved.memory).to(v.dtype), self.g_proj(hidden))

    def _scaled(self, rotation: Rotation) -> Rotation:
        """Keys take their scale with their rotation."""
        return Rotation(*(part * self.key_width**-0.5 for part in rotation))

    def _finished(self, out: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The block's output for one token, from retention's (batch, heads, 1, value width) and the gate's."""
        out = F.rms_norm(out, (self.value_width,), eps=self.norm_eps).reshape(gate.shape)
        return self.out_proj(F.silu(gate) * out)

    def core_flops_per_token(self, sequence_length: int) -> float:
        """Products within the chunk (mask not skipped), writing the memory and reading it."""
        chunk = min(self.chunk_size, sequence_length)
        key_size = self.num_heads * self.key_width
        value_size = self.num_heads * self.value_width
        return 2 * chunk * (key_size + value_size) + 4 * self.key_width * value_size
