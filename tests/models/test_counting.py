"""Counts against built models and against the formulas written out."""

import pytest
from tests.models.small import small_model

from retlab import DecoderConfig, HybridConfig, LongNetConfig, RetNetConfig
from retlab.models import build_model
from retlab.models.causal_lm import MODELS
from retlab.models.counting import (
    count_parameters,
    flops_per_token,
    match_intermediate_size,
    with_intermediate_size,
)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", MODELS)
def test_parameters_are_those_of_the_built_model(architecture, tied):
    model = small_model(architecture, tie_word_embeddings=tied)
    count = count_parameters(model.config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.embedding == 40 * 16 * (1 if tied else 2)
    assert count.non_embedding == count.total - count.embedding


def test_the_published_formulas():
    """On top of 6 N: 3 L (6 C d + 8 d w) for RetNet with values of 2 d, 6 L T d for the Transformer.

    For LongNet it is the Transformer's with the sum over branches of min(w, T) / r^2 in the place of T.
    """
    retnet = RetNetConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, chunk_size=32, vocab_size=500)
    weights = count_parameters(retnet).non_embedding + 500 * 128
    assert flops_per_token(retnet, 512) == 6 * weights + 3 * 3 * (6 * 32 * 128 + 8 * 128 * 64)
    assert flops_per_token(retnet, 512) == flops_per_token(retnet, 4096)
    decoder = DecoderConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, vocab_size=500)
    weights = count_parameters(decoder).non_embedding + 500 * 128
    assert flops_per_token(decoder, 512) == 6 * weights + 6 * 3 * 512 * 128
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 500}
    longnet = LongNetConfig(**sizes, segment_lengths=[64, 1024], dilation_ratios=[1, 2])
    assert flops_per_token(longnet, 512) == 6 * weights + 6 * 3 * (64 + 512 / 4) * 128
    assert flops_per_token(longnet, 4096) == 6 * weights + 6 * 3 * (64 + 1024 / 4) * 128


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(hidden_size=64, vocab_size=300),
        DecoderConfig(hidden_size=128, vocab_size=300, num_hidden_layers=6),
        LongNetConfig(hidden_size=64, vocab_size=300, num_hidden_layers=2),
        HybridConfig(hidden_size=64, vocab_size=300, num_hidden_layers=2),
    ],
)
def test_the_matched_width_is_within_one_percent(config):
    target = count_parameters(RetNetConfig(hidden_size=128, vocab_size=300, num_hidden_layers=4)).total
    matched = with_intermediate_size(config, match_intermediate_size(config, target))
    built = build_model(matched)
    assert abs(sum(parameter.numel() for parameter in built.parameters()) / target - 1) < 0.01


def test_no_width_matches():
    config = DecoderConfig(hidden_size=64, vocab_size=300)
    with pytest.raises(ValueError, match="within 1%"):
        match_intermediate_size(config, 1000)
    with pytest.raises(ValueError, match="no feed-forward block"):
        match_intermediate_size(HybridConfig(blocks=[{"name": "retention"}]), 10**6)
