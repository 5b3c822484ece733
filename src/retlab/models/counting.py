"""Parameter and operation counts, and the feed-forward width that makes two models comparable."""

import dataclasses
from typing import NamedTuple

import torch

from retlab.mixers import Mixer
from retlab.models.body import Body
from retlab.models.fields import HybridFields, ModelFields


class ParameterCount(NamedTuple):
    """Parameters of a model; `embedding` counts the embedding matrix and, unless tied, the output projection."""

    total: int
    embedding: int
    non_embedding: int


def body_without_weights(config: ModelFields, layers: int | None = None) -> Body:
    """The model's body, or one with so many layers, without storage behind its weights."""
    layers = config.num_hidden_layers if layers is None else layers
    with torch.device("meta"):
        return Body(config.hidden_size, config.block_list(), layers, config.rms_norm_eps)


def count_parameters(config: ModelFields) -> ParameterCount:
    """Count the parameters of the model that a configuration describes, without building its weights."""
    # All layers are alike.
    one, two = (sum(x.numel() for x in body_without_weights(config, layers).parameters()) for layers in (1, 2))
    non_embedding = one + (config.num_hidden_layers - 1) * (two - one)
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return ParameterCount(non_embedding + embedding, embedding, non_embedding)


def flops_per_token(config: ModelFields, sequence_length: int) -> float:
    """Floating point operations per trained token, forward and backward: 6 M + 3 sum over blocks of core(T).

    M counts the weights that multiply a token: the body and the output projection, not the looked-up embedding.
    core(T) is a mixer's forward work per token that no weight accounts for: 2 T d for causal attention of width d
    (the half of the square that the mask leaves), 2 C (d + v) + 4 w v for chunkwise retention with key width w per
    head, values of width v and chunks of C tokens, 2 d sum of min(w, T) / r^2 over the branches of dilated attention
    with segments of w tokens and ratio r. The backward pass costs twice the forward pass; recomputation by gradient
    checkpointing is not counted.
    """
    body = body_without_weights(config)
    weights = sum(parameter.numel() for parameter in body.parameters()) + config.vocab_size * config.hidden_size
    mixers = [module for module in body.modules() if isinstance(module, Mixer)]
    core = sum(mixer.core_flops_per_token(sequence_length) for mixer in mixers)
    return 6.0 * weights + 3.0 * core


def with_intermediate_size(fields: ModelFields, intermediate_size: int) -> ModelFields:
    """The fields with another feed-forward width; in a hybrid, that of all its `glu` blocks."""
    if not isinstance(fields, HybridFields):
        return dataclasses.replace(fields, intermediate_size=intermediate_size)  # type: ignore[call-arg]
    blocks = [
        {**block, "intermediate_size": intermediate_size} if block["name"] == "glu" else block
        for block in fields.blocks
    ]
    return dataclasses.replace(fields, blocks=blocks)


def match_intermediate_size(fields: ModelFields, target_parameters: int, tolerance: float = 0.01) -> int:
    """The feed-forward width that brings the parameter count closest to `target_parameters`.

    A multiple of 8 is preferred where it lies within a tenth of the tolerance. A ValueError says that none lies
    within the tolerance.
    """
    smallest = count_parameters(with_intermediate_size(fields, 1)).total
    per_unit = count_parameters(with_intermediate_size(fields, 2)).total - smallest
    if per_unit == 0:
        raise ValueError("This model has no feed-forward block whose width could match the number of parameters.")
    # The count is linear in the width.
    exact = 1 + (target_parameters - smallest) / per_unit
    candidates = [(max(8, 8 * round(exact / 8)), tolerance / 10), (max(1, round(exact)), tolerance)]
    for width, allowed in candidates:
        if abs(smallest + (width - 1) * per_unit - target_parameters) <= allowed * target_parameters:
            return width
    width = candidates[-1][0]
    raise ValueError(
        f"No intermediate_size brings the model within {tolerance:.0%} of {target_parameters:,} parameters: the "
        f"closest, {width}, gives {smallest + (width - 1) * per_unit:,}. Change its other sizes."
    )
