"""Norm and gate in tiles against the definition in float64."""

import pytest
import torch
from tests.mixers.oracles import relative_error

from retlab.mixers import gated_norm as module
from retlab.mixers import retention_loop
from retlab.mixers.gated_norm import gated_norm


@pytest.fixture(autouse=True)
def _loops_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_loop, "LOOPED_FROM", 0)


def _definition(x, gate):
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    return gate * gate.sigmoid() * normed.flatten(-2)


@pytest.mark.parametrize("looped", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 7, 3, 4), (1, 300, 2, 5)])
def test_norm_and_gate_equal_the_definition(shape, looped, monkeypatch):
    """Outputs and gradients, from a view whose heads are not the last but one dimension in memory."""
    monkeypatch.setattr(module, "_TILE", 2**8)
    if not looped:
        monkeypatch.setattr(module, "suits_loop", lambda *_: False)
    batch, tokens, heads, width = shape
    x = torch.randn(batch, heads, tokens, width, dtype=torch.float64)
    gate, weights = (torch.randn(batch, tokens, heads * width, dtype=torch.float64) for _ in range(2))
    found = []
    for dtype, function in ((torch.float64, _definition), (torch.float32, lambda x, gate: gated_norm(x, gate, 1e-3))):
        leaves = [one.to(dtype).requires_grad_() for one in (x, gate)]
        out = function(leaves[0].transpose(1, 2), leaves[1])
        found.append([out, *torch.autograd.grad(out, leaves, weights.to(dtype))])
    for expected, actual in zip(*found, strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_other_dtypes_keep_theirs():
    for dtype in (torch.bfloat16, torch.float64):
        assert gated_norm(torch.randn(1, 3, 2, 4).to(dtype), torch.randn(1, 3, 8).to(dtype), 1e-6).dtype == dtype
