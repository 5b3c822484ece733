"""A trained model as the evaluation uses it: loaded, checked, on its device, in its precision."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from retlab.data.tokenizer import shared_tokenizer
from retlab.errors import UserError
from retlab.evaluation.settings import EvaluateSection
from retlab.memory import memory_errors
from retlab.models.body import Block
from retlab.models.causal_lm import MODELS, CausalLM
from retlab.models.configuration import ModelConfig
from retlab.models.kernel_choice import KernelUse, choose_kernels
from retlab.section import script, shown_path


@dataclass(frozen=True)
class TrainedModel:
    """A causal language model in evaluation mode with the tokenizer of its folder: RetLab's own, or any other."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    bf16: bool
    folder: Path

    @property
    def ours(self) -> CausalLM | None:
        """The model, if it is RetLab's own; these also know document boundaries, forms and states."""
        return self.model if isinstance(self.model, CausalLM) else None

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def architecture(self) -> str:
        """`retnet`, `transformer`, `longnet`, or what transformers calls another model, such as `llama`."""
        return self.config.architecture if isinstance(self.config, ModelConfig) else self.config.model_type

    @property
    def window(self) -> int | None:
        """Tokens that the model was made for at most; None where its configuration names no number."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def precision(self) -> str:
        """`bf16` (autocast; weights, logits and sums stay in float32) or `float32`."""
        return "bf16" if self.bf16 else "float32"

    @property
    def eos_id(self) -> int:
        """The end-of-text token, which closes every document."""
        eos = self.config.eos_token_id if self.ours else self.tokenizer.eos_token_id
        assert eos is not None
        return eos[0] if isinstance(eos, list) else eos

    @property
    def opening_id(self) -> int:
        """The token that opens every document: the end-of-text token, or another model's own for a beginning."""
        bos = None if self.ours else self.tokenizer.bos_token_id
        return self.eos_id if bos is None else bos

    @property
    def pad_id(self) -> int:
        """The padding token, or the end-of-text token of a model without one."""
        pad = self.config.pad_token_id
        return self.eos_id if pad is None else pad

    @property
    def carries_state(self) -> bool:
        """Whether a state of fixed size stands for all that was read, so that a text of any length can be."""
        own = self.ours
        return own is not None and not any(cast(Block, block).mixer.keeps_tokens for block in own.body.blocks)

    def with_state(self) -> CausalLM:
        """RetLab's own model, where `evaluate.carry_state` is asked for. Raises UserError if it carries none."""
        own = self.ours
        if own is None or not self.carries_state:
            raise UserError(
                f"evaluate.carry_state is true, but a {self.architecture} model keeps no state of fixed size; set it to"
                " false"
            )
        return own

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the model computes in its precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def describe(self) -> dict[str, Any]:
        """Architecture and sizes as plain values."""
        return {
            "architecture": self.architecture,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "vocab_size": self.config.vocab_size,
        }

    def kernel_lines(self, tokens: int) -> list[str]:
        """What every kind of mixer scores windows of so many tokens on, and why; scoring keeps documents apart."""
        own = self.ours
        if own is None:
            return []
        use = KernelUse(self.device.type, torch.bfloat16 if self.bf16 else torch.float32, tokens, True, compiled=False)
        assert isinstance(own.config, ModelConfig)
        return [choice.line for choice in choose_kernels(own.body, own.config, use, refuse=False)]


def load_trained_model(section: EvaluateSection, folder: Path, again: str | None = None) -> TrainedModel:
    """Load a model folder with its tokenizer.

    Args:
        section: device, precision and form.
        folder: the model.
        again: what to do about a folder that cannot be used, in words; to train the model, if nothing is said.

    Raises:
        UserError: no GPU where one is asked for, the folder is missing, damaged or no model, or the model has no such
            form.
    """
    device = _device(section)
    again = again or "train the model anew"
    config = _read_config(folder)
    model = _load_weights(config, folder, again)
    tokenizer = shared_tokenizer(folder)
    if not isinstance(model, CausalLM) and tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {shown_path(folder)} has no end-of-text token, so no document can be scored")
    if section.form != "auto":
        try:
            if not isinstance(model, CausalLM):
                raise ValueError(f"{config.model_type} has no mixer with more than one form.")
            model.set_form(section.form)
        except ValueError as error:
            raise UserError(f"evaluate.form is {section.form}, but: {error} Set it to auto.") from None
    size = sum(weight.numel() for weight in model.parameters())
    with memory_errors(lambda: (f"a model of {size:,} parameters", "set evaluate.device to cpu")):
        torch.nn.Module.to(model, device)
    bf16 = section.precision == "bf16" or (section.precision == "auto" and _has_bf16(device))
    return TrainedModel(model.eval(), tokenizer, device, bf16, folder)


def _load_weights(config: PreTrainedConfig, folder: Path, again: str) -> PreTrainedModel:
    where = shown_path(folder)
    kind = MODELS[config.architecture] if isinstance(config, ModelConfig) else AutoModelForCausalLM
    try:
        with quiet_transformers():
            # Safetensors alone: other formats can run code.
            loaded: Any = kind.from_pretrained(
                folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        # transformers and safetensors each have their own errors for a file that is missing or damaged.
        raise UserError(f"the weights in {where} cannot be loaded ({_reason(error)}); {again}") from None
    model, found = loaded
    # transformers would go on with random weights in the place of these.
    wrong = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if wrong:
        raise UserError(f"the weights in {where} do not fit its config.json ({wrong[0]} and others); {again}")
    assert isinstance(model, PreTrainedModel)
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no report of transformers: what is wrong is said in one sentence by the caller."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _read_config(folder: Path) -> PreTrainedConfig:
    where = shown_path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{where} holds no trained model (config.json); run {script('train_model')} first")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, TypeError) as error:
        raise UserError(f"{where}/config.json describes no model that can be evaluated: {_reason(error)}") from None
    kinds = getattr(config, "architectures", None) or ["ForCausalLM"]
    writes = any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)
    if not isinstance(config, ModelConfig) and not (writes and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise UserError(f"{where} holds a {config.model_type} model, which is no causal language model")
    if isinstance(config, ModelConfig) and config.eos_token_id is None:
        raise UserError(f"{where}/config.json names no end-of-text token (eos_token_id), so no document can be scored")
    return config


def _device(section: EvaluateSection) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if section.device == "cuda" and not has_gpu:
        raise UserError(
            "evaluate.device is cuda, but torch sees no GPU here; set it to cpu or auto, or check the driver"
        )
    return torch.device("cuda" if has_gpu and section.device != "cpu" else "cpu")


def _has_bf16(device: torch.device) -> bool:
    # bf16 on a CPU without special instructions is an emulation, 20 times slower than float32.
    return device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
