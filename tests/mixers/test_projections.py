"""Several linear maps of one input as one product, against each by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retlab.mixers import retention_loop
from retlab.mixers.projections import (
    Projection,
    joined_projections,
    lay_side_by_side,
    project,
    project_few,
    weight_of_all,
)

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


def _layers() -> list[Projection]:
    return [Projection(3, width, gain=1.0) for width in WIDTHS]


def test_on_a_cpu_the_products_add_up_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to each by itself, also where one weight is frozen or the input is."""
    monkeypatch.setattr(retention_loop, "LOOPED_FROM", 0)
    torch.manual_seed(0)
    hidden, layers = torch.randn(2, 5, 3), _layers()
    layers[1].weight.requires_grad_(False)
    for needs in (True, False):
        leaves = [layers[0].weight, layers[2].weight, *([hidden.requires_grad_()] if needs else [])]
        found = project(hidden, *layers)
        assert type(found[0].grad_fn).__name__ == "_SummedBackward"
        gradients = []
        for outputs in (found, tuple(layer(hidden) for layer in layers)):
            loss = sum(out.sin().square().transpose(0, 1).sum() for out in outputs)
            gradients.append(torch.autograd.grad(loss, leaves))
        for actual, expected in zip(*gradients, strict=True):
            assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)
        hidden = hidden.detach()


def test_projections_that_were_replaced_compute_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter around one has a weight too, but that is not all that it adds; nor is it with a hook."""
    monkeypatch.setattr(retention_loop, "LOOPED_FROM", 0)

    class Adapted(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) + 1

    layers = [*_layers()[:2], Adapted(3, 4, bias=False)]
    hidden = torch.randn(2, 5, 3)
    assert torch.equal(project(hidden, *layers)[2], layers[2](hidden))
    hooked = _layers()
    hooked[1].register_forward_hook(lambda *_: torch.zeros(1))
    assert project(hidden, *hooked)[1].tolist() == [0]


def test_weights_side_by_side_are_one() -> None:
    torch.manual_seed(0)
    layers, hidden = _layers(), torch.randn(2, 1, 3)
    weights = [layer.weight for layer in layers]
    numbers, expected = [weight.clone() for weight in weights], [layer(hidden) for layer in layers]
    assert weight_of_all(*layers) is None
    lay_side_by_side(*layers)
    joined = weight_of_all(*layers)
    assert joined is not None
    assert torch.equal(joined, torch.cat(numbers))
    for layer, weight, number in zip(layers, weights, numbers, strict=True):
        assert layer.weight is weight
        assert torch.equal(weight, number)
    for found, wanted in zip(project_few(hidden, joined, *layers), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    # Whoever writes to a weight writes to it, and a second time moves nothing.
    with torch.no_grad():
        weights[1].fill_(7)
    assert joined[6:8].tolist() == [[7] * 3] * 2
    lay_side_by_side(*layers)
    assert weight_of_all(*layers).data_ptr() == joined.data_ptr()
    # In another order they are not one after the other.
    assert weight_of_all(layers[1], layers[0]) is None


def test_weights_that_others_see_stay_where_they_are() -> None:
    biased, shared, double, odd = ([*_layers()[:2], last] for last in (nn.Linear(3, 4), *_layers()[:3]))
    shared[2].weight.share_memory_()
    double[2].double()
    odd[2].weight = nn.Parameter(torch.randn(3, 4).T)
    for layers in (biased, shared, double, odd):
        places = [layer.weight.data_ptr() for layer in layers]
        lay_side_by_side(*layers)
        assert [layer.weight.data_ptr() for layer in layers] == places
        assert weight_of_all(*layers) is None
