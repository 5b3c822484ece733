"""Hugging Face configurations: the fields of `fields.py`, saved as `config.json`, with 301r's names as aliases."""

import importlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from transformers import PretrainedConfig

from .fields import HybridFields, ModelFields, RetNetFields, TransformerFields


class ModelConfig(PretrainedConfig, ModelFields):
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but a configuration of another kind of model is refused, not warned about."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(f"This configuration describes a {kind} model, but {cls.__name__} a {cls.model_type}.")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a model folder, a `config.json`, or the `model` section of an experiment's YAML file."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            raise ValueError(f"There is no configuration file {path}.")
        text = path.read_text(encoding="utf-8")
        try:
            values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no configuration: expected a mapping of keys to values.")
        return cls.from_dict(values) if path.suffix == ".json" else cls._from_experiment(path, values)

    @classmethod
    def _from_experiment(cls, path: Path, values: dict[str, Any]) -> Self:
        """The configuration that the `model` section of an experiment describes."""
        section: dict[str, Any] = {"vocab_size": None, **values.get("model", values)}
        architecture = section.pop("architecture", cls.architecture)
        if architecture != cls.architecture:
            raise ValueError(f"{path} describes a {architecture}, but {cls.__name__} a {cls.architecture}.")
        if section.pop("match_parameters_of", None) is not None:
            raise ValueError(f"{path} leaves intermediate_size to match_parameters_of, which only the stages resolve.")
        if section["vocab_size"] is None:
            section["vocab_size"] = (values.get("tokenizer") or {}).get("vocab_size")
        if section["vocab_size"] is None:
            raise ValueError(f"{path} names no vocab_size: set it in its model section.")
        # YAML 1.1 reads 1e-6 as text.
        floats = {name for name, item in cls.fields_class().__dataclass_fields__.items() if item.type is float}
        section |= {key: float(section[key]) for key in floats & set(section)}
        return cls(**section)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers, with the modelling code: the folder loads where RetLab is not installed."""
        # In an exported copy of this code, which transformers itself saves, there is no such module.
        if __name__ == "retlab.models.configuration":
            importlib.import_module("retlab.models.bundle").add_modelling_code(self, Path(save_directory))
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        known = {*self.get_params(), *self.attribute_map}
        unknown = [key for key in kwargs if key not in known and not hasattr(PretrainedConfig, key)]
        unknown = [key for key in unknown if key not in _TRANSFORMERS_KEYS]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no key {unknown[0]!r}; it has {', '.join(sorted(known))}.")


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
