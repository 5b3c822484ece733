"""Which memory of `static_steps` a model's generations have left, and how much of it is kept."""

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .body import States
from .inspection import identity_of
from .static_steps import Lane, Parts, Step

MOST_LANES = 8
"""How many lanes of one model are kept."""

MEMORY_SHARE = 1 / 8
"""The part of the GPU's memory that the lanes of one model may keep; the latest is always kept."""


class Engine:
    """The lanes of one model."""

    def __init__(self, parts: Parts, identity: Any) -> None:
        self.parts, self.identity = parts, identity
        self.lanes: OrderedDict[tuple[int, int], Lane] = OrderedDict()
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def lane(self, batch: int, capacity: int = 0, like: States | None = None) -> Iterator[Lane]:
        """A lane that nobody else uses meanwhile; one that is not kept where the lane of its shape is in use.

        `like` are states of the shapes and dtypes that it will hold, where the weights do not say it.
        """
        with self._guard:
            lane = self.lanes.get((batch, capacity))
            if lane is None:
                # Memory of a graph, so no tensors of inference mode, which could not be written outside of it.
                with torch.inference_mode(False):
                    lane = self.lanes[batch, capacity] = self._new_lane(batch, capacity, like)
            mine = lane.busy.acquire(blocking=False)
            if mine:
                self.lanes.move_to_end((batch, capacity))
                self._forget(lane)
        if not mine:
            with torch.inference_mode(False):
                extra = Lane(self.parts, batch, capacity, like)
            yield extra
            return
        try:
            yield lane
        finally:
            lane.busy.release()

    def _new_lane(self, *sizes: Any) -> Lane:
        try:
            return Lane(self.parts, *sizes)
        except torch.OutOfMemoryError:
            self.lanes.clear()
            torch.cuda.empty_cache()
            return Lane(self.parts, *sizes)

    def _forget(self, latest: Lane) -> None:
        """Drop the lanes that were not used for longest, until number and memory fit."""
        limit = float("inf")
        if latest.slot.is_cuda:
            limit = torch.cuda.get_device_properties(latest.slot.device).total_memory * MEMORY_SHARE
        while len(self.lanes) > MOST_LANES or sum(lane.nbytes for lane in self.lanes.values()) > limit:
            key = next(iter(self.lanes))
            if self.lanes[key] is latest:
                return
            del self.lanes[key]


_engines: "weakref.WeakKeyDictionary[nn.Module, Engine]" = weakref.WeakKeyDictionary()


def engine_of(model: Any) -> Engine:
    """The engine of a model, kept outside of it so that copies and files know nothing of it.

    Where something has changed that recordings depend on, they are made anew.
    """
    engine = _engines.get(model)
    if engine is None or engine.identity != identity_of(model):
        for block in model.body.blocks:
            block.mixer.prepare_weights()
        parts = Parts(model.embed_tokens, model.body, model.lm_head)
        engine = _engines[model] = Engine(parts, identity_of(model))
    return engine


def steps_of(model: nn.Module) -> list[Step]:
    """The steps that a model's generations have left."""
    engine = _engines.get(model)
    return [] if engine is None else [step for lane in engine.lanes.values() for step in lane.steps]


def settle(model: nn.Module, generate: Callable[[], object]) -> None:
    """Call `generate` until no step that it uses will become faster any more."""
    is_settled = False
    while not is_settled:
        before = {step: step.calls for step in steps_of(model)}
        generate()
        used = [step for step in steps_of(model) if step.calls != before.get(step)]
        is_settled = all(step.is_settled for step in used)


def forget(model: nn.Module) -> None:
    """Drop everything that a model's generations have left: the next is as slow as the first."""
    _engines.pop(model, None)
