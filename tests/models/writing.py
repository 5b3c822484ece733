"""What transformers' loop writes, and whether ours writes the same."""

import pytest
import torch

from retlab.models import causal_lm

ARCHITECTURES = ("retnet", "transformer", "hybrid")
"""Those whose generations our loop takes."""


def transformers_writes(model, *inputs, **settings):
    """What transformers' loop writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_lm, "can_decode", lambda *_: False)
        torch.manual_seed(7)
        return model.generate(*inputs, **settings)


def check(model, *inputs, **settings):
    """Both loops write the same, and take the same random numbers; returns what they write."""
    expected = transformers_writes(model, *inputs, **settings)
    following = torch.rand(3)
    torch.manual_seed(7)
    written = model.generate(*inputs, **settings)
    assert torch.equal(written, expected)
    assert torch.equal(torch.rand(3), following)
    return written


def an_end(model, ids, place: int, **settings) -> int:
    """A token that the first row writes at `place` and not before."""
    row = transformers_writes(model, ids, do_sample=False, max_new_tokens=place + 20, **settings)[0, ids.shape[1] :]
    return next(int(token) for at, token in enumerate(row) if at >= place and token not in row[:at])
