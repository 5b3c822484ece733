"""What every mixer of the table must do, as `retlab.mixers.base` states it."""

import copy

import pytest
import torch
from tests.mixers.oracles import layouts, relative_error, run, turned
from torch.func import functional_call, stack_module_state, vmap

from retlab.mixers import MIXERS, Mixer

WIDTH, TOKENS = 16, 150
POSITIONS = torch.arange(TOKENS)[None]


@pytest.fixture(params=MIXERS)
def mixer(request) -> Mixer:
    torch.manual_seed(0)
    return MIXERS[request.param](WIDTH).eval()


def _hidden(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def _real(segment_ids: torch.Tensor | None) -> torch.Tensor:
    real = torch.ones(2, TOKENS, 1) if segment_ids is None else (segment_ids >= 0)[..., None]
    return real.double()


@pytest.mark.parametrize("layout", layouts(8))
@pytest.mark.parametrize("pieces", [[1] * 5 + [145], [64, 64, 22], [3, 70, 1, 76], [149, 1]])
def test_pieces_give_the_outputs_of_one_call(mixer, layout, pieces):
    hidden, segment_ids = _hidden(2), layouts(TOKENS)[layout]
    whole, last = run(mixer, hidden, POSITIONS, segment_ids)
    state, outputs, start, open_document = None, [], 0, torch.zeros(2, 1, dtype=torch.long)
    for size in pieces:
        piece = slice(start, start + size)
        relative = None
        if segment_ids is not None:
            # A piece numbers its documents from the one that its state belongs to.
            relative = torch.where(segment_ids[:, piece] < 0, -1, segment_ids[:, piece] - open_document)
            open_document = torch.maximum(open_document, segment_ids[:, piece].amax(1, keepdim=True))
        out, state = run(mixer, hidden[:, piece], POSITIONS[:, piece], relative, state)
        outputs.append(out)
        start += size
    real = _real(segment_ids)
    assert relative_error(torch.cat(outputs, 1) * real, whole * real) < 1e-5
    assert (state is None) == (last is None)
    for mine, expected in zip(state or (), last or (), strict=True):
        assert mine.shape == expected.shape
        assert mine.shape[0] == 2
        assert torch.allclose(mine.double(), expected.double(), atol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in MIXERS.items() if kind.ignores_blanks])
@pytest.mark.parametrize("piece", [1, 7, 150])
def test_zeros_in_front_are_nothing_to_mixers_that_ignore_blanks(name, piece):
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH).eval()
    reserved = mixer.reserve(mixer.empty_state(2, torch.zeros(())), 0)
    blanks, slot = torch.zeros(2, piece, WIDTH), torch.zeros((), dtype=torch.int64)
    out = mixer.advance(blanks, turned(mixer, POSITIONS[:, :piece]), reserved, slot)
    assert torch.equal(out, blanks)
    assert all(torch.equal(memory, torch.zeros_like(memory)) for memory in mixer.changing(reserved))
    last = mixer.advance_to_last(blanks, turned(mixer, POSITIONS[:, :piece]), reserved, slot)
    assert torch.equal(last, blanks[:, -1:])


