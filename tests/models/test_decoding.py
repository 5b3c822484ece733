"""Our loop behind `generate()` writes what transformers' own writes, whatever it is asked for."""

import contextlib
import copy
import io
import pickle
import threading

import pytest
import torch
from safetensors.torch import load_file
from tests.interpreted import take_kernels
from tests.models.small import padded, small_ids, small_model
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from retlab.models import causal_lm, decoding, engines, prompts, run_ahead, static_steps
from retlab.own_kernels import trial

ARCHITECTURES = ("retnet", "transformer", "hybrid")


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return small_model(request.param, pad_token_id=0)


@pytest.fixture
def ours(monkeypatch):
    """Counts the generations that our loop takes."""
    taken = []

    def decode(model, request):
        taken.append(request)
        return decoding.decode(model, request)

    monkeypatch.setattr(causal_lm, "decode", decode)
    return taken


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


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "warped": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8},
    "penalty": {"do_sample": False, "repetition_penalty": 1.5},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "least": {"do_sample": False, "min_new_tokens": 9},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_every_way_at_every_padding(model, ours, way, side):
    ids, mask = padded(small_ids(3, 20), [0, 7, 2] if side != "none" else [0, 0, 0], side)
    for ends in (None, [3, 11, 25]):
        check(model, ids, attention_mask=mask, max_new_tokens=14, eos_token_id=ends, **WAYS[way])
    assert len(ours) == 2


@pytest.mark.parametrize("place", [0, 1, 5])
def test_rows_end_at_different_tokens(model, ours, place):
    ids = small_ids(3, 12)
    end = an_end(model, ids, place)
    written = check(model, ids, max_new_tokens=30, do_sample=False, eos_token_id=end)
    row = written[0, 12:]
    assert (row[row.tolist().index(end) + 1 :] == 0).all()
    alone = check(model, ids[:1], max_new_tokens=30, do_sample=False, eos_token_id=end)
    assert alone[0, -1] == end
    assert len(ours) == 2


def test_longer_than_the_ring_and_the_smallest_capacity(model, ours, monkeypatch):
    for module in (run_ahead, static_steps):
        monkeypatch.setattr(module, "RING", 16)
    monkeypatch.setattr(decoding, "SMALLEST_CAPACITY", 8)
    for tokens in (15, 16, 30):
        written = check(model, small_ids(2, tokens), max_new_tokens=60, do_sample=False)
        assert written.shape == (2, tokens + 60)
    assert len(ours) == 3


def test_lengths_and_batches_change_between_calls(model, ours):
    for batch, tokens, new in ((1, 5, 3), (3, 40, 9), (1, 300, 20), (2, 5, 1), (3, 40, 9)):
        check(model, small_ids(batch, tokens), max_new_tokens=new, do_sample=False)
    # Of a single token, only a recurrent model's prompt is ours, for its pieces.
    assert len(ours) == (5 if model.config.architecture == "retnet" else 4)


def test_a_streamer_gets_every_token_in_turn(model, ours):
    class Recorder(BaseStreamer):
        def __init__(self):
            self.got, self.ended = [], 0

        def put(self, value):
            self.got.append(value.clone())

        def end(self):
            self.ended += 1

    ids, end = small_ids(1, 8), an_end(model, small_ids(1, 8), 4)
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": end}
    recorders = Recorder(), Recorder()
    transformers_writes(model, ids, streamer=recorders[0], **settings)
    model.generate(ids, streamer=recorders[1], **settings)
    assert len(ours) == 1
    assert recorders[0].ended == recorders[1].ended == 1
    assert len(recorders[0].got) == len(recorders[1].got) >= 1 + 5
    assert all(torch.equal(a, b) for a, b in zip(recorders[0].got, recorders[1].got, strict=True))


