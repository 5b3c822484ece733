"""The model over memory that never moves: what a GPU can record once and play back for every token.

A `Lane` is that memory for a number of rows: the mixers' states, and what is said of every row. A `Step` feeds its
tokens through the model and leaves logits and new states in place. On a GPU a step goes through three tiers, by how
often it has run over all calls: launched kernel by kernel, recorded as one CUDA graph, and, where kernels of our own do
not do all of it, compiled and recorded anew. No clock decides, so that the same calls give the same numbers.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers.utils import logging

from ..mixers import Mixer
from ..mixers.rotary import turns_of
from ..own_kernels.few_rows import fits_few_rows, normed_product
from ..own_kernels.likeliest import kernel_can_choose, kernel_choose
from ..own_kernels.trial import try_own_kernels
from .body import Block, Body, States
from .recording import Recorder

WARM_CALLS = 2
"""Calls of a step that are launched kernel by kernel before a CUDA graph is recorded."""

COMPILE_AFTER = 2048
"""Calls of a step for one token before the blocks are compiled."""

COMPILE_PIECES_AFTER = 64
"""The same for steps of several tokens."""

COMPILED_PIECE = 1024
"""Tokens of all rows from which a step of several is compiled at all: a short prompt does not wait for a compiler."""

ONE_TOKEN_OPTIONS: dict[str, Any] = {"coordinate_descent_tuning": True}
"""Options of Inductor for steps of one token: a fifth off its time on an H100, for twice the time to compile."""

BLANK = -1
"""An id of no token, whose embedding is zeros: stands in front of a prompt and for its padding, and nowhere else."""

RING = 256
"""How many tokens of every row a lane remembers."""

MOST_ENDS = 8
"""How many end-of-text tokens a lane can look for."""


class Parts:
    """What a step needs of a model, without a reference to the model itself."""

    def __init__(self, embed_tokens: nn.Embedding, body: Body, lm_head: nn.Linear) -> None:
        self.embed_tokens, self.body, self.lm_head = embed_tokens, body, lm_head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device


class Lane:
    """The memory for `batch` rows of up to `capacity` slots, and the steps over it; `like` are states of its dtypes.

    Attributes:
        states: what the mixers reserved.
        turns: of the body's frequencies, float64.
        slot: () int64, slots fed so far, padding included, blanks in front of the prompt not: it is negative there.
        logits: (batch, vocab_size) of the last token.
        fuses: whether every block does in kernels of its own what a compiler would, for one token.
        finished: (batch,) bool, rows that have had one of `ends`, and get `pad` from then on.
        ring: (batch, RING) int64; the token that is fed at slot s stands at s % RING.
    """

    def __init__(self, parts: Parts, batch: int, capacity: int, like: States | None = None) -> None:
        weight = parts.lm_head.weight
        device = weight.device
        self.parts, self.batch = parts, batch
        self._mixers = [cast(Mixer, block.mixer) for block in parts.body.blocks]
        like = like or [mixer.empty_state(batch, weight) for mixer in self._mixers]
        self.states = [mixer.reserve(state, capacity) for mixer, state in zip(self._mixers, like, strict=True)]
        try_own_kernels(device)
        self.turns = [turns_of(frequencies, device) for frequencies in parts.body.frequencies]
        self.slot = torch.zeros((), dtype=torch.int64, device=device)
        self.logits = torch.zeros(batch, len(weight), dtype=weight.dtype, device=device)
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.pad = torch.zeros((), dtype=torch.int64, device=device)
        self.ends = torch.full((MOST_ENDS,), -1, dtype=torch.int64, device=device)
        self.ring = torch.zeros(batch, RING, dtype=torch.int64, device=device)
        hidden = weight.new_empty(batch, 1, weight.shape[1])
        blocks = zip(parts.body.blocks, self.states, strict=True)
        self.fuses = all(cast(Mixer, block.mixer).fuses(hidden, cast(Block, block).norm, own) for block, own in blocks)
        self.busy = threading.Lock()
        self._steps: dict[int, Step] = {}

    def step(self, tokens: int) -> "Step":
        """The step that feeds so many tokens of every row."""
        if tokens not in self._steps:
            self._steps[tokens] = Step(self, tokens)
        return self._steps[tokens]

    @property
    def steps(self) -> list["Step"]:
        """All steps that were ever asked for."""
        return list(self._steps.values())

    def clear(self) -> None:
        """Go on from nothing."""
        # One launch, where a prompt is about to be waited for.
        torch._foreach_zero_([self.slot, *self._memory()])

    def load(self, states: States, slot: int) -> None:
        """Go on from states after `slot` slots."""
        for mixer, reserved, state in zip(self._mixers, self.states, states, strict=True):
            mixer.load(reserved, state)
        self.slot.fill_(slot)

    def unload(self, slots: int) -> States:
        """States of their own memory after `slots` slots."""
        return [mixer.unload(reserved, slots) for mixer, reserved in zip(self._mixers, self.states, strict=True)]

    def expect(self, pad: torch.Tensor | None, ends: torch.Tensor | None) -> None:
        """What `choose` looks for from now on: `ends` (n,), after which a row gets `pad` ()."""
        self.finished.zero_()
        self.ends.fill_(-1)
        if ends is not None:
            self.ends[: len(ends)].copy_(ends)
        if pad is not None:
            self.pad.copy_(pad.view(()))

    def choose(self, logits: torch.Tensor) -> None:
        """Take the likeliest next token of every row, and have it fed next."""
        if kernel_can_choose(logits):
            ids = self.step(1).ids
            kernel_choose(logits, self.finished, self.pad, self.ends, ids, self.ring, self.slot)
            return
        token = torch.where(self.finished, self.pad, logits.argmax(-1))[:, None]
        self.finished.logical_or_((token == self.ends).any(1))
        self.feed(token)

    def feed(self, token: torch.Tensor) -> None:
        """Have these tokens (batch, 1) fed next."""
        self.step(1).ids.copy_(token)
        self.ring.index_copy_(1, (self.slot % RING).view(1), token)

    @property
    def nbytes(self) -> int:
        """Memory of states and recordings in bytes."""
        return sum(tensor.nbytes for tensor in self._memory()) + sum(
            step.recording_bytes for step in self._steps.values()
        )

    def _memory(self) -> list[torch.Tensor]:
        pairs = zip(self._mixers, self.states, strict=True)
        return [tensor for mixer, reserved in pairs for tensor in mixer.changing(reserved)]


class Step:
    """One call of the model over a lane, for `tokens` tokens of every row.

    `ids` and `positions` (batch, tokens) int64 are what it reads; a step of one token moves on by itself, to the next
    position and to the likeliest token.
    """

    def __init__(self, lane: Lane, tokens: int) -> None:
        # The lane holds its steps; a reference back would keep its memory until the garbage is collected.
        self._lane = weakref.ref(lane)
        self.tokens = tokens
        self.ids = torch.zeros(lane.batch, tokens, dtype=torch.int64, device=lane.slot.device)
        self.positions = torch.zeros_like(self.ids)
        self.calls = 0
        self.recording_bytes = 0
        self.tier = "launched"
        self._compiled = False
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorder = Recorder(lane.slot.device) if lane.slot.is_cuda else None
        self._compiles = lane.batch * tokens >= COMPILED_PIECE if tokens > 1 else not lane.fuses

    @property
    def is_settled(self) -> bool:
        """Whether it will not become faster any more."""
        return self._recorder is None or (self._graph is not None and self._compiled == self._compiles)

    def run(self, asked: int = 0) -> None:
        """Feed the tokens; `asked` calls or so are to come in this generation."""
        self.calls += 1
        if self._recorder is None:
            self._work()
            return
        patience = COMPILE_AFTER if self.tokens == 1 else COMPILE_PIECES_AFTER
        if self._compiles and not self._compiled and max(asked, self.calls) > patience:
            self._compiled, self._graph, self._warm = True, None, 0
        if self._graph is None:
            if self._warm < WARM_CALLS:
                self._warm += 1
                self._recorder.launch(self._work)
                return
            if not self._record(self._recorder):
                self._work()
                return
        assert self._graph is not None
        self._graph.replay()

    def _work(self) -> None:
        lane = self._lane()
        assert lane is not None
        parts = lane.parts
        advance = advance_compiled if self._compiled else Block.advance
        hidden = parts.body.advance(
            self._embeddings(parts), self.positions, lane.states, lane.slot, lane.turns, advance
        )
        self._write_logits(parts, hidden, lane.logits)
        lane.slot.add_(self.tokens)
        if self.tokens == 1:
            self.positions.add_(1)
            lane.choose(lane.logits)

    def _write_logits(self, parts: Parts, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        norm, lm_head = parts.body.norm, parts.lm_head
        if fits_few_rows(hidden, norm, lm_head):
            normed_product(hidden, norm, lm_head.weight, out=logits)
        else:
            logits.copy_(lm_head(norm(hidden)[:, 0]))

    def _embeddings(self, parts: Parts) -> torch.Tensor:
        if self.tokens == 1:
            if self.ids.is_cuda and len(self.ids) > 1:
                # PyTorch's embedding of 16 rows takes 8 us on an H200, reading them by index 2; of one row 2 and 3.
                return parts.embed_tokens.weight[self.ids]
            return parts.embed_tokens(self.ids)
        blank = (self.ids == BLANK)[..., None]
        return parts.embed_tokens(self.ids.clamp(min=0)).masked_fill(blank, 0)

    def _record(self, recorder: Recorder) -> bool:
        """Record the work, which computes nothing; False where the machine or the model does not allow it."""
        before = torch.cuda.memory_reserved(self.ids.device)
        try:
            self._graph = recorder.record(self._work)
        # Whatever a library cannot do while it is recorded; launched one by one, the kernels do the same.
        except RuntimeError as error:
            self._recorder = None
            reason = str(error).partition("\n")[0]
            logging.get_logger(__name__).warning(f"Generation goes on without CUDA graphs, slower: {reason}")
            return False
        self.tier = "compiled" if self._compiled else "recorded"
        self.recording_bytes = max(0, torch.cuda.memory_reserved(self.ids.device) - before)
        return True


_compiled_blocks: dict[bool, Callable[..., torch.Tensor]] = {}
_kinds_that_do_not_compile: set[type] = set()


def advance_compiled(block: Block, hidden: torch.Tensor, *inputs: Any) -> torch.Tensor:
    """`Block.advance`, compiled: blocks of a kind share one graph, so that depth costs no time."""
    is_one_token = hidden.shape[1] == 1
    if is_one_token not in _compiled_blocks:
        # Every kind of block at every shape is a graph of the same function.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        options = ONE_TOKEN_OPTIONS if is_one_token else None
        _compiled_blocks[is_one_token] = torch.compile(Block.advance, dynamic=False, fullgraph=True, options=options)
    if type(block.mixer) in _kinds_that_do_not_compile or block.mixer.fuses(hidden, block.norm, inputs[1]):
        return block.advance(hidden, *inputs)
    try:
        return _compiled_blocks[is_one_token](block, hidden, *inputs)
    # Compiling fails before anything is computed, in as many ways as there are compilers.
    except Exception as error:
        if torch.cuda.is_current_stream_capturing():
            raise
        _kinds_that_do_not_compile.add(type(block.mixer))
        reason = str(error).partition("\n")[0]
        name = type(block.mixer).__name__
        logging.get_logger(__name__).warning(f"Generation goes on without compiling {name}, slower: {reason}")
        return block.advance(hidden, *inputs)