@pytest.mark.parametrize("layout", ["none", "left", "right"])
@pytest.mark.parametrize("piece", [1, 7])
@pytest.mark.parametrize("prepared", [False, True])
def test_advancing_in_place_gives_the_outputs_of_one_call(mixer, layout, piece, prepared):
    if not mixer.can_advance or (piece > 1 and mixer.keeps_tokens):
        pytest.skip("cannot")
    hidden, segment_ids, first = _hidden(2), layouts(100)[layout], 100
    begin, state = run(mixer, hidden[:, :first], POSITIONS[:, :first], segment_ids)
    rest = None if segment_ids is None else torch.cat((segment_ids, torch.zeros(2, TOKENS - first).long()), 1)
    whole, last = run(mixer, hidden, POSITIONS, rest)
    if prepared:
        mixer.prepare_weights()
    reserved = mixer.reserve(state, TOKENS + 20)
    # What another generation left there.
    for tensor in mixer.changing(reserved):
        tensor.fill_(1)
    mixer.load(reserved, state)
    addresses = _addresses(reserved)
    slot, outputs = torch.tensor(first), [begin]
    with torch.no_grad():
        while slot < TOKENS:
            place = slice(int(slot), min(TOKENS, int(slot) + piece))
            outputs.append(mixer.advance(hidden[:, place], turned(mixer, POSITIONS[:, place]), reserved, slot))
            slot += outputs[-1].shape[1]
    real = _real(rest)
    assert relative_error(torch.cat(outputs, 1) * real, whole * real) < 1e-5
    assert _addresses(reserved) == addresses
    for mine, expected in zip(mixer.unload(reserved, TOKENS) or (), last or (), strict=True):
        assert mine.shape == expected.shape
        assert mine.data_ptr() not in addresses
        assert torch.allclose(mine.double(), expected.double(), atol=1e-5)


def _addresses(reserved):
    return [tensor.data_ptr() for tensor in reserved or () if tensor is not None]


@pytest.mark.parametrize("tokens", [1, 7, 64, 100])
def test_the_last_token_alone_is_what_it_is_among_all(mixer, tokens):
    if not mixer.can_advance or (tokens > 1 and mixer.keeps_tokens):
        pytest.skip("cannot")
    before, hidden = _hidden(2)[:, :50], _hidden(2)[:, 50 : 50 + tokens]
    _, state = run(mixer, before, POSITIONS[:, :50])
    turn, slot = turned(mixer, POSITIONS[:, 50 : 50 + tokens]), torch.tensor(50)
    found = []
    for advance in (mixer.advance, mixer.advance_to_last):
        reserved = mixer.reserve(state, TOKENS + 20)
        mixer.load(reserved, state)
        with torch.no_grad():
            found.append((advance(hidden, turn, reserved, slot), mixer.unload(reserved, 50 + tokens)))
    (whole, memories), (last, others) = found
    assert last.shape == (2, 1, hidden.shape[-1])
    assert relative_error(last, whole[:, -1:]) < 1e-5
    for mine, expected in zip(others or (), memories or (), strict=True):
        assert torch.allclose(mine.double(), expected.double(), atol=1e-5)


def test_zeros_are_an_empty_state(mixer):
    empty = mixer.empty_state(2, torch.zeros(1))
    if empty is None:
        pytest.skip("not recurrent")
    reserved = mixer.reserve(empty, 0)
    for tensor in mixer.changing(reserved):
        tensor.fill_(1).zero_()
    with torch.no_grad():
        out = mixer.advance(_hidden(2), turned(mixer, POSITIONS), reserved, torch.tensor(0))
    assert relative_error(out, run(mixer, _hidden(2), POSITIONS)[0]) < 1e-5


@pytest.mark.parametrize("layout", ["left", "right", "mixed"])
def test_padding_is_not_read(mixer, layout):
    segment_ids = layouts(TOKENS)[layout]
    hidden, real = _hidden(2), _real(segment_ids)
    other = torch.where(real > 0, hidden, torch.full_like(hidden, 7.0))
    out, _ = run(mixer, hidden, POSITIONS, segment_ids)
    changed, _ = run(mixer, other, POSITIONS, segment_ids)
    assert torch.isfinite(changed).all()
    assert relative_error(changed * real, out * real) < 1e-6


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padded_rows_equal_the_rows_alone(mixer, side):
    hidden = _hidden(1)
    keep = {"left": slice(40, None), "right": slice(0, 110), "between": slice(0, None, 2)}[side]
    segment_ids = torch.full((1, TOKENS), -1)
    segment_ids[:, keep] = 0
    positions = ((segment_ids >= 0).cumsum(1) - 1).clamp(min=0)
    out, _ = run(mixer, hidden, positions, segment_ids)
    alone, _ = run(mixer, hidden[:, keep], POSITIONS[:, : hidden[:, keep].shape[1]])
    assert relative_error(out[:, keep], alone) < 1e-5


