"""The loop behind `generate()` for greedy decoding and sampling: transformers' own, over `static_steps`.

It writes what transformers' loop writes, token for token. Where all that decides is the largest logit and the host is
not asked after each token, it runs ahead of the GPU, and cuts off what was written too much. A streamer with the
attribute `runs_ahead` is no such question: it gets tokens that the GPU may still have to compute, in memory that the
next ones take, and what is cut off too.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .cache import StateCache
from .engines import engine_of
from .inspection import is_plain
from .prompts import Prompt, claim, feed, finish, is_padded_in_front, pieces_of, takes_padding
from .run_ahead import LOOK_EVERY, Look, Written, cut_at_ends
from .static_steps import MOST_ENDS, Lane

SMALLEST_CAPACITY = 256
"""Slots that attention keeps room for at least; more come in steps of half an octave, so that few shapes exist."""

_KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache", "logits_to_keep"}


class Request(NamedTuple):
    """What transformers prepared for one call of `generate()`."""

    input_ids: torch.Tensor
    logits_processor: Any
    stopping_criteria: Any
    generation_config: Any
    streamer: Any
    model_kwargs: dict[str, Any]

    @property
    def cache(self) -> Any:
        """The cache that transformers hands on."""
        return self.model_kwargs.get("past_key_values")

    @property
    def new_tokens(self) -> int:
        """How many tokens come at most."""
        return max(1, self.stopping_criteria.max_length - self.input_ids.shape[1])

    @property
    def positions(self) -> torch.Tensor | None:
        """Where the prompt's tokens stand (batch or 1, tokens), if transformers counted."""
        return self.model_kwargs.get("position_ids")

    @property
    def ends(self) -> torch.Tensor | None:
        """End-of-text tokens among the stopping criteria (n,); None where there is no such criterion."""
        criteria = [criterion for criterion in self.stopping_criteria if hasattr(criterion, "eos_token_id")]
        return torch.cat([criterion.eos_token_id.reshape(-1) for criterion in criteria]) if criteria else None

    @property
    def returns_cache(self) -> bool:
        """Whether the caller sees the cache when all is done."""
        return bool(self.generation_config.return_dict_in_generate) or not self.cache.is_temporary


def can_decode(model: Any, request: Request, synced_gpus: bool) -> bool:
    """Whether `decode` does what transformers' own loop would do."""
    config, inputs = request.generation_config, request.model_kwargs
    extra = [name for name, value in inputs.items() if name not in _KNOWN_INPUTS and value is not None]
    returned = config.return_dict_in_generate and (config.output_scores or config.output_logits)
    watched = config.output_hidden_states or config.output_attentions or returned
    if extra or watched or synced_gpus or getattr(config, "is_assistant", False) or not inputs.get("use_cache"):
        return False
    if not isinstance(request.cache, StateCache) or request.stopping_criteria.max_length is None:
        return False
    # Without a second token there is nothing to repeat; pieces of a prompt are.
    if request.new_tokens == 1 and any(block.mixer.keeps_tokens for block in model.body.blocks):
        return False
    positions, ends = request.positions, request.ends
    if (positions is not None and positions.ndim != 2) or (ends is not None and ends.numel() > MOST_ENDS):
        return False
    return is_plain(model)


def decode(model: Any, request: Request) -> Any:
    """Generate as `GenerationMixin._sample` does."""
    engine = engine_of(model)
    cache, batch = request.cache, _rows(request)
    (prompt, pieces), logits, capacity = _prompt(model, request), None, 0
    if not pieces:
        # Transformers' own way: it slices what a cache has seen, and knows chunks.
        outputs = model._prefill(request.input_ids, request.generation_config, request.model_kwargs)
        logits = outputs.logits[:, -1]
        del outputs
        if any(block.mixer.keeps_tokens for block in model.body.blocks):
            capacity = _room_for(cache.seen + request.new_tokens)

    with contextlib.ExitStack() as held, torch.inference_mode(False), torch.no_grad():
        held.enter_context(_current(model.lm_head.weight.device))
        lane = claim(engine, prompt, pieces)
        if lane is None:
            lane = held.enter_context(engine.lane(batch, capacity, cache.states))
            if pieces:
                model.check_ids(prompt.ids)
                feed(lane, prompt, pieces)
        if logits is None:
            logits = finish(model, lane, prompt, pieces)
        else:
            lane.load(cache.states, cache.seen)
        run = _Run(lane, request)
        run.begin(logits, cache.seen or prompt.ids.shape[1], prompt)
        if not request.returns_cache:
            # Nobody sees it again, and attention's is large.
            cache.reset()
        sequences: Any = run.to_the_end()
        if request.returns_cache:
            cache.move_to(lane.unload(run.slot), run.slot, batch, lane.slot.device)
            if pieces:
                cache.lengths = cache.lengths - prompt.padding
    if request.streamer is not None:
        request.streamer.end()
    if request.generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache)
    return sequences


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the one that kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _rows(request: Request) -> int:
    embeddings = request.model_kwargs.get("inputs_embeds")
    return request.input_ids.shape[0] if embeddings is None else embeddings.shape[0]


