"""The contract of a mixer: what the body knows about the blocks it stacks.

A mixer maps hidden states to hidden states of the same shape, for any number of tokens, one included:
`(hidden, rotation, segment_ids, state) -> (out, state)`.

- `hidden`: (batch, tokens, hidden_size), in the dtype of the model.
- `rotation`: what the positions, the number of real tokens before each token in its row, do to the mixer's rotary
  `frequencies`; None for a mixer that has none. The body computes it once for all its blocks. Positions turn angles
  and nothing else, so an offset that a whole row shares changes no output.
- `segment_ids`: (batch, tokens) int64 or None. -1 is padding, 0 the document that `state` belongs to, 1, 2, ...
  the documents that begin in this call, in order. None says that every token continues document 0, and keeps
  the fast path. Nothing crosses from one document to another, and padding is never read nor written.
- `state`: a named tuple of tensors whose first dimension is the batch, or None for an empty past. A recurrent
  mixer's state has a fixed shape; attention's keys and values grow by one slot per token, dilated attention's up to
  its longest segment. A mixer that does not look at other tokens has no state and returns None.

A mixer for which the documents of a piece take some preparing names its kind of `layout_kind`: the body calls `layout`
once for all its blocks of that kind, and hands them what it returns as a fifth argument, `layout`. Without it they
prepare for themselves.

Feeding a sequence in pieces, each with the state that the piece before returned, gives the outputs of one call.
The output at padding is finite and means nothing.

Generation feeds pieces of real tokens of the open document through `advance`, which writes the new state over the old
one: the same work on the same memory every time, so that a GPU can record it once and play it back. To mixers that say
that they ignore them it feeds blanks before the first token: hidden states of zeros.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from .rotary import Frequencies, Rotation

MixerState = Any
"""A named tuple of tensors, batch first, whose type only its mixer knows; None where there is nothing to keep."""

Misfit = tuple[tuple[str, ...], str]
"""Names of settings (and `hidden_size`) that do not fit each other, and one sentence that says so."""


class Mixer(nn.Module):
    """Base of sequence and channel mixers. Settings are the constructor's keyword arguments after `hidden_size`.

    Every submodule that holds weights initialises them in `reset_parameters`, as PyTorch's own layers do: models call
    it again where a checkpoint lacks a weight.
    """

    forms: ClassVar[tuple[str, ...]] = ()
    """Names of the equivalent forms that this mixer can compute, where it has several."""

    recurrent: ClassVar[bool] = False
    """Whether the state has a fixed size, and therefore cannot be taken back to an earlier token."""

    keeps_tokens: ClassVar[bool] = False
    """Whether the state holds something of every token that can still be read, and grows with them."""

    ignores_blanks: ClassVar[bool] = False
    """Whether zeros in front of the first token give zeros, and leave an empty state empty."""

    frequencies: Frequencies | None = None
    """Of the rotary positions, where the mixer has them."""

    form: str | None = None
    """The form to compute; None leaves the choice to the mixer."""

    kernel: Callable[..., Any] | None = None
    """A function of another package to run on wherever it can; see `kernels`."""

    @property
    def layout_kind(self) -> Hashable | None:
        """What decides, beside its arguments, what `layout` returns; None where there is nothing to prepare."""
        return None

    def layout(self, hidden: torch.Tensor, segment_ids: torch.Tensor | None, state: MixerState) -> Any:
        """What the padding and the documents of a piece mean to this mixer; the values of `hidden` are not looked at.

        The same for all mixers of its kind, each with the state of its own that the piece before left.
        """
        raise NotImplementedError

    def set_form(self, form: str | None) -> None:
        """Compute one of `forms` from now on, or choose by the length again with None."""
        if form is not None and form not in self.forms:
            raise ValueError(f"The form of {type(self).__name__} must be one of {', '.join(self.forms)}, not {form!r}.")
        self.form = form

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        segment_ids: torch.Tensor | None = None,
        state: MixerState = None,
    ) -> tuple[torch.Tensor, MixerState]:
        """Mix one piece of the sequence; shapes as in the module's docstring."""
        raise NotImplementedError

    @classmethod
    def misfits(cls, hidden_size: int, settings: Mapping[str, Any]) -> Iterator[Misfit]:  # noqa: ARG003
        """What cannot be about settings whose types are right; all settings are given."""
        yield from ()

    @property
    def can_advance(self) -> bool:
        """Whether `advance` works with the present settings."""
        return True

    def empty_state(self, batch: int, like: torch.Tensor) -> MixerState:  # noqa: ARG002
        """The state before the first token, in the dtype and on the device that `like` has; recurrent mixers have one.

        None where the mixer has no state.
        """
        return None

    def prepare_weights(self) -> None:
        """Lay the weights as `advance` is fastest; they stay the same parameters with the same numbers."""

    def reserve(self, state: MixerState, capacity: int) -> MixerState:  # noqa: ARG002
        """Memory for `advance`, whose `load` takes states like this one, with room for `capacity` slots."""
        return state and type(state)(*(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in state))

    def changing(self, reserved: MixerState) -> list[torch.Tensor]:
        """The tensors of reserved memory that `advance` changes; zeros in all of them are an empty state."""
        return list(reserved or ())

    def load(self, reserved: MixerState, state: MixerState) -> None:
        """Copy a state into reserved memory."""
        _overwrite(self.changing(reserved), state or ())

    def unload(self, reserved: MixerState, slots: int) -> MixerState:  # noqa: ARG002
        """A state of its own memory after the first `slots` slots, padding included."""
        return reserved and type(reserved)(*(x.clone() for x in reserved))

    def advance(
        self,
        hidden: torch.Tensor,
        rotation: Rotation | None,
        reserved: MixerState,
        slot: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """The outputs at real tokens that continue the open document; the state in `reserved` moves past them.

        `slot` () int64 counts the slots that were fed before, in the memory of the device, and is negative
        at blanks in front of a prompt. A recurrent mixer takes any number of tokens, the others one.
        """
        out, state = self(hidden, rotation, None, reserved)
        self.load(reserved, state)
        return out

    def fuses(self, hidden: torch.Tensor, norm: nn.RMSNorm, reserved: MixerState) -> bool:  # noqa: ARG002
        """Whether `advance_fused` takes these hidden states, which come before the norm."""
        return False

    def advance_fused(
        self,
        hidden: torch.Tensor,
        norm: nn.RMSNorm,
        rotation: Rotation | None,
        reserved: MixerState,
        slot: torch.Tensor,
    ) -> torch.Tensor:
        """The whole residual block, hidden + advance(norm(hidden)), in kernels that compiling makes no faster."""
        raise NotImplementedError

    def advance_to_last(
        self, hidden: torch.Tensor, rotation: Rotation | None, reserved: MixerState, slot: torch.Tensor
    ) -> torch.Tensor:
        """`advance` where the last token's output (batch, 1, hidden_size) is all that anybody wants."""
        return self.advance(hidden, rotation, reserved, slot)[:, -1:]

    def core_flops_per_token(self, sequence_length: int) -> float:
        """Forward floating point operations per token that no weight matrix accounts for (2 per multiply-add)."""
        raise NotImplementedError


def _overwrite(targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def refuse(misfits: Iterable[Misfit]) -> None:
    """Raise the first misfit as a ValueError."""
    for _, sentence in misfits:
        raise ValueError(sentence)


def head_misfits(hidden_size: int, num_heads: int) -> Iterator[Misfit]:
    """Heads divide the width into equal parts, of an even width as rotary positions need it."""
    settings = ("num_heads", "hidden_size")
    if num_heads < 1 or hidden_size % num_heads:
        yield settings, f"The number of heads ({num_heads}) must divide the hidden size ({hidden_size})."
    elif hidden_size // num_heads % 2:
        yield (
            settings,
            f"The head width is {hidden_size // num_heads} ({hidden_size} / {num_heads} heads), but rotary positions"
            " turn pairs of channels: choose a number of heads that gives an even width.",
        )
