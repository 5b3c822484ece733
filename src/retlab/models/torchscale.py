"""Weights of TorchScale's RetNet (`torchscale.architecture.retnet.RetNetDecoder`) as ours, and back.

The two compute the same function of the same weights where the norms' epsilon is negligible; at TorchScale's default
epsilon, our `torchscale_normalizer` reproduces its parallel form. torchscale itself is not needed here.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from retlab.mixers.retention_forms import retnet_log_decay
from retlab.models.causal_lm import RetNetModelHF
from retlab.models.configuration import RetNetConfig

_PREFIXES = ("model_hf.decoder_stack.", "decoder_stack.")
_ACTIVATIONS = {"gelu": "gelu", "swish": "silu", "relu": "relu"}
_OUTER = {
    "embed_tokens.weight": "embed_tokens.weight",
    "layer_norm.weight": "body.norm.weight",
    "output_projection.weight": "lm_head.weight",
}
# Of one layer: TorchScale's name, which of our two blocks it belongs to, and its name there.
_INNER = {
    "retention_layer_norm.weight": (0, "norm.weight"),
    **{f"retention.{name}_proj.weight": (0, f"mixer.{name}_proj.weight") for name in ("q", "k", "v", "g", "out")},
    "final_layer_norm.weight": (1, "norm.weight"),
    **{f"ffn.{name}.weight": (1, f"mixer.{name}.weight") for name in ("fc1", "gate", "fc2")},
}
_BUFFERS = ("retnet_rel_pos.angle", "retnet_rel_pos.decay")
# Options of TorchScale's that change the function, with the only value that is ours.
_FIXED = {
    "deepnorm": False,
    "decoder_normalize_before": True,
    "layernorm_embedding": False,
    "moe_freq": 0,
    "multiway": False,
}


def from_torchscale(
    state_dict: Mapping[str, torch.Tensor], torchscale_config: Any = None, **overrides: Any
) -> tuple[RetNetConfig, dict[str, torch.Tensor]]:
    """Our configuration and state dict for the weights of a RetNetDecoder.

    Args:
        state_dict: of a RetNetDecoder; 301r_retnet's prefixes (`decoder_stack.`) are taken off.
        torchscale_config: its configuration (an object or a mapping) for what weights do not show: number of heads
            where the buffers are missing, activation, epsilon, dropout, context, scaled embeddings. TorchScale's
            defaults stand in for None and for what it lacks.
        overrides: fields of `RetNetConfig` to set, such as `torchscale_normalizer=True` or `eos_token_id`.

    Returns:
        The configuration, and a state dict for `RetNetModelHF(config).load_state_dict`. Embeddings that TorchScale
        scales on the fly come out scaled.

    Raises:
        ValueError: the weights are of a model that ours cannot represent: 301r_retnet's LayerNorms, mixtures of
            experts, post-norm, an embedding norm, other decays; or something is missing.
    """
    settings = _settings(torchscale_config)
    weights = _without_prefix(state_dict)
    _refuse_other_models(weights, settings)
    heads = _number_of_heads(weights, settings)
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    names = _our_names(layers)
    unknown = [name for name in weights if name not in names and name not in _BUFFERS]
    missing = [name for name in names if name not in weights]
    if missing == ["output_projection.weight"] and settings.get("share_decoder_input_output_embed", False):
        missing = []
    for problem, found in (("no", missing), ("an unknown", unknown)):
        if found:
            raise ValueError(
                f"The state dict has {problem} tensor {found[0]!r}: it is not a RetNetDecoder's as a whole."
            )

    ours = {ours: weights[theirs] for theirs, ours in names.items() if theirs in weights}
    head = ours.setdefault("lm_head.weight", ours["embed_tokens.weight"])
    if not settings.get("no_scale_embedding", True):
        ours["embed_tokens.weight"] = ours["embed_tokens.weight"] * ours["embed_tokens.weight"].shape[1] ** 0.5
    vocab_size, hidden_size = ours["embed_tokens.weight"].shape
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "value_size": weights["layers.0.retention.v_proj.weight"].shape[0],
        "intermediate_size": weights["layers.0.ffn.fc1.weight"].shape[0],
        "hidden_act": _activation(settings),
        "rms_norm_eps": settings.get("layernorm_eps", 1e-6),
        "dropout": settings.get("dropout", 0.0),
        "activation_dropout": settings.get("activation_dropout", 0.0),
        "max_position_embeddings": settings.get("max_target_positions", 1024),
        "tie_word_embeddings": torch.equal(head, ours["embed_tokens.weight"]),
    }
    return RetNetConfig(**{**fields, **overrides}), ours


def to_torchscale(model: RetNetModelHF) -> dict[str, torch.Tensor]:
    """The state dict of a RetNetDecoder with this model's weights; `torchscale_settings` says how to build it."""
    if not isinstance(model, RetNetModelHF):
        raise ValueError(f"TorchScale's RetNet takes the weights of a RetNetModelHF, not of a {type(model).__name__}.")
    ours = model.state_dict()
    weights = {theirs: ours[name] for theirs, name in _our_names(model.config.num_hidden_layers).items()}
    return weights | _buffers(model.config.num_attention_heads, model.config.hidden_size)


