"""Our loop behind `generate()` writes what transformers' own writes, whatever it is asked for."""

import copy
import io
import pickle
import threading

import pytest
import torch
from safetensors.torch import load_file
from tests.models.small import padded, small_ids, small_model
from tests.models.writing import an_end, check, transformers_writes
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from retlab.models import decoding, engines, run_ahead, static_steps

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
