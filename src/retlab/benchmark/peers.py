"""Other libraries' models as contestants, of the same sizes as ours; each with its own loss, where it has one."""

import importlib
import importlib.metadata
import importlib.util
import sys
from abc import abstractmethod
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retlab.benchmark.contestant import Contestant, StepTimes
from retlab.benchmark.plan import Device, Shape
from retlab.measuring import Marks


class Peer(Contestant):
    """A model of another library, trained in a plain loop."""

    architecture: ClassVar[str]
    "Architecture that it implements."
    package: ClassVar[str]
    "Distribution on PyPI."
    module: ClassVar[str]
    "What to import."
    install: ClassVar[str]
    "How to install it beside RetLab."
    needs_gpu: ClassVar[bool] = False
    title: ClassVar[str]
    "Library and model as the table calls it."
    modes: ClassVar[tuple[str, ...]]
    "How its training is run where RetLab's is compiled."

    @classmethod
    def missing(cls, device: Device) -> str | None:
        """Why it cannot be measured here, or None."""
        if importlib.util.find_spec(cls.module) is None:
            return f"not installed: {cls.install}"
        if cls.needs_gpu and device != "cuda":
            return "runs on an NVIDIA GPU only"
        return None

    @classmethod
    def version(cls) -> str:
        """Name and version of the distribution."""
        try:
            return f"{cls.package} {importlib.metadata.version(cls.package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{cls.package} of unknown version"

    @abstractmethod
    def loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Mean cross entropy of the next token."""

    def training_times(self, shape: Shape, steps: int) -> StepTimes:
        torch.manual_seed(0)
        with self.device:
            model = self.build().train()
        ids = self.random_ids(shape).to(self.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.subject.train.learning_rate, fused=True)
        loss_of = torch.compile(self.loss, dynamic=False) if self.compiled else self.loss
        marks = Marks(self.device)
        marks.mark()
        for _ in range(steps):
            with self.autocast():
                loss = loss_of(model, ids)
            marks.mark()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            marks.mark()
        return StepTimes.of(marks)

    def sizes(self) -> dict[str, Any]:
        """The subject's hyperparameters by their Hugging Face names."""
        return self.config.get_params()


class TorchScale(Peer):
    """TorchScale's RetNet, parallel form; it has no `generate()`."""

    name = "torchscale"
    architecture, package, module = "retnet", "torchscale", "torchscale"
    # Its own requirements would replace torch.
    install = "pip install --no-deps torchscale==0.3.0"
    title = "torchscale"
    modes = ("eager", "compiled")
    has_generate = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._config = torchscale_module("architecture.config")
        self._retnet = torchscale_module("architecture.retnet")

    def build(self) -> nn.Module:
        sizes = self.sizes()
        config = self._config.RetNetConfig(
            vocab_size=sizes["vocab_size"],
            decoder_embed_dim=sizes["hidden_size"],
            decoder_value_embed_dim=sizes["value_size"],
            decoder_retention_heads=sizes["num_attention_heads"],
            decoder_ffn_embed_dim=sizes["intermediate_size"],
            decoder_layers=sizes["num_hidden_layers"],
            activation_fn={"silu": "swish"}.get(sizes["hidden_act"], sizes["hidden_act"]),
            share_decoder_input_output_embed=sizes["tie_word_embeddings"],
        )
        embedding = nn.Embedding(config.vocab_size, config.decoder_embed_dim)
        nn.init.normal_(embedding.weight, std=config.decoder_embed_dim**-0.5)
        model: nn.Module = self._retnet.RetNetDecoder(config, embed_tokens=embedding)
        return model

    def loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids)[0]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


class FlashLinearAttention(Peer):
    """flash-linear-attention's RetNet with its Triton kernels, under autocast in training."""

    name = "flash-linear-attention"
    architecture, package, module = "retnet", "flash-linear-attention", "fla"
    install = "pip install flash-linear-attention==0.6.0"
    needs_gpu = True
    title = "flash-linear-attention"
    # Its kernels are no part of a graph.
    modes = ("autocast",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._models = importlib.import_module("fla.models")

    def build(self) -> nn.Module:
        sizes = self.sizes()
        config = self._models.RetNetConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            expand_k=1.0,
            expand_v=sizes["value_size"] / sizes["hidden_size"],
            num_heads=sizes["num_attention_heads"],
            intermediate_size=sizes["intermediate_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            tie_word_embeddings=sizes["tie_word_embeddings"],
            bos_token_id=None,
            eos_token_id=None,
        )
        return _endless(self._models.RetNetForCausalLM(config))

    def loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=ids, labels=ids).loss
        return loss


class Llama(Peer):
    """transformers' Llama with scaled dot product attention."""

    name = "llama"
    architecture, package, module = "transformer", "transformers", "transformers"
    install = "pip install transformers"
    title = "transformers Llama"
    modes = ("compiled",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        from transformers import LlamaConfig, LlamaForCausalLM

        self._config: Any = LlamaConfig
        self._model: Any = LlamaForCausalLM

    def build(self) -> nn.Module:
        sizes = self.sizes()
        config = self._config(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            max_position_embeddings=2**20,
            tie_word_embeddings=sizes["tie_word_embeddings"],
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
        return _endless(self._model(config))

    def loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (TorchScale, FlashLinearAttention, Llama)}
"""The peers by the names that the command line takes."""


def torchscale_module(name: str) -> Any:
    """A module of torchscale, whose own requirements need not be installed."""
    _stand_in("timm.models.layers", "drop_path")
    _stand_in("fairscale.nn", "checkpoint_wrapper", "wrap")
    return importlib.import_module(f"torchscale.{name}")


def _endless(model: nn.Module) -> nn.Module:
    """The model without an end-of-text token, so that `generate()` runs to the length asked for."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # type: ignore[assignment]
    return model


def _stand_in(module: str, *names: str) -> None:
    """Let `module` be imported where it is not installed; its functions are for features that are off here.

    torchscale asks for versions of timm and fairscale that cannot be installed beside a current torch.
    """
    root = module.partition(".")[0]
    if root not in sys.modules and importlib.util.find_spec(root) is not None:
        return

    def unused(*_arguments: Any, **_keywords: Any) -> None:
        raise NotImplementedError(f"{module} is not installed")

    parents = module.split(".")
    for depth in range(1, len(parents) + 1):
        sys.modules.setdefault(".".join(parents[:depth]), ModuleType(parents[depth - 1]))
    for name in names:
        setattr(sys.modules[module], name, unused)
