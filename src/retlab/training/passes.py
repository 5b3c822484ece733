"""Forward and backward passes as CUDA graphs, so that the GPU never waits for the host between two kernels.

A pass of a RetNet of 242 million parameters is 1,200 kernels, which a host needs about as long to start as an H100 to
run; the smaller the model, the more of the time is the host's.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from retlab.models.recording import Recorder

WARM_PASSES = 2
"""Passes of a kind that are launched kernel by kernel before it is recorded."""

Work = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""From a micro-batch on the device and the scale () of its loss to the loss; adds to the parameters' gradients."""


class RecordedPasses:
    """Runs `work` on micro-batches: launched at first, later replayed from recordings that do the very same.

    There is a recording for every shape of micro-batch, one for the first of a step, which makes the gradients, and one
    for the others, which add to them. Gradients stay where the first recording has put them.
    """

    def __init__(self, work: Work, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._work, self._parameters, self._device = work, parameters, device
        self._kinds: dict[object, _Kind] = {}
        self._recorder: Recorder | None = Recorder(device)

    @property
    def recorded(self) -> int:
        """How many kinds of passes are replayed."""
        return sum(kind.graph is not None for kind in self._kinds.values())

    def run(self, batch: Mapping[str, Tensor], scale: float) -> Tensor:
        """The loss () in float64 of a micro-batch in pinned memory; its gradients are added to the parameters'."""
        before = self._gradients()
        shapes = tuple((name, values.shape, values.dtype) for name, values in batch.items())
        key = shapes, all(gradient is None for gradient in before)
        if key not in self._kinds:
            self._kinds[key] = _Kind(batch, self._device)
        kind = self._kinds[key]
        kind.feed(batch, scale)
        if kind.graph is None and kind.launched >= WARM_PASSES and self._can_build_on(before):
            self._record(kind, before)
        if kind.graph is not None and _same(kind.before, before):
            self._put(kind.after)
            kind.graph.replay()
        else:
            self._launch(kind)
        assert kind.loss is not None
        return kind.loss.double()

    def _launch(self, kind: "_Kind") -> None:
        kind.launched += 1
        if self._recorder is None:
            self._pass(kind)
        else:
            self._recorder.launch(lambda: self._pass(kind))

    def _pass(self, kind: "_Kind") -> None:
        kind.loss = self._work(kind.inputs, kind.scale).detach()

    def _can_build_on(self, before: list[Tensor | None]) -> bool:
        """Whether gradients will be found at these places again: there are none, or a recording has made them."""
        recorded = (kind.after for kind in self._kinds.values() if kind.graph is not None)
        return all(gradient is None for gradient in before) or any(_same(after, before) for after in recorded)

    def _record(self, kind: "_Kind", before: list[Tensor | None]) -> None:
        if self._recorder is None:
            return
        kind.loss = None
        pool = next((other.graph.pool() for other in self._kinds.values() if other.graph is not None), None)
        reason = self._lacks_memory() if pool is None else ""
        if not reason:
            try:
                kind.graph = self._recorder.record(lambda: self._pass(kind), pool)
                kind.before, kind.after = before, self._gradients()
                return
            # Whatever cannot be recorded: a kernel that waits for the host, memory that ran out.
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
        self._put(before)
        self._recorder = None
        for other in self._kinds.values():
            other.graph = None
        logging.getLogger(__name__).warning("note: training goes on without CUDA graphs, perhaps slower: %s", reason)

    def _lacks_memory(self) -> str:
        """A recording keeps what a pass needs, and what runs beside it, such as a validation, needs as much again."""
        needed = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._device)[0]
        if free >= 2 * needed:
            return ""
        return f"they need {2 * needed / 2**30:,.1f} GiB of free memory, and {free / 2**30:,.1f} GiB are free"

    def _gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self._parameters]

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient


class _Kind:
    """One kind of pass: the memory of its inputs, and its recording.

    Attributes:
        loss: () of the last pass.
        before, after: the parameters' gradients before and after the recorded pass.
    """

    def __init__(self, batch: Mapping[str, Tensor], device: torch.device) -> None:
        self.inputs = {name: torch.empty_like(values, device=device) for name, values in batch.items()}
        self.scale = torch.ones((), device=device)
        self.launched = 0
        self.loss: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.before: list[Tensor | None] = []
        self.after: list[Tensor | None] = []

    def feed(self, batch: Mapping[str, Tensor], scale: float) -> None:
        """Have the next pass read this micro-batch; copied once the device has done what came before."""
        for name, values in batch.items():
            self.inputs[name].copy_(values, non_blocking=True)
        self.scale.fill_(scale)


def _same(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
