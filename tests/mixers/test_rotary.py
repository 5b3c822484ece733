"""Rotations against complex multiplication in float64, at positions where float32 angles fail."""

import pytest
import torch

from retlab.mixers.rotary import RetNetFrequencies, RopeFrequencies, rotate_halves, rotate_pairs, rotation

CPU = torch.device("cpu")


@pytest.mark.parametrize("frequencies", [RetNetFrequencies(8), RopeFrequencies(8, 10_000.0)])
@pytest.mark.parametrize("start", [0, 1_000_000])
def test_cosine_and_sine_are_exact_at_any_position(frequencies, start):
    positions = torch.arange(start, start + 500)[None]
    cos, sin = rotation(positions, frequencies)
    angles = positions[..., None, None].double() * frequencies.values(CPU)
    assert cos.dtype == sin.dtype == torch.float32
    assert (cos - angles.cos()).abs().max() < 5e-7
    assert (sin - angles.sin()).abs().max() < 5e-7


def test_frequencies_are_those_of_the_papers():
    """RetNet's include both ends of the range, RoPE's stop before the second."""
    assert torch.allclose(RetNetFrequencies(6).values(CPU), torch.tensor([1, 1e-2, 1e-4], dtype=torch.float64))
    expected = torch.tensor([1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], dtype=torch.float64)
    assert torch.allclose(RopeFrequencies(6, 10_000.0).values(CPU), expected)


def test_the_two_layouts_turn_the_same_pairs():
    x = torch.randn(1, 5, 2, 6)
    turn = rotation(torch.arange(5)[None], RetNetFrequencies(6))
    pairs = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous()) * torch.complex(*turn)
    assert torch.allclose(rotate_pairs(x, turn), torch.view_as_real(pairs).flatten(-2), atol=1e-6)
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    assert torch.allclose(rotate_halves(halves, turn), torch.cat((pairs.real, pairs.imag), -1), atol=1e-6)


def test_pairs_turn_alike_in_a_graph(monkeypatch):
    """Compiled they are turned in real numbers; the gradient is the turn back in both."""
    turn, x = rotation(torch.arange(5)[None], RetNetFrequencies(6)), torch.randn(1, 5, 2, 6, requires_grad=True)
    weights = torch.randn(1, 5, 2, 6)
    eager = rotate_pairs(x, turn)
    (eager_gradient,) = torch.autograd.grad(eager, x, weights)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    real = rotate_pairs(x, turn)
    assert torch.allclose(eager, real, atol=1e-6)
    assert torch.allclose(eager_gradient, torch.autograd.grad(real, x, weights)[0], atol=1e-6)


def test_pairs_come_back_in_float32_at_least():
    turn = rotation(torch.arange(5)[None], RetNetFrequencies(6))
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert rotate_pairs(torch.ones(1, 5, 2, 6, dtype=dtype), turn).dtype == expected
