"""The states of a model's mixers as a Hugging Face cache, for `generate()` and for prompts fed in pieces."""

from collections.abc import Callable

import torch
from transformers import Cache

from ..mixers.base import MixerState
from .body import States


class StateCache(Cache):
    """One state per block, and what the rows have seen so far.

    A recurrent mixer's state has a constant size, attention's grows with the tokens, dilated attention's up to its
    longest segment. `lengths` (batch,) int64 counts the real tokens of each row, `documents` (batch,) int64 holds the
    id of the document that is open in it (-1 for none), `seen` counts slots, padding included.
    """

    is_compileable = False

    is_temporary = False
    """Whether `generate()` made it for itself."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.states: States = []
        self.lengths: torch.Tensor | None = None
        self.documents: torch.Tensor | None = None
        self.seen = 0

    def move_to(self, states: States, slots: int, batch: int, device: torch.device) -> None:
        """Take states after `slots` slots, of which those since the last ones were real tokens of the open document."""
        if self.lengths is None:
            self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
            self.documents = torch.full_like(self.lengths, -1)
        self.states, self.lengths, self.seen = states, self.lengths + (slots - self.seen), slots

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"StateCache({len(self)} states after {self.seen} tokens)"

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Number of slots fed so far, padding included."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """-1: there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Length and offset of an attention mask over everything seen and `query_length` more."""
        return self.seen + query_length, 0

    @property
    def is_initialized(self) -> bool:
        return bool(self.states)

    @property
    def is_croppable(self) -> bool:
        return all(state is None or hasattr(state, "cropped") for state in self.states)

    @property
    def batch_size(self) -> int:
        return -1 if self.lengths is None else self.lengths.shape[0]

    def nbytes(self) -> int:
        """Memory of all states in bytes."""
        return sum(tensor.untyped_storage().nbytes() for state in self.states for tensor in state or ())

    def _map_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a change of the first dimension to everything that is kept per row."""
        self.states = [state and type(state)(*map(change, state)) for state in self.states]
        if self.lengths is not None and self.documents is not None:
            self.lengths, self.documents = change(self.lengths), change(self.documents)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes a copy of row `beam_idx[i]`, as beam search asks."""
        self._map_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after the other."""
        self._map_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices`."""
        self._map_rows(lambda tensor: tensor[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens, all of them real; a recurrent state cannot."""
        removed = abs(tokens_to_remove)
        if removed == 0 or not self.states:
            return
        cropped: list[MixerState] = []
        for state in self.states:
            if state is not None and not hasattr(state, "cropped"):
                raise ValueError(
                    "This state cannot be cropped: it does not hold every token for itself. Keep a copy of the cache "
                    "from before the tokens, or feed the shorter sequence again."
                )
            cropped.append(state and state.cropped(removed))
        self.states = cropped
        self.seen -= removed
        self.lengths = None if self.lengths is None else self.lengths - removed
