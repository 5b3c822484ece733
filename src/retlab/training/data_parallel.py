"""Data parallelism: every process makes the gradients of its windows, and all of them sum them up."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

BUCKET_BYTES = 2**27
"""Gradients that are summed up at once, at most, if they are of more than one parameter."""

CTAS_OF_ONE_MACHINE = 32
"""Thread blocks of NCCL's kernels where all GPUs are linked. On two H200 a step of 242 million parameters took 54.5 ms
alone, 57.0 with so many, 57.4 with NCCL's own choice, and 59 to 64 with 8 to 2, which leave more of the GPU to the
backward pass and take longer.
"""


class DataParallel(DDPStrategy):
    """Lightning's processes, as for DDP; `GradientSums` does what torch's wrapper would do around the module.

    The wrapper cannot be part of a CUDA graph that other processes know nothing of, and copies every gradient.
    """

    def configure_ddp(self) -> None:
        """Start with the weights of the first process, without a wrapper."""
        assert isinstance(self.model, pl.LightningModule)
        for values in self.model.state_dict().values():
            dist.broadcast(values, 0)


class GradientSums:
    """Sums gradients over all processes, bucket by bucket, while the rest of a backward pass goes on.

    A pass only marks the moment at which each bucket is complete; calls that wait for these moments are launched when
    the host has launched the pass or its recording. So one process may replay what another launches, and a CUDA graph
    holds no work that has to meet another process's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device, nodes: int) -> None:
        self._buckets = buckets_of(parameters)
        self._bucket_of = {parameter: index for index, bucket in enumerate(self._buckets) for parameter in bucket}
        self._missing: list[int] = []
        self._is_cuda = device.type == "cuda"
        self._moments = [torch.cuda.Event(external=True) for _ in self._buckets] if self._is_cuda else []
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None
        self._group: Any = dist.new_group(pg_options=_nccl_options() if self._is_cuda and nodes == 1 else None)
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._bucket_of]

    def end(self) -> None:
        """Look at no further passes."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, parameter: nn.Parameter) -> None:
        index = self._bucket_of[parameter]
        self._missing[index] -= 1
        if self._missing[index] == 0:
            self._mark(index)

    def _mark(self, index: int) -> None:
        if self._is_cuda:
            self._moments[index].record()

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Mark when each bucket is complete in the backward pass that is run in it."""
        self._missing = [len(bucket) for bucket in self._buckets]
        yield
        # Of parameters that this pass has not used.
        for index, missing in enumerate(self._missing):
            if missing:
                self._mark(index)

    def sum(self) -> None:
        """Sum the gradients that the last pass has left in all processes; what is asked for next waits for it."""
        if self._stream is None:
            for bucket in self._buckets:
                self._sum(bucket)
            return
        with torch.cuda.stream(self._stream):
            for bucket, moment in zip(self._buckets, self._moments, strict=True):
                moment.wait()
                self._sum(bucket)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _sum(self, bucket: Sequence[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
        work = self._group.allreduce_coalesced(gradients, dist.AllreduceCoalescedOptions()) if gradients else None
        # Some backends are done, or in line on the GPU, when they return.
        if work is not None:
            work.wait()


def _nccl_options() -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options.config.min_ctas = options.config.max_ctas = CTAS_OF_ONE_MACHINE
    return options


def buckets_of(parameters: Iterable[nn.Parameter], most: int = BUCKET_BYTES) -> list[list[nn.Parameter]]:
    """The trainable parameters, last ones first as a backward pass goes, in lists of up to `most` bytes.

    What is larger has a list to itself: the embedding's gradient comes last, and what waited for it would come late.
    """
    buckets: list[list[nn.Parameter]] = []
    filled = most
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        size = parameter.numel() * parameter.element_size()
        if filled + size > most or not buckets:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter)
        filled += size
    return buckets
