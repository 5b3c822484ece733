"""Which device, precision and compilation a training gets."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from retlab.errors import UserError
from retlab.training.settings import TrainSection


@dataclass(frozen=True)
class Hardware:
    """What `choose_hardware` decided."""

    device: Literal["cpu", "cuda"]
    processes: int
    "Over all nodes."
    nodes: int
    bf16: bool
    compiled: bool
    strategy: Literal["ddp", "fsdp"]
    "What joins the processes, where there are several."

    def __str__(self) -> str:
        where = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        several = f"{self.processes} processes{where} ({self.strategy}), each on " if self.processes > 1 else ""
        threads = torch.get_num_threads()
        cpu = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}"
        name = torch.cuda.get_device_name() if self.device == "cuda" else cpu
        return f"{several}{name}, {'bf16' if self.bf16 else 'float32'}{', compiled' if self.compiled else ''}"


def choose_hardware(train: TrainSection) -> Hardware:
    """Resolve every `auto` of the section.

    Raises:
        UserError: a GPU, more GPUs or a precision that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if train.device == "cuda" and gpus == 0:
        raise UserError("train.device is cuda, but torch sees no GPU here; set it to cpu or auto, or check the driver")
    device: Literal["cpu", "cuda"] = "cpu" if train.device == "cpu" or gpus == 0 else "cuda"
    if device == "cuda" and (train.devices or 1) > gpus:
        raise UserError(f"train.devices is {train.devices}, but this machine has {gpus} GPUs; lower it")
    has_bf16 = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    if train.precision == "bf16" and device == "cuda" and not has_bf16:
        raise UserError(f"train.precision is bf16, which a {torch.cuda.get_device_name()} does not have; take float32")
    return Hardware(
        device,
        train.processes,
        train.num_nodes or 1,
        bf16=train.precision == "bf16" or (train.precision == "auto" and has_bf16),
        compiled=train.compile == "on" or (train.compile == "auto" and device == "cuda"),
        strategy="fsdp" if train.strategy == "fsdp" else "ddp",
    )


def set_threads(train: TrainSection) -> None:
    """CPU threads of this process: as configured, or the machine's cores shared out over several processes."""
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    elif (train.devices or 1) > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // (train.devices or 1)))
