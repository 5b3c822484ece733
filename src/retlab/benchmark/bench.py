"""The measurements of one contestant, each to rows of the table."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retlab.benchmark.contestant import Contestant
from retlab.benchmark.entries import Case, Entry, Kind
from retlab.benchmark.peers import PEERS
from retlab.benchmark.plan import Plan, Shape
from retlab.benchmark.row import DECODE, FIRST_DECODE, FORWARD, LOADER, PREFILL, RETLAB, TRAINING, Row
from retlab.benchmark.text_rates import benchmark_loader
from retlab.measuring import Memory, median_seconds, seconds_of, state_bytes
from retlab.models.counting import flops_per_token
from retlab.training.hardware import choose_hardware, set_threads

FIRST_NEW_TOKENS = 8
FRESH_TOKENS = 64


class Bench:
    """One contestant, ready to be measured in this process."""

    def __init__(self, plan: Plan, entry: Entry, text_folder: Path) -> None:
        self.plan, self.entry, self.text_folder = plan, entry, text_folder
        train = entry.subject.train
        set_threads(train)
        self.contestant = _class_of(entry)(entry.subject, choose_hardware(train), entry.mode)
        # The first optimizer loads it, and that is no memory of the training.
        importlib.import_module("torch._dynamo")
        self.memory = Memory(self.contestant.device)
        self._generator: Any = None

    def measure(self, case: Case) -> list[Row]:
        """The rows of one case."""
        self.memory.release()
        if case.kind != "generation":
            # What generation compiled for one shape may serve the next.
            self._generator = None
            torch.compiler.reset()
        kinds: dict[Kind, Callable[[Shape], list[Row]]] = {
            "training": self._training, "loader": self._loader, "generation": self._generation,
        }  # fmt: skip
        return kinds[case.kind](case.shape)

    def _row(self, kind: Kind, measurement: str, shape: Shape, seconds: float, tokens: int, **values: Any) -> Row:
        return Row(
            measurement, self.entry.model, self.entry.implementation(kind), *shape,
            tokens_per_second=tokens / seconds, milliseconds=1000 * seconds, **values,
        )  # fmt: skip

    def _training(self, shape: Shape) -> list[Row]:
        warmup, tokens = self.plan.warmup_steps, shape.batch * shape.tokens
        with self.memory.watch() as peak:
            times = self.contestant.training_times(shape, warmup + self.plan.timed_steps).part(warmup)
        flops = flops_per_token(self.contestant.config, shape.tokens)
        step = {"peak_memory_gib": peak.gib, "flops_per_token": flops}
        rows = [self._row("training", TRAINING, shape, times.step, tokens, **step)]
        if self.entry.contestant == RETLAB:
            rows.append(self._row("training", FORWARD, shape, times.forward, tokens))
        return rows

    def _loader(self, shape: Shape) -> list[Row]:
        from retlab.benchmark.ours import RetLab

        assert isinstance(self.contestant, RetLab)
        loader = benchmark_loader(self.plan, shape, self.text_folder)
        with self.memory.watch() as peak:
            both = self.contestant.loader_times(shape, loader, self.plan.warmup_steps, 4 * self.plan.timed_steps)
        flops = flops_per_token(self.contestant.config, shape.tokens)
        return [
            # A median would not show a loader that keeps only some of the steps waiting.
            self._row("loader", name, shape, times.mean_step, shape.batch * shape.tokens, peak_memory_gib=peak.gib,
                      flops_per_token=flops)
            for name, times in zip(LOADER, both, strict=True)
        ]  # fmt: skip

    def _generation(self, shape: Shape) -> list[Row]:
        contestant = self.contestant
        with self.memory.watch() as peak:
            if self._generator is None:
                self._generator = contestant.generator()
            model = self._generator
            ids = contestant.random_ids(shape).to(contestant.device)
            found = _time_generation(contestant, model, ids, self.plan)
        memory = {"peak_memory_gib": peak.gib}
        rows = [self._row("generation", PREFILL, shape, found.prefill, shape.batch * shape.tokens, **memory)]
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        state = None if found.state is None else found.state / 2**20
        rows.append(self._decode_row(DECODE, shape, found.token, **memory, state_mib=state, weight_bytes=weights))
        if contestant.becomes_faster:
            rows.append(self._decode_row(FIRST_DECODE, shape, found.first_token))
        return rows

    def _decode_row(self, measurement: str, shape: Shape, seconds: float | None, **values: Any) -> Row:
        if seconds is None:
            name = self.entry.implementation("generation")
            remark = "the prefill's time varies by more than the tokens take"
            return Row(measurement, self.entry.model, name, *shape, remark=remark)
        return self._row("generation", measurement, shape, seconds, shape.batch, **values)


def _class_of(entry: Entry) -> type[Contestant]:
    if entry.contestant in PEERS:
        return PEERS[entry.contestant]
    # Late, because Lightning takes seconds that peers need not wait for.
    from retlab.benchmark.ours import RetLab

    return RetLab


class _Generation(NamedTuple):
    """Seconds up to the first new token, of each further one and of each of the very first; bytes of the cache.

    None where the prefill's own time varies by more.
    """

    prefill: float
    token: float | None
    first_token: float | None
    state: int | None


def _time_generation(contestant: Contestant, model: Any, ids: torch.Tensor, plan: Plan) -> _Generation:
    """Time greedy `generate()` calls for one new token and for many; the difference is that of the further ones."""

    def generate(new_tokens: int, **options: Any) -> Any:
        return model.generate(ids, max_new_tokens=new_tokens, do_sample=False, **options)

    device, more = ids.device, FIRST_NEW_TOKENS
    first_token = None
    if contestant.becomes_faster:
        # What is recorded and compiled is so for a length: it is settled once, for the longest.
        more = plan.most_new_tokens
        first_token = _first_token(contestant, model, generate, device, min(FRESH_TOKENS, more))
        contestant.settle(model, partial(generate, 1))
    state = state_bytes(getattr(generate(1 + more, return_dict_in_generate=True), "past_key_values", None))
    generate(1)
    prefill = median_seconds(partial(generate, 1), device, plan.seconds)
    while True:
        call = partial(generate, 1 + more)
        if contestant.becomes_faster:
            contestant.settle(model, call)
        # The first call of a length may compile, and is not timed.
        generated = call().shape[1] - ids.shape[1] - 1
        seconds = median_seconds(call, device, plan.seconds) - prefill
        if seconds >= plan.seconds or more >= plan.most_new_tokens:
            break
        more = min(4 * more, plan.most_new_tokens)
    return _Generation(prefill, _each(seconds, generated), first_token, state)


def _first_token(
    contestant: Contestant, model: Any, generate: Callable[[int], Any], device: torch.device, tokens: int
) -> float | None:
    """Seconds of each of the first tokens after the prompt, where nothing of their shape has run before."""
    generate(1)
    contestant.start_afresh(model)
    prefill = seconds_of(partial(generate, 1), device)
    contestant.start_afresh(model)
    return _each(seconds_of(partial(generate, 1 + tokens), device) - prefill, tokens)


def _each(seconds: float, tokens: int) -> float | None:
    return seconds / tokens if seconds > 0 and tokens > 0 else None
