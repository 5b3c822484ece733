"""Several linear maps of one input as one product, against each by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retlab.mixers.projections import joined_projections

WIDTHS = (6, 2, 4)


def _gradients(function, hidden: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    # The same gradient of every output, the second of which goes unused.
    outputs = function(hidden, *weights)
    loss = outputs[0].sin().sum() + outputs[2].square().transpose(0, 1).sum()
    return [*outputs, *torch.autograd.grad(loss, [hidden, *weights], materialize_grads=True)]


@pytest.mark.parametrize("compiled", [False, True])
def test_joined_projections_are_the_projections(compiled: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    weights = [nn.Parameter(torch.randn(width, 3, dtype=torch.float64)) for width in WIDTHS]
    joined = torch.compile(joined_projections, backend="aot_eager", fullgraph=True) if compiled else joined_projections
    expected = _gradients(lambda x, *w: [F.linear(x, each) for each in w], hidden, weights)
    for found, wanted in zip(_gradients(joined, hidden, weights), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12)
