"""Hugging Face configurations: the fields of `fields.py`, saved as `config.json`, with 301r's names as aliases."""

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from transformers import PretrainedConfig

from ..mixers.base import refuse
from ..mixers.dilated_attention import branch_misfits
from .fields import HybridFields, LongNetFields, ModelFields, RetNetFields, TransformerFields, check_value


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
        architecture = kwargs.pop("architecture", self.architecture)
        if architecture != self.architecture:
            raise ValueError(f"{type(self).__name__} describes a {self.architecture}, not a {architecture}.")
        if "transformers_version" not in kwargs and self.transformers_version is None:
            self.refuse_unknown(kwargs)
        self.check()
        self.complete()
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Raise a ValueError with one sentence about the first value that cannot be."""
        super().check()
        check_value("pad_token_id", self.pad_token_id, int | None, {"lt": self.vocab_size})

    def get_params(self) -> dict[str, Any]:
        """The hyperparameters as plain values, without what only transformers needs."""
        return {name: getattr(self, name) for name in self.fields_class().__dataclass_fields__}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but a configuration of another kind of model is refused, not warned about."""
        if "decoder_embed_dim" in config_dict:
            raise ValueError(
                f"This configuration is one of 301r_retnet or TorchScale (it has decoder_embed_dim), not a "
                f"{cls.__name__}: see retlab.models.torchscale for which of their weights can be converted."
            )
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
            raise ValueError(
                f"There is no configuration file {path}: name one, or a model folder such as runs/NAME/model."
            )
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if path.suffix == ".json" else _with_numbers(yaml.safe_load(text))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no configuration: expected a mapping of keys to values.")
        return cls.from_dict(values) if path.suffix == ".json" else cls._from_experiment(path, values)

    @classmethod
    def _from_experiment(cls, path: Path, values: dict[str, Any]) -> Self:
        """The configuration that the `model` section of an experiment describes."""
        sections = values.get("model", values) or {}, values.get("tokenizer") or {}
        if not all(isinstance(section, dict) for section in sections):
            raise ValueError(
                f"{path} holds no configuration: expected its model and tokenizer sections to map keys to values."
            )
        section, tokenizer = {"architecture": cls.architecture, **sections[0]}, sections[1]
        if section["architecture"] != cls.architecture:
            raise ValueError(f"{path} describes a {section['architecture']}, but {cls.__name__} a {cls.architecture}.")
        if section.pop("match_parameters_of", None) is not None:
            raise ValueError(f"{path} leaves intermediate_size to match_parameters_of, which only the stages resolve.")
        if section.get("vocab_size") is None:
            section["vocab_size"] = tokenizer.get("vocab_size")
        if section["vocab_size"] is None:
            raise ValueError(f"{path} names no vocab_size: set it in its model section.")
        return cls(**section)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers, with the modelling code: the folder loads where RetLab is not installed."""
        # In an exported copy of this code, which transformers itself saves, there is no such module.
        if __name__ == "retlab.models.configuration":
            importlib.import_module("retlab.models.bundle").add_modelling_code(self, Path(save_directory))
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        """Raise a ValueError about the first key that neither this configuration nor transformers has."""
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

# 301r's names of what models of any blocks have, and of what those of one kind of block have.
_ALIASES = {
    "embed_dim": "hidden_size",
    "layers": "num_hidden_layers",
    "seq_len": "max_position_embeddings",
}
_HEAD_ALIASES = {**_ALIASES, "heads": "num_attention_heads", "ffn_dim": "intermediate_size"}


def _with_numbers(values: Any) -> Any:
    """Nested values of a YAML file with 1e-6 as a number; in YAML 1.1 it is text."""
    if isinstance(values, dict):
        return {key: _with_numbers(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_with_numbers(value) for value in values]
    is_number = isinstance(values, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", values)
    return float(values) if is_number else values


class RetNetConfig(ModelConfig, RetNetFields):
    """Configuration of `RetNetModelHF`."""

    model_type = "retlab_retnet"
    architecture = "retnet"
    attribute_map: ClassVar[dict[str, str]] = {**_HEAD_ALIASES, "value_embed_dim": "value_size"}

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.torchscale_normalizer:
            self.use_cache = False


class DecoderConfig(ModelConfig, TransformerFields):
    """Configuration of `TransformerModelHF`."""

    model_type = "retlab_transformer"
    architecture = "transformer"
    attribute_map: ClassVar[dict[str, str]] = _HEAD_ALIASES


class LongNetConfig(ModelConfig, LongNetFields):
    """Configuration of `LongNetModelHF`."""

    model_type = "retlab_longnet"
    architecture = "longnet"
    attribute_map: ClassVar[dict[str, str]] = {
        **_HEAD_ALIASES,
        "segment_length": "segment_lengths",
        "dilated_ratio": "dilation_ratios",
    }

    def check(self) -> None:
        """Raise a ValueError with one sentence about the first value that cannot be."""
        super().check()
        refuse(branch_misfits(self.segment_lengths, self.dilation_ratios, self.num_attention_heads))


class HybridConfig(ModelConfig, HybridFields):
    """Configuration of `HybridModelHF`."""

    model_type = "retlab_hybrid"
    architecture = "hybrid"
    attribute_map: ClassVar[dict[str, str]] = _ALIASES


CONFIGS: dict[str, type[ModelConfig]] = {
    config.architecture: config for config in (RetNetConfig, DecoderConfig, LongNetConfig, HybridConfig)
}
"""The configuration class of every architecture."""
