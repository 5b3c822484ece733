"""Prompts of recurrent models: fed in pieces of few sizes, and on a GPU before transformers has prepared the call.

A GPU replays a piece of a size that it knows in a tenth of the time in which a host launches a forward pass, however
short. So a prompt there is made whole pieces by blanks in front of it: embeddings of zeros, which change nothing.

`generate()` spends milliseconds of the host on a call before it asks for anything to be computed: time in which a GPU
computes thousands of tokens. So the pieces of a prompt are sent off first, and `claim` finds out afterwards whether
they were what the call needs.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn import functional as F

from .cache import StateCache
from .engines import Engine, engine_of
from .inspection import is_plain
from .static_steps import BLANK, Lane

PIECE_TOKENS = (32_768, 8192, 1024)
"""Tokens of all rows in the pieces that recurrent models are fed with a long prompt in, the largest first."""

SHORT_PIECE_TOKENS = 256
"""The same for the end of a prompt, where blanks fill it up."""

SHORTEST_PIECE = 64
"""Tokens per row in the smallest piece."""

AHEAD_ON = ("cuda",)
"""Devices that compute while the host goes on."""

_HARMLESS_OPTIONS = {
    "input_ids", "attention_mask", "max_new_tokens", "max_length", "min_new_tokens", "min_length", "do_sample",
    "temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id", "pad_token_id", "streamer",
    "stopping_criteria", "logits_processor", "return_dict_in_generate",
}  # fmt: skip
"""Arguments of `generate()` that change nothing about what a prompt leaves behind."""


def pieces_of(model: Any, batch: int, tokens: int) -> list[int]:
    """Tokens per row of the pieces of a prompt (batch, tokens), where it is fed in pieces.

    On GPUs they have room for all of it, and may have for some blanks; elsewhere the forward pass takes what is left.
    """
    mixers = [block.mixer for block in model.body.blocks]
    sizes = [size for size in (_per_row(of_all, batch) for of_all in PIECE_TOKENS) if size >= SHORTEST_PIECE]
    # A lone token has the forward pass of one token.
    if not sizes or tokens == 1 or any(mixer.keeps_tokens for mixer in mixers):
        return []
    pieces: list[int] = []
    for size in sizes:
        pieces += [size] * ((tokens - sum(pieces)) // size)
    left = tokens - sum(pieces)
    if left and model.lm_head.weight.device.type in AHEAD_ON and all(mixer.ignores_blanks for mixer in mixers):
        ends = (_per_row(SHORT_PIECE_TOKENS, batch), sizes[-1])
        pieces.append(min(size for size in ends if size >= max(left, SHORTEST_PIECE)))
    return pieces


def _per_row(tokens: int, batch: int) -> int:
    """A power of two, so that few sizes exist."""
    return 1 << (max(1, tokens // max(1, batch)).bit_length() - 1)


def feed(lane: Lane, ids: torch.Tensor, positions: torch.Tensor | None, pieces: list[int]) -> None:
    """Bring an empty lane past the pieces of a prompt (batch, tokens), whose ids have been checked."""
    if positions is None:
        positions = _positions_of(ids)
    blanks = max(0, sum(pieces) - ids.shape[1])
    lane.clear()
    if blanks:
        ids, positions = F.pad(ids, (blanks, 0), value=BLANK), F.pad(positions, (blanks, 0))
        lane.slot.fill_(-blanks)
    start = 0
    for size in pieces:
        step, place = lane.step(size), slice(start, start + size)
        step.ids.copy_(ids[:, place])
        step.positions.copy_(positions[:, place])
        step.run()
        start += size


def finish(
    model: Any, lane: Lane, ids: torch.Tensor, positions: torch.Tensor | None, pieces: list[int]
) -> torch.Tensor:
    """Bring a lane past what the pieces have left of a prompt; the logits after it (batch, vocab_size)."""
    batch, tokens = ids.shape
    fed = sum(pieces)
    if fed >= tokens:
        return lane.logits
    if positions is None:
        positions = _positions_of(ids)
    rest = StateCache()
    rest.move_to(lane.unload(fed), fed, batch, ids.device)
    answer = model(
        ids[:, fed:], position_ids=positions[:, fed:], past_key_values=rest, logits_to_keep=1, return_dict=True
    )
    lane.load(rest.states, tokens)
    return answer.logits[:, -1]


def _positions_of(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1], device=ids.device)[None]


class _Ahead:
    """A prompt whose pieces are on their way, on a stream of their own: transformers asks the usual one questions."""

    def __init__(self, engine: Engine, ids: torch.Tensor, pieces: list[int], held: contextlib.ExitStack) -> None:
        self.engine, self.ids, self.pieces, self._held = engine, ids, pieces, held
        self._stream = torch.cuda.Stream(ids.device) if ids.is_cuda else None
        self.lane = held.enter_context(engine.lane(ids.shape[0]))
        if self._stream is None:
            feed(self.lane, ids, None, pieces)
            return
        held.callback(self.join)
        # Their tensors outlive this stream's work, and belong to the usual one.
        for size in set(pieces):
            self.lane.step(size)
        self._stream.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(self._stream):
            feed(self.lane, ids, None, pieces)

    def join(self) -> None:
        """Have what the usual stream does from now on come after the pieces."""
        if self._stream is not None:
            torch.cuda.current_stream(self.ids.device).wait_stream(self._stream)

    def give_up(self) -> None:
        """Leave the lane to others."""
        self._held.close()


_ahead: ContextVar[_Ahead | None] = ContextVar("_ahead", default=None)


@contextlib.contextmanager
def prompt_ahead(model: Any, ids: Any, options: dict[str, Any]) -> Iterator[None]:
    """Send off the prompt of a call `generate(ids, **options)`, if it has pieces and nothing speaks against it."""
    with contextlib.ExitStack() as held:
        token = _ahead.set(_send_off(model, ids, options, held))
        try:
            yield
        finally:
            _ahead.reset(token)


def _send_off(model: Any, ids: Any, options: dict[str, Any], held: contextlib.ExitStack) -> _Ahead | None:
    if not (isinstance(ids, torch.Tensor) and ids.ndim == 2 and ids.dtype == torch.int64 and ids.numel()):
        return None
    usual, device = model.generation_config, model.lm_head.weight.device
    is_simple = (usual.num_beams or 1) == 1 and (usual.num_return_sequences or 1) == 1 and usual.use_cache is not False
    if ids.device != device or device.type not in AHEAD_ON or not options.keys() <= _HARMLESS_OPTIONS or not is_simple:
        return None
    pieces = pieces_of(model, *ids.shape)
    if not pieces or not is_plain(model):
        return None
    with torch.inference_mode(False), torch.no_grad():
        model.check_ids(ids)
        return _Ahead(engine_of(model), ids, pieces, held)


def claim(engine: Engine, ids: torch.Tensor, positions: torch.Tensor | None, pieces: list[int]) -> Lane | None:
    """The lane that the pieces of this prompt (batch, tokens) were fed to; None, and no lane held, where none was."""
    ahead = _ahead.get()
    if ahead is None:
        return None
    # What comes next changes the lane.
    _ahead.set(None)
    fits = ahead.engine is engine and ahead.ids is ids and ahead.pieces == pieces
    if not fits or (positions is not None and not bool((positions == _positions_of(ids)).all())):
        ahead.give_up()
        return None
    ahead.join()
    return ahead.lane
