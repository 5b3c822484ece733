"""TorchScale 0.3.0's own RetNet decoder, without the two libraries that it imports and the oracle does not use.

timm and fairscale cannot be installed beside a current torch. Of the first it takes stochastic depth, of the second
wrappers for sharded training: both are off here, so that a placeholder that is never called does.
"""

import sys
from types import ModuleType
from typing import Any

import torch


def _placeholder(module: str, *names: str) -> None:
    def unused(*_args: Any, **_kwargs: Any) -> None:
        raise NotImplementedError("the oracle does without this")

    parents = module.split(".")
    for depth in range(1, len(parents) + 1):
        sys.modules.setdefault(".".join(parents[:depth]), ModuleType(parents[depth - 1]))
    for name in names:
        setattr(sys.modules[module], name, unused)


_placeholder("timm.models.layers", "drop_path")
_placeholder("fairscale.nn", "checkpoint_wrapper", "wrap")

from torchscale.architecture.config import RetNetConfig  # noqa: E402
from torchscale.architecture.retnet import RetNetDecoder  # noqa: E402


def torchscale_decoder(**settings: Any) -> RetNetDecoder:
    """A decoder in evaluation mode with new weights; `settings` are those of TorchScale's RetNetConfig."""
    config = RetNetConfig(**settings)
    embedding = torch.nn.Embedding(config.vocab_size, config.decoder_embed_dim)
    return RetNetDecoder(config, embed_tokens=embedding).eval()


@torch.no_grad()
def parallel(decoder: RetNetDecoder, ids: torch.Tensor) -> torch.Tensor:
    """Logits (batch, tokens, vocabulary) of its parallel form."""
    return decoder(ids)[0]


@torch.no_grad()
def recurrent(decoder: RetNetDecoder, ids: torch.Tensor) -> torch.Tensor:
    """Logits of its recurrent form, token by token: it finds the position in the length of the prefix it is given."""
    state: dict[Any, Any] = {}
    steps = [decoder(ids[:, : end + 1], incremental_state=state)[0] for end in range(ids.shape[1])]
    return torch.cat(steps, dim=1)
