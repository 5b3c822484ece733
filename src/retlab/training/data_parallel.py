"""DDP whose passes can be CUDA graphs: what is recorded makes gradients, and launched calls exchange them."""

from typing import NamedTuple, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

BUCKET_MIB = 128
"""Gradients that DDP averages at once. On two H200 a step of 242 million parameters takes 61.2 ms so, 65.1 in torch's
buckets of 25 MiB, and 60.1 in one process, all of them launched kernel by kernel.
"""

TIMED_BY_DDP = 10
"""Steps that DDP times with events at their beginning; events of a recording would break it off."""


class Ready(NamedTuple):
    """A bucket of gradients that a recorded pass makes, and the moment of each replay at which it is complete."""

    gradients: Tensor
    "float32 [parameters of the bucket]."
    moment: torch.cuda.Event


class GradientExchange:
    """Averages the gradients of all processes, bucket by bucket, while the backward pass goes on.

    In a pass that is being recorded nothing is sent: its buckets and their moments are noted, and every replay's are
    averaged by launched calls that wait for these moments. So a process may replay what another launches, and a graph
    holds no work that has to meet another process's.
    """

    def __init__(self) -> None:
        self._noted: list[Ready] = []
        self._stream: torch.cuda.Stream | None = None

    def note(self, gradients: Tensor) -> None:
        """This bucket is complete at the present moment of the recording."""
        moment = torch.cuda.Event(external=True)
        moment.record()
        self._noted.append(Ready(gradients, moment))

    def take(self) -> list[Ready]:
        """The buckets that were noted since the last call, in the order in which they are complete."""
        noted, self._noted = self._noted, []
        return noted

    def average(self, buckets: list[Ready]) -> None:
        """Average the buckets of a pass that was just replayed; what is asked of the GPU next waits for it."""
        if not buckets:
            return
        current = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream(current.device)
        with torch.cuda.stream(self._stream):
            for gradients, moment in buckets:
                moment.wait()
                dist.all_reduce(gradients, op=dist.ReduceOp.AVG)
        current.wait_stream(self._stream)


def average_bucket(exchange: GradientExchange, bucket: dist.GradBucket) -> Future[Tensor]:
    """DDP's communication hook for GPUs."""
    gradients = bucket.buffer()
    if torch.cuda.is_current_stream_capturing():
        exchange.note(gradients)
        averaged: Future[Tensor] = Future()
        averaged.set_result(gradients)
        return averaged
    work = dist.all_reduce(gradients, op=dist.ReduceOp.AVG, async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: cast(Tensor, future.value()[0]))


class DataParallel(DDPStrategy):
    """Lightning's DDP with our exchange between GPUs; it leaves batches where they are.

    The step moves what it needs, and counts tokens without the GPU.
    """

    def __init__(self) -> None:
        self.exchange = GradientExchange()
        super().__init__(
            ddp_comm_state=self.exchange,
            ddp_comm_hook=average_bucket,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=BUCKET_MIB,
        )

    def determine_ddp_device_ids(self) -> None:
        """None: of inputs that DDP knows no device for, it moves none."""

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        if self.root_device.type != "cuda":
            return super()._setup_model(model)
        # Gradients are put into buckets on the stream where DDP was made, and no recording may use the default one.
        with torch.cuda.stream(torch.cuda.Stream(self.root_device)):
            wrapped = super()._setup_model(model)
        # After its first steps DDP would time one in a hundred; see TIMED_BY_DDP.
        wrapped._set_ddp_runtime_logging_sample_rate(2**31 - 1)
        return wrapped


def exchange_of(strategy: pl.strategies.Strategy) -> GradientExchange | None:
    """What averages gradients under DDP."""
    return strategy.exchange if isinstance(strategy, DataParallel) else None
