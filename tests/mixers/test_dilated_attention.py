"""Dilated attention against lists of keys in float64, and against ordinary attention."""

import pytest
import torch
from tests.mixers.oracles import layouts, path_lengths, relative_error, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from retlab.mixers import whole_segments
from retlab.mixers.attention import Attention
from retlab.mixers.dilated_attention import DilatedAttention, dilated_attention
from retlab.mixers.dilated_slots import Branch

HEADS, WIDTH = 3, 4
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


@pytest.fixture(params=["pairs", "branches"])
def way(request, monkeypatch):
    """All pairs at once, or branch by branch."""
    monkeypatch.setattr("retlab.mixers.dilated_pairs.CHEAP_PAIRS", {"pairs": 10**9, "branches": 0}[request.param])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("branches", "tokens", "layout"),
    [
        *((branches, 25, layout) for branches in ("geometric", "ratios that do not divide") for layout in layouts(8)),
        *((branches, tokens, "mixed") for branches in BRANCHES for tokens in (1, 13, 33)),
        *((branches, 33, "none") for branches in BRANCHES),
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


def _masked(q, k, v, branches, segment_ids):
    """The same as one softmax over all pairs, each as often as branches have it: for longer pieces."""
    reads = path_lengths(segment_ids) >= 0
    place = reads.sum(-1) - 1
    times = torch.zeros(q.shape[0], q.shape[1], *reads.shape[1:])
    for segment, ratio in branches:
        kept = (place % segment % ratio)[:, None] == torch.arange(q.shape[1])[:, None] % ratio
        same = (place // segment)[:, :, None] == (place // segment)[:, None, :]
        times += (reads & same)[:, None] & kept[..., :, None] & kept[..., None, :]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + times.log()
    return scores.softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("layout", ["none", "plain", "mixed"])
@pytest.mark.parametrize("scale", [1, 30])
def test_long_segments_in_blocks(layout, scale):
    """Segments of several blocks, in float32, also where the softmax denominators lie forty powers of ten apart."""
    branches, tokens = [(150, 1), (320, 2), (351, 3)], 450
    segment_ids = layouts(tokens)[layout]
    plain = torch.zeros(2, tokens, dtype=torch.long) if segment_ids is None else segment_ids
    real = (plain >= 0)[:, None, :, None]
    q, k, v = _inputs(tokens)
    expected = _masked(q * scale, k, v, branches, plain) * real
    out, _ = dilated_attention(
        (q * scale).float(), k.float(), v.float(), [Branch(*pair) for pair in branches], segment_ids
    )
    assert relative_error(out * real, expected) < 2e-6 * scale


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("layout", ["none", "documents", "mixed"])
@pytest.mark.parametrize("segment_length", [200, 10_000])
def test_one_segment_over_everything_is_ordinary_attention(layout, segment_length):
    torch.manual_seed(0)
    dilated = DilatedAttention(12, num_heads=2, segment_lengths=(segment_length,), dilation_ratios=(1,))
    ordinary = Attention(12, num_heads=2)
    ordinary.load_state_dict(dilated.state_dict())
    segment_ids, positions = layouts(200)[layout], torch.arange(200)[None]
    real = torch.ones(2, 200, 1) if segment_ids is None else (segment_ids >= 0)[..., None]
    results = []
    for mixer in (dilated, ordinary):
        hidden = torch.randn(2, 200, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = run(mixer, hidden, positions, segment_ids)[0] * real
        out.pow(2).sum().backward()
        results.append([out, hidden.grad, *(parameter.grad for parameter in mixer.parameters())])
    for mine, expected in zip(*results, strict=True):
        assert relative_error(mine, expected) < 1e-5


SHORT_PIECES = [1, 1, 7, 1, 17, 1, 1, 1, 1, 1, 18, 1]
LONG_PIECES = [152, 410, 1, 137]
"""Of several blocks after segments that have ended."""


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("branches", "sizes"),
    [*((branches, SHORT_PIECES) for branches in BRANCHES.values()), ([(150, 1), (400, 2), (421, 3)], LONG_PIECES)],
    ids=[*BRANCHES, "several blocks"],
)
@pytest.mark.parametrize("layout", ["none", "left", "documents", "mixed"])
def test_pieces_of_any_size(branches, sizes, layout):
    """Outputs, the state after every piece, and gradients through the states are those of one call."""
    tokens, branches = sum(sizes), [Branch(*pair) for pair in branches]
    segment_ids = layouts(tokens)[layout]
    real = 1 if segment_ids is None else (segment_ids >= 0)[:, None, :, None]

    def in_pieces(q, k, v):
        outputs, state, start, open_document = [], None, 0, torch.zeros(2, 1, dtype=torch.long)
        for size in sizes:
            piece = slice(start, start + size)
            relative = None
            if segment_ids is not None:
                relative = torch.where(segment_ids[:, piece] < 0, -1, segment_ids[:, piece] - open_document)
                open_document = torch.maximum(open_document, segment_ids[:, piece].amax(1, keepdim=True))
            qkv = (x[:, :, piece] for x in (q, k, v))
            out, state = dilated_attention(*qkv, branches, relative, state)
            outputs.append(out)
            start += size
            until = None if segment_ids is None else segment_ids[:, :start]
            _, expected = dilated_attention(*(x[:, :, :start] for x in (q, k, v)), branches, until)
            assert all(torch.equal(mine, wanted) for mine, wanted in zip(state, expected, strict=True))
        return torch.cat(outputs, dim=2)

    actual = _with_gradients(in_pieces, _inputs(tokens), real)
    expected = _with_gradients(lambda *x: dilated_attention(*x, branches, segment_ids)[0], _inputs(tokens), real)
    for mine, wanted in zip(actual, expected, strict=True):
        assert (mine - wanted).abs().max() < 1e-12


def test_the_state_is_bounded_by_the_segments():
    """It holds what heads keep of a segment per branch, and of that no more than has come."""
    mixer = DilatedAttention(8, num_heads=2, segment_lengths=(4, 30), dilation_ratios=(1, 4)).eval()
    slots = {}
    for tokens in (1, 3, 10, 29, 30, 31, 500):
        _, state = run(mixer, torch.randn(1, tokens, 8), torch.arange(tokens)[None])
        slots[tokens] = state.keys.shape[2]
        assert sum(x.untyped_storage().nbytes() for x in state) == 2 * state.keys.numel() * 4 + 8
    assert slots == {1: 2, 3: 4, 10: 7, 29: 12, 30: 12, 31: 12, 500: 12}


class _Sizes(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        tensors = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *(x.untyped_storage().nbytes() for x in tensors)])
        return made


@pytest.mark.parametrize("documents", [False, True])
def test_work_and_memory_grow_linearly(documents):
    mixer = DilatedAttention(8, num_heads=2, segment_lengths=(16, 64), dilation_ratios=(1, 2))
    work, memory = [], []
    for tokens in (512, 2048):
        hidden, positions = torch.randn(1, tokens, 8), torch.arange(tokens)[None]
        with FlopCounterMode(display=False) as flops, _Sizes() as sizes:
            run(mixer, hidden, positions, positions // 100 if documents else None)[0].sum().backward()
        work.append(flops.get_total_flops())
        memory.append(sizes.largest)
    assert 3.9 < work[1] / work[0] < 4.1
    assert 3.9 < memory[1] / memory[0] < 4.1


@pytest.mark.usefixtures("way")
def test_a_token_that_no_branch_gives_to_a_head_gets_zero_from_it():
    q, k, v = _inputs(12)
    out, _ = dilated_attention(q, k, v, [Branch(8, 2)])
    silent = (torch.arange(12) % 8 % 2) != torch.arange(HEADS)[:, None] % 2
    assert out[:, silent].abs().max() == 0
    assert (out[:, ~silent].abs().sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("segment_lengths", "dilation_ratios", "sentence"),
    [
        ((4, 8), (1,), "lists of the same length"),
        ((), (), "lists of the same length"),
        ((4, 4), (1, 2), "must increase"),
        ((8, 4), (1, 2), "must increase"),
        ((0, 4), (1, 2), r"segment_lengths \[0, 4\] must be whole numbers of at least 1"),
        ((4, 8), (1, -2), r"dilation_ratios \[1, -2\] must be whole numbers of at least 1"),
        ((4, 8), (1, 16), r"ratio \(16\) must not exceed its segment length \(8\)"),
        ((4, 8), (3, 4), r"must not exceed the number of heads \(2\)"),
    ],
)
def test_lists_that_do_not_fit(segment_lengths, dilation_ratios, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        DilatedAttention(8, num_heads=2, segment_lengths=segment_lengths, dilation_ratios=dilation_ratios)
    assert "\n" not in str(error.value)


def test_an_odd_head_width_is_refused():
    with pytest.raises(ValueError, match="even width"):
        DilatedAttention(12, num_heads=4)


def test_what_the_gpu_can_is_marked_as_a_constant_as_torch_marks_it() -> None:
    @torch.compiler.assume_constant_result
    def constant() -> bool:
        return True

    assert vars(constant)
    assert vars(constant).items() <= vars(whole_segments._gpu_has_flash).items()
