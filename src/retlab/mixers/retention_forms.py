"""The forms of retention (Sun et al. 2023, arXiv:2307.08621): attention whose softmax is a decay per head.

out_n = q_n S_n with S_n = gamma S_(n-1) + k_n^T v_n (eq. 6): a linear recurrence over a fixed-size state, which is
also a masked product over all pairs (eq. 5) and, in between, a product within chunks joined by one state per chunk
(eq. 7). The three forms compute the same function here, in outputs, final state and gradients.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .retention_loop import ChunkLoop, ChunkTable, suits_loop

FORMS = ("parallel", "chunkwise", "recurrent")

# An exponent that stands for "no path between these two tokens": it picks the zero at the end of the power table.
BLOCKED = -1


class RetentionState(NamedTuple):
    """What retention remembers: `memory` (batch, heads, key width, value width) in float32, S_n of eq. 6."""

    memory: torch.Tensor


class _Inputs(NamedTuple):
    """What every form computes retention of; see `retention`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    log_decay: torch.Tensor
    state: RetentionState | None
    segment_ids: torch.Tensor | None


# The longest chunk whose decays are folded into queries and keys: gamma_0^512 is 9e-8, which float32 and bfloat16,
# but not float16, can divide by again.
LONGEST_FOLDED = 512

# The longest chunk in the loop for a CPU, for keys of up to 128 channels and for wider ones: shorter chunks compute
# fewer scores, longer ones fewer memories, which grow with the width.
LOOPED_CHUNK, LOOPED_CHUNK_WIDE = 64, 128


class _Paths(NamedTuple):
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


def retnet_log_decay(num_heads: int, device: torch.device) -> torch.Tensor:
    """log(gamma_h), gamma_h = 1 - 2^(-5 - h) for head h = 0, 1, ... (eq. 8), as (heads,) float64."""
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(num_heads, dtype=torch.float64, device=device)))


def retention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    state: RetentionState | None = None,
    segment_ids: torch.Tensor | None = None,
    form: str = "chunkwise",
    chunk_size: int = 128,
) -> tuple[torch.Tensor, RetentionState]:
    """The retention of (positioned and scaled) queries, keys and values, and the state after the last token.

    q and k (batch, heads, tokens, key width), v (batch, heads, tokens, value width); products are computed in the
    dtype of v, and wider q and k are rounded to it once, decayed. `log_decay` (heads,) float64; `segment_ids`
    (batch, tokens) int64 as in `base`. Returns (batch, heads, tokens, value width) in the dtype of v. Memory is
    linear in tokens for "chunkwise" and "recurrent", quadratic for "parallel". The state's memory is kept in float32
    in every dtype, and autocast is left out: a sum over thousands of tokens does not fit bfloat16.
    """
    inputs = _Inputs(q, k, v, log_decay, state, segment_ids)
    with torch.autocast(device_type=q.device.type, enabled=False):
        if form == "recurrent":
            return _recurrent(inputs)
        tokens = q.shape[-2]
        if form == "chunkwise" and suits_loop(q, k, v):
            memory = None if state is None else state.memory
            longest = LOOPED_CHUNK if q.shape[-1] <= 128 else LOOPED_CHUNK_WIDE
            out, last = ChunkLoop.apply(q, k, v, memory, _chunk_tables(inputs, min(chunk_size, longest)))
            return out, RetentionState(last)
        return _chunked(inputs, chunk=tokens if form == "parallel" else min(chunk_size, tokens))


def _chunked(inputs: _Inputs, chunk: int) -> tuple[torch.Tensor, RetentionState]:
    """Eq. 7 for all chunks at once; with one chunk over all tokens this is the parallel form, eq. 5."""
    q, k, v, log_decay, state, segment_ids = inputs
    tokens = q.shape[-2]
    paths = _plain_paths(tokens, chunk, q.device) if segment_ids is None else _segment_paths(segment_ids, chunk)
    powers = _power_table(log_decay, chunk)
    q, k, v = (_split_chunks(x, chunk) for x in (q, k, v))  # (B, H, N, C, width)

    # Queries with the decay since their chunk began, keys with that until its end: what the memory is read and
    # written with. Their products have decayed by the whole chunk too much, and are the scores once that is undone.
    late_q = (q * _decays(powers, paths.since, torch.float32).unsqueeze(-1)).to(v.dtype)
    early_k = (k * _decays(powers, paths.until, torch.float32).unsqueeze(-1)).to(v.dtype)
    if chunk > LONGEST_FOLDED or v.dtype == torch.float16:
        scores = (q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2)) * _decays(powers, paths.pair, v.dtype)
    else:
        undone = 1 / _decays(powers, paths.span, torch.float32)  # (b, H, N)
        weights = torch.where(paths.pair[:, None] >= 0, undone[..., None, None], 0.0).to(v.dtype)
        scores = (late_q @ early_k.transpose(-1, -2)) * weights
    out = scores @ v
    late_q, early_k = _only(late_q, paths.reads), _only(early_k, paths.writes)

    added, last = _memories(early_k, v, log_decay, paths, state)
    if state is not None or k.shape[2] > 1:
        # What is left of that, and of the memory that came in, before each chunk; in the dtype in which it is read: in
        # training this is the largest tensor.
        join = _far_decays(log_decay, paths.join)[..., :-1, :]  # (b, H, N, N + 1)
        if state is None:
            join, terms = join[..., 1:], added
        else:
            join = join[..., :-1]
            terms = torch.cat((state.memory.flatten(-2).unsqueeze(2).to(v.dtype), added[:, :, :-1]), dim=2)
        before = (join.to(v.dtype) @ terms).unflatten(-1, (k.shape[-1], -1))
        out = out + late_q @ before
    return out.flatten(2, 3)[:, :, :tokens], RetentionState(last.unflatten(-1, (k.shape[-1], -1)))