def test_a_streamer_that_runs_ahead_gets_the_tokens_where_they_are(model, ours, monkeypatch):
    class Recorder(BaseStreamer):
        runs_ahead = True

        def __init__(self):
            self.got, self.ended = [], 0

        def put(self, value):
            self.got.append(value.clone())

        def end(self):
            self.ended += 1

    # The loop that waits for every token is not taken.
    monkeypatch.delattr(decoding._Run, "_token_by_token")
    ids, recorder = small_ids(2, 70), Recorder()
    written = model.generate(ids, max_new_tokens=9, do_sample=False, streamer=recorder)
    assert len(ours) == recorder.ended == 1
    assert torch.equal(recorder.got[0], ids)
    assert torch.equal(torch.stack(recorder.got[1:], dim=1), written[:, 70:])


def test_own_processors_and_criteria_are_asked_after_every_token(model, ours):
    class Never(LogitsProcessor):
        def __call__(self, ids, scores):
            scores = scores.clone()
            scores[:, ids[0, -1]] = -torch.inf
            return scores

    class AtLength(StoppingCriteria):
        def __call__(self, ids, *_, **__):
            return torch.full((ids.shape[0],), ids.shape[1] >= 17)

    settings = {"max_new_tokens": 20, "do_sample": False}
    written = check(model, small_ids(2, 10), stopping_criteria=StoppingCriteriaList([AtLength()]), **settings)
    assert written.shape[1] == 17
    processors = LogitsProcessorList([Never()])
    written = check(model, small_ids(2, 10), logits_processor=processors, **settings)
    assert (written[0, 10:] != written[0, 9:-1]).all()
    check(model, small_ids(2, 10), stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(100.0)]), **settings)
    assert len(ours) == 3


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("ending", [False, True])
def test_a_returned_cache_is_that_of_transformers_loop_and_its_own(model, ours, side, ending):
    ids, mask = padded(small_ids(2, 20), [0, 7] if side == "left" else [0, 0], side)
    end = an_end(model, ids, 4, attention_mask=mask) if ending else None
    settings = {"do_sample": False, "return_dict_in_generate": True, "eos_token_id": end, "max_new_tokens": 12}
    theirs = transformers_writes(model, ids, attention_mask=mask, **settings)
    mine = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(theirs.sequences, mine.sequences)
    assert theirs.past_key_values.seen == mine.past_key_values.seen
    assert torch.equal(theirs.past_key_values.lengths, mine.past_key_values.lengths)
    assert torch.equal(theirs.past_key_values.documents, mine.past_key_values.documents)
    kept = copy.deepcopy(mine.past_key_values.states)
    # Another generation uses the same memory.
    model.generate(small_ids(2, 20, seed=9), max_new_tokens=12, do_sample=False)
    for states in zip(theirs.past_key_values.states, mine.past_key_values.states, kept, strict=True):
        for expected, found, before in zip(*(state or () for state in states), strict=True):
            assert torch.equal(found, before)
            assert torch.allclose(found.float(), expected.float(), atol=1e-5)
    following = torch.cat((mine.sequences, small_ids(2, 5, seed=4)), 1)
    more = torch.cat((mask, mask.new_ones(2, following.shape[1] - 20)), 1)
    settings |= {"attention_mask": more, "eos_token_id": None}
    expected = transformers_writes(model, following, past_key_values=theirs.past_key_values, **settings)
    again = model.generate(following, past_key_values=mine.past_key_values, **settings)
    assert torch.equal(again.sequences, expected.sequences)
    assert again.past_key_values is mine.past_key_values
    assert again.past_key_values.seen == expected.past_key_values.seen == following.shape[1] + 11
    assert len(ours) == 3


def test_the_caller_sees_the_cache_that_he_passed_move_on(model, ours):
    ids, cache = small_ids(1, 10), model.new_cache()
    written = model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert cache.seen == 15
    logits = model(written[:, 15:], past_key_values=cache).logits[:, -1]
    assert torch.allclose(logits, model(written).logits[:, -1], atol=1e-5)
    assert len(ours) == 1


def test_a_cache_of_attention_can_be_cropped_after_generating(ours):
    model, ids = small_model("transformer"), small_ids(2, 10)
    settings = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True}
    out = model.generate(ids, **settings)
    out.past_key_values.crop(-5)
    again = model.generate(out.sequences[:, :17], past_key_values=out.past_key_values, **settings)
    assert torch.equal(again.sequences[:, :22], out.sequences)
    assert len(ours) == 2


