"""Which places of a chunked sequence retention leads between, and what is left of a value on the way."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

# An exponent that stands for "no path between these two tokens": it picks the zero at the end of the power table.
BLOCKED = -1


class Paths(NamedTuple):
    """Decay exponents, counted in real tokens, between the places of a chunked sequence; BLOCKED where none leads.

    The first dimension is the batch, or 1. N chunks of C tokens; state j is the memory before chunk j.
    """

    # Key m to query n of one chunk (b, N or 1, C, C).
    pair: torch.Tensor
    # The beginning of its chunk to query n, key m to the end of its chunk (b, N or 1, C); both together (b, N).
    since: torch.Tensor
    until: torch.Tensor
    span: torch.Tensor
    # State i, or the keys of chunk i - 1, to state j (b, N + 1, N + 1).
    join: torch.Tensor
    # Which queries read the memory before their chunk, and which keys write to that after it (b, N, C); None is all.
    reads: torch.Tensor | None
    writes: torch.Tensor | None


def power_table(log_decay: torch.Tensor, longest: int) -> torch.Tensor:
    """gamma^0, ..., gamma^longest, and a last zero for BLOCKED (heads, longest + 2), from float64.

    Multiplied up: compiled, powers by `exp` would not be kept, but computed again, in float64, for every channel.
    """
    gammas = log_decay.exp()[:, None].expand(-1, longest)
    return F.pad(F.pad(gammas, (1, 0), value=1.0).cumprod(dim=1), (0, 1)).to(torch.float32)


def near_decays(powers: torch.Tensor, exponents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """gamma_h^exponent, zero where BLOCKED: (b, ...) int64 to (b, H, ...)."""
    return powers.to(dtype)[:, exponents].movedim(0, 1)


def far_decays(log_decay: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """The same for a few exponents of any size, (b, ...) int64 to (b, H, ...) float64."""
    exponents = exponents[:, None]
    rates = log_decay.view(-1, *[1] * (exponents.ndim - 2))
    return torch.where(exponents >= 0, (exponents * rates).exp(), 0.0)


def plain_paths(tokens: int, chunk: int, device: torch.device) -> Paths:
    """Exponents where every token is real and of one document; the same for all rows and, but for the end, chunks."""
    place = torch.arange(chunk, device=device)
    pair = place[:, None] - place[None, :]
    starts = torch.arange(-(-tokens // chunk) + 1, device=device) * chunk  # (N + 1,)
    boundaries = starts.clamp(max=tokens)
    until = boundaries[1:, None] - 1 - (starts[:-1, None] + place)
    join = boundaries[:, None] - boundaries[None, :]
    # A negative exponent runs backwards in time, and is BLOCKED.
    pair, until, join = (x.clamp(min=BLOCKED) for x in (pair, until, join))
    since, span = (place + 1)[None, None], boundaries.diff()[None]
    return Paths(pair[None, None], since, until[None], span, join[None], reads=None, writes=None)


def current_document(segment_ids: torch.Tensor) -> torch.Tensor:
    """The document that is open before each token and after the last: (B, T) to (B, T + 1)."""
    return F.pad(segment_ids, (1, 0)).clamp(min=0).cummax(dim=1).values


def segment_paths(segment_ids: torch.Tensor, chunk: int) -> Paths:
    """Exponents with padding and document boundaries: real tokens are counted per row, documents do not meet."""
    segment_ids = F.pad(segment_ids, (0, -segment_ids.shape[1] % chunk), value=-1)
    count = F.pad((segment_ids >= 0).cumsum(dim=1), (1, 0))  # (B, T + 1) real tokens before each token
    document = current_document(segment_ids)[:, ::chunk]  # (B, N + 1) at the chunks' boundaries
    boundary = count[:, ::chunk]
    segment = segment_ids.unflatten(1, (-1, chunk))  # (B, N, C)
    through = count[:, 1:].unflatten(1, (-1, chunk))
    real = segment >= 0

    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=segment_ids.device).tril()
    pair = _allow(
        through[..., :, None] - through[..., None, :],
        causal & real[..., None, :] & (segment[..., :, None] == segment[..., None, :]),
    )
    since = _allow(through - boundary[:, :-1, None], real)
    until = _allow(boundary[:, 1:, None] - through, real)
    reads, writes = segment == document[:, :-1, None], segment == document[:, 1:, None]
    earlier = torch.ones(document.shape[1], document.shape[1], dtype=torch.bool, device=segment_ids.device).tril()
    join = _allow(boundary[:, :, None] - boundary[:, None, :], earlier & (document[:, :, None] == document[:, None, :]))
    return Paths(pair, since, until, boundary.diff(dim=1), join, reads, writes)


def _allow(exponents: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    return torch.where(allowed, exponents, BLOCKED)
