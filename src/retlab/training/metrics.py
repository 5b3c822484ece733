"""What a training logs: the metrics file, speed, and the share of the hardware's peak that is used."""

import csv
import io
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

DETERMINISTIC_COLUMNS = ("step", "epoch", "tokens", "loss", "validation_loss", "learning_rate", "gradient_norm")
VOLATILE_COLUMNS = ("seconds", "tokens_per_second", "model_flops_utilization", "peak_memory_bytes")
"""Columns of metrics.csv that differ between two identical runs; all others are equal byte for byte."""

COLUMNS = DETERMINISTIC_COLUMNS + VOLATILE_COLUMNS

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 peak of GPUs by a part of their name, from NVIDIA's data sheets; the first that fits counts."""


class MetricsFile:
    """`metrics.csv` of a run: appended to, and cut back to a checkpoint's length on resuming."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, length: int) -> None:
        """Cut the file back to `length` bytes; 0 starts it anew with its header."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(min(length, file.tell()))
        if self.path.stat().st_size == 0:
            self._append(COLUMNS)

    def append(self, row: dict[str, Any]) -> None:
        """Add a line; floats are written so that reading them gives the same number, None stays blank."""
        values = (row.get(column) for column in COLUMNS)
        self._append(["" if value is None else repr(value) for value in values])

    def sync(self) -> int:
        """Make the file durable and return its length in bytes, for the checkpoint."""
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def _append(self, fields: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(fields)
        # One write per line, so that a kill leaves no torn line in the middle of the file.
        with open(self.path, "ab", buffering=0) as file:
            file.write(text.getvalue().encode())


class Stopwatch:
    """Time spent in training steps, without validation and saving."""

    def __init__(self, seconds: float) -> None:
        self.total = seconds
        self._since: float | None = None
        self._lap_start = seconds

    def start(self) -> None:
        """Count from now on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stop counting."""
        if self._since is not None:
            self.total += time.perf_counter() - self._since
        self._since = None

    def lap(self) -> float:
        """Seconds counted since the last call."""
        seconds = self.total - self._lap_start
        self._lap_start = self.total
        return seconds


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, device: torch.device, bf16: bool, processes: int
) -> float | None:
    """tokens/s * FLOPs per token / (processes * peak FLOP/s): the share of the peak that the model needs.

    FLOPs per token are those of forward and backward by `retlab.models.counting`, without recomputation. None where
    the peak is not known: on CPUs, in float32 and on GPUs that are not listed.
    """
    if device.type != "cuda" or not bf16:
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for part, flops in PEAK_BF16_FLOPS.items() if part in name), None)
    return tokens_per_second * flops_per_token / (processes * peak) if peak else None


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: the allocator's on a GPU, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
