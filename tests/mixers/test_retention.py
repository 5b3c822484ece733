"""The three forms of retention against each other and against a direct sum in float64."""

import pytest
import torch
from tests.mixers.oracles import direct_retention, layouts, relative_error, run

from retlab.mixers import retention_forms, retention_loop
from retlab.mixers.retention import Retention
from retlab.mixers.retention_forms import (
    FORMS,
    RetentionState,
    retention,
    retnet_log_decay,
    torchscale_parallel_retention,
)

HEADS, KEY, VALUE = 3, 4, 6
LENGTHS = [1, 2, 7, 64, 65, 200]


@pytest.fixture(autouse=True)
def _loops_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_loop, "LOOPED_FROM", 0)


def _inputs(tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q": (tokens, KEY), "k": (tokens, KEY), "v": (tokens, VALUE), "memory": (KEY, VALUE)}
    return {
        name: torch.randn(2, HEADS, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def _with_gradients(function, inputs, dtype):
    """Outputs, final memory, and the gradients of a fixed weighting of both."""
    leaves = {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in inputs.items()}
    out, memory = function(**leaves)
    generator = torch.Generator().manual_seed(9)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum() for x in (out, memory)
    )
    loss.backward()
    return {"out": out, "memory": memory, **{f"d{name}": leaf.grad for name, leaf in leaves.items()}}


def _expected(inputs, segment_ids):
    segment_ids = torch.zeros(2, inputs["q"].shape[2], dtype=torch.long) if segment_ids is None else segment_ids
    gamma = 1 - 2.0 ** -(5 + torch.arange(HEADS, dtype=torch.float64))
    return _with_gradients(
        lambda q, k, v, memory: direct_retention(q, k, v, gamma, memory, segment_ids), inputs, torch.float64
    )


def _actual(inputs, segment_ids, form, chunk_size=64):
    def run(q, k, v, memory):
        log_decay = retnet_log_decay(HEADS, q.device)
        out, state = retention(q, k, v, log_decay, RetentionState(memory), segment_ids, form, chunk_size)
        return out, state.memory

    return _with_gradients(run, inputs, torch.float32)


@pytest.fixture
def without_loop(monkeypatch):
    """All chunks at once, as under torch.compile and on a GPU, where a CPU would loop over them."""
    monkeypatch.setattr(retention_forms, "suits_loop", lambda *_: False)


def _chunks_are_looped(q, k, v):
    out, _ = retention(q, k, v, retnet_log_decay(HEADS, q.device), chunk_size=16)
    return type(out.grad_fn).__name__ == "ChunkLoopBackward"


def test_a_cpu_loops_over_chunks_in_float32_alone():
    q, k, v = (_inputs(40)[name].float().requires_grad_() for name in "qkv")
    assert _chunks_are_looped(q, k, v)
    assert not _chunks_are_looped(q, k, v.bfloat16())
    assert not _chunks_are_looped(q.double(), k.double(), v.double())


def test_function_transforms_do_without_the_loop():
    """`torch.func.vmap` over the batch gives what the batch gives."""
    q, k, v = (_inputs(40)[name].float() for name in "qkv")

    def one(q, k, v):
        return retention(q[None], k[None], v[None], retnet_log_decay(HEADS, q.device), chunk_size=16)[0][0]

    whole, _ = retention(q, k, v, retnet_log_decay(HEADS, q.device), chunk_size=16)
    assert torch.allclose(torch.func.vmap(one)(q, k, v), whole, atol=1e-5)


@pytest.mark.parametrize("layout", layouts(8))
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.usefixtures("without_loop")
def test_all_chunks_at_once_equal_the_direct_sum(tokens, layout):
    inputs, segment_ids = _inputs(tokens), layouts(tokens)[layout]
    expected, actual = _expected(inputs, segment_ids), _actual(inputs, segment_ids, "chunkwise", 16)
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-5 or value.abs().max() == 0, name


@pytest.mark.parametrize("chunk_size", [3, 200, 600])
@pytest.mark.parametrize("layout", ["none", "mixed"])
@pytest.mark.usefixtures("without_loop")
def test_the_chunk_size_changes_nothing_at_once(chunk_size, layout):
    """Also where chunks are too long for their decays to be folded into queries and keys."""
    inputs, segment_ids = _inputs(700), layouts(700)[layout]
    expected, actual = _expected(inputs, segment_ids), _actual(inputs, segment_ids, "chunkwise", chunk_size)
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-5, name


@pytest.mark.parametrize("used", ["out", "memory"])
def test_the_loops_gradient_of_one_output_alone(used):
    """Without a state, and with a loss that the other output is no part of."""
    gradients = []
    for form in ("chunkwise", "parallel"):
        leaves = [_inputs(150)[name].float().requires_grad_() for name in "qkv"]
        out, state = retention(*leaves, retnet_log_decay(HEADS, leaves[0].device), form=form)
        (out if used == "out" else state.memory).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for looped, plain in zip(*gradients, strict=True):
        if plain is None or plain.abs().max() == 0:
            assert looped is None or looped.abs().max() == 0
        else:
            assert relative_error(looped, plain) < 1e-5


@pytest.mark.parametrize("layout", layouts(8))
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_equal_the_direct_sum(form, tokens, layout):
    """Outputs, final state and all gradients, the past's included, to 1e-5."""
    inputs, segment_ids = _inputs(tokens), layouts(tokens)[layout]
    expected, actual = _expected(inputs, segment_ids), _actual(inputs, segment_ids, form)
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-5 or value.abs().max() == 0, name


@pytest.mark.parametrize("layout", ["none", "mixed"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_equal_the_direct_sum_at_2047_tokens(form, layout):
    inputs, segment_ids = _inputs(2047), layouts(2047)[layout]
    expected, actual = _expected(inputs, segment_ids), _actual(inputs, segment_ids, form)
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-5, name


@pytest.mark.parametrize("chunk_size", [1, 3, 16, 200, 500])
@pytest.mark.parametrize("layout", ["none", "mixed"])
def test_the_chunk_size_changes_nothing(chunk_size, layout):
    inputs, segment_ids = _inputs(50), layouts(50)[layout]
    expected, actual = _expected(inputs, segment_ids), _actual(inputs, segment_ids, "chunkwise", chunk_size)
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-5, name


@pytest.mark.parametrize("form", FORMS)
def test_no_state_is_an_empty_memory(form):
    inputs = {**_inputs(130), "memory": torch.zeros(2, HEADS, KEY, VALUE, dtype=torch.float64)}
    expected = _expected(inputs, None)
    q, k, v = (inputs[name].float() for name in "qkv")
    out, state = retention(q, k, v, retnet_log_decay(HEADS, q.device), form=form, chunk_size=64)
    assert relative_error(out, expected["out"]) < 1e-5
    assert relative_error(state.memory, expected["memory"]) < 1e-5


def test_a_row_of_padding_leaves_the_memory_alone():
    inputs = _inputs(70)
    segment_ids = torch.full((2, 70), -1)
    for form in FORMS:
        actual = _actual(inputs, segment_ids, form)
        assert actual["out"].abs().max() == 0
        assert torch.equal(actual["memory"], inputs["memory"].float())


def test_decays_are_the_papers():
    gamma = retnet_log_decay(4, torch.device("cpu")).exp()
    assert torch.allclose(gamma, torch.tensor([0.96875, 0.984375, 0.9921875, 0.99609375], dtype=torch.float64))


def test_bfloat16_keeps_the_memory_in_float32():
    inputs = _inputs(300)
    expected = _expected({**inputs, "memory": torch.zeros_like(inputs["memory"])}, None)
    q, k, v = (inputs[name].bfloat16() for name in "qkv")
    for form in FORMS:
        out, state = retention(q, k, v, retnet_log_decay(HEADS, q.device), form=form, chunk_size=64)
        assert out.dtype == torch.bfloat16
        assert state.memory.dtype == torch.float32
        assert relative_error(out, expected["out"]) < 2e-2


def test_autocast_leaves_the_core_alone():
    q, k, v = (_inputs(100)[name].float() for name in "qkv")
    log_decay = retnet_log_decay(HEADS, q.device)
    plain, _ = retention(q, k, v, log_decay)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = retention(q, k, v, log_decay)
    assert torch.equal(plain, cast)


def test_the_state_does_not_keep_the_chunks_alive():
    q, k, v = (_inputs(640)[name].float() for name in "qkv")
    _, state = retention(q, k, v, retnet_log_decay(HEADS, q.device))
    assert state.memory.untyped_storage().nbytes() == 2 * HEADS * KEY * VALUE * 4


@pytest.mark.parametrize("layout", ["none", "mixed"])
def test_torchscales_normaliser(layout):
    """Written out once more, over rows: decays over the root of their sum, scores over the size of their sum."""
    segment_ids = layouts(40)[layout]
    inputs = _inputs(40)
    actual = torchscale_parallel_retention(
        *(inputs[name].float() * 3 for name in "qkv"), retnet_log_decay(HEADS, torch.device("cpu")), segment_ids
    )
    plain = torch.zeros(2, 40, dtype=torch.long) if segment_ids is None else segment_ids
    q, k, v = (inputs[name] * 3 for name in "qkv")
    clamped = 0
    for row in range(2):
        for head in range(HEADS):
            for n in range(40):
                keys = [m for m in range(n + 1) if plain[row, n] == plain[row, m] >= 0]
                if not keys:
                    assert actual[row, head, n].abs().max() == 0
                    continue
                gap = torch.tensor([sum(plain[row, m + 1 : n + 1] >= 0) for m in keys], dtype=torch.float64)
                decay = (1 - 2.0 ** -(5 + head)) ** gap
                scores = (k[row, head, keys] @ q[row, head, n]) * decay / decay.sum().sqrt()
                size = scores.sum().abs()
                clamped += int(size > 1)
                expected = (scores / size.clamp(min=1)) @ v[row, head, keys]
                assert (actual[row, head, n] - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    assert clamped > 10


def test_the_normaliser_has_no_state():
    mixer = Retention(8, num_heads=2, torchscale_normalizer=True)
    hidden, positions = torch.randn(1, 3, 8), torch.arange(3)[None]
    _, state = run(mixer, hidden, positions)
    with pytest.raises(ValueError, match="use_cache=False"):
        run(mixer, hidden, positions, None, state)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_heads": 3}, r"heads \(3\) must divide the hidden size \(12\)|divide"),
        ({"num_heads": 4}, "head width is 3"),
        ({"num_heads": 2, "value_size": 9}, "must divide the value size"),
        ({"num_heads": 2, "chunk_size": 0}, "chunk size"),
    ],
)
def test_sizes_that_do_not_fit(settings, sentence):
    hidden_size = 10 if settings["num_heads"] == 3 else 12
    with pytest.raises(ValueError, match=sentence):
        Retention(hidden_size, **settings)
