"""Models: fields and settings import quickly; everything that needs torch loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retlab.models.causal_lm import CausalLM
    from retlab.models.configuration import ModelConfig
    from retlab.models.settings import ModelSettings


def config_from_section(
    section: ModelSettings,
    vocab_size: int | None = None,
    *,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> ModelConfig:
    """The Hugging Face configuration of a `model` section.

    `vocab_size` is the tokenizer's; the section's own, where it names one, must have room for it. A ValueError says
    what does not fit. `match_parameters_of` is not resolved here: see `counting.match_intermediate_size`.
    """
    from retlab.models.configuration import CONFIGS

    values = section.model_fields_as_dict()
    if vocab_size is not None and values.setdefault("vocab_size", vocab_size) < vocab_size:
        raise ValueError(
            f"model.vocab_size is {values['vocab_size']}, but the tokenizer has {vocab_size} tokens: raise it or "
            "leave it null."
        )
    return CONFIGS[section.architecture](
        **values, pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id
    )


def build_model(section: ModelSettings | ModelConfig, vocab_size: int | None = None) -> CausalLM:
    """A new model from a `model` section (and the tokenizer's vocabulary) or from a Hugging Face configuration."""
    from retlab.models.causal_lm import MODELS
    from retlab.models.configuration import ModelConfig

    config = section if isinstance(section, ModelConfig) else config_from_section(section, vocab_size)
    return MODELS[config.architecture](config)