def _memories(
    early_k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, paths: _Paths, state: RetentionState | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What every chunk adds to the memory at its end (B, H, N, dk dv), and the memory after all (B, H, dk dv)."""
    added = (early_k.transpose(-1, -2) @ v).flatten(-2)
    # How much is left at the end of all.
    to_end = _far_decays(log_decay, paths.join.diagonal(-1, 1, 2)).flip(-1).cumprod(-1).flip(-1)  # (b, H, N)
    last = (F.pad(to_end[..., 1:], (0, 1), value=1.0).to(torch.float32).unsqueeze(-1) * added).sum(2)
    if state is not None:
        last = last + to_end[..., :1].to(torch.float32) * state.memory.flatten(-2)
    return added, last.to(torch.float32)


def retention_memory(
    k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, state: RetentionState, chunk_size: int
) -> torch.Tensor:
    """The memory after the last token alone, of the keys and values that `retention` takes, all real and of the open
    document: a third of the work. Returns (batch, heads, key width, value width) float32.
    """
    tokens, key_width = k.shape[-2:]
    chunk = min(chunk_size, tokens)
    with torch.autocast(device_type=k.device.type, enabled=False):
        paths = _plain_paths(tokens, chunk, k.device)
        k, v = (_split_chunks(x, chunk) for x in (k, v))
        powers = _power_table(log_decay, chunk)
        early_k = (k * _decays(powers, paths.until, torch.float32).unsqueeze(-1)).to(v.dtype)
        return _memories(early_k, v, log_decay, paths, state)[1].unflatten(-1, (key_width, -1))


def _chunk_tables(inputs: _Inputs, chunk: int) -> list[ChunkTable]:
    """The decays inside each chunk."""
    log_decay, tokens, device = inputs.log_decay, inputs.q.shape[-2], inputs.q.device
    powers = _power_table(log_decay, chunk)

    def table(paths: _Paths, n: int, length: int) -> ChunkTable:
        since, until = (
            _decays(powers, x, torch.float32)
            for x in (paths.since[:, min(n, paths.since.shape[1] - 1)], paths.until[:, n])
        )
        undone = (paths.span[:, n, None] * -log_decay).exp()[..., None, None]
        pair = paths.pair[:, None, min(n, paths.pair.shape[1] - 1), :length, :length]
        return ChunkTable(
            since[..., :length, None],
            until[..., :length, None],
            torch.where(pair >= 0, undone, 0.0).to(torch.float32),
            _decays(powers, paths.join[:, n + 1, n], torch.float32)[..., None, None],
            None if paths.reads is None else paths.reads[:, None, n, :length, None].to(torch.float32),
            None if paths.writes is None else paths.writes[:, None, n, :length, None].to(torch.float32),
        )

    whole, rest = divmod(tokens, chunk)
    lengths = [chunk] * whole + [rest] * (rest > 0)
    if inputs.segment_ids is not None:
        paths = _segment_paths(inputs.segment_ids, chunk)
        return [table(paths, n, length) for n, length in enumerate(lengths)]
    # All chunks of one length share their decays.
    shared = {length: table(_plain_paths(length, length, device), 0, length) for length in set(lengths)}
    return [shared[length] for length in lengths]


def _recurrent(inputs: _Inputs) -> tuple[torch.Tensor, RetentionState]:
    """Eq. 6, one token after the other."""
    q, k, v, log_decay, state, segment_ids = inputs
    batch, heads, tokens, key_width = q.shape
    dtype = v.dtype
    q, k, v = (x.to(torch.float32) for x in (q, k, v))
    memory = q.new_zeros(batch, heads, key_width, v.shape[-1]) if state is None else state.memory
    gamma = log_decay.exp().to(torch.float32)[:, None, None]
    keep: torch.Tensor | None = None
    if segment_ids is not None:
        real = (segment_ids >= 0)[:, None, :, None].to(torch.float32)
        q, k = q * real, k * real
        # Padding keeps the memory as it is, a new document drops it, any other token lets it decay.
        continues = (segment_ids == _current_document(segment_ids)[:, :-1])[:, None, :, None]
        keep = torch.where(real > 0, torch.where(continues, gamma.squeeze(-1)[:, None], 0.0), 1.0).unsqueeze(-1)
    outputs = []
    for t in range(tokens):
        decayed = memory * (gamma if keep is None else keep[:, :, t])
        memory = decayed + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(q[:, :, t, None, :] @ memory)
    return torch.cat(outputs, dim=2).to(dtype), RetentionState(memory)


def retention_step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, scale: float, memory: torch.Tensor
) -> torch.Tensor:
    """Eq. 6 for one token, over the memory (batch, heads, key width, value width) float32, which it overwrites.

    q, k (batch, heads, key width) and v (batch, heads, value width) float32, k times `scale`; `decay` (heads, 1, 1)
    float32 holds gamma. Returns (batch, heads, 1, value width) float32.
    """
    memory.mul_(decay).addcmul_(k[..., None], v[..., None, :], value=scale)
    return q[..., None, :] @ memory


def torchscale_parallel_retention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, segment_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """The parallel form with the normaliser of TorchScale 0.3.0 (`MultiScaleRetention.parallel_forward`).

    The decays of a query are divided by the root of their sum, and its scores by the size of their own sum where
    that exceeds one. The second has no recurrent counterpart, so this form alone reproduces TorchScale's outputs at
    a norm epsilon that is not negligible. Shapes as for `retention`.
    """
    with torch.autocast(device_type=q.device.type, enabled=False):
        tokens = q.shape[-2]
        paths = _plain_paths(tokens, tokens, q.device) if segment_ids is None else _segment_paths(segment_ids, tokens)
        decays = _decays(_power_table(log_decay, tokens), paths.pair, torch.float32).squeeze(2)
        # Padding reads nothing, so its row sums to zero.
        decays = decays / decays.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        scores = (q @ k.transpose(-1, -2)) * decays.to(q.dtype)
        scores = scores / scores.detach().sum(dim=-1, keepdim=True).abs().clamp(min=1)
        return scores @ v


def _split_chunks(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """(B, H, T, width) to (B, H, N, C, width); zeros fill the last chunk and, as keys, write nothing."""
    missing = -x.shape[-2] % chunk
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.unflatten(-2, (-1, chunk))


def _power_table(log_decay: torch.Tensor, longest: int) -> torch.Tensor:
    """gamma^0, ..., gamma^longest, and a last zero for BLOCKED (heads, longest + 2), from float64.

    Multiplied up: compiled, powers by `exp` would not be kept, but computed again, in float64, for every channel.
    """
    gammas = log_decay.exp()[:, None].expand(-1, longest)
    return F.pad(F.pad(gammas, (1, 0), value=1.0).cumprod(dim=1), (0, 1)).to(torch.float32)


def _decays(powers: torch.Tensor, exponents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """gamma_h^exponent, zero where BLOCKED: (b, ...) int64 to (b, H, ...)."""
    return powers.to(dtype)[:, exponents].movedim(0, 1)


def _far_decays(log_decay: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """The same for a few exponents of any size, (b, ...) int64 to (b, H, ...) float64."""
    exponents = exponents[:, None]
    rates = log_decay.view(-1, *[1] * (exponents.ndim - 2))
    return torch.where(exponents >= 0, (exponents * rates).exp(), 0.0)


def _plain_paths(tokens: int, chunk: int, device: torch.device) -> _Paths:
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
    return _Paths(pair[None, None], since, until[None], span, join[None], reads=None, writes=None)


def _current_document(segment_ids: torch.Tensor) -> torch.Tensor:
    """The document that is open before each token and after the last: (B, T) to (B, T + 1)."""
    return F.pad(segment_ids, (1, 0)).clamp(min=0).cummax(dim=1).values


def _segment_paths(segment_ids: torch.Tensor, chunk: int) -> _Paths:
    """Exponents with padding and document boundaries: real tokens are counted per row, documents do not meet."""
    segment_ids = F.pad(segment_ids, (0, -segment_ids.shape[1] % chunk), value=-1)
    count = F.pad((segment_ids >= 0).cumsum(dim=1), (1, 0))  # (B, T + 1) real tokens before each token
    document = _current_document(segment_ids)[:, ::chunk]  # (B, N + 1) at the chunks' boundaries
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
    return _Paths(pair, since, until, boundary.diff(dim=1), join, reads, writes)


def _only(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """x (B, H, N, C, width) with zeros but at `places` (b, N, C), None for all."""
    return x if places is None else x * places[:, None, :, :, None]


def _allow(exponents: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    return torch.where(allowed, exponents, BLOCKED)
