"""Attention against a plain softmax in float64."""

import pytest
import torch
from tests.mixers.oracles import layouts, path_lengths, relative_error, run

from retlab.mixers.attention import Attention

WIDTH, HEADS = 12, 2


def _plain_attention(mixer: Attention, hidden: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """Softmax attention with textbook RoPE on every pair, by complex numbers, in float64."""
    batch, tokens, _ = hidden.shape
    head = WIDTH // HEADS
    hidden = hidden.double()
    q, k, v = (
        (hidden @ projection.weight.double().T).view(batch, tokens, HEADS, head).transpose(1, 2)
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    angles = torch.arange(tokens).double()[:, None] * 10_000.0 ** (-torch.arange(0, head, 2).double() / head)
    turn = torch.polar(torch.ones_like(angles), angles)

    def rope(x):
        pairs = torch.complex(x[..., : head // 2].contiguous(), x[..., head // 2 :].contiguous()) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    scores = rope(q) @ rope(k).transpose(-1, -2) / head**0.5
    allowed = path_lengths(segment_ids)[:, None] >= 0
    # Padding attends to itself, so that its softmax exists; its output means nothing.
    allowed = allowed | torch.eye(tokens, dtype=torch.bool)
    out = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
    return out.transpose(1, 2).reshape(batch, tokens, WIDTH) @ mixer.out_proj.weight.double().T


@pytest.mark.parametrize("layout", layouts(8))
@pytest.mark.parametrize("tokens", [1, 2, 65, 300])
def test_equals_plain_softmax(tokens, layout):
    """Outputs at real tokens, and the gradient of the input, to 1e-5."""
    torch.manual_seed(0)
    mixer = Attention(WIDTH, num_heads=HEADS)
    segment_ids = layouts(tokens)[layout]
    plain = torch.zeros(2, tokens, dtype=torch.long) if segment_ids is None else segment_ids
    hidden = torch.randn(2, tokens, WIDTH, requires_grad=True)
    weight = torch.randn(2, tokens, WIDTH) * (plain >= 0)[..., None]

    out, _ = run(mixer, hidden, torch.arange(tokens)[None], segment_ids)
    (actual,) = torch.autograd.grad((out * weight).sum(), hidden)
    expected_out = _plain_attention(mixer, hidden, plain)
    (expected,) = torch.autograd.grad((expected_out * weight).sum(), hidden)
    assert relative_error(out * (plain >= 0)[..., None], expected_out * (plain >= 0)[..., None]) < 1e-5
    assert relative_error(actual, expected) < 1e-5


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    mixer = Attention(WIDTH, num_heads=HEADS, dropout=0.5)
    hidden, positions = torch.randn(2, 20, WIDTH), torch.arange(20)[None]
    assert not torch.equal(run(mixer, hidden, positions)[0], run(mixer, hidden, positions)[0])
    mixer.eval()
    assert torch.equal(run(mixer, hidden, positions)[0], run(mixer, hidden, positions)[0])


def test_a_cropped_state_is_the_state_of_the_shorter_piece():
    mixer = Attention(WIDTH, num_heads=HEADS).eval()
    hidden, positions = torch.randn(2, 9, WIDTH), torch.arange(9)[None]
    _, state = run(mixer, hidden, positions)
    _, shorter = run(mixer, hidden[:, :6], positions[:, :6])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(state.cropped(3), shorter, strict=True))


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(12, 5), (12, 4), (12, 0)])
def test_sizes_that_do_not_fit(hidden_size, num_heads):
    with pytest.raises(ValueError, match=r"must divide|even width"):
        Attention(hidden_size, num_heads=num_heads)
