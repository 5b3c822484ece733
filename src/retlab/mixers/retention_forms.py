"""The forms of retention (Sun et al. 2023, arXiv:2307.08621): attention whose softmax is a decay per head.

out_n = q_n S_n with S_n = gamma S_(n-1) + k_n^T v_n (eq. 6): a linear recurrence over a fixed-size state, which is
also a masked product over all pairs (eq. 5) and, in between, a product within chunks joined by one state per chunk
(eq. 7). The three forms compute the same function here, in outputs, final state and gradients.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..own_kernels.retention_step import kernel_can_step, kernel_step
from .retention_loop import ChunkLoop, ChunkTable, suits_loop
from .retention_paths import Paths, current_document, far_decays, near_decays, plain_paths, power_table, segment_paths
from .rotary import Rotation, rotate_pairs_of_one_token

FORMS = ("parallel", "chunkwise", "recurrent")


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
    paths = plain_paths(tokens, chunk, q.device) if segment_ids is None else segment_paths(segment_ids, chunk)
    powers = power_table(log_decay, chunk)
    q, k, v = (_split_chunks(x, chunk) for x in (q, k, v))  # (B, H, N, C, width)

    # Queries with the decay since their chunk began, keys with that until its end: what the memory is read and
    # written with. Their products have decayed by the whole chunk too much, and are the scores once that is undone.
    late_q = (q * near_decays(powers, paths.since, torch.float32).unsqueeze(-1)).to(v.dtype)
    early_k = (k * near_decays(powers, paths.until, torch.float32).unsqueeze(-1)).to(v.dtype)
    if chunk > LONGEST_FOLDED or v.dtype == torch.float16:
        scores = (q.to(v.dtype) @ k.to(v.dtype).transpose(-1, -2)) * near_decays(powers, paths.pair, v.dtype)
    else:
        undone = 1 / near_decays(powers, paths.span, torch.float32)  # (b, H, N)
        weights = torch.where(paths.pair[:, None] >= 0, undone[..., None, None], 0.0).to(v.dtype)
        scores = (late_q @ early_k.transpose(-1, -2)) * weights
    out = scores @ v
    late_q, early_k = _only(late_q, paths.reads), _only(early_k, paths.writes)

    added, last = _memories(early_k, v, log_decay, paths, state)
    if state is not None or k.shape[2] > 1:
        # What is left of that, and of the memory that came in, before each chunk; in the dtype in which it is read: in
        # training this is the largest tensor.
        join = far_decays(log_decay, paths.join)[..., :-1, :]  # (b, H, N, N + 1)
        if state is None:
            join, terms = join[..., 1:], added
        else:
            join = join[..., :-1]
            terms = torch.cat((state.memory.flatten(-2).unsqueeze(2).to(v.dtype), added[:, :, :-1]), dim=2)
        before = (join.to(v.dtype) @ terms).unflatten(-1, (k.shape[-1], -1))
        out = out + late_q @ before
    return out.flatten(2, 3)[:, :, :tokens], RetentionState(last.unflatten(-1, (k.shape[-1], -1)))


def _memories(
    early_k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, paths: Paths, state: RetentionState | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What every chunk adds to the memory at its end (B, H, N, dk dv), and the memory after all (B, H, dk dv)."""
    added = (early_k.transpose(-1, -2) @ v).flatten(-2)
    # How much is left at the end of all.
    to_end = far_decays(log_decay, paths.join.diagonal(-1, 1, 2)).flip(-1).cumprod(-1).flip(-1)  # (b, H, N)
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
        paths = plain_paths(tokens, chunk, k.device)
        k, v = (_split_chunks(x, chunk) for x in (k, v))
        powers = power_table(log_decay, chunk)
        early_k = (k * near_decays(powers, paths.until, torch.float32).unsqueeze(-1)).to(v.dtype)
        return _memories(early_k, v, log_decay, paths, state)[1].unflatten(-1, (key_width, -1))


def _chunk_tables(inputs: _Inputs, chunk: int) -> list[ChunkTable]:
    """The decays inside each chunk."""
    log_decay, tokens, device = inputs.log_decay, inputs.q.shape[-2], inputs.q.device
    powers = power_table(log_decay, chunk)

    def table(paths: Paths, n: int, length: int) -> ChunkTable:
        since, until = (
            near_decays(powers, x, torch.float32)
            for x in (paths.since[:, min(n, paths.since.shape[1] - 1)], paths.until[:, n])
        )
        undone = (paths.span[:, n, None] * -log_decay).exp()[..., None, None]
        pair = paths.pair[:, None, min(n, paths.pair.shape[1] - 1), :length, :length]
        return ChunkTable(
            since[..., :length, None],
            until[..., :length, None],
            torch.where(pair >= 0, undone, 0.0).to(torch.float32),
            near_decays(powers, paths.join[:, n + 1, n], torch.float32)[..., None, None],
            None if paths.reads is None else paths.reads[:, None, n, :length, None].to(torch.float32),
            None if paths.writes is None else paths.writes[:, None, n, :length, None].to(torch.float32),
        )

    whole, rest = divmod(tokens, chunk)
    lengths = [chunk] * whole + [rest] * (rest > 0)
    if inputs.segment_ids is not None:
        paths = segment_paths(inputs.segment_ids, chunk)
        return [table(paths, n, length) for n, length in enumerate(lengths)]
    # All chunks of one length share their decays.
    shared = {length: table(plain_paths(length, length, device), 0, length) for length in set(lengths)}
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
        continues = (segment_ids == current_document(segment_ids)[:, :-1])[:, None, :, None]
        keep = torch.where(real > 0, torch.where(continues, gamma.squeeze(-1)[:, None], 0.0), 1.0).unsqueeze(-1)
    outputs = []
    for t in range(tokens):
        decayed = memory * (gamma if keep is None else keep[:, :, t])
        memory = decayed + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(q[:, :, t, None, :] @ memory)
    return torch.cat(outputs, dim=2).to(dtype), RetentionState(memory)


def retention_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: Rotation,
    decay: torch.Tensor,
    scale: float,
    memory: torch.Tensor,
) -> torch.Tensor:
    """Eq. 6 for one token, over the memory (batch, heads, key width, value width) float32, which it overwrites.

    q and k (batch, 1, heads x key width), not turned yet, of which keys take the `scale`, and v (batch, 1, heads x
    value width) may be parts of wider rows; `decay` (heads, 1, 1) float32 holds gamma. Returns (batch, heads, 1,
    value width) float32.
    """
    if kernel_can_step(memory):
        return kernel_step(q, k, v, rotation, decay, scale, memory)
    heads = memory.shape[1]
    both = torch.cat((q, k), dim=-1).unflatten(-1, (2 * heads, -1))
    q, k = rotate_pairs_of_one_token(both, rotation).to(memory.dtype).chunk(2, dim=1)
    v = v.unflatten(-1, (heads, -1))[:, 0].to(memory.dtype)
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
        paths = plain_paths(tokens, tokens, q.device) if segment_ids is None else segment_paths(segment_ids, tokens)
        decays = near_decays(power_table(log_decay, tokens), paths.pair, torch.float32).squeeze(2)
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


def _only(x: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """x (B, H, N, C, width) with zeros but at `places` (b, N, C), None for all."""
    return x if places is None else x * places[:, None, :, :, None]
