"""Greedy decoding without waiting for the GPU after each token: collect, look back now and then, cut in the end."""

import torch

from .static_steps import RING, Lane

LOOK_EVERY = 16
"""Tokens between two looks at whether all rows have ended."""


class Written:
    """The tokens that were chosen, collected from the lane's ring before it comes round again."""

    def __init__(self, lane: Lane, slot: int) -> None:
        self._lane, self._parts = lane, list[torch.Tensor]()
        self._start = self._end = slot % RING

    def add(self, slot: int) -> None:
        """The token to be fed at this slot has been chosen."""
        self._end = slot % RING + 1
        if self._end == RING:
            self._parts.append(self._lane.ring[:, self._start :].clone())
            self._start = self._end = 0

    def tokens(self) -> torch.Tensor:
        """(batch, tokens added)."""
        return torch.cat((*self._parts, self._lane.ring[:, self._start : self._end]), dim=1)


class Look:
    """Asks now and then whether all rows have ended; one look behind, so that the GPU is never waited for."""

    def __init__(self, lane: Lane, every: int) -> None:
        self._lane, self._every = lane, every
        self._event: torch.cuda.Event | None = None
        self._flag = torch.zeros((), dtype=torch.bool, pin_memory=every > 1)

    def sees_the_end(self, count: int) -> bool:
        """Whether all rows have ended, as far as is known when `count` tokens were chosen."""
        if self._every == 1:
            return bool(self._lane.finished.all())
        if count % self._every:
            return False
        if self._event is None:
            self._event = torch.cuda.Event()
        else:
            self._event.synchronize()
            if self._flag:
                return True
        self._flag.copy_(self._lane.finished.all(), non_blocking=True)
        self._event.record()
        return False


def cut_at_ends(new: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Tokens (batch, n) up to the one with which the last row ended."""
    ended = (new[..., None] == ends).any(-1).cumsum(1).bool().all(0)
    return new[:, : new.shape[1] - int(ended.sum()) + 1] if ended.any() else new
