"""Dilated attention against lists of keys in float64, and against ordinary attention."""

import pytest
import torch
from tests.mixers.oracles import layouts

from retlab.mixers.dilated_attention import Branch, dilated_attention

HEADS, WIDTH = 5, 4
BRANCHES = {
    "geometric": [(4, 1), (8, 2), (24, 4)],
    "one": [(16, 1)],
    "ratios that do not divide": [(5, 1), (9, 4), (23, 6)],
    "more than heads": [(5, 1), (20, 8)],
    "silent heads": [(4, 2), (9, 3)],
    "one token kept": [(3, 3), (4, 4)],
}


def _listed(q, k, v, branches, segment_ids):
    """Eq. 9 and 10 for every token, head and branch on its own: (rows, heads, tokens, width)."""
    rows = []
    for row, documents in enumerate(segment_ids.tolist()):
        members = [[m for m in range(n) if documents[m] == documents[n]] for n in range(len(documents))]
        place = [len(earlier) for earlier in members]
        outputs = []
        for head in range(q.shape[1]):
            for n, document in enumerate(documents):
                parts, denominators = [torch.zeros_like(v[row, head, n])], [0.0]
                for segment, ratio in branches if document >= 0 else []:
                    kept = [
                        m
                        for m in [*members[n], n]
                        if place[m] // segment == place[n] // segment and place[m] % segment % ratio == head % ratio
                    ]
                    if n in kept:
                        scores = (k[row, head, kept] @ q[row, head, n]) / q.shape[-1] ** 0.5
                        parts.append(scores.softmax(0) @ v[row, head, kept])
                        denominators.append(scores.exp().sum())
                total = sum(denominators)
                weights = [s / total if s != 0 else 0.0 for s in denominators]
                outputs.append(sum(weight * part for weight, part in zip(weights, parts, strict=True)))
        rows.append(torch.stack(outputs).unflatten(0, (q.shape[1], -1)))
    return torch.stack(rows)


def _inputs(tokens: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(2, HEADS, tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(3)
    ]


def _as_branches(name: str) -> list[Branch]:
    return [Branch(*pair) for pair in BRANCHES[name]]


def _with_gradients(function, inputs, real):
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    out = function(*inputs) * real
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize(
    ("branches", "tokens", "layout"),
    [
        *((branches, 29, layout) for branches in ("geometric", "ratios that do not divide") for layout in layouts(8)),
        *((branches, tokens, "mixed") for branches in BRANCHES for tokens in (1, 13, 47)),
        *((branches, 50, "none") for branches in BRANCHES),
    ],
)
def test_equals_the_listed_keys(branches, tokens, layout):
    """Outputs at real tokens and all gradients, the weights' share included, in float64."""
    segment_ids = layouts(tokens)[layout]
    plain = torch.zeros(2, tokens, dtype=torch.long) if segment_ids is None else segment_ids
    real = (plain >= 0)[:, None, :, None]
    expected = _with_gradients(lambda *x: _listed(*x, BRANCHES[branches], plain), _inputs(tokens), real)
    actual = _with_gradients(
        lambda *x: dilated_attention(*x, _as_branches(branches), segment_ids)[0], _inputs(tokens), real
    )
    for mine, wanted in zip(actual, expected, strict=True):
        assert (mine - wanted).abs().max() < 1e-12