def test_documents_are_processed_as_if_alone(mixer):
    hidden = _hidden(1)
    segment_ids = (torch.arange(TOKENS) >= 71).long()[None]
    out, _ = run(mixer, hidden, POSITIONS, segment_ids)
    first, _ = run(mixer, hidden[:, :71], POSITIONS[:, :71])
    second, _ = run(mixer, hidden[:, 71:], POSITIONS[:, : TOKENS - 71])
    assert relative_error(out, torch.cat((first, second), 1)) < 1e-5


def test_the_future_is_not_read(mixer):
    hidden = _hidden(2)
    changed = hidden.clone()
    changed[:, 90:] += 1
    assert relative_error(run(mixer, changed, POSITIONS)[0][:, :90], run(mixer, hidden, POSITIONS)[0][:, :90]) < 1e-6


def test_a_shared_offset_of_positions_changes_nothing(mixer):
    hidden = _hidden(2)
    assert relative_error(run(mixer, hidden, POSITIONS + 100_000)[0], run(mixer, hidden, POSITIONS)[0]) < 1e-4


def test_bfloat16_stays_close_at_far_positions(mixer):
    """Angles are float64 whatever the model's dtype: in bfloat16 position 100,000 would be off by hundreds."""
    hidden = _hidden(2)
    expected, _ = run(mixer, hidden, POSITIONS)
    half = copy.deepcopy(mixer).bfloat16()
    out, _ = run(half, hidden.bfloat16(), POSITIONS + 100_000)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, expected) < 4e-2


def test_forms_agree(mixer):
    hidden, segment_ids = _hidden(2), layouts(TOKENS)["mixed"]
    expected, _ = run(mixer, hidden, POSITIONS, segment_ids)
    for form in mixer.forms:
        mixer.set_form(form)
        assert relative_error(run(mixer, hidden, POSITIONS, segment_ids)[0], expected) < 1e-5
    with pytest.raises(ValueError, match="form"):
        mixer.set_form("diagonal")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("layout", ["none", "mixed"])
def test_runs_as_stacked_replicas(mixer, layout):
    """Under vmap, outputs and gradients are those of the replicas one by one."""
    torch.manual_seed(2)
    replicas = [type(mixer)(WIDTH) for _ in range(3)]
    parameters, buffers = stack_module_state(replicas)
    empty = copy.deepcopy(mixer).to("meta")
    hidden = _hidden(3, 2)
    segment_ids = layouts(TOKENS)[layout]
    segment_ids = None if segment_ids is None else segment_ids.expand(3, 2, TOKENS)
    axis = None if segment_ids is None else 0

    def outputs(parameters):
        def one(p, b, x, s):
            return functional_call(empty, (p, b), (x, turned(mixer, POSITIONS), s))[0]

        return vmap(one, in_dims=(0, 0, 0, axis))(parameters, buffers, hidden, segment_ids)

    stacked = outputs(parameters)
    gradients = torch.func.grad(lambda p: outputs(p).pow(2).sum())(parameters)
    for index, replica in enumerate(replicas):
        out, _ = run(replica, hidden[index], POSITIONS, None if segment_ids is None else segment_ids[index])
        out.pow(2).sum().backward()
        assert relative_error(stacked[index], out) < 1e-5
        for name, parameter in replica.named_parameters():
            assert relative_error(gradients[name][index], parameter.grad) < 1e-4, name


def test_states_its_work(mixer):
    assert mixer.core_flops_per_token(128) >= 0


def test_recurrent_states_have_a_constant_size(mixer):
    if not mixer.recurrent:
        pytest.skip("not recurrent")
    sizes = {
        sum(tensor.untyped_storage().nbytes() for tensor in run(mixer, _hidden(2)[:, :n], POSITIONS[:, :n])[1])
        for n in (1, 10, TOKENS)
    }
    assert len(sizes) == 1
