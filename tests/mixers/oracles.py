"""Slow, obvious versions of what the mixers compute, in float64, and cases with padding and documents."""

from typing import Any

import torch

from retlab.mixers import Mixer
from retlab.mixers.rotary import Rotation, rotation


def turned(mixer: Mixer, positions: torch.Tensor) -> Rotation | None:
    """What positions do to a mixer, as the body tells it."""
    return None if mixer.frequencies is None else rotation(positions, mixer.frequencies)


def run(mixer: Mixer, hidden: torch.Tensor, positions: torch.Tensor, *rest: Any) -> Any:
    """The mixer's output and state, given positions."""
    return mixer(hidden, turned(mixer, positions), *rest)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    expected = expected.double()
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


def path_lengths(segment_ids: torch.Tensor) -> torch.Tensor:
    """Real tokens from key m to query n (batch, tokens, tokens), -1 where no path leads, by direct counting."""
    real = segment_ids >= 0
    count = real.long().cumsum(1)
    lengths = count[:, :, None] - count[:, None, :]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    allowed = same & real[:, None, :] & torch.ones_like(same[0]).tril()
    return torch.where(allowed, lengths, -1)


def direct_retention(q, k, v, gamma, memory, segment_ids):
    """Eq. 5 with the past's memory, as one sum over all pairs; everything (batch, heads, tokens, ...) float64."""
    real = (segment_ids >= 0)[:, None]
    lengths = path_lengths(segment_ids)[:, None]
    decay = torch.where(lengths >= 0, gamma[:, None, None] ** lengths.clamp(min=0), 0.0)
    out = ((q @ k.transpose(-1, -2)) * decay) @ v
    count = real.long().cumsum(-1)
    # The past is read by the real tokens of document 0.
    from_past = torch.where(real & (segment_ids == 0)[:, None], gamma[:, None] ** count, 0.0)
    out = out + from_past[..., None] * (q @ memory)
    last = segment_ids.amax(1).clamp(min=0)[:, None]
    total = count[..., -1:]
    to_end = torch.where(real & (segment_ids == last)[:, None], gamma[:, None] ** (total - count), 0.0)
    kept = torch.where(last == 0, gamma ** total[:, :, 0], 0.0)
    return out, kept[..., None, None] * memory + (k * to_end[..., None]).transpose(-1, -2) @ v


def layouts(tokens: int) -> dict[str, torch.Tensor | None]:
    """Two rows of segment ids for every situation that a mixer must get right."""
    place = torch.arange(tokens)
    plain = torch.zeros(2, tokens, dtype=torch.long)
    left, right, documents = plain.clone(), plain.clone(), plain.clone()
    left[0, : tokens // 3] = -1
    right[1, tokens - tokens // 4 :] = -1
    documents[0] = (place >= tokens // 2).long() + (place >= tokens // 2 + 2).long()
    documents[1] = 1 + place // 37
    mixed = documents.clone()
    mixed[0, : min(3, tokens - 1)] = -1
    mixed[1, 5::11] = -1
    return {"none": None, "plain": plain, "left": left, "right": right, "documents": documents, "mixed": mixed}


class Calls:
    """A kernel that counts its calls."""

    def __init__(self, function):
        self.function, self.count = function, 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.function(*args, **kwargs)
