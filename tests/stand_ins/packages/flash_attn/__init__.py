"""A stand-in for flash-attn 2.8 in plain PyTorch, for tests without a GPU: the documented signature and layout."""

import torch

__version__ = "2.8.3"


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """q (batch, queries, heads, width), k and v (batch, keys, heads, width); the last query reads the last key."""
    # What is not implemented here is not asked for.
    assert (window_size, softcap, alibi_slopes) == ((-1, -1), 0.0, None)
    assert not deterministic
    assert not return_attn_probs
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if causal:
        allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(~allowed.tril(k.shape[1] - q.shape[1]), -torch.inf)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout_p)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)
