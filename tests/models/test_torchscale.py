"""TorchScale's state dicts into ours and back, and what cannot be converted."""

import pytest
import torch
from tests.models.small import small_ids, small_model
from tests.oracles.torchscale_decoder import parallel, torchscale_decoder

from retlab import RetNetModelHF
from retlab.models.torchscale import from_torchscale, to_torchscale, torchscale_settings

SETTINGS = {
    "vocab_size": 40,
    "decoder_embed_dim": 32,
    "decoder_retention_heads": 4,
    "decoder_value_embed_dim": 48,
    "decoder_ffn_embed_dim": 20,
    "decoder_layers": 2,
    "layernorm_eps": 1e-12,
}


def decoder_of(**changes):
    torch.manual_seed(0)
    return torchscale_decoder(**{**SETTINGS, **changes})


def loaded(config, weights) -> RetNetModelHF:
    model = RetNetModelHF(config).eval()
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def agree(decoder, model: RetNetModelHF) -> bool:
    ids = small_ids()
    return torch.allclose(model(ids).logits, parallel(decoder, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", [1, 4, 8])
def test_there_and_back_is_equal_to_the_bit(heads: int, tied: bool) -> None:
    decoder = decoder_of(share_decoder_input_output_embed=tied, decoder_retention_heads=heads)
    config, weights = from_torchscale(decoder.state_dict(), decoder.args)
    assert config.tie_word_embeddings == tied
    back = to_torchscale(loaded(config, weights))
    assert back.keys() == decoder.state_dict().keys()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype


@pytest.mark.parametrize("tied", [False, True])
def test_back_and_there_is_equal_to_the_bit(tied: bool) -> None:
    model = small_model("retnet", tie_word_embeddings=tied, hidden_act="silu", rms_norm_eps=1e-12)
    settings = torchscale_settings(model.config)
    decoder = torchscale_decoder(**settings)
    decoder.load_state_dict(to_torchscale(model))
    assert agree(decoder, model)
    config, weights = from_torchscale(decoder.state_dict(), settings)
    assert {**config.get_params(), "chunk_size": 16} == model.config.get_params()
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_sizes_come_from_the_weights() -> None:
    decoder = decoder_of(layernorm_eps=1e-6)
    config, _ = from_torchscale(decoder.state_dict())
    wanted, _ = from_torchscale(decoder.state_dict(), decoder.args)
    assert config.to_dict() == wanted.to_dict()


@pytest.mark.parametrize("activation", ["gelu", "swish", "relu"])
def test_activations(activation: str) -> None:
    decoder = decoder_of(activation_fn=activation)
    assert agree(decoder, loaded(*from_torchscale(decoder.state_dict(), decoder.args)))


@pytest.mark.parametrize("tied", [False, True])
def test_scaled_embeddings(tied: bool) -> None:
    decoder = decoder_of(no_scale_embedding=False, share_decoder_input_output_embed=tied)
    config, weights = from_torchscale(decoder.state_dict(), decoder.args)
    # The output projection is not scaled, so that the two are no longer one.
    assert not config.tie_word_embeddings
    assert agree(decoder, loaded(config, weights))


@pytest.mark.parametrize("prefix", ["decoder_stack.", "model_hf.decoder_stack."])
def test_prefixes_of_301r_are_taken_off(prefix: str) -> None:
    decoder = decoder_of()
    weights = {prefix + name: tensor for name, tensor in decoder.state_dict().items()}
    assert agree(decoder, loaded(*from_torchscale(weights, decoder.args)))


@pytest.mark.parametrize("prefix", ["decoder_stack.", "model_hf.decoder_stack."])
def test_checkpoints_of_301r_are_refused_by_name(prefix: str) -> None:
    weights = {prefix + name: tensor for name, tensor in decoder_of().state_dict().items()}
    for name in [name for name in weights if name.endswith("layer_norm.weight")]:
        weights[name.replace("weight", "bias")] = torch.zeros(32)
    with pytest.raises(ValueError, match="301r_retnet.*LayerNorms with biases"):
        from_torchscale(weights)


def test_shared_embeddings_without_a_projection() -> None:
    decoder = decoder_of(share_decoder_input_output_embed=True)
    weights = decoder.state_dict()
    del weights["output_projection.weight"]
    assert agree(decoder, loaded(*from_torchscale(weights, decoder.args)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("output_projection.weight"), "no tensor 'output_projection.weight'"),
        (lambda weights: weights.pop("layers.1.ffn.gate.weight"), "no tensor 'layers.1.ffn.gate.weight'"),
        (lambda weights: weights.pop("retnet_rel_pos.decay"), "number of heads"),
        (lambda weights: weights.update({"retnet_rel_pos.decay": torch.zeros(4)}), "decays"),
        (lambda weights: weights.update({"layers.0.moe_layer.x": torch.zeros(4)}), "unknown tensor 'layers.0.moe"),
        (lambda weights: weights.clear(), "not that of a RetNetDecoder"),
    ],
)
def test_other_weights_are_refused(change, words: str) -> None:
    weights = decoder_of().state_dict()
    change(weights)
    with pytest.raises(ValueError, match=words):
        from_torchscale(weights)


@pytest.mark.parametrize(
    "option", [{"deepnorm": True}, {"layernorm_embedding": True}, {"multiway": True}, {"moe_freq": 2}]
)
def test_options_that_this_retnet_does_not_have_are_refused(option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        from_torchscale(decoder_of().state_dict(), option)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="'tanh'"):
        from_torchscale(decoder_of().state_dict(), {"activation_fn": "tanh"})


def test_the_number_of_heads_can_be_given() -> None:
    decoder = decoder_of()
    weights = {name: tensor for name, tensor in decoder.state_dict().items() if "rel_pos" not in name}
    assert agree(decoder, loaded(*from_torchscale(weights, {"decoder_retention_heads": 4, "layernorm_eps": 1e-12})))


def test_only_a_retnet_goes_to_torchscale() -> None:
    with pytest.raises(ValueError, match="RetNetModelHF, not of a TransformerModelHF"):
        to_torchscale(small_model("transformer"))