def test_two_generations_of_one_model_at_once(model):
    first, second = small_ids(2, 10), small_ids(2, 10, seed=3)
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = transformers_writes(model, first, **settings)
    inner = []

    class Interrupts(StoppingCriteria):
        def __call__(self, ids, *_, **__):
            inner.append(model.generate(second, **settings))
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    written = model.generate(first, stopping_criteria=StoppingCriteriaList([Interrupts()]), **settings)
    assert torch.equal(written, expected)
    other = transformers_writes(model, second, **settings)
    assert len(inner) == 12
    assert all(torch.equal(found, other) for found in inner)
    results = {}

    def work(name, ids):
        results[name] = [model.generate(ids, **settings) for _ in range(3)]

    threads = [threading.Thread(target=work, args=pair) for pair in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found, expected) for found in results["first"])
    assert all(torch.equal(found, other) for found in results["second"])


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 32 and 4 tokens of all rows, and the tokens per row of every step that has run."""
    monkeypatch.setattr(prompts, "PIECE_TOKENS", (32, 4))
    monkeypatch.setattr(prompts, "SHORTEST_PIECE", 2)
    fed = []
    run = static_steps.Step.run
    monkeypatch.setattr(static_steps.Step, "run", lambda step, *a, **k: (fed.append(step.tokens), run(step, *a, **k)))
    return fed


@pytest.fixture
def retnet():
    return small_model("retnet", pad_token_id=0)


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "temperature": 0.8}, {"return_dict_in_generate": True}, {"max_new_tokens": 1}]
)
def test_a_prompt_that_was_sent_off_ahead_is_claimed(retnet, small_pieces, monkeypatch, settings):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    claimed, prepared = [], []
    claim, prepare = prompts.claim, retnet._prepare_generation_config
    monkeypatch.setattr(decoding, "claim", lambda *a: claimed.append(claim(*a)) or claimed[-1])
    monkeypatch.setattr(
        retnet, "_prepare_generation_config", lambda *a, **k: (prepared.append(list(small_pieces)), prepare(*a, **k))[1]
    )
    ids, settings = small_ids(2, 37), {"max_new_tokens": 6, "do_sample": False, **settings}
    expected = transformers_writes(retnet, ids, **settings)
    small_pieces.clear(), prepared.clear()
    for mask in (None, torch.ones_like(ids)):
        torch.manual_seed(7)
        written = retnet.generate(ids, attention_mask=mask, **settings)
        if "return_dict_in_generate" in settings:
            assert torch.equal(written.sequences, expected.sequences)
            assert torch.equal(written.past_key_values.lengths, expected.past_key_values.lengths)
        else:
            assert torch.equal(written, expected)
        # All before transformers prepared anything, and nothing twice.
        assert prepared.pop() == [size for size in small_pieces if size > 1] == [16, 16, 2, 2, 2]
        assert claimed.pop() is not None
        small_pieces.clear()


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_mask": torch.ones(2, 37).index_fill(1, torch.arange(30, 37), 0)},
        {"attention_mask": torch.ones(2, 37).index_fill(1, torch.arange(5, 9), 0)},
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"use_cache": False},
        {"position_ids": torch.arange(37)[None].expand(2, -1) + 3},
        {"prefill_chunk_size": 8},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_was_sent_off_in_vain_changes_nothing(retnet, small_pieces, monkeypatch, settings):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    # So that everything is sent off that can be.
    monkeypatch.setattr(prompts, "_HARMLESS_OPTIONS", prompts._HARMLESS_OPTIONS | settings.keys())
    ids, settings = small_ids(2, 37), {"max_new_tokens": 6, "do_sample": False, **settings}
    small_pieces.clear()
    torch.manual_seed(7)
    written = retnet.generate(ids, **settings)
    assert 16 in small_pieces
    monkeypatch.setattr(prompts, "AHEAD_ON", ())
    assert torch.equal(transformers_writes(retnet, ids, **settings), written)
    assert all(not lane.busy.locked() for lane in engines.engine_of(retnet).lanes.values())


@pytest.mark.usefixtures("small_pieces")
def test_a_call_that_fails_leaves_the_lane_to_others(retnet, monkeypatch):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    ids = small_ids(2, 37)
    expected = transformers_writes(retnet, ids, max_new_tokens=3, do_sample=False)
    with pytest.raises(ValueError, match="max_new_tokens"):
        retnet.generate(ids, max_new_tokens=-1, do_sample=False)
    with pytest.raises(ValueError, match="vocabulary"):
        retnet.generate(ids + 10_000, max_new_tokens=3, do_sample=False)
    (lane,) = engines.engine_of(retnet).lanes.values()
    assert not lane.busy.locked()
    assert torch.equal(retnet.generate(ids, max_new_tokens=3, do_sample=False), expected)


@pytest.mark.parametrize("pieces", [16, 32])
@pytest.mark.parametrize("tokens", [31, 32, 33, 36, 37, 100])
def test_a_prompt_is_fed_in_pieces(model, monkeypatch, pieces, tokens):
    small = pieces // 8
    monkeypatch.setattr(prompts, "PIECE_TOKENS", (2 * pieces, 2 * small))
    monkeypatch.setattr(prompts, "SHORTEST_PIECE", 2)
    fed = []
    run = static_steps.Step.run
    monkeypatch.setattr(static_steps.Step, "run", lambda step, *a, **k: (fed.append(step.tokens), run(step, *a, **k)))
    ids = small_ids(2, tokens)
    check(model, ids, max_new_tokens=6, do_sample=False)
    in_pieces = [size for size in fed if size > 1]
    if model.config.architecture != "retnet":
        assert not in_pieces
        return
    assert 0 <= tokens - sum(in_pieces) < small
    assert in_pieces[0] == (pieces if tokens >= pieces else small)
    out = [
        write(ids, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
        for write in (model.generate, lambda *a, **k: transformers_writes(model, *a, **k))
    ]
    assert torch.equal(out[0].sequences, out[1].sequences)
    assert out[0].past_key_values.seen == out[1].past_key_values.seen
    assert torch.equal(out[0].past_key_values.lengths, out[1].past_key_values.lengths)
    with pytest.raises(ValueError, match="vocabulary"):
        model.generate(ids + 40, max_new_tokens=2)


@pytest.mark.parametrize("tokens", [2, 3, 5, 16, 17, 29, 37, 100])
def test_blanks_in_front_make_a_prompt_whole_pieces(small_pieces, monkeypatch, tokens):
    """They change nothing, whatever the padding token's embedding is, and are no tokens of the cache."""
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    monkeypatch.setattr(prompts, "SHORT_PIECE_TOKENS", 6)
    model = small_model("retnet", pad_token_id=0)
    with torch.no_grad():
        model.embed_tokens.weight[0] = 7
    ids, settings = small_ids(2, tokens), {"max_new_tokens": 6, "do_sample": False}
    expected = transformers_writes(model, ids, return_dict_in_generate=True, **settings)
    small_pieces.clear()
    written = model.generate(ids, return_dict_in_generate=True, **settings)
    in_pieces = [size for size in small_pieces if size > 1]
    assert tokens <= sum(in_pieces) < tokens + 2
    assert torch.equal(written.sequences, expected.sequences)
    ours, theirs = written.past_key_values, expected.past_key_values
    assert ours.seen == theirs.seen == tokens + 5
    assert torch.equal(ours.lengths, theirs.lengths)
    for mine, other in zip(ours.states, theirs.states, strict=True):
        for tensor, reference in zip(mine or (), other or (), strict=True):
            torch.testing.assert_close(tensor, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["mask", "bool", "positions", "inferred", "sampled"])
