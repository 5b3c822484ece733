"""`generate()` with the cache writes what it writes without."""

import pytest
import torch
from tests.models.small import padded, small_ids, small_model
from transformers import DynamicCache, GenerationConfig

from retlab.models.causal_lm import MODELS

WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.9},
    "beams": {"num_beams": 3, "do_sample": False},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "penalty": {"do_sample": False, "repetition_penalty": 1.5},
}


@pytest.fixture(params=MODELS)
def model(request):
    return small_model(request.param, pad_token_id=0, eos_token_id=3)


def _generate(model, ids, mask, **settings):
    torch.manual_seed(5)
    return model.generate(ids, attention_mask=mask, max_new_tokens=14, **settings)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", [False, True])
def test_the_cache_changes_no_token(model, way, padding):
    ids, mask = padded(small_ids(2, 20), [0, 9] if padding else [0, 0], "left")
    with_cache = _generate(model, ids, mask, use_cache=True, **WAYS[way])
    without = _generate(model, ids, mask, use_cache=False, **WAYS[way])
    assert torch.equal(with_cache, without)
    assert with_cache.shape[1] > 21


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_padded_batch_writes_what_its_rows_write_alone(model, way):
    ids, mask = padded(small_ids(2, 20), [0, 9], "left")
    together = _generate(model, ids, mask, eos_token_id=None, **WAYS[way])
    alone = _generate(model, ids[1:, 9:], None, eos_token_id=None, **WAYS[way])
    assert torch.equal(together[1, 9:], alone[0])


def test_tokens_are_those_of_the_largest_logits(model):
    ids = small_ids(2, 10)
    written = _generate(model, ids, None, do_sample=False, eos_token_id=None)
    for _ in range(14):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(written, ids)


def test_generation_goes_on_from_a_returned_cache(model):
    ids = small_ids(1, 10)
    settings = {"do_sample": False, "return_dict_in_generate": True, "eos_token_id": None}
    whole = model.generate(ids, max_new_tokens=20, **settings)
    first = model.generate(ids, max_new_tokens=8, **settings)
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=12, **settings)
    assert torch.equal(rest.sequences, whole.sequences)


def test_from_embeddings(model):
    ids = small_ids(2, 10)
    embeddings = model.get_input_embeddings()(ids)
    written = _generate(model, ids, None, do_sample=False)
    assert torch.equal(_generate(model, ids, None, do_sample=False, inputs_embeds=embeddings), written)
    torch.manual_seed(5)
    alone = model.generate(inputs_embeds=embeddings, max_new_tokens=14, do_sample=False)
    assert torch.equal(alone, written[:, 10:])


def test_a_prompt_prefilled_in_chunks(model):
    ids, mask = padded(small_ids(2, 20), [0, 9], "left")
    whole = _generate(model, ids, mask, do_sample=False)
    assert torch.equal(_generate(model, ids, mask, do_sample=False, prefill_chunk_size=6), whole)


def test_scores_and_hidden_states_are_returned(model):
    ids = small_ids(2, 10)
    out = model.generate(
        ids,
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
    )
    assert len(out.scores) == len(out.logits) == len(out.hidden_states) == 5
    assert [step[-1].shape[1] for step in out.hidden_states] == [10, 1, 1, 1, 1]
    assert out.past_key_values.get_seq_length() == 14


def test_assisted_generation(model):
    """The Transformer's cache can be cropped; a recurrent state cannot, and transformers says so."""
    ids = small_ids(1, 10)
    assistant = small_model("transformer", pad_token_id=0, eos_token_id=3)
    if model._is_stateful:
        with pytest.raises(ValueError, match="stateful"):
            model.generate(ids, assistant_model=assistant, max_new_tokens=10, do_sample=False)
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="cannot be cropped"):
            cache.crop(-2)
        return
    expected = model.generate(ids, max_new_tokens=10, do_sample=False)
    written = model.generate(ids, assistant_model=assistant, max_new_tokens=10, do_sample=False)
    assert torch.equal(written, expected)


def test_a_cropped_cache_goes_on_as_if_nothing_had_happened():
    model, ids = small_model("transformer"), small_ids(2, 30)
    cache = model(ids, use_cache=True).past_key_values
    cache.crop(-10)
    logits = model(ids[:, 20:], past_key_values=cache).logits
    assert torch.allclose(logits, model(ids).logits[:, 20:], atol=1e-5)


def test_rows_of_a_cache(model):
    ids = small_ids(3, 10)
    cache = model(ids, use_cache=True).past_key_values
    assert cache.batch_size == 3
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([0, 2, 2, 1]))
    following = small_ids(4, 5, seed=8)
    expected = model(torch.cat((ids[[2, 0, 0, 2]], following), 1)).logits[:, 10:]
    assert torch.allclose(model(following, past_key_values=cache).logits, expected, atol=1e-5)
    cache.reset()
    assert cache.get_seq_length() == len(cache) == 0
    assert torch.allclose(model(ids, past_key_values=cache).logits, model(ids).logits)


def test_other_caches_are_refused(model):
    with pytest.raises(ValueError, match="new_cache"):
        model(small_ids(), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(small_ids(), max_new_tokens=2, cache_implementation="static")


def test_generation_settings_are_saved_beside_the_model(model, tmp_path):
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.5, max_new_tokens=7, pad_token_id=0)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).generation_config.temperature == 0.5