def _room_for(slots: int) -> int:
    """Slots rounded up to a power of two or three quarters of one."""
    power = max(SMALLEST_CAPACITY, 1 << (slots - 1).bit_length())
    return power * 3 // 4 if power > SMALLEST_CAPACITY and slots <= power * 3 // 4 else power


def _prompt(model: Any, request: Request) -> tuple[Prompt, list[int]]:
    """The prompt, and tokens of the pieces that it is fed in; no pieces where the forward pass takes it all."""
    inputs, prompt = request.model_kwargs, Prompt(request.input_ids, None, request.positions)
    if request.cache.is_initialized or inputs.get("inputs_embeds") is not None:
        return prompt, []
    # A mask or positions of another width are transformers' to cut.
    if prompt.positions is not None and prompt.positions.shape[1] != prompt.ids.shape[1]:
        return prompt, []
    pieces = pieces_of(model, *prompt.ids.shape)
    if not pieces or request.generation_config.prefill_chunk_size:
        return prompt, []
    mask = inputs.get("attention_mask")
    if mask is None:
        return prompt, pieces
    if mask.shape != prompt.ids.shape:
        return prompt, []
    if not bool((mask == 1).all()):
        if not (takes_padding(model, pieces, prompt.ids.shape[1]) and is_padded_in_front(mask)):
            return prompt, []
        prompt = prompt._replace(mask=mask)
    return prompt, pieces


class _Run:
    """One generation over a lane; `slot` is where the next token is fed."""

    def __init__(self, lane: Lane, request: Request) -> None:
        self.lane, self.request, self.new_tokens = lane, request, request.new_tokens
        self.ends = request.ends
        self.slot = 0

    def begin(self, logits: torch.Tensor, slot: int, prompt: Prompt) -> None:
        """Go on from the logits after `slot` slots, of which the prompt is the last, and whose states the lane has."""
        lane, lengths = self.lane, self.request.cache.lengths
        self.slot = slot
        positions = lane.step(1).positions
        if prompt.positions is None and lengths is not None:
            positions.copy_(lengths[:, None])
        else:
            positions.copy_(prompt.placed[:, -1:] + 1)
        lane.expect(self.request.generation_config._pad_token_tensor, self.ends)
        lane.logits.copy_(logits)

    def to_the_end(self) -> torch.Tensor:
        """Generate, and return prompt and new tokens (batch, tokens)."""
        request = self.request
        known = all(type(criterion) in (MaxLengthCriteria, EosTokenCriteria) for criterion in request.stopping_criteria)
        is_greedy = not request.generation_config.do_sample and not len(request.logits_processor)
        waits = request.streamer is not None and not getattr(request.streamer, "runs_ahead", False)
        written = self._greedy() if known and is_greedy and not waits else self._token_by_token()
        for criterion in request.stopping_criteria:
            if type(criterion) is MaxLengthCriteria:
                # It reminds of the window where the text has grown beyond.
                criterion(written[:, :-1], None)
        return written

    def _advance(self) -> None:
        self.lane.step(1).run(asked=self.new_tokens)
        self.slot += 1

    def _greedy(self) -> torch.Tensor:
        lane, written = self.lane, Written(self.lane, self.slot)
        ahead = lane.slot.is_cuda and not self.request.returns_cache
        look = Look(lane, LOOK_EVERY if ahead else 1)
        # The prompt's forward pass gave the first token's logits.
        lane.choose(lane.logits)
        for count in range(1, self.new_tokens + 1):
            written.add(self.slot)
            if self.request.streamer is not None:
                self.request.streamer.put(lane.step(1).ids[:, 0])
            if count == self.new_tokens or (self.ends is not None and look.sees_the_end(count)):
                break
            self._advance()
        new = written.tokens()
        if self.ends is not None and ahead:
            new = cut_at_ends(new, self.ends)
        return torch.cat((self.request.input_ids, new), dim=1)

    def _token_by_token(self) -> torch.Tensor:
        """Transformers' loop, on the logits that the lane holds."""
        lane, request = self.lane, self.request
        ids, criteria = request.input_ids, request.stopping_criteria
        unfinished = torch.ones(lane.batch, dtype=torch.int64, device=ids.device)
        only_length = all(type(criterion) is MaxLengthCriteria for criterion in criteria)
        for count in range(1, self.new_tokens + 1):
            scores = request.logits_processor(ids, lane.logits.to(torch.float32, copy=True))
            if request.generation_config.do_sample:
                token = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                token = scores.argmax(-1)
            if self.ends is not None:
                token = token * unfinished + lane.pad * (1 - unfinished)
            ids = torch.cat((ids, token[:, None]), dim=-1)
            if request.streamer is not None:
                request.streamer.put(token.cpu())
            if not only_length:
                unfinished = unfinished & ~criteria(ids, None)
            if count == self.new_tokens or not (only_length or bool(unfinished.any())):
                break
            lane.feed(token[:, None])
            self._advance()
        return ids
