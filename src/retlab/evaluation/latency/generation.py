"""`generate()` with a clock: what a user of the model calls, and when each of its tokens is there."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from retlab.evaluation.trained_model import TrainedModel
from retlab.measuring import Marks, state_bytes, synchronize

NO_TOKEN = 2**31 - 1
"""An end of text that no model writes, so that every text has the length that is asked for."""


class _Clock(BaseStreamer):
    """Takes the moment of every new token."""

    runs_ahead = True
    "RetLab's models need not wait for the GPU to hand it a token that it does not look at."

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._has_prompt = False

    def put(self, value: Tensor) -> None:  # noqa: ARG002
        if self._has_prompt:
            self._marks.mark()
        self._has_prompt = True

    def end(self) -> None:
        pass


@contextlib.contextmanager
def generating_model(trained: TrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it generates: under bf16 a copy with weights in bf16, which is alone on its device.

    Under autocast every token would wait until all weights are cast for it.
    """
    model = trained.model
    if not trained.bf16:
        yield model
        return
    # The way of the module: that of transformers' models wants to know of quantisation.
    nn.Module.to(model, "cpu")
    try:
        yield nn.Module.to(copy.deepcopy(model), trained.device, torch.bfloat16)
    finally:
        nn.Module.to(model, trained.device)


def random_ids(model: PreTrainedModel, batch: int, tokens: int) -> Tensor:
    """Token ids (batch, tokens) on the model's device, the same for the same shape."""
    words: Any = model.get_input_embeddings()
    ids = torch.randint(0, words.num_embeddings, (batch, tokens), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


def token_seconds(model: PreTrainedModel, ids: Tensor, new_tokens: int, cached: bool) -> list[float]:
    """Seconds from the call to the first new token after `ids` (batch, tokens), then from each to the next.

    Args:
        model: the model in evaluation mode.
        ids: the context, all of which is read.
        new_tokens: tokens after the first new one.
        cached: whether a state or cache is kept, or everything is read anew for each token.
    """
    marks = Marks(ids.device)
    synchronize(ids.device)
    marks.mark()
    # Every model keeps a cache by itself; saying so would keep RetLab's from sending the prompt ahead.
    options = {} if cached else {"use_cache": False}
    _generate(model, ids, 1 + new_tokens, streamer=_Clock(marks), **options)
    seconds = marks.gaps()
    if len(seconds) != 1 + new_tokens:
        raise RuntimeError(f"generate() wrote {len(seconds):,} tokens, not {1 + new_tokens:,}")
    return seconds


def state_bytes_after(model: PreTrainedModel, ids: Tensor) -> int | None:
    """Bytes of the state or cache per sequence, after a context (batch, tokens); None where the model shows none."""
    output = _generate(model, ids, 1, return_dict_in_generate=True)
    found = state_bytes(getattr(output, "past_key_values", None))
    return None if found is None else found // len(ids)


def _generate(model: Any, ids: Tensor, tokens: int, **options: Any) -> Any:
    with torch.no_grad():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=NO_TOKEN,
            pad_token_id=0,
            **options,
        )