def torchscale_settings(config: RetNetConfig) -> dict[str, Any]:
    """The keyword arguments of TorchScale's own RetNetConfig for the same model."""
    return {
        "vocab_size": config.vocab_size,
        "decoder_embed_dim": config.hidden_size,
        "decoder_layers": config.num_hidden_layers,
        "decoder_retention_heads": config.num_attention_heads,
        "decoder_value_embed_dim": config.value_size,
        "decoder_ffn_embed_dim": config.intermediate_size,
        "activation_fn": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.hidden_act],
        "layernorm_eps": config.rms_norm_eps,
        "dropout": config.dropout,
        "activation_dropout": config.activation_dropout,
        "max_target_positions": config.max_position_embeddings,
        "share_decoder_input_output_embed": config.tie_word_embeddings,
        "no_scale_embedding": True,
    }


def _settings(torchscale_config: Any) -> dict[str, Any]:
    if torchscale_config is None:
        return {}
    return dict(torchscale_config if isinstance(torchscale_config, Mapping) else vars(torchscale_config))


def _our_names(layers: int) -> dict[str, str]:
    """Our name of every weight by TorchScale's."""
    inner = {
        f"layers.{layer}.{theirs}": f"body.blocks.{2 * layer + block}.{ours}"
        for layer in range(layers)
        for theirs, (block, ours) in _INNER.items()
    }
    return _OUTER | inner


def _without_prefix(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state_dict):
            return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return dict(state_dict)


def _refuse_other_models(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    biases = [name for name in weights if name.endswith("layer_norm.bias")]
    if biases:
        raise ValueError(
            f"These are weights of 301r_retnet: their norms are LayerNorms with biases ({biases[0]!r}), which the RMS "
            "norms of this RetNet cannot represent; such a model has to be trained anew."
        )
    for name, value in _FIXED.items():
        if settings.get(name, value) != value:
            raise ValueError(
                f"TorchScale's option {name} is {settings[name]!r}, but this RetNet exists as with {value!r} only."
            )
    if not any(re.fullmatch(r"layers\.\d+\.retention\.q_proj\.weight", name) for name in weights):
        raise ValueError("The state dict is not that of a RetNetDecoder: it has no layers.0.retention.q_proj.weight.")


def _number_of_heads(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> int:
    decay = weights.get("retnet_rel_pos.decay")
    if decay is None:
        if "decoder_retention_heads" not in settings:
            raise ValueError(
                "The state dict does not show the number of heads (it has no retnet_rel_pos.decay): give "
                "torchscale_config={'decoder_retention_heads': ...}."
            )
        return int(settings["decoder_retention_heads"])
    # The buffer may have been rounded to bfloat16.
    if not torch.allclose(decay.double().cpu(), retnet_log_decay(len(decay), torch.device("cpu")), rtol=1e-2):
        raise ValueError("The decays (retnet_rel_pos.decay) are not those of a RetNet: log(1 - 2^(-5 - head)).")
    return len(decay)


def _activation(settings: Mapping[str, Any]) -> str:
    name = settings.get("activation_fn", "gelu")
    if name not in _ACTIVATIONS:
        raise ValueError(f"The activation_fn is {name!r}; this RetNet has {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _buffers(heads: int, hidden_size: int) -> dict[str, torch.Tensor]:
    """The positions' buffers with TorchScale's float32 rounding, to the bit; nothing here reads them."""
    frequencies = 1.0 / 10_000 ** torch.linspace(0, 1, hidden_size // heads // 2)
    decay = torch.log(1 - 2 ** (-5 - torch.arange(heads, dtype=torch.float32)))
    return dict(zip(_BUFFERS, (frequencies.repeat_interleave(2), decay), strict=True))
