"""What transformers' own common tests ask of a causal language model, on our classes.

The library's test mixins are not part of its wheel; these are the assertions that apply, written for our models.
"""

import inspect

import pytest
import torch
from safetensors.torch import load_file
from tests.models.small import padded, small_ids, small_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin

from retlab.models.causal_lm import MODELS


@pytest.fixture(params=MODELS)
def architecture(request):
    return request.param


def test_signature_begins_with_input_ids(architecture):
    names = list(inspect.signature(MODELS[architecture].forward).parameters)
    assert names[:2] == ["self", "input_ids"]
    assert issubclass(MODELS[architecture], GenerationMixin)


def test_deterministic(architecture):
    model, ids = small_model(architecture), small_ids()
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(architecture, tied, tmp_path):
    """Bit by bit, through the class and through the auto classes; safetensors; tied weights stored once."""
    model, ids = small_model(architecture, tie_word_embeddings=tied), small_ids()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    for load in (type(model).from_pretrained, AutoModelForCausalLM.from_pretrained):
        loaded, info = load(tmp_path, output_loading_info=True)
        assert type(loaded) is type(model)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert (loaded.lm_head.weight is loaded.embed_tokens.weight) is tied
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.get_params() == model.config.get_params()


def test_weights_in_another_dtype(architecture, tmp_path):
    small_model(architecture).bfloat16().save_pretrained(tmp_path)
    assert MODELS[architecture].from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert MODELS[architecture].from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_missing_weights_are_initialised(architecture):
    """Loading nothing into a model gives a model with the distribution of a new one."""
    fresh = small_model(architecture)
    torch.manual_seed(0)
    loaded = type(fresh).from_pretrained(None, config=fresh.config, state_dict={})
    for (name, expected), (_, parameter) in zip(fresh.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.isfinite(parameter).all(), name
        assert parameter.device.type == "cpu"
        if expected.numel() > 1 and expected.std() > 0:
            assert 0.5 < (parameter.std() / expected.std()).item() < 2, name
        else:
            assert torch.equal(parameter, expected), name


def test_loading_keeps_what_is_there(architecture):
    model = small_model(architecture)
    state = model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if "norm" not in name}
    loaded, info = type(model).from_pretrained(None, config=model.config, state_dict=kept, output_loading_info=True)
    assert set(info["missing_keys"]) == set(state) - set(kept)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in kept.items())


def test_initialisation_is_torchscales():
    torch.manual_seed(0)
    model = MODELS["retnet"](vocab_size=2000, hidden_size=128, num_hidden_layers=1, pad_token_id=5)
    assert model.embed_tokens.weight[5].abs().max() == 0
    assert abs(model.embed_tokens.weight.std() * 128**0.5 - 1) < 0.02
    assert abs(model.lm_head.weight.std() * 128**0.5 - 1) < 0.02
    retention = model.body.blocks[0].mixer
    for name, gain in [("q_proj", 2**-2.5), ("v_proj", 2**-2.5), ("g_proj", 2**-2.5), ("out_proj", 0.5)]:
        weight = getattr(retention, name).weight
        expected = gain * (2 / sum(weight.shape)) ** 0.5
        assert abs(weight.std() / expected - 1) < 0.05, name
    assert torch.equal(model.body.norm.weight, torch.ones(128))


def test_embeddings_in_place_of_ids(architecture):
    model, ids = small_model(architecture), small_ids()
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)


def test_embeddings_can_be_got_and_set(architecture):
    model = small_model(architecture)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert model.get_output_embeddings() is model.lm_head
    new = nn.Embedding(40, 16)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new is model.embed_tokens


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [55, 30])
def test_resize_token_embeddings(architecture, tied, size, tmp_path):
    model = small_model(architecture, tie_word_embeddings=tied)
    ids = small_ids() % 30
    before = model(ids).logits
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.embed_tokens.num_embeddings == model.lm_head.out_features == size
    after = model(ids).logits
    assert after.shape[-1] == size
    assert torch.allclose(after[..., :30], before[..., :30], atol=1e-6)
    assert (model.lm_head.weight is model.embed_tokens.weight) is tied
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, after)


def test_tuples_and_outputs_hold_the_same(architecture):
    model, ids = small_model(architecture), small_ids()
    for extra in ({}, {"output_hidden_states": True}, {"labels": ids}):
        named = model(ids, **extra)
        plain = model(ids, return_dict=False, **extra)
        assert isinstance(plain, tuple)
        assert len(plain) == len(named.to_tuple())
        assert torch.equal(plain[0], named.to_tuple()[0])


def test_hidden_states_keep_gradients(architecture):
    out = small_model(architecture)(small_ids(), output_hidden_states=True)
    out.hidden_states[0].retain_grad()
    out.logits.flatten()[0].backward()
    assert out.hidden_states[0].grad is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(architecture, reentrant):
    ids = small_ids()
    gradients = []
    for checkpointing in (False, True):
        model = small_model(architecture, dropout=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        torch.manual_seed(4)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_every_weight_is_trained(architecture):
    model = small_model(architecture).train()
    model(small_ids(), labels=small_ids()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_feed_forward_chunking_is_harmless(architecture):
    model, ids = small_model(architecture), small_ids()
    before = model(ids).logits
    model.config.chunk_size_feed_forward = 1
    assert torch.equal(model(ids).logits, before)


def test_left_padding_with_position_ids(architecture):
    model, ids = small_model(architecture), small_ids()
    batch, mask = padded(torch.cat((ids, ids[:, :5]), 1), [5, 5], "left")
    for masked in (0, 1):
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, masked)
        logits = model(batch, attention_mask=mask, position_ids=positions).logits[:, -1]
        assert torch.allclose(logits, model(ids).logits[:, -1], atol=1e-5)


def test_the_cache_is_returned_on_request_alone(architecture):
    model, ids = small_model(architecture), small_ids()
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids).past_key_values.get_seq_length() == 50
    assert model.train()(ids).past_key_values is None


def test_attention_implementations_give_the_same(architecture, tmp_path):
    model, ids = small_model(architecture), small_ids()
    model.save_pretrained(tmp_path)
    for implementation in ("eager", "sdpa") if type(model)._supports_sdpa else ("eager",):
        loaded = type(model).from_pretrained(tmp_path, attn_implementation=implementation)
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_configurations_take_what_transformers_sets(architecture):
    config_class = MODELS[architecture].config_class
    common = {
        "output_hidden_states": True,
        "return_dict": False,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["X"],
        "id2label": {0: "a"},
        "label2id": {"a": 0},
        "num_labels": 1,
        "problem_type": "regression",
        "name_or_path": "x",
        "bos_token_id": 1,
    }
    config = config_class(**common)
    assert config.dtype == torch.float16
    assert config.bos_token_id == 1
    again = config_class.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_a_saved_configuration_of_another_version_loads(architecture):
    """Keys that only another version of transformers knows are no reason to refuse a model."""
    saved = {**MODELS[architecture].config_class().to_dict(), "a_key_of_tomorrow": 1}
    MODELS[architecture].config_class.from_dict(saved)
