"""A trained model as a portable Hugging Face folder, for machines where RetLab is not installed."""

import copy
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from retlab.data.tokenizer import shared_tokenizer
from retlab.models.causal_lm import CausalLM
from retlab.models.configuration import ModelConfig
from retlab.models.model_card import ModelCardFacts, model_card


def export_model(model: CausalLM, folder: Path, *, tokenizer_folder: Path, facts: ModelCardFacts | None = None) -> None:
    """Write a model with its configuration, generation settings, modelling code, tokenizer and card.

    The same model and tokenizer give the same files, byte for byte; README.md also depends on `facts`.

    Args:
        model: weights and configuration.
        folder: where to write; made if it does not exist.
        tokenizer_folder: the tokenizer that encoded the training text.
        facts: what the card says beside the model's sizes.

    Raises:
        ValueError: the tokenizer has more tokens than the model's vocabulary.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    tokenizer = shared_tokenizer(tokenizer_folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer in {tokenizer_folder} has {len(tokenizer)} tokens, but the model a vocabulary of "
            f"{config.vocab_size}: it was trained with another one."
        )
    model.save_pretrained(folder)
    generation_config(config).save_pretrained(folder)
    _opening_with_end_of_text(tokenizer).save_pretrained(folder)
    (folder / "README.md").write_text(model_card(config, facts or ModelCardFacts()), encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        # safetensors lets nobody else read its files; who may read the configuration may read these too.
        weights.chmod((folder / "config.json").stat().st_mode)


def _opening_with_end_of_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with the end-of-text token as that of a beginning, as the model was trained.

    Who scores a text from its first token on puts the tokenizer's token of a beginning before it: lm-evaluation-harness
    does. One that the model has never seen would be a context of no meaning.
    """
    opening = copy.deepcopy(tokenizer)
    opening.bos_token = tokenizer.eos_token
    return opening


def generation_config(config: ModelConfig) -> GenerationConfig:
    """What `generate()` does by default: greedily, up to the end-of-text token.

    It sets no length: transformers would warn of it whenever a caller gives one.
    """
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return GenerationConfig(
        # Documents are separated by the end-of-text token alone, so that is what a text from nothing begins after.
        bos_token_id=eos if eos is not None else config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id if config.pad_token_id is not None else eos,
        use_cache=config.use_cache,
    )
