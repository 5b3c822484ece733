"""Time and memory of work on a device: waited for, warmed up, medians."""

import contextlib
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch import Tensor, nn

SAMPLE_SECONDS = 0.005


class Marks:
    """Moments of the device's own time, taken without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Take this moment: when the device has done all that was asked of it so far."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Seconds from each moment to the next."""
        synchronize(self._device)
        if self._device.type == "cuda":
            return [first.elapsed_time(second) / 1000 for first, second in pairwise(self._marks)]
        return [second - first for first, second in pairwise(self._marks)]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], device: torch.device, budget: float, most: int = 5) -> float:
    """Median of a few calls: two at least, and no further ones once they took `budget` seconds together."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < most and sum(times) < budget):
        times.append(seconds_of(work, device))
    return statistics.median(times)


@dataclass
class Peak:
    """Highest memory inside a block, known after it."""

    bytes: int = 0

    @property
    def gib(self) -> float:
        """The same in GiB."""
        return self.bytes / 2**30


class Memory:
    """Peak memory: the allocator's on a GPU; on a CPU what the process takes beyond what it had when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.init()
        self._baseline = self._process.memory_info().rss

    @contextlib.contextmanager
    def watch(self) -> Iterator[Peak]:
        """Measure the peak of the block."""
        peak = Peak()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            yield peak
            peak.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        done, highest = threading.Event(), [self._process.memory_info().rss]

        def sample() -> None:
            while not done.wait(SAMPLE_SECONDS):
                highest.append(max(highest.pop(), self._process.memory_info().rss))

        watcher = threading.Thread(target=sample, daemon=True)
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()
        peak.bytes = max(0, highest[0] - self._baseline)

    def release(self) -> None:
        """Give back what earlier work left behind, so that it does not count for the next."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            # glibc keeps freed memory; other C libraries have no such call.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating point operations per second of a product of two square matrices; the best of five."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: left @ right, device)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy of `size` bytes reads and writes together; the best of five."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(2):
        work()
    marks = Marks(device)
    marks.mark()
    for _ in range(5):
        work()
        marks.mark()
    return min(marks.gaps())


def state_bytes(cache: Any) -> int | None:
    """Bytes of the tensors that a cache holds, each storage once; None where there is no cache."""
    if cache is None:
        return None
    if callable(getattr(cache, "nbytes", None)):
        return int(cache.nbytes())
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [cache]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, nn.Module | type):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        else:
            waiting += getattr(value, "__dict__", {}).values()
    return sum(found.values())
