"""One call of a model: what its tensors say of padding, documents and positions, beside what the cache has seen."""

import torch

from .body import BodyOutput, relative_segments
from .cache import StateCache


def check_embeddings(embeddings: torch.Tensor, hidden_size: int, cache: StateCache | None) -> None:
    """Refuse what is not (batch, tokens, hidden_size), has no token, or has other rows than the cache."""
    shape = tuple(embeddings.shape)
    if len(shape) != 3 or shape[1] == 0 or shape[2] != hidden_size:
        raise ValueError(
            f"Give input_ids of the shape (batch, tokens) or inputs_embeds (batch, tokens, {hidden_size}), with one "
            f"token or more: these make embeddings of the shape {shape}."
        )
    if cache is not None and cache.batch_size not in (-1, shape[0]):
        raise ValueError(f"The cache holds {cache.batch_size} rows, but the tokens have {shape[0]}.")


def documents_of_call(
    embeddings: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    cache: StateCache | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Documents as mixers number them, None without padding and boundaries; and the document open at the end.

    Raises:
        ValueError: a mask or segment ids of another shape than the tokens.
    """
    mask = _mask_of_call(embeddings, attention_mask, cache)
    previous = cache.documents if cache is not None else None
    if segment_ids is None:
        return (None if mask is None else torch.where(mask, 0, -1)), previous
    if segment_ids.shape != embeddings.shape[:2]:
        raise ValueError(
            f"segment_ids has the shape {tuple(segment_ids.shape)}, but the tokens {tuple(embeddings.shape[:2])}."
        )
    if mask is not None:
        segment_ids = torch.where(mask, segment_ids, -1)
    return relative_segments(segment_ids, previous)


def _mask_of_call(
    embeddings: torch.Tensor, attention_mask: torch.Tensor | None, cache: StateCache | None
) -> torch.Tensor | None:
    """The mask of the tokens of this call (batch, tokens) bool, or None where all of them are real."""
    if attention_mask is None:
        return None
    batch, tokens = embeddings.shape[:2]
    seen = 0 if cache is None else cache.seen
    allowed = {(batch, tokens), (batch, seen + tokens)}
    if tuple(attention_mask.shape) not in allowed:
        shapes = " or ".join(str(shape) for shape in sorted(allowed))
        raise ValueError(f"attention_mask has the shape {tuple(attention_mask.shape)}, but must have {shapes}.")
    piece = attention_mask[:, -tokens:]
    mask = piece != 0
    # Most masks say nothing; without one the mixers take their fast path. A compiled graph cannot look.
    if torch.compiler.is_compiling():
        return mask
    if piece.is_floating_point() and (piece < 0).any():
        raise ValueError("attention_mask must be one at tokens and zero at padding, but it holds negative numbers.")
    return None if mask.all() else mask


def positions_of_call(
    embeddings: torch.Tensor, documents: torch.Tensor | None, cache: StateCache | None
) -> torch.Tensor:
    """Real tokens before each token of its row (batch or 1, tokens)."""
    if documents is None:
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
    else:
        positions = ((documents >= 0).cumsum(dim=1) - 1).clamp(min=0)
    if cache is not None and cache.lengths is not None:
        positions = positions + cache.lengths[:, None]
    return positions


def move_past_call(
    cache: StateCache, out: BodyOutput, documents: torch.Tensor | None, open_document: torch.Tensor | None
) -> None:
    """Move the cache past the tokens of this call."""
    batch, tokens = out.hidden.shape[:2]
    new = torch.full((batch,), tokens, device=out.hidden.device) if documents is None else (documents >= 0).sum(dim=1)
    cache.states = out.states
    cache.lengths = new if cache.lengths is None else cache.lengths + new
    cache.documents = torch.full_like(new, -1) if open_document is None else open_document
    cache.seen += tokens
