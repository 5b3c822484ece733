"""Prompts in pieces, in front of which blanks stand and which are sent off before a call is prepared."""

import pytest
import torch
from tests.models.small import small_ids, small_model
from tests.models.writing import check, transformers_writes

from retlab.models import decoding, engines, prompts, static_steps


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