@pytest.mark.parametrize("padding", [[0, 5], [36, 0], [7, 20]])
def test_padding_in_front_is_fed_as_blanks(retnet, small_pieces, monkeypatch, way, padding):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    claimed = []
    claim = prompts.claim
    monkeypatch.setattr(decoding, "claim", lambda *a: claimed.append(claim(*a)) or claimed[-1])
    ids = small_ids(2, 37)
    mask = torch.stack([(torch.arange(37) >= count).long() for count in padding])
    ids = torch.where(mask == 1, ids.clamp(min=1), 0)
    settings = {"max_new_tokens": 6, "do_sample": way == "sampled", "return_dict_in_generate": True}
    settings |= {"bool": {"attention_mask": mask.bool()}, "inferred": {}}.get(way, {"attention_mask": mask})
    if way == "positions":
        settings["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + 3
    expected = transformers_writes(retnet, ids, **settings)
    small_pieces.clear()
    torch.manual_seed(7)
    written = retnet.generate(ids, **settings)
    in_pieces = [size for size in small_pieces if size > 1]
    # Nobody sees a mask that transformers infers before it has sent off the prompt.
    assert in_pieces == [16, 16, 2, 2, 2] * (2 if way == "inferred" else 1)
    assert [lane is not None for lane in claimed] == [way not in ("inferred", "positions")]
    assert torch.equal(written.sequences, expected.sequences)
    ours, theirs = written.past_key_values, expected.past_key_values
    assert ours.seen == theirs.seen
    assert torch.equal(ours.lengths, theirs.lengths)
    assert torch.equal(ours.documents, theirs.documents)
    for mine, other in zip(ours.states, theirs.states, strict=True):
        for tensor, reference in zip(mine or (), other or (), strict=True):
            torch.testing.assert_close(tensor, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_mask": torch.ones(2, 9)},
        {"position_ids": torch.arange(9)[None]},
        {"position_ids": torch.tensor([[0]])},
        {"attention_mask": torch.tensor([[0, 0, 1, 1, 1]] * 2), "position_ids": torch.arange(5)[None] + 2},
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_pieces")
def test_masks_and_positions_of_another_width_are_left_to_transformers(retnet, monkeypatch, settings):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    ids, settings = small_ids(2, 5), {"max_new_tokens": 12, "do_sample": False, **settings}
    expected = transformers_writes(retnet, ids, **settings)
    for _ in range(3):
        assert torch.equal(retnet.generate(ids, **settings), expected)


@pytest.mark.usefixtures("small_pieces")
def test_a_mask_of_other_numbers_is_refused_as_ever(retnet, monkeypatch):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    mask = torch.tensor([[-1.0, 1, 1, 1, 1]] * 2)
    with pytest.raises(ValueError, match="one at tokens and zero at padding"):
        retnet.generate(small_ids(2, 5), attention_mask=mask, max_new_tokens=3, do_sample=False)


def test_pieces_on_a_gpu(retnet, monkeypatch):
    """Of how many tokens a row; never many blanks, and none in a form that takes every token by itself."""
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    found = {shape: prompts.pieces_of(retnet, *shape) for shape in [(1, 1), (1, 2), (1, 256), (1, 257), (1, 9300)]}
    assert found == {(1, 1): [], (1, 2): [256], (1, 256): [256], (1, 257): [1024], (1, 9300): [8192, 1024, 256]}
    found = {shape: prompts.pieces_of(retnet, *shape) for shape in [(16, 5), (17, 5), (100, 5), (400, 5), (400, 60)]}
    assert found == {(16, 5): [64], (17, 5): [64], (100, 5): [64], (400, 5): [], (400, 60): [64]}
    retnet.set_form("recurrent")
    assert prompts.pieces_of(retnet, 1, 9300) == [8192, 1024]
    retnet.set_form(None)
    monkeypatch.setattr(prompts, "AHEAD_ON", ())
    assert prompts.pieces_of(retnet, 1, 9300) == [8192, 1024]


def test_a_mixer_that_sees_blanks_gets_the_rest_of_a_prompt_as_it_is(retnet, small_pieces, monkeypatch):
    monkeypatch.setattr(prompts, "AHEAD_ON", ("cpu",))
    monkeypatch.setattr(type(retnet.body.blocks[0].mixer), "ignores_blanks", False)
    retnet.generate(small_ids(2, 37), max_new_tokens=6, do_sample=False)
    assert [size for size in small_pieces if size > 1] == [16, 16, 2, 2]


def test_weights_that_change_are_seen(model, ours):
    ids, settings = small_ids(2, 10), {"max_new_tokens": 12, "do_sample": False}
    first = check(model, ids, **settings)
    with torch.no_grad():
        # In place, and where generating has moved weights.
        for weight in model.parameters():
            weight.mul_(-2)
    second = check(model, ids, **settings)
    assert not torch.equal(second, first)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(-3)
    assert not torch.equal(check(model, ids, **settings), second)
    model.load_state_dict(small_model(model.config.architecture, seed=5, pad_token_id=0).state_dict(), assign=True)
    check(model, ids, **settings)
    check(model.double(), ids, **settings)
    check(model.bfloat16(), ids, max_new_tokens=12, do_sample=True)
    assert len(ours) == 6


def test_weights_are_moved_once_and_stay_what_they_are(model, tmp_path):
    before = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    ids, settings = small_ids(2, 10), {"max_new_tokens": 12, "do_sample": False}
    first = check(model, ids, **settings)
    # What the first generation has recorded serves the next.
    engine, places = engines._engines[model], [weight.data_ptr() for weight in model.parameters()]
    assert torch.equal(check(model, ids, **settings), first)
    assert engines.engine_of(model) is engine
    assert [weight.data_ptr() for weight in model.parameters()] == places
    for name, weight in model.named_parameters():
        assert weight is before[name][0]
        assert torch.equal(weight, before[name][1])
    # Each is written as itself, and nothing as shared.
    model.save_pretrained(tmp_path)
    assert {name: tuple(x.shape) for name, x in load_file(tmp_path / "model.safetensors").items()} == {
        name: tuple(x.shape) for name, x in model.named_parameters()
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()(ids, labels=ids).loss.backward()
    optimizer.step()
    assert all(not torch.equal(weight, before[name][1]) for name, weight in model.named_parameters())
    check(model.eval(), ids, **settings)


def test_a_form_that_is_set_is_computed(ours, monkeypatch):
    model, forms = small_model("retnet", pad_token_id=0), []
    from retlab.mixers import retention

    original = retention.retention
    monkeypatch.setattr(retention, "retention", lambda *a: (forms.append(a[6]), original(*a))[1])
    for form in ("parallel", "chunkwise", "recurrent"):
        model.set_form(form)
        forms.clear()
        check(model, small_ids(2, 10), max_new_tokens=5, do_sample=False)
        assert set(forms) == {form}
        assert len(forms) == 2 * 2 * 5
    assert len(ours) == 3


def test_copies_and_files_know_nothing_of_it(model, tmp_path):
    ids, settings = small_ids(2, 10), {"max_new_tokens": 12, "do_sample": False}
    before = set(vars(model)), set(model.state_dict())
    expected = model.generate(ids, **settings)
    assert (set(vars(model)), set(model.state_dict())) == before
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    model.save_pretrained(tmp_path)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
        type(model).from_pretrained(tmp_path),
    )
    assert all(torch.equal(one.generate(ids, **settings), expected) for one in copies)


def test_the_memory_goes_with_the_model():
    model = small_model("retnet")
    model.generate(small_ids(1, 4), max_new_tokens=2, do_sample=False)
    kept = len(engines._engines)
    del model
    assert len(engines._engines) == kept - 1


def test_few_lanes_are_kept(model):
    for batch in range(1, 2 + engines.MOST_LANES + 1):
        model.generate(small_ids(batch, 5), max_new_tokens=2, do_sample=False)
    lanes = engines._engines[model].lanes
    assert len(lanes) == engines.MOST_LANES
    assert 1 not in {batch for batch, _ in lanes}


@pytest.mark.parametrize(
    ("slots", "room"), [(1, 256), (256, 256), (257, 384), (384, 384), (385, 512), (8448, 12288), (16384, 16384)]
)
def test_room_comes_in_few_sizes(slots, room):
    assert decoding._room_for(slots) == room


def test_in_inference_mode_and_out_of_it(model, ours):
    ids, settings = small_ids(2, 10), {"max_new_tokens": 12, "do_sample": False}
    expected = transformers_writes(model, ids, **settings)
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            assert torch.equal(model.generate(ids, **settings), expected)
    assert len(ours) == 3


def test_what_has_to_be_watched_is_left_to_transformers(model, ours):
    ids, settings = small_ids(2, 10), {"max_new_tokens": 4, "do_sample": False}
    out = model.generate(ids, output_scores=True, return_dict_in_generate=True, **settings)
    assert len(out.scores) == 4
    model.generate(ids, use_cache=False, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        model.generate(ids, **settings)
    seen = []
    hook = model.body.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    model.generate(ids, **settings)
    assert len(seen) == 4
    hook.remove()

    class Adapter(torch.nn.Linear):
        """Foreign: what it computes may depend on more than its weights."""

    head, model.lm_head = model.lm_head, Adapter(16, 40, bias=False)
    model.generate(ids, **settings)
    model.lm_head = head
    model.train().generate(ids, **settings)
    assert not ours
    model.eval().generate(ids, **settings)
    assert len(ours) == 1


def test_longnet_is_left_to_transformers(ours):
    small_model("longnet").generate(small_ids(2, 10), max_new_tokens=4, do_sample=False)
    assert not ours


def test_positions_of_the_caller_are_kept(model, ours):
    ids = small_ids(2, 10)
    positions = torch.arange(10)[None].repeat(2, 1) * 3
    check(model, ids, position_ids=positions, max_new_tokens=8, do_sample=False)
    assert len(ours) == 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_our_kernels_it_writes_the_same(architecture: str, batch: int, monkeypatch, ours) -> None:
    """By Triton's interpreter: a GPU takes them in bfloat16."""
    launched = take_kernels(monkeypatch)
    model = small_model(architecture, pad_token_id=0)
    ids = small_ids(batch, 9)
    written = check(model, ids, max_new_tokens=7, do_sample=False)
    ends = [int(written[0, 11]), int(written[-1, 13])]
    check(model, ids, max_new_tokens=7, do_sample=False, eos_token_id=ends)
    check(model, ids, max_new_tokens=2, do_sample=True, top_k=0)
    assert len(ours) == 3
    expected = {"product_kernel", "rotation_kernel", "choose_kernel"} | ({"norm_kernel"} if batch > 1 else set())
    if architecture != "transformer":
        expected |= {"step_kernel", "gated_norm_kernel"}
    assert set(launched) == expected


def _with_biases(model) -> None:
    model.lm_head.bias = torch.nn.Parameter(torch.randn(40))


def _with_another_norm(model) -> None:
    model.body.norm = torch.nn.LayerNorm(16)


def _with_biased_blocks(model) -> None:
    for block in model.body.blocks:
        for name in ("fc1", "fc2", "q_proj", "v_proj", "out_proj"):
            linear = getattr(block.mixer, name, None)
            if linear is not None:
                linear.bias = torch.nn.Parameter(torch.randn(linear.out_features))


@pytest.mark.parametrize("changed", [_with_biases, _with_another_norm, _with_biased_blocks])
def test_what_our_kernels_do_not_know_is_not_left_out(changed, monkeypatch, ours) -> None:
    """Also where the model has written with them before."""
    launched = take_kernels(monkeypatch)
    model, ids = small_model("retnet", pad_token_id=0), small_ids(2, 9)
    check(model, ids, max_new_tokens=3, do_sample=False)
    changed(model)
    check(model, ids, max_new_tokens=6, do_sample=False)
    assert len(ours) == 2
    assert "product_kernel" in launched


def test_our_kernels_are_told_to_be_out_of_order_once(monkeypatch) -> None:
    """As where Triton finds no C compiler."""

    def broken(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(trial, "_runs", {})
    monkeypatch.setattr(trial, "rotation_kernel", object())
    monkeypatch.setattr(trial, "kernel_rotation", broken)
    # There is no GPU here.
    device, nothing = torch.device("cuda", 0), torch.ones(1)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: nothing)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    told = []
    monkeypatch.setattr(logging.get_logger(trial.__name__), "warning", told.append)
    for _ in range(2):
        trial.try_own_kernels(device)
    assert not trial.own_kernels_run(device)
    assert told == ["Generation goes on without RetLab's own kernels, slower: Failed to find C compiler."]
