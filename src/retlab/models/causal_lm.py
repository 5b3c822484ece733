"""Causal language models over the body, as real Hugging Face models: `RetNetModelHF` and its relatives."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from ..mixers import MIXERS, Mixer
from ..mixers.kernels import KERNELS, use_kernel
from .body import Body, BodyOutput
from .cache import StateCache
from .call import check_embeddings, documents_of_call, move_past_call, positions_of_call
from .configuration import DecoderConfig, HybridConfig, LongNetConfig, ModelConfig, RetNetConfig
from .decoding import Request, can_decode, decode
from .prompts import prompt_ahead

logger = logging.get_logger(__name__)


class CausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, body and output projection; what the architectures share.

    `config` is a configuration, a model folder, a configuration file (a model's JSON, an experiment's YAML), or None
    for the defaults; keyword arguments override single fields. The weights are new: `from_pretrained` loads trained
    ones.
    """

    config_class: type[ModelConfig]
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: ModelConfig | str | Path | None = None, **overrides: Any) -> None:
        config = self._resolve_config(config, overrides)
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.body = Body(
            config.hidden_size, config.block_list(), config.num_hidden_layers, config.rms_norm_eps, config.dropout
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"
        if not config.use_cache:
            self.generation_config.use_cache = False
        self._use_named_kernels(config)
        self.post_init()

    @classmethod
    def _resolve_config(cls, config: ModelConfig | str | Path | None, overrides: dict[str, Any]) -> ModelConfig:
        if isinstance(config, str | Path):
            config = cls.config_class.from_file(config)
        if config is None:
            return cls.config_class(**overrides)
        if not isinstance(config, cls.config_class):
            raise ValueError(f"{cls.__name__} needs a {cls.config_class.__name__}, not a {type(config).__name__}.")
        config.refuse_unknown(overrides)
        return cls.config_class(**{**config.to_dict(), **overrides}) if overrides else config

    def _init_weights(self, module: Any) -> None:
        """TorchScale's initialisation: N(0, 1 / hidden_size) for embedding and head, the layers' own for the rest."""
        if isinstance(module, nn.Embedding) or module is self.lm_head:
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
            padding = getattr(module, "padding_idx", None)
            if padding is not None and not getattr(module.weight, "_is_hf_initialized", False):
                with torch.no_grad():
                    module.weight[padding].zero_()
        elif next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()

    def _use_named_kernels(self, config: ModelConfig) -> None:
        """Run on the kernels that the configuration names; no weight depends on them, so a missing one is no error."""
        for name, kernel in KERNELS.items():
            mixers = [module for module in self.modules() if type(module) is MIXERS[name]]
            if mixers and getattr(config, kernel.setting, None) == kernel.name:
                obstacles = [use_kernel(mixer, kernel) for mixer in mixers]
                if obstacles[0] is not None:
                    logger.warning_once(f"{obstacles[0].reason}; running on PyTorch: {obstacles[0].remedy}")

    def get_params(self) -> dict[str, Any]:
        """The hyperparameters as plain values."""
        return {"architecture": self.config.architecture, **self.config.get_params()}

    def set_form(self, form: str | None) -> None:
        """Have every mixer that has several forms compute this one; None lets each choose by the length."""
        mixers = [module for module in self.modules() if isinstance(module, Mixer) and module.forms]
        if form is not None and not mixers:
            raise ValueError(f"{type(self).__name__} has no mixer with more than one form.")
        for mixer in mixers:
            mixer.set_form(form)

    def new_cache(self) -> StateCache:
        """An empty cache, as `past_key_values` takes it."""
        return StateCache()

    def encode(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: StateCache | None = None,
        output_hidden_states: bool = False,
    ) -> BodyOutput:
        """Everything but the output projection; the arguments are those of `forward`.

        A cache that is passed is brought up to date. The ids are not looked at, which a GPU would have to be waited
        for: `check_ids` does that.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, and not both.")
        if input_ids is not None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        cache = past_key_values
        check_embeddings(inputs_embeds, self.config.hidden_size, cache)
        documents, open_document = documents_of_call(inputs_embeds, attention_mask, segment_ids, cache)
        if position_ids is None:
            position_ids = positions_of_call(inputs_embeds, documents, cache)
        out = self.body(
            inputs_embeds,
            position_ids,
            documents,
            cache.states if cache is not None else None,
            output_hidden_states,
            keep_states=cache is not None,
        )
        if cache is not None:
            move_past_call(cache, out, documents, open_document)
        return out

    def check_ids(self, input_ids: torch.Tensor) -> None:
        """Raise a ValueError where an id is not in the vocabulary. On a GPU this waits for what was computed before."""
        words = self.embed_tokens.num_embeddings
        # A GPU's own answer would end its use by this process. A compiled graph cannot look; meta has no values.
        if not (input_ids.is_meta or torch.compiler.is_compiling()) and ((input_ids < 0) | (input_ids >= words)).any():
            raise ValueError(
                f"The token ids reach from {int(input_ids.min())} to {int(input_ids.max())}, but the model's "
                f"vocabulary has {words} tokens: was the text encoded with its tokenizer?"
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        segment_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, tokens, vocab_size) of the next tokens.

        `attention_mask` (batch, tokens), or with everything in the cache before them, is zero at padding, on either
        side. `segment_ids` (batch, tokens) says which document a token belongs to (negative is padding): nothing
        crosses a boundary. `labels` are the input ids themselves, -100 where there is no target: they are shifted
        here, and the loss is the mean over the targets. `position_ids` only turn rotary angles. `logits_to_keep`
        computes the logits of the last n tokens (0: of all), or of the places that a tensor lists. The models have
        no attention weights to return, so `attentions` is always None.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions:
            logger.warning_once(f"{type(self).__name__} computes no attention weights: `attentions` stays None.")
        if input_ids is not None:
            self.check_ids(input_ids)
        cache = self._cache_for(past_key_values, use_cache)
        out = self.encode(
            input_ids, attention_mask, segment_ids, inputs_embeds, position_ids, cache, bool(output_hidden_states)
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, hidden_states=out.hidden_states)

    def _cache_for(self, cache: Cache | None, use_cache: bool | None) -> StateCache | None:
        """The cache to read and update: the caller's, a new one, or none."""
        if cache is not None and not isinstance(cache, StateCache):
            raise ValueError(
                f"past_key_values must be a cache that this model returned, or its new_cache(), not a "
                f"{type(cache).__name__}."
            )
        if use_cache is None:
            use_cache = cache is not None or (self.config.use_cache and not self.training)
        if not use_cache or cache is not None:
            return cache
        return self.new_cache()

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Have `generate()` start from this model's own cache, where transformers would make one of keys and values."""
        if generation_config.use_cache is False or model_kwargs.get("past_key_values") is not None:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        elif generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(f"{type(self).__name__} has its own cache: leave cache_implementation unset.")
        else:
            model_kwargs["past_key_values"] = self.new_cache()
            model_kwargs["past_key_values"].is_temporary = True

    def generate(self, inputs: Any = None, *args: Any, **options: Any) -> Any:
        """Transformers' `generate()`, with the prompt on its way to the GPU before the call is prepared."""
        prompt = None if args else options.get("input_ids") if inputs is None else inputs
        with prompt_ahead(self, prompt, options):
            return super().generate(inputs, *args, **options)  # type: ignore[misc]

    def _sample(
        self,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Greedy decoding and sampling: transformers' loop, over memory that never moves where that can be."""
        request = Request(input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs)
        if can_decode(self, request, synced_gpus):
            return decode(self, request)
        return super()._sample(  # type: ignore[misc]
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
        )


class RetNetModelHF(CausalLM):
    """A RetNet: retention and a gated linear unit per layer, constant memory per generated token."""

    config_class = RetNetConfig
    _is_stateful = True


class TransformerModelHF(CausalLM):
    """A Transformer with rotary positions, and otherwise the RetNet's feed-forward, norms and initialisation."""

    config_class = DecoderConfig
    _supports_sdpa = True


class LongNetModelHF(CausalLM):
    """A LongNet: dilated attention, and otherwise the Transformer; a cache of the open segments' kept tokens."""

    config_class = LongNetConfig
    _is_stateful = True


class HybridModelHF(CausalLM):
    """A model of any list of blocks."""

    config_class = HybridConfig
    _is_stateful = True
    _supports_sdpa = True


MODELS: dict[str, type[CausalLM]] = {
    model.config_class.architecture: model
    for model in (RetNetModelHF, TransformerModelHF, LongNetModelHF, HybridModelHF)
}
"""The model class of every architecture."""

# Not in an exported copy of this code: transformers finds that through its folder's config.json.
if __name__ == "retlab.models.causal_lm":
    for _model in MODELS.values():
        AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(_model.config_class, _model, exist_ok=True)
