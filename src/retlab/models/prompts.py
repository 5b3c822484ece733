"""Prompts of recurrent models: fed in pieces of few sizes, and on a GPU before transformers has prepared the call.

A GPU replays a short piece of a size that it knows in a fraction of the time in which a host launches a forward pass.
So a prompt there is made whole pieces by blanks in front of it, and blanks stand for its padding: embeddings of zeros,
which change nothing.

`generate()` spends milliseconds of the host on a call before it asks for anything to be computed: time in which a GPU
computes thousands of tokens. So the pieces of a prompt are sent off first, and `claim` finds out afterwards whether
they were what the call needs.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .cache import StateCache
from .engines import Engine, engine_of
from .inspection import is_plain
from .static_steps import BLANK, Lane

PIECE_TOKENS = (32_768, 8192, 1024)
"""Tokens of all rows in the pieces that recurrent models are fed with a prompt in, the largest first."""

SHORT_PIECE_TOKENS = 256
"""The same for the end of a prompt, where blanks fill it up."""

MOST_BLANKS = 8192
"""Blanks of all rows, at most, that a GPU computes so that a prompt is whole pieces."""

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


class Prompt(NamedTuple):
    """What a call brings: `ids` (batch, tokens) int64; `mask` of the same shape, zero at padding, None for no padding;
    `positions` (batch or 1, tokens), None where they are to be counted.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    @property
    def blanked(self) -> torch.Tensor:
        """The ids, with blanks for padding."""
        return self.ids if self.mask is None else self.ids.masked_fill(self.mask == 0, BLANK)

    @property
    def placed(self) -> torch.Tensor:
        """Where the tokens stand; padding stands anywhere."""
        if self.positions is not None:
            return self.positions
        if self.mask is not None:
            return (self.mask != 0).cumsum(1).sub_(1).clamp_(min=0)
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None]

    @property
    def padding(self) -> torch.Tensor | int:
        """How many tokens of each row are padding."""
        return 0 if self.mask is None else (self.mask == 0).sum(1)


def is_padded_in_front(mask: torch.Tensor) -> bool:
    """Whether a mask (batch, tokens) is zeros before ones in every row, and the last a one."""
    known = ((mask == 0) | (mask == 1)).all()
    return bool(known & (mask[:, 1:] >= mask[:, :-1]).all() & (mask[:, -1] == 1).all())


def pieces_of(model: Any, batch: int, tokens: int) -> list[int]:
    """Tokens per row of the pieces of a prompt (batch, tokens), where it is fed in pieces.

    On GPUs they have room for all of it and a few blanks; elsewhere the forward pass takes what is left.
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
    if left and model.lm_head.weight.device.type in AHEAD_ON and _ignores_blanks(model):
        short = max(_per_row(SHORT_PIECE_TOKENS, batch), SHORTEST_PIECE)
        end = min(size for size in (short, sizes[-1]) if size >= left)
        if batch * (end - left) <= MOST_BLANKS:
            pieces.append(end)
    return pieces


def _ignores_blanks(model: Any) -> bool:
    """Not in a form that was asked for by name, which may take every token by itself."""
    return all(block.mixer.ignores_blanks and block.mixer.form is None for block in model.body.blocks)


def _per_row(tokens: int, batch: int) -> int:
    """A power of two, so that few sizes exist."""
    return 1 << (max(1, tokens // max(1, batch)).bit_length() - 1)


def takes_padding(model: Any, pieces: list[int], tokens: int) -> bool:
    """Whether a prompt of so many tokens a row may be fed in these pieces where some rows begin with padding."""
    return sum(pieces) >= tokens and _ignores_blanks(model)


def feed(lane: Lane, prompt: Prompt, pieces: list[int]) -> None:
    """Bring an empty lane past the pieces of a prompt, whose ids have been checked."""
    ids, positions = prompt.blanked, prompt.placed
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


def finish(model: Any, lane: Lane, prompt: Prompt, pieces: list[int]) -> torch.Tensor:
    """Bring a lane past what the pieces have left of a prompt; the logits after it (batch, vocab_size)."""
    batch, tokens = prompt.ids.shape
    fed = sum(pieces)
    if fed >= tokens:
        return lane.logits
    rest = StateCache()
    rest.move_to(lane.unload(fed), fed, batch, prompt.ids.device)
    answer = model(
        prompt.ids[:, fed:],
        position_ids=prompt.placed[:, fed:],
        past_key_values=rest,
        logits_to_keep=1,
        return_dict=True,
    )
    lane.load(rest.states, tokens)
    return answer.logits[:, -1]


class _Ahead:
    """A prompt whose pieces are on their way, on a stream of their own: transformers asks the usual one questions."""

    def __init__(self, engine: Engine, prompt: Prompt, pieces: list[int], held: contextlib.ExitStack) -> None:
        self.engine, self.prompt, self.pieces, self._held = engine, prompt, pieces, held
        self._device = prompt.ids.device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.lane = held.enter_context(engine.lane(prompt.ids.shape[0]))
        if self._stream is None:
            feed(self.lane, prompt, pieces)
            return
        held.callback(self.join)
        # Their tensors outlive this stream's work, and belong to the usual one.
        for size in set(pieces):
            self.lane.step(size)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            feed(self.lane, prompt, pieces)

    def is_of(self, prompt: Prompt) -> bool:
        """Whether this prompt, of the same ids, has the padding and the positions that were fed."""
        mine = self.prompt
        same = []
        if mine.mask is not None or prompt.mask is not None:
            masks = [torch.ones_like(prompt.ids) if mask is None else mask for mask in (mine.mask, prompt.mask)]
            same.append(masks[0] == masks[1])
        if prompt.positions is not None:
            is_padding = False if prompt.mask is None else prompt.mask == 0
            same.append((prompt.positions == mine.placed) | is_padding)
        return all(bool(equal.all()) for equal in same)

    def join(self) -> None:
        """Have what the usual stream does from now on come after the pieces."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

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
    pieces, mask = pieces_of(model, *ids.shape), options.get("attention_mask")
    if not pieces or not is_plain(model):
        return None
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.shape == ids.shape and mask.device == device):
        return None
    with torch.inference_mode(False), torch.no_grad():
        model.check_ids(ids)
        return _Ahead(engine_of(model), Prompt(ids, mask), pieces, held)


def claim(engine: Engine, prompt: Prompt, pieces: list[int]) -> Lane | None:
    """The lane that the pieces of this prompt were fed to; None, and no lane held, where none was."""
    ahead = _ahead.get()
    if ahead is None:
        return None
    # What comes next changes the lane.
    _ahead.set(None)
    fits = ahead.engine is engine and ahead.prompt.ids is prompt.ids and ahead.pieces == pieces
    if not fits or not ahead.is_of(prompt):
        ahead.give_up()
        return None
    ahead.join()
    return ahead.lane
