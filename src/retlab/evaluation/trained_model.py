"""A trained model as the evaluation uses it: loaded, checked, on its device, in its precision."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase
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
    """A causal language model in evaluation mode with the tokenizer of its folder."""

    model: CausalLM
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    bf16: bool

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        config = self.model.config
        assert isinstance(config, ModelConfig)
        return config

    @property
    def precision(self) -> str:
        """`bf16` (autocast; weights, logits and sums stay in float32) or `float32`."""
        return "bf16" if self.bf16 else "float32"

    @property
    def eos_id(self) -> int:
        """The end-of-text token, which also opens every document."""
        eos = self.config.eos_token_id
        assert eos is not None
        return eos[0] if isinstance(eos, list) else eos

    @property
    def pad_id(self) -> int:
        """The padding token, or the end-of-text token of a model without one."""
        pad = self.config.pad_token_id
        return self.eos_id if pad is None else pad

    @property
    def carries_state(self) -> bool:
        """Whether a state of fixed size stands for all that was read, so that a text of any length can be."""
        return not any(cast(Block, block).mixer.keeps_tokens for block in self.model.body.blocks)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the model computes in its precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def kernel_lines(self, tokens: int) -> list[str]:
        """What every kind of mixer scores windows of so many tokens on, and why; scoring keeps documents apart."""
        use = KernelUse(self.device.type, torch.bfloat16 if self.bf16 else torch.float32, tokens, True, compiled=False)
        return [choice.line for choice in choose_kernels(self.model.body, self.config, use, refuse=False)]


def load_trained_model(section: EvaluateSection, folder: Path) -> TrainedModel:
    """Load a model folder with its tokenizer.

    Raises:
        UserError: no GPU where one is asked for, the folder is missing, damaged or no model of RetLab's, or the model
            has no such form.
    """
    device = _device(section)
    config = _read_config(folder)
    model = _load_weights(config, folder)
    tokenizer = shared_tokenizer(folder)
    if section.form != "auto":
        try:
            model.set_form(section.form)
        except ValueError as error:
            raise UserError(f"evaluate.form is {section.form}, but: {error} Set it to auto.") from None
    size = sum(weight.numel() for weight in model.parameters())
    with memory_errors(lambda: (f"a model of {size:,} parameters", "set evaluate.device to cpu")):
        torch.nn.Module.to(model, device)
    bf16 = section.precision == "bf16" or (section.precision == "auto" and _has_bf16(device))
    return TrainedModel(model.eval(), tokenizer, device, bf16)


def _load_weights(config: ModelConfig, folder: Path) -> CausalLM:
    where = shown_path(folder)
    try:
        with _quiet():
            loaded: Any = MODELS[config.architecture].from_pretrained(
                folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        # transformers and safetensors each have their own errors for a file that is missing or damaged.
        raise UserError(
            f"the weights in {shown_path(folder)} cannot be loaded ({_reason(error)}); train the model anew"
        ) from None
    model, found = loaded
    # transformers would go on with random weights in the place of these.
    wrong = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if wrong:
        raise UserError(
            f"the weights in {where} do not fit its config.json ({wrong[0]} and others); train the model anew"
        )
    assert isinstance(model, CausalLM)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of transformers: what is wrong is said in one sentence here."""
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


def _read_config(folder: Path) -> ModelConfig:
    where = shown_path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{where} holds no trained model (config.json); run {script('train_model')} first")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, TypeError) as error:
        raise UserError(f"{where}/config.json describes no model that can be evaluated: {_reason(error)}") from None
    if not isinstance(config, ModelConfig):
        raise UserError(f"{where} holds a {config.model_type} model; only RetLab's own models are evaluated")
    if config.eos_token_id is None:
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
