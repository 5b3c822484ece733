"""Hugging Face configurations: the fields of `fields.py`, saved as `config.json`, with 301r's names as aliases."""

from typing import Any, ClassVar

from transformers import PretrainedConfig

from .fields import HybridFields, ModelFields, RetNetFields, TransformerFields


class ModelConfig(PretrainedConfig):
    """What the configurations of all architectures share: special tokens, the cache switch, checks.

    Values are checked on construction; an unknown key is a ValueError, except in a file that transformers itself
    saved (another version of it may write keys that this one does not know).
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    architecture: ClassVar[str] = ""

    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for alias in [key for key in kwargs if key in self.attribute_map]:
            setattr(self, alias, kwargs.pop(alias))
        if "transformers_version" not in kwargs and self.transformers_version is None:
            self._refuse_unknown(kwargs)
        self.complete()
        self.check()
        super().__post_init__(**kwargs)

    def complete(self) -> None:
        """Replace the defaults that follow from other fields by their values."""
        for name in ("value_size", "intermediate_size"):
            if name in self.get_params() and getattr(self, name) is None:
                setattr(self, name, 2 * self.hidden_size)

    def get_params(self) -> dict[str, Any]:
        """The hyperparameters as plain values, without what only transformers needs."""
        return {name: getattr(self, name) for name in self.fields_class().__dataclass_fields__}

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        known = {*self.get_params(), *self.attribute_map}
        unknown = [key for key in kwargs if key not in known and not hasattr(PretrainedConfig, key)]
        unknown = [key for key in unknown if key not in _TRANSFORMERS_KEYS]
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no key {unknown[0]!r}; it has {', '.join(sorted(known))}."
            )


# Arguments that PretrainedConfig takes without declaring them as fields.
_TRANSFORMERS_KEYS = {
    "attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path", "_name_or_path",
    "num_labels", "output_attentions", "per_layer_config", "torch_dtype", "transformers_weights",
}  # fmt: skip

_ALIASES = {
    "embed_dim": "hidden_size",
    "layers": "num_hidden_layers",
    "seq_len": "max_position_embeddings",
}


class RetNetConfig(ModelConfig, RetNetFields):
    """Configuration of `RetNetModelHF`."""

    model_type = "retlab_retnet"
    architecture = "retnet"
    attribute_map: ClassVar[dict[str, str]] = {
        **_ALIASES,
        "heads": "num_attention_heads",
        "ffn_dim": "intermediate_size",
        "value_embed_dim": "value_size",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.torchscale_normalizer:
            self.use_cache = False


class DecoderConfig(ModelConfig, TransformerFields):
    """Configuration of `TransformerModelHF`."""

    model_type = "retlab_transformer"
    architecture = "transformer"
    attribute_map: ClassVar[dict[str, str]] = {
        **_ALIASES,
        "heads": "num_attention_heads",
        "ffn_dim": "intermediate_size",
    }


class HybridConfig(ModelConfig, HybridFields):
    """Configuration of `HybridModelHF`."""

    model_type = "retlab_hybrid"
    architecture = "hybrid"
    attribute_map: ClassVar[dict[str, str]] = _ALIASES


CONFIGS: dict[str, type[ModelConfig]] = {
    config.architecture: config for config in (RetNetConfig, DecoderConfig, HybridConfig)
}
"""The configuration class of every architecture."""
